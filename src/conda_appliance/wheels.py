"""Locked wheels → files of a linked environment, by PyPA's installer.

It is what pip's ``--require-hashes --no-index --no-deps`` is for: the wheels are the lock's, byte for byte, and nothing
else is looked for. pip itself would run on the environment's Python and write this host's paths; the library that the
packaging authority wrote for this writes for another prefix. Scripts find their Python beside themselves (as uv's
relocatable environments do), so that an environment which is moved needs nothing changed in them, and their digests in
RECORD hold.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from installer import install as unpack
from installer.destinations import SchemeDictionaryDestination
from installer.exceptions import InstallerError
from installer.records import RecordEntry
from installer.sources import WheelFile
from installer.utils import Scheme

from conda_appliance import bytecode, prefix_check, process, resources, trees
from conda_appliance.errors import BuildError, HashMismatch
from conda_appliance.lock import Wheel

#: What stands for the Python of the environment until `_Destination` writes what finds it.
_PYTHON = "/environment/bin/python"
#: Shell and Python at once: the shell runs the first two lines, and to Python they are a string.
_HEAD = b"""#!/bin/sh
'''exec' "$(dirname -- "$(realpath -- "$0")")"/python "$0" "$@"
' '''
"""


def install(
    wheels: Sequence[Wheel],
    archives: Mapping[str, Path],
    *,
    into: Path,
    prefix: str,
    epoch: int,
    work: Path,
    loader: Sequence[process.Argument] = (),
) -> None:
    """Install ``wheels`` into the linked environment in the folder ``into``, which will live at ``prefix``.

    ``archives`` are the wheels by SHA-256, which is checked again here; ``epoch`` (seconds since 1970) is every time
    stamp; ``work`` is a folder for what is only needed meanwhile, ``loader`` as `linking.link` has it. Byte code is
    compiled as that of conda packages, and stands in each RECORD. Raises HashMismatch naming a wheel; BuildError for
    one that brings a file which is there already, and when the result differs from its own records.
    """
    site = _site_packages(into)
    named = work / "wheels"
    owners = _owners(into)
    for wheel in wheels:
        path = archives[wheel.sha256]
        if (found := resources.sha256_of(path)) != wheel.sha256:
            raise HashMismatch(f"{wheel.filename} ({path})", expected=wheel.sha256, found=found)
        named.mkdir(parents=True, exist_ok=True)
        given = named / wheel.filename  # its name says what it is
        resources.hard_link_or_copy(path, given)
        _install(given, wheel, into, site, owners)
        given.unlink()
    resources.remove(named)
    _compile(into, site, prefix, loader)
    trees.settle(into, epoch)
    if findings := prefix_check.check(into, unread=frozenset(owners.values())):
        raise BuildError(
            f"the environment for {prefix} differs from its wheels' own records: {trees.some(findings)}",
            hint="a wheel holds other files than it lists: build it anew",
        )


class _Destination(SchemeDictionaryDestination):
    """Where a wheel's files go; scripts start with `_HEAD`."""

    def write_to_fs(self, scheme: Scheme, path: str, stream: BinaryIO, is_executable: bool) -> RecordEntry:
        if scheme == "scripts":
            content = stream.read()
            first = f"#!{_PYTHON}\n".encode()
            stream = io.BytesIO(_HEAD + content[len(first) :] if content.startswith(first) else content)
        return super().write_to_fs(scheme, path, stream, is_executable)


def _install(path: Path, wheel: Wheel, into: Path, site: Path, owners: Mapping[str, str]) -> None:
    places = {
        "purelib": site,
        "platlib": site,
        "scripts": into / "bin",
        "headers": into / "include" / site.parent.name / wheel.name,
        "data": into,
    }
    destination = _Destination(
        scheme_dict={name: str(place) for name, place in places.items()},
        interpreter=_PYTHON,
        script_kind="posix",
    )
    try:
        with WheelFile.open(path) as source:
            source.validate_record()
            unpack(source, destination, {"INSTALLER": b"conda-appliance\n"})
    except FileExistsError as error:
        there = str(error).rpartition(": ")[2].removeprefix(f"{into}/")
        raise BuildError(
            f"{wheel.filename} brings {there}, which {owners.get(there, 'another wheel')} has brought already",
            hint="one of the two must go: two packages cannot own one file",
        ) from None
    except (InstallerError, ValueError, OSError, KeyError) as error:
        raise BuildError(f"{wheel.filename} cannot be installed: {error}") from None


def _compile(into: Path, site: Path, prefix: str, loader: Sequence[process.Argument]) -> None:
    """Compile the wheels' modules, and record the byte code."""
    records = {
        path: list(csv.reader(io.StringIO(path.read_text("utf-8"))))
        for path in sorted(site.glob("*.dist-info/RECORD"))
        if (path.parent / "INSTALLER").read_text("utf-8").strip() == "conda-appliance"
    }
    inside = site.relative_to(into).as_posix()
    modules = {
        f"{inside}/{row[0]}": path
        for path, rows in records.items()
        for row in rows
        if row[0].endswith(".py") and not row[0].startswith("..")
    }
    bytecode.run(sorted(modules), into, prefix, [*loader, into / "bin/python"])
    for module, record in modules.items():
        source = into / module
        for made in sorted((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")):
            data = made.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            records[record].append([made.relative_to(site).as_posix(), f"sha256={digest}", str(len(data))])
    for path, rows in records.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(sorted(rows))
        path.write_text(text.getvalue(), encoding="utf-8")


def _site_packages(into: Path) -> Path:
    found = sorted(into.glob("lib/python3*/site-packages"))
    if len(found) != 1:
        raise BuildError("wheels need an environment with one Python")
    return found[0]


def _owners(into: Path) -> dict[str, str]:
    """Each recorded file of the conda packages, and whose it is."""
    return {
        entry["_path"]: record["name"]
        for record in prefix_check.records(into)
        for entry in record["paths_data"]["paths"]
    }

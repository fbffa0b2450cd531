"""Where linked environments name their own prefix: what lets a shell script move them to another one.

Found from the packages' own records (``paths.json``: https://docs.conda.io/projects/conda-build/en/stable/resources/
package-spec.html) and their own bytes, not by looking for the prefix: a file may well speak of /opt/conda and mean it.
`Relocations.lines` are written for ``iso/payload/install.sh``, which says what each means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conda_appliance import package
from conda_appliance.errors import BuildError
from conda_appliance.lock import CondaPackage, Lock

#: The longest first line of a script that kernels before 5.1 read, in bytes (execve(2)).
_SHEBANG = 127
#: No path is longer, in bytes (PATH_MAX); what has no binaries has room for as much.
_PATH_MAX = 4095


@dataclass(frozen=True, kw_only=True)
class Relocations:
    """Every place of the prefix, a line each; the longest prefix that fits, in bytes.

    ``fixed`` says why the environments cannot live elsewhere; it is empty when they can.
    """

    lines: tuple[str, ...]
    longest: int
    fixed: str


class _Fixed(Exception):
    """A file cannot be given another prefix: why."""


def find(tree: Path, prefix: str, lock: Lock, archives: Mapping[str, Path]) -> Relocations:
    """What names ``prefix`` in the linked environments of ``lock``; ``tree`` is what will stand at ``prefix``.

    ``archives`` are the packages by SHA-256. Raises BuildError for an environment that is not below ``prefix``.
    """
    lines: list[str] = []
    longest = _PATH_MAX
    try:
        if lock.conda.post_link == "build":
            raise _Fixed("post-link scripts ran for it, and what they wrote may name it anywhere")
        for section in lock.conda.environments.values():
            if not f"{section.prefix}/".startswith(f"{prefix}/"):
                raise BuildError(f"the environment at {section.prefix} is not below {prefix}")
            if section.installer is not None:
                raise _Fixed(
                    f"{section.installer.filename} made the environment at {section.prefix} for that path"
                )
            folder = tree / section.prefix.removeprefix(prefix).lstrip("/")
            for one in section.packages:
                found, room = _of_package(one, archives[one.sha256], folder, tree, section.prefix, prefix)
                lines += found
                longest = min(longest, room)
    except _Fixed as error:
        return Relocations(lines=(), longest=len(prefix), fixed=str(error))
    # A record's digest is of the file as it is in the end.
    lines.sort(key=lambda line: line.startswith("record "))
    return Relocations(lines=tuple(lines), longest=longest, fixed="")


def _of_package(
    one: CondaPackage, archive: Path, folder: Path, tree: Path, home: str, prefix: str
) -> tuple[list[str], int]:
    """The lines of one package that is linked in ``folder`` for ``home``, and the longest prefix it has room for."""
    meta = folder / "conda-meta" / f"{one.name}-{one.version}-{one.build}.json"
    text = meta.read_bytes()
    record = json.loads(text)
    entries = {entry["_path"]: entry for entry in record["paths_data"]["paths"]}
    wanted = {
        path: entry["prefix_placeholder"].encode()
        for path, entry in entries.items()
        if entry.get("prefix_placeholder") and "/__pycache__/" not in path
    }
    originals = dict(_originals(one, archive, record, wanted))
    inside = folder.relative_to(tree)
    lines, longest = [], _PATH_MAX
    for path, entry in entries.items():
        linked = folder / path
        if entry["path_type"] == "softlink" or "/__pycache__/" in path or path.endswith(".pyc"):
            if linked.is_symlink() and str(linked.readlink()).startswith(prefix):
                raise _Fixed(f"{path} of {one.name} is a link that names the prefix")
            if path in wanted:
                raise _Fixed(f"{path} of {one.name} is byte code that names the prefix")
            continue
        if path in wanted:
            places = _Places(originals[path], wanted[path], home.encode(), prefix.encode())
            is_text = entry.get("file_mode") != "binary"
            made = places.text() if is_text else places.binary()
            if made.linked != linked.read_bytes():
                raise _Fixed(f"{path} of {one.name} was linked in a way of its own")
        elif entry["path_type"] == "unix_python_entry_point":
            content = linked.read_bytes()
            made = _Places(content, home.encode(), home.encode(), prefix.encode()).text()
            is_text = True
        else:
            continue
        shown = (inside / path).as_posix()
        lines += [f"{'text' if is_text else 'binary'} {where} {shown}" for where in made.where]
        longest = min(longest, made.room)
        if made.where:
            lines.append(
                f"record {_digest_place(text, path, entry)} {(inside / 'conda-meta' / meta.name).as_posix()} {shown}"
            )
    return lines, longest


def _originals(
    one: CondaPackage, archive: Path, record: Mapping[str, Any], wanted: Mapping[str, bytes]
) -> Iterator[tuple[str, bytes]]:
    """The files ``wanted`` as they are in the package, by the path where they are linked."""
    if not wanted:
        return
    site = next((path for path in record["files"] if "/site-packages/" in path), "").partition(
        "site-packages/"
    )[0]
    for name, content in package.read_files(archive, one.filename):
        path = name
        if (
            record.get("noarch") == "python"
        ):  # https://docs.conda.io/projects/conda-build: noarch python packages
            path = re.sub(r"^site-packages/", f"{site}site-packages/", path)
            path = re.sub(r"^python-scripts/", "bin/", path)
        if path in wanted:
            yield path, content()


def _digest_place(text: bytes, path: str, entry: Mapping[str, Any]) -> int:
    """Where in a record (as `linking.link` writes it) the SHA-256 of a file stands, in bytes from its start."""
    digest = entry.get("sha256_in_prefix") or entry["sha256"]
    at = text.index(f'"_path": {json.dumps(path, ensure_ascii=False)},'.encode())
    return text.index(f'"{digest}"'.encode(), at) + 1


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A file linked for its prefix; ``where`` it names it, as `Relocations.lines` do; the longest prefix it takes."""

    linked: bytes
    where: list[str]
    room: int


@dataclass(frozen=True)
class _Places:
    """A package's file: ``placeholder`` in it stands for ``home``, the environment's path at or below ``prefix``."""

    content: bytes
    placeholder: bytes
    home: bytes
    prefix: bytes

    def text(self) -> _Made:
        """Each place by its own: the file's length follows the prefix."""
        parts = self.content.split(self.placeholder)
        offsets, at = [], 0
        for part in parts[:-1]:
            at += len(part)
            offsets.append(str(at))
            at += len(self.home)
        linked = self.home.join(parts)
        room = _PATH_MAX
        first = linked.partition(b"\n")[0]
        if first.startswith(b"#!") and self.prefix in first:
            room = (_SHEBANG - len(first)) // first.count(self.prefix) + len(self.prefix)
        return _Made(linked=linked, where=[",".join(offsets)] if offsets else [], room=room)

    def binary(self) -> _Made:
        """C strings, from the first place in each to its NUL: what is left of them is filled with more NULs."""
        linked, where, room = bytearray(self.content), [], _PATH_MAX
        at = self.content.find(self.placeholder)
        while at >= 0:
            end = self.content.find(b"\0", at)
            end = len(self.content) if end < 0 else end
            parts = self.content[at:end].split(self.placeholder)[1:]
            linked[at:end] = b"".join(self.home + part for part in parts).ljust(end - at, b"\0")
            literals = [self.home[len(self.prefix) :] + part for part in parts]
            where.append(f"{at}:{end - at}:{','.join(str(len(one)) for one in literals)}")
            room = min(room, (end - at - sum(map(len, literals))) // len(literals))
            at = self.content.find(self.placeholder, end)
        return _Made(linked=bytes(linked), where=where, room=room)

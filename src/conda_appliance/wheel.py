"""A wheel (PEP 427) → a conda package, from the wheel's own metadata: no recipe each."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conda_appliance import platforms, process
from conda_appliance.errors import BuildError
from conda_appliance.package import Package
from conda_appliance.platforms import PLATFORMS, Platform

#: Classifiers that mean one licence; ``BSD License`` and ``GPL`` do not say which.
_CLASSIFIED = {
    "Apache Software License": "Apache-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
#: Libraries that a manylinux wheel may expect of its system (PEP 600), and the package that has them here.
_SYSTEM_LIBRARIES = {"libgcc_s.so.1": "libgcc", "libstdc++.so.6": "libstdcxx", "libz.so.1": "zlib"}
#: The glibc of the manylinux tags that are older than PEP 600's numbered ones.
_OLD_TAGS = {"manylinux1": "2.5", "manylinux2010": "2.12", "manylinux2014": "2.17"}


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What a wheel says: its METADATA and WHEEL headers, console scripts, and licence texts by file name."""

    metadata: Message
    tags: tuple[str, ...]
    pure: bool
    scripts: tuple[str, ...]
    licenses: dict[str, bytes]


def convert(
    wheel: Path,
    root: Path,
    *,
    minor: str,
    build: str,
    license: str | None = None,
    depends: Sequence[str] = (),
    platform: Platform = PLATFORMS[platforms.DEFAULT],
) -> Package:
    """Unpack ``wheel`` below ``root`` as a conda package: noarch when it is pure, else for Python ``minor``.

    A compiled one is for ``platform``. ``build`` ends the build string. ``license`` (SPDX) and ``depends`` say what the
    metadata cannot: which
    "BSD License" it is, and what the extras need that a ``Requires-Dist`` asks of others. Raises BuildError
    where one of them is needed, and for a wheel with a ``.data`` folder, which has no plain place here.
    """
    with zipfile.ZipFile(wheel) as archive:
        read = _read(archive)
        site = root / ("site-packages" if read.pure else f"lib/python{minor}/site-packages")
        _unpack(archive, site)
    if not read.pure:
        for line in read.scripts:
            _write_script(root, line)
    metadata = read.metadata
    label = "pyh" if read.pure else f"py{minor.replace('.', '')}h"
    return Package(
        name=canonicalize_name(metadata["Name"]),
        platform=platform.name,
        version=metadata["Version"],
        build=f"{label}{build}_0",
        depends=tuple(
            dict.fromkeys([*_depends(read, site, minor, platform, extras_settled=bool(depends)), *depends])
        ),
        license=license or license_of(metadata),
        root=root,
        licenses=read.licenses or {"METADATA": metadata.as_bytes()},
        summary=metadata.get("Summary", ""),
        noarch_python=read.pure,
        entry_points=read.scripts if read.pure else (),
    )


def _read(archive: zipfile.ZipFile) -> _Read:
    names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    if any(top.endswith(".data") for top in tops):
        raise BuildError(f"{archive.filename} has a .data folder, and no rule says where that goes")
    info = next(top for top in tops if top.endswith(".dist-info"))
    about = HeaderParser().parsestr(archive.read(f"{info}/WHEEL").decode())
    points = f"{info}/entry_points.txt"
    return _Read(
        metadata=HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode()),
        tags=tuple(about.get_all("Tag", [])),
        pure=about["Root-Is-Purelib"].lower() == "true",
        scripts=console_scripts(archive.read(points).decode()) if points in names else (),
        licenses={
            name.partition("/")[2].replace("/", "_"): archive.read(name)
            for name in names
            if name.startswith(f"{info}/")
            and re.search(r"(LICEN[CS]E|COPYING|NOTICE)[^/]*$", name, re.IGNORECASE)
        },
    )


def _unpack(archive: zipfile.ZipFile, site: Path) -> None:
    """All files of the wheel; who installed it is said (PEP 376), and pip is kept from removing them."""
    site.mkdir(parents=True)
    for member in archive.infolist():
        path = Path(archive.extract(member, site))
        executable = member.external_attr >> 16 & 0o111
        path.chmod(0o755 if path.is_dir() or executable else 0o644)
        if path.name == "RECORD" and path.parent.name.endswith(".dist-info"):
            path.unlink()
            (path.parent / "INSTALLER").write_text("conda\n", encoding="utf-8")


def _depends(read: _Read, site: Path, minor: str, platform: Platform, *, extras_settled: bool) -> list[str]:
    if read.pure:
        specifier = _specifier(read.metadata.get("Requires-Python") or "")
        first = [f"python {specifier}".strip()]
    else:
        major, _, number = minor.partition(".")
        first = [f"python >={minor},<{major}.{int(number) + 1}", *_native(read, site)]
    requirements = [Requirement(one) for one in read.metadata.get_all("Requires-Dist", [])]
    here = [one for one in requirements if _holds(one, minor, platform)]
    for one in here:
        if one.extras and not extras_settled:
            raise BuildError(
                f"{read.metadata['Name']} needs {one}, and conda packages have no extras",
                hint="list what that extra needs as 'depends' of the wheel",
            )
    return [*first, *sorted(match_spec(one) for one in here)]


def _native(read: _Read, site: Path) -> list[str]:
    """The glibc that a compiled wheel's tags ask for, and the libraries that its modules ask for."""
    glibcs = [glibc for tag in read.tags if (glibc := glibc_of(tag))]
    wanted = [f"__glibc >={min(glibcs, key=lambda text: [int(part) for part in text.split('.')])}"]
    needed: set[str] = set()
    for path in site.rglob("*.so*"):
        if path.is_file():
            needed.update(process.run(["patchelf", "--print-needed", path]).stdout.split())
    return (wanted if glibcs else []) + sorted(
        package for soname, package in _SYSTEM_LIBRARIES.items() if soname in needed
    )


def glibc_of(tag: str) -> str | None:
    """``cp313-cp313-manylinux_2_28_x86_64`` → ``2.28``; None for a tag that names no glibc."""
    match = re.search(r"(manylinux(?:1|2010|2014))_|manylinux_(\d+)_(\d+)_", tag)
    if match is None:
        return None
    return _OLD_TAGS[match[1]] if match[1] else f"{match[2]}.{match[3]}"


def license_of(metadata: Message) -> str:
    """The SPDX expression that a wheel states. Raises BuildError when it states none, or only a vague one."""
    classified = {
        _CLASSIFIED.get(line.rpartition(" :: ")[2], "")
        for line in metadata.get_all("Classifier", [])
        if line.startswith("License ::")
    }
    candidates = [metadata.get("License-Expression", ""), metadata.get("License", "")]
    if len(classified) == 1:
        candidates.append(classified.pop())
    for candidate in candidates:
        try:
            return str(canonicalize_license_expression(candidate))
        except InvalidLicenseExpression:
            continue
    raise BuildError(
        f"{metadata['Name']} {metadata['Version']} does not say its licence as an SPDX expression",
        hint="read its licence text and add 'license' to the wheel's entry in channel.yaml",
    )


def console_scripts(text: str) -> tuple[str, ...]:
    """The ``console_scripts`` of an ``entry_points.txt`` as ``name = module:function``."""
    section = ""
    found = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and section == "console_scripts":
            name, _, target = line.partition("=")
            found.append(f"{name.strip()} = {target.partition('[')[0].strip()}")
    return tuple(found)


def scripts_of(path: Path) -> tuple[str, ...]:
    """The names of a wheel's console scripts."""
    with zipfile.ZipFile(path) as archive:
        points = [
            name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/entry_points\.txt", name)
        ]
        lines = console_scripts(archive.read(points[0]).decode()) if points else ()
    return tuple(line.partition(" = ")[0] for line in lines)


def _write_script(root: Path, line: str) -> None:
    """A console script of a package that is not noarch; whoever links noarch ones writes theirs.

    It finds the interpreter beside itself, wherever the environment lies: a shell script and a Python program
    at once, as pip writes where a path is too long for a ``#!`` line.
    """
    name, _, target = line.partition(" = ")
    module, _, function = target.partition(":")
    script = root / "bin" / name
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        f'#!/bin/sh\n\'\'\'exec\' "$(dirname "$(readlink -f "$0")")/python" "$0" "$@"\n\' \'\'\'\n'
        f"import sys\nfrom {module} import {function.partition('.')[0]}\nsys.exit({function}())\n",
        encoding="utf-8",
    )
    script.chmod(0o755)


def _holds(requirement: Requirement, minor: str, platform: Platform) -> bool:
    here = {
        "python_version": minor,
        "python_full_version": f"{minor}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": platform.machine,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(here)


def match_spec(requirement: Requirement) -> str:
    """A requirement in conda's words: ``Foo_Bar>=1,<2`` → ``foo-bar <2,>=1``."""
    return f"{canonicalize_name(requirement.name)} {_specifier(str(requirement.specifier))}".strip()


def _specifier(text: str) -> str:
    """PEP 440's comparisons are conda's too, but for ``===``; sorted, so that order never matters."""
    return ",".join(sorted(part.replace("===", "==").replace(" ", "") for part in text.split(",") if part))

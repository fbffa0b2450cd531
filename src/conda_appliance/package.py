"""Conda packages as files: writes and reads ``.conda`` archives (CEP 31; a zip of two zstd tarballs) and repodata.

Order, owners, modes and times are fixed: the same package gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from conda_package_streaming import create, package_streaming

from conda_appliance import platforms
from conda_appliance.errors import BuildError
from conda_appliance.platforms import PLATFORMS

#: The path that stands for the prefix in a package, as long as conda's own (255 characters) so that any
#: prefix fits where it is replaced inside a binary.
PLACEHOLDER = ("/opt/conda-appliance-placeholder" + "_placehold" * 30)[:255]
#: The time of every file in a package: 2020-01-01.
EPOCH = 1577836800
#: zstd's level. 19, which conda's own packages have, saves a tenth and takes ten times as long (numpy: 1.2 MB, 29 s).
COMPRESSION = 12


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package about to be written: ``root`` is its prefix, ``placeholder`` what stands for it in its files.

    ``licenses`` are the licence texts by file name, ``about`` further fields of ``info/about.json``. ``platform`` is
    what it is for, unless it is noarch.
    """

    name: str
    version: str
    build: str
    depends: tuple[str, ...]
    license: str
    root: Path
    licenses: Mapping[str, bytes]
    summary: str = ""
    noarch_python: bool = False
    entry_points: tuple[str, ...] = ()
    placeholder: str = ""
    platform: str = platforms.DEFAULT
    about: Mapping[str, object] = field(default_factory=dict)


def write_package(package: Package, folder: Path) -> Path:
    """Write ``NAME-VERSION-BUILD.conda`` into ``folder``. Raises BuildError for one without a licence text."""
    if not package.licenses:
        raise BuildError(f"no licence text was found for {package.name} {package.version}")
    stem = f"{package.name}-{package.version}-{package.build}"
    paths = [_path_entry(package, path) for path in _members(package.root)]
    info: dict[str, bytes] = {
        "index.json": _json(
            {
                "name": package.name,
                "version": package.version,
                "build": package.build,
                "build_number": 0,
                "depends": list(package.depends),
                "license": package.license,
                "subdir": "noarch" if package.noarch_python else package.platform,
                "timestamp": EPOCH * 1000,
                **(
                    {"noarch": "python"}
                    if package.noarch_python
                    else {"arch": PLATFORMS[package.platform].machine, "platform": "linux"}
                ),
            }
        ),
        "about.json": _json({**package.about, "summary": package.summary, "license": package.license}),
        "paths.json": _json({"paths": paths, "paths_version": 1}),
        "files": "".join(f"{one['_path']}\n" for one in paths).encode(),
        **{f"licenses/{name}": content for name, content in package.licenses.items()},
    }
    if package.noarch_python:
        link = {
            "noarch": {"type": "python", "entry_points": list(package.entry_points)},
            "package_metadata_version": 1,
        }
        info["link.json"] = _json(link)
    with create.conda_builder(stem, str(folder), compression_level=COMPRESSION) as archive:
        for path in _members(package.root):
            name = str(path.relative_to(package.root))
            member = archive.gettarinfo(str(path), arcname=name)
            if path.is_symlink():
                archive.addfile(_plain(member))
            else:
                with path.open("rb") as file:
                    archive.addfile(_plain(member), file)
        for name, content in sorted(info.items()):
            member = tarfile.TarInfo(f"info/{name}")
            member.size = len(content)
            archive.addfile(_plain(member), io.BytesIO(content))
    path = folder / f"{stem}.conda"
    _fix_times(path)
    return path


def _fix_times(path: Path) -> None:
    """Give the zip's own members the one time: the library stamps one of them with the clock."""
    loose = path.replace(path.with_suffix(".loose"))
    with zipfile.ZipFile(loose) as source, zipfile.ZipFile(path, "x") as target:
        for member in source.infolist():
            fixed = zipfile.ZipInfo(member.filename, date_time=time.gmtime(EPOCH)[:6])
            target.writestr(fixed, source.read(member))
    loose.unlink()


def _members(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = EPOCH
    member.mode = 0o755 if member.mode & 0o100 or member.issym() else 0o644
    if member.islnk():
        raise BuildError(f"{member.name} is a hard link: packages hold plain files")
    return member


def _path_entry(package: Package, path: Path) -> dict[str, object]:
    name = str(path.relative_to(package.root))
    if path.is_symlink():
        target = path.resolve()
        content = target.read_bytes() if target.is_file() else b""
        return {
            "_path": name,
            "path_type": "softlink",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size_in_bytes": len(content),
        }
    content = path.read_bytes()
    entry: dict[str, object] = {
        "_path": name,
        "path_type": "hardlink",
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_in_bytes": len(content),
    }
    if package.placeholder and package.placeholder.encode() in content:
        entry["prefix_placeholder"] = package.placeholder
        entry["file_mode"] = "binary" if b"\0" in content else "text"
    return entry


def read_files(archive: Path, filename: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """A package's files but ``info/``, as (name, what reads it now); ``filename`` tells the format, as caches may not.

    Raises BuildError for what is neither ``.conda`` nor ``.tar.bz2``.
    """
    try:
        with archive.open("rb") as file:
            for tar, member in package_streaming.stream_conda_component(filename, file, "pkg"):
                if member.isfile() and not member.name.startswith("info/"):
                    yield member.name, partial(_content, tar, member)
    except ValueError as error:
        raise BuildError(f"{filename} cannot be read as a package: {error}") from None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def read_index(path: Path) -> dict[str, str]:
    """``info/index.json`` of a package."""
    return read_index_of(path, path.name)


def read_index_of(path: Path, filename: str) -> dict[str, Any]:
    """``info/index.json`` of a package whose file is called ``filename`` elsewhere. Raises BuildError without one."""
    try:
        with path.open("rb") as file:
            for archive, member in package_streaming.stream_conda_component(filename, file, "info"):
                if member.name == "info/index.json":
                    found: dict[str, Any] = json.loads(_content(archive, member))
                    return found
    except (ValueError, zipfile.BadZipFile, tarfile.TarError, OSError) as error:
        raise BuildError(f"{filename} cannot be read as a package: {error}") from None
    raise BuildError(f"{filename} has no info/index.json")


def link_scripts(path: Path, filename: str) -> frozenset[str]:
    """The scripts that a package called ``filename`` wants to run when it is linked: ``pre-link``, ``post-link``.

    Only its own list of files tells (``info/paths.json``, or ``info/files`` of old ones). Raises BuildError for
    one without.
    """
    try:
        with path.open("rb") as file:
            for archive, member in package_streaming.stream_conda_component(filename, file, "info"):
                if member.name in ("info/paths.json", "info/files"):
                    names = _content(archive, member).decode(errors="replace")
                    found = re.findall(
                        r"(?:^|\")bin/\.[^/\"\n]+-(pre-link|post-link)\.sh(?:$|\")", names, re.MULTILINE
                    )
                    return frozenset(found)
    except (ValueError, zipfile.BadZipFile, tarfile.TarError, OSError) as error:
        raise BuildError(f"{filename} cannot be read as a package: {error}") from None
    raise BuildError(f"{filename} has no info/paths.json or info/files")


def write_repodata(channel: Path, platform: str = platforms.DEFAULT) -> None:
    """Write ``repodata.json`` for both subdirs of a channel folder (conda's own shape, version 1)."""
    for subdir in (platform, "noarch"):
        folder = channel / subdir
        folder.mkdir(parents=True, exist_ok=True)
        packages: dict[str, dict[str, object]] = {".tar.bz2": {}, ".conda": {}}
        for path in sorted([*folder.glob("*.conda"), *folder.glob("*.tar.bz2")]):
            content = path.read_bytes()
            packages[".conda" if path.suffix == ".conda" else ".tar.bz2"][path.name] = {
                **read_index(path),
                "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
            }
        repodata = {
            "info": {"subdir": subdir},
            "packages": packages[".tar.bz2"],
            "packages.conda": packages[".conda"],
            "repodata_version": 1,
        }
        (folder / "repodata.json").write_bytes(_json(repodata))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

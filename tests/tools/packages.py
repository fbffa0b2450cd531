"""Makes small conda packages and channels for tests, by the format's own documentation.

https://docs.conda.io/projects/conda-build/en/stable/resources/package-spec.html
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rattler.index

from conda_appliance import process

#: What stands for the prefix in a package's files; as long as conda-build's own.
PLACEHOLDER = "/placehold" * 25 + "_plac"


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a package: text or bytes (``PLACEHOLDER`` in it is found), or ``link``, a link's target."""

    content: str | bytes = b""
    link: str = ""
    executable: bool = False


@dataclass(frozen=True, kw_only=True)
class Package:
    name: str
    version: str = "1.0"
    build: str = "0"
    depends: Sequence[str] = ()
    constrains: Sequence[str] = ()
    files: Mapping[str, File] = field(default_factory=dict)
    noarch: str = ""
    entry_points: Sequence[str] = ()
    license: str = ""
    licenses: Mapping[str, str] = field(default_factory=dict)
    platform: str = "linux-64"

    @property
    def subdir(self) -> str:
        return "noarch" if self.noarch else self.platform

    def write(self, channel: Path, suffix: str = ".conda") -> Path:
        """Write the archive into a channel's folder and return its path."""
        path = channel / self.subdir / f"{self.name}-{self.version}-{self.build}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        info = {f"info/{name}": File(content=text) for name, text in self._info().items()}
        if suffix == ".tar.bz2":
            path.write_bytes(_tar({**info, **self.files}, "w:bz2"))
            return path
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"conda_pkg_format_version": 2}))
            stem = path.name.removesuffix(suffix)
            archive.writestr(f"pkg-{stem}.tar.zst", _zstd(_tar(self.files, "w"), path.parent))
            archive.writestr(f"info-{stem}.tar.zst", _zstd(_tar(info, "w"), path.parent))
        return path

    def _info(self) -> dict[str, str]:
        index: dict[str, object] = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": list(self.depends),
            "subdir": self.subdir,
        }
        if self.constrains:
            index["constrains"] = list(self.constrains)
        if self.noarch:
            index["noarch"] = self.noarch
        if self.license:
            index["license"] = self.license
        made = {
            "index.json": json.dumps(index),
            "about.json": "{}",
            **{f"licenses/{name}": text for name, text in self.licenses.items()},
            "paths.json": json.dumps(
                {
                    "paths_version": 1,
                    "paths": [_entry(name, file, self.files) for name, file in self.files.items()],
                }
            ),
        }
        if self.noarch == "python":
            made["link.json"] = json.dumps(
                {
                    "noarch": {"type": "python", "entry_points": list(self.entry_points)},
                    "package_metadata_version": 1,
                }
            )
        return made


def _entry(name: str, file: File, files: Mapping[str, File]) -> dict[str, object]:
    if file.link:
        return {"_path": name, "path_type": "softlink"}
    data = _bytes(file)
    entry: dict[str, object] = {
        "_path": name,
        "path_type": "hardlink",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_in_bytes": len(data),
    }
    if PLACEHOLDER.encode() in data:
        mode = "binary" if b"\0" in data else "text"
        entry |= {"prefix_placeholder": PLACEHOLDER, "file_mode": mode}
    return entry


def _bytes(file: File) -> bytes:
    return file.content.encode() if isinstance(file.content, str) else file.content


def _tar(files: Mapping[str, File], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, file in files.items():
            info = tarfile.TarInfo(name)
            info.mode = 0o775 if file.executable else 0o664
            if file.link:
                info.type, info.linkname = tarfile.SYMTYPE, file.link
                tar.addfile(info)
            else:
                info.size = len(_bytes(file))
                tar.addfile(info, io.BytesIO(_bytes(file)))
    return buffer.getvalue()


def _zstd(data: bytes, folder: Path) -> bytes:
    plain, packed = folder / "plain.tmp", folder / "packed.tmp"
    plain.write_bytes(data)
    process.run(["zstd", "--quiet", "--force", plain, "-o", packed])
    made = packed.read_bytes()
    plain.unlink()
    packed.unlink()
    return made


def index(channel: Path) -> None:
    """Write a channel's repodata, of other platforms too where there are packages for them."""
    for subdir in ("noarch", "linux-64"):
        (channel / subdir).mkdir(parents=True, exist_ok=True)
    asyncio.run(rattler.index.index_fs(channel, force=True))


def python() -> Package:
    """A stand-in for Python that can run on this host: it starts the Python that runs the tests."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Package(
        name="python",
        version=f"{version}.0",
        depends=["libc-user"],
        files={
            f"bin/python{version}": File(content=f'#!/bin/sh\nexec {sys.executable} "$@"\n', executable=True),
            "bin/python": File(link=f"python{version}"),
            f"lib/python{version}/this_is_stdlib.py": File(content="ANSWER = 42\n"),
        },
    )


def small_channel(channel: Path) -> Path:
    """A channel with everything that linking must get right."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python().write(channel)
    Package(
        name="libc-user", depends=["__glibc >=2.17"], files={"lib/libuser.so": File(content=b"\0elf")}
    ).write(channel)
    Package(
        name="prefixed",
        files={
            "bin/prefixed": File(
                content=f"#!{PLACEHOLDER}/bin/python\nprint('{PLACEHOLDER}')\n", executable=True
            ),
            "lib/prefixed.bin": File(content=b"\0\1" + PLACEHOLDER.encode() + b"/share\0\2"),
            "etc/prefixed.conf": File(content=f"home = {PLACEHOLDER}/share\n"),
            "share/link-to-conf": File(link="../etc/prefixed.conf"),
            "share/dangling": File(link="nowhere"),
        },
    ).write(channel, ".tar.bz2")
    Package(
        name="pure",
        depends=[f"python {version}.*", "prefixed"],
        noarch="python",
        entry_points=["pure-tool = pure.main:run"],
        files={
            "site-packages/pure/__init__.py": File(content="import this_is_stdlib\n"),
            "site-packages/pure/main.py": File(content="def run() -> int:\n    return 0\n"),
            "site-packages/pure/template.py": File(content="{% not python %}\n"),
        },
    ).write(channel)
    index(channel)
    return channel

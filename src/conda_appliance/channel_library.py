"""Recipes of libraries: the shared objects of Debian's packages → conda packages, made to find each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from conda_appliance import process
from conda_appliance.apt import RemoteFile
from conda_appliance.channel_job import FORMAT, Job, Workshop, digest, provenance
from conda_appliance.errors import BuildError
from conda_appliance.package import Package
from conda_appliance.recipes import Library


def jobs(shop: Workshop) -> Iterator[Job]:
    """One for each library of the recipes."""
    libraries = shop.recipes.libraries
    if libraries is None:
        return
    names = [deb for library in libraries.packages.values() for deb in library.debs]
    debs = {one.name.partition("_")[0]: one for one in shop.apt(libraries.suite).download_only(set(names))}
    for name, library in libraries.packages.items():
        files = [debs[deb] for deb in library.debs]
        key = digest(name, library.model_dump(), [f.sha256 for f in files], libraries.glibc, FORMAT)

        def make(
            at: Path, name: str = name, library: Library = library, files: list[RemoteFile] = files
        ) -> Package:
            return _library(shop, at, name, library, files)

        yield Job(name=name, key=key, make=make)


def _library(shop: Workshop, at: Path, name: str, library: Library, files: list[RemoteFile]) -> Package:
    libraries = shop.recipes.libraries
    assert libraries is not None
    root = at / "root"
    (root / "lib").mkdir(parents=True)
    licenses = {}
    for file, deb in zip(files, shop.have(files), strict=True):
        unpacked = at / file.name
        process.run(["dpkg-deb", "-x", deb, unpacked])
        for path in sorted(unpacked.rglob("*.so*")):
            if path.parent.name == shop.platform.triplet:
                path.rename(root / "lib" / path.name)
        for path in unpacked.glob("usr/share/doc/*/copyright"):
            licenses[f"{path.parent.name}-copyright"] = path.read_bytes()
    objects = [
        path
        for path in sorted((root / "lib").iterdir())
        if not path.is_symlink() and path.read_bytes()[:4] == b"\x7fELF"
    ]
    if not objects:
        raise BuildError(f"{', '.join(library.debs)}: no shared object in them")
    for path in objects:
        path.chmod(0o644)
        process.run(["patchelf", "--set-rpath", "$ORIGIN", path])
    debian = unquote(files[0].name.split("_")[1])
    return Package(
        name=name,
        version=conda_version(debian),
        build=f"debian_{digest(*(f.sha256 for f in files), library.model_dump(), FORMAT)[:7]}_0",
        depends=(f"__glibc >={libraries.glibc}", *library.depends),
        license=library.license,
        root=root,
        licenses=licenses,
        summary=f"{library.debs[0]} {debian} of Debian {libraries.suite}",
        platform=shop.platform.name,
        about=provenance(files),
    )


def conda_version(debian: str) -> str:
    """A Debian version as a conda one: epoch and revision gone, ``1.3.dfsg+really1.3.1`` → ``1.3.1``."""
    upstream = debian.partition(":")[2] or debian
    upstream = upstream.rpartition("-")[0] or upstream
    upstream = upstream.rpartition("really")[2]
    return (
        re.sub(r"[+~.]?(dfsg|ds|debian|deb\d).*$", "", upstream)
        .rstrip(".+~")
        .replace("-", "_")
        .replace("~", "")
    )

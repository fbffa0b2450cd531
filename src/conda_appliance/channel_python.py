"""The recipe of the interpreter: the source package of a Debian suite → CPython, compiled for a conda prefix."""

from __future__ import annotations

import fnmatch
import os
import platform as host
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from conda_appliance import log, process
from conda_appliance.apt import RemoteFile
from conda_appliance.channel_job import FORMAT, Job, Workshop, digest, provenance
from conda_appliance.errors import BuildError, CommandFailed, ToolMissing
from conda_appliance.package import EPOCH, PLACEHOLDER, Package
from conda_appliance.platforms import Platform
from conda_appliance.recipes import Python


def jobs(shop: Workshop, native: Callable[[], Path]) -> Iterator[Job]:
    """The interpreter's, if the recipes have one. ``native`` gives the one for this host, for another platform's."""
    python, libraries = shop.recipes.python, shop.recipes.libraries
    if python is None or libraries is None:
        return
    files = [
        file
        for file in shop.apt(python.suite).source(python.source)
        if re.search(r"\.(orig|debian)\.tar\.\w+$", file.name)
    ]
    compiler = process.run([shop.platform.tool("gcc"), "-dumpfullversion"]).stdout.strip()
    own = host.libc_ver()[1] if shop.platform.native else cross_glibc(shop.platform)
    glibc = max(libraries.glibc, own, key=_version_key)
    scripts = [path.read_text("utf-8") for path in sorted((shop.folder / "python").glob("*"))]
    parts = [
        python.model_dump(),
        [f.sha256 for f in files],
        scripts,
        compiler,
        glibc,
        PLACEHOLDER,
        FORMAT,
    ]
    key = digest(*parts, *([] if shop.platform.native else [shop.platform.name]))
    yield Job(
        name="python",
        key=key,
        make=lambda at: _python(shop, native, at, python, files, glibc, key[:7]),
        note=", compiled from source (minutes)",
    )


def _python(
    shop: Workshop,
    native: Callable[[], Path],
    at: Path,
    python: Python,
    files: list[RemoteFile],
    glibc: str,
    build: str,
) -> Package:
    original, debian = sorted(
        zip(files, shop.have(files), strict=True), key=lambda one: ".orig." not in one[0].name
    )
    version = original[0].name.partition("_")[2].partition(".orig")[0]
    tree = at / "source"
    tree.mkdir()
    process.run(["tar", "-x", "--strip-components=1", "-f", original[1], "-C", tree])
    patches = _patch(tree, debian[1], python.patches)
    for path in sorted((shop.folder / "python").glob("*.patch")):
        process.run(["patch", "--strip=1", "--batch", "--directory", tree, "--input", path.resolve()])
        patches.append(path.name)
    stage = at / "stage"
    builder = None if shop.platform.native else native()
    _compile(shop, tree, _sysroot(shop, at, python), stage, f"Python {version}", builder)
    return Package(
        name="python",
        version=version,
        build=f"debian_{build}_0_cp{''.join(version.split('.')[:2])}",
        depends=(f"__glibc >={glibc}", *python.depends),
        license=python.license,
        root=stage / PLACEHOLDER.lstrip("/"),
        licenses={
            "LICENSE": (tree / "LICENSE").read_bytes(),
            # What is built in besides: expat, mpdecimal, the Mersenne twister …
            "incorporated.rst": (tree / "Doc/license.rst").read_bytes(),
        },
        summary=f"CPython, compiled from the source of Debian {python.suite} with its {len(patches)} fixes",
        placeholder=PLACEHOLDER,
        about={**provenance(files), "patches": patches},
        platform=shop.platform.name,
    )


def _sysroot(shop: Workshop, at: Path, python: Python) -> Path:
    """Headers and libraries to compile against, unpacked from ``.debs``: nothing is installed on the host."""
    libraries = shop.recipes.libraries
    assert libraries is not None
    linked = [
        deb for name in python.depends if name in libraries.packages for deb in libraries.packages[name].debs
    ]
    sysroot = at / "sysroot"
    (sysroot / "usr/lib").mkdir(parents=True)
    (sysroot / "lib").symlink_to("usr/lib")
    for deb in shop.have(shop.apt(libraries.suite).download_only({*python.headers, *linked})):
        archive = at / "data.tar"
        with archive.open("wb") as file:
            process.run_to(["dpkg-deb", "--fsys-tarfile", deb], file)
        process.run(["tar", "-x", "--keep-directory-symlink", "-f", archive, "-C", sysroot])
    for path in sysroot.rglob("*"):
        if path.is_symlink() and path.readlink().is_absolute():
            target = sysroot / path.readlink().relative_to("/")
            path.unlink()
            path.symlink_to(os.path.relpath(target.parent.resolve() / target.name, path.parent.resolve()))
    return sysroot


def _compile(shop: Workshop, tree: Path, sysroot: Path, stage: Path, what: str, builder: Path | None) -> None:
    lines = 0

    def on_line(_line: str) -> None:
        nonlocal lines
        lines += 1
        shop.progress(f"compiling {what}: {lines} lines of output")

    output = shop.work / "python.log"
    try:
        process.run(
            ["sh", shop.folder.resolve() / "python/build.sh"],
            env={
                "SOURCE": str(tree),
                "SYSROOT": str(sysroot),
                "TRIPLET": shop.platform.triplet,
                "BUILD_PYTHON": str(builder or ""),
                "PREFIX": PLACEHOLDER,
                "STAGE": str(stage),
                "JOBS": str(len(os.sched_getaffinity(0))),
                "SOURCE_DATE_EPOCH": str(EPOCH),
            },
            log=output,
            on_line=on_line,
        )
    except CommandFailed as error:
        kept = shop.work.parent / "python.log"
        shutil.copyfile(output, kept)
        raise BuildError(
            f"{what} did not compile: {error.message}", hint=f"the whole output is in {kept}"
        ) from None


def _patch(tree: Path, debian: Path, patterns: Iterable[str]) -> list[str]:
    """Apply those of Debian's patches that the patterns take, in Debian's order; returns their names.

    They are made against a tree that has Debian's other patches too. One that does not apply without them
    is left out and said.
    """
    done = []
    with tarfile.open(debian) as archive:
        series = archive.extractfile("debian/patches/series")
        names = series.read().decode().split("\n") if series else []
        for name in map(str.strip, names):
            if name.startswith("#") or not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                continue
            text = archive.extractfile(f"debian/patches/{name}")
            assert text is not None
            command = ["patch", "--strip=1", "--batch", "--forward", "--silent", "--reject-file=-"]
            command += ["--directory", str(tree)]
            content = text.read().decode("utf-8", errors="surrogateescape")
            if process.run([*command, "--dry-run"], input=content, check=False).returncode != 0:
                log.warn(
                    f"Debian's {name} does not apply to the original source: this Python goes without it"
                )
                continue
            process.run(command, input=content)
            done.append(name)
    return done


def cross_glibc(platform: Platform) -> str:
    """The glibc of the host's compiler for ``platform``, such as 2.36. Raises ToolMissing when it has none."""
    asked = process.run(
        [platform.tool("gcc"), "-E", "-P", "-x", "c", "-"],
        input="#include <features.h>\n__GLIBC__ __GLIBC_MINOR__\n",
        check=False,
    )
    if asked.returncode != 0:
        raise ToolMissing(
            f"{platform.tool('gcc')} has no C library to compile for: {asked.stderr.strip().splitlines()[0]}",
            hint=f"apt-get install libc6-dev-{platform.debian}-cross",
        )
    return ".".join(asked.stdout.split()[-2:])


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))

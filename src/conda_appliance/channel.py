"""A folder of recipes (``channel/channel.yaml``) → a channel of real conda packages, built once.

Three kinds of recipe: a library (repackaged from ``.debs``), the interpreter (compiled from a Debian source package)
and a wheel of PyPI. ``.debs`` and sources are what the suite's signed index names when the channel is built; wheels
are pinned by SHA-256. Each package is cached by the hash of its recipe and sources, so that another pin of one wheel
does not compile the interpreter again.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import platform as host
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from conda_appliance import bytecode, log, platforms, process, resources, sources, wheel
from conda_appliance.apt import Apt, RemoteFile
from conda_appliance.errors import BuildError, CommandFailed, HashMismatch, ToolMissing, UsageError
from conda_appliance.package import (
    EPOCH,
    PLACEHOLDER,
    Package,
    read_files,
    read_index,
    write_package,
    write_repodata,
)
from conda_appliance.platforms import PLATFORMS, Platform
from conda_appliance.recipes import Library, Pin, Python, Recipes, read

#: Raised when what is written for the same recipe and sources changes.
FORMAT = 3
#: The glibc of each tag that pip is asked for: no wheel may need a newer one than the oldest suite here has.
_MANYLINUX = (5, 12, 17, *range(24, 37))

Progress = Callable[[str], None]


def build(
    folder: Path,
    cache: Path,
    platform: str = platforms.DEFAULT,
    *,
    on_progress: Progress,
    refresh: bool = False,
) -> Path:
    """The channel made from the recipes in ``folder`` for ``platform``: built now if it is not in the cache yet.

    ``refresh`` asks the archive for newer library packages although the channel is there. Returns a folder
    with that platform's packages and ``noarch/``. Raises ToolMissing before the first download, BuildError with the
    end of the compiler's output, HashMismatch naming a kept package that is no longer what was made, UsageError for
    wheels that are not pinned for the platform.
    """
    recipes, wanted = read(folder), PLATFORMS[platform]
    scripts = sorted((folder / "python").glob("*")) if recipes.python else []
    key = _digest(recipes.model_dump(mode="json"), [path.read_text("utf-8") for path in scripts], FORMAT)
    key += wanted.mark
    home = cache / "channel"
    final = home / key
    if (final / "noarch/repodata.json").is_file() and not refresh:
        return final
    lacking = [name for name, one in recipes.wheels.items() if one.on(platform) is None]
    if lacking:
        raise UsageError(
            f"{folder / 'channel.yaml'} pins no wheel for {platform} of {', '.join(lacking)}",
            hint=f"sha256: {{linux-64: …, {platform}: …}}",
        )
    process.require(*tools(recipes, wanted))
    if recipes.python and not wanted.native:
        _cross_glibc(wanted)
    home.mkdir(parents=True, exist_ok=True)
    resources.require_space(
        home, (2 << 30) if recipes.python else (256 << 20), f"Building {folder}'s channel"
    )
    with resources.work_folder(home, key, wait=on_progress) as work:
        if (final / "noarch/repodata.json").is_file() and not refresh:
            return final  # another run made it meanwhile
        maker = _Maker(
            recipes=recipes,
            folder=folder,
            store=sources.Cache(cache),
            work=work,
            progress=on_progress,
            platform=wanted,
        )
        made = maker.packages(home / "packages")
        out = work / "channel"
        for path in made:
            target = out / read_index(path)["subdir"] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
        write_repodata(out, platform)
        _warn_of_missing(out)
        resources.remove(final)
        out.rename(final)
    return final


def tools(
    recipes: Recipes | None = None, platform: Platform = PLATFORMS[platforms.DEFAULT]
) -> tuple[str, ...]:
    """The programs of the host that building these recipes needs; without recipes, all that any need."""
    always = ("apt-get", "dpkg-deb", "patchelf", "tar", "xz")
    if recipes is not None and not recipes.python:
        return always
    return (*always, "gcc", "make", "patch", "strip", platform.tool("gcc"), platform.tool("strip"))


def _cross_glibc(platform: Platform) -> str:
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


def _warn_of_missing(channel: Path) -> None:
    """Say which dependencies no package of the channel meets: another channel has to."""
    names: set[str] = set()
    wanted: set[str] = set()
    for path in channel.glob("*/repodata.json"):
        for record in json.loads(path.read_text("utf-8"))["packages.conda"].values():
            names.add(record["name"])
            wanted.update(spec.partition(" ")[0] for spec in record["depends"])
    missing = sorted(name for name in wanted - names if not name.startswith("__"))
    if missing:
        log.warn(f"packages of this channel need what it has not got: {', '.join(missing)}")


# --- the recipes ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One package to make: ``key`` is the hash of its recipe and sources, ``make`` fills a folder with it."""

    name: str
    key: str
    make: Callable[[Path], Package]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class _Maker:
    """One run over the recipes; each method makes one kind of package."""

    recipes: Recipes
    folder: Path
    store: sources.Cache
    work: Path
    progress: Progress
    platform: Platform
    apts: dict[str, Apt] = field(default_factory=dict)

    @property
    def pins(self) -> dict[str, Pin]:
        """The wheels of the platform, by name."""
        found = {name: one.on(self.platform.name) for name, one in self.recipes.wheels.items()}
        return {name: one for name, one in found.items() if one is not None}

    def packages(self, kept: Path, jobs: list[_Job] | None = None) -> list[Path]:
        """Make every package (or those of ``jobs``) that ``kept`` has not got yet; returns their files."""
        kept.mkdir(parents=True, exist_ok=True)
        if jobs is None:
            # Wheels that are not there show before the minutes that the interpreter takes, which compiles theirs.
            others = [*self._library_jobs(), *self._wheel_jobs()]
            jobs = [*self._python_jobs(), *others]
        made = []
        for number, job in enumerate(jobs, 1):
            place = kept / job.key
            if not place.is_dir():
                self.progress(f"package {number} of {len(jobs)}: {job.name}{job.note}")
                self._make(job, place)
            made.append(kept_package(place))
        return made

    def _make(self, job: _Job, place: Path) -> None:
        scratch = self.work / job.name
        ready = self.work / f"{job.name}.ready"
        for path in (scratch, ready):
            path.mkdir()
        package = job.make(scratch)
        self._compile_modules(package)
        file = write_package(package, ready)
        (ready / "SHA256").write_text(resources.sha256_of(file), encoding="utf-8")
        ready.rename(place)
        resources.remove(scratch)

    def _apt(self, suite: str) -> Apt:
        if suite not in self.apts:
            self.progress(f"reading Debian {suite}'s signed index")
            python = self.recipes.python
            apt = Apt(
                suite,
                state=self.work / "apt" / f"{suite}-{self.platform.debian}",
                architecture=self.platform.debian,
                sources=python is not None and python.suite == suite,
            )
            apt.update()
            self.apts[suite] = apt
        return self.apts[suite]

    def _have(self, files: Iterable[RemoteFile]) -> list[Path]:
        wanted = [sources.Download(name=f.name, url=f.url, sha256=f.sha256, size=f.size) for f in files]
        sources.fetch(wanted, self.store, offline=False, progress=self.progress)
        return [self.store.verified(one.sha256, one.name) for one in wanted]

    # --- libraries ---

    def _library_jobs(self) -> Iterable[_Job]:
        libraries = self.recipes.libraries
        if libraries is None:
            return
        names = [deb for library in libraries.packages.values() for deb in library.debs]
        debs = {
            one.name.partition("_")[0]: one for one in self._apt(libraries.suite).download_only(set(names))
        }
        for name, library in libraries.packages.items():
            files = [debs[deb] for deb in library.debs]
            key = _digest(name, library.model_dump(), [f.sha256 for f in files], libraries.glibc, FORMAT)

            def make(
                at: Path, name: str = name, library: Library = library, files: list[RemoteFile] = files
            ) -> Package:
                return self._library(at, name, library, files)

            yield _Job(name=name, key=key, make=make)

    def _library(self, at: Path, name: str, library: Library, files: list[RemoteFile]) -> Package:
        libraries = self.recipes.libraries
        assert libraries is not None
        root = at / "root"
        (root / "lib").mkdir(parents=True)
        licenses = {}
        for file, deb in zip(files, self._have(files), strict=True):
            unpacked = at / file.name
            process.run(["dpkg-deb", "-x", deb, unpacked])
            for path in sorted(unpacked.rglob("*.so*")):
                if path.parent.name == self.platform.triplet:
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
            build=f"debian_{_digest(*(f.sha256 for f in files), library.model_dump(), FORMAT)[:7]}_0",
            depends=(f"__glibc >={libraries.glibc}", *library.depends),
            license=library.license,
            root=root,
            licenses=licenses,
            summary=f"{library.debs[0]} {debian} of Debian {libraries.suite}",
            platform=self.platform.name,
            about=_provenance(files),
        )

    # --- the interpreter ---

    def _python_jobs(self) -> Iterable[_Job]:
        python, libraries = self.recipes.python, self.recipes.libraries
        if python is None or libraries is None:
            return
        files = [
            file
            for file in self._apt(python.suite).source(python.source)
            if re.search(r"\.(orig|debian)\.tar\.\w+$", file.name)
        ]
        compiler = process.run([self.platform.tool("gcc"), "-dumpfullversion"]).stdout.strip()
        own = host.libc_ver()[1] if self.platform.native else _cross_glibc(self.platform)
        glibc = max(libraries.glibc, own, key=_version_key)
        scripts = [path.read_text("utf-8") for path in sorted((self.folder / "python").glob("*"))]
        parts = [
            python.model_dump(),
            [f.sha256 for f in files],
            scripts,
            compiler,
            glibc,
            PLACEHOLDER,
            FORMAT,
        ]
        key = _digest(*parts, *([] if self.platform.native else [self.platform.name]))
        yield _Job(
            name="python",
            key=key,
            make=lambda at: self._python(at, python, files, glibc, key[:7]),
            note=", compiled from source (minutes)",
        )

    @cached_property
    def _interpreter(self) -> Path:
        """The recipes' Python for this host, made now or kept.

        It runs where it is unpacked: all it needs of its own libraries is in its executable.
        """
        native = next(one for one in PLATFORMS.values() if one.native)
        maker = self
        if not self.platform.native:
            maker = replace(self, platform=native, work=self.work / "native", apts={})
            maker.work.mkdir()
        made = maker.packages(self.work.parent / "packages", [*maker._python_jobs()])
        home = self.work / "interpreter"
        for name, content in read_files(made[0], made[0].name):
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content())
        program = home / "bin" / f"python{self.recipes.minor}"
        program.chmod(0o755)
        return program

    def _compile_modules(self, package: Package) -> None:
        """Compile the modules of a package that is for one Python, as conda's own ship theirs: who links it need not.

        But for those that name the prefix, which is another one by then.
        """
        if package.noarch_python or self.recipes.python is None:
            return
        own = package.root / "bin" / f"python{self.recipes.minor}"
        python = own if self.platform.native and own.exists() else None
        modules = [
            path.relative_to(package.root).as_posix()
            for path in sorted((package.root / f"lib/python{self.recipes.minor}").rglob("*.py"))
            if PLACEHOLDER.encode() not in path.read_bytes()
        ]
        if modules:
            bytecode.run(modules, package.root, "", [python or self._interpreter])

    def _python(self, at: Path, python: Python, files: list[RemoteFile], glibc: str, build: str) -> Package:
        original, debian = sorted(
            zip(files, self._have(files), strict=True), key=lambda one: ".orig." not in one[0].name
        )
        version = original[0].name.partition("_")[2].partition(".orig")[0]
        tree = at / "source"
        tree.mkdir()
        process.run(["tar", "-x", "--strip-components=1", "-f", original[1], "-C", tree])
        patches = _patch(tree, debian[1], python.patches)
        for path in sorted((self.folder / "python").glob("*.patch")):
            process.run(["patch", "--strip=1", "--batch", "--directory", tree, "--input", path.resolve()])
            patches.append(path.name)
        stage = at / "stage"
        builder = None if self.platform.native else self._interpreter
        self._compile(tree, self._sysroot(at, python), stage, f"Python {version}", builder)
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
            about={**_provenance(files), "patches": patches},
            platform=self.platform.name,
        )

    def _sysroot(self, at: Path, python: Python) -> Path:
        """Headers and libraries to compile against, unpacked from ``.debs``: nothing is installed on the host."""
        libraries = self.recipes.libraries
        assert libraries is not None
        linked = [
            deb
            for name in python.depends
            if name in libraries.packages
            for deb in libraries.packages[name].debs
        ]
        sysroot = at / "sysroot"
        (sysroot / "usr/lib").mkdir(parents=True)
        (sysroot / "lib").symlink_to("usr/lib")
        for deb in self._have(self._apt(libraries.suite).download_only({*python.headers, *linked})):
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

    def _compile(self, tree: Path, sysroot: Path, stage: Path, what: str, builder: Path | None) -> None:
        lines = 0

        def on_line(_line: str) -> None:
            nonlocal lines
            lines += 1
            self.progress(f"compiling {what}: {lines} lines of output")

        output = self.work / "python.log"
        try:
            process.run(
                ["sh", self.folder.resolve() / "python/build.sh"],
                env={
                    "SOURCE": str(tree),
                    "SYSROOT": str(sysroot),
                    "TRIPLET": self.platform.triplet,
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
            kept = self.work.parent / "python.log"
            shutil.copyfile(output, kept)
            raise BuildError(
                f"{what} did not compile: {error.message}", hint=f"the whole output is in {kept}"
            ) from None

    # --- wheels, and what is in one of them ---

    def _wheel_jobs(self) -> Iterable[_Job]:
        files = self._wheels()
        for name, pin in self.pins.items():
            key = _digest(pin.model_dump(), self.recipes.minor, FORMAT)

            def make(at: Path, path: Path = files[name], pin: Pin = pin, build: str = key[:7]) -> Package:
                return wheel.convert(
                    path,
                    at / "root",
                    minor=self.recipes.minor,
                    build=build,
                    license=pin.license,
                    depends=pin.depends,
                    platform=self.platform,
                )

            yield _Job(name=name, key=key, make=make)
        if self.recipes.certificates is not None:
            pin = self.pins[self.recipes.certificates.wheel]
            path = files[self.recipes.certificates.wheel]
            parts = ["certificates", self.recipes.certificates.model_dump(), pin.model_dump(), FORMAT]
            key = _digest(*parts, *([self.platform.name] if self.platform.mark else []))
            yield _Job(
                name="ca-certificates",
                key=key,
                make=lambda at: self._certificates(at, path, pin.version, key[:7]),
            )

    def _wheels(self) -> dict[str, Path]:
        """All pinned wheels, fetched by pip, which honours the user's index and proxy and checks each hash."""
        wheels = self.pins
        missing = {name: pin for name, pin in wheels.items() if not self.store.has(pin.sha256)}
        if missing:
            self.progress(f"fetching {len(missing)} wheels")
            pins = self.work / "requirements.txt"
            pins.write_text(
                "".join(
                    f"{name}=={pin.version} --hash=sha256:{pin.sha256}\n" for name, pin in missing.items()
                ),
                encoding="utf-8",
            )
            to = self.work / "wheels"
            self._pip_download(pins, to)
            for path in sorted(to.glob("*.whl")):
                target = self.store.blob(resources.sha256_of(path))
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
        return {
            name: self.store.verified(pin.sha256, f"{name}-{pin.version}.whl") for name, pin in wheels.items()
        }

    def _pip_download(self, pins: Path, to: Path) -> None:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        options += ["--only-binary=:all:", f"--python-version={self.recipes.minor}"]
        options += [f"--platform=manylinux_2_{number}_{self.platform.machine}" for number in _MANYLINUX]
        options += [f"--platform=manylinux2014_{self.platform.machine}"]
        process.run(
            [sys.executable, "-m", "pip", "download", *options, "--dest", to, "--requirement", pins],
            hint="wheels come from PyPI, or from the mirror that pip's index-url names",
        )

    def _certificates(self, at: Path, path: Path, version: str, build: str) -> Package:
        assert self.recipes.certificates is not None
        root = at / "root"
        (root / "ssl").mkdir(parents=True)
        with zipfile.ZipFile(path) as archive:
            (root / "ssl/cacert.pem").write_bytes(archive.read("certifi/cacert.pem"))
            licenses = {
                Path(name).name: archive.read(name)
                for name in archive.namelist()
                if ".dist-info/" in name and Path(name).name.startswith("LICEN")
            }
        (root / "ssl/cert.pem").symlink_to("cacert.pem")
        return Package(
            name="ca-certificates",
            version=version,
            build=f"h{build}_0",
            depends=(),
            license=self.recipes.certificates.license,
            root=root,
            licenses=licenses,
            summary="Mozilla's certificate authorities, in ssl/cacert.pem",
            platform=self.platform.name,
        )


def kept_package(place: Path) -> Path:
    """The ``.conda`` that an earlier run left in ``place``, after its bytes were hashed.

    Raises HashMismatch naming it when it is no longer what was made; ``place`` is then set aside, so that the
    next run makes it anew.
    """
    path = next(place.glob("*.conda"))
    expected = (place / "SHA256").read_text(encoding="utf-8")
    found = resources.sha256_of(path)
    if found != expected:
        aside = place.with_suffix(".corrupt")
        resources.remove(aside)
        place.rename(aside)
        raise HashMismatch(
            f"{path.name} in the cache",
            expected=expected,
            found=found,
            hint=f"it was set aside in {aside}; run the same command again to make it anew",
        )
    return path


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


def _provenance(files: Iterable[RemoteFile]) -> dict[str, object]:
    return {"sources": [{"name": unquote(file.name), "sha256": file.sha256} for file in files]}


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


def _version_key(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

"""A folder of recipes (``channel/channel.yaml``) → a channel of real conda packages, built once.

Three kinds of recipe: a library (repackaged from ``.debs``), the interpreter (compiled from a Debian source package)
and a wheel of PyPI. ``.debs`` and sources are what the suite's signed index names when the channel is built; wheels
are pinned by SHA-256. Each package is cached by the hash of its recipe and sources, so that another pin of one wheel
does not compile the interpreter again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from conda_appliance import (
    bytecode,
    channel_library,
    channel_python,
    channel_wheels,
    log,
    platforms,
    process,
    resources,
    sources,
)
from conda_appliance.channel_job import FORMAT, Job, Progress, Workshop, digest
from conda_appliance.errors import HashMismatch, UsageError
from conda_appliance.package import (
    PLACEHOLDER,
    Package,
    read_files,
    read_index,
    write_package,
    write_repodata,
)
from conda_appliance.platforms import PLATFORMS, Platform
from conda_appliance.recipes import Recipes, read


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
    key = digest(recipes.model_dump(mode="json"), [path.read_text("utf-8") for path in scripts], FORMAT)
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
        channel_python.cross_glibc(wanted)
    home.mkdir(parents=True, exist_ok=True)
    resources.require_space(
        home, (2 << 30) if recipes.python else (256 << 20), f"Building {folder}'s channel"
    )
    with resources.work_folder(home, key, wait=on_progress) as work:
        if (final / "noarch/repodata.json").is_file() and not refresh:
            return final  # another run made it meanwhile
        shop = Workshop(
            recipes=recipes,
            folder=folder,
            store=sources.Cache(cache),
            work=work,
            progress=on_progress,
            platform=wanted,
        )
        made = _Maker(shop=shop, kept=home / "packages").packages()
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
class _Maker:
    """One run over the recipes, in ``shop``; packages are kept in ``kept``."""

    shop: Workshop
    kept: Path

    def packages(self) -> list[Path]:
        """Make every package that is not kept yet; returns their files."""
        # Wheels that are not there show before the minutes that the interpreter takes, which compiles theirs.
        others = [*channel_library.jobs(self.shop), *channel_wheels.jobs(self.shop)]
        return self._made([*channel_python.jobs(self.shop, lambda: self._interpreter), *others])

    def _made(self, jobs: Sequence[Job]) -> list[Path]:
        self.kept.mkdir(parents=True, exist_ok=True)
        made = []
        for number, job in enumerate(jobs, 1):
            place = self.kept / job.key
            if not place.is_dir():
                self.shop.progress(f"package {number} of {len(jobs)}: {job.name}{job.note}")
                self._make(job, place)
            made.append(kept_package(place))
        return made

    def _make(self, job: Job, place: Path) -> None:
        scratch = self.shop.work / job.name
        ready = self.shop.work / f"{job.name}.ready"
        for path in (scratch, ready):
            path.mkdir()
        package = job.make(scratch)
        self._compile_modules(package)
        file = write_package(package, ready)
        (ready / "SHA256").write_text(resources.sha256_of(file), encoding="utf-8")
        ready.rename(place)
        resources.remove(scratch)

    @cached_property
    def _interpreter(self) -> Path:
        """The recipes' Python for this host, made now or kept.

        It runs where it is unpacked: all it needs of its own libraries is in its executable.
        """
        maker = self
        if not self.shop.platform.native:
            native = next(one for one in PLATFORMS.values() if one.native)
            maker = replace(self, shop=replace(self.shop, platform=native, work=self.shop.work / "native"))
            maker.shop.work.mkdir()
        (made,) = maker._made([*channel_python.jobs(maker.shop, lambda: maker._interpreter)])
        home = self.shop.work / "interpreter"
        for name, content in read_files(made, made.name):
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content())
        program = home / "bin" / f"python{self.shop.recipes.minor}"
        program.chmod(0o755)
        return program

    def _compile_modules(self, package: Package) -> None:
        """Compile the modules of a package that is for one Python, as conda's own ship theirs: who links it need not.

        But for those that name the prefix, which is another one by then.
        """
        if package.noarch_python or self.shop.recipes.python is None:
            return
        own = package.root / "bin" / f"python{self.shop.recipes.minor}"
        python = own if self.shop.platform.native and own.exists() else None
        modules = [
            path.relative_to(package.root).as_posix()
            for path in sorted((package.root / f"lib/python{self.shop.recipes.minor}").rglob("*.py"))
            if PLACEHOLDER.encode() not in path.read_bytes()
        ]
        if modules:
            bytecode.run(modules, package.root, "", [python or self._interpreter])


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

"""A lock → its files, verified, in the cache; and as another tool's lock, which names their digests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import conda, lockfiles, places, programs, sources, suite
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import LockError, UsageError
from conda_appliance.lock import File, Lock


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Every file a build reads, verified: SHA-256 → path."""

    files: Mapping[str, Path]


def fetch(
    lock: Lock,
    image: ImageDefinition,
    path: Path,
    cache: sources.Cache,
    *,
    offline: bool,
    progress: Callable[[str], None],
) -> Inputs:
    """Bring every file of the lock into the cache and verify it, whether it was there or not.

    Raises HashMismatch naming the first file whose bytes are not the lock's; LockError with
    ``offline`` when something is missing.
    """
    debian = suite.downloads(lock.debian) if lock.debian is not None else ()
    if lock.image is not None:
        debian = (sources.Download(name="base image", url=lock.image.url, sha256=lock.image.sha256, size=0),)
    solved = [one for one in lock.conda.environments.values() if one.installer is None]
    packages = {p.sha256: p for e in solved for p in e.packages}
    installers = [e.installer for e in lock.conda.environments.values() if e.installer is not None]
    missing_local = [p for p in packages.values() if "://" not in p.url and not cache.has(p.sha256)]
    here = {}
    if missing_local:
        if offline:
            names = ", ".join(p.filename for p in missing_local[:5])
            raise LockError(f"--offline, and not in the cache: {names}", hint=f"conda-appliance fetch {path}")
        here = {place.name: place.url for place in places.channels(image, path, cache, progress)}
        places.require_in_folders(missing_local, here, path)
    mirrored = places.mirrored(image)
    conda_files = tuple(
        sources.Download(
            name=p.filename,
            url=places.absolute(p, here),
            sha256=p.sha256,
            size=p.size,
            mirrors=conda.mirrors_of(p.url, mirrored),
        )
        for p in packages.values()
    )
    folder = path.resolve().parent
    wheels = {one.sha256: one for e in lock.conda.environments.values() for one in e.wheels or ()}
    others: list[File] = [*wheels.values(), *installers]
    pip_files = tuple(
        sources.Download(
            name=one.filename,
            url=one.url if "://" in one.url else str(folder / Path(one.url).expanduser()),
            sha256=one.sha256,
            size=one.size,
        )
        for one in others
    )
    wanted = (*debian, *conda_files, *pip_files)
    sources.fetch(wanted, cache, offline=offline, progress=progress)
    files = {one.sha256: cache.verified(one.sha256, one.name) for one in wanted}
    return Inputs(files=files | programs.fetch(lock, folder, cache, offline=offline, progress=progress))


def export(
    lock: Lock,
    image: ImageDefinition,
    path: Path,
    cache: sources.Cache,
    *,
    form: str,
    environment: str,
    progress: Callable[[str], None],
) -> str:
    """An environment of the lock as another tool's (`lockfiles.write`). Raises UsageError for one that is not there."""
    section = lock.conda.environments.get(environment)
    if section is None:
        raise UsageError(
            f"the lock has no environment {environment!r}; it has {', '.join(lock.conda.environments)}",
            hint="name one by --environment",
        )
    if section.installer is not None:
        raise UsageError(
            f"{section.installer.filename} makes the environment {environment!r}: no other tool's lock says that",
            hint="name another by --environment",
        )
    files = fetch(lock, image, path, cache, offline=False, progress=progress).files
    here = {}
    if any("://" not in one.url for one in section.packages):
        here = {place.name: place.url for place in places.channels(image, path, cache, progress)}
    return lockfiles.write(form, section, files, platform=lock.conda.platform, places=here)

"""A definition's lock: written, moved, exported, read; and what it names, fetched."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from conda_appliance import (
    cache,
    changes,
    definition,
    fetching,
    lock,
    log,
    manifest,
    resolve,
    resources,
    sources,
    suite,
)
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError


def update(path: Path, names: Sequence[str], *, platform: str | None = None) -> lock.Lock:
    """Move the packages ``names`` in the definition's lock to what is newest, and no other; tells what moved.

    In a lock of several platforms those of one, else of the first. ``deb:NAME`` is Debian's, where an environment has a
    package of that name too. Raises UsageError for a package that the lock has not; LockError for a lock that is stale
    already.
    """
    image = definition.load_image(path)
    target = lock.path_for(path)
    current = lock.read(target, platform)
    lock.require_fresh(current, definition.lock_digest(path, image), path)
    ours, debians = _require_movable(current, names, path)
    with cache.opened() as blobs, log.step(f"Update {', '.join(names)} in {target}") as step:
        system, kept = current.debian, list[suite.Held]()
        if system is not None and debians:
            system, kept = resolve.move_debian(system, image, debians, blobs, step.update)
        anew = partial(
            resolve.resolve, image, path, blobs, step.update, platform=current.platform, system=system
        )
        made = anew(earlier=current, update=frozenset(ours))
        moved = changes.between(current, made)
        there = {change.name for section in moved if section.title != "System" for change in section.changes}
        # One that stays: is there nothing newer, or do others hold it?
        free = made if there >= {*ours} else anew()
        lock.write_one(made, target)
    for line in changes.text(moved).splitlines():
        log.info(line)
    for one in kept:
        wants = (
            [f"wants others to move with it; to be named too: {', '.join(one.others)}"] if one.others else []
        )
        wants += [f"cannot be there beside {', '.join(one.lost)}"] if one.lost else []
        log.warn(f"{one.name} stays: {one.version} {', and '.join(wants)}")
    for section in changes.between(made, free):
        held = [change for change in section.changes if change.name in ours and change.name not in there]
        for change in held:
            others = ", ".join(one.name for one in section.changes if one not in held)
            log.warn(
                f"{change.name} stays: {change.after} wants others to move with it; to be named too: {others}"
            )
    return made


def _require_movable(
    current: lock.Lock, names: Sequence[str], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of ``names`` are environments' packages, and which are Debian's."""
    known = resolve.names_of(current)
    system = {one.name for one in current.debian.packages} if current.debian else set()
    ours, debians = [], []
    for name in names:
        plain = name.removeprefix("deb:")
        if name in known:
            ours.append(name)
            if name in system:
                log.info(f"{name} is Debian's too, which stays: deb:{name} would move that")
        elif plain in system:
            debians.append(plain)
        else:
            close = difflib.get_close_matches(plain, system if name != plain else known | system, n=1)
            raise UsageError(
                f"{lock.path_for(path)}: {plain} is in none of its environments, and not in its system"
                if name == plain
                else f"{lock.path_for(path)}: {plain} is not in its system",
                hint=f"perhaps {close[0]}"
                if close
                else f"conda-appliance lock {path} --export pixi lists what is in an environment",
            )
    return tuple(ours), tuple(debians)


def ensure(path: Path, *, upgrade: bool = False) -> tuple[list[lock.Lock], bool]:
    """The definition's locks, of each platform, written anew if they are missing or stale or ``upgrade`` is asked; and
    whether they were."""
    image = definition.load_image(path)
    target = lock.path_for(path)
    systems: dict[str, lock.DebianSection | None] = {}
    if not upgrade and target.exists():
        current = lock.read_all(target)
        if current[0].base == definition.base_digest(image):
            # A changed environment is no reason for another system.
            systems = {one.platform: one.debian for one in current}
        if current[0].digest == definition.lock_digest(path, image):
            log.info(f"{target} is up to date")
            return current, False
    made = []
    for platform in image.platforms:
        of = f" for {platform}" if len(image.platforms) > 1 else ""
        with cache.opened() as blobs, log.step(f"Lock {path}{of}") as step:
            one = resolve.resolve(
                image,
                path,
                blobs,
                step.update,
                platform=platform,
                refresh=upgrade,
                system=systems.get(platform),
            )
            step.note(_count(one))
        made.append(one)
    lock.write(made, target)
    return made, True


def export(path: Path, form: str, environment: str, *, platform: str | None = None) -> str:
    """An environment of the definition's lock, on a platform or its first, as another tool's lock: its text."""
    image, locked = read(path, platform=platform)
    with cache.opened() as blobs, log.step(f"Export {lock.path_for(path)} as {form}") as step:
        return fetching.export(
            locked, image, path, blobs, form=form, environment=environment, progress=step.update
        )


def fetch(
    path: Path, *, offline: bool = False, locked: lock.Lock | None = None, platform: str | None = None
) -> fetching.Inputs:
    """Bring what the lock (the definition's own, or ``locked``) names into the cache, verified.

    All of it, where no ``platform`` is named.
    """
    files: dict[str, Path] = {}
    of = [locked.platform] if locked else [platform] if platform else definition.load_image(path).platforms
    for one in of:
        image, fresh = read(path, locked=locked, platform=one)
        with cache.opened() as blobs:
            files |= bring(image, fresh, path, blobs, offline=offline).files
    return fetching.Inputs(files=files)


def read(
    path: Path,
    builder: str | None = None,
    locked: lock.Lock | None = None,
    platform: str | None = None,
) -> tuple[ImageDefinition, lock.Lock]:
    """The definition on a platform (with another builder, if one is named) and its fresh lock, or what to do for one.

    The platform is that of ``locked``, where none is named, or the definition's first.
    """
    whole = definition.load_image(path)
    image = whole.on(platform or (locked.platform if locked else None))
    if builder is not None and builder != image.builder:
        image = definition.with_builder(path, image, builder)
    if locked is None:
        target = lock.path_for(path)
        locks = lock.read_all(target)
        lock.require_fresh(locks[0], definition.lock_digest(path, whole), path)
        locked = lock.chosen(locks, image.platform.name, target)
    else:
        lock.require_fresh(locked, definition.lock_digest(path, whole), path)
    return image, locked


def bring(
    image: ImageDefinition, locked: lock.Lock, path: Path, blobs: sources.Cache, *, offline: bool
) -> fetching.Inputs:
    """What `read` returned, fetched into ``blobs`` and verified, as a step of its own."""
    with log.step("Fetch and verify what the lock names") as step:
        inputs = fetching.fetch(locked, image, path, blobs, offline=offline, progress=step.update)
        step.note(f"{len(inputs.files)} files, {resources.size_text(locked.downloads)}, SHA-256 verified")
    return inputs


def _count(made: lock.Lock) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest.package_counts(made).items())
    return f"{counts} packages, {resources.size_text(made.downloads)}"

"""The recipe: a definition and its lock → ``out/NAME/ID/``.

ID is the hash of everything that decides the image's content, so an unchanged build is found, not made.
Work happens in ``out/NAME/.ID.partial``, which is renamed when all has passed; ``latest`` then moves.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import conda_appliance
from conda_appliance import (
    ansible,
    builders,
    catalog,
    changes,
    containers,
    cyclonedx,
    definition,
    emulation,
    export,
    formats,
    identity,
    layers,
    lock,
    log,
    machine,
    manifest,
    namespace,
    process,
    programs,
    resolve,
    resources,
    results,
    shipping,
    slim,
    sources,
    spdx,
    suite,
)
from conda_appliance import check as checks
from conda_appliance.bill import Bill
from conda_appliance.boottime import BootTime
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import CheckFailed, UsageError

#: What ``--builder`` may name.
BUILDERS = tuple(builders.BUILDERS)

#: Where the cache keeps its layers.
LAYERS = layers.FOLDER


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished build: where it stands, what it says of itself, and whether anything had to be done."""

    folder: Path
    manifest: manifest.Manifest
    made: bool


def update_lock(path: Path, names: Sequence[str], *, platform: str | None = None) -> lock.Lock:
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
    with _cache() as cache, log.step(f"Update {', '.join(names)} in {target}") as step:
        system, kept = current.debian, list[suite.Held]()
        if system is not None and debians:
            system, kept = resolve.move_debian(system, image, debians, cache, step.update)
        anew = partial(
            resolve.resolve, image, path, cache, step.update, platform=current.platform, system=system
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


def ensure_lock(path: Path, *, upgrade: bool = False) -> tuple[list[lock.Lock], bool]:
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
        with _cache() as cache, log.step(f"Lock {path}{of}") as step:
            one = resolve.resolve(
                image,
                path,
                cache,
                step.update,
                platform=platform,
                refresh=upgrade,
                system=systems.get(platform),
            )
            step.note(_count(one))
        made.append(one)
    lock.write(made, target)
    return made, True


def export_lock(path: Path, form: str, environment: str, *, platform: str | None = None) -> str:
    """An environment of the definition's lock, on a platform or its first, as another tool's lock: its text."""
    image, locked = _read(path, platform=platform)
    with _cache() as cache, log.step(f"Export {lock.path_for(path)} as {form}") as step:
        return resolve.export(
            locked, image, path, cache, form=form, environment=environment, progress=step.update
        )


def fetch(
    path: Path, *, offline: bool = False, locked: lock.Lock | None = None, platform: str | None = None
) -> resolve.Inputs:
    """Bring what the lock (the definition's own, or ``locked``) names into the cache, verified.

    All of it, where no ``platform`` is named.
    """
    files: dict[str, Path] = {}
    of = [locked.platform] if locked else [platform] if platform else definition.load_image(path).platforms
    for one in of:
        image, read = _read(path, locked=locked, platform=one)
        with _cache() as cache:
            files |= _fetch(image, read, path, cache, offline=offline).files
    return resolve.Inputs(files=files)


def render(path: Path, *, out: Path, to: Path | None, offline: bool, platform: str | None = None) -> Path:
    """Write the files that a build would run, with the discs they name; returns their folder."""
    image, locked = _read(path, platform=platform)
    target = (to or out / image.name / f"render{image.platform.mark}").resolve()
    builder = builders.BUILDERS[image.builder]
    with _cache() as cache, resources.work_folder(target.parent, f".{target.name}") as work:
        store = layers.Store(cache.root / LAYERS)
        job = job_for(
            image, locked, path, image.builder, store, _fetch(image, locked, path, cache, offline=offline)
        )
        tree = builder.render(job, work / "build")
        resources.remove(target)
        tree.folder.rename(target)
    return target


def build(
    path: Path,
    *,
    out: Path,
    builder: str | None = None,
    offline: bool = False,
    check: bool = True,
    keep_failed: bool = False,
    force: bool = False,
    explain: bool = False,
    locked: lock.Lock | None = None,
    store: layers.Store | None = None,
    label: str = "",
    platform: str | None = None,
) -> Result:
    """One definition → one image, booted and checked: of ``platform``, else that of ``locked`` or the first.

    ``explain`` tells of everything that has to be made what made it new. ``locked`` goes before the definition's own
    lock, and ``store`` before the cache's layers. ``label`` marks what is said. Raises LockError for a stale lock,
    ToolMissing before any work, BuildError, CheckFailed. Whatever it raises, the last good result stays, and what was
    kept of this one is said.
    """
    started = time.monotonic()
    image, locked = _read(path, builder, locked, platform)
    chosen = builders.BUILDERS[image.builder]
    build_id = identity.identify(image, locked, path)
    home = out.resolve() / image.name
    final = home / build_id
    check_digest = identity.digest_of_checks(image, path)
    if final.is_dir() and not force:
        found = _found(final, image, locked, path, check_digest if _checks(image, check=check) else None)
        if found is not None:
            return found
    _preflight(image, locked, home, check=check)
    with (
        log.gathered(label) as gathered,
        _cache() as cache,
        results.partial(home, build_id, keep_failed) as work,
    ):
        inputs = _fetch(image, locked, path, cache, offline=offline)
        store = store or layers.Store(cache.root / LAYERS, explain=explain)
        job = job_for(image, locked, path, build_id, store, inputs, keep_failed=keep_failed)
        used: dict[str, str] = {}
        disk = bootable = None
        if any(map(formats.is_disk, image.formats)):
            tree = chosen.render(job, work / "build")
            disk = chosen.build(job, tree, logs=work / "logs")
            used |= disk.inputs
        try:
            artifacts = shipping.shipped(disk, job, home, work, used)
            bootable = shipping.bootable(disk, job, artifacts, work) if check and disk else None
        finally:
            if disk:
                disk.release()
        boots = _checks(image, check=check or image.builder == "packer")
        accelerator = machine.accelerator(image.platform).name if boots else None
        report = _checked(bootable, image, locked, path, work, check_digest) if bootable else None
        resources.remove(work / "bootable")
        resources.write(work / f"{image.name}.lock", job.lock_text)
        _write_bills(job, work)
        left_out = _left_out(job)
        written = manifest.Manifest(
            name=image.name,
            version=image.version,
            summary=image.summary,
            platform=image.platform.name,
            id=build_id,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            builder=image.builder,
            accelerator=accelerator,
            artifacts=tuple(one.record for one in artifacts),
            inputs={
                "definition": resources.sha256_of(path),
                "lock": resources.sha256_of(work / f"{image.name}.lock"),
                **used,
            },
            tools=_tools_used(locked, image),
            packages=manifest.package_counts(locked),
            check=report,
            steps={timing.title: round(timing.seconds, 2) for timing in gathered.timings},
            slim=left_out,
        )
        manifest.write(written, work)
        results.publish(work, final, link=_link(path, image))
        catalog.refresh(home)
    store.release()
    store.keep_within()
    log.info(f"{image.name} {image.version} is ready, {time.monotonic() - started:.0f} s in all:")
    for line in manifest.summary(written, final, {} if label else written.steps):
        log.info(line)
    return Result(folder=final, manifest=written, made=True)


def check(
    image: str,
    *,
    out: Path,
    firmware: str | None,
    memory: int | None,
    report: Path | None,
    platform: str | None = None,
) -> dict[str, Any]:
    """Boot a result on an overlay and run its checks. Raises CheckFailed when one fails."""
    found = _checkable(image, out, platform)
    disk, path = found.disk, found.definition
    assert path is not None
    parsed, locked = _read(path, platform=found.platform)
    target = (report or out / parsed.name / f"check{parsed.platform.mark}").resolve()
    with _report(target) as work, log.step(f"Check {disk.name}") as step:
        outcome = checks.run(
            disk,
            parsed,
            locked,
            definition_folder=path.resolve().parent,
            work=work,
            report=work / "report",
            step=step,
            firmware=firmware,
            memory=memory,
        )
    if outcome.failed:
        raise CheckFailed(outcome.text(), hint=f"less {target}/summary.txt")
    return outcome.as_dict()


def check_vagrant(image: str, name: str, *, out: Path, report: Path | None) -> dict[str, Any]:
    """Run the checks of a definition on the machine that ``vagrant up`` started. Raises CheckFailed when one fails."""
    path = results.definition_of(image)
    parsed, locked = _read(path)
    target = (report or out / parsed.name / "check").resolve()
    with _report(target) as work, log.step(f"Check Vagrant's machine {name}".rstrip()) as step:
        outcome = checks.run_vagrant(
            name,
            parsed,
            locked,
            definition_folder=path.resolve().parent,
            work=work,
            report=work / "report",
            step=step,
        )
        step.note(f"{outcome.passed} checks passed, {outcome.skipped} do not apply")
    if outcome.failed:
        raise CheckFailed(outcome.text(), hint=f"less {target}/summary.txt")
    return outcome.as_dict()


def publish(image: str, *, out: Path, to: Path | None, url: str) -> Path:
    """Put the boxes of a definition's latest result into a folder with a catalog (`catalog.publish`)."""
    name = definition.load_image(Path(image)).name if Path(image).is_file() else image
    with log.step(f"Publish the boxes of {name}") as step:
        made = catalog.publish(out.resolve() / name, (to or out / name / "boxes").resolve(), url)
        step.note(str(made))
    return made


def boot_time(
    image: str,
    *,
    out: Path,
    firmware: str | None,
    memory: int | None,
    report: Path | None,
    platform: str | None = None,
) -> BootTime:
    """Boot a result on an overlay and tell how it starts. Raises CheckFailed when its service does not answer."""
    found = _checkable(image, out, platform)
    disk, path = found.disk, found.definition
    assert path is not None
    parsed = definition.load_image(path).on(found.platform)
    target = (report or out / parsed.name / f"boot-time{parsed.platform.mark}").resolve()
    with _report(target) as work, log.step(f"Measure the start of {disk.name}") as step:
        return checks.boot_time(
            disk, parsed, work=work, report=work / "report", step=step, firmware=firmware, memory=memory
        )


def _checkable(image: str, out: Path, platform: str | None) -> results.Found:
    """What a person named. Raises UsageError without a definition."""
    found = results.find(image, out, platform=platform)
    if found.definition is None:
        raise UsageError(
            f"no definition is known for {image}",
            hint="name the definition: conda-appliance check images/NAME.yaml",
        )
    return found


@contextmanager
def _report(target: Path) -> Iterator[Path]:
    """A work folder whose ``report/`` becomes ``target``, also after a failure: its console is there then."""
    with resources.work_folder(target.parent, f".{target.name}") as work:
        try:
            yield work
        finally:
            if (work / "report").is_dir():
                resources.remove(target)
                (work / "report").rename(target)
    log.info(f"report: {target}")


def clean(out: Path, *, caches: bool, built: bool) -> list[Path]:
    """Remove what dead runs left and failed builds; with ``caches`` the cache, with ``built`` the results too."""
    process.reap()
    removed = ansible.sweep()
    for home in results.homes(out):
        removed += resources.sweep(home)
        if (home / "failed").exists():
            resources.remove(home / "failed")
            removed.append(home / "failed")
        if built:
            resources.remove(home)
            removed.append(home)
    root = resources.cache_root()
    removed += _sweep_cache(root)
    if caches:
        for path in sorted(root.iterdir()):
            resources.remove(path)
            removed.append(path)
    return removed


# --- steps ------------------------------------------------------------------------------------------


def _read(
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
        lock.require_fresh(lock.read(target), definition.lock_digest(path, whole), path)
        locked = lock.read(target, image.platform.name)
    else:
        lock.require_fresh(locked, definition.lock_digest(path, whole), path)
    return image, locked


def layer_store() -> layers.Store:
    """The layers of the cache, after what dead runs left has been cleared away."""
    with _cache() as cache:
        return layers.Store(cache.root / LAYERS)


@contextmanager
def _cache() -> Iterator[sources.Cache]:
    """The cache, after what dead runs left has been cleared away."""
    ended = process.reap()
    if ended:
        log.warn(f"ended {len(ended)} programs that an earlier, killed run left")
    root = resources.cache_root()
    for path in _sweep_cache(root):
        log.warn(f"removed what an earlier, killed run left: {path}")
    yield sources.Cache(root)


def _sweep_cache(root: Path) -> list[Path]:
    """Remove what dead runs left in the cache: it has folders of folders, and its layers one level more."""
    folders = (root, *sorted(root.glob("*/")), *sorted((root / LAYERS).glob("*/")))
    return [path for folder in folders for path in resources.sweep(folder)]


def _preflight(image: ImageDefinition, locked: lock.Lock, home: Path, *, check: bool) -> None:
    """Everything cheap before the first expensive minute: programs, then space."""
    builder = builders.BUILDERS[image.builder]
    if image.base.debian is not None:
        namespace.require_root()
    if image.slim:
        slim.require(image.slim, image.platform)
    disks = any(map(formats.is_disk, image.formats))
    process.require(
        *(builder.tools(image) if disks else ()),
        *export.tools(image.formats),
        *(containers.tools(image) if {"oci", "docker-archive"} & {*image.formats} else ()),
        *(machine.tools(image.platform) if _checks(image, check=check) else ()),
    )
    if _checks(image, check=check):
        machine.require(image.disk.firmware[0], image.platform)
    emulation.require(image.platform)
    home.mkdir(parents=True, exist_ok=True)
    cache = resources.cache_root()
    resources.require_space(cache, 5 * locked.downloads + (1 << 30), "The cache")
    resources.require_space(home, 4 * locked.downloads + (1 << 30), "The build")


def job_for(
    image: ImageDefinition,
    locked: lock.Lock,
    path: Path,
    build_id: str,
    store: layers.Store,
    inputs: resolve.Inputs,
    *,
    keep_failed: bool = False,
) -> builders.Job:
    """What a builder is given, for the definition at ``path`` and what `fetch` brought."""
    return builders.Job(
        image=programs.place(image, locked, inputs.files, store),
        lock=locked,
        folder=path.resolve().parent,
        project=resolve.project(path),
        files=inputs.files,
        store=store,
        epoch=identity.epoch(),
        identity=build_id,
        keep_failed=keep_failed,
    )


def _fetch(
    image: ImageDefinition, locked: lock.Lock, path: Path, cache: sources.Cache, *, offline: bool
) -> resolve.Inputs:
    with log.step("Fetch and verify what the lock names") as step:
        inputs = resolve.fetch(locked, image, path, cache, offline=offline, progress=step.update)
        step.note(f"{len(inputs.files)} files, {resources.size_text(locked.downloads)}, SHA-256 verified")
    return inputs


def bill_of(path: Path, locked: lock.Lock | None, *, offline: bool, platform: str | None = None) -> Bill:
    """What a definition is made of by its lock, or by ``locked``: fetched, and its environments linked."""
    image, locked = _read(path, locked=locked, platform=platform)
    with _cache() as cache:
        inputs = _fetch(image, locked, path, cache, offline=offline)
        store = layers.Store(cache.root / LAYERS)
        job = job_for(image, locked, path, "", store, inputs)
        with log.step(f"List what {image.name} is made of") as step:
            found = job.bill(job.linked(step.update).path)
            step.note(f"{len(found.components)} components")
        store.release()
    return found


def environments_of(path: Path, locked: lock.Lock, *, offline: bool) -> tuple[ImageDefinition, layers.Layer]:
    """A definition, and its environments as ``locked`` has them: as a tree whose root is the machine's."""
    image, locked = _read(path, locked=locked)
    with _cache() as cache, log.step("Link what the lock names") as step:
        inputs = resolve.fetch(locked, image, path, cache, offline=offline, progress=step.update)
        store = layers.Store(cache.root / LAYERS)
        return image, job_for(image, locked, path, "", store, inputs).linked(step.update)


def _left_out(job: builders.Job) -> dict[str, manifest.SlimRecord]:
    """What was left out of the environments, which is told too."""
    if not job.image.slim:
        return {}
    with log.step("Sum up what slim left out") as step:
        prefixes = {name: section.prefix for name, section in job.lock.conda.environments.items()}
        found = slim.read(job.linked(step.update).path, prefixes)
        step.note("; ".join(f"{name}: {savings.text()}" for name, savings in found.items()))
    return {
        name: manifest.SlimRecord(
            before=savings.before,
            saved=savings.saved,
            parts={part: one.bytes for part, one in savings.parts.items()},
        )
        for name, savings in found.items()
    }


def _write_bills(job: builders.Job, folder: Path) -> None:
    """What the result is made of, in both formats, beside it."""
    with log.step("List what it is made of") as step:
        found = job.bill(job.linked(step.update).path)
        resources.write(folder / f"{job.image.name}.cdx.json", cyclonedx.write(found))
        resources.write(folder / f"{job.image.name}.spdx.json", spdx.write(found))
        step.note(f"{len(found.components)} components")


def _checks(image: ImageDefinition, *, check: bool) -> bool:
    """Whether a build boots what it made: only a disk can be booted."""
    return check and any(map(formats.is_disk, image.formats))


def _checked(
    disk: Path, image: ImageDefinition, locked: lock.Lock, path: Path, work: Path, digest: str
) -> manifest.CheckRecord:
    """Boot the artifact and check it. Raises CheckFailed with the names of what failed."""
    with machine.slot(), log.step("Boot the image and check it") as step:
        outcome = checks.run(
            disk,
            image,
            locked,
            definition_folder=path.resolve().parent,
            work=work / "machine",
            report=work / "report",
            step=step,
        )
        if outcome.failed:
            raise CheckFailed(outcome.text())
        step.note(f"{outcome.passed} checks passed")
    resources.remove(work / "machine")
    return manifest.CheckRecord(
        digest=digest,
        passed=outcome.passed,
        failed=outcome.failed,
        skipped=outcome.skipped,
        seconds=round(outcome.seconds, 1),
    )


def _link(path: Path, image: ImageDefinition) -> str:
    """The name of the link to the latest result of the image's platform."""
    first = definition.load_image(path).platforms[0] == image.platform.name
    return results.LATEST if first else results.latest(image.platform.name)


def _found(
    final: Path, image: ImageDefinition, locked: lock.Lock, path: Path, check_digest: str | None
) -> Result | None:
    """The result that is there already, checked again if only its checks changed; None when it is damaged."""
    written = manifest.read(final)
    bad = manifest.damaged(final, written)
    if bad:
        log.warn(f"{final} is damaged ({', '.join(bad)}): building it again")
        return None
    if check_digest is not None and (written.check is None or written.check.digest != check_digest):
        disk = results.bootable(final, written)
        if disk is None:
            log.info(f"{final} is there, but no form in it boots here: it is built again for its new checks")
            return None
        log.info(f"{final} is there; only its checks are new")
        with results.partial(final.parent, final.name, keep_failed=False) as work:
            record = _checked(disk, image, locked, path, work, check_digest)
            resources.remove(final / "report")
            (work / "report").rename(final / "report")
        written = written.model_copy(update={"check": record})
        manifest.write(written, final)
        return Result(folder=final, manifest=written, made=True)
    log.info(f"{image.name} {image.version}: nothing changed, nothing to do ({final})")
    results.point_latest(final, _link(path, image))
    catalog.refresh(final.parent)
    return Result(folder=final, manifest=written, made=False)


def _tools_used(locked: lock.Lock, image: ImageDefinition) -> dict[str, str]:
    return {
        **locked.tools,
        "ansible-core": metadata.version("ansible-core"),
        image.builder: builders.BUILDERS[image.builder].version(),
        "conda-appliance": conda_appliance.__version__,
    }


def _count(made: lock.Lock) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest.package_counts(made).items())
    return f"{counts} packages, {resources.size_text(made.downloads)}"

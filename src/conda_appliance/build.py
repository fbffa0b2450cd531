"""The recipe: a definition and its lock → ``out/NAME/ID/``.

ID is the hash of everything that decides the image's content, so an unchanged build is found, not made.
Work happens in ``out/NAME/.ID.partial``, which is renamed when all has passed; ``latest`` then moves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conda_appliance
from conda_appliance import (
    ansible,
    builders,
    cache,
    catalog,
    cyclonedx,
    definition,
    emulation,
    export,
    fetching,
    formats,
    identity,
    layers,
    lazy,
    lock,
    locking,
    log,
    manifest,
    namespace,
    process,
    programs,
    resources,
    results,
    runs,
    shipping,
    slim,
    spdx,
)
from conda_appliance.bill import Bill
from conda_appliance.boottime import BootTime
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import CheckFailed, UsageError
from conda_appliance.layer import Layer

if TYPE_CHECKING:
    from conda_appliance import check as checks
    from conda_appliance import containers, machine
else:
    checks = lazy.module("conda_appliance.check")
    containers = lazy.module("conda_appliance.containers")
    machine = lazy.module("conda_appliance.machine")

#: What ``--builder`` may name.
BUILDERS = tuple(builders.BUILDERS)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished build: where it stands, what it says of itself, and whether anything had to be done."""

    folder: Path
    manifest: manifest.Manifest
    made: bool


def render(path: Path, *, out: Path, to: Path | None, offline: bool, platform: str | None = None) -> Path:
    """Write the files that a build would run, with the discs they name; returns their folder."""
    image, locked = locking.read(path, platform=platform)
    target = (to or out / image.name / f"render{image.platform.mark}").resolve()
    builder = builders.BUILDERS[image.builder]
    with cache.opened() as blobs, resources.work_folder(target.parent, f".{target.name}") as work:
        store = layers.Store(blobs.root / layers.FOLDER)
        job = job_for(
            image,
            locked,
            path,
            image.builder,
            store,
            locking.bring(image, locked, path, blobs, offline=offline),
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
    lock, and ``store`` before the cache's layers; whoever gives it lets go of it. ``label`` marks what is said. Raises
    LockError for a stale lock, ToolMissing before any work, BuildError, CheckFailed. Whatever it raises, the last good
    result stays, and what was kept of this one is said.
    """
    started, own = time.monotonic(), store is None
    image, locked = locking.read(path, builder, locked, platform)
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
        cache.opened() as blobs,
        results.partial(home, build_id, keep_failed) as work,
    ):
        inputs = locking.bring(image, locked, path, blobs, offline=offline)
        store = store or layers.Store(blobs.root / layers.FOLDER, explain=explain)
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
    if own:
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
    parsed, locked = locking.read(path, platform=found.platform)
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
    parsed, locked = locking.read(path)
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
    runs.reap()
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
    removed += cache.sweep(root)
    if caches:
        for path in sorted(root.iterdir()):
            resources.remove(path)
            removed.append(path)
    return removed


# --- steps ------------------------------------------------------------------------------------------


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
    resources.require_space(resources.cache_root(), 5 * locked.downloads + (1 << 30), "The cache")
    resources.require_space(home, 4 * locked.downloads + (1 << 30), "The build")


def job_for(
    image: ImageDefinition,
    locked: lock.Lock,
    path: Path,
    build_id: str,
    store: layers.Store,
    inputs: fetching.Inputs,
    *,
    keep_failed: bool = False,
) -> builders.Job:
    """What a builder is given, for the definition at ``path`` and what `fetch` brought."""
    return builders.Job(
        image=programs.place(image, locked, inputs.files, store),
        lock=locked,
        folder=path.resolve().parent,
        project=resources.project(path),
        files=inputs.files,
        store=store,
        epoch=identity.epoch(),
        identity=build_id,
        keep_failed=keep_failed,
    )


def bill_of(path: Path, locked: lock.Lock | None, *, offline: bool, platform: str | None = None) -> Bill:
    """What a definition is made of by its lock, or by ``locked``: fetched, and its environments linked."""
    image, locked = locking.read(path, locked=locked, platform=platform)
    with cache.opened() as blobs:
        inputs = locking.bring(image, locked, path, blobs, offline=offline)
        store = layers.Store(blobs.root / layers.FOLDER)
        job = job_for(image, locked, path, "", store, inputs)
        with log.step(f"List what {image.name} is made of") as step:
            found = job.bill(job.linked(step.update).path)
            step.note(f"{len(found.components)} components")
        store.release()
    return found


def environments_of(path: Path, locked: lock.Lock, *, offline: bool) -> tuple[ImageDefinition, Layer]:
    """A definition, and its environments as ``locked`` has them: as a tree whose root is the machine's."""
    image, locked = locking.read(path, locked=locked)
    with cache.opened() as blobs, log.step("Link what the lock names") as step:
        inputs = fetching.fetch(locked, image, path, blobs, offline=offline, progress=step.update)
        store = layers.Store(blobs.root / layers.FOLDER)
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

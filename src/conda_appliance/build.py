"""The recipe: a definition and its lock → ``out/NAME/ID/``.

ID is the hash of everything that decides the image's content, so an unchanged build is found, not made.
Work happens in ``out/NAME/.ID.partial``, which is renamed when all has passed; ``latest`` then moves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import conda_appliance
from conda_appliance import (
    basedisk,
    builders,
    definition,
    export,
    lock,
    log,
    machine,
    manifest,
    payload,
    process,
    resolve,
    resources,
    seed,
    sources,
)
from conda_appliance import check as checks
from conda_appliance import render as rendering
from conda_appliance.builders import packer
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import ApplianceError, CheckFailed, UsageError

#: What ``--builder`` may name.
BUILDERS = tuple(builders.BUILDERS)

#: The clock of everything that is written for a build: 2020-01-01, unless SOURCE_DATE_EPOCH says otherwise.
DEFAULT_EPOCH = 1577836800


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished build: where it stands, what it says of itself, and whether anything had to be done."""

    folder: Path
    manifest: manifest.Manifest
    made: bool


def epoch() -> int:
    """``SOURCE_DATE_EPOCH`` (https://reproducible-builds.org/specs/source-date-epoch/), else a fixed day."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given and not given.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH is {given!r}, not a number of seconds")
    return int(given) if given else DEFAULT_EPOCH


def ensure_lock(path: Path, *, upgrade: bool = False) -> tuple[lock.Lock, bool]:
    """The definition's lock, written anew if it is missing or stale or ``upgrade`` is asked; and whether it was."""
    image = definition.load_image(path)
    target = lock.path_for(path)
    if not upgrade and target.exists():
        current = lock.read(target)
        if current.digest == definition.lock_digest(path, image):
            log.info(f"{target} is up to date")
            return current, False
    with _cache() as cache, log.step(f"Lock {path}") as step:
        made = resolve.resolve(image, path, cache, step.update, refresh=upgrade)
        lock.write(made, target)
        step.note(_count(made))
    return made, True


def fetch(path: Path, *, offline: bool = False) -> resolve.Inputs:
    """Bring what the lock names into the cache, verified."""
    image, locked = _read(path)
    with _cache() as cache:
        return _fetch(image, locked, path, cache, offline=offline)


def render(path: Path, *, out: Path, to: Path | None, offline: bool) -> Path:
    """Write the files that a build would run, with the discs they name; returns their folder."""
    image, locked = _read(path)
    target = (to or out / image.name / "render").resolve()
    with _cache() as cache:
        inputs = _fetch(image, locked, path, cache, offline=offline)
        base, load = _layers(image, locked, path, cache, inputs)
        with resources.work_folder(target.parent, f".{target.name}") as work:
            identity = identify(image, locked, path, image.builder)
            tree = _tree(image, locked, path, work / "build", base, load, identity)
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
) -> Result:
    """One definition → one image, booted and checked.

    Raises LockError for a stale lock, ToolMissing before any work, BuildError, CheckFailed. Whatever it
    raises, the last good result stays, and what was kept of this one is said.
    """
    started = time.monotonic()
    image, locked = _read(path)
    chosen = builder or image.builder
    identity = identify(image, locked, path, chosen)
    home = out.resolve() / image.name
    final = home / identity
    check_digest = digest_of_checks(image, path)
    if final.is_dir() and not force:
        found = _found(final, image, locked, path, check_digest if check else None)
        if found is not None:
            return found
    _preflight(image, locked, chosen, home)
    log.timings.clear()
    with _cache() as cache, _partial(home, identity, keep_failed) as work:
        inputs = _fetch(image, locked, path, cache, offline=offline)
        base, load = _layers(image, locked, path, cache, inputs)
        with log.step("Render the Packer and Ansible files"):
            tree = _tree(image, locked, path, work / "build", base, load, identity)
        (work / "logs").mkdir()
        with log.step(f"Build with {chosen}") as step:
            disk = builders.BUILDERS[chosen].build(
                tree, logs=work / "logs", step=step, keep_failed=keep_failed
            )
        artifacts = []
        for form in image.formats:
            with log.step(f"Export {image.name}.{form}") as step:
                artifacts.append(export.export(disk.path, form, work / f"{image.name}.{form}"))
                step.note(resources.size_text(artifacts[-1].size))
        resources.remove(disk.path.parent)  # Packer refuses a folder that is there, empty or not
        report = None
        if check:
            report = _checked(artifacts[0].path, image, locked, path, work, check_digest)
        shutil.copy2(lock.path_for(path), work / f"{image.name}.lock")
        written = manifest.Manifest(
            name=image.name,
            version=image.version,
            summary=image.summary,
            id=identity,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            builder=chosen,
            accelerator=machine.accelerator().name,
            artifacts=tuple(manifest.artifact_record(one) for one in artifacts),
            inputs={
                "definition": resources.sha256_of(path),
                "lock": resources.sha256_of(work / f"{image.name}.lock"),
                "base": base.sha256,
                "payload": load.sha256,
            },
            tools=_tools_used(locked, chosen),
            packages=manifest.package_counts(locked),
            check=report,
            steps={timing.title: round(timing.seconds, 2) for timing in log.timings},
        )
        manifest.write(written, work)
        _publish(work, final)
    log.info(f"{image.name} {image.version} is ready, {time.monotonic() - started:.0f} s in all:")
    for line in manifest.summary(written, final, written.steps):
        log.info(line)
    return Result(folder=final, manifest=written, made=True)


def check(
    image: str, *, out: Path, firmware: str | None, memory: int | None, report: Path | None
) -> dict[str, Any]:
    """Boot a result on an overlay and run its checks. Raises CheckFailed when one fails."""
    found = find_result(image, out)
    if found.definition is None:
        raise UsageError(
            f"no definition is known for {image}",
            hint="name the definition: conda-appliance check images/NAME.yaml",
        )
    parsed, locked = _read(found.definition)
    target = (report or out / parsed.name / "check").resolve()
    with resources.work_folder(target.parent, f".{target.name}") as work:
        try:
            with log.step(f"Check {found.disk.name}") as step:
                outcome = checks.run(
                    found.disk,
                    parsed,
                    locked,
                    definition_folder=found.definition.resolve().parent,
                    work=work,
                    report=work / "report",
                    step=step,
                    firmware=firmware,
                    memory=memory,
                )
        finally:  # a machine that never answered has left its console there
            if (work / "report").is_dir():
                resources.remove(target)
                (work / "report").rename(target)
    log.info(f"report: {target}")
    if outcome.failed:
        raise CheckFailed(outcome.text(), hint=f"less {target}/summary.txt")
    return outcome.as_dict()


def clean(out: Path, *, caches: bool, results: bool) -> list[Path]:
    """Remove what dead runs left and failed builds; with ``caches`` the cache, with ``results`` the results too."""
    removed = []
    process.reap()
    for home in _homes(out):
        removed += resources.sweep(home)
        if (home / "failed").exists():
            resources.remove(home / "failed")
            removed.append(home / "failed")
        if results:
            resources.remove(home)
            removed.append(home)
    root = resources.cache_root()
    removed += _sweep_cache(root)
    if caches:
        for path in sorted(root.iterdir()):
            resources.remove(path)
            removed.append(path)
    return removed


# --- what a person may name -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Found:
    """A disk that a person named, and the definition it was built from if that is known."""

    name: str
    disk: Path
    definition: Path | None


def find_result(image: str, out: Path) -> Found:
    """What ``image`` means: a definition's file, a name under ``out``, a build's folder, or a disk file."""
    path = Path(image)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        name = definition.load_image(path).name
        return Found(name=name, disk=_disk_of(out / name / "latest", image), definition=path)
    if path.is_file():
        return Found(name=path.stem, disk=path.resolve(), definition=None)
    folder = path if (path / manifest.NAME).is_file() else out / image / "latest"
    disk = _disk_of(folder, image)
    name = manifest.read(folder).name
    beside = Path("images") / f"{name}.yaml"
    return Found(name=name, disk=disk, definition=beside if beside.is_file() else None)


def _disk_of(folder: Path, asked: str) -> Path:
    if not (folder / manifest.NAME).is_file():
        raise UsageError(
            f"nothing is built for {asked!r} (looked in {folder})",
            hint="conda-appliance build FILE, or see --out",
        )
    return (folder / manifest.read(folder).artifacts[0].file).resolve()


# --- identity ---------------------------------------------------------------------------------------


def identify(image: ImageDefinition, locked: lock.Lock, path: Path, builder: str) -> str:
    """The build's id: 12 hexadecimal digits of the hash of all that decides the image's content.

    The definition (but for its checks and formats' order), the lock, the files it copies, the keys it admits,
    the playbooks, templates and disc definitions in use, and this program's own code.
    """
    folder = path.resolve().parent
    project = resolve.project(path)
    decided = image.model_dump(mode="json", exclude={"checks"})
    parts = {
        "definition": decided,
        "builder": builder,
        "epoch": epoch(),
        "lock": hashlib.sha256(lock.dump(locked).encode()).hexdigest(),
        "files": [manifest.tree_digest([folder / Path(item.source).expanduser()]) for item in image.files],
        "keys": rendering.public_keys(image, folder),
        "data": {
            name: manifest.tree_digest([root / name])
            for name in ("playbooks", "templates", "iso")
            for root in (resources.shipped(), project)
            if (root / name).is_dir()
        },
        "code": manifest.tree_digest(Path(__file__).parent.rglob("*.py")),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_checks(image: ImageDefinition, path: Path) -> str:
    """The digest of the checks that a build must pass: the shipped ones and the definition's own."""
    folder = path.resolve().parent
    own = [folder / Path(name).expanduser() for name in image.checks]
    return manifest.tree_digest([resources.find("tests/guest"), *own])


# --- steps ------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[ImageDefinition, lock.Lock]:
    """The definition and its fresh lock, or the error that says what to do."""
    image = definition.load_image(path)
    locked = lock.read(lock.path_for(path))
    lock.require_fresh(locked, definition.lock_digest(path, image), path)
    return image, locked


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
    return [path for folder in (root, *sorted(root.glob("*/"))) for path in resources.sweep(folder)]


def _homes(out: Path) -> list[Path]:
    """The folders of ``out`` that hold a definition's results, and nothing that is not ours."""
    return [
        home
        for home in sorted(out.glob("*/"))
        if any((home / name).exists() for name in ("latest", "failed")) or list(home.glob(".*.partial.lock"))
    ]


def _preflight(image: ImageDefinition, locked: lock.Lock, builder: str, home: Path) -> None:
    """Everything cheap before the first expensive minute: programs, then space."""
    process.require(
        *basedisk.tools(image), *builders.BUILDERS[builder].tools(), *export.tools(), *machine.tools()
    )
    home.mkdir(parents=True, exist_ok=True)
    cache = resources.cache_root()
    resources.require_space(cache, 5 * locked.downloads + (1 << 30), "The cache")
    resources.require_space(home, 4 * locked.downloads + (1 << 30), "The build")


def _fetch(
    image: ImageDefinition, locked: lock.Lock, path: Path, cache: sources.Cache, *, offline: bool
) -> resolve.Inputs:
    with log.step("Fetch and verify what the lock names") as step:
        inputs = resolve.fetch(locked, image, path, cache, offline=offline, progress=step.update)
        step.note(f"{len(inputs.files)} files, {resources.size_text(locked.downloads)}, SHA-256 verified")
    return inputs


def _layers(
    image: ImageDefinition, locked: lock.Lock, path: Path, cache: sources.Cache, inputs: resolve.Inputs
) -> tuple[basedisk.BaseDisk, payload.Payload]:
    """The base disk and the payload disc, from the cache where they were made before."""
    with log.step("Base disk") as step:
        base = basedisk.make(locked, image, inputs.files, cache=cache.root, progress=step.update)
        step.note("bootstrapped and assembled" if base.made else "unchanged, from the cache")
    with log.step("Payload disc") as step:
        load = payload.make(
            image,
            locked,
            inputs.files,
            cache=cache.root,
            epoch=epoch(),
            project=resolve.project(path),
            lock_text=lock.dump(locked),
        )
        step.note(resources.size_text(load.size))
    return base, load


def _tree(
    image: ImageDefinition,
    locked: lock.Lock,
    path: Path,
    into: Path,
    base: basedisk.BaseDisk,
    load: payload.Payload,
    identity: str,
) -> rendering.BuildTree:
    """The build's folder: rendered files, the build's key, the seed disc that admits it."""
    project = resolve.project(path)
    tree = rendering.build_tree(
        image,
        locked,
        folder=path.resolve().parent,
        into=into,
        inputs=rendering.MachineInputs(
            base_disk=base.path,
            base_sha256=base.sha256,
            payload=load.path,
            acceleration=machine.accelerator().name,
            ansible_playbook=packer.ansible_playbook(),
        ),
        packer_version=packer.version_numbers(),
        project=project,
        identity=identity,
    )
    seed.for_build(tree, epoch=epoch(), project=project)
    return tree


def _checked(
    disk: Path, image: ImageDefinition, locked: lock.Lock, path: Path, work: Path, digest: str
) -> manifest.CheckRecord:
    """Boot the artifact and check it. Raises CheckFailed with the names of what failed."""
    with log.step("Boot the image and check it") as step:
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
        log.info(f"{final} is there; only its checks are new")
        with _partial(final.parent, final.name, keep_failed=False) as work:
            disk = final / written.artifacts[0].file
            record = _checked(disk, image, locked, path, work, check_digest)
            resources.remove(final / "report")
            (work / "report").rename(final / "report")
        written = written.model_copy(update={"check": record})
        manifest.write(written, final)
        return Result(folder=final, manifest=written, made=True)
    log.info(f"{image.name} {image.version}: nothing changed, nothing to do ({final})")
    _point_latest(final)
    return Result(folder=final, manifest=written, made=False)


@contextmanager
def _partial(home: Path, identity: str, keep_failed: bool) -> Iterator[Path]:
    """The build's work folder. When the build fails its logs and rendered files go to ``failed/``."""
    for path in resources.sweep(home):
        log.warn(f"removed what an earlier, killed build left: {path}")
    with resources.work_folder(home, f".{identity}") as work:
        try:
            yield work
        except BaseException as error:
            kept = _keep(work, home / "failed", whole=keep_failed or isinstance(error, CheckFailed))
            if kept and isinstance(error, ApplianceError):
                # What the message names in the work folder stands in failed/ now.
                error.message = error.message.replace(str(work), str(home / "failed"))
                error.hint = error.hint.replace(str(work), str(home / "failed"))
                error.hint = "\n        ".join(
                    filter(None, [error.hint, f"kept for you: {home / 'failed'} ({', '.join(kept)})"])
                )
            elif kept:
                log.info(f"kept for you: {home / 'failed'} ({', '.join(kept)})")
            raise


def _keep(work: Path, failed: Path, *, whole: bool) -> list[str]:
    """Move what explains a failure out of the work folder; returns the names of what was kept."""
    wanted = [path for path in sorted(work.iterdir()) if whole or path.name in ("logs", "build", "report")]
    if not wanted:
        return []
    resources.remove(failed)
    failed.mkdir()
    for path in wanted:
        path.rename(failed / path.name)
        if path.name == "build" and not whole:
            resources.remove(failed / "build" / "disk")
    return [path.name for path in wanted]


def _publish(work: Path, final: Path) -> None:
    """Put the finished work folder in its place, then move ``latest``."""
    aside = final.parent / f".{final.name}.replaced"
    resources.remove(aside)
    if final.exists():
        final.rename(aside)
    work.rename(final)
    resources.remove(aside)
    _point_latest(final)


def _point_latest(final: Path) -> None:
    link = final.parent / "latest"
    temporary = final.parent / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(final.name)
    temporary.replace(link)


def _tools_used(locked: lock.Lock, builder: str) -> dict[str, str]:
    return {
        **locked.tools,
        "ansible-core": metadata.version("ansible-core"),
        builder: builders.BUILDERS[builder].version(),
        "conda-appliance": conda_appliance.__version__,
    }


def _count(made: lock.Lock) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in manifest.package_counts(made).items())
    return f"{counts} packages, {resources.size_text(made.downloads)}"

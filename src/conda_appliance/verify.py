"""Whether a result still is what its manifest says, and whether its lock gives the same bytes again."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conda_appliance import (
    build,
    compare,
    definition,
    identity,
    layers,
    lock,
    log,
    manifest,
    opened,
    resources,
    results,
    trees,
)
from conda_appliance.errors import BuildError, CommandFailed, HashMismatch, LockError, UsageError
from conda_appliance.platforms import PLATFORMS


def verify(image: str, *, out: Path, platform: str | None = None) -> manifest.Manifest:
    """Read a result's artifacts and compare them with its manifest. Raises HashMismatch naming one that differs."""
    found = results.find(image, out, to_boot=False, platform=platform)
    folder = found.disk.parent
    written = manifest.read(folder)
    with log.step(f"Verify {folder}") as step:
        for record in written.artifacts:
            digest = (
                resources.sha256_of(folder / record.file)
                if (folder / record.file).is_file()
                else "no such file"
            )
            if digest != record.sha256:
                raise HashMismatch(
                    str(folder / record.file),
                    expected=record.sha256,
                    found=digest,
                    hint=f"conda-appliance build --force {found.definition or 'FILE'}",
                )
        step.note(f"{len(written.artifacts)} artifacts as the manifest says")
    return written


def contents(image: str, *, out: Path, offline: bool, platform: str | None = None) -> dict[str, int]:
    """Open artifacts and compare the environments in them, file by file, with what their lock gives.

    ``image`` is a result, or one file of a result or its discs. Returns how many files each has; raises LockError that
    names what is changed, missing or extra.
    """
    folder, paths = _artifacts(image, out, platform)
    written = manifest.read(folder)
    locked = lock.read(folder / f"{written.name}.lock")
    path = results.definition_of(image if Path(image).suffix in (".yaml", ".yml") else written.name)
    parsed, linked = build.environments_of(path, locked, offline=offline)
    expected = linked.path / parsed.conda.prefix.strip("/")
    count = sum(1 for _, about in trees.walk(expected) if not stat.S_ISDIR(about.st_mode))
    told: dict[str, int] = {}
    bad: list[str] = []
    for one in paths:
        form = opened.form_of(one, name=written.name, version=written.version, platform=written.platform)
        if form is None:
            raise UsageError(f"{one} is none of the forms of {written.name} {written.version}")
        with (
            resources.work_folder(resources.cache_root() / "verify", one.name) as work,
            log.step(f"Open {one.name} and compare its environments") as step,
        ):
            lines = opened.differences(form, one, expected, prefix=parsed.conda.prefix, work=work)
            step.note(f"{len(lines)} differences" if lines else f"{count} files as the lock gives them")
        told[one.name] = count
        bad += [f"{one.name}: {line}" for line in lines]
    if bad:
        raise LockError(
            f"not what the lock gives: {trees.some(bad)}",
            hint=f"it was changed after it was built, or by something else: conda-appliance build --force {path}",
        )
    return told


def _artifacts(image: str, out: Path, platform: str | None) -> tuple[Path, list[Path]]:
    """The folder of the result that ``image`` belongs to, and which files are meant."""
    path = Path(image)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        home = path.parent.parent
        near = (path.parent, *(home / name for name in _links(platform)))
        folder = next((one.resolve() for one in near if (one / manifest.NAME).is_file()), None)
        if folder is None:
            raise UsageError(
                f"{path} lies beside no result, whose lock would say what it should hold",
                hint="put it into the result's folder, out/NAME/ID/, or out/NAME/discs/",
            )
        return folder, [path]
    folder = results.find(image, out, to_boot=False, platform=platform).disk.parent
    return folder, [folder / record.file for record in manifest.read(folder).artifacts]


def _links(platform: str | None) -> tuple[str, ...]:
    """The links to the results beside which a disc lies: of a platform, or any."""
    return (
        (results.latest(platform), results.LATEST)
        if platform
        else (results.LATEST, *map(results.latest, PLATFORMS))
    )


def rebuild(image: str, *, out: Path, offline: bool, platform: str | None = None) -> dict[str, Any]:
    """Build a result anew from its own lock, with no layer of the cache, and compare the bytes of every artifact.

    Raises UsageError when the definition, its files or this program are not what it was built from; HashMismatch
    naming the first artifact that differs, and in it the first file.
    """
    found = results.find(image, out, to_boot=False, platform=platform)
    if found.definition is None:
        raise UsageError(
            f"no definition is known for {image}",
            hint="name the definition: conda-appliance verify --rebuild images/NAME.yaml",
        )
    before = found.disk.parent
    written = manifest.read(before)
    path = found.definition
    parsed = definition.with_builder(path, definition.load_image(path).on(written.platform), written.builder)
    locked = lock.read(before / f"{written.name}.lock")
    now = identity.identify(parsed, locked, path)
    if now != written.id:
        raise UsageError(
            f"{before} was built from another definition, other files or another version of this program "
            f"(its id is {written.id}; today's would be {now})",
            hint=f"conda-appliance build {path}, and verify that",
        )
    target = out.resolve() / parsed.name
    with resources.work_folder(target, ".rebuild") as work:
        store = layers.Store(work / "layers")
        made = build.build(
            path,
            out=work / "out",
            builder=written.builder,
            offline=offline,
            check=False,
            locked=locked,
            store=store,
        )
        store.release()
        again = {record.format: record for record in made.manifest.artifacts}
        for record in written.artifacts:
            if again[record.format].sha256 != record.sha256:
                raise HashMismatch(
                    f"the {record.format} that the lock gives today",
                    expected=record.sha256,
                    found=again[record.format].sha256,
                    hint=_first_difference(
                        before / record.file, made.folder / again[record.format].file, work
                    ),
                )
        shutil.rmtree(work / "layers")
    log.info(f"{before}: the same bytes again")
    return {"folder": str(before), "artifacts": {record.file: record.sha256 for record in written.artifacts}}


def _first_difference(before: Path, after: Path, work: Path) -> str:
    """The first files in which two disks differ."""
    listed: list[Mapping[str, str]] = []
    for number, image in enumerate((before, after)):
        folder = work / f"look-{number}"
        folder.mkdir()
        try:
            listed.append(compare.tree_of(image, folder))
        except (BuildError, CommandFailed) as error:
            return f"the files in them cannot be compared here: {error.message}"
    lines = trees.differences(*listed)
    return (
        f"first differences: {trees.some(lines)}"
        if lines
        else "their files are the same: the disks differ around them"
    )

"""``diff``: two locks, definitions or results that a person named → what changed between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conda_appliance import changes, compare, lock, log, manifest, process, resources, results
from conda_appliance.changes import Section
from conda_appliance.errors import UsageError
from conda_appliance.lock import Lock
from conda_appliance.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class _Side:
    lock: Lock
    folder: Path | None
    manifest: Manifest | None


def diff(before: str, after: str, *, out: Path, files: bool, platform: str | None = None) -> list[Section]:
    """What changed from ``before`` to ``after``: locks, definitions (their locks are meant), names, results' folders.

    Of several platforms ``platform`` is compared, else the first. ``files`` compares the root file systems of two
    results too. Raises UsageError for what is none of these.
    """
    first, second = _side(before, out, platform), _side(after, out, platform)
    found: list[Section] = []
    if first.manifest is not None and second.manifest is not None:
        found += changes.of_results(first.manifest, second.manifest)
    found += changes.between(first.lock, second.lock)
    if files:
        trees = [_tree(one, named) for one, named in ((first, before), (second, after))]
        section = changes.of_files(*trees)
        found += [section] if section.changes else []
    return found


def _side(named: str, out: Path, platform: str | None) -> _Side:
    path = Path(named)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _Side(lock=lock.read(lock.path_for(path), platform), folder=None, manifest=None)
    if path.is_file():
        return _Side(lock=lock.read(path, platform), folder=None, manifest=None)
    folder = results.find(named, out, to_boot=False, platform=platform).disk.parent
    written = manifest.read(folder)
    return _Side(lock=lock.read(folder / f"{written.name}.lock"), folder=folder, manifest=written)


def _tree(side: _Side, named: str) -> dict[str, str]:
    disk = results.bootable(side.folder, side.manifest) if side.folder and side.manifest else None
    if disk is None:
        raise UsageError(
            f"{named} has no disk whose files could be compared",
            hint="name results that have one: out/NAME/ID",
        )
    process.require(*compare.tools())
    folder = resources.work_folder(resources.cache_root() / "diff", disk.stem)
    with folder as work, log.step(f"Read the files of {named}") as step:
        found = compare.tree_of(disk, work, times=False)
        step.note(f"{len(found)} paths")
    return found

"""The layers of a rootfs build → its disk with everything in one root file system.

Three disks, each a copy of the one before with more in it: the system, large packages of the environments, and all the
rest (what the playbook did, too), which is what changes from build to build. The first two are layers that many images
share. Of the last only what differs is made, to lie over the second (`sparse.Piece`). Where a file is on the disk
follows from the lock alone, whatever was built before.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conda_appliance import disk, layers, log, overlay, prefix_check, resources, sparse
from conda_appliance.builders.job import DiskImage
from conda_appliance.builders.rootfs_disk import Parts, room
from conda_appliance.layer import Layer
from conda_appliance.overlay import Added, Additions
from conda_appliance.sparse import Piece

#: From this size on, in bytes, a package is large: it is in the second disk. A definition's own are seldom. And what
#: a playbook did is in the first: roles that install much.
LARGE = 8 << 20
#: The second disk, and its outline (`disk.outline`).
_DISK, _OUTLINE = "disk.raw", "outline.raw"


def plain(parts: Parts, step: log.Step) -> DiskImage:
    """Everything in one root file system. Raises UsageError when it does not fit."""
    disk.require_room(parts.job.image.disk.size, parts.size() + disk.ROOT_START * disk.SECTOR)
    job = parts.job
    decided: layers.Parts = {**parts.decided(), **_described(parts)}
    made = DiskImage(path=Path(), format="raw", key=layers.key_of("disk", decided), inputs=parts.inputs())
    with resources.work_folder(
        job.store.root / "work", f"{job.image.name}-{job.identity}", wait=step.update
    ) as work:
        stack = parts.stack(parts.write_stamp(work / "stamp"), work)
        writing = _Plain(parts=parts, step=step, work=work, stack=stack)
        try:
            return writing.over(made, *writing.large())
        except overlay.CannotAdd as error:
            step.update(f"writing the file system all at once, for {error}")
            return writing.whole(made)


def _described(parts: Parts) -> layers.Parts:
    return {**parts.described(), "layout": layers.code(__file__)}


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """One disk that is being written: ``stack`` is all that it will hold, the uppermost tree first."""

    parts: Parts
    step: log.Step
    work: Path
    stack: Sequence[Path]

    def over(self, made: DiskImage, filled: Layer, rest: Additions) -> DiskImage:
        """``rest`` added to the disk ``filled``: in memory, what differs from it; else in a copy that is a file."""
        self.step.update("adding the environments")
        whole, outline = filled.path / _DISK, filled.path / _OUTLINE
        need = sum(one.about.st_size for one in rest.paths) + (256 << 20)
        with room(self.parts, self.step, made, need, holes=True) as (made, to):
            if made.memory is None:
                made = replace(made, path=to)
                layers.copy(whole, to)
            else:
                over = (Piece(source=to, at=0, over=True),)
                made = replace(made, path=whole, inserts=over, around=filled.key)
                with outline.open("rb") as file, to.open("r+b") as memory:
                    memory.truncate(outline.stat().st_size)
                    for at, data in sparse.pages(file.fileno()):
                        sparse.put(memory.fileno(), data, at)
            self._add(to, rest, self.work)
            self._finish(to)
        return made

    def whole(self, made: DiskImage) -> DiskImage:
        """All of it at once: the slow way, which can write whatever a file system can hold."""
        with room(self.parts, self.step, made, 2 * self.parts.size()) as (made, to):
            self._begin(to, self.stack, self.work)
            self._finish(to)
        return replace(made, path=to)

    def large(self) -> tuple[Layer, Additions]:
        """The disk that has the large packages of the environments, and what is yet to be added to it.

        Raises CannotAdd as `overlay.additions` does.
        """
        common, found = self._found()
        owner = {path: name for name, paths in large_packages(self.parts) for path in paths}
        linked = self.stack.index(self.parts.linked.path)
        first, rest = overlay.parted(found, lambda one: one.tree == linked and one.path in owner)
        shared: layers.Parts = {
            **{one.kind: one.sha256 for one in common},
            **_described(self.parts),
        }
        store, subject = self.parts.job.store, self.parts.job.image.name

        def fill(to: Path, work: Path) -> None:
            base = store.get(
                "disk",
                shared,
                lambda made, scratch: self._begin(made, [one.path for one in common], scratch),
                name=_DISK,
                subject=subject,
                progress=self.step.update,
                read=False,
            )
            self.step.update("adding the large packages of the environments")
            to.mkdir()
            layers.copy(base.path, to / _DISK)
            self._add(to / _DISK, first, work)
            disk.outline(to / _DISK, to / _OUTLINE, self.stack, epoch=self.parts.job.epoch)

        filled = store.get(
            "filled",
            {**shared, "packages": _contents(first.paths, owner, self.parts.linked.listing())},
            fill,
            subject=subject,
            progress=self.step.update,
            read=False,
        )
        return filled, rest

    def _found(self) -> tuple[list[Layer], Additions]:
        """What the first disk holds, the uppermost first, and what is to be added to it.

        What was done to the system is added, too, if it is little and no more than files, folders and links.
        """
        changes, system = self.parts.changes(), self.parts.system
        try:
            common = [*(one for one in changes if _length(one) >= LARGE), system]
            return common, self._additions(common)
        except overlay.CannotAdd:
            common = [*changes, system]
            return common, self._additions(common)

    def _additions(self, common: Sequence[Layer]) -> Additions:
        held = {one.path for one in common}
        parts = self.parts
        return overlay.additions(
            self.stack,
            frozenset(number for number, path in enumerate(self.stack) if path in held),
            {one.path: one.contents for one in (*parts.changes(), parts.linked, parts.system)},
        )

    def _begin(self, to: Path, trees: Sequence[Path], work: Path) -> None:
        self.step.update("writing the file system")
        image = self.parts.job.image
        disk.begin(
            to,
            trees,
            size=image.disk.size,
            identity=self.parts.identity,
            epoch=self.parts.job.epoch,
            platform=image.platform,
            work=work,
        )

    def _add(self, to: Path, found: Additions, work: Path) -> None:
        disk.add(to, self.stack, found, epoch=self.parts.job.epoch, work=work)

    def _finish(self, to: Path) -> None:
        disk.finish(to, self.stack, epoch=self.parts.job.epoch, boot=self.parts.loaders())


def large_packages(parts: Parts) -> Iterator[tuple[str, list[str]]]:
    """The packages of the environments that are `LARGE`, each with its paths from the machine's root."""
    for environment, section in parts.job.lock.conda.environments.items():
        prefix = section.prefix[1:]
        for record in prefix_check.records(parts.linked.path / prefix):
            entries = record["paths_data"]["paths"]
            if sum(entry.get("size_in_bytes") or 0 for entry in entries) >= LARGE:
                yield f"{environment}/{record['name']}", [f"{prefix}/{entry['_path']}" for entry in entries]


def _length(layer: Layer) -> int:
    """The bytes of a layer's files, whatever file system they are on (`trees.describe`)."""
    found = (about.split(" ", 4) for about in layer.listing().values())
    return sum(int(words[3]) for words in found if words[0] == "file")


def _contents(paths: Sequence[Added], owner: Mapping[str, str], listed: Mapping[str, str]) -> dict[str, str]:
    """What is added of each package, as a digest; and the folders that it lies in, whichever tree they are from."""
    lines: dict[str, list[str]] = {}
    for one in paths:
        about = one.about
        said = listed.get(one.path, "")
        if stat.S_ISDIR(about.st_mode):
            said = f"{about.st_mode:o} {about.st_uid}:{about.st_gid} {int(about.st_mtime)}"
        lines.setdefault(owner.get(one.path, "folders"), []).append(f"{one.path}\t{said}")
    return {name: layers.digest_of(found) for name, found in lines.items()}

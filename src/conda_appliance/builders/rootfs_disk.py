"""The layers of a rootfs build → its disk: everything in one root file system, or the environments beside it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from conda_appliance import (
    bill,
    bootstrap,
    cyclonedx,
    disk,
    ext4script,
    inventory,
    layers,
    log,
    namespace,
    overlay,
    packed,
    playbook,
    process,
    resources,
    sparse,
    squashfs,
    system_files,
    trees,
)
from conda_appliance import render as rendering
from conda_appliance.builders.job import DiskImage, Job
from conda_appliance.buildtree import BuildTree
from conda_appliance.layer import Layer
from conda_appliance.sparse import Piece, Source

#: What names a build on the machine, as paths from its root.
FACTS, LOCK = "etc/conda-appliance/appliance.json", "etc/conda-appliance/appliance.lock"


def told(**found: Layer) -> str:
    """What was made and why, in a few words."""
    words = []
    for name, layer in found.items():
        if not layer.made:
            words.append(f"{name} unchanged")
            continue
        more = f" and {len(layer.why) - 2} more" if len(layer.why) > 2 else ""
        words.append(f"{name} made ({', '.join(layer.why[:2])}{more})")
    return "; ".join(words)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a disk is made from.

    ``files_apart``: the playbook neither named the machine nor laid the definition's files down.

    ``above`` lies over what the playbook changed, where a form has more than the machine itself. ``grub`` are the
    packages with the boot loader, where the host's own is for another platform.
    """

    job: Job
    tree: BuildTree
    system: Layer
    linked: Layer
    provisioned: Layer
    files_apart: bool
    above: Layer | None = None
    grub: Layer | None = None

    def inputs(self) -> dict[str, str]:
        """The SHA-256 of each layer, for the manifest."""
        return {
            "system": self.system.sha256,
            "environment": self.linked.sha256,
            "provisioned": self.provisioned.sha256,
            **({"above": self.above.sha256} if self.above else {}),
        }

    def changes(self) -> list[Layer]:
        """What lies over the system and the environments, the uppermost first."""
        return [*([self.above] if self.above else []), self.provisioned]

    def size(self) -> int:
        """What all of it takes, in bytes."""
        return self.system.size + self.linked.size + self.provisioned.size + layers.size_of(self.tree.folder)

    def files(self) -> dict[str, str]:
        """The definition's files, where the playbook did not lay them down."""
        return trees.listing(self.tree.folder / "files", times=False) if self.files_apart else {}

    @cached_property
    def _inventory(self) -> str:
        return self.job.inventory(self.linked, self.tree.folder / "files")

    @cached_property
    def _sbom(self) -> str:
        return cyclonedx.write(self.job.bill(self.linked.path))

    def stamp(self) -> dict[str, str]:
        """What names this very build on the machine: the playbook writes the same, perhaps for another one."""
        job = self.job
        return {
            FACTS: playbook.appliance_facts(job.image, job.lock, job.identity),
            LOCK: job.lock_text,
            bill.PLACE: self._sbom,
            inventory.PLACE: self._inventory,
        }

    def names(self) -> dict[str, str]:
        """What names the machine (path → text), where the playbook has not."""
        if not self.files_apart:
            return {}
        image, place = self.job.image, "etc/hosts"
        before = next((found for one in self.changes() if (found := one.path / place).is_file()), None)
        said = before.read_text(encoding="utf-8") if before else system_files.HOSTS
        return {**playbook.machine_names(image, self.job.project), place: _hosts(said, image.name)}

    def described(self) -> dict[str, Any]:
        """What decides a disk beside the trees on it."""
        return {
            "disk": json.dumps(
                self.job.image.disk.model_dump(mode="json", exclude={"compression"}), sort_keys=True
            ),
            "identity": self.identity,
            "epoch": str(self.job.epoch),
            "grub": self.loader_parts(),
            "code": layers.code(__file__, *(str(one.__file__) for one in (disk, overlay, ext4script))),
        }

    def loader_parts(self) -> dict[str, str]:
        """What decides the boot loaders."""
        return {"packages": self.grub.sha256} if self.grub else disk.loader_parts()

    def stack(self, top: Path, work: Path) -> list[Path]:
        """The whole machine as trees, the uppermost first: ``top``, the definition's files, the layers."""
        return self.with_files(
            [top, *(one.path for one in self.changes()), self.linked.path, self.system.path], work
        )

    def decided(self) -> dict[str, Any]:
        """What decides the trees of `stack`, where ``top`` is what `write_stamp` writes."""
        return {
            **self.inputs(),
            "files": self.files(),
            "stamp": {
                path: layers.digest_of([text]) for path, text in {**self.stamp(), **self.names()}.items()
            },
        }

    def write_stamp(self, to: Path) -> Path:
        """Write what names this build and the machine into the folder ``to``."""
        return _write({**self.stamp(), **self.names()}, {}, to, self.job.epoch)

    def with_files(self, stack: list[Path], work: Path) -> list[Path]:
        """``stack`` with the definition's files below its first folder, if the playbook has not laid them down."""
        if len(self.files()) <= 1:
            return stack
        laid = _lay_files(self.tree.folder / "files", stack[1:], work / "files", self.job.epoch)
        return [stack[0], laid, *stack[1:]]

    @property
    def identity(self) -> str:
        """The root file system's UUID."""
        assert self.job.lock.debian is not None
        return bootstrap.identity_of(self.job.lock.debian)

    def loaders(self) -> Path:
        """The boot loaders for a disk of this identity."""
        identity, epoch = self.identity, self.job.epoch
        decided: layers.Parts = {
            "identity": identity,
            "epoch": str(epoch),
            "grub": self.loader_parts(),
            "code": layers.code(disk.__file__),
        }
        return self.job.store.get(
            "loaders",
            decided,
            lambda to, _work: disk.loaders(
                to,
                identity=identity,
                epoch=epoch,
                platform=self.job.image.platform,
                grub=self.grub.path if self.grub else None,
                system=self.system.path,
            ),
            quiet=True,
        ).path


@contextmanager
def room(
    parts: Parts, step: log.Step, made: DiskImage, need: int, *, holes: bool = False
) -> Iterator[tuple[DiskImage, Path]]:
    """A file that goes with the disk ``made``: in memory where ``need`` bytes are free, else in a folder of its own.

    What is exported at once need not be kept. With ``holes``, in memory only where that keeps them. The file is let go
    of if the block fails.
    """
    memory = resources.memory_file(need)
    if memory is not None and holes and not sparse.keeps_holes(memory):
        os.close(memory)
        memory = None
    if memory is not None:
        made, to = replace(made, memory=memory), Path(f"/proc/{os.getpid()}/fd/{memory}")
    else:
        scratch = parts.tree.folder.parent / ("disk-above" if parts.above else "disk")
        scratch.mkdir()
        made, to = replace(made, scratch=scratch), scratch / "disk"
    try:
        yield made, to
    except BaseException:
        made.release()
        raise
    step.note("in memory" if memory is not None else "in a file")


def split(parts: Parts, step: log.Step, *, like: DiskImage | None = None) -> DiskImage:
    """The environments in a partition of their own, so that a changed one rewrites nothing else.

    What names the build changes with them, so it lies there too, behind links from where it is looked for. A disk
    that is ``like`` this one but for what is ``above`` has the same environments, and outlives this one.
    """
    image = parts.job.image
    around = _root(parts, step)
    stamp = {f"{image.conda.prefix[1:]}/{path}": text for path, text in parts.stamp().items()}
    made = DiskImage(
        path=around.path,
        format="raw",
        key=layers.digest_of([around.key, layers.key_of("image", _decide_environments(parts, stamp))]),
        inputs=parts.inputs(),
        around=around.key,
    )
    step.note(told(root=around))
    if like is not None:
        return replace(made, inserts=like.inserts)
    if image.disk.compression == "none":
        try:
            return _with_read(parts, made, stamp)
        except overlay.CannotAdd as error:
            step.update(f"compressing the environments, for {error}")
    return _with_packed(parts, step, made, stamp)


def _with_read(parts: Parts, made: DiskImage, stamp: Mapping[str, str]) -> DiskImage:
    """The disk ``made`` with its environments, read from where they are: not compressed, as it is itself.

    Raises CannotAdd as `squashfs.Image` does.
    """
    job = parts.job
    scratch = parts.tree.folder.parent / "stamp"
    made = replace(made, scratch=scratch)
    try:
        stack = [_write(stamp, {}, scratch, job.epoch), parts.provisioned.path, parts.linked.path]
        known = {one.path: one.contents for one in (parts.provisioned, parts.linked)}
        source = squashfs.Image(stack, job.image.conda.prefix, epoch=job.epoch, known=known)
        return replace(made, inserts=(_inserted(parts, source, source.size),))
    except BaseException:
        made.release()
        raise


def _with_packed(parts: Parts, step: log.Step, made: DiskImage, stamp: Mapping[str, str]) -> DiskImage:
    """The disk ``made`` with its environments compressed in themselves.

    lz4: of erofs and squashfs, with what Debian 12's tools and kernel know, that costs least to write and to read.
    """
    job = parts.job
    with (
        resources.work_folder(
            job.store.root / "work", f"{job.image.name}-{job.identity}", wait=step.update
        ) as work,
        room(parts, step, made, parts.linked.size + (256 << 20)) as (made, to),
    ):
        step.update("packing the environments")
        packed.write(
            to,
            [_write(stamp, {}, work / "stamp", job.epoch), parts.provisioned.path, parts.linked.path],
            job.image.conda.prefix,
            form="squashfs",
            compression="lz4",
            epoch=job.epoch,
            work=work,
        )
        return replace(made, inserts=(_inserted(parts, to, to.stat().st_size),))


def _inserted(parts: Parts, source: Path | Source, size: int) -> Piece:
    """Environments in the first of their partitions. Raises UsageError when they do not fit."""
    about = parts.job.image.disk
    disk.require_slot(size, about.slot)
    partitions = disk.plan(about.size, about.slot, parts.job.image.platform)
    slot = next(one for one in partitions if one.name == disk.ENVIRONMENTS[0])
    return Piece(source=source, at=slot.start * disk.SECTOR, packed=True)


def _root(parts: Parts, step: log.Step) -> Layer:
    """The disk without the environments, and with what mounts them: it is kept."""
    job, prefix = parts.job, parts.job.image.conda.prefix
    links, files = _mounted(prefix)
    files |= parts.names()
    decided: layers.Parts = {
        **{name: digest for name, digest in parts.inputs().items() if name != "environment"},
        **parts.described(),
        "files": parts.files(),
        "mount": {**links, **files},
    }

    def make(to: Path, work: Path) -> None:
        top = _write(files, links, work / "mount", job.epoch)
        (top / prefix[1:]).mkdir(parents=True, exist_ok=True)
        namespace.hide_below(top / prefix[1:])
        trees.set_times(top, job.epoch)
        step.update("writing the file system")
        disk.write(
            to,
            parts.with_files([top, *(one.path for one in parts.changes()), parts.system.path], work),
            size=job.image.disk.size,
            slot=job.image.disk.slot,
            identity=parts.identity,
            epoch=job.epoch,
            work=work,
            taken=parts.size(),
            boot=parts.loaders(),
            platform=job.image.platform,
        )

    return job.store.get(
        "root",
        decided,
        make,
        name="disk.raw",
        subject=job.image.name,
        progress=step.update,
        read=False,
    )


def _decide_environments(parts: Parts, stamp: Mapping[str, str]) -> layers.Parts:
    """What decides the partition with the environments; ``stamp`` is what names the build in it."""
    image = parts.job.image
    own = trees.listing(parts.provisioned.path)
    return {
        "environment": parts.linked.sha256,
        "provisioned": {
            path: about for path, about in own.items() if path.startswith(f"{image.conda.prefix[1:]}/")
        },
        "stamp": {path: layers.digest_of([text]) for path, text in stamp.items()},
        "disk": f"{image.conda.prefix} {image.disk.slot} {image.disk.compression == 'none'}",
        "epoch": str(parts.job.epoch),
        "tools": {} if image.disk.compression == "none" else packed.versions("squashfs"),
        "code": layers.code(
            __file__, disk.__file__, *(str(one.__file__) for one in (overlay, packed, squashfs))
        ),
    }


def _mounted(prefix: str) -> tuple[dict[str, str], dict[str, str]]:
    """The links and files (path → target, path → text) that mount the environments at ``prefix`` when it boots."""
    unit = rendering.systemd_unit(prefix, "mount")
    files = {
        f"etc/systemd/system/{unit}": rendering.text(
            "boot/environments.mount.j2", prefix=prefix, name=disk.ENVIRONMENTS[0]
        )
    }
    links = {f"etc/systemd/system/local-fs.target.wants/{unit}": f"../{unit}"}
    links |= {path: f"{prefix}/{path}" for path in (FACTS, LOCK, bill.PLACE, inventory.PLACE)}
    return links, files


def _hosts(before: str, name: str) -> str:
    """The text of /etc/hosts in which a machine finds itself, as playbooks/roles/base/files/settle.sh makes it."""
    if re.search(rf"^127\.0\.1\.1\s+{re.escape(name)}$", before, re.MULTILINE):
        return before
    kept = [line for line in before.splitlines(keepends=True) if not re.match(r"127\.0\.1\.1\s", line)]
    return f"{''.join(kept)}127.0.1.1 {name}\n"


#: As playbooks/roles/app/files/install.sh does it: folders that are there keep their modes, links stay links.
_LAY = """
tar --create --file=- --directory="$1" --owner=0 --group=0 --numeric-owner --sort=name --mtime="@$2" . |
    chroot root tar --extract --file=- --directory=/ --preserve-permissions --no-overwrite-dir --keep-directory-symlink
"""


def _lay_files(files: Path, lower: list[Path], work: Path, epoch: int) -> Path:
    """Lay the definition's files over ``lower``; the upper folder that this leaves."""
    work.mkdir()
    mounted, variables = namespace.script(work, lower, upper="upper")
    process.run(
        namespace.isolated(mounted, ["sh", "-euc", _LAY, "sh", files.resolve(), str(epoch)]),
        env=variables,
        orphaned=signal.SIGKILL,
    )
    namespace.settle_upper(work / "upper")
    trees.set_times(work / "upper", epoch)
    return work / "upper"


def _write(files: Mapping[str, str], links: Mapping[str, str], to: Path, epoch: int) -> Path:
    """A folder with these files and links; everything in it is of the time ``epoch``."""
    for path, text in files.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_text(text, encoding="utf-8")
    for path, target in links.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).symlink_to(target)
    trees.set_times(to, epoch)
    return to

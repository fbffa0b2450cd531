"""The layers of a machine → the live disc, which starts it from a CD or a stick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conda_appliance import bootable, disc, disk, layers, render, resources
from conda_appliance.bootable import Entry
from conda_appliance.builders.rootfs_disk import Parts
from conda_appliance.definition_disc import load_disc

#: The boot menu.
ENTRIES = (
    Entry(title="Start"),
    Entry(title="Start from memory, so that the disc can be taken out", options="appliance.toram"),
    Entry(title="Verify the disc, then start", options="appliance.verify"),
    Entry(title="Start without what was kept", options="appliance.forget"),
)
#: The label of the partition in which it keeps what is written (iso/live/live.sh).
DATA = "appliance-data"
#: How long the menu waits, in seconds.
_TIMEOUT = 3


def tools() -> tuple[str, ...]:
    """The programs of the host that this module needs."""
    return (*bootable.tools(), "mksquashfs")


def make(parts: Parts, to: Path, *, work: Path, progress: Callable[[str], None] = lambda _text: None) -> Path:
    """Write the disc ``to`` and return it; the same layers give the same bytes.

    ``work`` is an empty folder for what is only needed meanwhile. Raises as `bootable.initramfs` and `disc.write` do.
    """
    job = parts.job
    decided: layers.Parts = {
        **parts.decided(),
        "epoch": str(job.epoch),
        "code": layers.code(__file__, disk.__file__),
    }

    def squash(made: Path, scratch: Path) -> None:
        progress("packing the machine")
        stack = parts.stack(parts.write_stamp(scratch / "stamp"), scratch)
        disk.squash(made, stack, epoch=job.epoch, work=scratch)

    root = job.store.get(
        "live", decided, squash, name="root.squashfs", subject=job.image.name, progress=progress
    )
    progress("making what starts it")
    linked = bootable.initramfs(
        parts.system,
        job.image.base,
        store=job.store,
        epoch=job.epoch,
        project=job.project,
        subject=job.image.name,
    )
    identity = layers.digest_of(["live", root.sha256, linked.sha256])[:16]
    menu = bootable.menu(
        "live",
        ENTRIES,
        identity=identity,
        project=job.project,
        boot=job.image.base.boot,
        timeout=_TIMEOUT,
    )
    inputs = bootable.common(
        linked,
        identity=identity,
        menu=menu,
        lock=job.lock_text,
        readme=render.text(
            "disc/README.txt.j2",
            project=job.project,
            kind="live",
            name=job.image.name,
            version=job.image.version,
            summary=job.image.summary,
        ),
        epoch=job.epoch,
        work=work,
    )
    progress("writing the disc")
    return disc.write(
        load_disc(resources.find("iso/live.yaml", job.project)),
        {**inputs, "root.squashfs": root.path},
        to,
        epoch=job.epoch,
        boot=bootable.starter(identity),
    )

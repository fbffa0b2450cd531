"""A golden image → the installer disc, which writes it to a disk of the machine that it starts.

``iso/installer/installer.sh`` reads what is written here as ``/appliance``. The image is not there as one file: what
is empty of it is not on the disc, and its first MiB, which makes a disk bootable, is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from conda_appliance import bootable, disc, layers, process, render, resources, trees
from conda_appliance.bootable import Entry
from conda_appliance.definition import ImageDefinition
from conda_appliance.definition_disc import load_disc
from conda_appliance.errors import BuildError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store

_MIB = 1 << 20
#: The longest run of the image that the installer writes at once, in bytes: it tells how far it is after each.
_RUN = 64 * _MIB
#: How long the menu waits, in seconds.
_TIMEOUT = 5


@dataclass(frozen=True, kw_only=True)
class Image:
    """A golden image: its ``disk`` (qcow2 or raw), that file's SHA-256, what it was made from, and its lock as text."""

    disk: Path
    sha256: str
    definition: ImageDefinition
    lock: str


def tools() -> tuple[str, ...]:
    """The programs of the host that this module needs."""
    return (*bootable.tools(), "qemu-img", "sfdisk", "zstd")


def make(
    image: Image,
    system: Layer,
    to: Path,
    *,
    store: Store,
    epoch: int,
    project: Path | None,
    work: Path,
    progress: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Write the disc ``to`` and return it; the same image and ``epoch`` (seconds since 1970) give the same bytes.

    ``system`` is the layer of the appliance's Debian system, whose kernel starts the disc; ``work`` is an empty folder
    for what is only needed meanwhile. Raises BuildError for an image without a root partition, else as
    `bootable.initramfs` and `disc.write` do.
    """
    wanted = image.definition
    packed = _packed(image, store, epoch, progress)
    progress("making what starts it")
    linked = bootable.initramfs(
        system, wanted.base, store=store, epoch=epoch, project=project, subject=wanted.name
    )
    choice = wanted.installer.model_dump(mode="json")
    identity = layers.digest_of(["installer", packed.sha256, linked.sha256, choice])[:16]
    log = f"/var/log/conda-appliance/install-{identity}.log"
    menu = bootable.menu(
        "installer",
        [Entry(title=f"Install {wanted.name} {wanted.version}")],
        identity=identity,
        project=project,
        boot=wanted.base.boot,
        timeout=_TIMEOUT,
        installed=log,
    )
    inputs = bootable.common(
        linked,
        identity=identity,
        menu=menu,
        lock=image.lock,
        readme=render.text(
            "disc/README.txt.j2",
            project=project,
            kind="installer",
            name=wanted.name,
            version=wanted.version,
            summary=wanted.summary,
            named=wanted.installer.disk is not None,
        ),
        epoch=epoch,
        work=work,
    )
    about = json.loads((packed.path / "about.json").read_text(encoding="utf-8"))
    progress("writing the disc")
    return disc.write(
        load_disc(resources.find("iso/installer.yaml", project)),
        {
            **inputs,
            "installer.conf": _settings(wanted, about, log).encode(),
            **{name: packed.path / name for name in ("disk.first", "disk.map", "disk.zst")},
        },
        to,
        epoch=epoch,
        boot=bootable.starter(identity),
    )


def _settings(wanted: ImageDefinition, about: Mapping[str, int | str], log: str) -> str:
    """What the installer reads as a shell's variables."""
    disk = wanted.installer.disk
    values = {
        "title": f"{wanted.name} {wanted.version}",
        **about,
        "log": log,
        "unattended": "yes" if wanted.installer.unattended else "no",
        "want_model": disk.model if disk else "",
        "want_serial": disk.serial if disk else "",
        "want_path": disk.path if disk else "",
        "want_size": (disk.size or "") if disk else "",
    }
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())


# --- the image --------------------------------------------------------------------------------------


def _packed(image: Image, store: Store, epoch: int, progress: Callable[[str], None]) -> Layer:
    """A folder with the image as the installer reads it; ``about.json`` has what belongs into its settings."""

    def make(to: Path, work: Path) -> None:
        to.mkdir()
        raw = work / "disk.raw"
        progress("unpacking the image")
        process.run(["qemu-img", "convert", "-O", "raw", image.disk, raw])
        about: dict[str, int | str] = {"size": raw.stat().st_size, **_root(raw)}
        body, written, reached = hashlib.sha256(), 0, []
        with raw.open("rb") as file, (work / "body").open("wb") as out:
            (to / "disk.first").write_bytes(file.read(_MIB))
            for start, length in runs(file, raw.stat().st_size):
                file.seek(start)
                chunk = file.read(length)
                body.update(chunk)
                out.write(chunk)
                written += length
                reached.append(f"{start} {length} {written}\n")
        (to / "disk.map").write_text("".join(reached), encoding="ascii")
        progress("compressing the image")
        process.run(["zstd", "-q", "-T0", "-10", work / "body", "-o", to / "disk.zst"])
        about |= {"written": written, "body": body.hexdigest()}
        (to / "about.json").write_text(json.dumps(about), encoding="utf-8")
        trees.set_times(to, epoch)

    return store.get(
        "installer",
        {"image": image.sha256, "epoch": str(epoch), "code": layers.code(__file__)},
        make,
        subject=image.definition.name,
        progress=progress,
    )


def runs(file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """What of a raw disk of ``size`` bytes is not empty, as (start, length) in whole MiB, each at most 64 of them.

    Without its first and its last MiB: what stands there makes a disk bootable, or is a copy of it.
    """
    merged: list[tuple[int, int]] = []
    for first, last in trees.extents(file.fileno(), size):
        first, last = max(first // _MIB * _MIB, _MIB), min(-(-last // _MIB) * _MIB, size - _MIB)
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        elif first < last:
            merged.append((first, last))
    for start, end in merged:
        for at in range(start, end, _RUN):
            yield at, min(_RUN, end - at)


def _root(raw: Path) -> dict[str, int]:
    """Where the root file system is on a raw disk, in bytes: in the last partition, which grows."""
    table = json.loads(process.run(["sfdisk", "--json", raw]).stdout)["partitiontable"]
    last = max(table["partitions"], key=lambda one: int(one["start"]), default=None)
    if table.get("label") != "gpt" or last is None or last.get("name") != "root":
        raise BuildError(
            f"{os.fspath(raw)} has no last partition named root, so it cannot be installed by a disc",
            hint="an image with a Debian base has one",
        )
    return {"root_start": int(last["start"]) * 512, "root_size": int(last["size"]) * 512}

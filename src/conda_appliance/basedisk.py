"""A Debian root file system, or a distribution's cloud image → the disk that the Packer builder starts from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import bootstrap, disk, layers, process, resources
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import Lock


@dataclass(frozen=True, kw_only=True)
class BaseDisk:
    """A disk to start from: qcow2, at least as large as the definition's disk, ``sha256`` of the file."""

    path: Path
    sha256: str
    made: bool


def tools(image: ImageDefinition) -> tuple[str, ...]:
    """The programs of the host that making this definition's base needs."""
    if image.base.image is not None:
        return ("qemu-img",)
    return (*bootstrap.tools(), *disk.tools(), "qemu-img")


def make(
    lock: Lock,
    image: ImageDefinition,
    files: Mapping[str, Path],
    *,
    store: Store,
    progress: Callable[[str], None],
) -> BaseDisk:
    """The base disk of a lock: from the cache, verified, or made now from ``files`` (SHA-256 → verified file).

    Raises HashMismatch when the cached disk is not what was written (it is set aside); BuildError with the
    program's words when making it fails.
    """
    if lock.debian is not None:
        system = bootstrap.system(
            lock.debian, image.base, files, store=store, progress=progress, without=image.slim
        )
        made = _debian(system, bootstrap.identity_of(lock.debian), image, store, progress)
    else:
        assert lock.image is not None
        made = _cloud(lock.image.sha256, image, files, store, progress)
    return BaseDisk(path=made.path, sha256=made.sha256, made=made.made)


def _debian(
    system: Layer, identity: str, image: ImageDefinition, store: Store, progress: Callable[[str], None]
) -> Layer:
    parts: layers.Parts = {
        "system": system.key,
        "size": str(image.disk.size),
        "grub": disk.loader_parts(),
        "code": layers.code(__file__, disk.__file__),
    }

    def write(to: Path, work: Path) -> None:
        progress("writing the disk")
        raw, boot = work / "disk.raw", work / "boot"
        disk.loaders(boot, identity=identity, epoch=bootstrap.EPOCH)
        disk.write(
            raw,
            [system.path],
            size=image.disk.size,
            identity=identity,
            epoch=bootstrap.EPOCH,
            work=work,
            taken=system.size,
            boot=boot,
        )
        process.run(["qemu-img", "convert", "-O", "qcow2", raw, to])

    return store.get("base", parts, write, name="disk.qcow2", subject=image.name, progress=progress)


# --- cloud images -----------------------------------------------------------------------------------


def _cloud(
    sha256: str,
    image: ImageDefinition,
    files: Mapping[str, Path],
    store: Store,
    progress: Callable[[str], None],
) -> Layer:
    parts: layers.Parts = {"image": sha256, "size": str(image.disk.size), "code": layers.code(__file__)}

    def write(to: Path, _work: Path) -> None:
        _cloud_image(files[sha256], image, to)

    return store.get("base", parts, write, name="disk.qcow2", subject=image.name, progress=progress)


def _cloud_image(source: Path, image: ImageDefinition, to: Path) -> None:
    """A cloud image as qcow2 with the definition's size; the guest's own growpart takes the room."""
    about = json.loads(process.run(["qemu-img", "info", "--output=json", source]).stdout)
    if about["format"] not in ("qcow2", "raw"):
        raise UsageError(
            f"base.image is {about['format']}; qcow2 and raw images are read",
            hint=f"qemu-img convert -O qcow2 IMAGE IMAGE.qcow2    ({image.base.image.url if image.base.image else ''})",
        )
    elsewhere = about.get("backing-filename") or about.get("format-specific", {}).get("data", {}).get(
        "data-file"
    )
    if elsewhere:
        raise UsageError(f"base.image keeps its content in another file, {elsewhere}: give a whole image")
    if about["format"] == "raw" and not _has_partitions(source):
        raise UsageError(
            "base.image is no disk: it is neither qcow2, nor does it begin with a partition table",
            hint="a compressed image (.xz, .gz, .zst) is unpacked first; a web page is an error of its server",
        )
    if about["virtual-size"] > image.disk.size:
        raise UsageError(
            f"base.image is a disk of {resources.size_text(about['virtual-size'])}, "
            f"larger than disk.size ({resources.size_text(image.disk.size)})",
            hint="make disk.size at least as large",
        )
    process.run(["qemu-img", "convert", "-f", about["format"], "-O", "qcow2", source, to])
    process.run(["qemu-img", "resize", "-q", to, str(image.disk.size)])


def _has_partitions(raw: Path) -> bool:
    """Whether a raw disk has a boot sector with the mark of a partition table, MBR's or GPT's protective one."""
    with raw.open("rb") as file:
        return file.read(disk.SECTOR)[510:] == b"\x55\xaa"

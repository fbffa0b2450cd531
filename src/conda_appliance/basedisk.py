"""Locked ``.debs``, or a distribution's cloud image → the disk that a build starts from.

A Debian base is assembled without loop devices and mounts: mmdebstrap unpacks the packages, ``mke2fs -d`` writes
the file system into its partition, mtools the EFI one, and what ``grub-bios-setup`` does is five writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import bootstrap, process, render, resources
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError, HashMismatch, UsageError
from conda_appliance.lock import DebianSection, Lock

SECTOR = 512
MIB = 1 << 20
#: The partitions, in sectors: GRUB's core, the EFI system partition, the root file system up to the end.
BIOS_START, BIOS_SIZE = 2048, 2048
ESP_START, ESP_SIZE = 4096, 64 * MIB // SECTOR
ROOT_START = ESP_START + ESP_SIZE

_MODULES = [
    "part_gpt",
    "ext2",
    "search",
    "search_fs_uuid",
    "linux",
    "normal",
    "configfile",
    "boot",
    "echo",
    "all_video",
]
_GRUB = Path("/usr/lib/grub")
_NAMESPACE = uuid.UUID("6f1cde62-2b5a-4d0c-9a55-3c2a9b0e9d11")


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
    needed = [*bootstrap.tools(), "sfdisk", "mke2fs", "mkfs.vfat", "mmd", "mcopy", "grub-mkimage"]
    if os.geteuid() != 0:
        needed.append("fakeroot")
    return (*needed, "qemu-img")


def make(
    lock: Lock,
    image: ImageDefinition,
    files: Mapping[str, Path],
    *,
    cache: Path,
    progress: Callable[[str], None],
) -> BaseDisk:
    """The base disk of a lock: from the cache, verified, or made now from ``files`` (SHA-256 → verified file).

    Raises HashMismatch when the cached disk is not what was written (it is set aside); BuildError with the
    program's words when making it fails.
    """
    key = _key(lock, image)
    folder = cache / "base" / key
    disk = folder / "disk.qcow2"
    if disk.is_file():
        return BaseDisk(path=disk, sha256=_verified(folder), made=False)
    with resources.work_folder(cache / "base", key) as work:
        ready = work / "ready"
        ready.mkdir()
        if lock.debian is not None:
            _debian(lock.debian, image, files, work, ready / disk.name, progress)
        elif lock.image is not None:
            _cloud_image(files[lock.image.sha256], image, ready / disk.name)
        (ready / "SHA256").write_text(resources.sha256_of(ready / disk.name), encoding="utf-8")
        resources.remove(folder)
        ready.rename(folder)
    return BaseDisk(path=disk, sha256=(folder / "SHA256").read_text(encoding="utf-8"), made=True)


def _verified(folder: Path) -> str:
    expected = (folder / "SHA256").read_text(encoding="utf-8").strip()
    found = resources.sha256_of(folder / "disk.qcow2")
    if found != expected:
        aside = folder.with_suffix(".corrupt")
        resources.remove(aside)
        folder.rename(aside)
        raise HashMismatch(
            f"the cached base disk {folder / 'disk.qcow2'}",
            expected=expected,
            found=found,
            hint=f"it was set aside as {aside}; run the same command again to make it anew",
        )
    return expected


def _key(lock: Lock, image: ImageDefinition) -> str:
    """The name of a base in the cache: the hash of all that decides its content, our own code included."""
    decided = {
        "lock": [part.model_dump() if part else None for part in (lock.debian, lock.image)],
        "base": image.base.model_dump(mode="json"),
        "size": image.disk.size,
        "files": [
            bootstrap.early_files("identity"),
            bootstrap.late_files("suite", None),
            render.text("boot/early.cfg.j2", uuid="identity"),
        ],
        "code": [resources.sha256_of(Path(module)) for module in (__file__, bootstrap.__file__)],
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


# --- Debian -----------------------------------------------------------------------------------------


def _debian(
    section: DebianSection,
    image: ImageDefinition,
    files: Mapping[str, Path],
    work: Path,
    to: Path,
    progress: Callable[[str], None],
) -> None:
    # The file system's identity follows from what is in it: two machines of one lock look alike to their tools.
    identity = str(uuid.uuid5(_NAMESPACE, json.dumps(section.model_dump(), sort_keys=True)))
    progress(f"unpacking {len(section.packages)} packages")
    tar = bootstrap.root_tar(section, image.base, files, identity=identity, work=work, progress=progress)
    _require_room(tar, image)
    progress("writing the disk")
    raw = work / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(image.disk.size)
    _partition(raw, identity)
    root_file_system(raw, tar, work, identity)
    _boot_loaders(raw, work, identity)
    process.run(["qemu-img", "convert", "-O", "qcow2", raw, to])


def root_size(disk: int) -> int:
    """The sectors of the root partition of a disk of ``disk`` bytes, a whole number of MiB.

    The last MiB is not in it: its last 33 sectors are the backup of the partition table.
    """
    return (disk - MIB) // SECTOR - ROOT_START


def _partition(raw: Path, identity: str) -> None:
    def guid(name: str) -> str:
        return str(uuid.uuid5(uuid.UUID(identity), name)).upper()

    # The last type is what systemd and growpart know as "root of an x86-64 machine".
    partitions = (
        ("bios", BIOS_START, BIOS_SIZE, "21686148-6449-6E6F-744E-656564454649"),
        ("esp", ESP_START, ESP_SIZE, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        ("root", ROOT_START, root_size(raw.stat().st_size), "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
    )
    script = [f"label: gpt\nlabel-id: {guid('disk')}"]
    for name, start, size, kind in partitions:
        script.append(f"start={start}, size={size}, type={kind}, uuid={guid(name)}, name={name}")
    process.run(["sfdisk", "--quiet", raw], input="\n".join(script) + "\n")


def _require_room(tar: Path, image: ImageDefinition) -> None:
    """Raise UsageError when the tree cannot fit: ext4 keeps about a tenth for its tables, journal and reserve."""
    need = tar.stat().st_size + ROOT_START * SECTOR
    if need > 0.9 * image.disk.size:
        raise UsageError(
            f"disk.size is {resources.size_text(image.disk.size)}, and Debian alone takes "
            f"{resources.size_text(need)} of it",
            hint="make disk.size larger; the conda environments and your files need room too",
        )


def root_file_system(raw: Path, tar: Path, work: Path, identity: str) -> None:
    """Write the tree in ``tar`` as ext4 into the root partition of the disk ``raw``, without mounting it."""
    tree = work / "root"
    tree.mkdir()
    blocks = root_size(raw.stat().st_size) * SECTOR // 4096
    script = (
        'set -e; tar -xp --numeric-owner --xattrs --xattrs-include=\'*\' -f "$1" -C "$2"; '
        'mke2fs -q -F -t ext4 -b 4096 -L root -U "$5" -E "offset=$4,hash_seed=$5,lazy_itable_init=1,root_owner=0:0" '
        '-d "$2" "$3" "$6"'
    )
    words: list[process.Argument] = [
        "sh",
        "-c",
        script,
        "sh",
        tar,
        tree,
        raw,
        str(ROOT_START * SECTOR),
        identity,
        str(blocks),
    ]
    # Without root's rights the owners in the tar live in fakeroot's memory between the two programs.
    process.run(
        words if os.geteuid() == 0 else ["fakeroot", *words],
        env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
    resources.remove(tree)


def _boot_loaders(raw: Path, work: Path, identity: str) -> None:
    early = work / "early.cfg"
    early.write_text(render.text("boot/early.cfg.j2", uuid=identity), encoding="utf-8")
    common: list[str | os.PathLike[str]] = ["grub-mkimage", "-c", early, "-p", "/boot/grub"]
    efi, core, esp = work / "bootx64.efi", work / "core.img", work / "esp.img"
    process.run([*common, "-O", "x86_64-efi", "-o", efi, *_MODULES, "efi_gop"])
    process.run([*common, "-O", "i386-pc", "-o", core, "biosdisk", *_MODULES])
    with esp.open("wb") as file:
        file.truncate(ESP_SIZE * SECTOR)
    process.run(["mkfs.vfat", "-n", "ESP", "-i", identity[:8], esp])
    process.run(["mmd", "-i", esp, "::EFI", "::EFI/BOOT"])
    process.run(["mcopy", "-i", esp, efi, "::EFI/BOOT/BOOTX64.EFI"])
    with raw.open("r+b") as disk:
        disk.seek(ESP_START * SECTOR)
        disk.write(esp.read_bytes())
        boot, image = grub_bios(
            (_GRUB / "i386-pc/boot.img").read_bytes(), core.read_bytes(), first_sector=BIOS_START
        )
        if len(image) > BIOS_SIZE * SECTOR:
            raise BuildError(f"GRUB's core is {len(image)} bytes, larger than its partition")
        disk.seek(0)
        disk.write(boot[:440])  # up to the partition table, which stays
        disk.seek(BIOS_START * SECTOR)
        disk.write(image)


def grub_bios(boot: bytes, core: bytes, *, first_sector: int) -> tuple[bytes, bytes]:
    """GRUB's boot sector and core, made to find each other: what ``grub-bios-setup`` writes.

    Source: GRUB 2's ``util/setup.c`` and ``include/grub/i386/pc/boot.h``: the core's first sector as a 64-bit
    little-endian number at 0x5C, the boot drive byte 0xFF at 0x64, two NOPs at 0x66 over the jump that floppies
    need; in the core at 500 its block list: (first sector + 1, count - 1, load segment 0x820).
    """
    sector = bytearray(boot)
    sector[0x5C:0x64] = struct.pack("<Q", first_sector)
    sector[0x64] = 0xFF
    sector[0x66:0x68] = b"\x90\x90"
    image = bytearray(core) + bytes(-len(core) % SECTOR)
    image[500:512] = struct.pack("<QHH", first_sector + 1, len(image) // SECTOR - 1, 0x820)
    return bytes(sector), bytes(image)


# --- cloud images -----------------------------------------------------------------------------------


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
        return file.read(SECTOR)[510:] == b"\x55\xaa"

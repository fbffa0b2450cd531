"""Trees of files → a bootable raw disk, without loop devices: partitions, file systems and boot loaders as bytes.

``mke2fs -d`` writes the root file system into its partition, mtools the EFI one, and what ``grub-bios-setup`` does is
five writes. The same trees, size and identity give the same bytes.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import (
    emulation,
    ext4script,
    namespace,
    overlay,
    platforms,
    process,
    render,
    resources,
    sparse,
)
from conda_appliance.errors import BuildError, CommandFailed, UsageError
from conda_appliance.platforms import PLATFORMS, Platform
from conda_appliance.trees import extents

SECTOR = 512
MIB = 1 << 20
#: The partitions, in sectors: GRUB's core, the EFI system partition, what comes after.
BIOS_START, BIOS_SIZE = 2048, 2048
ESP_START, ESP_SIZE = 4096, 64 * MIB // SECTOR
ROOT_START = ESP_START + ESP_SIZE

#: Types of partitions: https://uapi-group.org/specifications/specs/discoverable_partitions_specification/
_BIOS_TYPE = "21686148-6449-6E6F-744E-656564454649"
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_LINUX_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

#: The names of the two partitions for environments; the first is the one that is written.
ENVIRONMENTS = ("environment-a", "environment-b")

_MODULES = (
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
    "serial",
    "terminal",
)
#: Where the host has the parts of its GRUB.
GRUB = Path("/usr/lib/grub")

#: The first mke2fs whose result follows from its input alone (SOURCE_DATE_EPOCH, sorted folders): e2fsprogs 1.47.1.
REPRODUCIBLE = (1, 47, 1)
#: Left out for boot loaders: GRUB 2.06 reads neither. Checksums come when all is written (`finish`).
_FEATURES = "^metadata_csum_seed,^orphan_file,^metadata_csum"

#: The boot loaders' files (`loaders`).
_ESP, _CORE = "esp.img", "core.img"


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition: ``start`` and ``size`` in sectors, ``kind`` a type's GUID."""

    name: str
    start: int
    size: int
    kind: str


def tools() -> tuple[str, ...]:
    """The programs of the host that this module needs."""
    return (
        *namespace.tools(),
        "sfdisk",
        "mke2fs",
        "debugfs",
        "e2fsck",
        "e2image",
        "tune2fs",
        "mkfs.vfat",
        "mmd",
        "mcopy",
        "grub-mkimage",
    )


def loader_parts() -> dict[str, str]:
    """What of this host decides the boot loaders: GRUB's files, by name, as SHA-256."""
    names = [f"{target}/{module}.mod" for target in ("i386-pc", "x86_64-efi") for module in _MODULES]
    names += ["i386-pc/boot.img", "i386-pc/kernel.img", "i386-pc/diskboot.img", "x86_64-efi/kernel.img"]
    return {name: resources.sha256_of(GRUB / name) for name in names if (GRUB / name).is_file()}


def write(
    to: Path,
    trees: Sequence[Path],
    *,
    size: int,
    identity: str,
    epoch: int,
    work: Path,
    taken: int,
    boot: Path,
    slot: int = 0,
    platform: Platform = PLATFORMS[platforms.DEFAULT],
) -> None:
    """Write a disk of ``size`` bytes whose root holds ``trees``, the uppermost first.

    It boots on BIOS and UEFI, as far as machines of ``platform`` have them.

    ``boot`` is the folder of the `loaders` for ``identity``, which is the root file system's UUID, from which all
    others follow; ``epoch`` (seconds since 1970) its time stamps; ``taken`` the bytes that the trees take; ``slot`` the
    bytes of each of two empty partitions for environments, or 0 for none. Raises UsageError when the trees do not fit.
    """
    require_room(size, taken + plan(size, slot)[-1].start * SECTOR)
    begin(to, trees, size=size, identity=identity, epoch=epoch, work=work, slot=slot, platform=platform)
    finish(to, trees, epoch=epoch, boot=boot, slot=slot)


def begin(
    to: Path,
    trees: Sequence[Path],
    *,
    size: int,
    identity: str,
    epoch: int,
    work: Path,
    slot: int = 0,
    platform: Platform = PLATFORMS[platforms.DEFAULT],
) -> None:
    """Write a disk that more is to be added to (`add`) before it is finished (`finish`); as `write` has it."""
    partitions = plan(size, slot, platform)
    with to.open("wb") as file:
        file.truncate(size)
    partition(to, partitions, identity)
    _root(to, trees, partitions[-1], size=size, identity=identity, epoch=epoch, work=work)


def finish(to: Path, trees: Sequence[Path], *, epoch: int, boot: Path, slot: int = 0) -> None:
    """Make what `begin` and `add` wrote sound and bootable; ``trees`` are what it holds.

    Files came in without checksums, since mke2fs and debugfs would read and sum up a whole folder for each name that
    they add. They come now, when e2fsck has found all sound and has given large folders their index.
    """
    tools, place = E2fsprogs.choose(trees, epoch), _place(to, slot)
    for step in (("e2fsck", "-f", "-D", "-p"), ("tune2fs", "-O", "metadata_csum")):
        process.run([*tools.command(step[0]), *step[1:], place], cwd=to.parent, env=tools.settings)
    _install(boot, to)


def add(to: Path, trees: Sequence[Path], found: overlay.Additions, *, epoch: int, work: Path) -> None:
    """Add ``found`` to a root file system that `begin` wrote and that holds the rest of ``trees``.

    Their times are ``epoch`` unless they say otherwise. Raises UsageError when they do not fit, and CannotAdd as
    `ext4script.text` does, before anything is added.
    """
    tools, size = E2fsprogs.choose(trees, epoch), to.stat().st_size
    script = work / "debugfs"
    text = ext4script.text(trees, found, epoch=epoch, work=work / "added")
    script.write_text(text, encoding="utf-8", errors="surrogateescape")
    command = [*tools.command("debugfs"), "-w", "-f", script.absolute(), _place(to)]
    with (work / "debugfs.log").open("wb") as log:  # every command, and the number of each inode
        said = process.run_to(command, log, cwd=to.parent, env=tools.settings)
    # It goes on after an error, and ends with 0. Its first line there is its version.
    if said := "\n".join(said.splitlines()[1:]):
        _refuse_full(said, size)
        raise BuildError(f"debugfs could not add everything to the file system:\n{said[:2000]}")


def outline(raw: Path, to: Path, trees: Sequence[Path], *, epoch: int) -> None:
    """Write ``to``, as long as the disk ``raw``, with all of it but what stands in files, and blocks of zeroes.

    That is what the programs that `add` and `finish` start read of a disk, so that they need no copy of it: with
    what they write, it lies over the disk (`sparse.Piece`). ``trees`` are what the disk holds.
    """
    tools, place = E2fsprogs.choose(trees, epoch), plan(raw.stat().st_size)[-1]
    start, end = place.start * SECTOR, (place.start + place.size) * SECTOR
    process.run(
        [*tools.command("e2image"), "-r", "-o", str(start), "-O", str(start), raw.absolute(), to.absolute()],
        env=tools.settings,
    )
    with raw.open("rb") as disk, to.open("r+b") as file:
        file.truncate(raw.stat().st_size)
        for first, last in extents(disk.fileno(), raw.stat().st_size):
            for begin, stop in ((first, min(last, start)), (max(first, end), last)):
                if begin < stop:
                    sparse.put(file.fileno(), os.pread(disk.fileno(), stop - begin, begin), begin)


def _place(raw: Path, slot: int = 0) -> str:
    """The root file system of a disk, as e2fsprogs name it from its folder, whose path may have a ``?``.

    It begins at the same place on every platform.
    """
    return f"{raw.name}?offset={plan(raw.stat().st_size, slot)[-1].start * SECTOR}"


def _refuse_full(said: str, size: int) -> None:
    if "Could not allocate" in said or "No free space" in said:
        raise UsageError(
            f"disk.size is {resources.size_text(size)}, and what goes on it does not fit",
            hint="make disk.size larger",
        ) from None


def plan(
    size: int, slot: int = 0, platform: Platform = PLATFORMS[platforms.DEFAULT]
) -> tuple[Partition, ...]:
    """The partitions of a disk of ``size`` bytes, the root last: it is the one that grows with a larger disk.

    With ``slot`` bytes, there are two for environments, so that an update can be written beside what runs. The last
    MiB of the disk is in none: its last 33 sectors are the backup of the partition table.
    """
    found = [Partition(name="esp", start=ESP_START, size=ESP_SIZE, kind=_ESP_TYPE)]
    if "bios" in platform.firmware:
        found.insert(0, Partition(name="bios", start=BIOS_START, size=BIOS_SIZE, kind=_BIOS_TYPE))
    start = ROOT_START
    for name in ENVIRONMENTS if slot else ():
        found.append(Partition(name=name, start=start, size=slot // SECTOR, kind=_LINUX_TYPE))
        start += slot // SECTOR
    length = (size - MIB) // SECTOR - start
    found.append(Partition(name="root", start=start, size=length, kind=platform.root_type))
    return tuple(found)


def require_room(size: int, need: int) -> None:
    """Raise UsageError when that cannot fit: ext4 keeps about a tenth for its tables, journal and reserve."""
    if need > 0.9 * size:
        raise UsageError(
            f"disk.size is {resources.size_text(size)}, and what goes on it takes {resources.size_text(need)} of it",
            hint="make disk.size larger; the machine needs room for its own data too",
        )


def require_slot(size: int, slot: int) -> None:
    """Raise UsageError when environments of ``size`` bytes do not fit in a partition of ``slot`` bytes."""
    if size > slot:
        raise UsageError(
            f"disk.slot is {resources.size_text(slot)}, and the environments take {resources.size_text(size)}",
            hint="make disk.slot larger; each update needs room in it too",
        )


def partition(raw: Path, partitions: Sequence[Partition], identity: str) -> None:
    """Write a GPT whose GUIDs follow from ``identity``."""

    def guid(name: str) -> str:
        return str(uuid.uuid5(uuid.UUID(identity), name)).upper()

    script = [f"label: gpt\nlabel-id: {guid('disk')}"]
    script += [
        f"start={one.start}, size={one.size}, type={one.kind}, uuid={guid(one.name)}, name={one.name}"
        for one in partitions
    ]
    process.run(["sfdisk", "--quiet", raw], input="\n".join(script) + "\n")


# --- the root file system ---------------------------------------------------------------------------


def _root(
    raw: Path, trees: Sequence[Path], root: Partition, *, size: int, identity: str, epoch: int, work: Path
) -> None:
    """Write the trees, laid over each other, as ext4 into the root partition of ``raw``."""
    mounted, variables = namespace.script(work, trees)
    tools = E2fsprogs.choose(trees, epoch)
    command: list[process.Argument] = [
        *tools.command("mke2fs"),
        *("-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root", "-U", identity, "-O", _FEATURES),
        *("-E", f"offset={root.start * SECTOR},hash_seed={identity},lazy_itable_init=1,root_owner=0:0"),
        *("-d", "root", raw.absolute(), str(root.size * SECTOR // 4096)),
    ]
    try:
        process.run(
            namespace.isolated(mounted, command),
            env={**variables, **tools.settings},
            orphaned=signal.SIGKILL,
        )
    except CommandFailed as error:
        _refuse_full(error.output, size)
        raise


@dataclass(frozen=True, kw_only=True)
class E2fsprogs:
    """Programs for ext4: ``folder`` is where they are, ``loader`` the words that start them; and their environment."""

    loader: tuple[process.Argument, ...] = ()
    folder: Path | None = None
    settings: Mapping[str, str]

    def command(self, name: str) -> list[process.Argument]:
        """The words that start one of them."""
        return [*self.loader, self.folder / name if self.folder else process.find(name)]

    @classmethod
    def choose(cls, trees: Sequence[Path], epoch: int) -> E2fsprogs:
        """Those for a file system that holds ``trees``.

        The machine's own come first: they are in one of the locked packages, so every host writes the same bytes.
        They run here by their own loader and libraries. Where they are older than `REPRODUCIBLE`, the host's may be
        newer. ``epoch`` (seconds since 1970) is the time that they take for now.
        """
        settings = {
            "SOURCE_DATE_EPOCH": str(epoch),
            "E2FSPROGS_FAKE_TIME": str(epoch),
            "E2FSCK_TIME": str(epoch),
        }
        if file := next((one for tree in trees if (one := tree / "etc/mke2fs.conf").is_file()), None):
            settings["MKE2FS_CONFIG"] = str(file.resolve())
        host = cls(settings=settings)
        for tree in trees:
            loader = emulation.own_loader(tree)
            if loader and (tree / "usr/sbin/mke2fs").exists():
                own = cls(loader=loader, folder=tree.resolve() / "usr/sbin", settings=settings)
                if own.version() >= REPRODUCIBLE or host.version() < REPRODUCIBLE:
                    return own
                break
        return host

    def version(self) -> tuple[int, ...]:
        """Theirs, e.g. (1, 47, 2)."""
        return _version(tuple(map(str, self.command("mke2fs"))))


@functools.cache
def _version(mke2fs: tuple[str, ...]) -> tuple[int, ...]:
    said = process.run([*mke2fs, "-V"], check=False).stderr
    found = re.search(r"mke2fs (\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part or 0) for part in found.groups()) if found else (0,)


def squash(to: Path, trees: Sequence[Path], *, epoch: int, work: Path) -> None:
    """Write ``trees``, laid over each other (the uppermost first), as a squashfs file: a whole root file system.

    zstd: a disc is read more often than it is written, and slowly.
    """
    mounted, variables = namespace.script(work, trees)
    command: list[process.Argument] = ["mksquashfs", "root", to.resolve(), "-noappend", "-comp", "zstd"]
    command += ["-Xcompression-level", "9", "-b", "256K", "-no-progress", "-quiet"]
    process.run(
        namespace.isolated(mounted, command),
        env={**variables, "SOURCE_DATE_EPOCH": str(epoch)},
        orphaned=signal.SIGKILL,
    )


# --- boot loaders -----------------------------------------------------------------------------------


def loaders(
    to: Path,
    *,
    identity: str,
    epoch: int,
    platform: Platform = PLATFORMS[platforms.DEFAULT],
    grub: Path | None = None,
    system: Path | None = None,
) -> None:
    """Make the folder ``to`` with GRUB for a disk of that ``identity``: its core for BIOS, the EFI partition for UEFI.

    They find the root file system by its UUID, ``identity``; ``epoch`` is as `write` has it. GRUB is the host's, or for
    another ``platform`` that of its own packages, unpacked in ``grub``, which runs with the libraries of ``system``.
    """
    to.mkdir()
    early, efi, core, esp = (to / name for name in ("early.cfg", "boot.efi", _CORE, _ESP))
    early.write_text(render.text("boot/early.cfg.j2", uuid=identity), encoding="utf-8")
    common: list[process.Argument] = ["grub-mkimage"]
    if grub is not None:
        assert system is not None
        common = [
            *emulation.own_loader(system, grub),
            grub / "usr/bin/grub-mkimage",
            "-d",
            grub / "usr/lib/grub" / platform.efi,
        ]
    common += ["-c", early, "-p", "/boot/grub"]
    env = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    process.run([*common, "-O", platform.efi, "-o", efi, *_MODULES, "efi_gop"], env=env)
    if "bios" in platform.firmware:
        process.run([*common, "-O", "i386-pc", "-o", core, "biosdisk", *_MODULES], env=env)
    os.utime(efi, (epoch, epoch))
    with esp.open("wb") as file:
        file.truncate(ESP_SIZE * SECTOR)
    process.run(["mkfs.vfat", "--invariant", "-n", "ESP", "-i", identity[:8], esp], env=env)
    process.run(["mmd", "-i", esp, "::EFI", "::EFI/BOOT"], env=env)
    process.run(["mcopy", "-m", "-i", esp, efi, f"::EFI/BOOT/{platform.efi_file}"], env=env)
    for path in (early, efi):
        path.unlink()


def _install(boot: Path, raw: Path) -> None:
    """Write the boot loaders where firmware looks for them; the disk is new, and holes stay holes."""
    with raw.open("r+b") as disk, (boot / _ESP).open("rb") as esp:
        for start, end in extents(esp.fileno(), ESP_SIZE * SECTOR):
            disk.seek(ESP_START * SECTOR + start)
            disk.write(os.pread(esp.fileno(), end - start, start))
        if not (boot / _CORE).exists():
            return
        first, image = grub_bios(
            (GRUB / "i386-pc/boot.img").read_bytes(), (boot / _CORE).read_bytes(), first_sector=BIOS_START
        )
        if len(image) > BIOS_SIZE * SECTOR:
            raise BuildError(f"GRUB's core is {len(image)} bytes, larger than its partition")
        disk.seek(0)
        disk.write(first[:440])  # up to the partition table, which stays
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

"""A disk or USB stick: what it is, whether anything uses it, and an image written to it and read back.

Sources: the kernel's Documentation/admin-guide/abi-testing (``/sys/block``, ``/sys/dev/block``), proc_pid_mountinfo(5),
proc(5) for ``/proc/swaps``. What they do not show (another mount namespace, a file system of several disks) the kernel
itself refuses: a device is opened with O_EXCL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import hybrid, process, resources
from conda_appliance.errors import BuildError, UsageError

#: How much is written and read at once, in bytes.
_BLOCK = 4 << 20
#: What is cleared at the end of a device, in bytes: a GPT's second copy, or a RAID's label, would outlive the rest.
_TAIL = 1 << 20
#: ioctls of linux/fs.h: forget what is cached of a device; read its partition table again.
_BLKFLSBUF, _BLKRRPART = 0x1261, 0x125F


@dataclass(frozen=True, kw_only=True)
class Target:
    """What may be written to: a whole disk that nothing uses, or a plain file. ``size`` in bytes."""

    path: Path
    size: int
    about: str
    block: bool


def examine(device: Path, image: Path, *, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Target:
    """The target that ``device`` is for ``image``, if that may be written there at all.

    Raises UsageError saying why not: not there, a partition, too small, read-only, or in use (mounted, swap, part of a
    RAID, LVM or encrypted disk, the disk that this system runs from).
    """
    try:
        about, need = device.stat(), image.stat().st_size
    except OSError as error:
        raise UsageError(
            f"{error.filename}: {error.strerror}", hint="lsblk    lists the disks of this machine"
        ) from None
    if stat.S_ISREG(about.st_mode):
        return _plain_file(device, about, image, sys)
    if not stat.S_ISBLK(about.st_mode):
        raise UsageError(
            f"{device} is neither a disk nor a file", hint="lsblk    lists the disks of this machine"
        )
    node = (sys / "dev/block" / _number(about.st_rdev)).resolve()
    if (node / "partition").exists():
        raise UsageError(
            f"{device} is a partition, and a disc takes a whole disk",
            hint=f"name the disk it is on: /dev/{node.parent.name}",
        )
    if users := list(_users(node, sys, proc)):
        raise UsageError(
            f"{device} is in use and will not be written to: {'; '.join(users)}",
            hint="is it the disk you mean? lsblk -o NAME,SIZE,MODEL,MOUNTPOINTS    shows them; umount what is to go",
        )
    if _read(node / "ro") == "1":
        raise UsageError(f"{device} is read-only", hint="some sticks and cards have a switch for that")
    size = int(_read(node / "size") or 0) * 512
    if size < need:
        raise UsageError(
            f"{device} has {resources.size_text(size)}, and {image} needs {resources.size_text(need)}"
        )
    words = [_read(node / "device/vendor"), _read(node / "device/model"), resources.size_text(size)]
    if _read(node / "removable") == "1":
        words.append("removable")
    return Target(path=device, size=size, about=", ".join(filter(None, words)), block=True)


def write(image: Path, target: Target, progress: Callable[[str], None] = lambda _text: None) -> None:
    """Write ``image`` to ``target`` from its start, flush it to the medium, and read all of it back.

    Raises BuildError when the medium refuses a byte or gives back another one.
    """
    size = image.stat().st_size
    with _failing(target), _opened(target) as handle, image.open("rb") as source:
        done = 0
        while block := source.read(_BLOCK):
            _write_all(handle, block)
            done += len(block)
            progress(f"written {_share(done, size)}")
        if target.block and target.size > size:
            tail = min(_TAIL, target.size - size)
            os.lseek(handle, target.size - tail, os.SEEK_SET)
            _write_all(handle, bytes(tail))
        progress("flushing")
        os.fsync(handle)
        if target.block:
            fcntl.ioctl(handle, _BLKFLSBUF)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        _read_back(handle, image, target, progress)
        if target.block:
            with suppress(OSError):  # no partition table is no mistake here
                fcntl.ioctl(handle, _BLKRRPART)


def add_data(image: Path, target: Target, label: str) -> int:
    """Make what ``target`` has behind ``image``, which is written to it, a partition with an empty ext4 file system.

    Returns its size in bytes. Raises UsageError when there is no room for it, BuildError when the medium fails.
    """
    with _failing(target), _opened(target) as handle:
        try:
            sector, start, length = hybrid.with_data(
                os.pread(handle, hybrid.SECTOR, 0), size=image.stat().st_size, disk=target.size
            )
        except ValueError as error:
            raise UsageError(f"{target.path} gets no partition for data: {error}") from None
        os.pwrite(handle, sector, 0)
        os.fsync(handle)
    options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-L", label, "-E", f"offset={start}"]
    process.run(["mke2fs", *options, target.path, str(length // 4096)])
    with _failing(target), _opened(target) as handle, suppress(OSError):
        fcntl.ioctl(handle, _BLKRRPART)
    return length


def _read_back(handle: int, image: Path, target: Target, progress: Callable[[str], None]) -> None:
    size, at = image.stat().st_size, 0
    os.lseek(handle, 0, os.SEEK_SET)
    with image.open("rb") as source:
        while wanted := source.read(_BLOCK):
            found = b""
            while len(found) < len(wanted) and (more := os.read(handle, len(wanted) - len(found))):
                found += more
            if found != wanted:
                first = next(
                    (n for n, (a, b) in enumerate(zip(wanted, found, strict=False)) if a != b), len(found)
                )
                raise BuildError(
                    f"{target.path} does not give back what was written to it (from byte {at + first} on)",
                    hint="the medium is worn out or not as large as it says: use another one",
                )
            at += len(wanted)
            progress(f"read back {_share(at, size)}")


@contextmanager
def _opened(target: Target) -> Iterator[int]:
    # O_EXCL on a device: the kernel refuses one that anything holds, and lets nothing take it meanwhile.
    handle = os.open(target.path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if target.block else 0))
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _failing(target: Target) -> Iterator[None]:
    """Tell what the system refuses in words of our own."""
    try:
        yield
    except OSError as error:
        told = {
            errno.EBUSY: ("something uses it", "lsblk    shows what; umount it, or close what has it open"),
            errno.EACCES: ("you may not write to it", "run this as root, or with sudo"),
            errno.EPERM: ("you may not write to it", "run this as root, or with sudo"),
            errno.ENOSPC: ("it is full", "use a larger one"),
            errno.EIO: ("it fails to write or read", "the medium is damaged: use another one"),
        }
        what, hint = told.get(error.errno or 0, (error.strerror or str(error), ""))
        raise BuildError(f"{target.path} cannot be written: {what}", hint=hint) from error


def _write_all(handle: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(handle, view) :]


def _share(done: int, size: int) -> str:
    return f"{resources.size_text(done)} of {resources.size_text(size)} ({100 * done // max(size, 1)} %)"


def _plain_file(path: Path, about: os.stat_result, image: Path, sys: Path) -> Target:
    if os.path.samestat(about, image.stat()):
        raise UsageError(f"{path} is the disc itself")
    for backing in sorted(sys.glob("block/loop*/loop/backing_file")):
        if _read(backing) == str(path.resolve()):
            raise UsageError(
                f"{path} is in use and will not be written to: it is the disk /dev/{backing.parents[1].name}",
                hint=f"name that disk, or end it: losetup --detach /dev/{backing.parents[1].name}",
            )
    size = resources.size_text(about.st_size)
    return Target(path=path, size=about.st_size, about=f"a file of {size}", block=False)


def _users(node: Path, sys: Path, proc: Path) -> Iterator[str]:
    """What uses the disk ``node`` (a folder of /sys), its partitions, or what is made of them, in words."""
    mounts = list(_mounts(proc))
    swaps = set(_swaps(proc))
    for one in _above(node):
        number = _read(one / "dev")
        for mounted, source, place in mounts:
            if number in (mounted, source):
                yield f"{one.name} is mounted at {place}" + (
                    " (this system runs from it)" if place == "/" else ""
                )
        if number in swaps:
            yield f"{one.name} is swap space"
        for holder in sorted(one.glob("holders/*")):
            name = _read(holder.resolve() / "dm/name") or holder.name
            yield f"{one.name} is part of {name}"


def _above(node: Path) -> Iterator[Path]:
    """The disk, its partitions, and everything made of them."""
    yield node
    for partition in sorted(node.glob("*/partition")):
        yield from _above(partition.parent)
    for holder in sorted(node.glob("holders/*")):
        yield from _above(holder.resolve())


def _mounts(proc: Path) -> Iterator[tuple[str, str, str]]:
    """(device number, number of the device it names, place) of each mount. Several disks can be one file system."""
    for line in (proc / "self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        words = line.split()
        source = words[words.index("-") + 2] if "-" in words else ""
        yield words[2], _number_of(_unescaped(source)), _unescaped(words[4])


def _swaps(proc: Path) -> Iterator[str]:
    """The device numbers of what is swap space."""
    try:
        lines = (proc / "swaps").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return
    for line in lines:
        yield _number_of(_unescaped(line.split()[0]))


def _unescaped(text: str) -> str:
    """A path as /proc writes it: octal escapes for spaces and such."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _number_of(path: str) -> str:
    """``MAJOR:MINOR`` of a block device, and nothing for anything else."""
    try:
        about = os.stat(path) if path.startswith("/") else None  # noqa: PTH116 (a text, as /proc has it)
    except OSError:
        return ""
    return _number(about.st_rdev) if about is not None and stat.S_ISBLK(about.st_mode) else ""


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

"""What a tree of files holds, as text that can be hashed, kept and compared.

A line a path: type, mode, owner, size or target, SHA-256, extended attributes, modification time. Two trees
with the same listing give the same file system.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

#: Every path of a tree by its name from its root, sorted, with its lstat.
Paths = Sequence[tuple[str, os.stat_result]]

#: SHA-256 of files by inode and change time in nanoseconds: who has read one says so to who would read it next.
Sums = dict[tuple[int, int], str]

#: From this size on a file counts as a disk, mostly holes.
_DISK = 1 << 30
_BLOCK = 1 << 16
_ZEROES = bytes(_BLOCK)

#: How many differences a message names before it counts the rest.
SHOWN = 8


def walk(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below ``root`` by its name from there, sorted, with its lstat; ``.`` is the root itself."""
    yield ".", root.lstat()
    stack, above = [""], os.fspath(root)
    while stack:
        at = stack.pop()
        inner = []
        # By its handle the kernel need not look up the whole path for each name in it.
        handle = os.open(f"{above}/{at}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(handle) as entries:
                for entry in sorted(entries, key=_name):
                    path = at + entry.name
                    yield path, entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(f"{path}/")
        finally:
            os.close(handle)
        stack.extend(reversed(inner))


_name = operator.attrgetter("name")


def all_of(root: Path) -> Paths:
    """`walk`, or for one file that file as ``.``."""
    return list(walk(root)) if root.is_dir() else [(".", root.lstat())]


def listing(
    root: Path,
    *,
    times: bool = True,
    paths: Paths | None = None,
    known: Mapping[tuple[int, int], str] | None = None,
    sums: Sums | None = None,
) -> dict[str, str]:
    """Path → description for everything below ``root`` (a folder, or one file, whose path is ``.``).

    ``paths`` is `all_of` the root, where that has been asked already. ``known`` are files' descriptions by device and
    inode (`descriptions`), with their times; those files are not read again. Nor are those in ``sums``, all of which
    are of the root's file system.
    """
    paths = all_of(root) if paths is None else paths
    names = Counter((about.st_dev, about.st_ino) for _, about in paths if not stat.S_ISDIR(about.st_mode))
    known = known or {}
    found = {}
    for path, about in paths:
        inode = about.st_dev, about.st_ino
        links = names[inode]
        found[path] = (links < 2 and known.get(inode)) or describe(
            root if path == "." else f"{root}/{path}", about, times=times, links=links, sums=sums
        )
    return found


def descriptions(paths: Paths, listed: Mapping[str, str]) -> dict[tuple[int, int], str]:
    """What a listing says of files that have one name in it, by device and inode: a tree may share them."""
    return {
        (about.st_dev, about.st_ino): listed[path]
        for path, about in paths
        if stat.S_ISREG(about.st_mode) and path in listed and " links:" not in listed[path]
    }


def describe(
    path: str | Path,
    about: os.stat_result,
    *,
    times: bool = True,
    links: int = 1,
    sums: Sums | None = None,
) -> str:
    """One path in words, e.g. ``file 0644 0:0 12 sha256:ab…``; ``links`` are its names in the tree it is in."""
    mode, words = about.st_mode, []
    words.append(f"{_kind(mode)} {stat.S_IMODE(mode):04o} {about.st_uid}:{about.st_gid}")
    if stat.S_ISREG(mode):
        known = sums.get((about.st_ino, about.st_ctime_ns)) if sums and about.st_size < _DISK else None
        words.append(f"{about.st_size} {f'sha256:{known}' if known else _content(path, about.st_size)}")
        if links > 1:
            words.append(f"links:{links}")
    elif stat.S_ISLNK(mode):
        words.append(f"-> {os.readlink(path)!r}")  # noqa: PTH115 (pathlib would tidy ./ and // away)
    elif stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        words.append(f"{os.major(about.st_rdev)},{os.minor(about.st_rdev)}")
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        words.append(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}")
    if times:
        words.append(f"mtime:{int(about.st_mtime)}")
    return " ".join(words)


def _content(path: str | Path, size: int) -> str:
    """A file's SHA-256; a disk's is of the blocks that are not zero, with their numbers, so holes need no reading."""
    found = hashlib.sha256()
    # Neither pathlib nor hashlib.file_digest (it clears a buffer of 256 KiB): they double what a small file costs.
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        if size < _DISK:
            while block := file.read(min(size, 1 << 20) + 1):
                found.update(block)
            return f"sha256:{found.hexdigest()}"
        at = 0
        for start, end in extents(file.fileno(), size):
            at = max(at, start - start % _BLOCK)
            while at < end:
                block = os.pread(file.fileno(), _BLOCK, at)
                if block != _ZEROES[: len(block)]:
                    found.update(at.to_bytes(8, "little") + block)
                at += _BLOCK
        return f"blocks:{found.hexdigest()}"


def extents(handle: int, size: int) -> list[tuple[int, int]]:
    """Where a sparse file has data, as (start, end) in bytes (lseek(2), SEEK_DATA)."""
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(handle, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        at = os.lseek(handle, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


def _kind(mode: int) -> str:
    return {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "link",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "disk",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
    }[stat.S_IFMT(mode)]


def dump(found: Mapping[str, str]) -> str:
    """A listing as text, one line a path."""
    return "".join(f"{json.dumps(path)}\t{about}\n" for path, about in sorted(found.items()))


def load(text: str) -> dict[str, str]:
    """What `dump` wrote. Raises ValueError for anything else."""
    paths, found = [], []
    for line in text.splitlines():
        path, _, about = line.partition("\t")
        if not about:
            raise ValueError(f"not a line of a listing: {line[:80]!r}")
        paths.append(path)
        found.append(about)
    names: list[str] = json.loads(f"[{','.join(paths)}]")
    return dict(zip(names, found, strict=True))


def digest(text: str) -> str:
    """The SHA-256 of a listing as text (`dump`)."""
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """How two listings differ, a line each: ``missing: PATH``, ``extra: PATH`` or ``changed: PATH: A → B``."""
    found = []
    for path in sorted({*before, *after}):
        if path not in after:
            found.append(f"missing: {path}")
        elif path not in before:
            found.append(f"extra: {path}")
        elif before[path] != after[path]:
            found.append(f"changed: {path}: {before[path]} → {after[path]}")
    return found


def some(lines: Sequence[str]) -> str:
    """The first of many lines, and how many more there are."""
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def seen(paths: Paths) -> str:
    """The SHA-256 of what the file system says of each path (`all_of`) without reading any: inode, size, times.

    A file that is written, replaced, renamed or given another mode has another ctime, which no program sets. So the
    same answer means the same content, as git's index takes it; another one means: look closer.
    """
    facts = [
        f"{path!r} ({about.st_mode}, {about.st_ino}, {about.st_size}, {about.st_mtime_ns}, {about.st_ctime_ns})\n"
        for path, about in paths
    ]
    return hashlib.sha256("".join(facts).encode()).hexdigest()


def size(paths: Paths) -> int:
    """What paths take on disk, in bytes; holes and second names of a file take nothing."""
    return sum({about.st_ino: about.st_blocks * 512 for _, about in paths}.values())


def set_times(root: Path, epoch: int, *, newer_only: bool = False) -> None:
    """Give everything below ``root``, and itself, the modification time ``epoch`` (seconds since 1970).

    With ``newer_only``, only what is newer: what came with a package keeps the package's time.
    """
    paths = list(walk(root))
    for path, about in reversed(paths):  # a folder after what it holds
        if not newer_only or about.st_mtime > epoch:
            os.utime(root / path, (epoch, epoch), follow_symlinks=False)


def settle(folder: Path, epoch: int, settled: Set[str] = frozenset()) -> set[str]:
    """Give everything below ``folder``, and itself, its plain mode and one time.

    The files ``settled`` have them already: names from the folder on. Returns the names of all files and links.
    """
    found: set[str] = set()
    _settle(os.fspath(folder), "", epoch, settled, found)
    return found


def _settle(folder: str, at: str, epoch: int, settled: Set[str], found: set[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = at + entry.name
            if entry.is_dir(follow_symlinks=False):
                _settle(entry.path, f"{name}/", epoch, settled, found)
                continue
            found.add(name)
            if name not in settled:
                _settle_one(entry.path, entry.stat(follow_symlinks=False), epoch)
    _settle_one(folder, os.lstat(folder), epoch)  # a folder after what it holds


def _settle_one(path: str, about: os.stat_result, epoch: int) -> None:
    mode = 0o755 if stat.S_ISDIR(about.st_mode) or about.st_mode & 0o100 else 0o644
    if not stat.S_ISLNK(about.st_mode) and stat.S_IMODE(about.st_mode) != mode:
        os.chmod(path, mode)  # noqa: PTH101 (of every file: pathlib would double what it costs)
    if about.st_mtime_ns != epoch * 10**9:
        os.utime(path, (epoch, epoch), follow_symlinks=False)

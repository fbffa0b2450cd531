"""Trees of files → a squashfs whose bytes are put together while they are read: it is nowhere but where it is read to.

Nothing in it is compressed, so where everything lies follows from names and sizes. ``mksquashfs`` would have to write
such a file first, and whoever wants it in a disk to read it again: all of it would be moved once more than it need be.

Source: the Linux kernel's ``fs/squashfs/squashfs_fs.h`` and Documentation/filesystems/squashfs.rst (version 4.0).
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from conda_appliance import overlay
from conda_appliance.errors import BuildError
from conda_appliance.overlay import Added, Additions

#: Bytes of a file that stand together (a block), and of metadata.
_BLOCK, _META = 1 << 17, 1 << 13
#: What the whole is a multiple of: devices count in sectors, and end in one.
_PAGE = 1 << 12
#: What is not compressed says so: a block of data, a block of metadata.
_PLAIN_BLOCK, _PLAIN_META = 1 << 24, 1 << 15
#: Inodes, data, fragments and ids are not compressed; no fragments; exportable; no extended attributes.
_FLAGS = 0x0001 | 0x0002 | 0x0008 | 0x0010 | 0x0080 | 0x0200 | 0x0800
#: What a kernel must be able to unpack, although there is nothing to be: zlib, which needs no further words.
_ZLIB = 1
_NOWHERE = (1 << 64) - 1
_NO_FRAGMENT, _NO_ATTRIBUTES = (1 << 32) - 1, (1 << 32) - 1

#: Kinds of inodes; folders name the first of each two.
_FOLDER, _FILE, _LINK, _LONG_FOLDER, _LONG_FILE = 1, 2, 3, 8, 9
#: A folder's list: its size counts "." and ".."; a header is for so many names at most, whose inodes are that near.
_DOTS, _NAMES, _NEAR = 3, 256, (1 << 15) - 1

_SUPER = struct.Struct("<4sIIIIHHHHHHQQQQQQQQ")
_HEAD = struct.Struct("<HHHHII")
_IN_FOLDER = struct.Struct("<IIHHI")
_IN_LONG_FOLDER = struct.Struct("<IIIIHHI")
_IN_FILE = struct.Struct("<IIII")
_IN_LONG_FILE = struct.Struct("<QQQIIII")
_IN_LINK = struct.Struct("<II")
_LISTED = struct.Struct("<III")
_NAME = struct.Struct("<HhHH")


@dataclass(slots=True)
class _Inode:
    """Something in the file system: ``number`` is its own, from 1; ``at`` its place in the table, once written."""

    number: int
    about: os.stat_result
    path: str = ""
    names: int = 1
    start: int = 0
    at: int = -1
    inside: dict[bytes, _Inode] = field(default_factory=dict)


class Image:
    """The folder ``prefix`` of ``trees``, laid over each other (the uppermost first), as a squashfs (`sparse.Source`).

    All belongs to root; ``epoch`` (seconds since 1970) is its own time. Trees in ``known`` are not looked into again.
    Raises CannotAdd as `overlay.additions` does: for what is no file, folder or link, or has extended attributes.
    """

    def __init__(
        self,
        trees: Sequence[Path],
        prefix: str,
        *,
        epoch: int,
        known: Mapping[Path, overlay.Contents] | None = None,
    ) -> None:
        #: The parts that it consists of: where each begins, and its bytes or the file that has them.
        self._starts: list[int] = []
        self._parts: list[bytes | str] = []
        #: Its length in bytes.
        self.size = 0
        self._add(b"", _SUPER.size)
        found = overlay.additions(trees, frozenset(), known, only=prefix)
        root = self._tree(trees, found, prefix.strip("/") + "/")
        tables = _Tables()
        tables.write(root, root.number)
        head, tail = tables.finish(root, self.size, epoch)
        self._parts[0] = head
        tail += bytes(-(self.size + len(tail)) % _PAGE)
        self._add(tail, len(tail))

    def _add(self, part: bytes | str, length: int) -> None:
        self._starts.append(self.size)
        self._parts.append(part)
        self.size += length

    def _tree(self, trees: Sequence[Path], found: Additions, prefix: str) -> _Inode:
        """The folder ``prefix`` with all that is in it; the data of its files get their places."""
        names = [os.fspath(tree) for tree in trees]
        numbers = count(1)
        folders: dict[str, _Inode] = {}
        files: dict[tuple[int, int], _Inode] = {}
        for one in found.paths:
            if f"{one.path}/" == prefix:
                folders[one.path] = _Inode(next(numbers), one.about)
            if not one.path.startswith(prefix):
                continue
            inode = files.get((one.tree, one.about.st_ino)) if one.twin else None
            if inode is None:
                inode = self._inode(one, next(numbers), names[one.tree])
            else:
                inode.names += 1
            folder, _, name = one.path.rpartition("/")
            folders[folder].inside[os.fsencode(name)] = inode
            if stat.S_ISDIR(one.about.st_mode):
                folders[one.path] = inode
            elif stat.S_ISREG(one.about.st_mode):
                files.setdefault((one.tree, one.about.st_ino), inode)
        return folders[prefix[:-1]]

    def _inode(self, one: Added, number: int, tree: str) -> _Inode:
        inode = _Inode(number, one.about, f"{tree}/{one.path}", start=self.size)
        if stat.S_ISREG(one.about.st_mode) and one.about.st_size:
            self._add(inode.path, one.about.st_size)
        return inode

    def read_into(self, to: memoryview, at: int) -> int:
        """Fill ``to`` from that place; returns how much there was, and lays zeroes behind it. Threads may share it.

        Raises BuildError for a file that became shorter.
        """
        done, wanted = 0, min(len(to), max(0, self.size - at))
        number = bisect_right(self._starts, at) - 1
        while done < wanted:
            part = self._parts[number]
            inside = at + done - self._starts[number]
            number += 1
            end = self._starts[number] if number < len(self._starts) else self.size
            length = min(end - at - done, wanted - done)
            if isinstance(part, bytes):
                to[done : done + length] = part[inside : inside + length]
            else:
                _read(part, to[done : done + length], inside)
            done += length
        if done < len(to):
            to[done:] = bytes(len(to) - done)
        return done


def _read(path: str, to: memoryview, at: int) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        done = os.preadv(file, [to], at)
        while done < len(to):
            got = os.preadv(file, [to[done:]], at + done)
            if not got:
                raise BuildError(f"{path} became shorter while it was read", hint="run the build again")
            done += got
    finally:
        os.close(file)


class _Tables:
    """The tables behind the data: of inodes, and of what is in each folder."""

    def __init__(self) -> None:
        self._inodes = bytearray()
        self._lists = bytearray()
        #: Where each inode is, by its number.
        self._places: dict[int, int] = {}

    def write(self, folder: _Inode, parent: int) -> None:
        """Write what is in ``folder``, then its list, then itself. ``parent`` is the number of the folder around it."""
        below = 0
        for inode in folder.inside.values():
            if stat.S_ISDIR(inode.about.st_mode):
                self.write(inode, folder.number)
                below += 1
            elif inode.at < 0:
                self._write(inode, _link(inode) if stat.S_ISLNK(inode.about.st_mode) else _file(inode))
        at = len(self._lists)
        for part in _listed(folder):
            self._lists += part
        block, offset = divmod(at, _META)
        size, block = len(self._lists) - at + _DOTS, block * (_META + 2)
        if size < 1 << 16:
            body = _IN_FOLDER.pack(block, 2 + below, size, offset, parent)
            self._write(folder, (_FOLDER, body))
        else:
            body = _IN_LONG_FOLDER.pack(2 + below, size, block, parent, 0, offset, _NO_ATTRIBUTES)
            self._write(folder, (_LONG_FOLDER, body))

    def _write(self, inode: _Inode, said: tuple[int, bytes]) -> None:
        kind, body = said
        inode.at = len(self._inodes)
        block, offset = divmod(inode.at, _META)
        self._places[inode.number] = block * (_META + 2) << 16 | offset
        about = inode.about
        self._inodes += _HEAD.pack(kind, about.st_mode & 0o7777, 0, 0, int(about.st_mtime), inode.number)
        self._inodes += body

    def finish(self, root: _Inode, start: int, epoch: int) -> tuple[bytes, bytes]:
        """The first bytes of the file system, and its tables, which begin at ``start``."""
        inodes, lists = _metadata(self._inodes), _metadata(self._lists)
        places = [self._places[number] for number in sorted(self._places)]
        assert len(places) == max(self._places), "inodes are numbered from 1"
        tail, indexes = bytearray(inodes + lists), []
        # What is read by way of an index: the places of all inodes, for NFS; and the one owner, root.
        for table in (struct.pack(f"<{len(places)}Q", *places), struct.pack("<I", 0)):
            at, blocks = start + len(tail), -(-len(table) // _META)
            tail += _metadata(table)
            indexes.append(start + len(tail))
            tail += struct.pack(f"<{blocks}Q", *(at + number * (_META + 2) for number in range(blocks)))
        fragments = start + len(inodes) + len(lists)  # none, where they would be
        head = _SUPER.pack(
            *(b"hsqs", len(places), epoch, _BLOCK, 0, _ZLIB, _BLOCK.bit_length() - 1, _FLAGS, 1, 4, 0),
            *(self._places[root.number], start + len(tail), indexes[1], _NOWHERE),
            *(start, start + len(inodes), fragments, indexes[0]),
        )
        return head, bytes(tail)


def _file(inode: _Inode) -> tuple[int, bytes]:
    size = inode.about.st_size
    blocks = [_BLOCK | _PLAIN_BLOCK] * (size // _BLOCK)
    if rest := size % _BLOCK:
        blocks.append(rest | _PLAIN_BLOCK)
    sizes = struct.pack(f"<{len(blocks)}I", *blocks)
    if inode.names == 1 and inode.start < 1 << 32 and size < 1 << 32:
        return _FILE, _IN_FILE.pack(inode.start, _NO_FRAGMENT, 0, size) + sizes
    body = _IN_LONG_FILE.pack(inode.start, size, 0, inode.names, _NO_FRAGMENT, 0, _NO_ATTRIBUTES)
    return _LONG_FILE, body + sizes


def _link(inode: _Inode) -> tuple[int, bytes]:
    target = os.fsencode(os.readlink(inode.path))  # noqa: PTH115 (exactly)
    return _LINK, _IN_LINK.pack(1, len(target)) + target


def _listed(folder: _Inode) -> Iterator[bytes]:
    """What is in a folder, in the order of its names: parts, each a header and the names that it is for."""
    names = sorted(folder.inside)
    first = 0
    while first < len(names):
        base = folder.inside[names[first]]
        block = base.at // _META
        parts, last = [], first
        while last < len(names) and last - first < _NAMES:
            name = names[last]
            inode = folder.inside[name]
            away = inode.number - base.number
            if inode.at // _META != block or abs(away) > _NEAR:
                break
            mode = inode.about.st_mode
            kind = _FOLDER if stat.S_ISDIR(mode) else _LINK if stat.S_ISLNK(mode) else _FILE
            parts.append(_NAME.pack(inode.at % _META, away, kind, len(name) - 1) + name)
            last += 1
        yield _LISTED.pack(last - first - 1, block * (_META + 2), base.number) + b"".join(parts)
        first = last


def _metadata(table: bytes | bytearray) -> bytes:
    """A table in blocks, each with its length before it."""
    found = []
    for at in range(0, len(table), _META):
        part = bytes(table[at : at + _META])
        found += [struct.pack("<H", len(part) | _PLAIN_META), part]
    return b"".join(found)

"""A raw disk, and what belongs into it: where it has more than zeroes; written as a raw disk again.

A block of zeroes counts as a hole whether it is one or not, so what is written follows from the content alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from conda_appliance import direct
from conda_appliance.errors import BuildError
from conda_appliance.trees import extents

#: Bytes of a block, which is copied or left out as one.
BLOCK = 1 << 16
#: Bytes that a file in memory has or has not: a page.
PAGE = 1 << 12
_ZEROES = bytes(BLOCK)
#: Blocks that are copied at a time: what is read, summed up and written again stays in the processor's cache.
_TOGETHER = 16


class Source(Protocol):
    """Bytes that can be read at any place, by any number of threads: a file's, or such as are put together then."""

    @property
    def size(self) -> int:
        """How many they are."""

    def read_into(self, to: memoryview, at: int) -> int:
        """Fill ``to`` from that place; returns how much there was, and lays zeroes behind it."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a disk: ``at`` in bytes from its start, a multiple of `BLOCK`.

    It is a file, or bytes that are in none. Those, and a file that is ``packed`` (compressed in itself), count as data
    from the beginning to the end.
    One that is ``over`` the others takes their place where it has data, be it zeroes, and shows them where it has
    holes. It is a file in memory that keeps its holes (`keeps_holes`): disks may round those away.
    ``known`` is a file that says which of its blocks are not empty (`survey`).
    """

    source: Path | Source
    at: int
    over: bool = False
    packed: bool = False
    known: Path | None = None

    @property
    def path(self) -> Path:
        """The file that it is."""
        assert isinstance(self.source, Path)
        return self.source

    @property
    def taken(self) -> int:
        """What it takes, in bytes: holes of a file take nothing."""
        return self.source.stat().st_blocks * 512 if isinstance(self.source, Path) else self.source.size


#: Where a part of a block comes from: what has it, the place there, the place in the block, how many bytes.
_Part = tuple[Source, int, int, int]


class Block(NamedTuple):
    """A block of a disk that is not empty: its number there, and the parts that it consists of, in this order.

    ``size`` is less than `BLOCK` for the last one of a disk that ends within. ``piece`` is the number of the piece that
    all of it is from, or less than 0.
    """

    number: int
    parts: tuple[_Part, ...]
    size: int
    piece: int

    def read(self) -> bytearray:
        """Its bytes."""
        found = bytearray(self.size)
        with memoryview(found) as whole:
            self.read_into(whole)
        return found

    def read_into(self, to: memoryview) -> None:
        """Lay its bytes into ``to``, which is as long as it or longer."""
        if self.parts[0][2:] != (0, self.size):
            to[: self.size] = _ZEROES[: self.size]
        for file, at, start, length in self.parts:
            with to[start : start + length] as part:
                file.read_into(part, at)


@contextmanager
def opened(pieces: Sequence[Piece]) -> Iterator[tuple[int, list[Block]]]:
    """The size in bytes of the disk that ``pieces`` make up, and its blocks that are not empty, in their order.

    The first piece is the whole disk, as long as it; the others lie in it, and in their places it is empty, or they
    are ``over`` it. Raises BuildError for a disk whose size is no multiple of 512, or a piece that begins within a
    block.
    """
    with ExitStack() as stack:
        size = pieces[0].path.stat().st_size
        if size % 512 or any(piece.at % BLOCK for piece in pieces):
            raise BuildError(
                f"a disk of {size} bytes, pieces at {[piece.at for piece in pieces]}: not aligned"
            )
        taken: dict[int, list[_Part]] = {}
        covered: set[int] = set()
        numbers: dict[Source, int] = {}
        for number, piece in enumerate(pieces):
            source: Source
            places: Iterable[int]
            if isinstance(piece.source, Path):
                source = file = stack.enter_context(direct.Input(piece.source))
                places = _places(piece, file)
                if piece.over:
                    covered |= _lay_over(file, taken)
            else:
                source = piece.source
                places = range(0, source.size, BLOCK)
            numbers[source], length = number, source.size
            for place in places:
                taken[(piece.at + place) // BLOCK] = [(source, place, 0, min(BLOCK, length - place))]
        blocks = []
        for number in sorted(taken):
            parts = tuple(taken[number])
            of_one = numbers[parts[0][0]] if len(parts) == 1 else -1
            block = Block(number, parts, min(BLOCK, size - number * BLOCK), of_one)
            if number not in covered or not _is_empty(block.read()):
                blocks.append(block)
        yield size, blocks


def _lay_over(file: direct.Input, taken: dict[int, list[_Part]]) -> set[int]:
    """Add what a file that is over the others has to the blocks that they have; which blocks it is part of."""
    covered = set()
    for start, end in extents(file.file, os.fstat(file.file).st_size):
        at = start
        while at < end:
            until = min(end, at - at % BLOCK + BLOCK)
            part = (file, at, at % BLOCK, until - at)
            if until - at == BLOCK:
                taken[at // BLOCK] = [part]
            else:
                taken.setdefault(at // BLOCK, []).append(part)
            covered.add(at // BLOCK)
            at = until
    return covered


#: How `survey` writes the number of a block.
_NUMBER = struct.Struct("<I")


def survey(disk: Path) -> bytes:
    """Which blocks of a file are not empty, for `Piece.known`: of a file that is kept that need be asked once."""
    with direct.Input(disk) as file:
        return b"".join(_NUMBER.pack(place // BLOCK) for place in _data(file))


def _places(piece: Piece, file: direct.Input) -> Iterable[int]:
    if piece.over:
        return ()
    if piece.packed:
        return range(0, file.size, BLOCK)
    if piece.known is None:
        return _data(file)
    return [number * BLOCK for (number,) in _NUMBER.iter_unpack(piece.known.read_bytes())]


def _data(file: direct.Input) -> Iterator[int]:
    """Where the blocks of a file begin that hold more than zeroes."""
    after, size = 0, os.fstat(file.file).st_size
    with memoryview(direct.buffer(_TOGETHER * BLOCK)) as buffer:
        for start, end in extents(file.file, size):
            for first in range(max(after, start - start % BLOCK), end, len(buffer)):
                after = min(first + len(buffer), end + -end % BLOCK)
                count = file.read_into(buffer, first)
                for place in range(first, min(after, first + count), BLOCK):
                    with buffer[place - first : place - first + BLOCK] as block:
                        if block[:16] != _ZEROES[:16] or not _is_empty(block.tobytes()):
                            yield place


def _is_empty(data: bytes | bytearray) -> bool:
    return data == _ZEROES[: len(data)]


def runs(blocks: Sequence[Block]) -> Iterator[tuple[int, memoryview]]:
    """Blocks that follow each other on the disk, together: the first's number, and their bytes, until the next."""
    with memoryview(direct.buffer(_TOGETHER * BLOCK)) as buffer:
        at = 0
        while at < len(blocks):
            first, length = at, 0
            while (
                at < len(blocks)
                and at - first < _TOGETHER
                and blocks[at].number - blocks[first].number == at - first
            ):
                length += blocks[at].size
                at += 1
            _fill(blocks[first:at], buffer)
            with buffer[:length] as part:
                yield blocks[first].number, part


def _fill(blocks: Sequence[Block], buffer: memoryview) -> None:
    """Read ``blocks`` behind each other: those that follow each other in a file at once."""
    at = 0
    while at < len(blocks):
        first, (file, place, start, length) = at, blocks[at].parts[0]
        at += 1
        if len(blocks[first].parts) > 1 or (start, length) != (0, blocks[first].size):
            with buffer[first * BLOCK :] as to:
                blocks[first].read_into(to)
            continue
        while at < len(blocks) and blocks[at].parts == ((file, place + length, 0, blocks[at].size),):
            length += blocks[at].size
            at += 1
        with buffer[first * BLOCK : first * BLOCK + length] as to:
            file.read_into(to, place)


def keeps_holes(file: int) -> bool:
    """Whether a file in memory, which is empty, tells holes from data page by page.

    It does unless the kernel gives it huge pages (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
    """
    size = 64 << 20
    try:
        os.truncate(file, size)
        os.pwrite(file, b"x", size // 2 + PAGE)
        return extents(file, size) == [(size // 2 + PAGE, size // 2 + 2 * PAGE)]
    finally:
        os.truncate(file, 0)


def pages(file: int) -> Iterator[tuple[int, bytes]]:
    """The pages of a file that hold more than zeroes: the place of some that follow each other, and their bytes."""
    for start, end in extents(file, os.fstat(file).st_size):
        at = start - start % PAGE
        while at < end:
            data = os.pread(file, min(_TOGETHER * BLOCK, end - at), at)
            first = 0
            for place in range(0, len(data) + PAGE, PAGE):
                if place >= len(data) or _is_empty(data[place : place + PAGE]):
                    if first < min(place, len(data)):
                        yield at + first, data[first:place]
                    first = place + PAGE
            at += len(data)


def write(pieces: Sequence[Piece], files: Mapping[Path, bytes]) -> dict[Path, str]:
    """Write the disk that ``pieces`` make up (`opened`) to each of ``files``, and behind it the bytes named there.

    Returns the SHA-256 of each: the disk, whose holes count as well, is summed up once for all of them.
    """
    with opened(pieces) as (size, blocks), ExitStack() as stack:
        outs = [stack.enter_context(direct.Output(to)) for to in files]
        summed, at = hashlib.sha256(), 0
        for number, part in runs(blocks):
            _sum_zeroes(summed, number * BLOCK - at)
            at = number * BLOCK
            summed.update(part)
            for out in outs:
                out.put(part, at)
            at += len(part)
        _sum_zeroes(summed, size - at)
        digests = {}
        for out, (to, tail) in zip(outs, files.items(), strict=True):
            out.resize(size)
            out.put(tail, size)
            whole = summed.copy()
            whole.update(tail)
            digests[to] = whole.hexdigest()
        return digests


def put(file: int, data: bytes | memoryview, at: int) -> None:
    """Write all of ``data`` at that place."""
    with memoryview(data) as whole:
        done = 0
        while done < len(whole):
            with whole[done:] as rest:
                done += os.pwrite(file, rest, at + done)


def _sum_zeroes(summed: hashlib._Hash, count: int) -> None:
    while count > 0:
        part = min(count, BLOCK)
        summed.update(_ZEROES[:part])
        count -= part

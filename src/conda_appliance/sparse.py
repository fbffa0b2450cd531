"""A raw disk, and files that belong into it: where it has more than zeroes; written as a raw disk again.

A block of zeroes counts as a hole whether it is one or not, so what is written follows from the content alone.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from conda_appliance.errors import BuildError
from conda_appliance.trees import extents

#: Bytes of a block, which is copied or left out as one.
BLOCK = 1 << 16
_ZEROES = bytes(BLOCK)
#: Blocks that are copied at a time.
_TOGETHER = 16


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A file that is part of a disk: ``at`` in bytes from its start, a multiple of `BLOCK`."""

    path: Path
    at: int


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a disk: its number there, and the bytes (``start`` to ``end`` of ``view``), perhaps less than all."""

    number: int
    view: mmap.mmap
    start: int
    end: int


@contextmanager
def opened(pieces: Sequence[Piece]) -> Iterator[tuple[int, list[Block]]]:
    """The size in bytes of the disk that ``pieces`` make up, and its blocks that are not empty, in their order.

    The first piece is the whole disk, as long as it; the others lie in it, and in their places it is empty. Raises
    BuildError for a disk whose size is no multiple of 512, or a piece that begins within a block.
    """
    with ExitStack() as stack:
        taken: dict[int, Block] = {}
        size = pieces[0].path.stat().st_size
        if size % 512 or any(piece.at % BLOCK for piece in pieces):
            raise BuildError(
                f"a disk of {size} bytes, pieces at {[piece.at for piece in pieces]}: not aligned"
            )
        for piece in pieces:
            file = stack.enter_context(piece.path.open("rb"))
            view = stack.enter_context(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            for place in _data(file.fileno(), view):
                number = (piece.at + place) // BLOCK
                taken[number] = Block(number, view, place, min(place + BLOCK, len(view)))
        yield size, [taken[number] for number in sorted(taken)]


def _data(file: int, view: mmap.mmap) -> Iterator[int]:
    """Where the blocks of a file begin that hold more than zeroes."""
    after = 0
    for start, end in extents(file, len(view)):
        for place in range(max(after, start - start % BLOCK), end, BLOCK):
            after = place + BLOCK
            if view[place : place + 16] != _ZEROES[:16] or not _is_empty(view[place:after]):
                yield place


def _is_empty(data: bytes) -> bool:
    return data == _ZEROES[: len(data)]


def runs(blocks: Sequence[Block]) -> Iterator[tuple[int, memoryview]]:
    """Blocks that follow each other on the disk and in a file, together: the first's number, and their bytes."""
    at = 0
    while at < len(blocks):
        first = last = blocks[at]
        at += 1
        while at < len(blocks) and at % _TOGETHER:
            one = blocks[at]
            if (one.number, one.view, one.start) != (last.number + 1, first.view, last.end):
                break
            last = one
            at += 1
        with memoryview(first.view) as whole, whole[first.start : last.end] as part:
            yield first.number, part


def write(pieces: Sequence[Piece], files: Mapping[Path, bytes]) -> dict[Path, str]:
    """Write the disk that ``pieces`` make up (`opened`) to each of ``files``, and behind it the bytes named there.

    Returns the SHA-256 of each: the disk, whose holes count as well, is summed up once for all of them.
    """
    with opened(pieces) as (size, blocks), ExitStack() as stack:
        outs = [stack.enter_context(to.open("wb")) for to in files]
        summed, at = hashlib.sha256(), 0
        for number, part in runs(blocks):
            _sum_zeroes(summed, number * BLOCK - at)
            at = number * BLOCK
            summed.update(part)
            for out in outs:
                put(out.fileno(), part, at)
            at += len(part)
        _sum_zeroes(summed, size - at)
        digests = {}
        for out, (to, tail) in zip(outs, files.items(), strict=True):
            out.truncate(size)
            put(out.fileno(), tail, size)
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

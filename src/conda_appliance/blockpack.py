"""Blocks of a disk, each compressed by itself, on all processors; those of a disk that is kept, once.

That is how qcow2 and vmdk want them. Most of a disk is the disk that it began with (`sparse.Piece`), which builds
share: its compressed blocks are kept beside it, so that a form is made anew for little more than what changed.
"""

from __future__ import annotations

import os
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from conda_appliance import direct, sparse
from conda_appliance.sparse import BLOCK, Block, Piece

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["Codec", "compressed", "in_order", "keep", "zstd"]

_T = TypeVar("_T")

#: The kept blocks, one behind the other; and of each its number, its place there and its length.
_DATA, _INDEX = "blocks", "index"
_ENTRY = struct.Struct("<QQI")
#: How many blocks are compressed in one go.
_TOGETHER = 16


@dataclass(frozen=True)
class Codec:
    """A way to compress: ``name`` says all that decides its bytes, ``pack`` does it to a whole block."""

    name: str
    pack: Callable[[bytes], bytes]


def keep(disk: Path, codec: Codec, to: Path) -> None:
    """Compress the blocks of a raw disk, and keep them in the new folder ``to``."""
    to.mkdir()
    index = []
    with sparse.opened([Piece(source=disk, at=0)]) as (_, blocks), direct.Output(to / _DATA) as data:
        for block, packed in compressed(blocks, codec):
            assert packed is not None
            index.append(_ENTRY.pack(block.number, data.size, len(packed)))
            data.write(packed)
    (to / _INDEX).write_bytes(b"".join(index))


def compressed(
    blocks: Sequence[Block],
    codec: Codec,
    *,
    kept: Path | None = None,
    as_is: frozenset[int] = frozenset(),
) -> Iterator[tuple[Block, bytes | None]]:
    """Each block with its compressed bytes, in order; nothing for those of the pieces ``as_is``.

    ``kept`` is a folder that `keep` made of the first piece with the same ``codec``.
    """
    with ExitStack() as stack:
        index: dict[int, tuple[int, int]] = {}
        file = -1
        if kept is not None:
            file = stack.enter_context((kept / _DATA).open("rb")).fileno()
            entries = _ENTRY.iter_unpack((kept / _INDEX).read_bytes())
            index = {number: (at, length) for number, at, length in entries}

        def is_made(block: Block) -> bool:
            return block.piece in as_is or (block.piece == 0 and block.number in index)

        groups = [blocks[first : first + _TOGETHER] for first in range(0, len(blocks), _TOGETHER)]
        left = ([block for block in group if not is_made(block)] for group in groups)
        packed = in_order(partial(_pack, some, codec) if some else _nothing for some in left)
        for group, some in zip(groups, packed, strict=True):
            made = iter(some)
            for block in group:
                if block.piece in as_is:
                    yield block, None
                elif is_made(block):
                    at, length = index[block.number]
                    yield block, os.pread(file, length, at)
                else:
                    yield block, next(made)


def in_order(tasks: Iterable[Callable[[], _T]]) -> Iterator[_T]:
    """What ``tasks`` return, in their order, while threads are at some of those that follow."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="blocks") as pool:
        ahead: deque[Future[_T]] = deque()
        for task in tasks:
            ahead.append(pool.submit(task))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _nothing() -> list[bytes]:
    return []


def _pack(blocks: Sequence[Block], codec: Codec) -> list[bytes]:
    return [codec.pack(bytes(block.read().ljust(BLOCK, b"\0"))) for block in blocks]

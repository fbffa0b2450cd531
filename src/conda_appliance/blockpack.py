"""Blocks of a disk, each compressed by itself, on all processors; those of a disk that is kept, once.

That is how qcow2 and vmdk want them. Most of a disk is the disk that it began with (`sparse.Piece`), which builds
share: its compressed blocks are kept beside it, so that a form is made anew for little more than what changed.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import direct, sparse
from conda_appliance.sparse import BLOCK, Block, Piece

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
    with sparse.opened([Piece(path=disk, at=0)]) as (_, blocks), direct.Output(to / _DATA) as data:
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
    workers = os.cpu_count() or 1
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(workers, thread_name_prefix="blocks"))
        index: dict[int, tuple[int, int]] = {}
        file = -1
        if kept is not None:
            file = stack.enter_context((kept / _DATA).open("rb")).fileno()
            entries = _ENTRY.iter_unpack((kept / _INDEX).read_bytes())
            index = {number: (at, length) for number, at, length in entries}

        def is_made(block: Block) -> bool:
            return block.piece in as_is or (block.piece == 0 and block.number in index)

        ahead: deque[tuple[Sequence[Block], Future[list[bytes]] | None]] = deque()

        def done() -> Iterator[tuple[Block, bytes | None]]:
            group, future = ahead.popleft()
            made = iter(future.result() if future is not None else ())
            for block in group:
                if block.piece in as_is:
                    yield block, None
                elif is_made(block):
                    at, length = index[block.number]
                    yield block, os.pread(file, length, at)
                else:
                    yield block, next(made)

        for first in range(0, len(blocks), _TOGETHER):
            group = blocks[first : first + _TOGETHER]
            left = [block for block in group if not is_made(block)]
            ahead.append((group, pool.submit(_pack, left, codec) if left else None))
            if len(ahead) > 4 * workers:
                yield from done()
        while ahead:
            yield from done()


def _pack(blocks: Sequence[Block], codec: Codec) -> list[bytes]:
    return [codec.pack(bytes(block.read().ljust(BLOCK, b"\0"))) for block in blocks]

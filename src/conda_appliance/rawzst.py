"""A raw disk → the same compressed by zstd, on all processors and without reading its holes.

A file of several frames, one behind the other, is as good as one of one (RFC 8878, section 3); each says its length, so
programs that can may unpack them side by side. It is a hundredth larger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import groupby
from pathlib import Path

from conda_appliance import direct, sparse
from conda_appliance.blockpack import in_order, zstd
from conda_appliance.sparse import BLOCK, Block

#: Bytes of the disk in one frame: more than what zstd looks back at this level.
FRAME = 4 << 20
LEVEL = 3
#: What decides the bytes beside the disk.
CODEC = f"zstd {zstd.zstd_version} -{LEVEL}, frames of {FRAME}"
#: As the program zstd does it: a checksum of what is packed.
_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
}


def write(pieces: Sequence[sparse.Piece], to: Path) -> str:
    """Write the disk that ``pieces`` make up (`sparse.opened`); returns the SHA-256 of the file ``to``.

    The same content gives the same bytes. Raises BuildError as `sparse.opened` does.
    """
    with sparse.opened(pieces) as (size, blocks), direct.Output(to) as file:
        summed = hashlib.sha256()
        for packed in _frames(size, blocks):
            summed.update(packed)
            file.write(packed)
        return summed.hexdigest()


def _frames(size: int, blocks: Sequence[Block]) -> Iterator[bytes]:
    """The frames, in their order."""
    there = {
        number: list(group) for number, group in groupby(blocks, lambda one: one.number * BLOCK // FRAME)
    }

    def task(number: int) -> Callable[[], bytes]:
        length = min(FRAME, size - number * FRAME)
        found = there.get(number)
        return partial(_frame, number, length, found) if found else partial(_empty, length)

    return in_order(map(task, range(-(-size // FRAME))))


def _frame(number: int, length: int, blocks: Sequence[Block]) -> bytes:
    whole = bytearray(length)
    for first, part in sparse.runs(blocks):
        at = first * BLOCK - number * FRAME
        whole[at : at + len(part)] = part
    return zstd.compress(whole, options=_OPTIONS)


@cache
def _empty(length: int) -> bytes:
    return zstd.compress(bytes(length), options=_OPTIONS)

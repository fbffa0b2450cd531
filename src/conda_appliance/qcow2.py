"""A raw disk, and files that belong into it → a qcow2 image, not compressed: written once, from front to back.

What ``qemu-img convert`` does, but summed up on the way and with files laid into the disk. Source of the layout:
QEMU's docs/interop/qcow2.txt, version 3.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from conda_appliance import sparse

#: Bytes of a cluster: what QEMU itself takes. One that is empty takes no room.
_CLUSTER = sparse.BLOCK
_BITS = _CLUSTER.bit_length() - 1
#: Entries of a table that fills a cluster (8 bytes each); reference counts have 2 bytes.
_ENTRIES, _COUNTS = _CLUSTER // 8, _CLUSTER // 2
#: Set in an entry whose cluster is referred to once.
_COPIED = 1 << 63


def write(pieces: Sequence[sparse.Piece], to: Path) -> str:
    """Write the disk that ``pieces`` make up (`sparse.opened`); returns the SHA-256 of the file ``to``.

    The same content gives the same bytes. Raises BuildError as `sparse.opened` does.
    """
    with sparse.opened(pieces) as (size, blocks), to.open("wb") as file:
        summed, at = hashlib.sha256(), 0

        def put(data: bytes | memoryview) -> None:
            nonlocal at
            summed.update(data)
            sparse.put(file.fileno(), data, at)
            at += len(data)

        for table in _tables(size, [block.number for block in blocks]):
            put(table)
        for _, part in sparse.runs(blocks):
            put(part)
            put(bytes(-len(part) % _CLUSTER))
        return summed.hexdigest()


def _tables(size: int, numbers: Sequence[int]) -> Iterator[bytes]:
    """What stands before the data: header, reference counts, and where each of the clusters ``numbers`` is."""
    level2 = sorted({number // _ENTRIES for number in numbers})
    level1 = -(-size // (_CLUSTER * _ENTRIES))
    top = -(-level1 // _ENTRIES)
    counts = roots = 0
    while True:  # the counts have clusters too, which are counted
        total = 1 + roots + counts + top + len(level2) + len(numbers)
        need = -(-total // _COUNTS)
        if (counts, roots) == (need, -(-need // _ENTRIES)):
            break
        counts, roots = need, -(-need // _ENTRIES)
    first = 1 + roots + counts
    data = first + top + len(level2)
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        *(b"QFI\xfb", 3, 0, 0, _BITS, size, 0, level1, first * _CLUSTER),
        *(_CLUSTER, roots, 0, 0, 0, 0, 0, 4, 104),
    )
    yield head.ljust(_CLUSTER, b"\0")
    yield _table([(1 + roots + place) * _CLUSTER for place in range(counts)], roots)
    yield struct.pack(">H", 1) * total + bytes((counts * _COUNTS - total) * 2)
    upper = [0] * level1
    lower = {number: [0] * _ENTRIES for number in level2}
    for place, number in enumerate(level2):
        upper[number] = (first + top + place) * _CLUSTER | _COPIED
    for place, number in enumerate(numbers):
        lower[number // _ENTRIES][number % _ENTRIES] = (data + place) * _CLUSTER | _COPIED
    yield _table(upper, top)
    for number in level2:
        yield _table(lower[number], 1)


def _table(entries: Sequence[int], clusters: int) -> bytes:
    return struct.pack(f">{len(entries)}Q", *entries).ljust(clusters * _CLUSTER, b"\0")

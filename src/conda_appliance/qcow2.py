"""A raw disk, and files that belong into it → a qcow2 image.

What ``qemu-img convert`` does, but with files laid into the disk; not compressed, it is written once from front to back
and summed up on the way, and compressed, with what is kept compressed already. Source of the layout: QEMU's
docs/interop/qcow2.txt, version 3.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from conda_appliance import blockpack, direct, sparse
from conda_appliance.blockpack import Codec, zstd

#: Bytes of a cluster: what QEMU itself takes. One that is empty takes no room.
_CLUSTER = sparse.BLOCK
_BITS = _CLUSTER.bit_length() - 1
#: Entries of a table that fills a cluster (8 bytes each); reference counts have 2 bytes.
_ENTRIES, _COUNTS = _CLUSTER // 8, _CLUSTER // 2
#: Set in an entry whose cluster is referred to once; and in one whose data is compressed, where the number of sectors
#: that follow the first begins.
_COPIED, _COMPRESSED, _SECTORS = 1 << 63, 1 << 62, 62 - (_BITS - 8)
#: zstd's usual level, which is QEMU's.
_LEVEL = 3


def _deflate(data: bytes) -> bytes:
    """As QEMU's block/qcow2-threads.c does it: no header, a window of 4 KiB, as much memory as there is."""
    packer = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -12, 9)
    return packer.compress(data) + packer.flush()


#: How clusters are compressed: what a definition calls it → the number in the header, and the way.
CODECS = {
    "zlib": (0, Codec(f"deflate {zlib.ZLIB_RUNTIME_VERSION}", _deflate)),
    "zstd": (1, Codec(f"zstd {zstd.zstd_version} -{_LEVEL}", lambda data: zstd.compress(data, _LEVEL))),
}


def write(
    pieces: Sequence[sparse.Piece], to: Path, *, compression: str = "none", kept: Path | None = None
) -> str:
    """Write the disk that ``pieces`` make up (`sparse.opened`); returns the SHA-256 of the file ``to``.

    ``compression`` is ``none`` or one of `CODECS`; ``kept`` are compressed blocks of the first piece
    (`blockpack.keep`). The same content gives the same bytes. Raises BuildError as `sparse.opened` does.
    """
    if compression != "none":
        _write_compressed(pieces, to, compression, kept)
        return direct.sha256(to)
    with sparse.opened(pieces) as (size, blocks), direct.Output(to) as file:
        summed = hashlib.sha256()

        def put(data: bytes | memoryview) -> None:
            summed.update(data)
            file.write(data)

        for table in _tables(size, [block.number for block in blocks]):
            put(table)
        for _, part in sparse.runs(blocks):
            put(part)
            put(bytes(-len(part) % _CLUSTER))
        return summed.hexdigest()


def _write_compressed(pieces: Sequence[sparse.Piece], to: Path, compression: str, kept: Path | None) -> None:
    """The data behind the header, compressed clusters close to each other; the tables that find it behind the data."""
    kind, codec = CODECS[compression]
    as_is = frozenset(number for number, piece in enumerate(pieces) if piece.packed)
    with sparse.opened(pieces) as (size, blocks), direct.Output(to) as file:
        lower: dict[int, array[int]] = {}
        counts = array("H", [1])
        file.write(bytes(_CLUSTER))

        def put(data: bytes) -> int:
            """Write ``data``, and count it in each cluster that has some of it; returns where it is."""
            start = file.size
            file.write(data)
            last = (file.size - 1) // _CLUSTER
            counts.extend([0] * (last + 1 - len(counts)))
            for number in range(start // _CLUSTER, last + 1):
                counts[number] += 1
            return start

        def align() -> None:
            file.write(bytes(-file.size % _CLUSTER))

        for block, packed in blockpack.compressed(blocks, codec, kept=kept, as_is=as_is):
            if packed is None or len(packed) >= _CLUSTER:
                align()
                entry = put(bytes(block.read().ljust(_CLUSTER, b"\0"))) | _COPIED
            else:
                place = put(packed)
                entry = _COMPRESSED | ((file.size - 1) // 512 - place // 512) << _SECTORS | place
            table = lower.setdefault(block.number // _ENTRIES, array("Q", bytes(8 * _ENTRIES)))
            table[block.number % _ENTRIES] = entry
        align()
        upper = [0] * -(-size // (_CLUSTER * _ENTRIES))
        for number, table in lower.items():
            upper[number] = put(_table(table, 1)) | _COPIED
        place = put(_table(upper, -(-len(upper) // _ENTRIES)))
        blocks_of_counts = roots = 0
        while True:  # the counts have clusters too, which are counted
            total = len(counts) + blocks_of_counts + roots
            need = -(-total // _COUNTS)
            if (blocks_of_counts, roots) == (need, -(-need // _ENTRIES)):
                break
            blocks_of_counts, roots = need, -(-need // _ENTRIES)
        counts.extend([1] * (blocks_of_counts + roots))
        first = file.size
        said = struct.pack(f">{len(counts)}H", *counts)
        file.write(said.ljust(blocks_of_counts * _CLUSTER, b"\0"))
        file.write(_table([first + number * _CLUSTER for number in range(blocks_of_counts)], roots))
        file.put(_head(size, len(upper), place, first + blocks_of_counts * _CLUSTER, roots, kind), 0)


def _head(size: int, level1: int, upper: int, counts: int, roots: int, kind: int) -> bytes:
    """The header. With another compression than zlib (``kind``) it says so, and cannot be read without knowing that."""
    return struct.pack(
        ">4sIQIIQIIQQIIQQQQIIB7x",
        *(b"QFI\xfb", 3, 0, 0, _BITS, size, 0, level1, upper),
        *(counts, roots, 0, 0, (1 << 3) if kind else 0, 0, 0, 4, 112, kind),
    )


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
    yield _head(size, level1, first * _CLUSTER, _CLUSTER, roots, 0).ljust(_CLUSTER, b"\0")
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

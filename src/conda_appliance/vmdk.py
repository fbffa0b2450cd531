"""A raw disk, and files that belong into it → a streamOptimized vmdk, compressed on all processors.

What VMware's own tools write: grains behind each other, the tables that find them after those, and a footer. Source:
VMware, Virtual Disk Format 5.0, "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from conda_appliance import blockpack, direct, sparse
from conda_appliance.blockpack import Codec

_SECTOR = 512
#: Bytes of a grain, and how many of them one table finds.
_GRAIN, _TABLE = sparse.BLOCK, 512
#: The sectors of the header and the descriptor; what follows begins after a MiB's sixteenth.
_DESCRIPTOR, _DESCRIPTOR_SIZE, _OVERHEAD = 1, 20, 128
_END, _GRAIN_TABLE, _GRAIN_DIRECTORY, _FOOTER = range(4)
#: Where a header says that its directory is told by the footer.
_AT_END = (1 << 64) - 1
#: zlib's: a fortieth larger than its usual one, and made in six tenths of the time.
LEVEL = 4
CODEC = Codec(f"zlib {zlib.ZLIB_RUNTIME_VERSION} -{LEVEL}", partial(zlib.compress, level=LEVEL))

_TEXT = """# Disk DescriptorFile
version=1
CID={cid:08x}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW {sectors} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.adapterType = "lsilogic"
"""


def write(pieces: Sequence[sparse.Piece], to: Path, *, cid: int, kept: Path | None = None) -> str:
    """Write the disk that ``pieces`` make up (`sparse.opened`); returns the SHA-256 of the file ``to``.

    ``cid`` is its content id, 32 bits, neither 0 nor all ones. ``kept`` are compressed blocks of the first piece
    (`blockpack.keep` by `CODEC`). The same content and id give the same bytes. Raises BuildError as `sparse.opened`
    does.
    """
    with sparse.opened(pieces) as (size, blocks), direct.Output(to) as file:
        summed = hashlib.sha256()

        def put(data: bytes) -> None:
            padded = data + bytes(-len(data) % _SECTOR)
            summed.update(padded)
            file.write(padded)

        sectors = size // _SECTOR
        text = _TEXT.format(
            cid=cid, sectors=sectors, name=to.name, cylinders=min(65535, sectors // 255 // 63)
        )
        put(_header(sectors, _AT_END))
        put(text.encode().ljust(_DESCRIPTOR_SIZE * _SECTOR, b"\0"))
        put(bytes(_OVERHEAD * _SECTOR - file.size))
        directory = [0] * -(-sectors * _SECTOR // (_GRAIN * _TABLE))
        table: list[int] = []
        current = -1

        def close_table() -> None:
            if table:
                put(_marker(_GRAIN_TABLE, 4 * _TABLE))
                directory[current] = file.size // _SECTOR
                put(struct.pack(f"<{_TABLE}I", *table))

        for block, packed in blockpack.compressed(blocks, CODEC, kept=kept):
            assert packed is not None
            number = block.number
            if number // _TABLE != current:
                close_table()
                table, current = [0] * _TABLE, number // _TABLE
            table[number % _TABLE] = file.size // _SECTOR
            put(struct.pack("<QI", number * _GRAIN // _SECTOR, len(packed)) + packed)
        close_table()
        put(_marker(_GRAIN_DIRECTORY, 4 * len(directory)))
        place = file.size // _SECTOR
        put(struct.pack(f"<{len(directory)}I", *directory))
        put(_marker(_FOOTER, _SECTOR))
        put(_header(sectors, place))
        put(_marker(_END, 0))
        return summed.hexdigest()


def _header(sectors: int, directory: int) -> bytes:
    """The header, or the footer: flags say that newlines tell of a broken transfer, and that there are markers."""
    head = struct.pack(
        "<4sIIQQQQIQQQB4sH",
        *(b"KDMV", 3, 0x30001, sectors, _GRAIN // _SECTOR, _DESCRIPTOR, _DESCRIPTOR_SIZE, _TABLE),
        *(0, directory, _OVERHEAD, 0, b"\n \r\n", 1),
    )
    return head.ljust(_SECTOR, b"\0")


def _marker(kind: int, size: int) -> bytes:
    """What stands before a table of ``size`` bytes, in a sector of its own."""
    return struct.pack("<QII", -(-size // _SECTOR), 0, kind).ljust(_SECTOR, b"\0")

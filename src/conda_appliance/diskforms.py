"""A disk image → the files that hypervisors and clouds take.

qemu-img writes them. What it makes up each time (ids, a clock) follows here from the ``seed`` instead, a text that
names the disk: so the same disk gives the same bytes. The sources of each layout stand where it is read.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from conda_appliance import process, qcow2, rawzst, sparse, vmdk
from conda_appliance.blockpack import Codec
from conda_appliance.errors import BuildError

_SECTOR = 512
#: The namespace of all ids made here (RFC 4122, version 5).
_NAMESPACE = uuid.UUID("6f1c7f0a-3f6e-5d0b-9a53-2f6f1d0c7a11")

#: The forms whose conversion is qemu-img's alone, and its words for each.
_QEMU = {
    # force_size: the size is what it is, and no product of cylinders, heads and sectors.
    "vhd": ("vpc", "-o", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx", "-o", "subformat=dynamic"),
    "vdi": ("vdi",),
}

#: The forms that are the disk itself, and those that are made of its blocks.
RAW, BLOCKS = ("raw", "vhd"), ("qcow2", "vmdk", "raw.zst")
#: The forms that are made of a raw disk alone.
FROM_RAW = (*RAW, "vmdk", "raw.zst", "gce")
#: pigz's level: a fortieth larger than its usual one, and made in six tenths of the time.
_GZIP = "-4"


def words(form: str, compression: str = "zstd") -> list[str]:
    """What decides how a form is written: qemu-img's words, or those of the program that packs it.

    qcow2: zstd takes a quarter of zlib's time for the same size; read by QEMU 5.1 and later. Where QEMU writes it,
    clusters are written in their order (no -W), or each run would give other bytes.
    """
    if form == "qcow2":
        packed = [] if compression == "none" else ["-c", "-o", f"compression_type={compression}"]
        return ["-O", "qcow2", *packed]
    if form in _QEMU:
        return ["-O", *_QEMU[form]]
    return {
        "raw": ["-O", "raw", "-S", "64k"],
        "vmdk": ["streamOptimized", vmdk.CODEC.name],
        "raw.zst": [rawzst.CODEC],
        "gce": ["tar", "--format=oldgnu", "--sparse", "--hole-detection=raw", f"pigz -n {_GZIP} -p"],
    }[form]


def codec(form: str, compression: str) -> Codec | None:
    """How the blocks of a form are compressed one by one: `blockpack.keep` can keep some for `write_blocks`."""
    if form == "vmdk":
        return vmdk.CODEC
    return qcow2.CODECS[compression][1] if form == "qcow2" and compression != "none" else None


def write(disk: Path, form: str, to: Path, *, seed: str, epoch: int, compression: str = "zstd") -> None:
    """Write ``disk`` (any format that QEMU reads, with its backing files) as the file ``to``, by another program.

    ``seed`` is what its ids follow from, ``epoch`` (seconds since 1970) its time stamps. ``gce`` wants a
    raw disk; the other forms of `FROM_RAW` are written by `write_raw` and `write_blocks`. Raises CommandFailed as
    `process.run` does, BuildError for a file that is not laid out as expected.
    """
    if form == "gce":
        _gce(disk, to, epoch)
    else:
        process.run(["qemu-img", "convert", *words(form, compression), disk, to])
        if form in _SETTLE:
            with to.open("r+b") as file:
                _SETTLE[form](file.fileno(), seed, epoch)


def write_raw(
    pieces: Sequence[sparse.Piece], files: Mapping[str, Path], *, seed: str, epoch: int
) -> list[str]:
    """Write the raw disk that ``pieces`` make up (`sparse.opened`) in some `RAW` forms, by their files.

    ``seed`` and ``epoch`` are as `write` has them. Returns each one's SHA-256. Raises as `sparse.opened` does.
    """
    size = pieces[0].path.stat().st_size
    tails = {to: _footer(to, size, seed, epoch) if form == "vhd" else b"" for form, to in files.items()}
    return list(sparse.write(pieces, tails).values())


def _footer(to: Path, size: int, seed: str, epoch: int) -> bytes:
    """What a fixed vhd has behind the disk: QEMU makes it, of one that is empty, in the place of ``to``."""
    process.run(["qemu-img", "create", "-q", "-f", *_QEMU["vhd"], to, str(size)])
    with to.open("r+b") as file:
        _vhd(file.fileno(), seed, epoch)
        file.seek(-_SECTOR, os.SEEK_END)
        return file.read()


def write_blocks(
    pieces: Sequence[sparse.Piece],
    form: str,
    to: Path,
    *,
    seed: str,
    compression: str = "zstd",
    kept: Path | None = None,
) -> str:
    """Write the raw disk that ``pieces`` make up (`sparse.opened`) as one of `BLOCKS`.

    ``seed`` and ``compression`` are as `write` has them; ``kept`` are compressed blocks of the first piece, by `codec`.
    Returns its SHA-256. Raises as `sparse.opened` does.
    """
    if form == "qcow2":
        return qcow2.write(pieces, to, compression=compression, kept=kept)
    if form == "raw.zst":
        return rawzst.write(pieces, to)
    # ffffffff means "no parent", and 0 is no id.
    return vmdk.write(pieces, to, cid=_id(seed, "vmdk").int % 0xFFFFFFFE + 1, kept=kept)


def _gce(disk: Path, to: Path, epoch: int) -> None:
    """A gzipped tar with ``disk.raw`` in it.

    Source: https://cloud.google.com/compute/docs/import/import-existing-image#requirements_for_the_image_file (the
    name, ``--format=oldgnu``, gzip, whole GiB). Of a file with holes they are found by reading, so that they are the
    same wherever a file system had them.
    """
    # One processor's pigz would write in another way; two do on any machine.
    pack = f"pigz -n {_GZIP} -p {max(2, os.cpu_count() or 1)}"
    about = ["--owner=0", "--group=0", "--numeric-owner", "--mode=0644", f"--mtime=@{epoch}"]
    process.run(
        [
            *("tar", "--create", "--format=oldgnu", "--sparse", "--hole-detection=raw", "--dereference"),
            *(*about, f"--use-compress-program={pack}", "--absolute-names", "--transform=s,.*,disk.raw,"),
            *("--file", to, disk),
        ]
    )


# --- ids and clocks that follow from the disk ---------------------------------------------------------


def _id(seed: str, name: str) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, f"{seed}/{name}")


def _vhd(file: int, seed: str, epoch: int) -> None:
    """The time stamp and the id in the footer, and its checksum.

    Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0, "Hard Disk Footer Format": big-endian; the
    seconds since 2000 at 24, the checksum at 64 (the one's complement of the sum of all other bytes), the id at 68.
    """
    at = os.fstat(file).st_size - 512
    footer = bytearray(os.pread(file, 512, at))
    if footer[:8] != b"conectix":
        raise BuildError("qemu-img wrote a vhd without a footer at its end")
    struct.pack_into(">I", footer, 24, max(0, epoch - 946_684_800))
    footer[68:84] = _id(seed, "vhd").bytes
    footer[64:68] = bytes(4)
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    os.pwrite(file, footer, at)


def _vdi(file: int, seed: str, _epoch: int) -> None:
    """The ids of the image and of its last change.

    Source: VirtualBox's ``include/VBox/vd.h`` and QEMU's ``block/vdi.c``: after 64 bytes of text the signature
    0xbeda107f; the ids at 392 and 408.
    """
    if os.pread(file, 4, 64) != struct.pack("<I", 0xBEDA107F):
        raise BuildError("qemu-img wrote a vdi without its signature")
    os.pwrite(file, _id(seed, "vdi").bytes_le + _id(seed, "vdi change").bytes_le, 392)


#: Where a vhdx has its two headers and its table of regions; each is 64 KiB or less.
_HEADERS, _REGIONS = (64 << 10, 128 << 10), 192 << 10
_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_PAGE_83 = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")


def _vhdx(file: int, seed: str, _epoch: int) -> None:
    """The ids in both headers and of the disk, the headers' numbers and checksums; the log, which is done with.

    Source: Microsoft, MS-VHDX, "Headers" (signature, CRC-32C over 4 KiB, sequence number, file and data write GUIDs;
    the log's GUID at 48, its length at 68 and place at 72), "Region Table", "Metadata Region" and "Page 83 Data". A log
    whose GUID is zero is not replayed.
    """
    for number, at in enumerate(_HEADERS):
        head = bytearray(os.pread(file, 4096, at))
        length, place = struct.unpack_from("<IQ", head, 68)
        if head[:4] != b"head" or any(head[48:64]):
            raise BuildError("qemu-img wrote a vhdx whose log is not done with")
        struct.pack_into("<Q", head, 8, number + 1)
        head[16:48] = _id(seed, "vhdx file").bytes_le + _id(seed, "vhdx data").bytes_le
        head[4:8] = bytes(4)
        struct.pack_into("<I", head, 4, crc32c(bytes(head)))
        os.pwrite(file, head, at)
        os.pwrite(file, bytes(length), place)
    regions = os.pread(file, 64 << 10, _REGIONS)
    metadata = _entry(regions, 16, _METADATA)[0]
    table = os.pread(file, 64 << 10, metadata)
    page = struct.unpack_from("<I", table, table.index(_PAGE_83.bytes_le, 32) + 16)[0]
    os.pwrite(file, _id(seed, "vhdx disk").bytes_le, metadata + page)


def _entry(table: bytes, start: int, kind: uuid.UUID) -> tuple[int, int]:
    """The place and length of a region in a table of them: 16 bytes of kind, 8 of place, 4 of length."""
    place, length = struct.unpack_from("<QI", table, table.index(kind.bytes_le, start) + 16)
    return place, length


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4). 4 KiB are all that is ever summed up here."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return ~crc & 0xFFFFFFFF


_SETTLE: dict[str, Callable[[int, str, int], None]] = {
    "vhd": _vhd,
    "vhdx": _vhdx,
    "vdi": _vdi,
}

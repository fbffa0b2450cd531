"""What makes an ISO 9660 disc start a machine: from a CD and from a stick, by BIOS and by UEFI. Pure: bytes in and out.

A CD's firmware reads the El Torito catalog, which names an image for BIOS (GRUB's, made by ``grub-mkimage -O
i386-pc-eltorito``) and one for UEFI (a FAT file system with ``EFI/BOOT/BOOTX64.EFI``). A stick's BIOS runs the first
sector, which has to find GRUB's image on the disc; a stick's UEFI looks for a partition of the type 0xEF.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: A sector of a disc and of a disk, in bytes.
CD_SECTOR, SECTOR = 2048, 512
_MIB = 1 << 20
#: Disk sectors in one of a disc.
_RATIO = CD_SECTOR // SECTOR
#: Sectors of GRUB's image before the code that loads the rest of it: the program for CDs (cdboot.img).
_CDBOOT = 4
#: Where a master boot record has its code's end, its disk signature and its partition table.
_CODE, _SIGNATURE, _TABLE = 440, 440, 446


@dataclass(frozen=True, kw_only=True)
class Boot:
    """What starts a machine from a disc: ``bios`` and ``efi`` are the places of the two images on the disc.

    ``mbr`` is the first sector's code for sticks (GRUB's boot_hybrid.img), ``identity`` the disk's signature, 4 bytes.
    """

    bios: str
    efi: str
    mbr: bytes
    identity: bytes


def bios_image(image: bytes, *, sector: int) -> bytes:
    """GRUB's image for BIOS, told where it stands on the disc: ``sector`` counts the disc's, of 2048 bytes.

    Bytes 8 to 63 are the boot information table (mkisofs's ``-boot-info-table``: the sector of the volume descriptor,
    the image's sector, its length, the sum of its 32-bit words from byte 64). At 2548 stands, counted in sectors of
    512 bytes, where the rest of GRUB begins: libisofs's ``Libisofs_grub2_elto_patch_pos``, what xorriso's
    ``--grub2-boot-info`` writes.
    """
    made = bytearray(image)
    struct.pack_into("<Q", made, SECTOR * (_CDBOOT + 1) - 12, sector * _RATIO + _CDBOOT + 1)
    body = bytes(made[64:]) + bytes(-len(made) % 4)
    total = sum(word for (word,) in struct.iter_unpack("<I", body)) & 0xFFFFFFFF
    struct.pack_into("<4I40x", made, 8, 16, sector, len(made), total)
    return bytes(made)


def mbr(
    code: bytes, *, bios_sector: int, efi_sector: int, efi_size: int, size: int, identity: bytes
) -> bytes:
    """The first sector of a disc of ``size`` bytes that is also a stick; sectors count the disc's, of 2048 bytes.

    At 0x1B0 GRUB's code reads where its image's own loader is (libisofs's ``Libisofs_grub2_mbr_patch_pos``; xorriso's
    ``--grub2-mbr``). The first partition covers the disc, so that it can be mounted beside others on the stick; its
    type is 0, because UEFI refuses partitions that overlap, and skips those (Debian's sticks have the same). The second
    is the image for UEFI, ``efi_size`` bytes long. ``identity`` is the disk's signature, 4 bytes.
    """
    sector = bytearray(SECTOR)
    sector[:_CODE] = code[:_CODE]
    struct.pack_into("<Q", sector, 0x1B0, bios_sector * _RATIO + _CDBOOT)
    sector[_SIGNATURE : _SIGNATURE + 4] = identity[:4]
    entries = [
        _entry(0, size // SECTOR, kind=0x00, active=True),
        _entry(efi_sector * _RATIO, -(-efi_size // SECTOR), kind=0xEF),
    ]
    for number, entry in enumerate(entries):
        sector[_TABLE + 16 * number : _TABLE + 16 * (number + 1)] = entry
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def with_data(sector: bytes, *, size: int, disk: int) -> tuple[bytes, int, int]:
    """The first sector of a stick of ``disk`` bytes with a third partition behind a disc of ``size`` bytes.

    Returns it, and where the partition begins and how long it is, in bytes. Raises ValueError when there is no room for
    16 MiB, or the disc is none that `mbr` made for sticks.
    """
    start = -(-size // _MIB) * _MIB
    length = min(disk // _MIB * _MIB - start, 0xFFFFFFFF * SECTOR // _MIB * _MIB)
    if length < 16 * _MIB:
        raise ValueError("there is no room behind the disc")
    if sector[510:512] != b"\x55\xaa" or any(sector[_TABLE + 32 : 510]):
        raise ValueError("it is no disc that starts from a stick, or there is a third partition already")
    made = bytearray(sector)
    made[_TABLE + 32 : _TABLE + 48] = _entry(start // SECTOR, length // SECTOR, kind=0x83)
    return bytes(made), start, length


def _entry(start: int, count: int, *, kind: int, active: bool = False) -> bytes:
    """A line of a partition table, in sectors of 512 bytes; cylinders and heads say "beyond what they can tell"."""
    beyond = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", 0x80 if active else 0, beyond, kind, beyond, start, count)

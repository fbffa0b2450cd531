"""A disc that starts machines: what firmware reads of it, byte by byte."""

from __future__ import annotations

import struct

import pytest

from conda_appliance import hybrid


def test_grubs_image_is_told_where_on_the_disc_it_stands() -> None:
    image = bytes(range(256)) * 20 + b"tail"
    made = hybrid.bios_image(image, sector=39)
    descriptor, sector, length, total = struct.unpack_from("<4I", made, 8)
    assert (descriptor, sector, length) == (16, 39, len(image))
    body = made[64:] + bytes(-len(made) % 4)
    assert total == sum(struct.unpack(f"<{len(body) // 4}I", body)) & 0xFFFFFFFF
    assert made[24:64] == bytes(40)
    (rest,) = struct.unpack_from("<Q", made, 2548)
    assert rest == 39 * 4 + 5, (
        "what follows the program for CDs (four sectors of 512 bytes) and the loader (one)"
    )
    changed = {at for at, (old, new) in enumerate(zip(image, made, strict=True)) if old != new}
    assert changed <= {*range(8, 64), *range(2548, 2556)}


def test_a_sticks_first_sector_has_grubs_code_and_both_partitions() -> None:
    code = bytes([0xEB]) + bytes(range(1, 256)) + bytes(184)
    made = hybrid.mbr(
        code, bios_sector=39, efi_sector=118, efi_size=4 << 20, size=200 << 20, identity=b"\x01\x02\x03\x04"
    )
    assert len(made) == 512 and made[510:] == b"\x55\xaa"
    assert struct.unpack_from("<Q", made, 0x1B0) == (39 * 4 + 4,)
    assert made[:0x1B0] == code[:0x1B0]
    assert made[440:444] == b"\x01\x02\x03\x04"
    whole = struct.unpack_from("<B3xB3xII", made, 446)
    efi = struct.unpack_from("<B3xB3xII", made, 462)
    assert whole == (0x80, 0x00, 0, (200 << 20) // 512), "active for old BIOSes, of no type for UEFI"
    assert efi == (0, 0xEF, 118 * 4, (4 << 20) // 512)
    assert made[478:510] == bytes(32)


def test_a_stick_gets_a_third_partition_behind_the_disc() -> None:
    first = hybrid.mbr(
        bytes(512), bios_sector=39, efi_sector=118, efi_size=1 << 22, size=1 << 28, identity=b"abcd"
    )
    size, disk = (1 << 28) + 2048, 1 << 30
    made, start, length = hybrid.with_data(first, size=size, disk=disk)
    assert start == (1 << 28) + (1 << 20), "on a whole MiB behind it"
    assert start + length == disk
    assert struct.unpack_from("<B3xB3xII", made, 478) == (0, 0x83, start // 512, length // 512)
    assert (made[:478], made[494:]) == (first[:478], first[494:])


@pytest.mark.parametrize(
    ("sector", "size", "said"),
    [
        (bytes(510) + b"\x55\xaa", 1 << 30, "no room"),
        (bytes(510) + b"\x55\xaa", (1 << 30) - (15 << 20), "no room"),
        (bytes(512), 1 << 20, "no disc that starts from a stick"),
        (bytes(480) + b"x" + bytes(29) + b"\x55\xaa", 1 << 20, "a third partition already"),
    ],
)
def test_where_there_is_no_place_for_one_it_says_why(sector: bytes, size: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hybrid.with_data(sector, size=size, disk=1 << 30)

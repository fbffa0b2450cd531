"""Where things stand on a disk, and how GRUB's two halves find each other."""

import itertools
import struct

import pytest

from conda_appliance import disk, diskforms
from conda_appliance.disk import grub_bios


def test_the_partitions_follow_each_other_on_mebibytes() -> None:
    mebibyte = disk.MIB // disk.SECTOR
    assert disk.BIOS_START + disk.BIOS_SIZE <= disk.ESP_START
    assert disk.ESP_START + disk.ESP_SIZE <= disk.ROOT_START
    assert [start % mebibyte for start in (disk.BIOS_START, disk.ESP_START, disk.ROOT_START)] == [0] * 3


@pytest.mark.parametrize("size", [1 << 30, (1 << 30) + disk.MIB, 16 << 40])
@pytest.mark.parametrize("slot", [0, 64 * disk.MIB])
def test_the_root_partition_ends_before_the_backup_of_the_partition_table(size: int, slot: int) -> None:
    root = disk.plan(size, slot)[-1]
    end = root.start + root.size
    assert root.name == "root"
    assert size // disk.SECTOR - end == disk.MIB // disk.SECTOR
    assert end % (disk.MIB // disk.SECTOR) == 0


def test_two_slots_of_the_same_size_stand_before_the_root_that_grows() -> None:
    plain, split = disk.plan(4 << 30), disk.plan(4 << 30, 256 * disk.MIB)
    assert [one.name for one in plain] == ["bios", "esp", "root"]
    assert [one.name for one in split] == ["bios", "esp", *disk.ENVIRONMENTS, "root"]
    assert {one.size * disk.SECTOR for one in split[2:4]} == {256 * disk.MIB}
    for one, following in itertools.pairwise(split):
        assert one.start + one.size <= following.start
    assert plain[:2] == split[:2]


def test_grubs_boot_sector_reads_the_core_from_its_first_sector() -> None:
    boot, _ = grub_bios(bytes(512), bytes(1024), first_sector=2048)
    assert struct.unpack_from("<Q", boot, 0x5C) == (2048,)
    assert boot[0x64] == 0xFF, "boot from the drive that the firmware names"
    assert boot[0x66:0x68] == b"\x90\x90", "no jump over the drive check, which is for floppies"


def test_grubs_core_knows_where_the_rest_of_it_stands() -> None:
    _, core = grub_bios(bytes(512), bytes(range(256)) * 5, first_sector=2048)
    assert len(core) == 3 * 512, "whole sectors"
    assert struct.unpack_from("<QHH", core, 500) == (2049, 2, 0x820)
    assert core[:500] == (bytes(range(256)) * 5)[:500]


def test_nothing_else_of_the_boot_sector_changes() -> None:
    before = bytes(number % 251 for number in range(512))
    after = grub_bios(before, bytes(512), first_sector=2048)[0]
    changed = {place for place in range(512) if before[place] != after[place]}
    assert changed <= {*range(0x5C, 0x65), 0x66, 0x67}


def test_a_checksum_is_the_one_that_vhdx_wants() -> None:
    """RFC 3720, B.4: CRC examples; and the check value of the catalogue of CRCs."""
    assert diskforms.crc32c(b"123456789") == 0xE3069283
    assert diskforms.crc32c(bytes(32)) == 0x8A9136AA
    assert diskforms.crc32c(b"\xff" * 32) == 0x62A8AB43

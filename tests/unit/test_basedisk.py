"""Where things stand on a base disk, and how GRUB's two halves find each other."""

import struct

from conda_appliance import basedisk
from conda_appliance.basedisk import grub_bios


def test_the_partitions_follow_each_other_on_mebibytes() -> None:
    mebibyte = basedisk.MIB // basedisk.SECTOR
    assert basedisk.BIOS_START + basedisk.BIOS_SIZE <= basedisk.ESP_START
    assert basedisk.ESP_START + basedisk.ESP_SIZE <= basedisk.ROOT_START
    assert [start % mebibyte for start in (basedisk.BIOS_START, basedisk.ESP_START, basedisk.ROOT_START)] == [
        0
    ] * 3


def test_the_root_partition_ends_before_the_backup_of_the_partition_table() -> None:
    for disk in (1 << 30, (1 << 30) + basedisk.MIB, 16 << 40):
        end = basedisk.ROOT_START + basedisk.root_size(disk)
        assert disk // basedisk.SECTOR - end == basedisk.MIB // basedisk.SECTOR
        assert end % (basedisk.MIB // basedisk.SECTOR) == 0


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

"""What uses a disk is read from /sys and /proc: mounts, swap, and what is made of it, however deep."""

from __future__ import annotations

from pathlib import Path

import pytest

from conda_appliance import device


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    """A disk with two partitions; the second is the only part of an encrypted volume."""
    devices = tmp_path / "sys/devices"
    for path, number in (
        ("sda", "8:0"),
        ("sda/sda1", "8:1"),
        ("sda/sda2", "8:2"),
        ("dm-0", "253:0"),
        ("sdb", "8:16"),
    ):
        (devices / path / "holders").mkdir(parents=True)
        (devices / path / "dev").write_text(f"{number}\n")
    for name in ("sda1", "sda2"):
        (devices / "sda" / name / "partition").write_text("1\n")
    (devices / "dm-0/dm").mkdir()
    (devices / "dm-0/dm/name").write_text("vault\n")
    (devices / "sda/sda2/holders/dm-0").symlink_to(devices / "dm-0")
    return tmp_path / "sys"


def users(sys: Path, disk: str, mounts: str = "", swaps: str = "") -> list[str]:
    proc = sys.parent / "proc"
    (proc / "self").mkdir(parents=True, exist_ok=True)
    (proc / "self/mountinfo").write_text(mounts)
    (proc / "swaps").write_text("Filename Type Size Used Priority\n" + swaps)
    return list(device._users(sys / "devices" / disk, sys, proc))


def test_a_disk_that_nothing_uses(sys: Path) -> None:
    assert users(sys, "sdb", "1 0 8:1 / / rw - ext4 none rw\n") == []


def test_a_mounted_partition_is_a_use_of_its_disk(sys: Path) -> None:
    found = users(sys, "sda", "1 0 8:1 / /my\\040stick rw shared:1 - vfat none rw\n")
    assert found[0] == "sda1 is mounted at /my stick"


def test_what_is_made_of_a_partition_is_named_and_so_is_its_mount(sys: Path) -> None:
    found = users(sys, "sda", "1 0 253:0 / / rw - ext4 none rw\n")
    assert found == ["sda2 is part of vault", "dm-0 is mounted at / (this system runs from it)"]


def test_an_unmounted_part_of_something_is_in_use_too(sys: Path) -> None:
    assert users(sys, "sda") == ["sda2 is part of vault"]

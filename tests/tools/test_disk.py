"""A disk is written from trees laid over each other: bootable, sound, and the same bytes each time.

Looked at from outside, with the tools of its formats; that it does boot is seen in tests/boot.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from debian_made import Debian
from inside import Inside
from tests.conftest import Folders

from conda_appliance import disk, layers, overlay, process, resources
from conda_appliance.disk import BIOS_START, ESP_START, MIB, ROOT_START, SECTOR
from conda_appliance.errors import UsageError
from conda_appliance.trees import listing

IDENTITY = "6f1cde62-2b5a-4d0c-9a55-3c2a9b0e9d11"
EPOCH = 1_700_000_000
SIZE = 256 * MIB
#: cap_net_raw+ep, version 2
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")

#: What mke2fs is made of on the machine.
MKE2FS = (
    *(
        "ld-linux-x86-64*",
        "libc.so*",
        "libext2fs*",
        "libcom_err*",
        "libblkid*",
        "libuuid*",
        "libe2p*",
        "libss*",
    ),
)


@dataclass(frozen=True)
class Written(Inside):
    """A disk, and what can be asked of it."""

    raw: Path

    def header(self, name: str) -> str:
        """A line of the file system's header, as dumpe2fs names it."""
        found = re.search(rf"^{name}: +(.*)$", process.run(["dumpe2fs", "-h", self.file_system]).stdout, re.M)
        assert found, name
        return found[1]


def write(to: Path, trees: list[Path], *, size: int = SIZE, identity: str = IDENTITY) -> Written:
    work = to.with_suffix(".work")
    work.mkdir()
    taken = sum(layers.size_of(tree) for tree in trees)
    disk.loaders(work / "boot", identity=identity, epoch=EPOCH)
    disk.write(
        to, trees, size=size, identity=identity, epoch=EPOCH, work=work, taken=taken, boot=work / "boot"
    )
    resources.remove(work)
    return Written(to)


@pytest.fixture(scope="module")
def trees(debian: Debian, folders: Folders) -> list[Path]:
    """Two small trees, the uppermost first; the lower one has the machine's mke2fs and its settings."""
    upper, lower = (folders.mktemp("trees") / name for name in ("upper: 1, new", "lower"))
    for tree in (upper, lower):
        (tree / "etc").mkdir(parents=True)
        (tree / "etc/shared").write_text(f"of {tree.name}\n")
        (tree / f"etc/{tree.name.partition(':')[0]}").touch()
        (tree / "var/lib").mkdir(parents=True)
    for number in range(
        300
    ):  # a folder of more than one block, whose index depends on the file system's own seed
        (lower / f"var/lib/a-name-that-takes-some-room-{number}").write_text(f"{number}")
    os.mkfifo(upper / "var/lib/fifo")
    (upper / "ping").write_text("#!/bin/true\n")
    os.chown(upper / "ping", 1234, 5678)
    (upper / "ping").chmod(0o4750)
    os.setxattr(upper / "ping", "security.capability", CAPABILITY)
    (upper / "etc/link").symlink_to("shared")
    (lower / "etc/one").write_text("twice")
    os.link(lower / "etc/one", lower / "etc/other")
    (lower / "usr/sbin").mkdir(parents=True)
    (lower / "usr/lib64").mkdir()
    (lower / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    system = debian.system.path
    for name in ("mke2fs", "debugfs", "e2fsck", "tune2fs"):
        shutil.copy2(system / "usr/sbin" / name, lower / "usr/sbin")
    shutil.copy2(system / "etc/mke2fs.conf", lower / "etc")
    for pattern in MKE2FS:
        for path in (system / "usr/lib/x86_64-linux-gnu").glob(pattern):
            shutil.copy2(path, lower / "usr/lib/x86_64-linux-gnu", follow_symlinks=False)
    (lower / "usr/lib64/ld-linux-x86-64.so.2").symlink_to("../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    for tree in (upper, lower):
        tree.chmod(0o755)
    return [upper, lower]


@pytest.fixture(scope="module")
def written(trees: list[Path], folders: Folders) -> Written:
    return write(folders.mktemp("disk") / "disk.raw", trees)


# --- what stands where ------------------------------------------------------------------------------


def test_the_partitions_are_for_bios_uefi_and_root(written: Written) -> None:
    table = json.loads(process.run(["sfdisk", "--json", written.raw]).stdout)["partitiontable"]
    assert table["label"] == "gpt"
    assert [(part["start"], part["type"]) for part in table["partitions"]] == [
        (BIOS_START, "21686148-6449-6E6F-744E-656564454649"),
        (ESP_START, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        (ROOT_START, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
    ]
    assert "sfdisk" not in process.run(["sfdisk", "--verify", written.raw]).stderr
    assert written.raw.stat().st_size == SIZE


def test_the_boot_sector_leads_to_grubs_core(written: Written) -> None:
    with written.raw.open("rb") as file:
        boot = file.read(SECTOR)
        file.seek(BIOS_START * SECTOR)
        core = file.read(SECTOR)
    assert boot[510:] == b"\x55\xaa"
    assert int.from_bytes(boot[0x5C:0x64], "little") == BIOS_START
    assert int.from_bytes(core[500:508], "little") == BIOS_START + 1


def test_the_efi_partition_has_grub_where_every_firmware_looks(written: Written) -> None:
    listing = process.run(["mdir", "-b", "-/", "-i", f"{written.raw}@@{ESP_START * SECTOR}", "::"]).stdout
    assert "::/EFI/BOOT/BOOTX64.EFI" in listing.split()


def test_both_boot_loaders_look_for_the_root_file_system_by_its_uuid(
    written: Written, tmp_path: Path
) -> None:
    efi = tmp_path / "grub.efi"
    place = f"{written.raw}@@{ESP_START * SECTOR}"
    process.run(["mcopy", "-i", place, "::/EFI/BOOT/BOOTX64.EFI", efi])
    assert IDENTITY.encode() in efi.read_bytes()
    assert written.header("Filesystem UUID") == IDENTITY


def test_the_file_system_is_sound_and_fills_its_partition(written: Written) -> None:
    process.run(["e2fsck", "-fn", written.file_system])
    table = json.loads(process.run(["sfdisk", "--json", written.raw]).stdout)["partitiontable"]
    room = table["partitions"][2]["size"] * SECTOR - int(written.header("Block count")) * 4096
    assert 0 <= room < MIB


def test_grub_2_06_reads_the_file_system(written: Written) -> None:
    features = written.header("Filesystem features").split()
    assert {"metadata_csum_seed", "orphan_file"} & {*features} == set()


# --- what is on it ----------------------------------------------------------------------------------


def test_the_trees_lie_over_each_other(written: Written) -> None:
    assert written.read("/etc/shared") == "of upper: 1, new\n"
    assert {"upper", "lower", "link", "one", "other"} <= written.names("/etc")
    assert len(written.names("/var/lib")) == 301


def test_the_folders_themselves_stay_as_they_were(trees: list[Path], written: Written) -> None:
    assert (trees[1] / "etc/shared").read_text() == "of lower\n"
    assert not (trees[0] / "etc/one").exists()


def test_owners_modes_capabilities_and_kinds_reach_the_file_system(written: Written) -> None:
    about = written.debugfs("stat /ping")
    assert re.search(r"Mode: +04750", about)
    assert re.search(r"User: +1234 +Group: +5678", about)
    assert "security.capability" in about
    assert "Type: FIFO" in written.debugfs("stat /var/lib/fifo")
    assert 'Fast link dest: "shared"' in written.debugfs("stat /etc/link")


def test_two_names_of_one_file_stay_two_names_of_one_file(written: Written) -> None:
    one, other = (written.debugfs(f"stat /etc/{name}").split()[1] for name in ("one", "other"))
    assert one == other
    assert "Links: 2" in written.debugfs("stat /etc/one")


def test_what_an_upper_tree_deleted_is_not_there(trees: list[Path], tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "etc").mkdir(parents=True)
    os.mknod(top / "etc/lower", 0o600 | 0o020000, os.makedev(0, 0))
    (top / "var").mkdir()
    os.setxattr(top / "var", "trusted.overlay.opaque", b"y")
    made = write(tmp_path / "disk.raw", [top, *trees])
    assert "lower" not in made.names("/etc") and "upper" in made.names("/etc")
    assert made.names("/var") == set()
    process.run(["e2fsck", "-fn", made.file_system])


# --- what is added to what is there ------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A tree as packages leave it: plain modes, links, a second name of a file, a folder of many names."""
    made = tmp_path / "environment"
    (made / "opt/conda/lib").mkdir(parents=True)
    for number in range(400):
        (made / f"opt/conda/lib/a-name-that-takes-some-room-{number}").write_text(f"{number}\n" * number)
    (made / 'opt/conda/lib/a "name" with a space').write_text("quoted\n")
    (made / "opt/conda/lib/large").write_bytes(os.urandom(3 * MIB))
    (made / "opt/conda/lib/other").hardlink_to(made / "opt/conda/lib/large")
    (made / "opt/conda/tool").write_text("#!/bin/sh\n")
    (made / "opt/conda/tool").chmod(0o755)
    (made / "opt/conda/tool3").symlink_to("tool")
    (made / "etc").mkdir()
    (made / "etc/shared").write_text("of the environment\n")
    for path in [made, *made.rglob("*")]:
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return made


def added(to: Path, trees: list[Path], held: set[int]) -> Written:
    """The disk that is written from the trees ``held`` first, and then gets the others."""
    work = to.with_suffix(".work")
    work.mkdir()
    disk.loaders(work / "boot", identity=IDENTITY, epoch=EPOCH)
    below = [tree for number, tree in enumerate(trees) if number in held]
    disk.begin(to, below, size=SIZE, identity=IDENTITY, epoch=EPOCH, work=work)
    disk.add(to, trees, overlay.additions(trees, frozenset(held)), epoch=EPOCH, work=work)
    disk.finish(to, trees, epoch=EPOCH, boot=work / "boot")
    resources.remove(work)
    return Written(to)


def held_by(made: Written, folder: Path) -> dict[str, str]:
    """What a disk's root file system holds, path by path; it is laid out in the new ``folder``."""
    folder.mkdir()
    made.debugfs(f"rdump / {folder}")
    return listing(folder, times=False)


def test_a_disk_that_is_added_to_holds_what_one_holds_that_is_written_at_once(
    trees: list[Path], environment: Path, tmp_path: Path
) -> None:
    stack = [trees[0], environment, trees[1]]
    once, twice = write(tmp_path / "once.raw", stack), added(tmp_path / "twice.raw", stack, {0, 2})
    process.run(["e2fsck", "-fn", twice.file_system])
    assert held_by(once, tmp_path / "once") == held_by(twice, tmp_path / "twice")
    assert "Links: 2" in twice.debugfs("stat /opt/conda/lib/large")
    assert twice.read("/etc/shared") == "of upper: 1, new\n"
    assert "Flags: 0x81000" in twice.debugfs("stat /opt/conda/lib"), "an index"


def test_what_is_added_replaces_what_is_there(trees: list[Path], environment: Path, tmp_path: Path) -> None:
    made = added(tmp_path / "disk.raw", [environment, *trees], {1, 2})
    assert made.read("/etc/shared") == "of the environment\n"
    process.run(["e2fsck", "-fn", made.file_system])


def test_what_upper_trees_deleted_or_replaced_goes_from_what_is_there(
    trees: list[Path], tmp_path: Path
) -> None:
    """Files, folders with all that is in them, second names; as overlayfs shows it, and the file system is sound."""
    top, middle, lower = tmp_path / "top", tmp_path / "middle", tmp_path / "lower"
    process.run(["cp", "-a", trees[1], lower])
    for path in ("var/cache/a/b", "srv/old/c", "srv/old/d/e"):
        (lower / path).parent.mkdir(parents=True, exist_ok=True)
        (lower / path).write_text(path)
    (top / "etc").mkdir(parents=True)
    for path in ("etc/lower", "etc/one", "var"):
        os.mknod(top / path, 0o600 | 0o020000, os.makedev(0, 0))
    (top / "srv/old").mkdir(parents=True)
    (top / "srv/old/new").write_text("new")
    os.setxattr(top / "srv/old", "trusted.overlay.opaque", b"y")
    (middle / "etc/shared").mkdir(parents=True)
    (middle / "etc/shared/inside").write_text("a folder now")
    stack = [top, middle, lower]
    for tree in stack:
        tree.chmod(0o755)
        for path in [tree, *tree.rglob("*")]:
            os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    once, twice = write(tmp_path / "once.raw", stack), added(tmp_path / "twice.raw", stack, {2})
    process.run(["e2fsck", "-fn", twice.file_system])
    found = held_by(twice, tmp_path / "twice")
    assert found == held_by(once, tmp_path / "once")
    assert {"etc/other", "etc/shared/inside", "srv/old/new"} <= found.keys()
    assert {"etc/one", "etc/lower", "var", "srv/old/d", "srv/old/c"}.isdisjoint(found)
    assert "Links: 1" in twice.debugfs("stat /etc/other")
    assert once.header("Free blocks") == twice.header("Free blocks")
    assert once.header("Free inodes") == twice.header("Free inodes")


def test_what_is_added_gives_the_same_bytes(trees: list[Path], environment: Path, tmp_path: Path) -> None:
    stack = [environment, *trees]
    first = resources.sha256_of(added(tmp_path / "one.raw", stack, {1, 2}).raw)
    process.run(["cp", "-a", environment, tmp_path / "copy"])
    stack[0] = tmp_path / "copy"
    assert resources.sha256_of(added(tmp_path / "two.raw", stack, {1, 2}).raw) == first


def test_what_does_not_fit_beside_what_is_there_is_refused(trees: list[Path], tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(240 * MIB))
    with pytest.raises(UsageError, match=r"disk\.size is 256\.0 MiB, and what goes on it does not fit"):
        added(tmp_path / "disk.raw", [tree, *trees], {1, 2})


# --- the same bytes ---------------------------------------------------------------------------------


def test_the_same_trees_give_the_same_bytes_whenever_and_wherever_they_lie(
    trees: list[Path], written: Written, tmp_path: Path
) -> None:
    """Written later than the first, and once more from copies whose inodes, order and file system differ."""
    before = resources.sha256_of(written.raw)
    assert resources.sha256_of(write(tmp_path / "again.raw", trees).raw) == before
    memory = Path(f"/dev/shm/conda-appliance-test-{os.getpid()}")
    memory.mkdir()
    try:
        copies = [memory / "one", memory / "two"]
        for tree, copy in zip(trees, copies, strict=True):
            process.run(["cp", "-a", tree, copy])
        assert copies[0].stat().st_dev != trees[0].stat().st_dev
        assert resources.sha256_of(write(memory / "disk.raw", copies).raw) == before
    finally:
        resources.remove(memory)


def test_another_identity_gives_other_uuids_everywhere(
    trees: list[Path], written: Written, tmp_path: Path
) -> None:
    other = write(tmp_path / "disk.raw", trees, identity="11111111-2b5a-4d0c-9a55-3c2a9b0e9d11")

    def uuids(made: Written) -> set[str]:
        table = json.loads(process.run(["sfdisk", "--json", made.raw]).stdout)["partitiontable"]
        return {table["id"], made.header("Filesystem UUID"), *(part["uuid"] for part in table["partitions"])}

    assert uuids(other) & uuids(written) == set()


def test_the_machines_own_mke2fs_writes_it(trees: list[Path]) -> None:
    tools = disk.E2fsprogs.choose(trees, EPOCH)
    for name in ("mke2fs", "debugfs", "e2fsck", "tune2fs"):
        assert trees[1] / "usr/sbin" / name in tools.command(name)
    assert tools.settings["MKE2FS_CONFIG"] == str(trees[1] / "etc/mke2fs.conf")
    assert tools.settings["SOURCE_DATE_EPOCH"] == str(EPOCH)


def test_folders_of_many_names_have_an_index_and_everything_a_checksum(written: Written) -> None:
    """mke2fs makes no index; Linux would look for each name in every block of such a folder."""
    folder = process.run(["debugfs", "-R", "stat /var/lib", written.file_system]).stdout
    assert "Flags: 0x81000" in folder, "EXT4_INDEX_FL"
    assert "metadata_csum" in written.header("Filesystem features").split()


def test_a_folder_with_a_question_mark_in_its_name_may_hold_the_disk(
    trees: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "which?offset=1").mkdir()
    write(tmp_path / "which?offset=1/disk.raw", trees)


# --- what does not fit ------------------------------------------------------------------------------


def test_trees_that_cannot_fit_are_refused_beforehand() -> None:
    with pytest.raises(UsageError, match=r"disk\.size is 1\.0 GiB, and what goes on it takes 1\.1 GiB"):
        disk.require_room(1 << 30, (1 << 30) + ROOT_START * SECTOR)


def test_trees_that_turn_out_not_to_fit_are_refused_in_the_same_words(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(200 * MIB))
    with pytest.raises(
        UsageError, match=r"disk\.size is 256\.0 MiB, and what goes on it does not fit"
    ) as caught:
        (tmp_path / "work").mkdir()
        disk.write(
            tmp_path / "disk.raw",
            [tree],
            size=SIZE,
            identity=IDENTITY,
            epoch=EPOCH,
            work=tmp_path / "work",
            taken=0,  # as when a file system packs what it holds
            boot=tmp_path / "work",
        )
    assert "make disk.size larger" in caught.value.hint


def test_the_tools_it_needs_are_told_beforehand() -> None:
    for tool in disk.tools():
        assert process.find(tool)

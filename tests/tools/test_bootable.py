"""Discs that start a machine, as xorriso, the kernel's tools and shellcheck see them; tests/boot starts them."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from debian_made import Debian
from tests.conftest import Folders

from conda_appliance import bootable, disc, process, resources
from conda_appliance.definition_disc import load_disc
from conda_appliance.layer import Layer
from conda_appliance.layers import Store

EPOCH = 1_700_000_000
IDENTITY = "0123456789abcdef"


@dataclass(frozen=True)
class Made:
    """What starts a disc, and a disc that has it."""

    boot: Layer
    disc: Path


@pytest.fixture(scope="module")
def made(debian: Debian, folders: Folders) -> Made:
    return make(debian, folders.mktemp("disc"))


def make(debian: Debian, folder: Path) -> Made:
    """With nothing that was made before."""
    store = Store(folder / "layers")
    boot = bootable.initramfs(
        debian.system, debian.image.base, store=store, epoch=EPOCH, project=None, subject="x"
    )
    menu = bootable.menu(
        "live", [bootable.Entry(title="Start")], identity=IDENTITY, project=None, boot="fast", timeout=1
    )
    work = folder / "work"
    work.mkdir()
    inputs = bootable.common(
        boot, identity=IDENTITY, menu=menu, lock="the lock\n", readme="Read me.\n", epoch=EPOCH, work=work
    )
    written = disc.write(
        load_disc(resources.find("iso/live.yaml")),
        {**inputs, "root.squashfs": b"no machine"},
        folder / "x.iso",
        epoch=EPOCH,
        boot=bootable.starter(IDENTITY),
    )
    store.release()
    return Made(boot, written)


def test_the_same_system_gives_the_same_bytes(made: Made, debian: Debian, tmp_path: Path) -> None:
    again = make(debian, tmp_path)
    assert again.boot.sha256 == made.boot.sha256
    one, other = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (made.disc, again.disc))
    assert one == other


def test_the_initramfs_has_the_scripts_the_drivers_and_the_programs(made: Made) -> None:
    names = names_in(made.boot.path / "initrd.img")
    files = {Path(name).name for name in names}
    assert {"scripts/live", "scripts/installer", "scripts/medium"} <= names
    assert {"isofs.ko.xz", "squashfs.ko.xz", "overlay.ko.xz", "loop.ko.xz", "sr_mod.ko.xz"} <= files
    for program in bootable._PROGRAMS.split():
        assert f"usr/lib/appliance/{program}" in names
    assert (made.boot.path / "initrd.img").stat().st_size < 16 << 20


def names_in(initramfs: Path) -> set[str]:
    """What an initramfs holds: an archive as it is (of what is compressed already), then one by zstd."""
    data = initramfs.read_bytes()
    begin = data.index(b"\x28\xb5\x2f\xfd", data.index(b"TRAILER!!!"))
    command = ["zstd", "-dcq"]
    rest = subprocess.run(command, input=data[begin:], stdout=subprocess.PIPE, check=True).stdout
    return {*cpio_names(data[:begin]), *cpio_names(rest)}


def cpio_names(archive: bytes) -> Iterator[str]:
    """The names in a cpio archive of the newc form: its head is "070701" and 13 numbers of 8 hexadecimal digits."""
    at = 0
    while (at := archive.find(b"070701", at)) >= 0:
        size, length = (int(archive[at + place : at + place + 8], 16) for place in (54, 94))
        yield archive[at + 110 : at + 110 + length - 1].decode()
        at += -(-(110 + length) // 4) * 4 + size


def test_xorriso_finds_all_ways_to_start_from_it(made: Made) -> None:
    report = ["-report_el_torito", "plain", "-report_system_area", "plain"]
    said = process.run(["xorriso", "-indev", made.disc, *report]).stdout
    lines = {" ".join(line.split()) for line in said.splitlines()}
    assert "El Torito img path : 1 /boot/grub/bios.img" in lines
    assert "El Torito img opts : 1 boot-info-table grub2-boot-info" in lines
    assert "El Torito img path : 2 /boot/grub/efi.img" in lines
    assert "MBR partition path : 2 /boot/grub/efi.img" in lines
    assert any(line.startswith("System area summary: MBR grub2-mbr") for line in lines)


def test_every_file_is_as_its_sums_say_what_grub_was_told_included(made: Made, tmp_path: Path) -> None:
    assert disc.verify(made.disc) == 9
    process.run(["xorriso", "-osirrox", "on", "-indev", made.disc, "-extract", "/", tmp_path / "all"])
    process.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "all")


def test_readers_that_look_ahead_stay_on_the_disc(made: Made) -> None:
    said = process.run(["isosize", made.disc]).stdout
    assert made.disc.stat().st_size - int(said) == 150 * 2048


def test_the_scripts_of_the_initramfs_are_sound() -> None:
    folder = resources.find("iso")
    scripts = [next(folder.glob(f"{name}/*.sh")) for name in ("boot", "live", "installer")]
    process.run(["shellcheck", "--shell=sh", "--external-sources", *scripts], cwd=folder.parent)

"""A Vagrant box holds its disk, is opened by the programs it is for, and has the same bytes each time."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from test_export import EPOCH, SIZE, definition, described, items, made
from tests.conftest import Folders

from conda_appliance import boxes, export, ova, process


@pytest.fixture(scope="module")
def disk(folders: Folders) -> Path:
    path = folders.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(5 << 20)
        file.write(os.urandom(1 << 20) + b"text " * 100_000)
    return path


def boxed(disk: Path, folder: Path) -> dict[str, Path]:
    """Every box of it."""
    image = definition()
    disks = {form: one.path for form, one in made(disk, folder, ["qcow2", "vmdk"]).items()}
    found = {}
    for form, kind in boxes.DISKS.items():
        found[form] = folder / f"{form}.box"
        boxes.write(
            form, disks[kind], found[form], image, epoch=EPOCH, project=None, work=folder / f"work-{form}"
        )
    return found


@pytest.fixture(scope="module")
def all_boxes(disk: Path, folders: Folders) -> dict[str, Path]:
    return boxed(disk, folders.mktemp("boxes"))


@pytest.mark.parametrize("form", [*boxes.DISKS])
def test_a_box_is_what_vagrant_unpacks(
    all_boxes: dict[str, Path], disk: Path, form: str, tmp_path: Path
) -> None:
    """By bsdtar, as Vagrant does it."""
    process.run(["bsdtar", "-xmf", all_boxes[form], "-C", tmp_path])
    with tarfile.open(all_boxes[form]) as tar:
        members = tar.getmembers()
    name = "box-disk1.vmdk" if form == "box-virtualbox" else "box.img"
    more = ["box.ovf"] if form == "box-virtualbox" else []
    assert [one.name for one in members] == ["metadata.json", "Vagrantfile", *more, name]
    assert {(one.mtime, one.uid, one.gid, one.mode) for one in members} == {(EPOCH, 0, 0, 0o644)}
    process.run(["qemu-img", "compare", "-f", "raw", "-F", boxes.DISKS[form], disk, tmp_path / name])
    process.run(["ruby", "-c", tmp_path / "Vagrantfile"])


def test_a_box_has_the_same_bytes_again(all_boxes: dict[str, Path], disk: Path, tmp_path: Path) -> None:
    for form, path in boxed(disk, tmp_path / "again").items():
        assert path.read_bytes() == all_boxes[form].read_bytes(), form
        assert path.read_bytes()[4:8] == bytes(4), "gzip's own time stamp"


def test_virtualbox_reads_a_machine_with_the_disk_that_lies_beside(
    all_boxes: dict[str, Path], tmp_path: Path
) -> None:
    process.run(["tar", "-x", "-z", "-f", all_boxes["box-virtualbox"], "-C", tmp_path])
    envelope = described((tmp_path / "box.ovf").read_text())
    (file,) = (one for one in envelope.iter() if one.tag.endswith("}File"))
    about = {name.rpartition("}")[2]: value for name, value in file.attrib.items()}
    assert about["href"] == "box-disk1.vmdk"
    assert int(about["size"]) == (tmp_path / "box-disk1.vmdk").stat().st_size
    hardware = items(envelope)
    assert hardware["20"]["ResourceSubType"] == ova.CONTROLLERS["sata"]["subtype"]
    assert hardware["10"]["ResourceSubType"] == "virtio"


def test_an_uncompressed_disk_is_compressed_by_the_box(disk: Path, tmp_path: Path) -> None:
    image = definition()
    plain = image.model_copy(update={"disk": image.disk.model_copy(update={"compression": "none"})})
    (one,) = made(disk, tmp_path / "plain", ["qcow2"], image=plain).values()
    assert isinstance(one, export.Artifact)
    boxes.write(
        "box-libvirt",
        one.path,
        tmp_path / "one.box",
        plain,
        epoch=EPOCH,
        project=None,
        work=tmp_path / "work",
    )
    assert (tmp_path / "one.box").stat().st_size < one.path.stat().st_size - 400_000

"""Every form of a disk holds the disk, is opened by the programs it is for, and has the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Folders

from conda_appliance import export, formats, layers, ova, process, resources, sparse
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import CommandFailed

EPOCH = 1_700_000_000
SIZE = 128 << 20
FORMS = tuple(form.name for form in formats.FORMS if form.family == "disk")


def definition(**more: Any) -> ImageDefinition:
    """A definition whose disk is smaller than any that it may name."""
    image = ImageDefinition.model_validate(
        {
            "name": "box",
            "version": "1.2",
            "summary": "Bits & <pieces>",
            "base": {"debian": "trixie"},
            "conda": {"channels": ["x"], "environments": {"base": {"dependencies": ["python"]}}},
            **more,
        }
    )
    return image.model_copy(update={"disk": image.disk.model_copy(update={"size": SIZE})})


@pytest.fixture(scope="module")
def disk(folders: Folders) -> Path:
    """A raw disk with what compresses, what does not, holes, and something in its last sector."""
    path = folders.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for at, content in (
            (0, b"first sector"),
            (5 << 20, os.urandom(3 << 20)),
            ((70 << 20) + 512, b"text and more of it\n" * 300_000),
            (100 << 20, os.urandom(100)),
            (SIZE - 33 * 512, b"EFI PART" * 64),
        ):
            file.seek(at)
            file.write(content)
    return path


def exporter(disk: Path, folder: Path, **more: Any) -> export.Exporter:
    folder.mkdir(exist_ok=True)
    return export.Exporter(
        **{
            "image": definition(),
            "disk": disk,
            "key": "d" * 64,
            "identity": "0123456789ab",
            "epoch": EPOCH,
            "project": None,
            "work": folder / "work",
            **more,
        }
    )


def made(disk: Path, folder: Path, forms: Sequence[str] = FORMS, **more: Any) -> dict[str, export.Artifact]:
    artifacts, _ = exporter(disk, folder, **more).every(forms, folder)
    assert [one.record.format for one in artifacts] == list(forms)
    return {one.record.format: one for one in artifacts}


@pytest.fixture(scope="module")
def all_forms(disk: Path, folders: Folders) -> dict[str, export.Artifact]:
    """Every form of it, made side by side."""
    return made(disk, folders.mktemp("forms"))


@pytest.mark.parametrize("form", [form.name for form in formats.FORMS if form.qemu])
def test_qemu_reads_the_same_disk_from_each_form(
    all_forms: dict[str, export.Artifact], disk: Path, form: str
) -> None:
    driver = formats.BY_NAME[form].qemu
    process.run(["qemu-img", "compare", "-f", "raw", "-F", driver, disk, all_forms[form].path])
    assert all_forms[form].record.virtual_size == SIZE
    assert all_forms[form].record.size < SIZE // 2, "holes take no space"


def test_what_is_packed_holds_the_same_disk(
    all_forms: dict[str, export.Artifact], disk: Path, tmp_path: Path
) -> None:
    process.run(["zstd", "-q", "-d", "--sparse", all_forms["raw.zst"].path, "-o", tmp_path / "disk.zst.raw"])
    process.run(["tar", "-x", "-z", "-f", all_forms["gce"].path, "-C", tmp_path])
    for name in ("disk.zst.raw", "disk.raw"):
        process.run(["cmp", disk, tmp_path / name])
        assert (tmp_path / name).stat().st_blocks * 512 < 20 << 20


def test_google_gets_one_gnu_member_with_holes(all_forms: dict[str, export.Artifact]) -> None:
    with tarfile.open(all_forms["gce"].path) as tar:
        (member,) = tar.getmembers()
    assert (member.name, member.size, member.mtime, member.uid) == ("disk.raw", SIZE, EPOCH, 0)
    assert member.issparse()
    assert all_forms["gce"].path.read_bytes()[4:8] == bytes(4), "gzip's own time stamp"


def test_each_form_has_the_same_bytes_again(
    all_forms: dict[str, export.Artifact], disk: Path, tmp_path: Path
) -> None:
    """From another file with other holes, in another folder, one after the other: none tells of its making."""
    copy = tmp_path / "copy.raw"
    process.run(["cp", "--sparse=always", disk, copy])
    again = {form: made(copy, tmp_path / form, [form])[form] for form in FORMS}
    assert {form: one.record.sha256 for form, one in again.items()} == {
        form: one.record.sha256 for form, one in all_forms.items()
    }


def test_other_disks_have_other_ids(
    all_forms: dict[str, export.Artifact], disk: Path, tmp_path: Path
) -> None:
    others = made(disk, tmp_path, ["vmdk", "vhd", "vhdx", "vdi"], key="e" * 64)
    for form, other in others.items():
        assert other.record.sha256 != all_forms[form].record.sha256
        process.run(["qemu-img", "compare", "-F", formats.BY_NAME[form].qemu, disk, other.path])


def test_azure_gets_a_fixed_vhd_of_whole_mebibytes(all_forms: dict[str, export.Artifact]) -> None:
    """https://learn.microsoft.com/azure/virtual-machines/linux/create-upload-generic#resizing-vhds"""
    path = all_forms["vhd"].path
    assert path.stat().st_size == SIZE + 512
    footer = path.read_bytes()[-512:]
    assert footer[:8] == b"conectix" and footer[60:64] == (2).to_bytes(4, "big"), "fixed"
    assert int.from_bytes(footer[48:56], "big") == SIZE
    assert int.from_bytes(footer[24:28], "big") + 946_684_800 == EPOCH
    unsummed = footer[:64] + bytes(4) + footer[68:]
    assert int.from_bytes(footer[64:68], "big") == ~sum(unsummed) & 0xFFFFFFFF


def test_what_an_earlier_result_has_is_copied(
    all_forms: dict[str, export.Artifact], disk: Path, tmp_path: Path
) -> None:
    there = {one.record.source: one for one in all_forms.values()}
    assert len(there) == len(FORMS)
    copier = exporter(disk, tmp_path, earlier=there.get)
    artifacts, taken = copier.every(FORMS, tmp_path)
    assert taken == list(FORMS)
    assert [one.record for one in artifacts] == [one.record for one in all_forms.values()]
    changed = definition(ova={"memory": "2GiB"})
    _, taken = exporter(disk, tmp_path / "other", earlier=there.get, image=changed).every(
        ["vmdk", "ova"], tmp_path / "other"
    )
    assert taken == ["vmdk"], "another machine is another ova, with the disk that is there"


def test_the_first_that_fails_ends_the_others(tmp_path: Path) -> None:
    with pytest.raises((CommandFailed, FileNotFoundError), match="No such file"):
        made(tmp_path / "missing", tmp_path / "out")


# --- ova ----------------------------------------------------------------------------------------------

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"


def test_an_ova_is_descriptor_manifest_and_disk_in_this_order(all_forms: dict[str, export.Artifact]) -> None:
    """DSP0243 1.1, 5.1 and 5.3; the manifest's lines as in its example."""
    with tarfile.open(all_forms["ova"].path) as tar:
        names = tar.getnames()
        assert names == ["box.ovf", "box.mf", "box-disk1.vmdk"]
        content = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert all_forms["ova"].path.read_bytes()[257:263] == b"ustar\0"
    assert content["box.mf"].decode().splitlines() == [
        f"SHA256({name})= {hashlib.sha256(content[name]).hexdigest()}"
        for name in ("box.ovf", "box-disk1.vmdk")
    ]
    assert content["box-disk1.vmdk"] == all_forms["vmdk"].path.read_bytes()


def items(envelope: ElementTree.Element) -> dict[str, dict[str, str]]:
    """The hardware's items by their CIM resource type."""
    found = {}
    for item in envelope.iter(f"{OVF}Item"):
        about = {child.tag.removeprefix(RASD): child.text or "" for child in item}
        # CIM's schema has its elements in the order of their names; VMware insists.
        assert [*about] == sorted(about), about
        found[about["ResourceType"]] = about
    return found


def described(ovf: bytes | str) -> ElementTree.Element:
    return ElementTree.fromstring(ovf)


def test_the_descriptor_is_one_whole(all_forms: dict[str, export.Artifact]) -> None:
    """What it refers to is there, under the same name and with the same size; ids are unique."""
    with tarfile.open(all_forms["ova"].path) as tar:
        envelope = described(tar.extractfile("box.ovf").read())  # type: ignore[union-attr]
        disk_size = tar.getmember("box-disk1.vmdk").size
    assert [child.tag.removeprefix(OVF) for child in envelope] == [
        "References",
        "DiskSection",
        "NetworkSection",
        "VirtualSystem",
    ]
    (file,), (disk,) = envelope.iter(f"{OVF}File"), envelope.iter(f"{OVF}Disk")
    assert file.get(f"{OVF}href") == "box-disk1.vmdk" and file.get(f"{OVF}size") == str(disk_size)
    assert disk.get(f"{OVF}fileRef") == file.get(f"{OVF}id") and disk.get(f"{OVF}capacity") == str(SIZE)
    hardware = items(envelope)
    assert {*hardware} == {"3", "4", "17", "20", "10"}, "processors, memory, disk, controller, network"
    assert hardware["17"]["HostResource"] == f"ovf:/disk/{disk.get(f'{OVF}diskId')}"
    assert hardware["17"]["Parent"] == hardware["20"]["InstanceID"]
    assert hardware["20"]["ResourceSubType"] == "vmware.sata.ahci"
    network = envelope.find(f"{OVF}NetworkSection/{OVF}Network")
    assert network is not None and hardware["10"]["Connection"] == network.get(f"{OVF}name")
    assert len({item["InstanceID"] for item in hardware.values()}) == len(hardware)
    assert envelope.findtext(f"{OVF}VirtualSystem/{OVF}Info") == "Bits & <pieces>"


def test_the_definition_says_what_the_machine_has() -> None:
    image = definition(
        ova={"controller": "nvme", "nic": "virtio", "cpus": 4, "memory": "4GiB"},
        disk={"firmware": ["uefi"]},
    )
    text = ova.descriptor(image, disk="box.vmdk", size=1)
    hardware = items(described(text))
    assert hardware["20"]["ResourceSubType"] == "vmware.nvme.controller"
    assert hardware["10"]["ResourceSubType"] == "virtio"
    assert (hardware["3"]["VirtualQuantity"], hardware["4"]["VirtualQuantity"]) == ("4", "4096")
    assert 'vmw:key="firmware" vmw:value="efi"' in text
    image = definition(ova={"controller": "scsi", "nic": "e1000"})
    hardware = items(described(ova.descriptor(image, disk="box.vmdk", size=1)))
    assert (hardware["6"]["ResourceSubType"], hardware["10"]["ResourceSubType"]) == ("VirtualSCSI", "E1000")


# --- a disk that is put together ----------------------------------------------------------------------


class InNoFile:
    """Bytes that are put together when they are read, as an environment's are that is not compressed."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_into(self, to: memoryview, at: int) -> int:
        found = self._data[at : at + len(to)]
        to[:] = found + bytes(len(to) - len(found))
        return len(found)


@pytest.mark.parametrize("in_file", [True, False])
def test_an_insert_lands_in_its_place_and_nothing_else_moves(
    disk: Path, tmp_path: Path, in_file: bool
) -> None:
    """What the split layout does with a changed environment, in every form."""
    environment = tmp_path / "environment"
    environment.write_bytes(os.urandom(5_000_001))
    insert = sparse.Piece(source=environment if in_file else InNoFile(environment.read_bytes()), at=16 << 20)
    wanted = tmp_path / "wanted.raw"
    layers.copy(disk, wanted)
    with wanted.open("r+b") as file:
        file.seek(insert.at)
        file.write(environment.read_bytes())
    more: dict[str, Any] = {
        "inserts": [insert],
        "around": "a" * 64,
        "store": layers.Store(tmp_path / "layers"),
    }
    first = made(disk, tmp_path / "first", ["qcow2", "raw", "vdi", "raw.zst"], **more)
    again = made(disk, tmp_path / "again", ["qcow2", "raw"], **more)
    for form in ("qcow2", "raw", "vdi"):
        driver = formats.BY_NAME[form].qemu
        process.run(["qemu-img", "compare", "-f", "raw", "-F", driver, wanted, first[form].path])
    for form in ("qcow2", "raw"):
        assert first[form].record.sha256 == again[form].record.sha256
    process.run(["zstd", "-q", "-d", first["raw.zst"].path, "-o", tmp_path / "again.raw"])
    process.run(["cmp", wanted, tmp_path / "again.raw"])
    with disk.open("rb") as file:
        file.seek(16 << 20)
        assert file.read(1 << 20) == bytes(1 << 20), "the kept disk stays as it is"


@pytest.mark.parametrize("compression", ["zstd", "zlib"])
def test_what_is_kept_compressed_gives_the_same_bytes(disk: Path, tmp_path: Path, compression: str) -> None:
    """What lies over a kept disk changes some of its blocks; the others are compressed once, for this and for later."""
    memory = os.memfd_create("over")
    os.truncate(memory, SIZE)
    for at, content in (((5 << 20) + 4096, b"y" * 4096), ((90 << 20), os.urandom(70_000))):
        os.pwrite(memory, content, at)
    over = sparse.Piece(source=Path(f"/proc/{os.getpid()}/fd/{memory}"), at=0, over=True)
    packed = tmp_path / "packed"
    packed.write_bytes(os.urandom(150_001))
    pieces = [sparse.Piece(source=packed, at=32 << 20, packed=True), over]
    wanted = tmp_path / "wanted.raw"
    sparse.write([sparse.Piece(source=disk, at=0), *pieces], {wanted: b""})
    image = definition(disk={"compression": compression})
    more: dict[str, Any] = {
        "image": image.model_copy(update={"disk": image.disk.model_copy(update={"size": SIZE})}),
        "inserts": pieces,
    }
    store = layers.Store(tmp_path / "layers")
    kept = {"around": "a" * 64, "store": store}
    plain = made(disk, tmp_path / "plain", ["qcow2", "vmdk"], **more)
    first = made(disk, tmp_path / "first", ["qcow2", "vmdk"], **more, **kept)
    entries = {one.folder: one.folder.stat().st_mtime_ns for one in store.entries()}
    again = made(disk, tmp_path / "again", ["qcow2", "vmdk"], **more, **kept)
    os.close(memory)
    for form in ("qcow2", "vmdk"):
        digests = {forms[form].record.sha256 for forms in (plain, first, again)}
        assert digests == {resources.sha256_of(plain[form].path)}
        process.run(["qemu-img", "compare", "-f", "raw", "-F", form, wanted, plain[form].path])
    kinds = sorted(folder.parent.name for folder in entries)
    assert kinds == ["blocks", "blocks", "survey"], "one for each way to compress, and which blocks there are"
    assert {one.folder: one.folder.stat().st_mtime_ns for one in store.entries()} == entries, "made once"
    said = json.loads(process.run(["qemu-img", "info", "--output=json", plain["qcow2"].path]).stdout)
    assert said["format-specific"]["data"]["compression-type"] == compression
    checked = json.loads(process.run(["qemu-img", "check", "--output=json", plain["qcow2"].path]).stdout)
    assert checked["compressed-clusters"] > 80
    assert checked["allocated-clusters"] - checked["compressed-clusters"] >= 50, (
        "what does not compress is as it is"
    )


def test_what_packer_leaves_is_an_overlay(disk: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.qcow2"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, overlay])
    forms = made(overlay, tmp_path / "out", ["vhd", "raw.zst"], format="qcow2", key="")
    alone = made(overlay, tmp_path / "alone", ["qcow2"], format="qcow2", key="")["qcow2"].path
    process.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, alone])
    assert "backing" not in process.run(["qemu-img", "info", alone]).stdout
    process.run(["qemu-img", "compare", "-f", "raw", "-F", "vpc", disk, forms["vhd"].path])
    process.run(["zstd", "-q", "-d", forms["raw.zst"].path, "-o", tmp_path / "again.raw"])
    process.run(["cmp", disk, tmp_path / "again.raw"])
    assert forms["vhd"].record.source == "", "nobody knows what is in it"

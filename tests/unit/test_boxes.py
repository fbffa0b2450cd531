"""Vagrant boxes: what a definition may ask for, what their Vagrantfiles say, and the catalog of their versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conda_appliance import boxes, catalog, definition, formats, manifest, resources, vagrant
from conda_appliance.errors import DefinitionError, UsageError
from conda_appliance.platforms import DEFAULT

BASE = """\
name: box
version: "1.2"
base: {debian: trixie}
conda: {channels: [x], environments: {base: {dependencies: [python]}}}
"""


def load(folder: Path, more: str, text: str = BASE) -> definition.ImageDefinition:
    path = folder / "box.yaml"
    path.write_text(text + more)
    return definition.load_image(path)


# --- what may be asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("builder: packer", "the format box-libvirt needs builder: rootfs, which makes a box's disk"),
        ("builder: rootfs\naccess: {user: vagrant}", "brings a user named vagrant: name another user"),
        (
            "builder: rootfs\nservices: [{name: vagrant, command: serve}]",
            "brings a user named vagrant: name another user or service",
        ),
    ],
)
def test_what_no_box_can_be_made_of_is_said_before_anything_is(
    tmp_path: Path, more: str, message: str
) -> None:
    with pytest.raises(DefinitionError, match=message):
        load(tmp_path, f"formats: [qcow2, box-libvirt]\n{more}\n")


def test_another_builder_is_refused_too(tmp_path: Path) -> None:
    image = load(tmp_path, "builder: rootfs\nformats: [box-qemu]\n")
    with pytest.raises(UsageError, match=r"box\.yaml: the format box-qemu needs builder: rootfs"):
        definition.with_builder(tmp_path / "box.yaml", image, "packer")


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("1.2", True),
        ("2024.10.1", True),
        ("1.0.0-rc1", True),
        ("1.0~rc1", False),
        ("v1", False),
        ("1+x", False),
    ],
)
def test_a_box_has_a_version_that_vagrant_can_order(tmp_path: Path, version: str, known: bool) -> None:
    """As Gem::Version has it, which Vagrant reads a catalog with."""
    text = BASE.replace('"1.2"', f'"{version}"')
    load(tmp_path, "", text)
    if known:
        load(tmp_path, "builder: rootfs\nformats: [box-libvirt]\n", text)
        return
    with pytest.raises(DefinitionError, match="Vagrant, and so the format box-libvirt, knows no version"):
        load(tmp_path, "builder: rootfs\nformats: [box-libvirt]\n", text)


# --- what is in them ----------------------------------------------------------------------------------


def texts(form: str, folder: Path, more: str = "") -> Mapping[str, str]:
    image = load(folder, f"builder: rootfs\nformats: [{form}]\n{more}")
    found: Any = boxes.decides(form, image, None)["texts"]
    return {str(name): str(text) for name, text in found.items()}


def test_each_says_whose_it_is(tmp_path: Path) -> None:
    told = {form: json.loads(texts(form, tmp_path)["metadata.json"]) for form in boxes.PROVIDERS}
    whole = {"architecture": "amd64", "format": "qcow2", "virtual_size": 4}
    assert told == {
        "box-libvirt": {"provider": "libvirt", **whole},
        "box-virtualbox": {"provider": "virtualbox", "architecture": "amd64"},
        "box-qemu": {"provider": "qemu", **whole},
    }


def test_libvirt_is_told_whole_gibibytes_that_the_disk_fits_in(tmp_path: Path) -> None:
    more = "disk: {size: 2500MiB}\n"
    assert json.loads(texts("box-libvirt", tmp_path, more)["metadata.json"])["virtual_size"] == 3


@pytest.mark.parametrize("form", [*boxes.PROVIDERS])
def test_no_folder_is_shared_and_the_machine_is_the_definitions(tmp_path: Path, form: str) -> None:
    text = texts(form, tmp_path, "ova: {cpus: 4, memory: 3GiB}\n")["Vagrantfile"]
    assert 'config.vm.synced_folder ".", "/vagrant", disabled: true' in text
    assert f"config.vm.provider :{boxes.PROVIDERS[form]} do" in text
    assert "3072" in text and "4" in text
    assert "insert_key" not in text, "Vagrant's default replaces the insecure key"


def test_virtualbox_finds_what_it_has(tmp_path: Path) -> None:
    found = texts("box-virtualbox", tmp_path, "ova: {controller: nvme, nic: vmxnet3}\n")
    assert f'config.vm.base_mac = "{boxes.mac("box")}"' in found["Vagrantfile"]
    assert "vmware.sata.ahci" in found["box.ovf"] and ">virtio<" in found["box.ovf"]
    assert 'ovf:href="box-disk1.vmdk"' in found["box.ovf"]


def test_an_address_is_a_machines_own_and_the_same_each_time() -> None:
    assert boxes.mac("hello") == boxes.mac("hello") != boxes.mac("other")
    assert boxes.mac("hello").startswith("080027") and len(boxes.mac("hello")) == 12


@pytest.mark.parametrize("form", [*boxes.PROVIDERS])
def test_what_starts_by_uefi_alone_says_so(tmp_path: Path, form: str) -> None:
    words = ("OVMF.fd", '"--firmware", "efi"')
    both = texts(form, tmp_path)["Vagrantfile"]
    alone = texts(form, tmp_path, "disk: {firmware: [uefi]}\n")["Vagrantfile"]
    assert not any(word in both for word in words) and any(word in alone for word in words)


# --- the catalog --------------------------------------------------------------------------------------


def built(
    home: Path, identity: str, version: str, created: str, *forms: str, platform: str = DEFAULT
) -> Path:
    """A finished build with boxes of these forms, the latest one of its platform."""
    folder = home / identity
    folder.mkdir(parents=True)
    records = []
    for form in forms:
        name = formats.file_name(form, name="box", version=version, platform=platform)
        content = f"{identity} {form}".encode()
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        records.append(
            manifest.ArtifactRecord(
                file=name, format=form, size=len(content), virtual_size=1 << 30, sha256=digest
            )
        )
    written = manifest.Manifest(
        name="box",
        version=version,
        summary="A box",
        platform=platform,
        id=identity,
        created=created,
        builder="rootfs",
        accelerator=None,
        artifacts=tuple(records),
        inputs={},
        tools={},
        packages={},
        check=None,
        steps={},
    )
    manifest.write(written, folder)
    link = home / ("latest" if platform == DEFAULT else f"latest-{platform}")
    link.unlink(missing_ok=True)
    link.symlink_to(identity)
    return folder


def urls(path: Path) -> dict[str, dict[str, str]]:
    """Version → provider → URL; each file has the bytes that the catalog says."""
    value = json.loads(path.read_text())
    assert (value["name"], value["description"]) == ("box", "A box")
    found = {}
    for version in value["versions"]:
        found[version["version"]] = {one["name"]: one["url"] for one in version["providers"]}
        for one in version["providers"]:
            file = Path(one["url"].removeprefix("file://"))
            assert not file.is_absolute() or one["checksum"] == resources.sha256_of(file)
            assert one["checksum_type"] == "sha256"
    return found


def test_a_catalog_has_each_version_with_its_latest_build(tmp_path: Path) -> None:
    home = tmp_path / "box"
    built(home, "a", "1.0", "2024-01-01T00:00:00", "box-libvirt")
    built(home, "b", "1.1", "2024-01-03T00:00:00", "box-libvirt", "box-virtualbox")
    built(home, "c", "1.1", "2024-01-02T00:00:00", "box-libvirt", "qcow2")
    path = catalog.refresh(home)
    assert path == home / "box.json"
    assert urls(path) == {
        "1.0": {"libvirt": f"{home.as_uri()}/a/box-1.0.libvirt.box"},
        "1.1": {"libvirt": f"{home.as_uri()}/c/box-1.1.libvirt.box"},
    }, "of 1.1 the one that `latest` names"


def test_a_version_has_boxes_of_each_platform_and_one_is_the_usual(tmp_path: Path) -> None:
    home, to = tmp_path / "box", tmp_path / "boxes"

    def architectures(path: Path | None) -> list[tuple[str, bool]]:
        assert path is not None
        (version,) = json.loads(path.read_text())["versions"]
        return [(one["architecture"], one["default_architecture"]) for one in version["providers"]]

    built(home, "b", "1.0", "2024-01-02T00:00:00", "box-qemu", platform="linux-aarch64")
    assert architectures(catalog.refresh(home)) == [("arm64", True)], "the only one"
    assert architectures(catalog.publish(home, to, "")) == [("arm64", True)]
    built(home, "a", "1.0", "2024-01-01T00:00:00", "box-qemu")
    assert architectures(catalog.refresh(home)) == [("amd64", True), ("arm64", False)]
    assert architectures(catalog.publish(home, to, "")) == [("amd64", True), ("arm64", False)]
    assert {path.name for path in to.iterdir()} == {
        "box.json",
        "box-1.0.qemu.box",
        "box-1.0-aarch64.qemu.box",
    }


def test_the_box_of_another_platform_starts_as_its_machine(tmp_path: Path) -> None:
    more = "platforms: [linux-aarch64]\ndisk: {firmware: [uefi]}\n"
    qemu, libvirt = (texts(form, tmp_path, more) for form in ("box-qemu", "box-libvirt"))
    assert json.loads(qemu["metadata.json"])["architecture"] == "arm64"
    assert 'qemu.arch = "aarch64"' in qemu["Vagrantfile"]
    assert 'qemu.machine = "virt,' in qemu["Vagrantfile"]
    assert 'libvirt.machine_arch = "aarch64"' in libvirt["Vagrantfile"]
    assert all("QEMU_EFI.fd" in one["Vagrantfile"] for one in (qemu, libvirt))
    assert not any("q35" in one["Vagrantfile"] or "OVMF" in one["Vagrantfile"] for one in (qemu, libvirt))


def test_a_build_without_boxes_has_no_catalog(tmp_path: Path) -> None:
    built(tmp_path / "box", "a", "1.0", "2024-01-01T00:00:00", "qcow2")
    assert catalog.refresh(tmp_path / "box") is None
    assert not (tmp_path / "box/box.json").exists()
    with pytest.raises(UsageError, match=r"the latest build in .*box has no Vagrant boxes"):
        catalog.publish(tmp_path / "box", tmp_path / "boxes", "")


def test_what_is_published_stays_there_beside_the_next_version(tmp_path: Path) -> None:
    home, to = tmp_path / "box", tmp_path / "boxes"
    built(home, "a", "1.0", "2024-01-01T00:00:00", "box-libvirt")
    catalog.publish(home, to, "")
    built(home, "b", "1.1", "2024-01-02T00:00:00", "box-libvirt", "box-qemu")
    path = catalog.publish(home, to, "")
    assert urls(path) == {
        "1.0": {"libvirt": f"{to.as_uri()}/box-1.0.libvirt.box"},
        "1.1": {
            "libvirt": f"{to.as_uri()}/box-1.1.libvirt.box",
            "qemu": f"{to.as_uri()}/box-1.1.qemu.box",
        },
    }
    built(home, "c", "1.1", "2024-01-03T00:00:00", "box-libvirt")
    path = catalog.publish(home, to, "https://boxes.example.org/all/")
    assert urls(path)["1.1"] == {"libvirt": "https://boxes.example.org/all/box-1.1.libvirt.box"}
    assert (to / "box-1.1.libvirt.box").read_bytes() == b"c box-libvirt"
    assert not [one.name for one in to.iterdir() if one.name.startswith(".")], "nothing half done is left"


def test_another_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    built(tmp_path / "box", "a", "1.0", "2024-01-01T00:00:00", "box-libvirt")
    (tmp_path / "boxes").mkdir()
    for text in ("something else", '{"name": "other", "versions": []}'):
        (tmp_path / "boxes/box.json").write_text(text)
        with pytest.raises(UsageError, match=r"box\.json is there, and is no catalog of box"):
            catalog.publish(tmp_path / "box", tmp_path / "boxes", "")
        assert (tmp_path / "boxes/box.json").read_text() == text


# --- the way into a machine that runs -----------------------------------------------------------------

SSH_CONFIG = """\
Host default
  HostName 192.168.121.32
  User vagrant
  Port 22
  IdentityFile "/home/me/my project/.vagrant/private_key"
  IdentityFile /home/me/.vagrant.d/insecure_private_key
  LogLevel FATAL

"""


def test_the_way_in_is_what_vagrant_says() -> None:
    found = vagrant.read(SSH_CONFIG)
    assert (found["Host"], found["User"], found["HostName"]) == ("default", "vagrant", "192.168.121.32")
    assert found["IdentityFile"] == "/home/me/my project/.vagrant/private_key", "the first, as ssh takes it"


def test_of_several_machines_one_is_to_be_named() -> None:
    with pytest.raises(UsageError, match="several machines run here: default, web") as caught:
        vagrant.read(SSH_CONFIG + SSH_CONFIG.replace("default", "web"))
    assert caught.value.hint == "name one: --vagrant default"
    with pytest.raises(UsageError, match="names no Host, no IdentityFile, no User"):
        vagrant.read("")

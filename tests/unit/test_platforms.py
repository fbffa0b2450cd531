"""Machines of another platform than the usual one, and definitions that are for several."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import yaml

from conda_appliance import (
    accelerator,
    batch,
    bootstrap,
    contract,
    definition,
    discs,
    disk,
    emulation,
    formats,
    lock,
    manifest,
    platforms,
    qemu,
    results,
    system_files,
)
from conda_appliance.contract import Contract
from conda_appliance.definition import Base, ImageDefinition
from conda_appliance.errors import DefinitionError, LockError, UsageError
from conda_appliance.lock import CondaSection, DebianPackage, DebianSection, EnvironmentSection, Lock
from conda_appliance.platforms import PLATFORMS
from conda_appliance.process import Starter
from conda_appliance.qemu import Forward

ARM = PLATFORMS["linux-aarch64"]
BOTH = "platforms: [linux-64, linux-aarch64]\nbuilder: rootfs\n"
ONE = "platforms: [linux-aarch64]\nbuilder: rootfs\n"
GOOD = """\
name: box
version: 1.0
base: {debian: trixie}
conda:
  channels: [conda-forge]
  environments:
    base: {dependencies: [python]}
"""


def load(folder: Path, text: str) -> ImageDefinition:
    path = folder / "box.yaml"
    path.write_text(text, encoding="utf-8")
    return definition.load_image(path)


# --- definitions --------------------------------------------------------------------------------------


def test_what_a_definition_says_of_each_of_its_platforms(tmp_path: Path) -> None:
    image = load(tmp_path, GOOD + BOTH + "target: {arch_level: x86-64-v3, glibc: '2.40'}\n")
    intel, arm = image.on("linux-64"), image.on("linux-aarch64")
    assert image.on(None) == intel
    assert intel.disk.firmware == ("bios", "uefi")
    assert arm.disk.firmware == ("uefi",)
    assert (intel.target.arch_level, arm.target.arch_level) == ("x86-64-v3", "x86-64-v1")
    assert arm.target.glibc == "2.40"
    assert (intel.platform.debian, arm.platform.debian) == ("amd64", "arm64")
    with pytest.raises(UsageError, match="box is for linux-64, not for linux-aarch64") as caught:
        intel.on("linux-aarch64")
    assert caught.value.hint == "add it to the definition: platforms: [linux-64, linux-aarch64]"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("platforms: [linux-aarch64]\n", "builder: packer boots and provisions machines of linux-64 alone"),
        ("platforms: []\n", "platforms"),
        ("platforms: [linux-arm64]\n", "'linux-arm64' is not one of 'linux-64' or 'linux-aarch64'"),
        ("platforms: [linux-64, linux-64]\n", "platforms names linux-64 twice"),
        (ONE + "disk: {firmware: [bios, uefi]}\n", "a machine of linux-aarch64 has no BIOS"),
        (BOTH + "disk: {firmware: [bios]}\n", "a machine of linux-aarch64 has no BIOS: add uefi"),
        (ONE + "target: {arch_level: x86-64-v2}\n", "arch_level x86-64-v2 is no level of linux-aarch64"),
        (BOTH + "formats: [qcow2, ova]\n", "the format ova describes an x86-64 machine"),
        (ONE + "formats: [box-virtualbox]\n", "the format box-virtualbox describes an x86-64 machine"),
        (BOTH + "formats: [oci]\ncontainer: {base: .}\n", "container.base is an image of one platform"),
    ],
)
def test_what_another_platform_has_not_is_refused(tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        load(tmp_path, GOOD + more)
    assert said in caught.value.message


def test_an_installer_of_ones_own_is_for_one_platform(tmp_path: Path) -> None:
    (tmp_path / "own.sh").touch()
    text = GOOD.replace("dependencies: [python]", "distribution: {installer: own.sh}")
    load(tmp_path, text + ONE)
    with pytest.raises(DefinitionError, match="the installer of environment 'base' is for one platform"):
        load(tmp_path, text + BOTH)


def test_a_lock_answers_for_the_platforms_that_are_named(tmp_path: Path) -> None:
    def digest(more: str) -> str:
        return definition.lock_digest(tmp_path / "box.yaml", load(tmp_path, GOOD + more))

    assert digest("builder: rootfs\n") == digest("platforms: [linux-64]\n")
    assert len({digest(""), digest(BOTH), digest(ONE)}) == 3


def test_a_build_makes_an_image_of_each_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = load(tmp_path, GOOD + BOTH)
    asked: list[tuple[str, str]] = []

    def build(_path: Path, *, platform: str, label: str = "", **_options: object) -> UsageError:
        asked.append((platform, label))
        raise UsageError("not here")

    monkeypatch.setattr(batch.builds, "build", build)
    with pytest.raises(UsageError, match="not here"):
        batch.build([tmp_path / f"{image.name}.yaml"])
    assert sorted(asked) == [("linux-64", "box"), ("linux-aarch64", "box-aarch64")]
    asked.clear()
    with pytest.raises(UsageError, match="not here"):
        batch.build([tmp_path / f"{image.name}.yaml"], platform="linux-aarch64")
    assert asked == [("linux-aarch64", "")]


def test_a_disc_that_starts_a_machine_is_for_x86_64(tmp_path: Path) -> None:
    image = load(tmp_path, GOOD + BOTH).on("linux-aarch64")
    with pytest.raises(UsageError, match="is made for x86-64 alone, and this is for linux-aarch64"):
        discs._require_bootable(tmp_path / "box.yaml", image, ())


# --- locks --------------------------------------------------------------------------------------------


def locked(platform: str) -> Lock:
    debian = PLATFORMS[platform].debian
    package = DebianPackage(
        name="dash", version="1", architecture=debian, url=f"http://x/{debian}.deb", sha256="a" * 64, size=7
    )
    grub = package.model_copy(update={"name": "grub", "size": 30})
    return Lock(
        name="box",
        digest="d" * 64,
        tools={},
        debian=DebianSection(
            suite="trixie",
            architecture=debian,
            glibc="2.41",
            packages=(package,),
            boot=(grub,) if platform == ARM.name else None,
        ),
        conda=CondaSection(
            platform=platform,
            virtual_packages=Contract(arch_level=contract.LEVELS[platform][0]).locked,
            environments={"base": EnvironmentSection(prefix="/opt/conda", specs=("python",), packages=())},
        ),
    )


def test_a_lock_of_several_platforms_is_read_back_platform_by_platform(tmp_path: Path) -> None:
    path = tmp_path / "box.lock"
    both = [locked("linux-64"), locked("linux-aarch64")]
    lock.write(both, path)
    value = yaml.safe_load(path.read_text())
    assert (value["version"], [*value["platforms"]]) == (2, ["linux-64", "linux-aarch64"])
    assert lock.read_all(path) == both
    assert lock.read(path) == both[0]
    assert lock.read(path, "linux-aarch64") == both[1]
    assert lock.text_of(lock.read_all(path)) == path.read_text()
    moved = both[1].model_copy(
        update={"tools": {}, "conda": both[1].conda.model_copy(update={"post_link": "build"})}
    )
    lock.write_one(moved, path)
    assert lock.read_all(path) == [both[0], moved]


def test_a_lock_of_one_platform_looks_as_it_always_did(tmp_path: Path) -> None:
    path = tmp_path / "box.lock"
    lock.write([locked("linux-64")], path)
    assert yaml.safe_load(path.read_text())["version"] == 1
    assert path.read_text() == locked("linux-64").text
    with pytest.raises(LockError, match=r"box\.lock is for linux-64, not for linux-aarch64"):
        lock.read(path, "linux-aarch64")


def test_what_only_the_disk_gets_is_fetched_too() -> None:
    assert (locked("linux-64").downloads, locked("linux-aarch64").downloads) == (7, 37)


# --- machines -----------------------------------------------------------------------------------------


def line(**changes: object) -> list[str]:
    given = {
        "name": "box",
        "accelerator": accelerator.accelerator(ARM),
        "firmware": "uefi",
        "memory_mib": 1024,
        "cpus": 1,
        "forwards": [Forward(guest=22)],
        "code": Path("/fw/AAVMF_CODE.fd"),
        "platform": ARM,
    }
    return qemu.arguments(**{**given, **changes})  # type: ignore[arg-type]


def test_another_platforms_machine_is_emulated_whatever_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, "kvm")
    found = accelerator.accelerator(ARM)
    assert (found.name, found.processors) == ("tcg", 1)
    argv = line(accelerator=found)
    assert argv[0] == "qemu-system-aarch64"
    assert argv[argv.index("-machine") + 1].split(",")[0] == "virt"
    assert argv[argv.index("-cpu") + 1] == "max,pauth-impdef=on"


def test_it_has_no_port_of_a_pc() -> None:
    assert any("isa-debugcon" in word for word in line(platform=PLATFORMS["linux-64"], watched=True))
    assert not any("isa-" in word or "vmport" in word for word in line(watched=True))


def test_a_bios_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a machine of linux-aarch64 has no BIOS"):
        qemu.prepare(tmp_path / "box.qcow2", tmp_path, "bios", ARM)
    assert [*tmp_path.iterdir()] == []


def test_its_disk_has_no_room_for_a_bios_loader_and_a_root_of_its_own_type() -> None:
    intel, arm = disk.plan(4 << 30, 64 << 20), disk.plan(4 << 30, 64 << 20, ARM)
    assert [one.name for one in arm] == [one.name for one in intel if one.name != "bios"]
    assert [one.start for one in arm] == [one.start for one in intel[1:]]
    assert arm[-1].kind == "B921B045-1DF0-41C3-AF44-4C6F280D3FAE"
    assert intel[-1].kind == "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"


def test_its_system_has_its_own_kernel_and_console() -> None:
    base = Base(debian="trixie")
    assert bootstrap.packages(base, "arm64")[0] == "linux-image-cloud-arm64"
    assert bootstrap.packages(Base(debian="trixie", kernel="generic"), "arm64")[0] == "linux-image-arm64"
    intel, arm = (
        system_files.early_files("some-uuid", base, one)["boot/grub/grub.cfg"] for one in ("amd64", "arm64")
    )
    assert "console=ttyS0,115200" in intel and "serial --unit=0" in intel
    assert "console=ttyAMA0,115200" in arm and "serial --unit=0" not in arm


def test_its_processor_is_promised_as_conda_names_it() -> None:
    arm = Contract(arch_level="aarch64")
    assert ("__archspec", "1", "aarch64") in arm.virtual_packages
    assert contract.of(arm.locked) == arm
    assert arm.cpu_flags == {"asimd", "fp"}
    assert {one[0][2] for one in contract.better(arm.virtual_packages)} == {"aarch64"}


@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=str)
def test_the_probe_is_a_program_of_its_platform(platform: platforms.Platform) -> None:
    made = emulation.program(platform)
    assert made[:5] == b"\x7fELF\x02"
    assert struct.unpack_from("<H", made, 18)[0] == {"linux-64": 62, "linux-aarch64": 183}[platform.name]
    assert struct.unpack_from("<Q", made, 64 + 32)[0] == len(made), "its segment is the whole file"


def test_programs_of_the_hosts_own_platform_are_started_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platforms.Platform, "native", True)
    assert emulation.starter("linux-64", None, {}, None) == Starter()  # type: ignore[arg-type]


# --- results ------------------------------------------------------------------------------------------


def test_files_say_which_platform_they_are_for() -> None:
    def name(form: str, platform: str) -> str:
        return formats.file_name(form, name="box", version="1.0", platform=platform)

    for form in formats.BY_NAME:
        usual, other = name(form, "linux-64"), name(form, "linux-aarch64")
        assert usual != other, form
        assert "aarch64" in other or "arm64" in other, form
    assert name("qcow2", "linux-aarch64") == "box-aarch64.qcow2"
    assert name("deb", "linux-aarch64") == "box_1.0_arm64.deb"
    assert name("payload-iso", "linux-aarch64") == "box-1.0-aarch64-payload.iso"


def built(home: Path, platform: str, link: str) -> Path:
    work = home / ".work"
    work.mkdir(parents=True)
    file = work / f"box{PLATFORMS[platform].mark}.qcow2"
    file.write_bytes(platform.encode())
    record = manifest.ArtifactRecord(
        file=file.name, format="qcow2", size=1, virtual_size=1, sha256="0" * 64, source=""
    )
    written = manifest.Manifest(
        name="box",
        version="1.0",
        summary="",
        platform=platform,
        id=platform,
        created="2024-01-01T00:00:00",
        builder="rootfs",
        accelerator=None,
        artifacts=(record,),
        inputs={},
        tools={},
        packages={},
        check=None,
        steps={},
    )
    manifest.write(written, work)
    results.publish(work, home / platform, link=link)
    return home / platform


def test_each_platform_has_its_latest_result(tmp_path: Path) -> None:
    intel = built(tmp_path / "box", "linux-64", results.LATEST)
    with pytest.raises(UsageError, match="is for linux-64, not for linux-aarch64"):
        results.find("box", tmp_path, platform="linux-aarch64")
    arm = built(tmp_path / "box", "linux-aarch64", results.latest("linux-aarch64"))
    assert results.find("box", tmp_path).disk == intel / "box.qcow2"
    assert results.find("box", tmp_path, platform="linux-64").disk == intel / "box.qcow2"
    found = results.find("box", tmp_path, platform="linux-aarch64")
    assert (found.disk, found.platform) == (arm / "box-aarch64.qcow2", "linux-aarch64")
    assert results.find(str(arm), tmp_path).platform == "linux-aarch64"
    assert results.find(str(arm / "box-aarch64.qcow2"), tmp_path).platform == "linux-aarch64"


def test_the_only_platform_of_a_definition_is_its_latest(tmp_path: Path) -> None:
    arm = built(tmp_path / "box", "linux-aarch64", results.LATEST)
    assert results.find("box", tmp_path).platform == "linux-aarch64"
    assert results.find("box", tmp_path, platform="linux-aarch64").disk == arm / "box-aarch64.qcow2"

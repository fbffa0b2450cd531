"""Machines of linux-aarch64 from a host of another platform: one lock for both, built, booted and checked.

Whatever the host, such a machine is emulated; so are the programs that make its system (`emulation`).
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.boot.conftest import ROOT, cli
from tests.conftest import Folders

from conda_appliance import contract, lock, manifest
from conda_appliance.platforms import PLATFORMS

ARM = PLATFORMS["linux-aarch64"]

#: What only this machine's own processor, kernel and loader answer.
CHECKS = '''\
"""The machine is of 64-bit Arm, started by UEFI."""


def test_it_is_what_it_was_made_for(host):
    assert host.check_output("uname -m") == "aarch64"
    assert host.check_output("dpkg --print-architecture") == "arm64"
    assert host.file("/sys/firmware/efi").exists
    platform = "import sysconfig; print(sysconfig.get_platform())"
    assert host.check_output(f"/opt/conda/bin/python -c '{platform}'") == "linux-aarch64"


def test_its_packages_are_for_it(host):
    records = host.check_output("cat /opt/conda/conda-meta/*.json")
    assert '"subdir": "linux-aarch64"' in records
    assert '"subdir": "linux-64"' not in records
'''


@pytest.fixture(scope="module")
def definition(folders: Folders) -> Path:
    """images/hello.yaml for both platforms, with checks of its own beside hello's and more forms, and its lock."""
    folder = folders.mktemp("aarch64")
    shutil.copytree(ROOT / "images/hello", folder / "hello")
    (folder / "hello/checks/test_platform.py").write_text(CHECKS, encoding="utf-8")
    text = (ROOT / "images/hello.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("base:\n", "platforms: [linux-64, linux-aarch64]\nbase:\n"),
        (
            "formats: [qcow2]",
            "formats: [qcow2, sh, oci, deb, rpm]\npackage: {maintainer: Me <me@example.com>}",
        ),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "hello.yaml"
    path.write_text(text, encoding="utf-8")
    done = cli("lock", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def result(definition: Path, folders: Folders) -> Path:
    """The image for linux-aarch64, booted and checked: the folder of its result."""
    out = folders.mktemp("out")
    done = cli("build", definition, "--platform", "linux-aarch64", "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "hello/latest-linux-aarch64").resolve() == Path(done.stdout.strip())
    assert not (out / "hello/latest").exists()
    return Path(done.stdout.strip())


def test_one_lock_has_both_platforms_whole(definition: Path) -> None:
    intel, arm = lock.read_all(lock.path_for(definition))
    for one, debian, subdir in ((intel, "amd64", "linux-64"), (arm, "arm64", "linux-aarch64")):
        assert one.debian is not None
        assert {package.architecture for package in one.debian.packages} == {debian, "all"}
        packages = one.conda.environments["base"].packages
        assert {package.subdir for package in packages} == {subdir, "noarch"}
    names = [{package.name for package in one.conda.environments["base"].packages} for one in (intel, arm)]
    assert names[0] == names[1]
    assert contract.of(arm.conda.virtual_packages).arch_level == "aarch64"
    assert "is up to date" in cli("lock", definition).stderr
    exported = cli("lock", definition, "--export", "explicit", "--platform", "linux-aarch64")
    assert exported.returncode == 0, exported.stderr
    assert "# platform: linux-aarch64\n" in exported.stdout
    assert "/linux-aarch64/python-" in exported.stdout
    assert "/linux-64/" not in exported.stdout


def test_it_booted_and_answers_as_on_any_platform(result: Path) -> None:
    written = manifest.read(result)
    assert (written.platform, written.accelerator) == ("linux-aarch64", "tcg")
    assert written.check is not None
    assert written.check.failed == 0
    report = json.loads((result / "report/report.json").read_text(encoding="utf-8"))
    passed = {one["name"].rpartition("::")[2] for one in report["checks"] if one["outcome"] == "passed"}
    # test_it_says_hello: the greeting, and the sum that compiled code gives. The same check as for linux-64.
    assert passed >= {
        "test_it_says_hello",
        "test_it_is_what_it_was_made_for",
        "test_its_packages_are_for_it",
        "test_its_processor_has_the_promised_level",
    }


def test_its_disk_has_a_root_of_its_own_type_and_no_bios(result: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", result / "hello-aarch64.qcow2", raw], check=True)
    said = subprocess.run(["sfdisk", "--json", raw], check=True, capture_output=True).stdout
    partitions = json.loads(said)["partitiontable"]["partitions"]
    assert [one["name"] for one in partitions] == ["esp", "root"]
    assert partitions[1]["type"] == ARM.root_type
    with raw.open("rb") as file:
        assert file.read(440) == bytes(440), "no code for a BIOS"


def test_all_that_ships_says_which_platform_it_is_for(result: Path, tmp_path: Path) -> None:
    def said(*command: str | Path) -> str:
        return subprocess.run([*command], check=True, capture_output=True, text=True).stdout.strip()

    assert said("dpkg-deb", "--field", result / "hello_1.0.0_arm64.deb", "Architecture") == "arm64"
    assert said("rpm", "-qp", "--queryformat", "%{ARCH}", result / "hello-1.0.0-1.aarch64.rpm") == "aarch64"
    with tarfile.open(result / "hello-1.0.0-aarch64.oci.tar") as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        (described,) = json.load(index)["manifests"]
    assert described["platform"] == {"architecture": "arm64", "os": "linux"}
    installer = result / "hello-1.0.0-Linux-aarch64.sh"
    refused = subprocess.run(
        ["sh", installer, "-b", "-p", tmp_path / "here"], check=False, capture_output=True, text=True
    )
    assert refused.returncode != 0
    assert "hello is for aarch64" in refused.stderr
    files = {one.file for one in manifest.read(result).artifacts}
    assert files == {
        "hello-aarch64.qcow2",
        "hello-1.0.0-Linux-aarch64.sh",
        "hello-1.0.0-aarch64.oci.tar",
        "hello_1.0.0_arm64.deb",
        "hello-1.0.0-1.aarch64.rpm",
    }


def test_its_environment_is_compiled_for_it_byte_code_too(result: Path) -> None:
    """The programs are of 64-bit Arm, and what its Python compiled under emulation is what it reads."""
    members: dict[str, bytes] = {}
    packed = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", result / "hello_1.0.0_arm64.deb"], stdout=subprocess.PIPE
    )
    with packed, tarfile.open(fileobj=packed.stdout, mode="r|") as archive:
        for member in archive:
            if member.name.endswith(("bin/python3.13", "flask/__pycache__/app.cpython-313.pyc")):
                file = archive.extractfile(member)
                assert file is not None
                members[Path(member.name).name] = file.read()
    assert struct.unpack_from("<H", members["python3.13"], 18)[0] == 183
    assert struct.unpack_from("<I", members["app.cpython-313.pyc"], 4)[0] == 1, "PEP 552: an unchecked hash"

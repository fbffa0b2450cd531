"""Vagrant boxes in use: Debian's Vagrant adds and updates them, and starts one by libvirt, in a host of the test's own.

What is not here: VirtualBox and vagrant-qemu. Their boxes are added, and their disk is compared and started.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.boot import test_forms
from tests.boot.conftest import ROOT, cli
from tests.boot.forms_seen import Seen
from tests.boot.virtual_host import Host, running
from tests.conftest import Folders

from conda_appliance import accelerator, process, resources
from conda_appliance.builders import rootfs_box
from conda_appliance.disk import ROOT_START, SECTOR

URL = "http://127.0.0.1:8765"
FORMS = "formats: [qcow2, box-libvirt, box-virtualbox, box-qemu]"

#: Vagrant reads this before a project's own: without KVM libvirt is told so and gives one processor (see
#: `accelerator.Accelerator.processors`), and the machine gets a name.
HOME = """\
Vagrant.configure("2") do |config|
  config.vm.hostname = "plant-7"
  config.vm.boot_timeout = 1200
  config.vm.provider :libvirt do |libvirt|
    libvirt.driver = "DRIVER"
    libvirt.cpus = CPUS
  end
end
"""


@pytest.fixture(scope="module")
def project(hello_rootfs: Path, folders: Folders) -> Path:
    """images/hello.yaml, built with every box, and those for all providers published."""
    folder = folders.mktemp("project")
    shutil.copytree(ROOT / "images", folder / "images")
    path = folder / "images/hello.yaml"
    path.write_text(path.read_text().replace("formats: [qcow2]", FORMS))
    publish(folder)
    return folder


def publish(project: Path) -> None:
    """Build what the definition asks for now, and put it into the folder that is served."""
    done = cli("build", "--lock", "--no-check", "images/hello.yaml", cwd=project)
    assert done.returncode == 0, done.stderr
    done = cli("catalog", "hello", "--to", "boxes", "--url", URL, cwd=project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(project / "boxes/hello.json")


@pytest.fixture(scope="module")
def host(project: Path, folders: Folders) -> Iterator[Host]:
    """A host with libvirt and Vagrant, which finds the published boxes at `URL`."""
    folder = folders.mktemp("host")
    with running(folder) as host:
        (host.home / "vagrant.d").mkdir()
        chosen = accelerator.accelerator()
        home = HOME.replace("DRIVER", "kvm" if chosen.name == "kvm" else "qemu")
        (host.home / "vagrant.d/Vagrantfile").write_text(home.replace("CPUS", str(chosen.processors)))
        serve = host.command(
            [sys.executable, "-m", "http.server", "8765", "--bind", "127.0.0.1"], project / "boxes"
        )
        with process.background(serve, log=folder / "http.log"):
            yield host


def test_the_machine_itself_has_no_vagrant_user(project: Path, tmp_path: Path) -> None:
    process.run(
        ["qemu-img", "convert", "-O", "raw", project / "out/hello/latest/hello.qcow2", tmp_path / "disk"]
    )
    place = f"{tmp_path}/disk?offset={ROOT_START * SECTOR}"
    for path in ("passwd", "shadow", "group"):
        text = process.run(["debugfs", "-R", f"cat /etc/{path}", place]).stdout
        assert "admin" in text and "vagrant" not in text
    assert "vagrant" not in process.run(["debugfs", "-R", "ls /home", place]).stdout


def test_boxes_are_added_and_updated_from_a_folder_and_over_http(
    host: Host, project: Path, seen: Seen
) -> None:
    for provider in ("virtualbox", "qemu"):
        host.vagrant("box", "add", project / "out/hello/hello.json", "--provider", provider)
        seen.opened(f"box-{provider}", "vagrant box add")
    host.vagrant("box", "add", f"{URL}/hello.json", "--provider", "libvirt")
    seen.opened("box-libvirt", "vagrant box add, over HTTP")
    added = host.home / "vagrant.d/boxes/hello/1.0.0"
    for first, second, driver in (("libvirt", "qemu", "qcow2"), ("libvirt", "virtualbox", "vmdk")):
        other = next((added / second).glob("box*.vmdk" if driver == "vmdk" else "box.img"))
        compare = ["qemu-img", "compare", "-f", "qcow2", "-F", driver, added / first / "box.img", other]
        process.run(compare)
    path = project / "images/hello.yaml"
    path.write_text(path.read_text().replace("1.0.0", "1.0.1").replace(FORMS, "formats: [box-libvirt]"))
    publish(project)
    said = host.vagrant("box", "update", "--box", "hello", "--provider", "libvirt")
    assert "Successfully added box 'hello' (v1.0.1)" in said
    assert "hello (libvirt, 1.0.1)" in host.vagrant("box", "list")


def test_without_a_box_the_top_level_vagrantfile_says_what_to_do(host: Host, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Vagrantfile", tmp_path)
    assert "validated successfully" in host.vagrant("validate", cwd=tmp_path)
    assert "No box is built yet" in host.vagrant("up", "appliance", cwd=tmp_path, check=False)


def test_vagrant_starts_the_last_box_and_lets_go_of_it(
    host: Host, project: Path, tmp_path: Path, seen: Seen
) -> None:
    """The machine ``appliance`` of the top-level Vagrantfile, through all of its life; beside it VirtualBox's disk."""
    ours = {
        "CONDA_APPLIANCE_BOX": str(project / "out/hello/hello.json"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "vagrant"),
    }
    vagrant = partial(host.vagrant, cwd=ROOT, env=ours)
    assert "validated successfully" in vagrant("validate")
    (vmdk,) = host.home.glob("vagrant.d/boxes/hello/1.0.0/virtualbox/*.vmdk")
    up, answer = process.side_by_side(
        partial(vagrant, "up", "appliance"),
        partial(test_forms.answer, vmdk, "vmdk", tmp_path / "virtualbox", like="vdi"),
    )
    assert "Key inserted!" in up, up
    script = "hostname; cat ~/.ssh/authorized_keys; cloud-init status; " + (
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8000/\").read().decode())'"
    )
    name, key, cloud, *said = vagrant("ssh", "appliance", "-c", script).splitlines()
    assert (name, cloud) == ("plant-7", "status: disabled")
    insecure = resources.find(rootfs_box.KEY).read_text()
    assert key.startswith("ssh-") and key.split()[1] not in insecure
    assert answer.decode().strip() == said[0]
    seen.ran("box-libvirt", "vagrant up, ssh, check, halt, destroy by libvirt", answer)
    seen.ran("box-virtualbox", "its vmdk in QEMU: ahci, virtio-net-pci", answer)

    checked = [sys.executable, "-m", "conda_appliance", "check", project / "images/hello.yaml"]
    report = [*checked, "--vagrant", "appliance", "--report", tmp_path / "report"]
    said_of_checks = host.run(*report, cwd=ROOT, env=ours)
    assert "11 do not apply" in said_of_checks, said_of_checks
    summary = (tmp_path / "report/summary.txt").read_text()
    assert "hello in Vagrant's machine appliance: " in summary and " 0 failed" in summary
    for check in ("test_it_says_hello", "test_only_the_definitions_keys_open_the_machine", "test_it_answers"):
        assert check in summary

    vagrant("halt", "appliance")
    assert "shut off" in host.run("virsh", "list", "--all", cwd=ROOT)
    vagrant("destroy", "-f", "appliance")
    assert "appliance" not in host.run("virsh", "list", "--all", cwd=ROOT)

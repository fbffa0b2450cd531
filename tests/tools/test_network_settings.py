"""The network waits for cloud-init exactly where cloud-init may have settings for it (templates/boot)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from conda_appliance import render

SEED = {
    "meta-data": "instance-id: one\nlocal-hostname: meta\n",
    "user-data": '#cloud-config\nhostname: "web1"\nusers: [default]\n',
}
WAITS = "start cloud-init-local.service"


class Machine:
    """A folder that looks like a machine's root, and programs that only note how they were called."""

    def __init__(self, folder: Path) -> None:
        self.root, self.tools, self.disc = folder / "root", folder / "tools", folder / "disc"
        for path in (self.tools, self.disc):
            path.mkdir()
        self.write("run/cloud-init/cloud.cfg", "datasource_list: [ NoCloud, None ]\n")
        self.write("proc/cmdline", "root=UUID=1 ro console=ttyS0\n")
        self.write("proc/sys/kernel/hostname", "image\n")
        self.write("sys/class/dmi/id/product_serial", "\n")
        self.write("etc/cloud/cloud.cfg", "users: [default]\n")
        for name, text in SEED.items():
            (self.disc / name).write_text(text)
        self.tool("systemctl", f'echo "$@" >{folder}/systemctl')
        self.tool("blkid", "echo /dev/vdb")
        self.tool("mount", f'cp {self.disc}/* "$3"')
        self.tool("umount", 'rm "$1"/*')

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def tool(self, name: str, script: str) -> None:
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def boot(self) -> str:
        """Run the script; what systemctl was asked to do."""
        script = render.text("boot/network-settings.j2")
        path = f"{self.tools}:{os.environ['PATH']}"
        subprocess.run(["sh", "-c", script, "sh", self.root], env={"PATH": path}, check=True)
        asked = self.tools.parent / "systemctl"
        return asked.read_text().strip() if asked.exists() else ""

    def name(self) -> str:
        return (self.root / "proc/sys/kernel/hostname").read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_seed_that_says_nothing_of_the_network_holds_nothing_up(machine: Machine) -> None:
    assert machine.boot() == ""
    assert machine.name() == "web1", "the DHCP server should hear the seed's name"
    assert not (machine.root / "run/conda-appliance-seed").exists()


@pytest.mark.parametrize(
    ("user_data", "name"),
    [
        ("#cloud-config\n", "meta"),
        ("#cloud-config\nhostname: db.example.org\n", "db"),
        ("#cloud-config\n  hostname: nested\n", "meta"),
        ("#cloud-config\nhostname: $(reboot)\n", "meta"),
    ],
)
def test_the_name_is_the_seeds(machine: Machine, user_data: str, name: str) -> None:
    (machine.disc / "user-data").write_text(user_data)
    assert machine.boot() == ""
    assert machine.name() == name


def test_settings_on_the_seed_are_waited_for(machine: Machine) -> None:
    (machine.disc / "network-config").write_text("version: 2\n")
    assert machine.boot() == WAITS
    assert not (machine.root / "run/conda-appliance-seed").exists()


def test_settings_in_the_seeds_meta_data_are_waited_for(machine: Machine) -> None:
    (machine.disc / "meta-data").write_text("network-interfaces: |\n  iface eth0 inet dhcp\n")
    assert machine.boot() == WAITS


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("run/cloud-init/cloud.cfg", "datasource_list: [ Ec2, None ]\n"),
        ("proc/cmdline", "ro ds=nocloud;s=http://10.0.0.1/\n"),
        ("sys/class/dmi/id/product_serial", "ds=nocloud-net;s=http://10.0.0.1/\n"),
        ("etc/cloud/cloud.cfg.d/99-network.cfg", "network:\n  version: 2\n"),
        ("var/lib/cloud/seed/nocloud/meta-data", ""),
    ],
)
def test_any_other_source_is_waited_for(machine: Machine, path: str, text: str) -> None:
    machine.write(path, text)
    assert machine.boot() == WAITS


@pytest.mark.parametrize("tool", ["blkid", "mount"])
def test_a_disc_that_cannot_be_read_is_left_to_cloud_init(machine: Machine, tool: str) -> None:
    machine.tool(tool, "exit 2")
    assert machine.boot() == WAITS

"""Discs in use, on one machine: the seed that it starts with, the appliance that runs from a CD, and an awkward disc.

The machine is another appliance, hello; `plant` runs from its disc beside it, at another prefix and port.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import awkward
import pytest
from tests.boot.conftest import ROOT, cli, wait_until
from tests.boot.forms_seen import Seen
from tests.conftest import Folders

from conda_appliance import disc, machine, process
from conda_appliance.machine import Machine

#: What a tree is, to compare one with another: types, modes, owners, names, targets of links, contents.
TREE = (
    "cd {folder} && LC_ALL=C && export LC_ALL && find . -printf '%y %m %U:%G %p %l\\n' | "
    "sed 's/^l [0-7]* /l /' | sort && find . -type f -exec sha256sum -- {{}} + | sort"
)


@pytest.fixture(scope="module")
def plant(folders: Folders, seen: Seen) -> Path:
    """The userspace disc of an appliance that is hello, elsewhere."""
    folder = folders.mktemp("plant")
    definition = (ROOT / "images/hello.yaml").read_text()
    for old, new in {
        "name: hello": "name: plant",
        "/opt/conda": "/opt/plant",
        "/opt/hello": "/srv/plant",
        "8000": "8001",
        "checks: [hello/checks/]": "",
        "hello/app/": str(ROOT / "images/hello/app"),
    }.items():
        definition = definition.replace(old, new)
    (folder / "plant.yaml").write_text(definition)
    assert cli("lock", folder / "plant.yaml").returncode == 0
    started = time.monotonic()
    done = cli("disc", folder / "plant.yaml", "userspace", "--to", folder)
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.strip())
    seen.disc("userspace-iso", made, time.monotonic() - started)
    process.run(["xorriso", "-indev", made, "-find"])
    seen.opened("userspace-iso", "xorriso")
    return made


@dataclass(frozen=True, kw_only=True)
class Discs:
    """A running machine, what the command said of its seeds, and what is in its drives."""

    machine: Machine
    seeds: str
    plant: Path
    awkward: awkward.Awkward

    def get(self) -> str:
        """What the service of the disc in the drive answers, or nothing."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.machine.forwards[8001]}/", timeout=20
            ) as answer:
                return str(answer.read().decode())
        except (OSError, urllib.error.URLError):
            return ""

    def root(self, command: str, *, check: bool = True, timeout: float = 300) -> str:
        done = self.machine.run("sudo -n sh -eu 2>&1", input=command, timeout=timeout, check=check)
        return done.stdout


@pytest.fixture(scope="module")
def discs(hello_rootfs: Path, plant: Path, folders: Folders) -> Iterator[Discs]:
    folder = folders.mktemp("discs")
    key = machine.new_key(folder)
    batch = folder / "plants.yaml"
    batch.write_text(
        f"keys: [{key.with_suffix('.pub').read_text().strip()}]\n"
        "settings: {PLANT: north}\n"
        "machines:\n"
        "  - hostname: plant-1\n"
        "  - hostname: plant-2\n"
        "    network: {address: 10.0.2.15/24, gateway: 10.0.2.2, dns: [10.0.2.3]}\n"
        "    settings: {PLANT: the south, LEVEL: '2'}\n"
    )
    done = cli("disc", "images/hello.yaml", "seed", batch, "--to", folder / "seeds")
    assert done.returncode == 0, done.stderr
    made = awkward.disc(folder)
    work = folder / "machine"
    work.mkdir()
    with machine.boot(
        hello_rootfs / "hello.qcow2",
        work=work,
        seed=folder / "seeds/seed-plant-2.iso",
        discs=[plant, made.image],
        forwards=[8001],
        name="plant-2",
    ) as running:
        running.wait_for_ssh("admin", key)
        # cloud-init restarts the services when it has read the seed.
        running.run("cloud-init status --wait", timeout=600, check=False)
        yield Discs(machine=running, seeds=done.stdout, plant=plant, awkward=made)


def test_a_machine_is_what_its_seed_disc_says(discs: Discs) -> None:
    """Name, key, a fixed address, and settings that reach the service; the rest of the image stays as it was."""
    running = discs.machine
    assert sorted(Path(line).name for line in discs.seeds.splitlines()) == [
        "seed-plant-1.iso",
        "seed-plant-2.iso",
    ]
    assert running.run("hostname").stdout.strip() == "plant-2"
    assert "10.0.2.15/24" in running.run("ip -4 -brief address").stdout
    assert "DHCP4" not in running.run("networkctl status --all").stdout, "the address is not the network's"
    mode = running.run("stat -c '%a %U' /etc/conda-appliance/settings.env").stdout.strip()
    assert mode == "600 root"
    process = running.run("systemctl show --property MainPID --value hello").stdout.strip()
    seen = running.run(f"sudo -n cat /proc/{process}/environ").stdout.split("\0")
    assert {"PLANT=the south", "LEVEL=2"} <= set(seen)
    assert "plant-2" in running.run("cat /etc/hosts /etc/hostname").stdout


def test_the_kernel_reads_what_is_awkward(discs: Discs) -> None:
    """Deep folders, long names, links, modes and owners; and a file above 4 GiB at its start, seam and end."""
    discs.root("mount -r /dev/disk/by-label/AWKWARD /mnt")
    there = discs.root(TREE.format(folder="/mnt/tree"))
    assert there == process.run(["sh", "-euc", TREE.format(folder=discs.awkward.tree)]).stdout
    assert discs.root("stat -c %s /mnt/large").strip() == str(awkward.LARGE)
    for at, expected in ((0, b"start"), (awkward.EXTENT, b"edge"), (awkward.LARGE - 3, b"end")):
        read = f"dd if=/mnt/large iflag=skip_bytes,count_bytes bs=4096 skip={at} count={len(expected)} status=none"
        assert discs.root(read) == expected.decode()
    discs.root("umount /mnt")


def test_an_appliance_runs_from_its_disc(discs: Discs, seen: Seen) -> None:
    """One command: mounted, its service answers; nothing can be written there, and byte code is not compiled."""
    assert disc.verify(discs.plant) > 10
    discs.root("find /etc /opt /srv /var/lib /var/log /run/appliances 2>/dev/null | sort >/root/before; true")
    discs.root("getent passwd >/root/passwd; mount -r /dev/disk/by-label/PLANT /mnt")
    said = discs.root("sh /mnt/mount.sh --yes; umount /mnt")
    assert "plant 1.0.0 runs from the disc" in said
    wait_until(lambda: "hello from an appliance" in discs.get(), 120, "an answer of the disc's service")
    assert "486" in discs.get(), "numpy works"
    seen.ran("userspace-iso", "mount.sh on a booted Debian 13", discs.get().encode())
    mounts = discs.root("findmnt --noheadings --list --output TARGET,FSTYPE,OPTIONS | grep plant")
    assert [line.split()[:2] for line in mounts.splitlines()] == [
        ["/run/appliances/plant", "iso9660"],
        ["/opt/plant", "squashfs"],
    ]
    assert "Read-only file system" in discs.root("touch /opt/plant/new", check=False)
    slow = "import sys, flask, numpy; print(sys.dont_write_bytecode, flask.__spec__.cached)"
    assert "/opt/plant/" in discs.root(f"/opt/plant/bin/python -c '{slow}'")
    again = discs.root("sh /run/appliances/plant/mount.sh --dry-run --no-verify")
    assert "is taken away first" in again


def test_a_disc_that_is_taken_out_and_put_in_again(discs: Discs) -> None:
    """By the drive's button, and torn out while the service runs: stopped, with the reason told; back with the disc."""
    discs.machine.eject()
    _is_away(discs)
    assert "the disc PLANT is not in the machine" in discs.root("systemctl status plant", check=False)
    discs.machine.insert(discs.plant)
    wait_until(lambda: "hello" in discs.get(), 120, "an answer after the disc was put in again")
    discs.machine.unplug()
    _is_away(discs)
    assert "the disc PLANT is not in the machine" in discs.root("journalctl -b -u plant -n 20")
    began = time.monotonic()
    refused = discs.root("systemctl start plant", check=False)
    assert "dependency" in refused.lower() and time.monotonic() - began < 90
    discs.machine.plug(discs.plant)
    wait_until(lambda: "hello" in discs.get(), 120, "an answer after the disc was plugged in again")


def _is_away(discs: Discs) -> None:
    """No service, no mount, and the machine itself as well as ever."""
    wait_until(
        lambda: (
            "inactive" in (said := discs.root("systemctl is-active plant opt-plant.mount", check=False))
            and "\nactive" not in f"\n{said}"
        ),
        60,
        "the service and the mount have stopped",
    )
    assert "/opt/plant" not in discs.root("cat /proc/mounts")
    assert discs.get() == ""
    assert discs.root("systemctl is-active hello").strip() == "active"


def test_what_was_set_up_is_undone_without_trace(discs: Discs) -> None:
    """Even when the disc is not there any more."""
    discs.machine.unplug()
    _is_away(discs)
    said = discs.root("sh /etc/conda-appliance/discs/plant/mount.sh --undo --yes")
    assert said.endswith("Nothing of it is left.\n")
    after = discs.root("find /etc /opt /srv /var/lib /var/log /run/appliances 2>/dev/null | sort; true")
    assert set(after.splitlines()) - set(discs.root("cat /root/before").splitlines()) == set()
    assert discs.root("getent passwd | diff /root/passwd -") == ""
    assert discs.root("systemctl --failed --no-legend; losetup --all") == ""

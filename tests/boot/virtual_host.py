"""A host of virtual machines of the test's own: libvirt and Vagrant in namespaces, which end with the block.

Its network is empty but for what libvirt makes in it; its libvirt knows no machines, and leaves none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.boot.conftest import wait_until

from conda_appliance import process

#: The words are the folder with a var, a run, an etc and a log of libvirt's own, and where to say that it is ready.
_INSIDE = """
ip link set lo up
for name in etc var run log; do mkdir -p "$1/$name"; done
cp -a /etc/libvirt/. "$1/etc"
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/var" /var/lib/libvirt
mount --bind "$1/log" /var/log/libvirt
mount -t tmpfs -o mode=0755 run /run
mkdir /run/libvirt /run/lock
mkdir -p /var/lib/libvirt/images /var/lib/libvirt/dnsmasq /var/lib/libvirt/qemu
cat >/etc/libvirt/qemu.conf <<'SETTINGS'
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
SETTINGS
rm -f /etc/libvirt/qemu/networks/autostart/*
virtlogd --daemon
libvirtd --daemon
for turn in $(seq 100); do virsh --connect qemu:///system version >/dev/null 2>&1 && break; sleep 0.2; done
virsh --connect qemu:///system version
echo ready >"$2"
# Not exec: this shell is the first process here, and reaps what ends, as libvirt expects of its machines.
sleep infinity &
wait
"""


@dataclass(frozen=True)
class Host:
    """The namespaces, by a process in them; ``home`` is Vagrant's, with its boxes and settings."""

    pid: int
    home: Path

    def command(self, argv: Sequence[process.Argument], cwd: Path) -> list[process.Argument]:
        """The command that runs a program in it."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", f"--wdns={cwd}"]
        return [*enter, "--", *argv]

    def run(
        self, *argv: process.Argument, cwd: Path, check: bool = True, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a program in it; what it says."""
        settings = {
            "HOME": str(self.home),
            "VAGRANT_HOME": str(self.home / "vagrant.d"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            # It asks nobody on the network for anything.
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_BOX_UPDATE_CHECK_DISABLE": "1",
            **(env or {}),
        }
        done = process.run(self.command(argv, cwd), env=settings, check=False)
        said = done.stdout + done.stderr
        assert not check or done.returncode == 0, f"{process.shown(done.argv)}\n{said}"
        return said

    def vagrant(self, *words: process.Argument, cwd: Path | None = None, **more: Any) -> str:
        """Run Vagrant in it, in the folder ``cwd``, else where there is no Vagrantfile."""
        return self.run("vagrant", *words, cwd=cwd or self.home, **more)


@contextmanager
def running(folder: Path) -> Iterator[Host]:
    """A host that runs while the block does; ``folder`` is for all that it keeps."""
    own = folder / "libvirt"
    (folder / "home").mkdir()
    own.mkdir()
    log, ready = folder / "libvirt.log", folder / "ready"
    flags = ["--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
    argv = ["unshare", *flags, "--", "sh", "-eu", "-c", _INSIDE, "sh", own, ready]
    with process.background(argv, log=log) as child:

        def started() -> bool:
            assert child.poll() is None, log.read_text()
            return ready.exists()

        wait_until(started, 60, "libvirt answers", log=log)
        (inside,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        yield Host(pid=int(inside), home=folder / "home")
    shutil.rmtree(own)

"""Machines that never come up, and what is said about them: real QEMU, guests of one sector, no operating system."""

import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from conda_appliance import accelerator, machine, process, qemu
from conda_appliance.accelerator import Accelerator
from conda_appliance.errors import BuildError, UsageError

TCG = Accelerator(name="tcg", reason="a test of failures")

# Boot sectors that speak on COM1. What they say stands 32 bytes in, behind the code.
#   be 20 7c       mov  si, 0x7c20
#   ba f8 03       mov  dx, 0x3f8
#   ac       next: lodsb
#   84 c0          test al, al
#   74 03          jz   done
#   ee             out  dx, al
#   eb f8          jmp  next
#   …        done:
SAY = bytes.fromhex("be207c baf803 ac 84c0 7403 ee ebf8")
HANG = bytes.fromhex("f4 ebfd")  # hlt; jmp hlt
#   66 ba 04 06 00 00   mov edx, 0x604     the ACPI control register of q35
#   66 b8 00 20 …       mov ax, 0x2000     S5: off;   66 ef  out dx, ax
OFF = bytes.fromhex("ba0406 b80020 ef f4 ebfd")


def guest(folder: Path, words: str, end: bytes = HANG) -> Path:
    """A disk whose boot sector writes ``words`` to the console and then does ``end``."""
    code = (SAY + end).ljust(0x20, b"\0") + words.encode() + b"\0"
    disk = folder / "guest.img"
    disk.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    return disk


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "a folder, with a comma"
    folder.mkdir()
    return folder


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie at most."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_for(condition, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_guest_that_never_boots_is_told_with_its_last_words(tmp_path, work):
    disk = guest(tmp_path, "first line\r\nwaiting for the root device: no root\r\n")
    before = disk.read_bytes()
    key = machine.new_key(work)
    with machine.boot(disk, work=work, accelerated_by=TCG, memory_mib=64) as running:
        assert wait_for(lambda: b"no root" in running.serial_log.read_bytes())
        with pytest.raises(BuildError) as failure:
            running.wait_for_ssh("admin", key, timeout=3)
        pid = running._qemu.pid
    assert "could not be reached over SSH within 3 s" in failure.value.message
    assert "  | waiting for the root device: no root" in failure.value.message
    assert str(running.serial_log) in failure.value.hint
    assert has_ended(pid)
    assert disk.read_bytes() == before


def test_a_kernel_that_panics_is_not_waited_for(tmp_path, work):
    disk = guest(tmp_path, "[    1.2] Kernel panic - not syncing: no root\r\n")
    key = machine.new_key(work)
    with machine.boot(disk, work=work, accelerated_by=TCG, memory_mib=64) as running:
        with pytest.raises(BuildError, match="kernel stopped") as failure:
            running.wait_for_ssh("admin", key, timeout=600)
        assert running.running
    assert "  | [    1.2] Kernel panic - not syncing: no root" in failure.value.message


def test_an_emulated_machine_has_one_processor():
    assert TCG.processors == 1
    assert Accelerator(name="kvm", reason="a test").processors == min(2, os.cpu_count())


@pytest.mark.parametrize("late", [0.0, 2.0], ids=["", "on a busy host"])
def test_a_guest_that_switches_itself_off_is_told_as_such(tmp_path, work, monkeypatch, late):
    connect = qemu.connect

    def connect_late(*given):
        time.sleep(late)  # what a busy host does between QEMU's start and our first word to it
        return connect(*given)

    monkeypatch.setattr(qemu, "connect", connect_late)
    disk = guest(tmp_path, "going down\r\n", end=OFF)
    key = machine.new_key(work)
    with (
        machine.boot(disk, work=work, accelerated_by=TCG, memory_mib=64) as running,
        pytest.raises(BuildError, match=r"(?s)powered off before it answered over SSH.*going down"),
    ):
        running.wait_for_ssh("admin", key, timeout=60)


def test_a_qemu_that_is_killed_in_the_middle_is_told_at_once(tmp_path, work):
    key = machine.new_key(work)
    with machine.boot(guest(tmp_path, "hello\r\n"), work=work, accelerated_by=TCG, memory_mib=64) as running:
        assert wait_for(lambda: b"hello" in running.serial_log.read_bytes())
        threading.Timer(0.5, os.kill, (running._qemu.pid, signal.SIGKILL)).start()
        with pytest.raises(BuildError, match=r"(?s)was killed \(signal 9\).*\| hello"):
            running.wait_for_ssh("admin", key, timeout=120)


def test_a_port_in_use_is_refused_with_the_way_to_see_by_whom(tmp_path, work):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use") as failure,
            machine.boot(guest(tmp_path, ""), work=work, accelerated_by=TCG, ssh_port=port),
        ):
            pytest.fail("the machine started all the same")
    assert f"sport = :{port}" in failure.value.hint


def test_ports_are_free_ones_of_the_loopback_address(tmp_path, work):
    disk = guest(tmp_path, "")
    with machine.boot(disk, work=work, accelerated_by=TCG, memory_mib=64, forwards=[80, 443]) as running:
        assert set(running.forwards) == {80, 443}
        ports = {running.ssh_port, *running.forwards.values()}
        assert len(ports) == 3
        listening = process.run(["ss", "-H", "-tlnp"]).stdout.splitlines()
        ours = [line.split()[3] for line in listening if f"pid={running._qemu.pid}," in line]
        assert sorted(ours) == sorted(f"127.0.0.1:{port}" for port in ports)


def test_a_disk_that_is_none_is_told_in_qemus_words(tmp_path, work):
    (tmp_path / "broken.qcow2").write_bytes(b"QFI\xfb" + bytes(60))
    with (
        pytest.raises(BuildError, match="qemu-img failed"),
        machine.boot(tmp_path / "broken.qcow2", work=work, accelerated_by=TCG),
    ):
        pytest.fail("the machine started all the same")


def test_a_guest_that_ignores_the_power_button_is_switched_off(tmp_path, work):
    with machine.boot(guest(tmp_path, "up\r\n"), work=work, accelerated_by=TCG, memory_mib=64) as running:
        assert wait_for(lambda: b"up" in running.serial_log.read_bytes())
        assert running.shut_down(timeout=1) is False
        assert not running.running


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_the_firmware_starts_and_only_bios_runs_a_boot_sector(tmp_path, work, firmware):
    disk = guest(tmp_path, "the sector ran\r\n")
    with machine.boot(disk, work=work, accelerated_by=TCG, memory_mib=128, firmware=firmware) as running:
        said = b"the sector ran" if firmware == "bios" else b"BdsDxe"
        assert wait_for(lambda: said in running.serial_log.read_bytes(), 120)


def test_the_command_to_log_in_says_every_setting_itself(tmp_path):
    folder = tmp_path / "100% mine"
    folder.mkdir()
    key, known = machine.new_key(folder), folder / "known_hosts"
    ssh, *words = machine.ssh_argv(port=2222, user="admin", key=key, known_hosts=known)
    understood = process.run([ssh, "-G", *words]).stdout.splitlines()
    assert {
        "user admin",
        "hostname 127.0.0.1",
        "port 2222",
        f"identityfile {key}",
        "identitiesonly yes",
        f"userknownhostsfile {known}",
    } <= set(understood)


def test_the_probes_guest_runs_to_its_end_in_software(tmp_path):
    """The boot sector itself is sound: whoever fails it is not a processor (or is very slow)."""
    status, _, said = accelerator.run_test_guest(
        ["-accel", "tcg", "-cpu", accelerator.CPU["tcg"]], tmp_path, deadline=120
    )
    assert (status, said) == (accelerator.PASSED, "")


def test_the_probes_guest_says_what_a_processor_lacks(tmp_path):
    status, _, _ = accelerator.run_test_guest(["-accel", "tcg", "-cpu", "pentium3"], tmp_path, deadline=120)
    assert accelerator.FAILED[status] == "its processor lacks SSE3"


def test_kvm_is_used_only_where_the_probe_came_to_its_end():
    found = accelerator.probe()
    if found.name == "kvm":
        assert re.fullmatch(r"a 64-bit test guest ran to its end in \d\.\d s", found.reason)
    else:
        assert found.reason.startswith("KVM does not work here: ")


def test_the_probes_answer_is_kept(tmp_path, monkeypatch):
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(accelerator.VARIABLE, raising=False)
    monkeypatch.setattr(accelerator, "DEVICE", device)
    first = accelerator.accelerator()
    (tmp_path / "bin").mkdir()
    only_version = tmp_path / "bin" / "qemu-system-x86_64"
    only_version.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {process.find("qemu-system-x86_64")} --version\nexit 99\n'
    )
    only_version.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=os.pathsep)
    assert accelerator.accelerator() == first

"""QEMU's command line, what its monitor and a console say, and the test guest's bytes."""

import socket
import threading
from pathlib import Path

import pytest

from conda_appliance import accelerator, qemu
from conda_appliance.accelerator import Accelerator
from conda_appliance.errors import BuildError, UsageError
from conda_appliance.qemu import Forward

TCG = Accelerator(name="tcg", reason="a test")


def line(**changes):
    given = {
        "name": "hello",
        "accelerator": TCG,
        "firmware": "bios",
        "memory_mib": 1024,
        "cpus": 2,
        "forwards": [Forward(guest=22, host=2222), Forward(guest=8000)],
    }
    return qemu.arguments(**{**given, **changes})


def test_ports_are_forwarded_from_the_loopback_address_only():
    rules = [word for word in line() if "hostfwd" in word]
    assert rules == ["user,id=net,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:0-:8000"]


def test_emulation_hides_what_makes_guests_slow():
    argv = line()
    assert argv[argv.index("-accel") + 1] == "tcg,thread=multi"
    assert argv[argv.index("-cpu") + 1] == "max,-svm,-la57"


def test_kvm_gives_the_guest_the_hosts_processor():
    argv = line(accelerator=Accelerator(name="kvm", reason="a test"))
    assert argv[argv.index("-accel") + 1] == "kvm"
    assert argv[argv.index("-cpu") + 1] == "host"


def test_a_bios_machine_has_no_flash_and_an_uefi_machine_has_its_own_variables():
    assert not any("pflash" in word for word in line())
    flash = [word for word in line(firmware="uefi", code=Path("/fw/CODE.fd")) if "pflash" in word]
    assert [word.rpartition("file=")[2] for word in flash] == ["/fw/CODE.fd", qemu.VARIABLES]
    assert "readonly=on" in flash[0]
    assert "readonly" not in flash[1]


def test_the_seed_is_read_only(tmp_path):
    seed = tmp_path / "a,b.iso"
    drive = next(word for word in line(seed=seed) if "id=seed" in word)
    assert "readonly=on" in drive
    assert drive.endswith("a,,b.iso"), "a comma in a path would end the value"


def test_discs_lie_in_drives_that_can_be_opened():
    argv = line(discs=[Path("/one.iso"), Path("/a,b.iso")])
    assert [word for word in argv if word.startswith("scsi-cd")] == [
        "scsi-cd,id=cd0,bus=scsi.0,drive=disc0",
        "scsi-cd,id=cd1,bus=scsi.0,drive=disc1",
    ]
    assert "if=none,id=disc1,format=raw,media=cdrom,readonly=on,file=/a,,b.iso" in argv
    assert not any("scsi" in word for word in line()), "a machine without discs has no controller to look for"


def test_forwarded_ports_are_read_from_the_monitor():
    said = (
        "Hub -1 (net):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[HOST_FORWARD]   8       127.0.0.1 42997       10.0.2.15    22     0     0\r\n"
        "  TCP[ESTABLISHED]    9       127.0.0.1 50000       10.0.2.15    22     0     0\r\n"
        "  TCP[HOST_FORWARD]   3       127.0.0.1 43969       10.0.2.15  8000     0     0\r\n"
    )
    assert qemu.forwarded(said) == {22: 42997, 8000: 43969}


def test_the_tail_of_a_console_is_plain_text(tmp_path):
    log = tmp_path / "console.log"
    log.write_bytes(
        b"\x1b[2J\x1b[01;01HBdsDxe: loading\r\n\x1b]104\x07\r\n[\x1b[0;32m  OK  \x1b[0m] Started ssh.\r\n"
        + b"last\xff\r\n"
    )
    assert qemu.tail(log) == ["BdsDxe: loading", "[  OK  ] Started ssh.", "last\ufffd"]
    assert qemu.tail(log, 1) == ["last\ufffd"]
    assert qemu.tail(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"QFI\xfb\0\0\0\3", "qcow2"),
        (b"KDMV\3\0\0\0", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"<<< text >>>".ljust(64, b"\0") + b"\x7f\x10\xda\xbe", "vdi"),
        (b"\xeb\x63\x90".ljust(4096, b"\0") + b"conectix".ljust(512, b"\0"), "vpc"),
        (b"\xeb\x63\x90", "raw"),
        (b"", "raw"),
    ],
)
def test_the_format_of_a_disk_shows_in_its_bytes(tmp_path, content, named):
    image = tmp_path / "disk.img"
    image.write_bytes(content)
    assert qemu.disk_format(image) == named


@pytest.fixture
def speaker(tmp_path, monkeypatch):
    """A stand-in for QEMU's end of the control socket, in a folder whose path is too long for a socket's."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.chdir(folder)
    server = socket.socket(socket.AF_UNIX)
    server.bind(qemu.CONTROL)
    server.listen()

    def speak(*answers):
        def serve():
            peer, _ = server.accept()
            with peer, peer.makefile("rb") as lines:
                peer.sendall(b'{"QMP": {}}\n')
                for answer in (b'{"return": {}}', *answers):
                    lines.readline()
                    peer.sendall(answer + b"\n")

        threading.Thread(target=serve, daemon=True).start()
        return folder

    yield speak
    server.close()


@pytest.mark.allow_loopback
def test_answers_are_told_from_events(speaker):
    control = qemu.Control(speaker(b'{"event": "POWERDOWN"}\n{"return": "text"}'))
    assert control.monitor("info usernet") == "text"
    control.close()


@pytest.mark.allow_loopback
def test_what_qemu_refuses_is_told(speaker):
    control = qemu.Control(speaker(b'{"error": {"desc": "no such command"}}'))
    with pytest.raises(BuildError, match="no such command"):
        control.execute("nonsense")
    control.close()


@pytest.mark.allow_loopback
def test_a_qemu_that_hung_up_is_noticed(speaker):
    control = qemu.Control(speaker())
    with pytest.raises(OSError):
        control.execute("quit")
    control.close()


def test_the_test_guest_is_a_boot_sector():
    sector = accelerator.boot_sector()
    assert len(sector) == 512
    assert sector[-2:] == b"\x55\xaa"
    assert sector[:3] == b"\xfa\x31\xc0"
    assert sector[0xF9:510] == bytes(510 - 0xF9), "nothing after the segment descriptors"


@pytest.mark.parametrize("name", ["kvm", "tcg"])
def test_the_variable_decides_instead_of_the_probe(monkeypatch, name):
    monkeypatch.setenv(accelerator.VARIABLE, name)
    assert accelerator.accelerator() == Accelerator(name=name, reason="CONDA_APPLIANCE_ACCEL says so")


def test_an_unknown_accelerator_is_refused(monkeypatch):
    monkeypatch.setenv(accelerator.VARIABLE, "xen")
    with pytest.raises(UsageError, match="'xen' is no accelerator"):
        accelerator.accelerator()


def test_without_the_device_there_is_no_probe(monkeypatch, tmp_path):
    monkeypatch.delenv(accelerator.VARIABLE, raising=False)
    monkeypatch.setattr(accelerator, "DEVICE", tmp_path / "kvm")
    found = accelerator.accelerator()
    assert (found.name, found.reason) == ("tcg", f"there is no {tmp_path}/kvm")

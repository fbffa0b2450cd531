"""How a start is told: what arrived when, what systemd says, and which phases that makes."""

import json
import socket
import threading
import time

import pytest

from conda_appliance import boottime
from conda_appliance.boottime import BootTime, Transcript

ANSWERS = """=== manager
UserspaceTimestampMonotonic=6245422
FinishTimestampMonotonic=45504994
=== kernel
[    3.434229] Run /init as init process
=== time
Startup finished in 6.245s (kernel) + 39.259s (userspace) = 45.504s
graphical.target reached after 34.699s in userspace.
=== blame
11.082s dev-vda3.device
 8.848s cloud-init-main.service
 1min 2.500s slow.service
 507ms systemd-machine-id-commit.service
=== chain
hello.service +1.748s
=== ssh
ActiveEnterTimestampMonotonic=42110324

ActiveEnterTimestampMonotonic=0
"""


@pytest.fixture
def asked():
    return boottime.read_answers("50.00 90.00\n", ANSWERS, sent=54.9, received=55.1)


def test_a_line_is_dated_by_the_first_of_its_text():
    said = Transcript()
    said.feed(1.0, b"GRUB\n\r\x1b[2J")  # the cursor moves long before anything is written
    said.feed(2.0, b"Load")
    said.feed(3.0, b"ing\nrest")
    assert said.lines == [(1.0, "GRUB"), (2.0, "Loading")]
    assert said.first("Loading") == 2.0
    assert said.first("rest") == 3.0, "a line that has not ended yet counts"
    assert said.first("kernel") is None
    assert said.text() == "    1.000  GRUB\n    2.000  Loading\n"


def test_bytes_that_are_no_text_do_no_harm():
    said = Transcript()
    said.feed(0.5, b"\xff\xfe\x1b[0;32m  OK  \x1b[0m\r\n")
    assert said.lines[0][0] == 0.5
    assert said.lines[0][1].endswith("  OK")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8.848s", 8.848), ("507ms", 0.507), ("1min 2.5s", 62.5), ("2h 3min", 7380), ("12us", 0.000012)],
)
def test_time_spans_as_systemd_writes_them(text, seconds):
    assert boottime.span(text) == seconds


@pytest.mark.parametrize("text", ["soon", "3 apples", "5parsecs"])
def test_what_is_no_time_span_is_refused(text):
    with pytest.raises(ValueError, match="not a time span"):
        boottime.span(text)


def test_devices_only_wait_for_others_and_are_not_blamed(asked):
    assert asked.units == (
        ("cloud-init-main.service", 8.848),
        ("slow.service", 62.5),
        ("systemd-machine-id-commit.service", 0.507),
    )


def test_the_guests_clock_is_set_against_ours(asked):
    assert asked.zero == pytest.approx(5.0)
    assert asked.uncertain == pytest.approx(0.1)
    assert (asked.init, asked.systemd, asked.finished, asked.ssh) == (
        3.434229,
        6.245422,
        45.504994,
        42.110324,
    )


def test_what_the_machine_does_not_tell_is_not_made_up():
    asked = boottime.read_answers("1.0 1.0", "", sent=0, received=2)
    assert (asked.init, asked.systemd, asked.finished, asked.ssh, asked.units) == (None, None, None, None, ())


def console(*lines):
    said = Transcript()
    for at, text in lines:
        said.feed(at, text.encode() + b"\n")
    return said


def names_and_ends(firmware, serial, asked):
    return [(one.name, one.ends) for one in boottime.phases(firmware, serial, asked)]


def test_all_phases_of_our_own_image_on_bios(asked):
    firmware = console((0.1, "Booting from Hard Disk..."), (0.2, "Booting from 0000:7c00"))
    serial = console((0.5, "Loading the kernel"), (2.0, "Starting the kernel"))
    phases = boottime.phases(firmware, serial, asked)
    assert [(one.name, one.seconds, one.ends) for one in phases] == [
        ("firmware", 0.2, 0.2),
        ("loader", 1.8, 2.0),
        ("kernel", 6.43, 8.43),
        ("initramfs", 2.81, 11.25),
        ("userspace", 39.26, 50.5),
    ]


def test_uefi_says_on_the_console_what_it_starts(asked):
    serial = console((3.0, "BdsDxe: loading Boot0001"), (3.1, 'BdsDxe: starting Boot0001 "UEFI Misc Device"'))
    phases = boottime.phases(Transcript(), serial, asked)
    assert (phases[0].name, phases[0].ends) == ("firmware", 3.1)
    assert (phases[1].name, phases[1].ends) == ("loader", 5.0)
    assert "unpacking the kernel is in it" in phases[1].known_from


def test_what_cannot_be_told_apart_is_one_phase(asked):
    phases = boottime.phases(Transcript(), Transcript(), asked)
    assert (phases[0].name, phases[0].ends) == ("firmware, loader", 5.0)
    assert "not told apart" in phases[0].known_from
    silent = boottime.read_answers("50.0 1", ANSWERS.replace("[    3.434229]", ""), sent=55, received=55)
    assert names_and_ends(Transcript(), Transcript(), silent)[1][0] == "kernel, initramfs"


def boot_time(asked, **changes):
    given = {
        "image": "hello.qcow2",
        "firmware": "bios",
        "accelerator": "a test",
        "cpus": 2,
        "service": "hello",
        "answered": 51.7,
        "cpu": 74.8,
        "phases": boottime.phases(console((0.2, "Booting from 0000:7c00")), Transcript(), asked),
        "asked": asked,
    }
    return BootTime(**{**given, **changes})


def test_the_table_counts_the_answer_from_systemds_start(asked):
    text = boot_time(asked).text(units=1)
    assert "service answers      40.45    51.70" in text
    assert "SSH server runs               47.11" in text
    assert "processor time until the answer: 74.8 s" in text
    assert "slow.service" not in text


def test_a_machine_without_a_service_has_phases_all_the_same(asked):
    text = boot_time(asked, service=None, answered=None, cpu=None).text()
    assert "userspace" in text
    assert "answer" not in text


def test_the_report_is_kept_for_programs_and_people(asked, tmp_path):
    boot_time(asked).write(tmp_path, {"console": console((1.0, "hello"))})
    value = json.loads((tmp_path / "boot-time.json").read_text())
    assert value["answered"] == 51.7
    assert value["phases"][0]["name"] == "firmware"
    assert value["asked"]["units"][0] == {"unit": "cloud-init-main.service", "seconds": 8.848}
    assert "graphical.target reached" in (tmp_path / "boot-time.txt").read_text()
    assert (tmp_path / "console-times.txt").read_text() == "    1.000  hello\n"


@pytest.mark.allow_loopback
def test_a_service_is_asked_until_it_answers_well():
    answers = [b"", b"HTTP/1.1 503 Busy\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    heard.append(connection.recv(1000))
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        asker = boottime.Asker(server.getsockname()[1], "/health", time.monotonic())
        assert asker.wait(30) is not None
    assert len(heard) == 3
    assert heard[0].startswith(b"GET /health HTTP/1.0\r\n")


@pytest.mark.allow_loopback
def test_a_service_that_never_answers_is_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert boottime.Asker(server.getsockname()[1], "/", time.monotonic()).wait(0.1) is None

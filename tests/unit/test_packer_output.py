"""Reading Packer: recorded lines become the words of a person who waits, and of one who must mend something."""

import pytest

from conda_appliance.builders.packer_output import Progress, decode, hopeless, parse_version, plain_console


def hear(*lines: str) -> tuple[Progress, list[str]]:
    progress, told = Progress(), []
    for line in lines:
        if (said := decode(line)) is not None:
            told += progress.hear(said)
    return progress, told


def test_a_message_is_unescaped():
    line = "1795469859,,ui,say,==> qemu.machine: Found port (SSH%!(PACKER_COMMA) WinRM): 3806.\\nnext\\r\n"
    said = decode(line)
    assert said is not None
    assert (said.kind, said.text) == ("say", "==> qemu.machine: Found port (SSH, WinRM): 3806.\nnext")


@pytest.mark.parametrize(
    "line",
    [
        "1795469862,,error-count,1",
        "1795469862,qemu.machine,error,Error connecting to VNC",
        "1795469862,,version,1.6.6",
        "panic: runtime error, goroutine 1, x, y, z",
        "",
    ],
)
def test_other_lines_are_no_messages(line):
    assert decode(line) is None


def test_a_build_is_told_step_by_step():
    progress, told = hear(
        "1,,ui,say,==> qemu.machine: Retrieving ISO",
        "1,,ui,say,==> qemu.machine: Starting VM%!(PACKER_COMMA) booting disk image",
        "1,,ui,say,==> qemu.machine: Waiting for SSH to become available...",
        "1,,ui,say,==> qemu.machine: Connected to SSH!",
        "1,,ui,say,==> qemu.machine: Provisioning with Ansible...",
        "1,,ui,message,    qemu.machine: TASK [conda : Check the payload disc] ******",
        "1,,ui,message,    qemu.machine: changed: [default]",
        "1,,ui,message,    qemu.machine: TASK [Run the definition's own roles] ******",
        "1,,ui,say,==> qemu.machine: Gracefully halting virtual machine...",
    )
    assert told == [
        "checking the base disk",
        "starting the machine",
        "booting, waiting for its SSH",
        "logged in",
        "starting Ansible",
        "conda: Check the payload disc",
        "Run the definition's own roles",
        "shutting down",
    ]
    assert progress.phase == "shutting down"
    assert progress.errors == []


def test_a_failed_task_says_what_its_program_said():
    progress, _ = hear(
        "1,,ui,say,==> qemu.machine: Provisioning with Ansible...",
        "1,,ui,message,    qemu.machine: TASK [conda : Check the payload disc] ******",
        '1,,ui,message,    qemu.machine: fatal: [default]: FAILED! => {"changed": false%!(PACKER_COMMA) '
        '"msg": "non-zero return code"%!(PACKER_COMMA) "rc": 1%!(PACKER_COMMA) '
        '"stderr": "environment.tar: FAILED\\nthe payload disc is damaged"}',
        "1,,ui,error,==> qemu.machine: Provisioning step had errors: Running the cleanup provisioner",
    )
    assert progress.task == "conda: Check the payload disc"
    assert progress.failure == "environment.tar: FAILED\nthe payload disc is damaged"


def test_a_task_without_standard_error_gives_its_message():
    progress, _ = hear(
        "1,,ui,message,    qemu.machine: TASK [app : Send them] ******",
        '1,,ui,message,    qemu.machine: fatal: [default]: UNREACHABLE! => {"msg": "Data could not be sent"}',
    )
    assert progress.failure == "Data could not be sent"


def test_errors_are_kept_and_summaries_are_not():
    progress, _ = hear(
        "1,,ui,error,==> qemu.machine: Timeout waiting for SSH.",
        "1,,ui,error,Build 'qemu.machine' errored after 5 minutes: Timeout waiting for SSH.",
        "1,,ui,error,\\n==> Some builds didn't complete successfully and had errors:",
    )
    assert progress.errors == ["Timeout waiting for SSH."]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("Packer v1.6.6\n", (1, 6, 6)),
        ("Packer v1.11.2\n\nYour version of Packer is out of date! The latest is 1.12.0", (1, 11, 2)),
        ("Packer v1.9.0-dev (abc)", (1, 9, 0)),
        ("/usr/share/dict/words", None),  # cracklib's packer, of the same name
        ("", None),
    ],
)
def test_versions(said, version):
    assert parse_version(said) == version


def test_a_console_is_read_without_its_escapes():
    raw = b"[\x1b[0;32m  OK  \x1b[0m] Started.\r\n\x1b[!p\x1b]104\x07\x1b[?7h\x1b[6n\x1bc login: \xff"
    assert plain_console(raw) == "[  OK  ] Started.\n login: \ufffd"


def test_a_panic_is_hopeless_and_a_boot_is_not():
    assert (
        hopeless("Linux\n[ 1.2] Kernel panic - not syncing: no init\n---")
        == "[ 1.2] Kernel panic - not syncing: no init"
    )
    assert hopeless("Linux version 6.12\nWelcome to Debian") == ""

"""Every file of the machine is what was built, as `appliance-verify` on it says: environments, own files, system."""

import json

import pytest

PROGRAM = "/usr/bin/appliance-verify"


@pytest.fixture(scope="module")
def verified(host):
    """What the machine says of its environments and own files, as root.

    To hash the system's files too would take longer than all other checks, where a machine is emulated: dpkg unpacked
    them a moment ago, and a machine with a timer does it in the last check here.
    """
    if not host.file(PROGRAM).exists:
        pytest.skip(
            "this image was built before it could verify itself: the packages' records are checked instead"
        )
    with host.sudo():
        result = host.run(f"{PROGRAM} --json --no-system")
    assert result.rc in (0, 1), result.stderr
    return json.loads(result.stdout)


def test_every_file_is_what_was_built(verified):
    assert verified["findings"] == []


def test_what_was_built_is_known_file_by_file(verified, appliance):
    assert verified["environments"] == len(appliance.environments)
    assert verified["files"] > 0


def test_it_checks_itself_as_often_as_the_definition_says(host, fresh):
    """The timer, where there is one, is on; systemd understands what it starts, which finds nothing in its sandbox."""
    if not host.file("/etc/systemd/system/appliance-verify.timer").exists:
        pytest.skip("this machine checks itself when it is told to")
    assert host.service("appliance-verify.timer").is_enabled
    assert host.run("systemctl is-active appliance-verify.timer").stdout.strip() == "active"
    said = host.run("systemd-analyze verify --man=no appliance-verify.service appliance-verify.timer")
    assert "appliance-verify" not in said.stderr, said.stderr
    with host.sudo():
        started = host.run("systemctl start appliance-verify.service")
        journal = host.run("journalctl -o cat -u appliance-verify.service").stdout
    assert started.rc == 0 and "all as built" in journal, journal
    assert "system checked" in journal, "dpkg's files too"

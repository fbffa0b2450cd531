"""Each clone is a machine of its own: what tells machines apart was made on this boot, not in the image."""

import re

import pytest


@pytest.fixture(scope="module")
def booted(host, fresh):
    """When this boot began, in seconds since 1970; less what the clock may have been set by since."""
    return int(host.check_output("sed -n 's/^btime //p' /proc/stat")) - 5


def test_the_machine_id_was_set_on_this_boot(host, booted):
    identity, changed = host.check_output("cat /etc/machine-id; stat -c %Y /etc/machine-id").splitlines()
    assert re.fullmatch(r"[0-9a-f]{32}", identity)
    assert int(changed) >= booted, "it is the image's: every clone has the same"


def test_the_ssh_host_keys_were_made_on_this_boot(host, booted):
    keys = host.check_output("stat -c '%Y %n' /etc/ssh/ssh_host_*_key").splitlines()
    stale = [key for key in keys if int(key.split()[0]) < booted]
    assert keys
    assert stale == [], "the image's host keys: every clone has the same"

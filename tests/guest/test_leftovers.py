"""Nothing that built the machine can get into it, or is told by it."""

from itertools import pairwise


def body(key):
    """The part of a public key's line that identifies it: its type may stand after options. Else the line itself."""
    words = key.split()
    return next((after for word, after in pairwise(words) if word.startswith(("ssh-", "ecdsa-", "sk-"))), key)


def test_only_the_definitions_keys_open_the_machine(as_root, appliance):
    keys = [line for line in as_root["authorized keys"] if not line.lstrip().startswith("#")]
    allowed = {body(key) for key in appliance.keys}
    assert keys
    assert [key for key in keys if body(key) not in allowed] == []


def test_no_private_key_is_left(as_root):
    assert as_root["private keys"] == []


def test_cloud_init_knows_this_boot_only(as_root, appliance, fresh):
    names = [line for line in as_root["cloud-init"] if not line.endswith(":")]
    assert names == [appliance.instance], "the build's seed, or an earlier boot's"


def test_no_trace_of_the_build_in_a_home(as_root, fresh):
    assert as_root["traces"] == []

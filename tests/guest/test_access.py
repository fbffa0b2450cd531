"""Who can get in: the administrator with a key, and nobody else in any way."""

import paramiko
import pytest


@pytest.fixture(scope="module")
def connect(appliance):
    """A connection to the machine's SSH server, not logged in yet."""
    opened = []

    def connected():
        transport = paramiko.Transport(("127.0.0.1", appliance.ssh_port))
        opened.append(transport)
        transport.start_client(timeout=60)
        transport.auth_timeout = 60
        return transport

    yield connected
    for transport in opened:
        transport.close()


def test_a_password_is_refused(connect, appliance):
    server = connect()
    with pytest.raises(paramiko.BadAuthenticationType) as offered:
        server.auth_none(appliance.user)
    assert offered.value.allowed_types == ["publickey"]
    with pytest.raises(paramiko.AuthenticationException):
        server.auth_password(appliance.user, "password", fallback=False)


def test_root_is_refused_even_with_an_allowed_key(connect, appliance):
    key = paramiko.PKey.from_path(appliance.private_key)
    with pytest.raises(paramiko.AuthenticationException):
        connect().auth_publickey("root", key)


def test_sshd_is_configured_for_keys_only(as_root):
    settings = dict(line.lower().split(" ", 1) for line in as_root["sshd"] if " " in line)
    wanted = {
        "passwordauthentication": "no",
        "kbdinteractiveauthentication": "no",
        "permitemptypasswords": "no",
        "permitrootlogin": "no",
        "pubkeyauthentication": "yes",
    }
    assert {name: settings.get(name) for name in wanted} == wanted


def test_the_consoles_say_where_and_how_to_log_in(host, appliance):
    lines = host.file("/etc/issue.d/conda-appliance.issue").content_string.splitlines()
    assert f"Log in:  ssh {appliance.user}@\\4" in "\n".join(lines)
    assert "Address: \\4 \\6" in lines
    shown = host.check_output(
        "script --quiet --command '/sbin/agetty --show-issue' /dev/null"
    )  # it wants a terminal
    assert f"Log in:  ssh {appliance.user}@" in shown


def test_no_account_has_a_password(as_root):
    # '!' or '*' matches no password; an empty field asks for none.
    fields = {line.split(":")[0]: line.split(":")[1] for line in as_root["shadow"]}
    assert "root" in fields
    assert [name for name, field in fields.items() if field[:1] not in ("!", "*")] == []


def test_only_who_should_is_a_person_here(host, appliance):
    accounts = [line.split(":") for line in host.check_output("getent passwd").splitlines()]
    people = [name for name, _, uid, *_ in accounts if 1000 <= int(uid) < 60000]
    assert people == [*appliance.people]
    assert [name for name, _, uid, *_ in accounts if int(uid) == 0] == ["root"]


def test_only_they_may_sudo_without_a_password(as_root, appliance):
    rules = [line.split() for line in as_root["sudoers"] if not line.lstrip().startswith("#")]
    assert {rule[0] for rule in rules if any("NOPASSWD" in word for word in rule)} == {*appliance.people}

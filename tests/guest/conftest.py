"""What the checks share: one check for each environment and service, and what only root can read."""

import pytest

from conda_appliance import guest

_HOMES = "for home in $(getent passwd | cut -d: -f6 | sort -u); do"

#: What is asked as root, all in one go: under emulation each sudo takes a second.
_QUESTIONS = {
    "shadow": "cat /etc/shadow",
    "sudoers": "cat /etc/sudoers /etc/sudoers.d/*",
    "sshd": "sshd -T",
    "listening": "ss -H -tulnp",
    "cloud-init": "ls /var/lib/cloud/instances /var/lib/cloud/seed",
    "authorized keys": f'{_HOMES} cat "$home"/.ssh/authorized_keys*; done',
    "private keys": f'{_HOMES} ls "$home"/.ssh/id_*; done',
    "traces": f'{_HOMES} ls -d "$home"/.bash_history "$home"/.python_history "$home"/.ansible; done',
}


def pytest_generate_tests(metafunc):
    appliance = guest.of(metafunc.config)
    for name, values in (("environment", appliance.environments), ("service", appliance.services)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=[value.name for value in values])


@pytest.fixture(scope="session")
def fresh(appliance):
    """For checks of a machine that has just started for the first time: of any other they say nothing."""
    if not appliance.fresh:
        pytest.skip("this machine has been used")


@pytest.fixture(scope="session")
def told():
    """What root was told in this session; filled by `as_root`, whose ``host`` lives for a module only."""
    return {}


@pytest.fixture(scope="module")
def as_root(host, told):
    """What root sees on the machine: the lines that each of the questions above was answered with."""
    if not told:
        script = "\n".join(
            f'echo "=== {name}"; ({command}) 2>/dev/null' for name, command in _QUESTIONS.items()
        )
        with host.sudo():
            answer = host.run(script)
        name = ""
        for line in answer.stdout.splitlines():
            if line.startswith("=== "):
                name = line.removeprefix("=== ")
                told[name] = []
            elif line.strip():
                told[name].append(line)
        assert set(told) == set(_QUESTIONS), f"root could not look around: {answer.stderr}"
    return told

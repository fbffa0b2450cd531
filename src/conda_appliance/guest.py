"""What a check on a booted machine knows: a pytest plugin with the fixture ``appliance``.

``check`` starts pytest with ``-p conda_appliance.guest --appliance FACTS.json``; checks get testinfra's ``host``
(the machine, over SSH) and ``appliance`` (what it should be)::

    def test_it_answers(host, appliance):
        assert host.file(f"{appliance.prefix}/bin/python").exists
"""

from __future__ import annotations

import base64
import shlex
from pathlib import Path
from typing import Any

import pytest

from conda_appliance.facts import Appliance


def run_python(host: Any, script: str, *words: str, python: str = "/usr/bin/python3") -> Any:
    """Run a Python script of ours on the machine, with ``words`` as its arguments; testinfra's result.

    It is sent in the command line, so it may have about 90 kB, and leaves no file.
    """
    sent = base64.b64encode(script.encode()).decode()
    return host.run(f"echo {sent} | base64 -d | {shlex.quote(python)} -I -B - {shlex.join(words)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option ``--appliance``."""
    parser.addoption("--appliance", metavar="FACTS.json", help="what the machine should be")


@pytest.fixture(scope="session")
def appliance(request: pytest.FixtureRequest) -> Appliance:
    """What the machine should be, from the definition and the lock."""
    return of(request.config)


def of(config: pytest.Config) -> Appliance:
    """The appliance that ``--appliance`` names."""
    given = config.getoption("--appliance")
    if not given:
        raise pytest.UsageError("these checks run through `conda-appliance check`, which gives --appliance")
    return Appliance.read(Path(given))

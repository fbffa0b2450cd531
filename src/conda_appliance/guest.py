"""What a check on a booted machine knows: a pytest plugin with the fixture ``appliance``.

``check`` starts pytest with ``-p conda_appliance.guest --appliance FACTS.json``; checks get testinfra's ``host``
(the machine, over SSH) and ``appliance`` (what it should be)::

    def test_it_answers(host, appliance):
        assert host.file(f"{appliance.prefix}/bin/python").exists
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A conda environment on the machine. ``requested``: the names of the packages that were asked for."""

    name: str
    prefix: str
    requested: tuple[str, ...]
    has_python: bool

    @property
    def python(self) -> str:
        """A Python to examine it with: its own, else the machine's."""
        return f"{self.prefix}/bin/python" if self.has_python else "/usr/bin/python3"


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service of the machine. ``forwarded``: the port of 127.0.0.1 *here* that leads to its ``port``."""

    name: str
    environment: str
    port: int | None
    path: str
    forwarded: int | None


@dataclass(frozen=True, kw_only=True)
class Appliance:
    """What the machine should be.

    ``keys`` are the public keys that may log in as ``user``; ``private_key`` is the one of this run's, and
    ``instance`` its cloud-init instance. ``patience`` stretches every wait: 1 with KVM, more under emulation.
    """

    name: str
    version: str
    user: str
    prefix: str
    channels: tuple[str, ...]
    environments: tuple[Environment, ...]
    services: tuple[Service, ...]
    keys: tuple[str, ...]
    ssh_port: int
    private_key: str
    instance: str
    prefix_check: str
    patience: float

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Appliance:
        """Read what `write` wrote."""
        value = json.loads(path.read_text(encoding="utf-8"))
        value["environments"] = tuple(
            Environment(**{**one, "requested": tuple(one["requested"])}) for one in value["environments"]
        )
        value["services"] = tuple(Service(**one) for one in value["services"])
        for name in ("channels", "keys"):
            value[name] = tuple(value[name])
        return cls(**value)


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

"""What a machine should be: `check` writes it down as JSON, and the checks on the machine read it (`guest`)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


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

    ``user`` is the administrator, ``people`` all who may log in, and ``login`` who does. ``keys`` are the public keys
    that may; ``private_key`` is the one of this run's, and ``instance`` its cloud-init instance, or nothing for none.
    ``read_only``: the environments have a partition of their own. ``frozen``: conda and pip leave them alone.
    ``virtual_packages`` are what it
    promised to its packages, as the lock has them (`contract.of`). ``first_boot``: post-link
    scripts ran on it. ``fresh``: the machine started for these checks, for
    the first time. ``patience`` stretches every wait: 1 with KVM, more under emulation.
    """

    name: str
    version: str
    user: str
    login: str
    people: tuple[str, ...]
    fresh: bool
    prefix: str
    read_only: bool
    frozen: bool
    virtual_packages: tuple[str, ...]
    first_boot: bool
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
        for name in ("virtual_packages", "channels", "keys", "people"):
            value[name] = tuple(value[name])
        return cls(**value)

"""A batch of machines, as a YAML or CSV file says them → what each machine's seed disc holds.

Every mistake of a file is told at once, with its line, before anything is written.
"""

from __future__ import annotations

import csv
import ipaddress
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from conda_appliance import definition, yamlfile
from conda_appliance.errors import DefinitionError, Problem
from conda_appliance.yamlfile import Marks, Model

#: The columns of a CSV file; one in capitals is a setting.
COLUMNS = ("hostname", "keys", "address", "gateway", "dns", "mac")


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text):
        raise ValueError(f"{text!r} is not a host name: lower-case letters, digits and '-', 63 at most")
    return text


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address, like 192.168.7.1") from None


def _interface(text: str) -> str:
    try:
        if "/" not in text:
            raise ValueError
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an address with its network, like 192.168.7.10/24") from None


def _key(text: str) -> str:
    if not definition.is_public_key(text) or re.search(r"[\x00-\x1f]", text):
        raise ValueError(f"{text[:40]!r} is not a public key line, like 'ssh-ed25519 AAAA… name'")
    return " ".join(text.split())


Key = Annotated[str, AfterValidator(_key)]


class Network(Model):
    """A machine's network, where DHCP does not say it."""

    address: Annotated[str, AfterValidator(_interface)]
    gateway: Annotated[str, AfterValidator(_ip)] | None = None
    dns: tuple[Annotated[str, AfterValidator(_ip)], ...] = ()
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")] | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        network = ipaddress.ip_interface(self.address).network
        if self.gateway is not None and ipaddress.ip_address(self.gateway) not in network:
            raise ValueError(f"the gateway {self.gateway} is not in the network {network}")
        return self


def _settings(values: dict[str, str]) -> dict[str, str]:
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if re.search(r"[\x00-\x1f]", value):
            raise ValueError(f"{name} holds a line break or control character")
    return values


Settings = Annotated[dict[str, str], AfterValidator(_settings)]


class Machine(Model):
    """One machine: its name, who may log in, its network (DHCP without one), and its services' variables."""

    hostname: Annotated[str, AfterValidator(_host_name)]
    keys: tuple[Key, ...] = ()
    network: Network | None = None
    settings: Settings = Field(default_factory=dict)


class Batch(Model):
    """Machines; ``keys`` and ``settings`` are for all of them, and a machine's own settings go before these."""

    keys: tuple[Key, ...] = ()
    settings: Settings = Field(default_factory=dict)
    machines: Annotated[tuple[Machine, ...], Field(min_length=1)]


def load(path: Path) -> tuple[Machine, ...]:
    """Read a batch from ``.yaml`` or ``.csv``. Raises DefinitionError with every problem of the file."""
    if path.suffix == ".csv":
        value, marks = _read_csv(path)
    else:
        value, marks = yamlfile.parse(path)
    batch = yamlfile.validated(str(path), value, marks, Batch)
    if problems := list(_twice(path, batch.machines, marks)):
        raise DefinitionError(problems)
    return tuple(
        one.model_copy(
            update={
                "keys": tuple(dict.fromkeys((*batch.keys, *one.keys))),
                "settings": {**batch.settings, **one.settings},
            }
        )
        for one in batch.machines
    )


def _twice(path: Path, machines: Sequence[Machine], marks: Marks) -> Iterator[Problem]:
    """What only one machine may have, and two have."""
    seen: dict[tuple[str, str], int] = {}
    for index, one in enumerate(machines):
        said = {"hostname": one.hostname}
        if one.network is not None:
            said["network.address"] = one.network.address.partition("/")[0]
            said["network.mac"] = one.network.mac or ""
        for key, value in said.items():
            first = seen.setdefault((key, value), index)
            if value and first != index:
                at: tuple[str | int, ...] = ("machines", index, *key.split("."))
                line, column = marks.get(at, (1, 1))
                message = (
                    f"{value!r} is {machines[first].hostname}'s already (machine {first + 1} of the file)"
                )
                yield Problem(
                    file=str(path), line=line, column=column, path=f"machines[{index}].{key}", message=message
                )


def _read_csv(path: Path) -> tuple[dict[str, Any], Marks]:
    """The rows as the value that a YAML file would have, and where each stands: line, and number of the column.

    Several keys and DNS servers in one field are parted by ``;``. An empty field says nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise _refused(path, 1, 1, f"cannot be read: {why}") from None
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    machines: list[dict[str, Any]] = []
    marks: Marks = {}
    problems: list[Problem] = []
    try:
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if not header:
                header = [field.strip() for field in row]
                problems += _odd_columns(path, header, reader.line_num)
                continue
            if len(row) != len(header):
                message = f"{len(row)} fields, and the first line names {len(header)}"
                problems += _refused(path, reader.line_num, 1, message).problems
                continue
            at = ("machines", len(machines))
            marks[at] = (reader.line_num, 1)
            machines.append(_machine(header, row, at, reader.line_num, marks))
    except csv.Error as error:
        raise _refused(path, reader.line_num, 1, f"not valid CSV: {error}") from None
    if problems:
        raise DefinitionError(problems)
    return {"machines": machines}, marks


def _odd_columns(path: Path, header: Sequence[str], line: int) -> Iterator[Problem]:
    for column, name in enumerate(header, start=1):
        if name not in COLUMNS and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            message = f"unknown column {name!r}; known: {', '.join(COLUMNS)}, and settings in capitals"
            yield from _refused(path, line, column, message).problems
        elif name in header[: column - 1]:
            yield from _refused(path, line, column, f"the column {name!r} stands twice").problems


def _machine(
    header: Sequence[str], row: Sequence[str], at: tuple[str | int, ...], line: int, marks: Marks
) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for column, (name, field) in enumerate(zip(header, row, strict=True), start=1):
        text = field.strip()
        if not text:
            continue
        value = (
            [part.strip() for part in text.split(";") if part.strip()] if name in ("keys", "dns") else text
        )
        if name in ("address", "gateway", "dns", "mac"):
            inside, where = made.setdefault("network", {}), (*at, "network", name)
            marks.setdefault((*at, "network"), (line, column))
        elif name in COLUMNS:
            inside, where = made, (*at, name)
        else:
            inside, where = made.setdefault("settings", {}), (*at, "settings", name)
        inside[name] = value
        marks[where] = (line, column)
    return made


def _refused(path: Path, line: int, column: int, message: str) -> DefinitionError:
    return DefinitionError([Problem(file=str(path), line=line, column=column, path="", message=message)])

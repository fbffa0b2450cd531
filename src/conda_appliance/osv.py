"""A bill of materials and a dump of OSV → the known vulnerabilities of what is in it; no network.

A dump is what https://google.github.io/osv.dev/data/ gives for an ecosystem (``all.zip``), one record as a .json file,
or a folder of either. Debian's packages are looked up by their source package in the suite's ecosystem (``Debian:13``),
wheels in ``PyPI``, and conda packages there too where they have a project's name: conda has no ecosystem of its own, so
what is found for one is said to be by its name.

Source of the format: https://ossf.github.io/osv-schema/.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cmp_to_key, partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from debian.debian_support import version_compare
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from conda_appliance.bill import Bill, Component
from conda_appliance.errors import UsageError

#: Debian's suites by OSV's ecosystems.
_SUITES = {"bookworm": "12", "trixie": "13"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A vulnerability that a component has; ``fixed`` is the first version without it, or nothing."""

    id: str
    aliases: tuple[str, ...]
    summary: str
    component: Component
    fixed: str
    by_name: bool

    @property
    def name(self) -> str:
        """Its CVE, where it has one."""
        return next((one for one in (self.id, *self.aliases) if one.startswith("CVE-")), self.id)


def find(bill: Bill, dump: Path) -> list[Finding]:
    """What of the bill's components a dump says to be vulnerable, by component and vulnerability.

    Raises UsageError for a path that holds no OSV records.
    """
    wanted: dict[tuple[str, str], list[Component]] = {}
    for one in bill.components:
        if (key := _key(one)) is not None:
            wanted.setdefault(key, []).append(one)
    found: dict[tuple[str, str], Finding] = {}
    count = 0
    for record in _records(dump):
        count += 1
        if record.get("withdrawn"):
            continue
        for affected in record.get("affected", ()):
            about = affected.get("package") or {}
            ecosystem = str(about.get("ecosystem", ""))
            name = str(about.get("name", ""))
            if ecosystem == "PyPI":
                name = canonicalize_name(name)
            for one in wanted.get((ecosystem, name), ()):
                fixed = _affects(affected, one)
                if fixed is not None:
                    aliases = tuple(sorted({*record.get("aliases", ()), *record.get("upstream", ())}))
                    finding = Finding(
                        id=record["id"],
                        aliases=aliases,
                        summary=record.get("summary") or str(record.get("details", "")).partition("\n")[0],
                        component=one,
                        fixed=fixed,
                        by_name=one.kind == "conda",
                    )
                    found.setdefault((one.ref, finding.name), finding)
    if not count:
        raise UsageError(
            f"{dump} holds no OSV records",
            hint="https://osv-vulnerabilities.storage.googleapis.com/Debian:13/all.zip is such a dump",
        )
    return sorted(found.values(), key=lambda one: (one.component.kind, one.component.name, one.name))


def _key(one: Component) -> tuple[str, str] | None:
    if one.kind == "deb":
        qualifiers = parse_qs(urlsplit(one.purl).query)
        suite = _SUITES.get(qualifiers.get("distro", [""])[0])
        source = unquote(qualifiers.get("upstream", [one.name])[0])
        return (f"Debian:{suite}", source) if suite else None
    if one.kind in ("pypi", "conda"):
        return "PyPI", canonicalize_name(one.name)
    return None


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    """Every record of a file or folder."""
    if path.is_dir():
        for one in sorted(path.iterdir()):
            if one.suffix in (".json", ".zip") or one.is_dir():
                yield from _records(one)
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json"):
                    yield _record(archive.read(name), f"{path}: {name}")
    else:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        yield _record(content, str(path))


def _record(content: bytes, shown: str) -> Mapping[str, Any]:
    try:
        record = json.loads(content)
        if isinstance(record, dict) and isinstance(record.get("id"), str):
            return record
    except ValueError:
        pass
    raise UsageError(f"{shown} is no OSV record")


def _affects(affected: Mapping[str, Any], one: Component) -> str | None:
    """Whether a version is in what is affected: the version that fixes it (or nothing), or None where it is not."""
    compare = version_compare if one.kind == "deb" else _compare_pypi
    if one.version in affected.get("versions", ()):
        return next(iter(_fixes(affected)), "")
    for ranged in affected.get("ranges", ()):
        if ranged.get("type") == "GIT":
            continue
        inside, fix = False, ""
        events = [
            (kind, str(version)) for event in ranged.get("events", ()) for kind, version in event.items()
        ]
        events.sort(key=cmp_to_key(partial(_order, compare=compare)))
        for kind, version in events:
            at = 1 if version == "0" else compare(one.version, version)
            if kind == "introduced" and at >= 0:
                inside, fix = True, ""
            elif (kind == "fixed" and at >= 0) or (kind == "last_affected" and at > 0):
                inside = False
            elif kind == "fixed" and inside and not fix:
                fix = version
        if inside:
            return fix
    return None


def _order(one: tuple[str, str], other: tuple[str, str], compare: Callable[[str, str], int]) -> int:
    """Events by their version; ``0`` is before all."""
    if one[1] == other[1]:
        return 0
    if "0" in (one[1], other[1]):
        return -1 if one[1] == "0" else 1
    return compare(one[1], other[1])


def _fixes(affected: Mapping[str, Any]) -> list[str]:
    return [
        str(event["fixed"])
        for ranged in affected.get("ranges", ())
        if ranged.get("type") != "GIT"
        for event in ranged.get("events", ())
        if "fixed" in event
    ]


def _compare_pypi(one: str, other: str) -> int:
    try:
        a, b = Version(one), Version(other)
    except InvalidVersion:
        return -1 if one < other else int(one > other)
    return (a > b) - (a < b)

"""A bill of materials → the report of its licences, for people: as text and as one HTML page."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from conda_appliance import render
from conda_appliance.bill import Bill, Component


def text(bill: Bill) -> str:
    """The report for a terminal or a text file: what has no known licence first, then by licence."""
    missing, groups = _sorted(bill)
    lines = [f"Licences of {bill.name} {bill.version}", ""]
    for title, found in ([("NO LICENCE KNOWN", missing)] if missing else []) + groups:
        lines += [title, *(f"  {_line(one)}" for one in found), ""]
    return "\n".join(lines)


def html(bill: Bill, *, project: Path | None = None) -> str:
    """The report as one page that needs nothing else."""
    missing, groups = _sorted(bill)
    return render.text(
        "report/licences.html.j2",
        project=project,
        name=bill.name,
        version=bill.version,
        count=len(missing) + sum(len(found) for _, found in groups),
        missing=missing,
        groups=groups,
    )


def _sorted(bill: Bill) -> tuple[list[Component], list[tuple[str, list[Component]]]]:
    """Packages without a licence, and the others by what they are under. The definition's own files are its owner's."""
    packages = [one for one in bill.components if one.kind not in ("file", "program")]
    known = sorted(
        (one for one in packages if one.licences), key=lambda one: (_title(one), one.name, one.part)
    )
    groups = [(title, list(found)) for title, found in groupby(known, key=_title)]
    return [one for one in packages if not one.licences], groups


def _title(one: Component) -> str:
    return ", ".join(one.licences)


def _line(one: Component) -> str:
    where = f"  {one.texts[0]}" if one.texts else "  (no text in the package)"
    more = f" and {len(one.texts) - 1} more" if len(one.texts) > 1 else ""
    return f"{one.name} {one.version} ({one.kind}, {one.part}){where}{more}"

"""What a run of the tests saw of each form: `pytest --forms-table FILE` writes it as a page of the docs."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from conda_appliance import formats, process, resources
from conda_appliance.manifest import ArtifactRecord

_HEAD = """\
# What a test run saw of each form

<!-- made by `make forms-table`, which runs the boot tests of the forms -->

Of one definition, `images/hello.yaml`, and one lock: all forms of one build, side by side, and the discs. *Seconds* are
what each form takes alone, once system, environments and disk are there, on {processors} processors. All of them in
one build took {all:.1f} s, {ratio:.1f} times the slowest of them. *Says* is the beginning of the
SHA-256 of what the service answered to `GET /`: the same digest is the same answer, byte for byte. An empty cell was
not seen: no VMware, VirtualBox, Hyper-V or cloud is within reach of the tests.

| form | size | seconds | opened by | ran | says |
| --- | ---: | ---: | --- | --- | --- |
"""


@dataclass
class _Row:
    size: int = 0
    seconds: float | None = None
    opened: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    answer: bytes | None = None


@dataclass
class Seen:
    """What this session saw, by form."""

    rows: dict[str, _Row] = field(default_factory=dict)
    together: float = 0.0
    #: Whether somebody wants to see it, so that what takes time of its own is worth it.
    wanted: bool = False

    def _row(self, form: str) -> _Row:
        assert form in formats.BY_NAME, form
        return self.rows.setdefault(form, _Row())

    def made(self, record: ArtifactRecord) -> None:
        """A build made it."""
        self._row(record.format).size = record.size

    def alone(self, form: str, seconds: float) -> None:
        """A build that made no other form took so long for it."""
        self._row(form).seconds = seconds

    def disc(self, form: str, path: Path, seconds: float | None = None) -> None:
        """A disc was made."""
        row = self._row(form)
        row.size, row.seconds = path.stat().st_size, seconds

    def opened(self, form: str, how: str) -> None:
        """A program read it, and was content."""
        self._row(form).opened.append(how)

    def ran(self, form: str, how: str, answer: bytes | None = None) -> None:
        """It was started; what its service answered is what every other form answered in this session."""
        row = self._row(form)
        row.ran.append(how)
        if answer is not None:
            others = {name: other.answer for name, other in self.rows.items() if other.answer is not None}
            assert all(answer == said for said in others.values()), (form, answer, others)
            row.answer = answer

    def page(self) -> str:
        """The table, in the order of `formats.FORMS`."""
        built = [row.seconds for form, row in self.rows.items() if form in formats.BUILT]
        slowest = max((seconds for seconds in built if seconds is not None), default=1.0)
        lines = []
        for name in formats.BY_NAME:
            row = self.rows.get(name, _Row())
            says = f"`{hashlib.sha256(row.answer).hexdigest()[:12]}`" if row.answer else ""
            cells = [
                f"[{name}](../how-to/{formats.BY_NAME[name].page}.md)",
                resources.size_text(row.size) if row.size else "",
                "" if row.seconds is None else f"{row.seconds:.1f}",
                "; ".join(row.opened),
                "; ".join(row.ran),
                says,
            ]
            lines.append(f"| {' | '.join(cells)} |")
        head = _HEAD.format(processors=os.cpu_count(), all=self.together, ratio=self.together / slowest)
        return head + "\n".join([*lines, "", _versions(), ""])


def _versions() -> str:
    """Which programs these were."""
    programs = ("qemu-system-x86_64", "xorriso", "skopeo", "runc", "rpm", "dpkg", "vagrant")
    found = [f"{name} {_version(name)}" for name in programs]
    return f"With {', '.join(found)}, testinfra {metadata.version('pytest-testinfra')}."


def _version(program: str) -> str:
    match = re.search(r"\d+(\.\d+)+", process.run([program, "--version"]).stdout)
    return match[0] if match else "?"

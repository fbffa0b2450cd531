"""What checks of a machine found: read from pytest's JUnit report, told in a line, written for people and programs."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from conda_appliance.qemu import Firmware

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: which (``test_services.py::test_it_answers[hello]``), how it went, its seconds, why it failed."""

    name: str
    outcome: Outcome
    seconds: float
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """How an image did. ``boot_seconds``: power-on to SSH; ``sha256``: the image's, before and after.

    Of a machine that ran already these, and its ``firmware``, are not known.
    """

    image: str
    sha256: str = ""
    firmware: Firmware | None = None
    accelerator: str
    boot_seconds: float | None = None
    seconds: float
    checks: tuple[Check, ...]

    @property
    def passed(self) -> int:
        """How many checks passed."""
        return self._count("passed")

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return self._count("failed")

    @property
    def skipped(self) -> int:
        """How many checks did not apply."""
        return self._count("skipped")

    def _count(self, outcome: Outcome) -> int:
        return sum(check.outcome == outcome for check in self.checks)

    def text(self) -> str:
        """The outcome in a line, and what failed, each with the first line of its reason."""
        firmware = f" ({self.firmware})" if self.firmware else ""
        reached = "" if self.boot_seconds is None else f"SSH after {self.boot_seconds:.0f} s, "
        lines = [
            f"{self.image}{firmware}: {self.passed} checks passed, {self.failed} failed, "
            f"{self.skipped} skipped; {reached}{self.seconds:.0f} s in all"
        ]
        for check in self.checks:
            if check.outcome == "failed":
                lines.append(f"  ✗ {check.name}")
                lines += [f"      {line}" for line in check.message.splitlines()[:6]]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        counts = {"passed": self.passed, "failed": self.failed, "skipped": self.skipped}
        return {**dataclasses.asdict(self), **counts}

    def write(self, folder: Path) -> None:
        """Write ``report.json`` and ``summary.txt``."""
        (folder / "report.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        marks = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}
        lines = [f"{marks[one.outcome]:8}{one.seconds:6.1f} s  {one.name}" for one in self.checks]
        text = "\n".join([self.text(), "", *lines, "", f"machine: {self.accelerator}", ""])
        (folder / "summary.txt").write_text(text, encoding="utf-8")


def one_machine(name: str) -> str:
    """``test_it_answers[hello-paramiko://machine]`` → ``test_it_answers[hello]``: there is only one machine."""
    plain, _, parameters = name.partition("[")
    rest = re.sub(r"-?paramiko://machine-?", "", parameters.removesuffix("]"))
    return f"{plain}[{rest}]" if rest else plain


def read_junit(text: str) -> list[Check]:
    """The checks of a JUnit report that pytest wrote."""
    checks = []
    for case in ElementTree.fromstring(text).iter("testcase"):  # noqa: S314  (our own child wrote it)
        module = case.get("classname", "").split(".")[-1]
        bad = [child for child in case if child.tag in ("failure", "error")]
        outcome: Outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        checks.append(
            Check(
                name=f"{module}.py::{one_machine(case.get('name', ''))}",
                outcome=outcome,
                seconds=round(float(case.get("time", "0")), 1),
                message=_reason(bad[0].get("message", "")) if bad else "",
            )
        )
    return checks


def _reason(message: str) -> str:
    """What failed, without pytest's word for it."""
    return message.removeprefix("AssertionError: ").strip()

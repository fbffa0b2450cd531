"""What Packer and Ansible say while they run, in the words of a person who waits. Pure: reads lines, runs nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

#: What a line of a build machine's console says when it will never answer.
_HOPELESS = ("Kernel panic - not syncing", "You are in emergency mode", "(initramfs)", "No bootable device")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One message of Packer: ``kind`` is say, message or error; ``text`` may have several lines.

    Packer writes a line break as \\n and a backslash as itself, so JSON in a message cannot be read from ``text``;
    in ``escaped`` its own \\n still stand.
    """

    kind: str
    text: str
    escaped: str


def decode(line: str) -> Said | None:
    """A line of ``packer -machine-readable``, ``TIME,TARGET,ui,KIND,TEXT``; None for what is no message to people.

    Commas and line breaks in TEXT are escaped:
    https://developer.hashicorp.com/packer/docs/commands#machine-readable-output
    """
    parts = line.rstrip("\n").split(",", 4)
    if len(parts) < 5 or not parts[0].isdigit() or parts[2] != "ui":
        return None
    escaped = re.sub(r"\x1b\[[0-9;]*m", "", parts[4].replace("%!(PACKER_COMMA)", ","))
    return Said(kind=parts[3], text=escaped.replace("\\r", "").replace("\\n", "\n"), escaped=escaped)


def parse_version(said: str) -> tuple[int, int, int] | None:
    """``Packer v1.6.6`` or ``1.11.2-dev`` → ``(1, 6, 6)``; None for anything else."""
    match = re.search(r"^(?:Packer v)?(\d+)\.(\d+)\.(\d+)", said.strip(), re.MULTILINE)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def hopeless(console: str) -> str:
    """The line of a console that says the machine will never answer; empty when there is none."""
    return next(
        (line.strip() for line in console.splitlines() if any(mark in line for mark in _HOPELESS)), ""
    )


def plain_console(raw: bytes) -> str:
    """A serial console as text: without what moves a terminal's cursor, colours, or asks it something (ECMA-48)."""
    text = raw.decode("utf-8", errors="replace").replace("\r\n", "\n")
    text = re.sub(
        r"\x1b(\[[0-9;?!]*[A-Za-z]|[\]P^_][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[a-zA-Z0-9=>])", "", text
    )
    return re.sub(r"[\x00-\x08\x0b-\x1f]", "", text)


#: Errors of Packer's that only repeat the others.
_SUMMARIES = ("Build '", "Some builds didn't complete")

#: What Packer says when a phase begins, as the start of a line, and what we call it.
_PHASES = {
    "Retrieving ISO": ("preparing", "checking the base disk"),
    "Starting VM": ("starting QEMU", "starting the machine"),
    "Waiting for SSH": ("waiting for SSH", "booting, waiting for its SSH"),
    "Connected to SSH": ("connected", "logged in"),
    "Provisioning with Ansible": ("running Ansible", "starting Ansible"),
    "Gracefully halting": ("shutting down", "shutting down"),
    "Converting hard drive": ("finishing", "finishing the disk"),
}


@dataclass
class Progress:
    """How far a build is, and what went wrong in it so far."""

    phase: str = "starting Packer"
    task: str = ""
    errors: list[str] = field(default_factory=list)
    #: What Ansible said of the task that failed.
    failure: str = ""

    def hear(self, said: Said) -> list[str]:
        """Take in a message; returns what to tell the user, in order."""
        told = []
        for line in said.text.splitlines():
            words = re.sub(r"^(==>|-->|\s)*(qemu\.machine:)?\s*", "", line)
            if said.kind == "error" and words and not words.startswith(_SUMMARIES):
                self.errors.append(words)
            for start, (phase, text) in _PHASES.items():
                if words.startswith(start):
                    self.phase = phase
                    told.append(text)
            if task := re.match(r"TASK \[(?:(\S+) : )?(.+?)\] \**$", words):
                self.task = f"{task[1]}: {task[2]}" if task[1] else task[2]
                told.append(self.task)
            elif re.match(r"(fatal|failed): \[", words) and not self.failure:
                self.failure = _failure(said.escaped)
            elif words.startswith("ERROR!") or (words.startswith("[ERROR]") and not self.task):
                # Ansible did not get as far as a task: a playbook or variable that it cannot read.
                self.failure = self.failure or words
        return told


def _failure(line: str) -> str:
    """``fatal: [default]: FAILED! => {…}`` as what the task said."""
    try:
        value: dict[str, Any]
        value, _ = json.JSONDecoder().raw_decode(line, line.index(" => {") + 4)
    except ValueError:
        return line
    parts = [str(value.get(key, "")).strip() for key in ("stderr", "module_stderr", "msg", "stdout")]
    said = next((part for part in parts if part), line)
    return "\n".join(said.splitlines()[-20:])

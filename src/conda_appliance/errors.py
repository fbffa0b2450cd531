"""Every error this project raises: what happened, what to do next, and the exit code.

Only the command line exits; the library raises. An error's message says what failed and why, its
hint says the next step.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

#: What to do when a disk of this host is full.
DISK_FULL = "free space, `conda-appliance clean`, or use --out and CONDA_APPLIANCE_CACHE to work elsewhere"


class ApplianceError(Exception):
    """Base of all errors. ``message``: what and why; ``hint``: the next step."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BuildError(ApplianceError):
    """A step of a build failed (exit 1)."""


class CommandFailed(BuildError):
    """A program ended with a non-zero status, or did not end in its time (exit 1)."""

    def __init__(self, message: str, *, hint: str = "", returncode: int, output: str) -> None:
        super().__init__(message, hint=hint)
        self.returncode = returncode
        self.output = output


class UsageError(ApplianceError):
    """The command line or a file named on it is wrong (exit 2)."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """One thing wrong in a file: 1-based ``line`` and ``column``, ``path`` like ``services[0].port``."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class DefinitionError(UsageError):
    """A definition is wrong; ``problems`` holds all of it, in file order (exit 2)."""

    def __init__(self, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems), hint=hint)


class LockError(ApplianceError):
    """A lock is missing, unreadable or stale (exit 3)."""

    exit_code = 3


class HashMismatch(LockError):
    """Bytes are not those that the lock names (exit 3)."""

    def __init__(self, what: str, *, expected: str, found: str, hint: str = "") -> None:
        super().__init__(
            f"{what} is not what the lock names: expected SHA-256 {expected}, found {found}",
            hint=hint,
        )
        self.what = what
        self.expected = expected
        self.found = found


class ToolMissing(ApplianceError):
    """A program of the host is missing or too old (exit 4)."""

    exit_code = 4


class CheckFailed(ApplianceError):
    """The image was built, but a check on the booted machine failed (exit 5)."""

    exit_code = 5


class Interrupted(ApplianceError):
    """The user or the system asked us to stop (exit 130)."""

    exit_code = 130


def of_system(error: OSError) -> ApplianceError:
    """What the operating system refused (a full disk, a folder that is not ours), in one line."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return ApplianceError(what, hint=f"the disk is full: {DISK_FULL}" if error.errno == errno.ENOSPC else "")

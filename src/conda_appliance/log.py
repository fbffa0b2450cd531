"""Steps and progress, on stderr only: stdout belongs to results.

On a terminal a running step shows a live line; elsewhere (CI, a file) every step prints one line
when it starts, sparse progress lines, and one line with its time when it ends.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

#: Between two progress lines of one step where the output is not a terminal, in seconds.
QUIET_INTERVAL = 15.0
#: Between two refreshes of the live line on a terminal, in seconds.
LIVE_INTERVAL = 0.5

#: What a line begins with, and how that looks on a terminal.
_BEGUN, _DONE, _FAILED = ("→", "bold"), ("✓", "green"), ("✗", "red")
_WARNING, _ERROR = ("!", "yellow"), ("error:", "bold red")


@dataclass
class Step:
    """A running step. ``update`` says how far it is, ``note`` adds to its closing line."""

    title: str
    started: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)
    text: str = ""

    def update(self, text: str) -> None:
        """Say how far the step is, e.g. ``12/240 packages, 34 MB``; cheap, call it often."""
        self.text = text

    def note(self, text: str) -> None:
        """Add ``text`` to the line that closes the step."""
        self.notes.append(text)

    def show(self, *, live: bool) -> None:
        """Show how far the step is and for how long it has run, on a line that is overwritten if ``live``."""
        seconds = time.monotonic() - self.started
        line = f"{self.title}: {self.text}" if self.text else self.title
        if live and (console := _console()) is not None:
            width = max(20, console.width - 14)
            sys.stderr.write(f"\r\x1b[K  … {line[:width]} ({seconds:.0f} s)")
            sys.stderr.flush()
        else:
            _say(f"  … {line} ({seconds:.0f} s)")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A finished step: its title, and how long it took in seconds."""

    title: str
    seconds: float


@dataclass(kw_only=True)
class Work:
    """What one build of several says: its steps are marked with ``name`` and gathered in ``timings``."""

    name: str = ""
    timings: list[Timing] = field(default_factory=list)


_work: ContextVar[Work] = ContextVar("work", default=Work())  # noqa: B039 (steps outside of any build)


@contextmanager
def gathered(name: str = "") -> Iterator[Work]:
    """Gather the steps of this thread while the block runs; ``name`` goes before each where several run at once."""
    current = Work(name=name)
    token = _work.set(current)
    try:
        yield current
    finally:
        _work.reset(token)


@contextmanager
def step(title: str) -> Iterator[Step]:
    """Show ``title`` while the block runs, then its time; a failure is marked and raised on."""
    gathering = _work.get()
    shown = f"{gathering.name}: {title}" if gathering.name else title
    console = _console()
    live = (
        console is not None and console.is_terminal and not gathering.name
    )  # several would overwrite each other
    _say(shown, _BEGUN)
    current = Step(shown)
    done = threading.Event()

    def tick() -> None:
        while not done.wait(LIVE_INTERVAL if live else QUIET_INTERVAL):
            current.show(live=live)

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    mark, words = _FAILED, ""
    try:
        yield current
        mark = _DONE
        words = f" — {'; '.join(current.notes)}" if current.notes else ""
    finally:
        done.set()
        ticker.join()
        if live:
            _clear_line()
        seconds = time.monotonic() - current.started
        gathering.timings.append(Timing(title=title, seconds=seconds))
        _say(f"{shown}{words}", mark, f" ({seconds:.1f} s)")


def info(text: str) -> None:
    """One line that the user should see."""
    _say(text)


def warn(text: str) -> None:
    """One line that the user should act on, though the work goes on."""
    _say(text, _WARNING)


def error(text: str) -> None:
    """What ended the run."""
    _say(text, _ERROR)


def _say(text: str, mark: tuple[str, str] = ("", ""), aside: str = "") -> None:
    """One line: its mark, its text, and what is said aside; in colours on a terminal."""
    console = _console()
    shown, style = mark
    if console is not None:
        from rich.text import Text

        head = Text(f"{shown} ", style) if shown else Text()
        console.print(Text.assemble(head, text, (aside, "dim")))
        return
    try:
        sys.stderr.write(f"{shown} {text}{aside}\n" if shown else f"{text}{aside}\n")
        sys.stderr.flush()
    except BrokenPipeError:  # nobody reads any more: `conda-appliance build … 2>&1 | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        raise SystemExit(1) from None


def _console() -> Console | None:
    """What writes to a terminal, or in colours because FORCE_COLOR asks for them: loaded for that alone."""
    return _rich() if sys.stderr.isatty() or os.environ.get("FORCE_COLOR") else None


@functools.cache
def _rich() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def _clear_line() -> None:
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()

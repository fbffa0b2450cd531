"""Steps and progress, on stderr only: stdout belongs to results.

On a terminal a running step shows a live line; elsewhere (CI, a file) every step prints one line
when it starts, sparse progress lines, and one line with its time when it ends.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

#: Between two progress lines of one step where the output is not a terminal, in seconds.
QUIET_INTERVAL = 15.0
#: Between two refreshes of the live line on a terminal, in seconds.
LIVE_INTERVAL = 0.5

console = Console(stderr=True, highlight=False, soft_wrap=True)


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
        if live:
            width = max(20, console.width - 14)
            sys.stderr.write(f"\r\x1b[K  … {line[:width]} ({seconds:.0f} s)")
            sys.stderr.flush()
        else:
            console.print(f"  … {escape(line)} ({seconds:.0f} s)")


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
    live = console.is_terminal and not gathering.name  # several live lines would overwrite each other
    console.print(f"[bold]→[/bold] {escape(shown)}")
    current = Step(shown)
    done = threading.Event()

    def tick() -> None:
        while not done.wait(LIVE_INTERVAL if live else QUIET_INTERVAL):
            current.show(live=live)

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    mark, words = "[red]✗[/red]", ""
    try:
        yield current
        mark = "[green]✓[/green]"
        words = f" — {escape('; '.join(current.notes))}" if current.notes else ""
    finally:
        done.set()
        ticker.join()
        if live:
            _clear_line()
        seconds = time.monotonic() - current.started
        gathering.timings.append(Timing(title=title, seconds=seconds))
        console.print(f"{mark} {escape(shown)}{words} [dim]({seconds:.1f} s)[/dim]")


def info(text: str) -> None:
    """One line that the user should see."""
    console.print(escape(text))


def warn(text: str) -> None:
    """One line that the user should act on, though the work goes on."""
    console.print(f"[yellow]![/yellow] {escape(text)}")


def error(text: str) -> None:
    """What ended the run."""
    console.print(f"[bold red]error:[/bold red] {escape(text)}")


def _clear_line() -> None:
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()

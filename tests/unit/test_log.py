"""What a run says while it works: plain lines where nobody watches, colours on a terminal."""

import os
import sys

import pytest

from conda_appliance import log


def say_all() -> None:
    with log.step("Do [this]") as step:
        step.update("half of [it]")
        step.show(live=False)
        step.note("1 [of] 2")
        step.note("more")
    log.info("see [the log] in /a/b")
    log.warn("careful")
    log.error("no [luck]")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    log._rich.cache_clear()


LINES = [
    "→ Do [this]",
    "  … Do [this]: half of [it] (0 s)",
    "✓ Do [this] — 1 [of] 2; more (0.0 s)",
    "see [the log] in /a/b",
    "! careful",
    "error: no [luck]",
]


def test_where_nobody_watches_each_is_a_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say_all()
    out, err = capsys.readouterr()
    assert out == "", "which belongs to results"
    assert err.splitlines() == LINES


def test_a_step_that_fails_is_marked_and_its_error_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="of its own"), log.step("Fail"):
        raise ValueError("of its own")
    assert capsys.readouterr().err.splitlines() == ["→ Fail", "✗ Fail (0.0 s)"]


def test_whoever_asks_for_colours_gets_the_same_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    say_all()
    err = capsys.readouterr().err
    assert "\x1b[32m✓" in err
    assert "\x1b[1;31merror:" in err
    for sequence in (
        "\x1b[0m",
        "\x1b[1m",
        "\x1b[2m",
        "\x1b[31m",
        "\x1b[32m",
        "\x1b[33m",
        "\x1b[1;31m",
        "\r\x1b[K",
    ):
        err = err.replace(sequence, "")
    assert err.splitlines() == LINES


def test_when_nobody_reads_any_more_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``conda-appliance build … 2>&1 | head``."""
    reading, writing = os.pipe()
    os.close(reading)
    kept = os.dup(2)
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            monkeypatch.setattr(sys, "stderr", pipe)
            with pytest.raises(SystemExit) as ended:
                log.info("to nobody")
            monkeypatch.undo()
            os.dup2(2, pipe.fileno())  # what is left in the buffer goes where it hurts nobody
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert ended.value.code == 1

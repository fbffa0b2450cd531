"""Small layers for tests, what damages them, and stores that tell what was asked of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conda_appliance import layers, trees
from conda_appliance.errors import HashMismatch
from conda_appliance.layer import Layer
from conda_appliance.layers import Store

PARTS: layers.Parts = {"packages": {"numpy": "2.1", "flask": "3.0"}, "epoch": "1577836800"}


class Runs(Store):
    """Whatever it is asked is asked by a run of its own: a store knows what it verified until its run ends."""

    def _know(self, layer: Layer) -> None:
        pass


class Maker:
    """Makes a small tree, and counts how often it was asked to."""

    def __init__(self, text: str = "content") -> None:
        self.text = text
        self.times = 0

    def __call__(self, to: Path, work: Path) -> None:
        self.times += 1
        (work / "meanwhile").write_text("x")
        (to / "etc").mkdir(parents=True)
        (to / "etc/file").write_text(self.text)
        (to / "etc/other").write_text("other")
        trees.set_times(to, 1_700_000_000)  # as a build does: made a second later, it is the same


def write_late(path: Path, text: str) -> None:
    """Write a file so that the file system's clock, which ticks in milliseconds, has seen it."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.write_text(text)


def used(layer: Layer, seconds_ago: float) -> None:
    """Make a layer one that was used a while ago."""
    then = time.time() - seconds_ago
    for path in (layer.path.parent / "layer.json", *layer.path.parent.glob("users/*")):
        os.utime(path, (then, then))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found: list[Path] = []
    real = trees.listing

    def listing(root: Path, **how: object) -> dict[str, str]:
        found.append(root)
        return real(root, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(trees, "listing", listing)
    return found


def flip(tree: Path) -> None:
    file = tree / "etc/file"
    about = file.stat()
    write_late(file, "c0ntent")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def at_once(count: int, run: Callable[[], Layer]) -> list[Layer | HashMismatch]:
    """What each of ``count`` threads got that began at the same moment."""
    meeting = threading.Barrier(count, timeout=60)
    found: list[Layer | HashMismatch] = []

    def one() -> None:
        meeting.wait()
        try:
            found.append(run())
        except HashMismatch as error:
            found.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count, "no thread died of another error"
    return found

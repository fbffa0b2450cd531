"""What is inside an image: whether it carries the environment and the application that were asked for.

A contender that is fast because it left something out would win; this is looked at after the measurement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from conda_appliance import process, resources
from inputs import STAMP

FILES = (f"opt/conda/share/{STAMP}", "opt/bench/bench.py")


def read(image: Path, scratch: Path) -> list[str]:
    """The text of `FILES` in ``image``; an empty one for each that is not there. ``scratch`` is a folder of our own."""
    resources.remove(scratch)
    scratch.mkdir(parents=True)
    try:
        if image.suffix == ".iso":
            return _of_iso(image, scratch)
        disk = image
        if image.suffix == ".qcow2":
            disk = scratch / "disk.raw"
            process.run(["qemu-img", "convert", "-O", "raw", image, disk])
        return [_first(_of_disk(disk, name)) for name in FILES]
    finally:
        resources.remove(scratch)


def _first(texts: Iterator[str]) -> str:
    return next((text for text in texts if text), "")


def _of_disk(disk: Path, name: str) -> Iterator[str]:
    """The file in each partition that has it, where an environment's partition has it without its prefix."""
    table = json.loads(process.run(["sfdisk", "--json", disk]).stdout)["partitiontable"]
    for partition in table["partitions"]:
        offset = partition["start"] * table.get("sectorsize", 512)
        yield process.run(["debugfs", "-R", f"cat /{name}", f"{disk}?offset={offset}"], check=False).stdout
        for inside in (name, name.removeprefix("opt/conda/")):
            words = ["unsquashfs", "-o", str(offset), "-cat", str(disk), inside]
            yield process.run(words, check=False).stdout


def _of_iso(image: Path, scratch: Path) -> list[str]:
    """A live medium's: its root is one squashfs."""
    squashfs = scratch / "root.squashfs"
    source = "/live/filesystem.squashfs"
    process.run(["xorriso", "-osirrox", "on", "-indev", image, "-extract", source, squashfs])
    return [process.run(["unsquashfs", "-cat", squashfs, name], check=False).stdout for name in FILES]

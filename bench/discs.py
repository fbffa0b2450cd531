#!/usr/bin/env python3
"""Writes the same trees as ISO 9660 discs with ours and with xorriso, in pairs; prints a table in Markdown.

    python bench/discs.py [--work DIR] [--turns N]

Both write Rock Ridge and Joliet. Ours also writes a SHA256SUMS over all the files and reads everything back, as
`conda-appliance disc` does; "names and data" is without it, which is what xorriso does. The
trees are in the page cache.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
from pathlib import Path

from conda_appliance import disc, process
from conda_appliance.definition_disc import DiscDefinition
from contenders import metered

#: A tree's name → how many files, bytes in all, files in one folder.
TREES = {
    "20,000 files, 400 MB": (20_000, 400_000_000, 40),
    "20,000 files in one folder, names alike": (20_000, 20_000, 20_000),
    "100 files, 500 MB": (100, 500_000_000, 100),
    "100,000 files, 100 MB": (100_000, 100_000_000, 40),
}


def main() -> int:
    """Measure, or with --write be one of what is measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/bench-discs"), help="where all is made")  # noqa: S108
    parser.add_argument("--turns", type=int, default=3, help="how often; the median counts")
    parser.add_argument("--write", nargs=2, type=Path, metavar=("TREE", "ISO"), help=argparse.SUPPRESS)
    parser.add_argument("--sums", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write(*args.write, sums=args.sums)
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    print("| tree | | seconds | of the processor | memory |\n| --- | --- | --- | --- | --- |")
    for title, (files, size, each) in TREES.items():
        tree = args.work / f"{files}-{size}"
        if not tree.exists():
            make_tree(tree, files, size, each)
        for line in compared(title, tree, args.work, args.turns):
            print(line, flush=True)
    return 0


def make_tree(to: Path, files: int, size: int, each: int) -> None:
    """Random bytes: what a disc holds is compressed already, or does not matter."""
    part = to.with_name(f"{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    dice = random.Random(files)  # noqa: S311
    for number in range(files):
        folder = part / f"package-{number // (10 * each):03}" / f"module_{number // each % 10}"
        if number % each == 0:
            folder.mkdir(parents=True)
        (folder / f"a_file_with_a_longer_name_{number:06}.py").write_bytes(
            dice.randbytes(dice.randint(0, 2 * size // files))
        )
    part.rename(to)


def write(tree: Path, to: Path, *, sums: bool) -> None:
    """What is measured of ours."""
    value = {"name": "bench", "volume": "BENCH", "entries": [{"from": "tree", "to": "/tree"}]}
    definition = DiscDefinition.model_validate(value | ({"sums": "/SHA256SUMS"} if sums else {}))
    disc.write(definition, {"tree": tree}, to, epoch=1_577_836_800)


def compared(title: str, tree: Path, work: Path, turns: int) -> list[str]:
    """A line of the table for each contender, which take turns."""
    iso = work / "made.iso"
    own = [sys.executable, __file__, "--write", str(tree), str(iso)]
    commands = {
        "xorriso": [
            "xorriso",
            "-as",
            "mkisofs",
            "-quiet",
            "-R",
            "-J",
            "-V",
            "BENCH",
            "-o",
            str(iso),
            str(tree),
        ],
        "ours: names and data": own,
        "ours: with SHA256SUMS, read back": [*own, "--sums"],
    }
    process.run(["du", "-s", tree])
    figures: dict[str, list[dict[str, object]]] = {name: [] for name in commands}
    for _ in range(turns):
        for name, command in commands.items():
            iso.unlink(missing_ok=True)
            figures[name].append(metered(command, at=work / "logs", name="disc"))
    iso.unlink()

    def median(name: str, figure: str) -> float:
        return statistics.median(float(str(one[figure])) for one in figures[name])

    return [
        f"| {title} | {name} | {median(name, 'wall_s'):.1f} | {median(name, 'cpu_s'):.1f} "
        f"| {median(name, 'memory') / 1e6:.0f} MB |"
        for name in commands
    ]


if __name__ == "__main__":
    sys.exit(main())

"""A disc with everything that is awkward on one: what it holds, and how a tree that was read from it is compared."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import conda_appliance.disc
from conda_appliance import trees
from conda_appliance.definition_disc import DiscDefinition

#: The most that one record of a disc says of a file's size, and the size of a file that needs two, in bytes.
EXTENT, LARGE = 0xFFFFF800, 0xFFFFF800 + (400 << 20)
#: The SHA-256 of the large file: zeroes but for ``start``, ``edge`` at its second record, and ``end``.
LARGE_SHA256 = "c5bfeac9647a0f2faf18ec02c291a4c2b40d618684de9383d8a396876dc00174"

DEFINITION = DiscDefinition.model_validate(
    {
        "name": "awkward",
        "volume": "AWKWARD",
        "entries": [
            {"from": "tree", "to": "/tree", "keep": True},
            {"from": "large", "to": "/large", "optional": True},
            {"from": "sums", "to": "/SHA256SUMS", "optional": True},
        ],
    }
)


@dataclass(frozen=True, kw_only=True)
class Awkward:
    """The disc, and the tree that it holds beside a large file."""

    image: Path
    tree: Path

    def paths(self) -> dict[str, os.stat_result]:
        return {path: about for path, about in trees.walk(self.tree) if path != "."}

    def links(self) -> dict[str, str]:
        return {
            path: os.readlink(self.tree / path)  # noqa: PTH115 (exactly)
            for path, about in self.paths().items()
            if stat.S_ISLNK(about.st_mode)
        }

    def listing(self) -> dict[str, str]:
        return listing(self.tree)


def disc(folder: Path) -> Awkward:
    """Make the tree and its disc in ``folder``; the large file is a hole on it, as it is in its source."""
    tree, large = folder / "tree", folder / "large"
    _make_tree(tree)
    with large.open("wb") as file:
        file.write(b"start")
        file.seek(EXTENT)
        file.write(b"edge")
        file.seek(LARGE - len(b"end"))
        file.write(b"end")
    one = "edeaaff3f1774ad2888673770c6d64097e391bc362d7d6fb34982ddf0efd18cb"  # abc\n
    sums = f"{LARGE_SHA256}  large\n{one}  tree/deep/three\n"
    image = conda_appliance.disc.write(
        DEFINITION,
        {"tree": tree, "large": large, "sums": sums.encode()},
        folder / "awkward.iso",
        epoch=1_700_000_000,
    )
    return Awkward(image=image, tree=tree)


def _make_tree(tree: Path) -> None:
    deep = tree.joinpath("deep", *(f"level-{number}" for number in range(12)))
    deep.mkdir(parents=True)
    (deep / "leaf").write_text("leaf")
    os.chown(deep.parents[5], 8, 9)  # the one that is moved
    os.chown(deep, 10, 11)
    # A second folder that lies too deep and has the name of the first.
    again = tree.joinpath("again", *(f"level-{number}" for number in range(12)))
    again.mkdir(parents=True)
    (again / "leaf").write_text("leaf")
    (tree / ("n" * 253)).write_text("as long as a name can be")
    (tree / ("ü" * 126)).write_text("252 bytes")
    (tree / ("d" * 253)).mkdir()
    (tree / ("d" * 253) / "inside").write_text("inside")
    (tree / "one").write_text("abc\n")
    (tree / "two").hardlink_to(tree / "one")
    (tree / "deep/three").hardlink_to(tree / "one")
    (tree / "one").chmod(0o640)
    os.chown(tree / "one", 6, 7)
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "shared").mkdir()
    (tree / "shared").chmod(0o2775)
    os.chown(tree / "shared", 0, 50)
    (tree / "nothing").write_bytes(b"")
    (tree / "full").write_bytes(b"x" * 2048)
    (tree / "to-a-long-name").symlink_to("n" * 253)
    (tree / "far").symlink_to("/".join(["x" * 100] * 10))
    (tree / "dots").symlink_to("../.././deep/./level-0")
    (tree / "absolute").symlink_to("/usr/bin/env")


def listing(tree: Path) -> dict[str, str]:
    """What a tree holds, but for what ISO 9660 does not say: times, and a link's own mode."""
    found = trees.listing(tree, times=False)
    return {
        path: about.replace("link 0555", "link 0777").replace(" links:3", "")
        for path, about in found.items()
        if path != "."
    }

"""What an image's root file system holds is read from outside, and a difference between two is named."""

from __future__ import annotations

import os
from pathlib import Path

from conda_appliance import compare, disk, diskforms, layers, trees

IDENTITY = "6f1cde62-2b5a-4d0c-9a55-3c2a9b0e9d11"
EPOCH = 1_700_000_000
SIZE = 256 * disk.MIB


def tree(root: Path, *, word: str = "one") -> Path:
    """A small tree with a bit of everything that has an owner, a mode or a target."""
    (root / "etc/deep").mkdir(parents=True)
    (root / "etc/word").write_text(word)
    (root / "etc/deep/program").write_text("#!/bin/sh\n")
    (root / "etc/deep/program").chmod(0o4755)
    os.chown(root / "etc/deep/program", 12, 34)
    (root / "etc/link").symlink_to("deep/../word")
    os.link(root / "etc/word", root / "etc/second")
    (root / "etc/ümlaut\n").write_text("")
    trees.set_times(root, EPOCH)
    return root


def image(folder: Path, root: Path) -> Path:
    """A qcow2 whose root file system holds ``root``."""
    folder.mkdir()
    disk.loaders(folder / "boot", identity=IDENTITY, epoch=EPOCH)
    disk.write(
        folder / "disk.raw",
        [root],
        size=SIZE,
        identity=IDENTITY,
        epoch=EPOCH,
        work=folder,
        taken=layers.size_of(root),
        boot=folder / "boot",
    )
    diskforms.write(folder / "disk.raw", "qcow2", folder / "disk.qcow2", seed="", epoch=EPOCH)
    return folder / "disk.qcow2"


def looked_at(disk_image: Path) -> dict[str, str]:
    work = disk_image.parent / "look"
    work.mkdir()
    found = compare.tree_of(disk_image, work)
    assert list(work.iterdir()) in ([], [work / "root"]), "the raw disk goes again"
    assert str(work) not in Path("/proc/mounts").read_text()
    assert not [
        one for one in Path("/sys/block").glob("loop*/loop/backing_file") if str(work) in one.read_text()
    ]
    return found


def test_a_tree_in_an_image_is_the_tree_that_went_in(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    found = looked_at(image(tmp_path / "image", root))
    assert found.pop("lost+found").startswith("folder 0700 0:0")
    assert trees.differences(trees.listing(root), found) == []


def test_the_file_that_differs_is_named(tmp_path: Path) -> None:
    first = looked_at(image(tmp_path / "first", tree(tmp_path / "one")))
    second = looked_at(image(tmp_path / "second", tree(tmp_path / "two", word="two")))
    changed = [line.split(": ")[:2] for line in trees.differences(first, second)]
    assert changed == [["changed", "etc/second"], ["changed", "etc/word"]]


def test_a_sparse_file_is_copied_to_another_file_system_with_its_holes(tmp_path: Path) -> None:
    """The cache and the results need not lie on the same one."""
    source, to = tmp_path / "disk.raw", Path(f"/dev/shm/conda-appliance-test-{os.getpid()}")
    with source.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data" * 100_000)
    try:
        layers.copy(source, to)
        assert to.stat().st_dev != source.stat().st_dev
        assert to.read_bytes() == source.read_bytes()
        assert to.stat().st_blocks * 512 < 1 << 20
    finally:
        to.unlink(missing_ok=True)

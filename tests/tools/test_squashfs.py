"""Trees that are read as a squashfs, looked at with its own tools."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from conda_appliance import process, squashfs, trees
from conda_appliance.errors import BuildError
from conda_appliance.overlay import CannotAdd

EPOCH = 1_700_000_000
#: A block of a file.
BLOCK = 1 << 17


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with something of each kind below ``opt/conda``, and something beside it."""
    root = tmp_path / "tree"
    inside = root / "opt/conda"
    (inside / "empty").mkdir(parents=True)
    (inside / "bin").mkdir()
    (inside / "bin/python3.13").write_bytes(os.urandom(3 * BLOCK + 17))
    (inside / "bin/python3.13").chmod(0o755)
    (inside / "bin/python3").symlink_to("python3.13")
    os.link(inside / "bin/python3.13", inside / "bin/again")
    (inside / "whole").write_bytes(os.urandom(2 * BLOCK))
    (inside / "nothing").touch(mode=0o600)
    (inside / "zeroes").write_bytes(bytes(BLOCK + 1))
    (inside / "näme with spaces").write_text("text")
    (root / "opt/elsewhere").write_text("not in it")
    trees.set_times(root, EPOCH)
    return root


def write(image: squashfs.Image, to: Path, step: int = 1 << 20) -> Path:
    buffer = memoryview(bytearray(step))
    with to.open("wb") as file:
        for at in range(0, image.size, step):
            file.write(buffer[: image.read_into(buffer, at)])
    return to


def unpacked(image: squashfs.Image, to: Path) -> Path:
    source = write(image, to.with_suffix(".squashfs"))
    process.run(["unsquashfs", "-quiet", "-no-progress", "-dest", to, source])
    return to


def contents(root: Path) -> Iterator[str]:
    """What is in a tree, a line each: owners are another matter (`test_all_belongs_to_root`)."""
    links: dict[int, str] = {}
    for path, about in trees.all_of(root):
        said = trees.describe(root / path, about).replace(f" {about.st_uid}:{about.st_gid}", "")
        yield f"{path} {said} {links.setdefault(about.st_ino, path)}"


def same(one: Path, other: Path) -> None:
    assert list(contents(one)) == list(contents(other))


def test_everything_in_the_folder_is_in_it_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    image = squashfs.Image([tree], "/opt/conda", epoch=EPOCH)
    same(unpacked(image, tmp_path / "out"), tree / "opt/conda")


def test_it_tells_what_mksquashfs_tells(tree: Path, tmp_path: Path) -> None:
    ours = write(squashfs.Image([tree], "/opt/conda", epoch=EPOCH), tmp_path / "ours")
    theirs = tmp_path / "theirs"
    words = [
        "-noI",
        "-noId",
        "-noD",
        "-noF",
        "-noX",
        "-no-duplicates",
        "-no-fragments",
        "-no-xattrs",
        "-no-sparse",
    ]
    process.run(
        ["mksquashfs", tree / "opt/conda", theirs, *words, "-all-root", "-quiet", "-no-progress"],
        env={"SOURCE_DATE_EPOCH": str(EPOCH)},
    )
    assert ours.stat().st_size == theirs.stat().st_size
    for words in (["-s"], ["-lln"]):
        said = [
            process.run(["unsquashfs", *words, one]).stdout.replace(str(one), "") for one in (ours, theirs)
        ]
        assert said[0] == said[1]


def test_all_belongs_to_root(tree: Path, tmp_path: Path) -> None:
    os.chown(tree / "opt/conda/whole", 1000, 1000)
    ours = write(squashfs.Image([tree], "/opt/conda", epoch=EPOCH), tmp_path / "ours")
    lines = process.run(["unsquashfs", "-lln", ours]).stdout.splitlines()
    assert len(lines) == 10
    assert all(line.split()[1] == "0/0" for line in lines)


@pytest.mark.parametrize("count", [255, 256, 257, 3000])
def test_a_folder_of_many_names(tmp_path: Path, count: int) -> None:
    """More than a header is for, more than a block of inodes has, more than the short kind of folder can be."""
    inside = tmp_path / "tree/opt"
    inside.mkdir(parents=True)
    for number in range(count):
        name = inside / f"{number:04} {'long' * 8}"
        if number % 7 == 3:
            name.mkdir()
            (name / "below").touch()
        else:
            name.write_text(str(number))
    trees.set_times(tmp_path / "tree", EPOCH)
    image = squashfs.Image([tmp_path / "tree"], "opt", epoch=EPOCH)
    same(unpacked(image, tmp_path / "out"), inside)


def test_trees_lie_over_each_other(tree: Path, tmp_path: Path) -> None:
    """As overlayfs shows them: an upper file is used, a hidden one is gone, an opaque folder has nothing of below."""
    upper, merged = tmp_path / "upper", tmp_path / "merged"
    (upper / "opt/conda/bin").mkdir(parents=True)
    (upper / "opt/conda/whole").write_text("another")
    (upper / "opt/conda/bin/new").symlink_to("../whole")
    (upper / "opt/conda/more").write_bytes(b"more")
    os.mknod(upper / "opt/conda/zeroes", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(upper / "opt/conda/bin", "trusted.overlay.opaque", b"y")
    trees.set_times(upper, EPOCH + 5)
    shutil.copytree(tree, merged, symlinks=True)
    shutil.rmtree(merged / "opt/conda/bin")
    shutil.copytree(upper / "opt/conda/bin", merged / "opt/conda/bin", symlinks=True)
    (merged / "opt/conda/zeroes").unlink()
    for name in ("whole", "more"):
        shutil.copy2(upper / "opt/conda" / name, merged / "opt/conda" / name)
    os.removexattr(merged / "opt/conda/bin", "trusted.overlay.opaque")
    trees.set_times(merged, EPOCH)
    for name in ("whole", "more", "bin", "bin/new", "."):
        os.utime(merged / "opt/conda" / name, (EPOCH + 5, EPOCH + 5), follow_symlinks=False)
    image = squashfs.Image([upper, tree], "/opt/conda", epoch=EPOCH)
    same(unpacked(image, tmp_path / "out"), merged / "opt/conda")


def test_what_has_more_than_a_mode_is_refused(tree: Path) -> None:
    os.setxattr(tree / "opt/conda/whole", "user.more", b"than a mode")
    with pytest.raises(CannotAdd):
        squashfs.Image([tree], "/opt/conda", epoch=EPOCH)


@pytest.mark.parametrize("step", [4093, 65536])
def test_it_can_be_read_from_any_place(tree: Path, tmp_path: Path, step: int) -> None:
    image = squashfs.Image([tree], "/opt/conda", epoch=EPOCH)
    whole = write(image, tmp_path / "whole")
    process.run(["cmp", whole, write(image, tmp_path / "again", step)])
    buffer = memoryview(bytearray(b"x" * 100))
    assert image.read_into(buffer, image.size - 10) == 10
    assert bytes(buffer) == whole.read_bytes()[-10:] + bytes(90)
    assert image.read_into(buffer, image.size + 5) == 0
    assert bytes(buffer) == bytes(100)


def test_the_same_trees_give_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere/tree"
    process.run(["cp", "-a", f"{tree}/.", again.parent.mkdir() or again])
    images = [squashfs.Image([one], "/opt/conda", epoch=EPOCH) for one in (tree, again)]
    process.run(["cmp", write(images[0], tmp_path / "one"), write(images[1], tmp_path / "other")])


def test_a_file_that_becomes_shorter_is_told(tree: Path, tmp_path: Path) -> None:
    image = squashfs.Image([tree], "/opt/conda", epoch=EPOCH)
    os.truncate(tree / "opt/conda/whole", 5)
    with pytest.raises(BuildError, match="whole became shorter"):
        write(image, tmp_path / "image")

"""What a tree holds, as text: every property that a file system keeps is in it, and nothing of where it lies."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from conda_appliance import trees

EPOCH = 1_577_836_800


def until_its_time_changes(path: Path, act: Callable[[], object]) -> None:
    """Do something to a file until the file system's clock, which ticks in milliseconds, has seen it."""
    before = path.lstat().st_ctime_ns
    while path.lstat().st_ctime_ns == before:
        act()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/file").write_text("content")
    (root / "etc/file").chmod(0o640)
    (root / "etc/link").symlink_to("./file")
    (root / "empty").mkdir(mode=0o700)
    for path in ("etc/file", "etc/link", "etc", "empty", "."):
        os.utime(root / path, (EPOCH, EPOCH), follow_symlinks=False)
    return root


def owner() -> str:
    return f"{os.getuid()}:{os.getgid()}"


# --- listings ---------------------------------------------------------------------------------------


def test_a_listing_says_type_mode_owner_size_content_and_time(tree: Path) -> None:
    (tree / "empty").chmod(0o1777)
    digest = hashlib.sha256(b"content").hexdigest()
    found = trees.listing(tree)
    assert found.pop(".").startswith("folder 0755 ")
    assert found == {
        "empty": f"folder 1777 {owner()} mtime:{EPOCH}",
        "etc": f"folder 0755 {owner()} mtime:{EPOCH}",
        "etc/file": f"file 0640 {owner()} 7 sha256:{digest} mtime:{EPOCH}",
        "etc/link": f"link 0777 {owner()} -> './file' mtime:{EPOCH}",
    }


def test_times_can_be_left_out(tree: Path) -> None:
    before = trees.listing(tree, times=False)
    os.utime(tree / "etc/file", (1, 1))
    assert trees.listing(tree, times=False) == before
    assert not any("mtime" in about for about in before.values())


def test_what_was_read_already_is_not_read_again_unless_it_changed(tree: Path) -> None:
    file = tree / "etc/file"
    about = file.stat()
    sums = {(about.st_ino, about.st_ctime_ns): "ab" * 32}
    assert f"sha256:{'ab' * 32}" in trees.listing(tree, sums=sums)["etc/file"]
    file.write_bytes(b"another")
    os.utime(file, (EPOCH, EPOCH))  # its size and its time are as they were
    assert trees.listing(tree, sums=sums)["etc/file"] == trees.listing(tree)["etc/file"]


def test_one_file_is_a_tree_of_its_own(tree: Path) -> None:
    assert trees.listing(tree / "etc/file") == {".": trees.listing(tree)["etc/file"]}


def test_kinds_beyond_files_are_named(tree: Path) -> None:
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tree / "socket"))
    found = trees.listing(tree)
    assert found["pipe"].split()[0] == "fifo"
    assert found["socket"].split()[0] == "socket"


def test_a_second_name_of_a_file_and_attributes_are_seen(tree: Path) -> None:
    os.link(tree / "etc/file", tree / "etc/other")
    os.setxattr(tree / "etc/file", "user.b", b"\x01\xff")
    os.setxattr(tree / "etc/file", "user.a", b"")
    found = trees.listing(tree)
    assert found["etc/file"].endswith(f" links:2 user.a= user.b=01ff mtime:{EPOCH}")
    assert found["etc/other"] == found["etc/file"]


def test_a_name_outside_the_tree_is_no_part_of_it(tree: Path, tmp_path: Path) -> None:
    before = trees.listing(tree)
    os.link(tree / "etc/file", tmp_path / "outside")
    assert trees.listing(tree) == before


def test_files_that_another_tree_has_too_are_not_read_again(tree: Path, tmp_path: Path) -> None:
    (tree / "etc/one").write_text("twice")
    os.link(tree / "etc/one", tree / "etc/other")
    before = trees.listing(tree)
    other = tmp_path / "other"
    other.mkdir()
    os.link(tree / "etc/file", other / "shared")
    (other / "own").write_text("new")
    known = trees.descriptions(trees.all_of(tree), before)
    assert before["etc/file"] in known.values()
    assert not any(" links:" in about for about in known.values()), "a tree may share one of the names"
    (tree / "etc/file").write_text("c0ntent")  # behind its back: a reader would see another digest
    found = trees.listing(other, known=known)
    assert found["shared"].split()[4] == before["etc/file"].split()[4]
    assert found["own"].split()[4] == f"sha256:{hashlib.sha256(b'new').hexdigest()}"


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "etc/file").chmod(0o641),
        lambda root: (root / "etc/file").write_text("c0ntent"),
        lambda root: os.utime(root / "etc/file", (EPOCH + 1, EPOCH + 1)),
        lambda root: (root / "etc/file").rename(root / "etc/elif"),
        lambda root: (root / "etc/new").touch(),
        lambda root: (root / "empty").rmdir(),
        lambda root: ((root / "etc/link").unlink(), (root / "etc/link").symlink_to("file")),
        lambda root: os.setxattr(root / "empty", "user.x", b"1"),
    ],
    ids=["mode", "content", "time", "name", "more", "less", "target", "attribute"],
)
def test_whatever_changes_changes_the_digest(tree: Path, change: Callable[[Path], object]) -> None:
    before = trees.digest(trees.dump(trees.listing(tree)))
    change(tree)
    assert trees.digest(trees.dump(trees.listing(tree))) != before


def test_where_a_tree_lies_and_in_what_order_it_was_written_does_not_count(
    tree: Path, tmp_path: Path
) -> None:
    other = tmp_path / "elsewhere"
    (other / "empty").mkdir(parents=True)
    (other / "etc").mkdir()
    (other / "etc/link").symlink_to("./file")
    (other / "etc/file").write_text("content")
    (other / "etc/file").chmod(0o640)
    (other / "empty").chmod(0o700)
    trees.set_times(other, EPOCH)
    assert trees.listing(other) == trees.listing(tree)


def test_a_folder_comes_before_what_it_holds_and_names_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/b", "a-b"):
        (tmp_path / name).mkdir(parents=True)
    assert [path for path, _ in trees.walk(tmp_path)] == [".", "a", "a-b", "b", "a/b", "a/z"]


# --- as text ----------------------------------------------------------------------------------------

ODD = ["tab\tnewline\n", 'quote " and \\', "é \u2028 \x85", os.fsdecode(b"\xff not UTF-8")]


def test_what_is_dumped_is_loaded_again_whatever_the_names_are(tmp_path: Path) -> None:
    for name in ODD:
        (tmp_path / name).symlink_to(name)
    found = trees.listing(tmp_path)
    text = trees.dump(found)
    assert trees.load(text) == found
    assert trees.load(text.encode().decode()) == found, "it can be written to a file"
    assert len(text.splitlines()) == 1 + len(ODD)


def test_the_order_of_a_listing_does_not_count(tree: Path) -> None:
    found = trees.listing(tree)
    assert trees.digest(trees.dump(dict(reversed(found.items())))) == trees.digest(trees.dump(found))


@pytest.mark.parametrize("text", ["no tab\n", "not JSON\tfile\n", '"path"\t\n'])
def test_other_text_is_no_listing(text: str) -> None:
    with pytest.raises(ValueError):
        trees.load(text)


def test_differences_name_each_path_and_both_sides() -> None:
    before = {"a": "file 1", "b": "file 2", "c": "same"}
    after = {"b": "file 3", "c": "same", "d": "new"}
    assert trees.differences(before, after) == [
        "missing: a",
        "changed: b: file 2 → file 3",
        "extra: d",
    ]
    assert trees.differences(before, before) == []


def test_of_many_differences_the_first_are_named_and_the_rest_counted() -> None:
    lines = [f"extra: {number}" for number in range(trees.SHOWN + 3)]
    assert trees.some(lines[:2]) == "extra: 0; extra: 1"
    assert trees.some(lines[: trees.SHOWN]).count("extra") == trees.SHOWN
    assert trees.some(lines).endswith(f"extra: {trees.SHOWN - 1}; and 3 more")


# --- disks ------------------------------------------------------------------------------------------


def disk(path: Path, *blocks: tuple[int, bytes], size: int = 1 << 30) -> str:
    """What a listing says of a disk's content; the disk is all holes but for ``blocks`` (place, bytes)."""
    with path.open("wb") as file:
        file.truncate(size)
        for place, data in blocks:
            file.seek(place)
            file.write(data)
    return trees.listing(path, times=False)["."].split()[4]


def test_a_disks_holes_and_its_zeroes_are_the_same(tmp_path: Path) -> None:
    sparse = disk(tmp_path / "sparse", (1 << 20, b"boot"))
    full = disk(
        tmp_path / "full", (1 << 20, b"boot"), (5 << 20, bytes(1 << 20)), ((1 << 30) - 4096, bytes(4096))
    )
    assert sparse == full
    assert sparse.startswith("blocks:")


@pytest.mark.parametrize(
    "blocks",
    [
        [(1 << 20, b"bOot")],
        [(1 << 20, b"boot"), ((1 << 30) - 1, b"x")],
        [(2 << 20, b"boot")],
        [((1 << 20) + 1, b"boot")],
        [],
    ],
    ids=["another byte", "one more at the end", "elsewhere", "a byte further", "empty"],
)
def test_another_byte_of_a_disk_is_another_digest(tmp_path: Path, blocks: list[tuple[int, bytes]]) -> None:
    assert disk(tmp_path / "one", (1 << 20, b"boot")) != disk(tmp_path / "other", *blocks)


def test_a_disk_is_read_to_its_last_byte(tmp_path: Path) -> None:
    size = (1 << 30) + 1000
    one = disk(tmp_path / "one", (size - 2, b"ab"), size=size)
    assert one != disk(tmp_path / "other", (size - 2, b"aB"), size=size)


def test_a_smaller_file_is_read_whole(tmp_path: Path) -> None:
    assert disk(tmp_path / "file", size=4096) == f"sha256:{hashlib.sha256(bytes(4096)).hexdigest()}"


def test_extents_are_where_a_sparse_file_has_data(tmp_path: Path) -> None:
    disk(tmp_path / "disk", (1 << 20, bytes(4096)), (8 << 20, b"end"), size=16 << 20)
    with (tmp_path / "disk").open("rb") as file:
        found = trees.extents(file.fileno(), 16 << 20)
    assert [start for start, _ in found] == [1 << 20, 8 << 20]
    assert sum(end - start for start, end in found) < 1 << 20
    assert trees.extents(os.open(tmp_path / "disk", os.O_RDONLY), 0) == []


# --- seen without reading ---------------------------------------------------------------------------


def test_a_tree_that_nobody_touched_is_known_without_reading(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trees.seen(trees.all_of(tree))
    (tree / "etc/file").read_text()

    def no_reading(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(Path, "open", no_reading)
    assert trees.seen(trees.all_of(tree)) == before


@pytest.mark.parametrize(
    ("path", "act"),
    [
        ("etc/file", lambda root: (root / "etc/file").write_text("c0ntent")),
        ("etc/file", lambda root: (root / "etc/file").chmod(0o640)),
        ("etc/file", lambda root: os.utime(root / "etc/file", (EPOCH, EPOCH))),
        (
            "etc",
            lambda root: (
                (root / "etc/file").rename(root / "etc/elif")
                and (root / "etc/elif").rename(root / "etc/file")
            ),
        ),
        ("etc", lambda root: (root / "etc/new").touch() or (root / "etc/new").unlink()),
    ],
    ids=[
        "written with the same size",
        "mode set again",
        "time set again",
        "renamed and back",
        "one made and removed",
    ],
)
def test_a_touched_tree_is_to_be_looked_at_closer(
    tree: Path, path: str, act: Callable[[Path], object]
) -> None:
    before = trees.seen(trees.all_of(tree))

    def disguised() -> None:
        act(tree)
        os.utime(tree / path, (EPOCH, EPOCH))  # what no program can set back is when that was done

    until_its_time_changes(tree / path, disguised)
    assert trees.seen(trees.all_of(tree)) != before


def test_a_copy_is_another_file(tree: Path) -> None:
    before = trees.seen(trees.all_of(tree / "etc/file"))
    copy = tree / "copy"
    copy.write_text("content")
    copy.chmod(0o640)
    os.utime(copy, (EPOCH, EPOCH))
    assert trees.seen(trees.all_of(copy)) != before


# --- times ------------------------------------------------------------------------------------------


def test_everything_gets_the_same_time_links_and_folders_too(tree: Path) -> None:
    trees.set_times(tree, EPOCH + 5)
    assert {about.st_mtime for _, about in trees.walk(tree)} == {EPOCH + 5}
    assert (tree / "etc/link").lstat().st_mtime == EPOCH + 5


def test_what_a_link_leads_to_keeps_its_time(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    os.utime(outside, (1, 1))
    (tree / "out").symlink_to(outside)
    trees.set_times(tree, EPOCH)
    assert outside.stat().st_mtime == 1


def test_older_times_can_be_kept(tree: Path) -> None:
    os.utime(tree / "etc/file", (EPOCH - 100, EPOCH - 100))
    os.utime(tree / "empty", (EPOCH + 100, EPOCH + 100))
    trees.set_times(tree, EPOCH, newer_only=True)
    assert (tree / "etc/file").stat().st_mtime == EPOCH - 100
    assert (tree / "empty").stat().st_mtime == EPOCH


def test_modes_do_not_change_with_times(tree: Path) -> None:
    trees.set_times(tree, EPOCH)
    assert stat.S_IMODE((tree / "etc/file").stat().st_mode) == 0o640

"""A layer is known again as what was made, not trusted blindly: what was touched is read, what is damaged is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.layers_made import PARTS, Maker, at_once, count_reads, flip, names, used, write_late

from conda_appliance import layer, trees
from conda_appliance.errors import BuildError, HashMismatch
from conda_appliance.layer import Layer
from conda_appliance.layers import Store

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (flip, "changed: etc/file"),
    "a missing file": (lambda tree: (tree / "etc/other").unlink(), "missing: etc/other"),
    "an extra file": (lambda tree: (tree / "etc/more").touch(), "extra: etc/more"),
    "another mode": (lambda tree: (tree / "etc/other").chmod(0o777), "changed: etc/other"),
}


def test_a_touched_but_unchanged_file_is_read_again_and_accepted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.get("system", PARTS, Maker())
    file = made.path / "etc/file"
    about = file.stat()
    write_late(file, "content")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    os.utime(made.path / "etc", ns=(about.st_atime_ns, (made.path / "etc").stat().st_mtime_ns))
    reads = count_reads(monkeypatch)
    assert store.get("system", PARTS, Maker()).made is False
    assert reads == [made.path], "it was looked at closer"
    assert store.get("system", PARTS, Maker()).made is False
    assert reads == [made.path], "and is known again afterwards"


def test_an_untouched_layer_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.get("system", PARTS, Maker())
    reads = count_reads(monkeypatch)
    store.get("system", PARTS, Maker())
    assert reads == []


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_layer_is_named_set_aside_and_made_anew(store: Store, how: str) -> None:
    damage, named = DAMAGE[how]
    made = store.get("system", PARTS, Maker())
    damage(made.path)
    with pytest.raises(HashMismatch) as caught:
        store.get("system", PARTS, Maker())
    assert str(made.path) in caught.value.message
    assert named in caught.value.message
    assert caught.value.expected == made.sha256
    assert caught.value.exit_code == 3
    aside = made.path.parent.with_name(f"{made.key}.damaged")
    assert str(aside) in caught.value.hint
    assert (aside / "tree/etc/file").exists(), "to be looked at"
    assert not made.path.exists()
    again = store.get("system", PARTS, Maker())
    assert (again.made, again.sha256, again.path) == (True, made.sha256, made.path)


def test_one_run_verifies_a_layer_once(one_run: Store) -> None:
    """An image, its bill of materials and twenty others like it ask for the same system."""
    store = one_run
    made = store.get("system", PARTS, Maker())
    flip(made.path)
    for _ in range(2):
        found = store.get("system", PARTS, Maker())
        assert (found.path, found.sha256, found.made) == (made.path, made.sha256, False)
    store.release()
    with pytest.raises(HashMismatch):
        store.get("system", PARTS, Maker())


def test_a_layer_that_shares_files_is_known_as_it_is_now(one_run: Store) -> None:
    """Each name more that a file gets changes what the file system says of it (its ctime)."""
    store = one_run
    first = store.get("environment", {"number": "1"}, Maker())

    def share(to: Path, _work: Path) -> None:
        to.mkdir()
        (to / "file").hardlink_to(first.path / "etc/file")

    for number in ("2", "3"):
        store.get("environment", {"number": number}, share, like=store.find("environment", {"number": "1"}))
    store.release()
    assert store.find("environment", {"number": "1"}) is not None
    assert layer.untouched(first.path.parent, trees.all_of(first.path)), "it need not be read"


def test_many_damaged_files_are_counted(store: Store) -> None:
    made = store.get("system", PARTS, Maker())
    for number in range(20):
        (made.path / f"extra-{number:02}").touch()
    with pytest.raises(HashMismatch, match=r"extra: extra-00; .*; and 1[0-9] more\)"):
        store.get("system", PARTS, Maker())


def test_a_damaged_file_is_named_by_itself_or_by_who_knows_its_parts(store: Store) -> None:
    def make(to: Path, _work: Path) -> None:
        to.write_bytes(b"a disc")

    for damage, said in (
        (None, r"the cached .*/payload\.iso is not"),
        (lambda _: "/readme on the disc", "/readme on the disc"),
    ):
        made = store.get("payload", PARTS, make, name="payload.iso")
        write_late(made.path, "A disc")
        with pytest.raises(HashMismatch, match=said):
            store.get("payload", PARTS, make, name="payload.iso", damage=damage)


def test_verify_reads_every_layer_whatever_the_file_system_says(store: Store) -> None:
    sound = store.get("system", PARTS, Maker())
    bad = store.get("environment", PARTS, Maker())
    flip(bad.path)
    (bad.path.parent / "seen").write_text(
        trees.seen(trees.all_of(bad.path))
    )  # as a failing disk has it: nobody wrote
    assert store.get("environment", PARTS, Maker()).made is False
    (line,) = store.verify()
    assert str(bad.path) in line and "changed: etc/file" in line
    assert sound.path.exists() and not bad.path.exists()


def test_a_layer_that_was_set_aside_is_not_found_damaged_once_more(store: Store) -> None:
    bad = store.get("system", PARTS, Maker())
    flip(bad.path)
    assert len(store.verify()) == 1
    assert store.verify() == []
    assert names(store.root / "system") == [f"{bad.key}.damaged"]
    store.release()
    assert [one.key for one in store.prune(size=0)] == [f"{bad.key}.damaged"], (
        "it takes room until it is pruned"
    )


def test_a_layer_that_is_sooner_made_than_read_is_made_anew_when_touched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(to: Path, _work: Path) -> None:
        to.write_bytes(b"a disk")

    reads = count_reads(monkeypatch)
    first = store.get("disk", PARTS, make, name="disk.raw", read=False)
    assert first.sha256 == ""
    assert store.get("disk", PARTS, make, name="disk.raw", read=False).made is False
    write_late(first.path, "A disk")
    again = store.get("disk", PARTS, make, name="disk.raw", read=False)
    assert again.made
    assert again.path.read_bytes() == b"a disk"
    assert reads == [], "never read"
    assert store.verify() == []


def test_a_layer_may_share_files_of_another_and_both_stay_known(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.get("environment", {"number": "1"}, Maker(), subject="hello")

    def share(to: Path, _work: Path) -> None:
        (to / "etc").mkdir(parents=True)
        os.link(first.path / "etc/file", to / "etc/file")
        (to / "etc/new").write_text("new")

    second = store.get("environment", {"number": "2"}, share, subject="hello", like=first)
    assert second.listing() == trees.listing(second.path), "as if all of it had been read"
    reads = count_reads(monkeypatch)
    for number in ("1", "2"):
        assert store.find("environment", {"number": number}) is not None
    assert reads == []
    store.release()
    used(first, 100)
    store.prune(age=50)
    assert not first.path.exists()
    assert (second.path / "etc/file").read_text() == "content", "it has a name of its own"
    assert store.find("environment", {"number": "2"}) is not None


@pytest.fixture
def shared(store: Store) -> Layer:
    """A layer whose file another one shares, which shares it with a third: its ctime is another one since."""
    first = store.get("environment", {"number": "1"}, Maker(), subject="hello")

    def share(to: Path, _work: Path) -> None:
        (to / "etc").mkdir(parents=True)
        os.link(first.path / "etc/file", to / "etc/file")
        (to / "etc/new").write_text("new")

    second = store.get("environment", {"number": "2"}, share, like=first)
    store.get("environment", {"number": "3"}, share, like=store.find("environment", {"number": "1"}))
    assert not layer.untouched(second.path.parent, trees.all_of(second.path))
    return second


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is read."""
    found: list[str] = []
    real = trees.describe

    def describe(path: str | Path, *about: Any, **how: Any) -> str:
        found.append(Path(path).name)
        return real(path, *about, **how)

    monkeypatch.setattr(trees, "describe", describe)
    return found


def test_what_is_known_of_a_file_is_known_in_every_layer_that_shares_it(
    store: Store, shared: Layer, described: list[str]
) -> None:
    """Two images take turns: each new layer of one changes the ctime of files in those of the other."""
    assert store.find("environment", {"number": "2"}) is not None
    assert described == ["tree", "etc", "new"], "the shared file was not read"
    assert layer.untouched(shared.path.parent, trees.all_of(shared.path)), "and it is known again"


def test_a_file_is_read_where_no_other_layer_is_to_be_relied_on(
    store: Store, shared: Layer, described: list[str]
) -> None:
    for sums in store.root.glob("environment/*/sums"):
        if sums.parent.name != shared.key:
            sums.write_text(sums.read_text().replace("file 0644", "file 0666"))
    assert store.find("environment", {"number": "2"}) is not None
    assert "file" in described


def test_a_damaged_shared_file_damages_both(store: Store) -> None:
    first = store.get("environment", {"number": "1"}, Maker(), subject="hello")

    def share(to: Path, _work: Path) -> None:
        (to / "etc").mkdir(parents=True)
        os.link(first.path / "etc/file", to / "etc/file")

    store.get("environment", {"number": "2"}, share, subject="hello", like=first)
    flip(first.path)
    for number in ("1", "2"):
        with pytest.raises(HashMismatch, match="changed: etc/file"):
            store.find("environment", {"number": number})


def test_what_is_verified_later_is_not_looked_into_unless_somebody_does(store: Store) -> None:
    """A disk that is made from another one asks nothing of the system but its name."""
    made = store.get("system", PARTS, Maker())
    flip(made.path)
    store.release()
    found = store.get("system", PARTS, Maker(), later=True)
    assert (found.sha256, found.size, found.made) == (made.sha256, made.size, False)
    for look in (lambda: found.path, lambda: found.paths, found.listing, lambda: found.contents):
        with pytest.raises(HashMismatch, match="changed: etc/file"):
            look()
    assert made.place.parent.with_name(f"{made.key}.damaged").is_dir()
    again = store.get("system", PARTS, Maker(), later=True)
    assert (again.made, again.sha256) == (True, made.sha256), "by the next image of the same run"


def test_what_one_image_leaves_for_later_another_has_verified(one_run: Store) -> None:
    made = one_run.get("system", PARTS, Maker())
    one_run.release()
    later = one_run.get("system", PARTS, Maker(), later=True)
    flip(made.path)
    with pytest.raises(HashMismatch, match="changed: etc/file"):
        one_run.get("system", PARTS, Maker())
    with pytest.raises(HashMismatch, match="changed: etc/file"):
        later.verify()


def test_what_another_run_took_away_before_it_was_looked_at_is_told(store: Store) -> None:
    made = store.get("system", PARTS, Maker())
    later = store.get("system", PARTS, Maker(), later=True)
    made.place.parent.rename(store.root / "away")
    with pytest.raises(BuildError, match="is gone"):
        later.verify()


def test_a_touched_layer_that_several_images_want_at_once_is_read_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store.get("system", PARTS, Maker())
    os.link(made.path / "etc/file", store.root / "a second name")  # as a copy of the cache by links does
    reads = count_reads(monkeypatch)
    found = at_once(8, lambda: store.get("system", PARTS, Maker()))
    assert [isinstance(one, Layer) and one.made for one in found] == [False] * 8
    assert reads == [made.path]
    assert names(made.path.parent) == ["layer.json", "seen", "sums", "tree"]


def test_a_damaged_layer_that_several_images_want_at_once_is_told_once(store: Store) -> None:
    made = store.get("system", PARTS, Maker())
    flip(made.path)
    found = at_once(8, lambda: store.get("system", PARTS, Maker()))
    assert sum(isinstance(one, HashMismatch) for one in found) == 1
    assert sum(isinstance(one, Layer) and one.made for one in found) == 1, "and made anew by another"

"""Layers are made once for all that decides them, found by every run, and pruned when unused."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from tests.unit.layers_made import PARTS, Maker, flip, names, used

from conda_appliance import layers, resources, trees
from conda_appliance.layer import Layer
from conda_appliance.layers import Store

# --- made once --------------------------------------------------------------------------------------


def test_a_layer_is_made_once(store: Store) -> None:
    make = Maker()
    first, again = store.get("system", PARTS, make), store.get("system", PARTS, make)
    assert make.times == 1
    assert (first.made, again.made) == (True, False)
    assert (first.path, first.key, first.sha256) == (again.path, again.key, again.sha256)
    assert (again.path / "etc/file").read_text() == "content"
    assert again.why == ()


def test_another_run_finds_it_too(store: Store) -> None:
    made = store.get("system", PARTS, Maker())
    found = Store(store.root).find("system", PARTS)
    assert found is not None
    assert (found.path, found.sha256, found.made) == (made.path, made.sha256, False)


@pytest.mark.parametrize(
    "parts",
    [
        {**PARTS, "epoch": "1"},
        {**PARTS, "packages": {"numpy": "2.2", "flask": "3.0"}},
        {**PARTS, "packages": {"numpy": "2.1"}},
        {**PARTS, "more": "x"},
    ],
)
def test_another_input_is_another_layer(store: Store, parts: layers.Parts) -> None:
    one, other = store.get("system", PARTS, Maker()), store.get("system", parts, Maker())
    assert other.made
    assert one.key != other.key
    assert one.path.exists()


def test_the_order_of_inputs_does_not_count(store: Store) -> None:
    store.get("system", PARTS, Maker())
    turned = {"epoch": "1577836800", "packages": {"flask": "3.0", "numpy": "2.1"}}
    assert store.find("system", turned) is not None


def test_kinds_do_not_mix(store: Store) -> None:
    store.get("system", PARTS, Maker())
    assert store.find("environment", PARTS) is None


def test_a_layers_sha256_is_its_contents(store: Store, tmp_path: Path) -> None:
    made = store.get("disk", PARTS, lambda to, _: to.write_bytes(b"bytes"), name="disk.raw")  # type: ignore[arg-type]
    assert made.path.name == "disk.raw"
    assert made.sha256 == resources.sha256_of(made.path)
    tree = store.get("system", PARTS, Maker())
    assert (
        tree.sha256
        == trees.digest(trees.dump(trees.listing(tree.path)))
        == trees.digest(trees.dump(tree.listing()))
    )


def test_nothing_but_the_layer_stays(store: Store) -> None:
    made = store.get("system", PARTS, Maker())
    assert names(store.root / "system") == [made.key]
    assert names(made.path.parent) == ["layer.json", "seen", "sums", "tree"]


def test_a_make_that_fails_leaves_nothing(store: Store) -> None:
    def broken(to: Path, work: Path) -> None:
        Maker()(to, work)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        store.get("system", PARTS, broken)
    assert names(store.root / "system") == []
    assert store.get("system", PARTS, Maker()).made


def test_an_interrupt_leaves_nothing(store: Store) -> None:
    def interrupted(to: Path, _work: Path) -> None:
        to.mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get("system", PARTS, interrupted)
    assert names(store.root / "system") == []


def test_a_layer_without_its_content_or_its_record_is_made_anew(store: Store) -> None:
    made = store.get("system", PARTS, Maker())
    resources.remove(made.path)
    made = store.get("system", PARTS, Maker())
    assert made.made
    (made.path.parent / "layer.json").write_text("{")
    assert store.get("system", PARTS, Maker()).made


# --- what changed -----------------------------------------------------------------------------------


def test_changes_name_the_input_and_both_sides() -> None:
    before: layers.Parts = {
        "packages": {"numpy": "2.1", "flask": "3.0", "gone": "1"},
        "epoch": "1",
        "lock": "a" * 64,
        "old": "x",
    }
    after: layers.Parts = {
        "packages": {"numpy": "2.2", "flask": "3.0", "new": "1"},
        "epoch": "2",
        "lock": "b" * 64,
        "young": {"a": "1"},
    }
    assert layers.changes(before, after) == [
        "epoch: 1 → 2",
        f"lock: {'a' * 12} → {'b' * 12}",
        "old: changed",
        "packages: gone is gone",
        "packages: new is new",
        "packages: numpy 2.1 → 2.2",
        "young: changed",
    ]
    assert layers.changes(after, after) == []


def test_long_inputs_are_told_shortly() -> None:
    (line,) = layers.changes({"readme": "a" * 300}, {"readme": "b" * 300})
    assert line == f"readme: {'a' * 57}… → {'b' * 57}…"


def test_what_is_new_is_told_against_what_the_subject_used_last_whoever_it_was_made_for(store: Store) -> None:
    store.get("environment", {"packages": "a b"}, Maker(), subject="box")
    assert store.find("environment", {"packages": "a b"}, subject="hello") is not None
    store.get("environment", {"packages": "c"}, Maker(), subject="box")
    made = store.get("environment", {"packages": "a"}, Maker(), subject="hello")
    assert made.why == ("packages: a b → a",)


def test_a_layer_that_is_made_says_why(store: Store) -> None:
    first = store.get("system", PARTS, Maker(), subject="hello")
    assert first.why == ("there was none before",)
    second = store.get("system", {**PARTS, "epoch": "1"}, Maker(), subject="hello")
    assert second.why == ("epoch: 1577836800 → 1",)
    assert store.get("system", {**PARTS, "epoch": "2"}, Maker(), subject="another").why == (
        "there was none before",
    )


def test_what_changed_is_told_against_the_one_that_was_used_last(store: Store) -> None:
    for epoch, ago in (("1", 50), ("2", 10), ("3", 100)):
        used(store.get("system", {"epoch": epoch}, Maker(), subject="hello"), ago)
    assert store.get("system", {"epoch": "4"}, Maker(), subject="hello").why == ("epoch: 2 → 4",)


def test_explain_tells_every_input_that_changed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.get("system", PARTS, Maker(), subject="hello")
    assert "packages" not in capsys.readouterr().err
    store.explain = True
    changed: layers.Parts = {"packages": {"numpy": "2.2", "flask": "3.1"}, "epoch": "1577836800"}
    store.get("system", changed, Maker(), subject="hello")
    said = capsys.readouterr()
    assert [line.strip() for line in said.err.splitlines()] == [
        "system: packages: flask 3.0 → 3.1",
        "system: packages: numpy 2.1 → 2.2",
    ]
    assert said.out == ""
    store.get("system", changed, Maker(), subject="hello")
    assert capsys.readouterr().err == "", "nothing to explain where nothing is made"


def test_quiet_layers_explain_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.explain = True
    assert store.get("bytecode", PARTS, Maker(), quiet=True).why == ()
    assert capsys.readouterr().err == ""


def test_our_own_code_is_an_input_by_its_content(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("A = 1\n")
    before = layers.code(str(module))
    assert before == {"module.py": resources.sha256_of(module)}
    other = tmp_path / "other" / "module.py"
    other.parent.mkdir()
    other.write_text("A = 2\n")
    assert layers.code(str(other)) != before


# --- the one before ---------------------------------------------------------------------------------


def test_the_layer_before_is_the_one_that_was_used_last_if_what_must_stay_did(store: Store) -> None:
    made = [
        store.get("environment", {"epoch": "1", "number": number}, Maker(), subject="hello")
        for number in ("1", "2")
    ]
    used(made[1], 50)
    found = store.before("environment", "hello", {"epoch": "1", "number": "3"}, same=["epoch"])
    assert found is not None
    assert found[0].key == made[0].key
    assert found[1] == {"epoch": "1", "number": "1"}
    assert store.before("environment", "hello", {"epoch": "2", "number": "3"}, same=["epoch"]) is None


def test_what_was_never_made_for_anybody_begins_with_what_another_has(store: Store) -> None:
    for number, subject in (("1", "hello"), ("2", "other"), ("3", "elsewhere")):
        epoch = "2" if subject == "elsewhere" else "1"
        used(
            store.get("environment", {"epoch": epoch, "number": number}, Maker(), subject=subject),
            9 - int(number),
        )
    found = store.before("environment", "new", {"epoch": "1", "number": "4"}, same=["epoch"])
    assert found is not None
    assert found[1]["number"] == "2"


def test_of_its_own_layer_before_and_anothers_the_nearer_one_is_taken(store: Store) -> None:
    mine: layers.Parts = {"packages": {"numpy": "1", "flask": "1"}}
    others: layers.Parts = {"packages": {"numpy": "2", "flask": "1"}}
    used(store.get("environment", mine, Maker(), subject="hello"), 9)
    used(store.get("environment", others, Maker(), subject="other"), 5)
    for numpy, flask, taken in (("1", "2", mine), ("2", "2", others), ("3", "1", others)):
        wanted: layers.Parts = {"packages": {"numpy": numpy, "flask": flask}}
        found = store.before("environment", "hello", wanted, same=[])
        assert found is not None
        assert found[1] == taken, (numpy, flask)


def test_a_damaged_layer_before_is_said_and_done_without(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(store.get("environment", {"number": "1"}, Maker(), subject="hello").path)
    assert store.before("environment", "hello", {"number": "2"}, same=[]) is None
    assert "was set aside" in capsys.readouterr().err
    assert store.before("environment", "hello", {"number": "2"}, same=[]) is None


# --- two at the same time ---------------------------------------------------------------------------


def test_of_two_that_want_the_same_missing_layer_one_makes_it_and_the_other_waits(store: Store) -> None:
    making, waiting = threading.Event(), threading.Event()
    made: dict[str, Layer] = {}
    count = []

    def slow(to: Path, work: Path) -> None:
        count.append(to)
        making.set()
        assert waiting.wait(60), "the other one did not come to wait"
        Maker()(to, work)

    def told(text: str) -> None:
        assert text == "another run is making the same; waiting for it"
        waiting.set()

    other = Store(store.root)
    threads = [
        threading.Thread(target=lambda: made.update(one=store.get("system", PARTS, slow))),
        threading.Thread(target=lambda: made.update(other=other.get("system", PARTS, slow, progress=told))),
    ]
    threads[0].start()
    assert making.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    other.release()
    assert len(count) == 1
    assert (made["one"].made, made["other"].made) == (True, False)
    assert made["one"].sha256 == made["other"].sha256
    assert names(store.root / "system") == [made["one"].key]


def test_when_the_first_fails_the_one_that_waited_makes_it(store: Store) -> None:
    making, waiting = threading.Event(), threading.Event()
    made: dict[str, object] = {}

    def broken(_to: Path, _work: Path) -> None:
        making.set()
        assert waiting.wait(60)
        raise OSError("the disk is full")

    def first() -> None:
        try:
            store.get("system", PARTS, broken)
        except OSError as error:
            made["first"] = error

    other = Store(store.root)
    make = Maker()

    def second() -> None:
        made["second"] = other.get("system", PARTS, make, progress=lambda _: waiting.set()).made

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert making.wait(60)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    other.release()
    assert isinstance(made["first"], OSError)
    assert made["second"] is True
    assert make.times == 1


def test_a_small_file_that_several_threads_write_is_one_of_theirs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = ["x" * 100_000, "y" * 100_000]
    written: list[str] = []

    def write(text: str) -> None:
        for _ in range(200):
            resources.write(path, text)
            written.append(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    assert len(written) == 400, "no thread died"
    assert names(tmp_path) == ["file"]


def test_different_layers_are_made_side_by_side(store: Store) -> None:
    meeting = threading.Barrier(2, timeout=60)

    def make(to: Path, work: Path) -> None:
        meeting.wait()  # only passes when both are being made
        Maker()(to, work)

    threads = [
        threading.Thread(target=store.get, args=(kind, PARTS, make)) for kind in ("system", "environment")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(names(store.root / kind)) for kind in ("system", "environment")] == [1, 1]


def test_what_a_dead_run_left_is_swept_and_in_nobodys_way(store: Store) -> None:
    key = layers.key_of("system", PARTS)
    left = store.root / "system" / f"{key}.partial"
    (left / "ready/tree/deep").mkdir(parents=True)
    (left / "ready/tree/deep").chmod(0o500)
    left.with_name(f"{key}.partial.lock").touch()
    made = store.get("system", PARTS, Maker())
    assert names(store.root / "system") == [made.key]
    (store.root / "system/another.partial").mkdir()
    (store.root / "system/another.partial.lock").touch()
    assert resources.sweep(store.root / "system") == [store.root / "system/another.partial"]
    assert names(store.root / "system") == [made.key]


# --- pruned -----------------------------------------------------------------------------------------


def some_layers(store: Store, *ages: float) -> list[Layer]:
    """A layer of a mebibyte for each age (seconds since it was used), let go."""

    def make(to: Path, _work: Path) -> None:
        to.write_bytes(os.urandom(1 << 20))

    made = [
        store.get("disk", {"number": str(number)}, make, name="disk.raw", subject=f"image-{number}")
        for number in range(len(ages))
    ]
    for one, age in zip(made, ages, strict=True):
        used(one, age)
    store.release()
    return made


def test_entries_tell_what_is_there_the_longest_unused_first(store: Store) -> None:
    made = some_layers(store, 10, 300, 20)
    entries = store.entries()
    assert [one.key for one in entries] == [made[1].key, made[2].key, made[0].key]
    assert [one.subject for one in entries] == ["image-1", "image-2", "image-0"]
    assert all(1 << 20 <= one.size < 2 << 20 and one.kind == "disk" for one in entries)


def test_what_was_not_used_for_long_is_pruned_by_age(store: Store) -> None:
    made = some_layers(store, 10, 300, 20)
    assert [one.key for one in store.prune(age=100)] == [made[1].key]
    assert [layer.path.exists() for layer in made] == [True, False, True]
    assert len(names(store.root / "disk")) == 2, "nothing of it is left"


def test_the_longest_unused_go_until_the_rest_fits(store: Store) -> None:
    made = some_layers(store, 10, 300, 20)
    removed = store.prune(size=int(2.5 * (1 << 20)))
    assert [one.key for one in removed] == [made[1].key]
    assert store.prune(size=int(2.5 * (1 << 20))) == []
    assert [one.key for one in store.prune(size=0)] == [made[2].key, made[0].key]


def test_using_a_layer_makes_it_a_young_one(store: Store) -> None:
    made = some_layers(store, 300, 200)
    assert store.find("disk", {"number": "0"}, name="disk.raw") is not None
    assert store.entries()[-1].key == made[0].key


def test_a_layer_that_is_in_use_is_not_pruned(store: Store) -> None:
    (made,) = some_layers(store, 300)
    user = Store(store.root)
    assert user.find("disk", {"number": "0"}, name="disk.raw") is not None
    used(made, 300)
    assert store.prune(size=0) == []
    assert store.prune(age=0) == []
    assert made.path.exists()
    user.release()
    assert [one.key for one in store.prune(size=0)] == [made.key]


def test_the_run_that_made_a_layer_holds_it_too(store: Store) -> None:
    store.get("system", PARTS, Maker())
    assert Store(store.root).prune(size=0) == []
    store.release()
    assert len(Store(store.root).prune(size=0)) == 1


def test_a_build_keeps_what_the_next_one_wants_whatever_the_limit(store: Store) -> None:
    made = some_layers(store, 10, layers.FRESH + 100, 20)
    assert [one.key for one in store.keep_within(0)] == [made[1].key]
    assert [layer.path.exists() for layer in made] == [True, False, True]
    assert store.keep_within(0) == []


def test_within_the_limit_even_old_layers_stay(store: Store) -> None:
    some_layers(store, 10, 10 * layers.FRESH)
    assert store.keep_within(100 << 20) == []


def test_pruning_an_empty_cache_is_nothing(store: Store) -> None:
    assert (store.entries(), store.prune(size=0), store.verify()) == ([], [], [])


# --- copies -----------------------------------------------------------------------------------------


def test_a_copy_keeps_holes_content_and_mode(tmp_path: Path) -> None:
    source, to = tmp_path / "disk.raw", tmp_path / "copy.raw"
    with source.open("wb") as file:
        file.truncate(64 << 20)
        for place in (0, 1 << 20, (64 << 20) - 3):
            file.seek(place)
            file.write(b"end")
    source.chmod(0o640)
    layers.copy(source, to)
    assert resources.sha256_of(to) == resources.sha256_of(source)
    assert to.stat().st_size == 64 << 20
    assert to.stat().st_blocks * 512 < 1 << 20
    assert stat.S_IMODE(to.stat().st_mode) == 0o640


def test_a_copy_of_nothing_but_a_hole_and_of_nothing(tmp_path: Path) -> None:
    for size in (1 << 20, 0):
        with (tmp_path / "from").open("wb") as file:
            file.truncate(size)
        layers.copy(tmp_path / "from", tmp_path / "to")
        assert (tmp_path / "to").read_bytes() == bytes(size)


def test_what_a_layer_takes_is_what_is_on_disk(tmp_path: Path) -> None:
    with (tmp_path / "disk.raw").open("wb") as file:
        file.truncate(1 << 30)
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    os.link(tmp_path / "file", tmp_path / "same")
    assert 1 << 20 <= layers.size_of(tmp_path) < 3 << 19

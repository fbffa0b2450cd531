"""A disc that pycdlib wrote is what another implementation, xorriso, reads."""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pycdlib
import pytest

from conda_appliance import definition_disc, disc, process
from conda_appliance.definition_disc import DiscDefinition
from conda_appliance.errors import BuildError, HashMismatch

EPOCH = 1_700_000_000  # 2023-11-14 22:13:20 UTC
ROOT = Path(__file__).resolve().parents[2]


def make(*entries: dict[str, object], sums: bool = True) -> DiscDefinition:
    value = {"name": "test", "volume": "TEST", "entries": entries}
    return DiscDefinition.model_validate(value | ({"sums": "/SHA256SUMS"} if sums else {}))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with everything that is hard to put on a disc."""
    tree = tmp_path / "tree"
    deep = tree.joinpath(*[f"level-{number}" for number in range(20)])
    deep.mkdir(parents=True)
    (deep / "leaf.txt").write_text("leaf")
    (tree / ("a-long-name-" * 20 + ".tar.gz")).write_text("long")
    (tree / "Müller ☃.txt").write_text("snow")
    (tree / "Case").write_text("upper")
    (tree / "case").write_text("lower")
    (tree / "odd:name*?").write_text("odd")
    (tree / "back\\slash and\nline").write_text("escaped in SHA256SUMS")
    (tree / "nothing").write_bytes(b"")
    (tree / "empty").mkdir()
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("level-0/level-1")
    return tree


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every file's bytes, link's target and folder (None) below ``folder``."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def extracted(image: Path, to: Path) -> Path:
    process.run(["xorriso", "-osirrox", "on", "-indev", f"stdio:{image}", "-extract", "/", to])
    return to


@pytest.fixture
def _zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_xorriso_reads_back_the_tree_by_its_real_names(tree: Path, tmp_path: Path) -> None:
    image = disc.write(make({"from": "tree", "to": "/tree"}), {"tree": tree}, tmp_path / "o.iso", epoch=EPOCH)
    assert contents(extracted(image, tmp_path / "out") / "tree") == contents(tree)


def test_modes_owner_and_times(tree: Path, tmp_path: Path) -> None:
    definition = make({"from": "tree", "to": "/"}, {"from": "secret", "to": "/etc/key", "mode": "0400"})
    image = disc.write(definition, {"tree": tree, "secret": b"k"}, tmp_path / "o.iso", epoch=EPOCH)
    out = extracted(image, tmp_path / "out")
    modes = {
        name: stat.S_IMODE((out / name).stat().st_mode) for name in ("etc/key", "run.sh", "Case", "empty")
    }
    assert modes == {"etc/key": 0o400, "run.sh": 0o555, "Case": 0o444, "empty": 0o555}
    assert {path.lstat().st_mtime for path in out.rglob("*") if not path.is_symlink()} == {EPOCH}
    listed = process.run(["xorriso", "-indev", f"stdio:{image}", "-find", "/", "-exec", "lsdl", "--"]).stdout
    owners = [line.split()[2:4] for line in listed.splitlines() if line[1:4] in ("r--", "r-x")]
    assert len(owners) > 30 and all(owner == ["0", "0"] for owner in owners)


def test_joliet_names_the_files_too(tree: Path, tmp_path: Path) -> None:
    image = disc.write(make({"from": "tree", "to": "/"}), {"tree": tree}, tmp_path / "o.iso", epoch=EPOCH)
    listed = process.run(
        ["xorriso", "-read_fs", "norock", "-indev", f"stdio:{image}", "-find", "/", "--"]
    ).stdout
    assert "'/Müller ☃.txt'" in listed and "'/case~1'" in listed and "'/odd_name__'" in listed
    iso = pycdlib.PyCdlib()
    iso.open(str(image))
    deepest = max((path for path, _, _ in iso.walk(joliet_path="/")), key=len)
    iso.close()
    assert deepest.count("/") == 20


@pytest.mark.usefixtures("_zone")
def test_two_writes_are_the_same_bytes_anywhere_and_at_any_time(tree: Path, tmp_path: Path) -> None:
    wanted = make({"from": "tree", "to": "/tree"}, {"from": "text", "to": "/text"})
    inputs: dict[str, Path | bytes] = {"tree": tree, "text": b"text"}
    first = disc.write(wanted, inputs, tmp_path / "first.iso", epoch=EPOCH).read_bytes()
    for path in tree.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    os.environ["TZ"] = "UTC"
    time.tzset()
    assert disc.write(wanted, inputs, tmp_path / "second.iso", epoch=EPOCH).read_bytes() == first
    assert disc.write(wanted, inputs, tmp_path / "third.iso", epoch=EPOCH + 1).read_bytes() != first


def test_threads_with_other_clocks_do_not_mix(tmp_path: Path) -> None:
    wanted = make({"from": "text", "to": "/text"})

    def made(epoch: int, name: str) -> bytes:
        return disc.write(wanted, {"text": b"x"}, tmp_path / name, epoch=epoch).read_bytes()

    alone = {epoch: made(epoch, f"{epoch}.iso") for epoch in (EPOCH, 5)}
    together: dict[tuple[int, int], bytes] = {}

    def work(epoch: int, turn: int) -> None:
        together[epoch, turn] = made(epoch, f"{epoch}-{turn}.iso")

    threads = [threading.Thread(target=work, args=(epoch, turn)) for turn in range(8) for epoch in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {(epoch, turn): alone[epoch] for epoch in alone for turn in range(8)}


def test_sha256sum_accepts_the_list_on_the_disc(tree: Path, tmp_path: Path) -> None:
    image = disc.write(make({"from": "tree", "to": "/tree"}), {"tree": tree}, tmp_path / "o.iso", epoch=EPOCH)
    out = extracted(image, tmp_path / "out")
    checked = process.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out)
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(checked.stdout.splitlines()) == len(files) == disc.verify(image)


def test_a_flipped_byte_is_caught_by_name(tmp_path: Path) -> None:
    wanted = make({"from": "one", "to": "/one.bin"}, {"from": "two", "to": "/folder/two.bin"})
    inputs = {"one": b"1" * 5000, "two": b"2" * 5000}
    image = disc.write(wanted, inputs, tmp_path / "o.iso", epoch=EPOCH)
    data = bytearray(image.read_bytes())
    data[data.index(b"2" * 5000) + 4000] ^= 1
    image.write_bytes(data)
    with pytest.raises(HashMismatch, match=r"/folder/two\.bin on the disc .*o\.iso") as caught:
        disc.verify(image)
    assert caught.value.expected == hashlib.sha256(b"2" * 5000).hexdigest()


def test_what_is_on_a_disc_is_listed_by_its_real_names(tree: Path, tmp_path: Path) -> None:
    image = disc.write(make({"from": "tree", "to": "/tree"}), {"tree": tree}, tmp_path / "o.iso", epoch=EPOCH)
    found = disc.contents(image)
    assert found.volume == "TEST"
    listed = {one.path: one for one in found.entries}
    assert [*listed] == [one.path for one in found.entries]
    expected = {f"/tree/{path.relative_to(tree)}" for path in tree.rglob("*")}
    assert {*listed} == expected | {"/tree", "/SHA256SUMS"}
    run, link = listed["/tree/run.sh"], listed["/tree/link"]
    assert (stat.filemode(run.mode), run.size) == ("-r-xr-xr-x", len("#!/bin/sh\n"))
    assert (stat.S_ISLNK(link.mode), link.target) == (True, "level-0/level-1")
    assert stat.filemode(listed["/tree/empty"].mode) == "dr-xr-xr-x"


def test_a_disc_of_other_programs_is_told_from_ours(tmp_path: Path) -> None:
    iso = pycdlib.PyCdlib()
    iso.new()
    iso.write(str(tmp_path / "plain.iso"))
    iso.close()
    with pytest.raises(BuildError, match="no Rock Ridge names"):
        disc.contents(tmp_path / "plain.iso")


def test_what_is_not_a_disc_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no disc" * 1000)
    with pytest.raises(BuildError, match="cannot be read as a disc"):
        disc.verify(tmp_path / "text")
    image = disc.write(make({"from": "a", "to": "/a"}, sums=False), {"a": b""}, tmp_path / "o", epoch=EPOCH)
    with pytest.raises(BuildError, match="lacks the file /SHA256SUMS"):
        disc.verify(image)


def test_inputs_must_be_those_of_the_definition(tmp_path: Path) -> None:
    wanted = make({"from": "a", "to": "/a"}, {"from": "b", "to": "/b", "optional": True})
    with pytest.raises(BuildError, match="needs 'a' for /a"):
        disc.write(wanted, {}, tmp_path / "o.iso", epoch=EPOCH)
    with pytest.raises(BuildError, match="no place for c"):
        disc.write(wanted, {"a": b"", "c": b""}, tmp_path / "o.iso", epoch=EPOCH)
    with pytest.raises(BuildError, match="missing cannot be put on a disc: No such file"):
        disc.write(wanted, {"a": tmp_path / "missing"}, tmp_path / "o.iso", epoch=EPOCH)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BuildError, match="neither a file"):
        disc.write(wanted, {"a": tmp_path / "pipe"}, tmp_path / "o.iso", epoch=EPOCH)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"], "a failed write leaves nothing"


def test_trees_at_one_place_become_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deep/er").mkdir(parents=True)
        (tmp_path / name / "deep/er" / name).write_text(name)
    wanted = make({"from": "one", "to": "/tree"}, {"from": "two", "to": "/tree"})
    inputs = {"one": tmp_path / "one", "two": tmp_path / "two"}
    out = extracted(disc.write(wanted, inputs, tmp_path / "o.iso", epoch=EPOCH), tmp_path / "out")
    assert {path.name for path in (out / "tree/deep/er").iterdir()} == {"one", "two"}
    (tmp_path / "two/deep/er/one").write_text("another")
    with pytest.raises(BuildError, match="two things stand at /tree/deep/er/one"):
        disc.write(wanted, inputs, tmp_path / "o.iso", epoch=EPOCH)


def test_two_things_at_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="two things stand at /same"):
        disc.write(
            make({"from": "a", "to": "/same"}, {"from": "b", "to": "/same"}),
            {"a": b"", "b": b""},
            tmp_path / "o.iso",
            epoch=EPOCH,
        )


def test_the_shipped_seed_is_what_cloud_init_looks_for(tmp_path: Path) -> None:
    seed = definition_disc.load_disc(ROOT / "iso/seed.yaml")
    inputs = {"meta-data": b"instance-id: x\n", "user-data": b"#cloud-config\n"}
    image = disc.write(seed, inputs, tmp_path / "seed.iso", epoch=EPOCH)
    assert "Volume id    : 'cidata'" in process.run(["xorriso", "-indev", f"stdio:{image}", "-toc"]).stderr
    assert contents(extracted(image, tmp_path / "out")) == inputs

"""The payload disc carries the linked environments, is made once, and is not trusted blindly."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import packages
import pytest

from conda_appliance import conda, linking, lock, payload, prefix_check, process, resources, trees
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError, HashMismatch
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

EPOCH = 1_700_000_000
Make = Callable[..., payload.Payload]


@pytest.fixture
def image() -> ImageDefinition:
    return ImageDefinition.model_validate(
        {
            "name": "demo",
            "version": "1.2",
            "summary": "A demonstration",
            "base": {"debian": "trixie"},
            "conda": {"channels": ["./small"], "environments": {"base": {"dependencies": ["pure"]}}},
        }
    )


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lock:
    """A base environment and a second one inside it."""
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "solver"))
    channel = packages.small_channel(tmp_path / "small")
    environments = {}
    for name, prefix, spec in (
        ("base", "/opt/conda", "pure"),
        ("second", "/opt/conda/envs/second", "prefixed"),
    ):
        found, virtual = conda.solve(
            [spec], [conda.Channel(name="./small", url=channel.as_uri())], contract=Contract(glibc="2.41")
        )
        environments[name] = EnvironmentSection(prefix=prefix, specs=(spec,), packages=found)
    return Lock(
        name="demo",
        digest="0" * 64,
        tools={},
        conda=CondaSection(virtual_packages=virtual, environments=environments),
    )


@pytest.fixture
def archives(locked: Lock) -> dict[str, Path]:
    return {
        package.sha256: Path(package.url.removeprefix("file://"))
        for section in locked.conda.environments.values()
        for package in section.packages
    }


@pytest.fixture
def make(image: ImageDefinition, locked: Lock, archives: dict[str, Path], tmp_path: Path) -> Make:
    def make(cache: str = "cache", epoch: int = EPOCH, text: str = "") -> payload.Payload:
        return payload.make(
            image,
            locked,
            archives,
            store=Store(tmp_path / cache),
            epoch=epoch,
            project=None,
            lock_text=text or locked.text,
        )

    return make


def extracted(made: payload.Payload, to: Path) -> Path:
    process.run(["xorriso", "-osirrox", "on", "-indev", f"stdio:{made.path}", "-extract", "/", to])
    return to


def test_the_disc_holds_what_the_guest_unpacks(make: Make, locked: Lock, tmp_path: Path) -> None:
    out = extracted(make(), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.txt",
        "SHA256SUMS",
        "appliance.lock",
        "environment.tar",
    ]
    process.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out)
    assert lock.read(out / "appliance.lock") == locked
    readme = (out / "README.txt").read_text()
    assert (
        "demo 1.2: A demonstration" in readme and "/opt/conda/envs/second    (second, 1 packages)" in readme
    )


def test_gnu_tar_unpacks_environments_that_are_as_recorded(make: Make, tmp_path: Path) -> None:
    out = extracted(make(), tmp_path / "out")
    root = tmp_path / "root"
    root.mkdir()
    process.run(["tar", "--extract", "--file", out / "environment.tar", "--directory", root])
    assert linking.verify(root, "/opt/conda") == []
    assert linking.verify(root, "/opt/conda/envs/second") == []
    assert (
        root / "opt/conda/envs/second/etc/prefixed.conf"
    ).read_text() == "home = /opt/conda/envs/second/share\n"


def test_the_tar_is_sorted_and_roots(make: Make, tmp_path: Path) -> None:
    out = extracted(make(), tmp_path / "out")
    assert (out / "environment.tar").stat().st_size % tarfile.RECORDSIZE == 0
    with tarfile.open(out / "environment.tar") as tar:
        members = tar.getmembers()
    assert members[0].name == "opt/conda", "the folders above are the machine's own"
    names = [member.name.split("/") for member in members]
    assert names == sorted(names)
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {
        (0, 0, "root", EPOCH)
    }


def test_the_same_lock_gives_the_same_disc(make: Make) -> None:
    first, second = make("one"), make("two")
    assert first.made and second.made and first.path != second.path
    assert first.sha256 == second.sha256 == resources.sha256_of(second.path)


def test_an_environment_in_another_leaves_no_time_of_its_own(
    locked: Lock, archives: dict[str, Path], tmp_path: Path
) -> None:
    made = [
        payload.environment(locked, archives, store=Store(tmp_path / name), epoch=EPOCH)
        for name in ("one", "two")
    ]
    assert made[0].sha256 == made[1].sha256
    for path, about in trees.walk(made[0].path):
        assert about.st_mtime == EPOCH, path
    assert (made[0].path / "opt/conda/envs").stat().st_mode & 0o7777 == 0o755


def test_a_disc_is_made_once(make: Make) -> None:
    first, again = make(), make()
    assert (first.made, again.made) == (True, False)
    assert (first.path, first.sha256, first.size) == (again.path, again.sha256, again.size)
    assert make(epoch=EPOCH + 1).path != first.path
    assert make(text="another lock").path != first.path


def test_nothing_but_the_disc_stays(make: Make, tmp_path: Path) -> None:
    made = make()
    assert sorted(path.name for path in (tmp_path / "cache/payload").iterdir()) == [made.path.parent.name]
    assert sorted(path.name for path in made.path.parent.iterdir()) == [
        "layer.json",
        "payload.iso",
        "seen",
        "sums",
        "users",
    ]


def test_a_flipped_byte_in_a_cached_disc_is_caught_by_name_and_mended(make: Make) -> None:
    made = make()
    data = bytearray(made.path.read_bytes())
    data[data.index(b"def run() -> int:")] ^= 1
    made.path.write_bytes(data)
    with pytest.raises(HashMismatch, match=r"/environment\.tar on the disc .*payload\.iso") as caught:
        make()
    assert "it is made anew" in caught.value.hint
    assert f"{made.path.parent}.damaged" in caught.value.hint
    again = make()
    assert again.made and again.sha256 == made.sha256


def test_a_flipped_byte_between_a_discs_files_is_caught_too(make: Make) -> None:
    made = make()
    data = bytearray(made.path.read_bytes())
    data[100] ^= 1  # the system area, which no file's digest covers
    made.path.write_bytes(data)
    with pytest.raises(HashMismatch, match=r"payload\.iso \(outside its files\)"):
        make()


def test_a_flipped_byte_in_the_linked_environments_is_caught_by_name_and_mended(
    make: Make, tmp_path: Path
) -> None:
    made = make()
    (linked,) = (tmp_path / "cache/environment").glob("*/tree")
    flipped = linked / "opt/conda/etc/prefixed.conf"
    flipped.write_text(flipped.read_text().replace("home", "hone"))
    with pytest.raises(HashMismatch, match=r"changed: opt/conda/etc/prefixed\.conf"):
        make()
    again = make()
    assert again.sha256 == made.sha256
    assert flipped.read_text() == "home = /opt/conda/share\n"


def test_a_flipped_byte_in_a_package_stops_it(make: Make, archives: dict[str, Path], tmp_path: Path) -> None:
    digest, path = next((d, p) for d, p in archives.items() if p.name.startswith("pure"))
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    archives[digest] = tmp_path / "flipped.conda"
    archives[digest].write_bytes(data)
    with pytest.raises(HashMismatch, match=r"pure-1\.0-0\.conda"):
        make()
    assert list((tmp_path / "cache").glob("*/*")) == [], "no half-made disc, no work folder"


def test_a_project_may_have_a_layout_of_its_own(
    image: ImageDefinition, locked: Lock, archives: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "project/iso").mkdir(parents=True)
    text = resources.find("iso/payload.yaml").read_text().replace("to: /README.txt", "to: /docs/READ-ME.txt")
    (tmp_path / "project/iso/payload.yaml").write_text(text)
    made = payload.make(
        image,
        locked,
        archives,
        store=Store(tmp_path / "cache"),
        epoch=EPOCH,
        project=tmp_path / "project",
        lock_text="x",
    )
    assert (extracted(made, tmp_path / "out") / "docs/READ-ME.txt").exists()


def test_a_builds_disc_brings_what_the_machine_verifies_itself_against(
    image: ImageDefinition, locked: Lock, archives: dict[str, Path], tmp_path: Path
) -> None:
    def make(text: str) -> payload.Payload:
        return payload.make(
            image,
            locked,
            archives,
            store=Store(tmp_path / "cache"),
            epoch=EPOCH,
            project=None,
            lock_text="x",
            inventory=text,
        )

    made = make("# end\n")
    out = extracted(made, tmp_path / "out")
    assert (out / "inventory").read_text() == "# end\n"
    process.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out)
    assert not make("# end\n").made
    assert make("# another\n# end\n").sha256 != made.sha256


def test_a_tree_that_changes_while_it_is_packed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "opt/conda").mkdir(parents=True)
    (tmp_path / "opt/conda/file").write_text("before")
    tar = payload.Tar(tmp_path, ["/opt/conda"], EPOCH)
    (tmp_path / "opt/conda/file").write_text("after that")
    with pytest.raises(BuildError, match="changed while it was packed"):
        list(tar.chunks())


def test_names_of_any_length_are_packed(tmp_path: Path) -> None:
    folder = tmp_path / "opt/conda" / "/".join(["a-long-name-of-a-folder"] * 12)
    folder.mkdir(parents=True)
    (folder / ("file-" * 40)).write_text("deep")
    (folder / "link").symlink_to("../" * 60 + "nowhere")
    tar = payload.Tar(tmp_path, ["/opt/conda"], EPOCH)
    data = b"".join(tar.chunks())
    assert len(data) == tar.size
    (tmp_path / "x.tar").write_bytes(data)
    shutil.rmtree(tmp_path / "opt")
    process.run(["tar", "-xf", tmp_path / "x.tar", "-C", tmp_path])
    assert (folder / ("file-" * 40)).read_text() == "deep"
    assert str((folder / "link").readlink()) == "../" * 60 + "nowhere"


def test_the_check_that_is_sent_to_a_machine_runs_alone(make: Make, tmp_path: Path) -> None:
    out = extracted(make(), tmp_path / "out")
    process.run(["tar", "-xf", out / "environment.tar", "-C", tmp_path])
    alone = tmp_path / "alone.py"
    shutil.copy(Path(prefix_check.__file__), alone)
    prefix = tmp_path / "opt/conda"
    done = process.run([prefix / "bin/python", "-I", "-B", alone, prefix, "--json"])
    assert '"findings": []' in done.stdout
    (prefix / "etc/prefixed.conf").write_text("changed")
    done = process.run([prefix / "bin/python", "-I", "-B", alone, prefix], check=False)
    assert done.returncode == 1 and "changed: etc/prefixed.conf (prefixed)" in done.stdout

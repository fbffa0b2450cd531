"""Work folders are one run's own, vanish with it, and what a killed run left is swept by the next."""

import os
from pathlib import Path

import pytest

from conda_appliance import resources
from conda_appliance.errors import BuildError, UsageError


def test_a_work_folder_goes_when_its_block_ends(tmp_path: Path) -> None:
    with resources.work_folder(tmp_path, ".id") as work:
        (work / "deep").mkdir()
        (work / "deep/file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_what_was_renamed_out_of_it_stays(tmp_path: Path) -> None:
    with resources.work_folder(tmp_path, ".id") as work:
        (work / "kept").write_text("x")
        (work / "kept").rename(tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_only_one_run_holds_it(tmp_path: Path) -> None:
    with (
        resources.work_folder(tmp_path, ".id"),
        pytest.raises(BuildError, match="another run is working"),
        resources.work_folder(tmp_path, ".id"),
    ):
        pass


def test_a_dead_runs_folder_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    dead = tmp_path / ".dead.partial"
    dead.mkdir()
    (dead / "disk").write_text("x")
    (tmp_path / ".dead.partial.lock").touch()
    with resources.work_folder(tmp_path, ".living") as living:
        assert resources.sweep(tmp_path) == [dead]
        assert living.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_tree_is_removed_all_the_same(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").write_text("x")
    (tree / "a/link").symlink_to("/etc/passwd")
    (tree / "a/b").chmod(0o500)
    (tree / "a").chmod(0o500)
    resources.remove(tree)
    assert not tree.exists()
    assert Path("/etc/passwd").exists()


def test_no_space_is_said_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"The build needs .* free in .*, and .* are"):
        resources.require_space(tmp_path, 1 << 60, "The build")


def test_the_users_own_data_goes_before_what_is_shipped(tmp_path: Path) -> None:
    assert resources.find("playbooks", tmp_path) == resources.shipped() / "playbooks"
    (tmp_path / "playbooks").mkdir()
    assert resources.find("playbooks", tmp_path) == tmp_path / "playbooks"
    with pytest.raises(UsageError, match="none is shipped"):
        resources.find("nothing/like/this", tmp_path)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")])
def test_sizes_read_well(count: int, text: str) -> None:
    assert resources.size_text(count) == text


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    assert resources.cache_root() == (tmp_path / "cache").resolve()
    assert os.access(tmp_path / "cache", os.W_OK)

"""An environment is checked file by file against its own records."""

import ast
import hashlib
import json
import sys
from pathlib import Path

import pytest

from conda_appliance import prefix_check, trees


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment with a file, a link, a folder and an environment inside it."""
    prefix = tmp_path / "conda"
    (prefix / "conda-meta").mkdir(parents=True)
    (prefix / "lib/empty").mkdir(parents=True)
    (prefix / "lib/a.txt").write_text("for the final path")
    (prefix / "lib/b.txt").symlink_to("a.txt")
    paths = [
        {
            "_path": "lib/a.txt",
            "sha256": digest("in the package"),
            "sha256_in_prefix": digest("for the final path"),
        },
        {"_path": "lib/b.txt", "path_type": "softlink", "sha256_in_prefix": digest("a.txt")},
        {"_path": "lib/empty", "path_type": "directory"},
    ]
    record = {"name": "demo", "paths_data": {"paths": paths}}
    (prefix / "conda-meta/demo-1-0.json").write_text(json.dumps(record))
    (prefix / "conda-meta/history").write_text("")
    (prefix / "envs/other/conda-meta").mkdir(parents=True)
    (prefix / "envs/other/its-own").write_text("")
    return prefix


def test_an_untouched_environment_has_no_findings(prefix: Path) -> None:
    assert prefix_check.check(prefix) == []


def test_what_it_read_spares_whoever_lists_the_tree(prefix: Path) -> None:
    sums: trees.Sums = {}
    prefix_check.check(prefix, sums=sums)
    assert sums
    assert trees.listing(prefix, sums=sums) == trees.listing(prefix)


def test_of_packages_whose_files_are_known_not_even_the_records_are_read(prefix: Path) -> None:
    (prefix / "conda-meta/demo-1-0.json").write_text("no record")
    named = {"lib/a.txt", "lib/b.txt"}
    assert prefix_check.check(prefix, unread={"demo"}, named=named) == []
    (prefix / "lib/more.txt").write_text("of nobody")
    (prefix / "lib/b.txt").unlink()
    assert prefix_check.check(prefix, unread={"demo"}, named=named) == [
        "extra: lib/more.txt",
        "missing: lib/b.txt",
    ]
    (prefix / "conda-meta/demo-1-0.json").unlink()
    assert "missing: conda-meta/demo-*.json" in prefix_check.check(prefix, unread={"demo"}, named=named)


def test_whoever_knows_what_is_there_says_so(prefix: Path) -> None:
    there = {"lib/a.txt", "lib/b.txt", "lib/c.txt", "conda-meta/demo-1-0.json", "conda-meta/history"}
    assert prefix_check.check(prefix, there=there) == ["extra: lib/c.txt"]


def test_a_changed_file_is_named(prefix: Path) -> None:
    (prefix / "lib/a.txt").write_text("something else")
    (finding,) = prefix_check.check(prefix)
    assert finding.startswith("changed: lib/a.txt (demo): expected SHA-256")


def test_a_missing_file_is_named(prefix: Path) -> None:
    (prefix / "lib/a.txt").unlink()
    assert prefix_check.check(prefix) == ["missing: lib/a.txt (demo)"]


def test_a_link_that_points_elsewhere_is_named(prefix: Path) -> None:
    (prefix / "lib/b.txt").unlink()
    (prefix / "lib/b.txt").symlink_to("./a.txt")
    (finding,) = prefix_check.check(prefix)
    assert finding.startswith("changed: lib/b.txt (demo)")


def test_a_file_that_became_a_link_to_the_same_bytes_is_named(prefix: Path) -> None:
    (prefix / "lib/a.txt").rename(prefix.parent / "aside")
    (prefix / "lib/a.txt").symlink_to(prefix.parent / "aside")
    assert prefix_check.check(prefix) == ["changed: lib/a.txt (demo): no longer a file"]


def test_what_no_package_brought_is_named(prefix: Path) -> None:
    (prefix / "bin").mkdir()
    (prefix / "bin/intruder").write_text("")
    (prefix / "lib/dangling").symlink_to("nowhere")
    (prefix / "conda-meta/pinned").write_text("")
    assert prefix_check.check(prefix) == [
        "extra: bin/intruder",
        "extra: conda-meta/pinned",
        "extra: lib/dangling",
    ]


def test_what_is_allowed_is_not_extra_but_still_compared(prefix: Path) -> None:
    (prefix / ".condarc").write_text("")
    (prefix / "lib/a.txt").write_text("changed")
    (finding,) = prefix_check.check(prefix, allow=[".condarc", "lib/*"])
    assert finding.startswith("changed: lib/a.txt")


def test_a_folder_without_records_is_no_environment(tmp_path: Path) -> None:
    assert "is not a conda environment" in prefix_check.check(tmp_path)[0]


def test_the_command_tells_the_same(prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prefix_check.main([str(prefix)]) == 0
    assert "1 packages, 3 files, all as recorded" in capsys.readouterr().out
    (prefix / "lib/a.txt").unlink()
    assert prefix_check.main([str(prefix), "--json"]) == 1
    about = json.loads(capsys.readouterr().out)
    assert about == {
        "prefix": str(prefix),
        "packages": 1,
        "files": 3,
        "findings": ["missing: lib/a.txt (demo)"],
    }


def test_it_can_be_sent_to_a_machine_alone() -> None:
    """Standard library only, and the grammar of Python 3.9."""
    tree = ast.parse(Path(prefix_check.__file__).read_text(), feature_version=(3, 9))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names)

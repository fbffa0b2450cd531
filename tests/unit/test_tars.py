"""What is unpacked passes a filter on every Python that this runs on, Debian 12's 3.11.2 among them."""

import ast
import io
from pathlib import Path

import pytest

import conda_appliance
from conda_appliance.tars import tarfile


def test_what_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../elsewhere"))
    made.seek(0)
    with tarfile.open(fileobj=made) as archive, pytest.raises(tarfile.OutsideDestinationError):
        archive.extractall(tmp_path / "folder", filter="data")
    assert not (tmp_path / "elsewhere").exists()


def test_whoever_passes_a_filter_has_a_tarfile_that_knows_them() -> None:
    found = []
    for path in Path(conda_appliance.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        filters = any(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("extract", "extractall")
            and any(keyword.arg == "filter" for keyword in node.keywords)
            for node in ast.walk(tree)
        )
        if filters:
            found.append(path.name)
            modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            assert "conda_appliance.tars" in modules, path
    assert sorted(found) == ["opened.py", "programs.py"]

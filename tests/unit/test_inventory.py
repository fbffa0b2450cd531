"""The list that a machine's files are compared with: what is in it, and that nobody's name breaks its lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from conda_appliance import inventory, playbook, trees
from conda_appliance.builders import Job
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, Lock

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def definition(**more: object) -> ImageDefinition:
    return ImageDefinition.model_validate(
        {
            "name": "demo",
            "version": "1",
            "base": {"debian": "trixie"},
            "conda": {
                "channels": ["conda-forge"],
                "environments": {"base": {"dependencies": ["python"]}, "r": {"dependencies": ["r-base"]}},
            },
            **more,
        }
    )


@pytest.fixture
def linked(tmp_path: Path) -> Layer:
    """A base environment and one in it, as a layer of the cache."""
    tree = tmp_path / "layer/tree"
    for path in ("conda-meta/python.json", "bin/python3", "lib/python3.13/os.py", "conda-meta/history"):
        (tree / "opt/conda" / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / "opt/conda" / path).touch(mode=0o644)
    (tree / "opt/conda/bin/python").symlink_to("./python3")
    (tree / "opt/conda/envs/r/bin").mkdir(parents=True)
    (tree / "opt/conda/envs/r/bin/R").touch(mode=0o755)
    (tmp_path / "layer/sums").write_text(trees.dump(trees.listing(tree)))
    return Layer(kind="environment", key="k", place=tree, sha256="0" * 64, made=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "files/opt/app").mkdir(parents=True)
    (tmp_path / "files/opt/app/run").touch(mode=0o755)
    return tmp_path / "files"


def lines(image: ImageDefinition, linked: Layer, files: Path) -> list[str]:
    return inventory.text(image, linked, files).splitlines()


def test_each_path_has_a_line_with_what_is_compared(linked: Layer, files: Path) -> None:
    found = lines(definition(), linked, files)
    assert f"/opt/conda/conda-meta/python.json//file 644 0:0 {EMPTY}" in found
    assert "/opt/conda/bin/python//link 0:0 ./python3" in found
    assert "/opt/conda/bin//folder 755 0:0" in found
    assert found.count(f"/opt/conda/envs/r/bin/R//file 755 0:0 {EMPTY}") == 1
    assert f"/opt/app/run//file 755 0:0 {EMPTY}" in found
    assert not [line for line in found if line.startswith(("/opt//", "/opt/app//"))]


def test_what_an_environments_owner_changes_is_named(linked: Layer, files: Path) -> None:
    found = lines(definition(), linked, files)
    assert {"environment /opt/conda", "environment /opt/conda/envs/r"} <= set(found)
    assert {"ignore /opt/conda/pkgs", "ignore /opt/conda/envs", "any /opt/conda/.condarc"} <= set(found)
    assert "any /opt/conda/lib/python3.13/EXTERNALLY-MANAGED" in found
    assert not [line for line in found if line.startswith("/opt/conda/conda-meta/history")]


def test_the_same_machine_has_the_same_bytes_and_an_end(linked: Layer, files: Path) -> None:
    text = inventory.text(definition(), linked, files)
    assert text == inventory.text(definition(), linked, files)
    assert text.startswith("# appliance demo 1\n") and text.endswith("\n# end\n")


def test_what_the_definition_ignores_is_left_out(linked: Layer, files: Path) -> None:
    image = definition(verify={"ignore": ["/opt/conda/envs", "/opt/app"]})
    found = lines(image, linked, files)
    assert "ignore /opt/conda/envs" in found and "ignore /opt/app" in found
    assert not [line for line in found if line.startswith(("/opt/conda/envs", "/opt/app"))]
    assert "environment /opt/conda/envs/r" not in found and "environment /opt/conda" in found


def test_a_name_cannot_end_its_line_or_be_taken_for_another(linked: Layer, files: Path) -> None:
    (files / "opt/app/a\n\tb").touch(mode=0o644)
    (files / "opt/app/c").symlink_to("x//file 644 0:0\n/etc/passwd")
    found = lines(definition(), linked, files)
    assert f"/opt/app/a\x01\x02b//file 644 0:0 {EMPTY}" in found
    assert "/opt/app/c//link 0:0 x//file 644 0:0\x01/etc/passwd" in found


def test_a_name_that_no_text_has_is_refused(linked: Layer, files: Path) -> None:
    (files / "opt/app/\udcff").touch()
    with pytest.raises(UsageError, match="not UTF-8"):
        inventory.text(definition(), linked, files)


def test_a_builder_that_has_laid_the_files_down_and_one_that_has_not_write_the_same(
    linked: Layer, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/run").touch(mode=0o755)
    job = Job(
        image=definition(files=[{"from": "app", "to": "/opt/app", "mode": "0640"}]),
        lock=Lock(
            name="demo",
            digest="0" * 64,
            tools={},
            conda=CondaSection(virtual_packages=(), environments={}),
        ),
        folder=tmp_path,
        project=tmp_path,
        files={},
        store=Store(tmp_path / "layers"),
        epoch=0,
        identity="c0ffee",
    )
    playbook.lay_files(job.image, tmp_path, tmp_path / "laid")
    assert job.inventory(linked) == job.inventory(linked, tmp_path / "laid")
    assert f"/opt/app/run//file 640 0:0 {EMPTY}" in job.inventory(linked)


def test_what_names_the_build_lies_in_an_environment_that_has_a_partition_of_its_own(
    linked: Layer, files: Path
) -> None:
    place = "any /opt/conda/etc/conda-appliance/inventory"
    assert place not in lines(definition(), linked, files)
    apart = definition(builder="rootfs", disk={"layout": "split"})
    assert place in lines(apart, linked, files)

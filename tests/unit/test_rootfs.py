"""What the playbook sees of the environments: while that is the same, what it did stands for other ones too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conda_appliance import playbook, resources
from conda_appliance.builders import Job, rootfs, rootfs_disk
from conda_appliance.definition import ImageDefinition
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, Lock

SERVICE = {"name": "web", "command": "gunicorn app:app", "port": 8000}
TWO = {"base": {"dependencies": ["python"]}, "tools": {"dependencies": ["python"]}}


def job(folder: Path, *, project: Path | None = None, **changed: Any) -> Job:
    plain: dict[str, Any] = {
        "name": "box",
        "version": "1",
        "base": {"debian": "trixie"},
        "conda": {"channels": ["conda-forge"], "environments": {"base": {"dependencies": ["python"]}}},
        "services": [SERVICE],
    }
    return Job(
        image=ImageDefinition.model_validate(plain | changed),
        lock=Lock(
            name="box",
            digest="0" * 64,
            tools={},
            conda=CondaSection(virtual_packages=(), environments={}),
        ),
        folder=folder,
        project=project or folder,
        files={},
        store=Store(folder / "layers"),
        epoch=0,
        identity="c0ffee",
    )


@pytest.fixture
def linked(tmp_path: Path) -> Layer:
    """An environment with one program, as a tree."""
    tree = tmp_path / "tree"
    (tree / "opt/conda/conda-meta").mkdir(parents=True)
    (tree / "opt/conda/bin").mkdir()
    (tree / "opt/conda/bin/gunicorn").touch(mode=0o755)
    return layer(tree)


def layer(tree: Path, sha256: str = "a" * 64) -> Layer:
    return Layer(kind="environment", key="k", place=tree, sha256=sha256, made=False)


def seen(job: Job, linked: Layer) -> dict[str, str]:
    return dict(rootfs.reads(job, linked).environments)


def test_another_package_is_not_seen(tmp_path: Path, linked: Layer) -> None:
    before = seen(job(tmp_path), linked)
    (linked.path / "opt/conda/lib").mkdir()
    (linked.path / "opt/conda/lib/module.py").touch()
    assert seen(job(tmp_path), layer(linked.path, "b" * 64)) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda prefix: (prefix / "bin/gunicorn").unlink(),
        lambda prefix: (prefix / "bin/gunicorn").chmod(0o644),
        lambda prefix: (prefix / ".condarc").touch(),
        lambda prefix: (prefix / "conda-meta").rmdir(),
    ],
    ids=["a service's program is gone", "it cannot be run", "its own .condarc", "no environment there"],
)
def test_what_the_roles_ask_for_is_seen(tmp_path: Path, linked: Layer, change: Any) -> None:
    before = seen(job(tmp_path), linked)
    change(linked.path / "opt/conda")
    assert seen(job(tmp_path), linked) != before


def test_a_folder_of_a_services_name_is_no_program(tmp_path: Path, linked: Layer) -> None:
    before = seen(job(tmp_path), linked)
    (linked.path / "opt/conda/bin/gunicorn").unlink()
    (linked.path / "opt/conda/bin/gunicorn").mkdir()
    assert seen(job(tmp_path), linked) != before


def test_services_of_other_environments_are_looked_for_there(tmp_path: Path, linked: Layer) -> None:
    conda = {"channels": ["conda-forge"], "environments": TWO}
    services = [{**SERVICE, "environment": "tools"}]
    before = seen(job(tmp_path, conda=conda, services=services), linked)
    program = linked.path / "opt/conda/envs/tools/bin/gunicorn"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    assert seen(job(tmp_path, conda=conda, services=services), linked) != before


@pytest.mark.parametrize(
    "reason",
    ["activation", "activation of another", "a role", "a file inside", "a file around", "a playbook"],
)
def test_who_may_look_at_anything_is_run_again_for_anything(
    tmp_path: Path, linked: Layer, reason: str
) -> None:
    changed: dict[str, Any] = {}
    prefix = linked.path / "opt/conda"
    if reason == "activation":
        (prefix / "etc/conda/activate.d").mkdir(parents=True)
    elif reason == "activation of another":
        changed["conda"] = {"channels": ["conda-forge"], "environments": TWO}
        (prefix / "envs/tools/etc/conda/activate.d").mkdir(parents=True)
    elif reason == "a role":
        changed["roles"] = ["mine"]
    elif reason == "a file inside":
        changed["files"] = [{"from": "app/", "to": "/opt/conda/share/app"}]
    elif reason == "a file around":
        changed["files"] = [{"from": "app/", "to": "/opt"}]
    else:
        (tmp_path / "playbooks").mkdir()
    one = seen(job(tmp_path, **changed), linked)
    assert one != seen(job(tmp_path, **changed), layer(linked.path, "b" * 64))
    assert linked.sha256 in one.values()
    assert rootfs.reads(job(tmp_path, **changed), linked).files, "and lays the files down itself"


def test_the_shipped_playbook_is_nobodys_own(tmp_path: Path, linked: Layer) -> None:
    here = job(tmp_path, project=resources.shipped())
    assert seen(here, linked) == seen(here, layer(linked.path, "b" * 64))


def test_the_shipped_playbook_is_told_no_name(tmp_path: Path, linked: Layer) -> None:
    """So it is run once for machines that differ in their name alone: that is laid over what it did."""
    one = job(tmp_path, project=resources.shipped(), summary="The first")
    other = job(tmp_path, project=resources.shipped(), name="other", version="2")
    assert not rootfs.reads(one, linked).files
    said = [
        playbook.settings(each.image, each.lock, folder=each.folder, project=each.project, named=named)
        for named in (False, True)
        for each in (one, other)
    ]
    assert said[0] == said[1]
    assert said[2] != said[3]
    assert '"/etc/hostname"' in said[2] and "The first" in said[2]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("127.0.0.1 localhost\n", "127.0.0.1 localhost\n127.0.1.1 box\n"),
        ("127.0.1.1\tdebian\n::1 localhost\n", "::1 localhost\n127.0.1.1 box\n"),
        ("127.0.1.1 \tbox\n::1 localhost\n", "127.0.1.1 \tbox\n::1 localhost\n"),
        ("127.0.1.1 boxes\n", "127.0.1.1 box\n"),
    ],
)
def test_a_machine_finds_itself_in_its_hosts(before: str, after: str) -> None:
    assert rootfs_disk._hosts(before, "box") == after


def test_files_beside_an_environment_are_not_in_it(tmp_path: Path, linked: Layer) -> None:
    beside = job(tmp_path, files=[{"from": "app/", "to": "/opt/conda-app"}])
    assert seen(beside, linked) == seen(beside, layer(linked.path, "b" * 64))


@pytest.mark.parametrize(
    ("to", "seen_by_it"),
    [
        ("/opt/web", False),
        ("/srv/web/deep", False),
        ("/usr/local/share/web", False),
        ("/etc/web.conf", True),
        ("/usr/share/web", True),
        ("/opt", True),
        ("/optional", True),
    ],
)
def test_files_where_no_role_looks_are_laid_over_what_it_did(
    tmp_path: Path, linked: Layer, to: str, seen_by_it: bool
) -> None:
    one = job(tmp_path, files=[{"from": "app/", "to": to}])
    assert rootfs.reads(one, linked).files is seen_by_it


def test_one_file_elsewhere_and_it_lays_down_all(tmp_path: Path, linked: Layer) -> None:
    files = [{"from": "app/", "to": "/opt/web"}, {"from": "motd", "to": "/etc/motd"}]
    assert rootfs.reads(job(tmp_path, files=files), linked).files


@pytest.mark.parametrize("to", ["/opt/web", "/opt/web/bin", "/opt/web/bin/serve"])
def test_a_service_that_is_one_of_the_files_is_looked_for_among_them(
    tmp_path: Path, linked: Layer, to: str
) -> None:
    services = [{**SERVICE, "command": "/opt/web/bin/serve --all"}]
    files = [{"from": "app/", "to": to}]
    assert rootfs.reads(job(tmp_path, services=services, files=files), linked).files

"""What makes two builds one: whatever decides the image decides its id, and nothing else does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conda_appliance import definition, identity, lock
from conda_appliance.errors import UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of images/hello.yaml and what it names."""
    shutil.copytree(ROOT / "images", tmp_path / "images")
    return tmp_path / "images/hello.yaml"


LOCK = lock.Lock(
    name="hello", digest="d" * 64, tools={}, conda=lock.CondaSection(virtual_packages=(), environments={})
)


def id_of(path: Path, locked: lock.Lock = LOCK) -> str:
    return identity.identify(definition.load_image(path), locked, path)


def test_the_same_inputs_have_the_same_id_wherever_they_lie(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(own.parent, other / "images")
    assert id_of(own) == id_of(other / "images/hello.yaml")


@pytest.mark.parametrize("change", ["definition", "builder", "file", "lock", "playbook", "epoch"])
def test_whatever_decides_the_image_decides_the_id(
    own: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, locked = id_of(own), LOCK
    if change == "definition":
        own.write_text(own.read_text().replace("port: 8000", "port: 8001"))
    elif change == "builder":
        own.write_text(own.read_text().replace("builder: rootfs", "builder: packer"))
    elif change == "file":
        (own.parent / "hello/app/hello.py").write_text("app = None\n")
    elif change == "lock":
        locked = LOCK.model_copy(update={"tools": {"py-rattler": "9"}})
    elif change == "playbook":
        role = own.parents[1] / "playbooks/roles/custom/tasks"
        role.mkdir(parents=True)
        (role / "main.yml").write_text("[]\n")
    else:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert id_of(own, locked) != before


def test_a_builder_named_for_one_build_decides_the_id_as_one_in_the_definition_does(own: Path) -> None:
    image = definition.load_image(own)
    asked = identity.identify(definition.with_builder(own, image, "packer"), LOCK, own)
    assert asked != id_of(own)
    own.write_text(own.read_text().replace("builder: rootfs", "builder: packer"))
    assert asked == id_of(own)


def test_where_the_bytes_are_taken_from_does_not_decide_the_id(own: Path) -> None:
    own.write_text(own.read_text().replace("channels: [starter]", "channels: [conda-forge]"))
    before = id_of(own)
    own.write_text(
        own.read_text().replace(
            "  channels:", "  mirrors: {conda-forge: [https://mirror.example/cf]}\n  channels:"
        )
    )
    assert definition.load_image(own).conda.mirrors
    assert id_of(own) == before


def test_checks_have_a_digest_of_their_own(own: Path) -> None:
    image = definition.load_image(own)
    before, checked = id_of(own), identity.digest_of_checks(image, own)
    (own.parent / "hello/checks/test_more.py").write_text("def test_more():\n    pass\n")
    assert id_of(own) == before
    assert identity.digest_of_checks(image, own) != checked


def test_what_the_installer_disc_may_do_is_no_part_of_the_image(own: Path) -> None:
    before = id_of(own)
    own.write_text(own.read_text() + "installer: {unattended: true, disk: {serial: S1}}\n")
    assert id_of(own) == before


def test_source_date_epoch_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="not a number of seconds"):
        identity.epoch()

"""What makes two builds one, what is kept of a failure, and how a result takes its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from conda_appliance import build, definition, lock, manifest
from conda_appliance.errors import BuildError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of images/hello.yaml and what it names."""
    shutil.copytree(ROOT / "images", tmp_path / "images")
    return tmp_path / "images/hello.yaml"


LOCK = lock.Lock(
    name="hello", digest="d" * 64, tools={}, conda=lock.CondaSection(virtual_packages=(), environments={})
)


def identity(path: Path, locked: lock.Lock = LOCK) -> str:
    return build.identify(definition.load_image(path), locked, path, "packer")


def test_the_same_inputs_have_the_same_id_wherever_they_lie(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(own.parent, other / "images")
    assert identity(own) == identity(other / "images/hello.yaml")


@pytest.mark.parametrize("change", ["definition", "file", "lock", "playbook", "epoch"])
def test_whatever_decides_the_image_decides_the_id(
    own: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, locked = identity(own), LOCK
    if change == "definition":
        own.write_text(own.read_text().replace("port: 8000", "port: 8001"))
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
    assert identity(own, locked) != before


def test_checks_have_a_digest_of_their_own(own: Path) -> None:
    image = definition.load_image(own)
    before, checked = identity(own), build.digest_of_checks(image, own)
    (own.parent / "hello/checks/test_more.py").write_text("def test_more():\n    pass\n")
    assert identity(own) == before
    assert build.digest_of_checks(image, own) != checked


def test_source_date_epoch_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="not a number of seconds"):
        build.epoch()


def test_a_failure_keeps_logs_and_rendered_files_and_the_last_result(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "latest").symlink_to("good")
    with (
        pytest.raises(BuildError, match="it broke") as caught,
        build._partial(tmp_path, "new", keep_failed=False) as work,
    ):
        (work / "logs").mkdir()
        (work / "logs/packer.log").write_text("words")
        (work / "build/disk").mkdir(parents=True)
        (work / "build/machine.pkr.hcl").write_text("x")
        (work / "hello.qcow2").write_text("half")
        raise BuildError("it broke", hint=f"less {work}/logs/packer.log")
    assert f"less {tmp_path}/failed/logs/packer.log" in caught.value.hint
    assert f"kept for you: {tmp_path}/failed (build, logs)" in caught.value.hint
    assert (tmp_path / "failed/logs/packer.log").read_text() == "words"
    assert not (tmp_path / "failed/build/disk").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed", "good", "latest"]
    assert (tmp_path / "latest").resolve().name == "good"


def test_keep_failed_keeps_the_disk_too(tmp_path: Path) -> None:
    with pytest.raises(BuildError), build._partial(tmp_path, "new", keep_failed=True) as work:
        (work / "hello.qcow2").write_text("half")
        raise BuildError("it broke")
    assert (tmp_path / "failed/hello.qcow2").exists()


def test_a_result_takes_its_place_in_one_step(tmp_path: Path) -> None:
    for content in ("first", "second"):
        work = tmp_path / ".id.partial"
        work.mkdir()
        (work / "disk").write_text(content)
        build._publish(work, tmp_path / "id")
        assert (tmp_path / "latest/disk").read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["id", "latest"]


def test_a_damaged_result_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "hello.qcow2").write_bytes(b"bytes")
    record = manifest.ArtifactRecord(
        file="hello.qcow2",
        format="qcow2",
        size=5,
        virtual_size=5,
        sha256="277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9",
    )
    written = manifest.Manifest(
        name="hello",
        version="1",
        summary="",
        id="abc",
        created="2026-01-01T00:00:00+00:00",
        builder="packer",
        accelerator="tcg",
        artifacts=(record,),
        inputs={},
        tools={},
        packages={},
        check=None,
        steps={},
    )
    manifest.write(written, tmp_path)
    assert manifest.read(tmp_path) == written
    assert manifest.damaged(tmp_path, written) == []
    (tmp_path / "hello.qcow2").write_bytes(b"bytEs")
    assert manifest.damaged(tmp_path, written) == ["hello.qcow2"]
    assert (tmp_path / "SHA256SUMS").read_text().splitlines()[0].endswith("  hello.qcow2")

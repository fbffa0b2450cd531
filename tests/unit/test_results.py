"""What is kept of a failure, how a result takes its place, and what of it the next build takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from conda_appliance import export, manifest, results
from conda_appliance.errors import BuildError, UsageError


def test_a_failure_keeps_logs_and_rendered_files_and_the_last_result(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "latest").symlink_to("good")
    with (
        pytest.raises(BuildError, match="it broke") as caught,
        results.partial(tmp_path, "new", keep_failed=False) as work,
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
    with pytest.raises(BuildError), results.partial(tmp_path, "new", keep_failed=True) as work:
        (work / "hello.qcow2").write_text("half")
        raise BuildError("it broke")
    assert (tmp_path / "failed/hello.qcow2").exists()


def test_a_result_takes_its_place_in_one_step(tmp_path: Path) -> None:
    for content in ("first", "second"):
        work = tmp_path / ".id.partial"
        work.mkdir()
        (work / "disk").write_text(content)
        results.publish(work, tmp_path / "id")
        assert (tmp_path / "latest/disk").read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["id", "latest"]


def finished(folder: Path, content: bytes = b"bytes", *, source: str = "") -> manifest.Manifest:
    """A result with one artifact."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "hello.qcow2").write_bytes(content)
    record = manifest.ArtifactRecord(
        file="hello.qcow2",
        format="qcow2",
        size=len(content),
        virtual_size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        source=source,
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
    manifest.write(written, folder)
    return written


def test_a_damaged_result_is_noticed(tmp_path: Path) -> None:
    written = finished(tmp_path)
    assert manifest.read(tmp_path) == written
    assert manifest.damaged(tmp_path, written) == []
    (tmp_path / "hello.qcow2").write_bytes(b"bytEs")
    assert manifest.damaged(tmp_path, written) == ["hello.qcow2"]
    assert (tmp_path / "SHA256SUMS").read_text().splitlines()[0].endswith("  hello.qcow2")


# --- what the next build takes ----------------------------------------------------------------------

SOURCE = export.source_of("d" * 64, "qcow2", "zstd")


def test_an_artifact_of_the_same_disk_is_found_and_copied(tmp_path: Path) -> None:
    finished(tmp_path / "other", b"other", source=export.source_of("e" * 64, "qcow2", "zstd"))
    finished(tmp_path / "same", b"same", source=SOURCE)
    found = results.artifact(tmp_path, SOURCE)
    assert found is not None and found.path == tmp_path / "same/hello.qcow2"
    taken = export.take(found, tmp_path / "new.qcow2")
    assert taken.path.read_bytes() == b"same"
    assert taken.record == found.record.model_copy(update={"file": "new.qcow2"})
    (tmp_path / "new.qcow2").write_bytes(b"new")
    assert found.path.read_bytes() == b"same", "a file of its own"


def test_another_disk_or_another_form_is_another_artifact(tmp_path: Path) -> None:
    finished(tmp_path / "same", source=SOURCE)
    assert results.artifact(tmp_path, export.source_of("e" * 64, "qcow2", "zstd")) is None
    assert results.artifact(tmp_path, export.source_of("d" * 64, "raw", "zstd")) is None


def test_an_artifact_of_unknown_source_stands_for_nothing(tmp_path: Path) -> None:
    finished(tmp_path / "old")
    assert results.artifact(tmp_path, SOURCE) is None


def test_a_damaged_artifact_is_not_taken(tmp_path: Path) -> None:
    finished(tmp_path / "a", b"same", source=SOURCE)
    finished(tmp_path / "b", b"same", source=SOURCE)
    (tmp_path / "a/hello.qcow2").write_bytes(b"sAme")
    found = results.artifact(tmp_path, SOURCE)
    assert found is not None and found.path == tmp_path / "b/hello.qcow2"
    (tmp_path / "b/hello.qcow2").unlink()
    assert results.artifact(tmp_path, SOURCE) is None


def test_a_result_that_cannot_be_read_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/manifest.json").write_text("{}")
    finished(tmp_path / "b", source=SOURCE)
    assert results.artifact(tmp_path, SOURCE) is not None


def test_what_boots_is_found_among_the_forms(tmp_path: Path) -> None:
    written = finished(tmp_path)
    (record,) = written.artifacts
    vmdk, ova = (
        record.model_copy(update={"file": f"hello.{form}", "format": form}) for form in ("vmdk", "ova")
    )
    both = written.model_copy(update={"artifacts": (ova, vmdk)})
    assert results.bootable(tmp_path, both) == tmp_path / "hello.vmdk"
    alone = written.model_copy(update={"artifacts": (ova,)})
    assert results.bootable(tmp_path, alone) is None


def test_a_result_without_a_disk_is_found_but_not_booted(tmp_path: Path) -> None:
    written = finished(tmp_path / "hello/latest")
    (record,) = written.artifacts
    tar = record.model_copy(update={"file": "hello-1.tar.zst", "format": "tar"})
    manifest.write(written.model_copy(update={"artifacts": ()}), tmp_path / "hello/latest")
    text = (tmp_path / "hello/latest/manifest.json").read_text()
    (tmp_path / "hello/latest/manifest.json").write_text(
        text.replace('"artifacts": []', f'"artifacts": [{tar.model_dump_json()}]')
    )
    with pytest.raises(UsageError, match=r"holds hello-1\.tar\.zst, and none of it boots here"):
        results.find("hello", tmp_path)
    assert results.find("hello", tmp_path, to_boot=False).disk.name == "hello-1.tar.zst"


def test_a_definition_is_named_by_its_file_or_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/hello.yaml").write_text("name: hello\n")
    for named in ("hello", "images/hello.yaml"):
        assert results.definition_of(named) == Path("images/hello.yaml")
    with pytest.raises(UsageError, match="no definition is known for other"):
        results.definition_of("other")

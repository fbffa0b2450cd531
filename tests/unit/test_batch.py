"""Several definitions at once: one that fails keeps none of the others from being built."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from conda_appliance import batch
from conda_appliance.errors import ApplianceError, BuildError

DEFINITION = """\
name: NAME
version: "1"
base: {debian: trixie}
conda: {channels: [starter], environments: {base: {dependencies: [python]}}}
"""


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    found = []
    for name in ("one", "two"):
        found.append(tmp_path / f"{name}.yaml")
        found[-1].write_text(DEFINITION.replace("NAME", name))
    return found


def built(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> list[str]:
    """Builds that end with ``failure`` for the first image; which were made."""
    made: list[str] = []

    def build(path: Path, **_options: Any) -> batch.Result:
        if path.stem == "one":
            raise failure
        made.append(path.stem)
        return batch.Result(folder=path.parent / path.stem, manifest=None, made=True)  # type: ignore[arg-type]

    monkeypatch.setattr(batch.builds, "build", build)
    return made


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (BuildError("it does not build"), "it does not build"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/app.py"), "/x/app.py: Permission denied"),
    ],
)
def test_one_that_fails_keeps_no_other_from_being_built(
    paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
    said: str,
) -> None:
    made = built(monkeypatch, failure)
    with pytest.raises(ApplianceError, match=said):
        batch.build(paths)
    assert made == ["two"]
    told = capsys.readouterr().err
    assert "1 of 2 images are ready (1 made, 0 unchanged)" in told
    assert f"failed: {said}" in told


def test_a_full_disk_is_everybodys(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = built(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/x"))
    with pytest.raises(OSError, match="No space left"):
        batch.build(paths)
    assert made == []

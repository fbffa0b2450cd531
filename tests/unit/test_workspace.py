"""What an environment of a pixi workspace asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from conda_appliance import workspace
from conda_appliance.errors import UsageError

PIXI = """\
[workspace]
channels = ["conda-forge", {channel = "https://x/internal", priority = 1}]
platforms = ["linux-64", "osx-arm64"]

[tasks]
start = "python main.py"

[dependencies]
python = "3.13.*"
numpy = {version = ">=2", build = "py313*", channel = "conda-forge"}
anything = "*"

[pypi-dependencies]
bottle = ">=0.13"
requests = {version = "*", extras = ["socks"]}

[target.linux.dependencies]
systemd = "*"
[target.osx-arm64.dependencies]
metal = "*"

[feature.gpu.dependencies]
cuda = "12.*"
numpy = ">=2.1"

[environments]
gpu = ["gpu"]
lone = {features = ["gpu"], no-default-feature = true}
"""


def read(
    tmp_path: Path, text: str = PIXI, *, select: str = "default", name: str = "pixi.toml"
) -> workspace.Wanted:
    (tmp_path / name).write_text(text)
    return workspace.read(tmp_path / name, select, "linux-64")


def test_the_default_environment_has_the_default_feature(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.specs == ("python 3.13.*", "conda-forge::numpy >=2 py313*", "anything", "systemd")
    assert found.pip == ("bottle >=0.13", "requests[socks]")
    assert found.channels == ("conda-forge", "https://x/internal")


def test_features_are_added_and_go_before(tmp_path: Path) -> None:
    assert "numpy >=2.1" in read(tmp_path, select="gpu").specs
    assert "python 3.13.*" in read(tmp_path, select="gpu").specs
    assert read(tmp_path, select="lone").specs == ("cuda 12.*", "numpy >=2.1")


def test_a_pyproject_may_be_one(tmp_path: Path) -> None:
    text = PIXI.replace("[", "[tool.pixi.", 1).replace("\n[", "\n[tool.pixi.")
    assert read(tmp_path, text, name="pyproject.toml") == read(tmp_path)


@pytest.mark.parametrize(
    ("text", "select", "message"),
    [
        ("[package]\n", "default", "is no pixi workspace"),
        ("[workspace\n", "default", "cannot be read as TOML"),
        (PIXI.replace('"linux-64", ', ""), "default", "is not for linux-64; its platforms: osx-arm64"),
        (PIXI, "test", "has no environment 'test'; it has default, gpu, lone"),
        (
            PIXI.replace('["gpu"]\nlone', '["missing"]\nlone'),
            "gpu",
            "a feature 'missing', which is not there",
        ),
        (
            PIXI + "[feature.gpu.host-dependencies]\na = '*'\n",
            "gpu",
            r"feature\.gpu\.host-dependencies cannot",
        ),
        (PIXI.replace('"12.*"', "{path = '.'}"), "gpu", r"feature\.gpu\.dependencies\.cuda asks for"),
        (PIXI.replace('">=0.13"', "{git = 'https://x'}"), "default", r"pypi-dependencies\.bottle asks for"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, text: str, select: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text, select=select)

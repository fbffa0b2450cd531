"""A lock that names packages of a folder channel says so when the folder has not got them."""

from pathlib import Path

import pytest

from conda_appliance import channel, places, resources, sources
from conda_appliance.definition import load_image
from conda_appliance.errors import LockError
from conda_appliance.lock import CondaPackage


def package(name: str) -> CondaPackage:
    file = f"{name}-1.0-h0_0.conda"
    return CondaPackage(
        name=name,
        version="1.0",
        build="h0_0",
        subdir="noarch",
        channel="starter",
        url=f"starter/noarch/{file}",
        sha256="0" * 64,
        size=1,
    )


def test_packages_that_a_channel_has_no_more_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "a channel"
    (folder / "noarch").mkdir(parents=True)
    (folder / "noarch/here-1.0-h0_0.conda").touch()
    here = {"starter": folder.as_uri()}
    places.require_in_folders([package("here")], here, Path("hello.yaml"))
    with pytest.raises(LockError, match=r"starter/noarch/gone-1\.0-h0_0\.conda") as caught:
        places.require_in_folders([package("here"), package("gone")], here, Path("hello.yaml"))
    assert caught.value.hint == "conda-appliance lock --upgrade hello.yaml"


def test_a_projects_folder_of_that_name_is_not_the_starter_channel_without_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def build(recipes: Path, *_args: object, **_options: object) -> Path:
        built.append(recipes)
        return tmp_path

    monkeypatch.setattr(channel, "build", build)
    definition = tmp_path / "own.yaml"
    definition.write_text(
        "name: own\nversion: 1.0.0\nbase: {debian: trixie}\n"
        "conda: {channels: [starter], environments: {base: {dependencies: [python]}}}\n"
    )
    (tmp_path / "channel/noarch").mkdir(parents=True)
    for _ in range(2):
        places.channels(load_image(definition), definition, sources.Cache(tmp_path / "cache"), print)
        (tmp_path / "channel/channel.yaml").touch()
    assert built == [resources.shipped() / "channel", tmp_path / "channel"]

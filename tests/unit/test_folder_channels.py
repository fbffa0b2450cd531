"""A lock that names packages of a folder channel says so when the folder has not got them."""

from pathlib import Path

import pytest

from conda_appliance import resolve
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
    places = {"starter": folder.as_uri()}
    resolve._require_in_folders([package("here")], places, Path("hello.yaml"))
    with pytest.raises(LockError, match=r"starter/noarch/gone-1\.0-h0_0\.conda") as caught:
        resolve._require_in_folders([package("here"), package("gone")], places, Path("hello.yaml"))
    assert caught.value.hint == "conda-appliance lock --upgrade hello.yaml"

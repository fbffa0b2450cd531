"""A pixi workspace as a definition's environments: locked from channels and an index, linked, and run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import packages
import pytest
import wheels_made
from packages import Package
from tests.conftest import Folders

from conda_appliance import definition, fetching, lock, locking, payload, process, resolve, resources, sources
from conda_appliance.errors import UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import Lock

EPOCH = 1_700_000_000

WORKSPACE = """\
[project]
name = "forecast"
version = "1.0"
requires-python = "==3.13.*"
dependencies = ["flask>=3", "colorama; sys_platform == 'win32'"]
[project.optional-dependencies]
serve = ["gunicorn"]

[tool.pixi.workspace]
channels = ["conda-forge"]
platforms = ["linux-64", "osx-arm64"]

[tool.pixi.dependencies]
flask = "*"
low = "*"
[tool.pixi.constraints]
never-needed = "<1"
[tool.pixi.target.linux.dependencies]
numpy = ">=2"
[tool.pixi.target.osx.dependencies]
metal = "*"
[tool.pixi.pypi-dependencies]
forecast = { path = ".", editable = true }

[tool.pixi.feature.serve.dependencies]
gunicorn = "*"
[tool.pixi.feature.test.dependencies]
only-tested = "*"
[tool.pixi.feature.gpu.system-requirements]
cuda = "12"

[tool.pixi.environments]
prod = {features = ["serve"], solve-group = "prod"}
test = {features = ["serve", "test"], solve-group = "prod"}
gpu = ["gpu"]
"""
DEFINITION = """\
name: forecast
version: 1.0.0
base: {image: {url: URL, sha256: SHA256}}
builder: packer
conda:
  prefix: PREFIX
  channels: [starter, ./mine]
  environments:
    base: {file: pyproject.toml, select: prod, pip: [dist/forecast-1.0-py3-none-any.whl]}
"""


class Place:
    """A project that pixi manages, whose definition is beside it; its channel has two versions of `low`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, sources.Cache(resources.cache_root())
        (folder / "pyproject.toml").write_text(WORKSPACE)
        wheels_made.wheel(folder / "dist", "forecast", requires=["flask"])
        for one in (
            Package(name="low", version="1.0", noarch="generic"),
            Package(name="low", version="2.0", noarch="generic"),
            Package(name="only-tested", depends=["low <2"], noarch="generic"),
        ):
            one.write(folder / "mine")
        packages.index(folder / "mine")
        (folder / "base.qcow2").write_bytes(b"a disk")
        self.definition = (
            DEFINITION.replace("URL", (folder / "base.qcow2").as_uri())
            .replace("SHA256", hashlib.sha256(b"a disk").hexdigest())
            .replace("PREFIX", str(folder / "conda"))
        )

    def lock(self, select: str = "prod") -> Lock:
        self.path = self.folder / "forecast.yaml"
        self.path.write_text(self.definition.replace("select: prod", f"select: {select}"))
        self.image = definition.load_image(self.path)
        return resolve.resolve(self.image, self.path, self.cache, lambda _: None)

    def versions(self, locked: Lock) -> dict[str, str]:
        section = locked.conda.environments["base"]
        return {one.name: one.version for one in (*section.packages, *(section.wheels or ()))}


@pytest.fixture(scope="module")
def place(folders: Folders) -> Place:
    return Place(folders.mktemp("workspace"))


def test_what_is_locked_is_linked_and_runs(place: Place) -> None:
    locked = place.lock()
    section = locked.conda.environments["base"]
    versions = place.versions(locked)
    assert {"python", "flask", "numpy", "gunicorn", "low", "forecast"} <= {*versions}
    assert versions["python"].startswith("3.13.")
    assert not {"metal", "colorama", "never-needed", "only-tested"} & {*versions}
    assert [one.name for one in section.wheels or ()] == ["forecast"], "the rest are conda's"
    files = fetching.fetch(
        locked, place.image, place.path, place.cache, offline=False, progress=lambda _: None
    ).files
    store = Store(place.folder / "layers")
    linked = payload.environment(locked, files, store=store, epoch=EPOCH)
    prefix = place.folder / "conda"
    prefix.symlink_to(linked.path / str(prefix).lstrip("/"))
    ask = "import flask, numpy, gunicorn, forecast; print(forecast.NAME, numpy.ones(2).sum())"
    assert process.run(["env", "-i", prefix / "bin/python", "-I", "-c", ask]).stdout == "forecast 2.0\n"
    store.release()


def test_environments_of_a_solve_group_get_the_same_versions(place: Place) -> None:
    prod, tested = place.versions(place.lock()), place.versions(place.lock("test"))
    assert "only-tested" in tested and "only-tested" not in prod
    assert prod["low"] == tested["low"] == "1.0", "prod would have 2.0 alone"
    assert place.versions(place.lock("default"))["low"] == "2.0"


def test_one_package_of_a_solve_group_moves_as_any(place: Place) -> None:
    lock.write(place.lock(), lock.path_for(place.path))
    before = place.versions(lock.read(lock.path_for(place.path)))
    Package(name="low", version="1.5", noarch="generic").write(place.folder / "mine")
    packages.index(place.folder / "mine")
    locking.update(place.path, ["low"])
    assert place.versions(lock.read(lock.path_for(place.path))) == {**before, "low": "1.5"}


def test_what_it_needs_of_the_machine_the_definition_must_promise(place: Place) -> None:
    with pytest.raises(UsageError, match="the environment base needs cuda 12 of its machine, which has none"):
        place.lock("gpu")
    place.definition += 'target: {cuda: "12.4"}\n'
    assert "__cuda=12.4=0" in place.lock("gpu").conda.virtual_packages

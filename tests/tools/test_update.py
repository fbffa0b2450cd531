"""One package of a lock moves and no other does."""

from __future__ import annotations

from pathlib import Path

import packages
import pytest
from packages import Package

from conda_appliance import cli, definition, lock, locking, resolve
from conda_appliance.errors import LockError, UsageError
from conda_appliance.lock import CondaSection, DebianPackage, DebianSection, Lock

DEFINITION = """\
name: box
version: 1.0
base: {debian: trixie}
conda: {channels: [./channel], environments: {base: {dependencies: [top, free]}}}
"""


class Place:
    """A definition with a folder channel, locked; its Debian is a stand-in, which no test here asks for."""

    def __init__(self, folder: Path) -> None:
        self.channel = folder / "channel"
        self.path = folder / "box.yaml"
        self.path.write_text(DEFINITION)
        self.add("low", "1.0")
        self.add("top", "1.0", "low")
        self.add("free", "1.0")
        deb = DebianPackage(
            name="libc6", version="2.41-1", architecture="amd64", url="u", sha256="0" * 64, size=1
        )
        debian = DebianSection(suite="trixie", glibc="2.41", packages=(deb,))
        nothing = CondaSection(virtual_packages=(), environments={})
        base = definition.base_digest(definition.load_image(self.path))
        first = Lock(name="box", digest="0" * 64, base=base, tools={}, debian=debian, conda=nothing)
        lock.write(first, lock.path_for(self.path))
        self.add("free", "1.1")
        locking.ensure(self.path)

    def add(self, name: str, version: str, *depends: str) -> None:
        Package(name=name, version=version, depends=depends, noarch="generic").write(self.channel)
        packages.index(self.channel)

    def versions(self) -> dict[str, str]:
        section = lock.read(lock.path_for(self.path)).conda.environments["base"]
        return {one.name: one.version for one in section.packages}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    return Place(tmp_path)


def test_what_is_named_moves_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.versions() == {"low": "1.0", "top": "1.0", "free": "1.1"}
    place.add("low", "1.1")
    place.add("free", "2.0")
    capsys.readouterr()
    assert cli.main(["lock", str(place.path), "--update", "free"]) == 0
    assert place.versions() == {"low": "1.0", "top": "1.0", "free": "2.0"}
    assert "free 1.1 0 → 2.0 0" in capsys.readouterr().err


def test_what_others_hold_is_told_with_their_names(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.add("low", "2.0")
    place.add("top", "2.0", "low >=2")
    locking.update(place.path, ["top"])
    assert place.versions()["top"] == "1.0"
    assert "top stays: 2.0 0 wants others to move with it; to be named too: low" in capsys.readouterr().err
    locking.update(place.path, ["top", "low"])
    assert place.versions() == {"low": "2.0", "top": "2.0", "free": "1.1"}


def test_what_is_not_there_is_refused(place: Place) -> None:
    with pytest.raises(
        UsageError, match="tap is in none of its environments, and not in its system"
    ) as caught:
        locking.update(place.path, ["tap"])
    assert caught.value.hint == "perhaps top"


def test_a_changed_environment_is_no_reason_for_another_system(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def newer(*_args: object) -> DebianSection:
        asked.append("Debian")
        return DebianSection(suite="trixie", glibc="2.41", packages=())

    monkeypatch.setattr(resolve, "debian_section", newer)
    place.path.write_text(DEFINITION.replace("[top, free]", "[top]"))
    locking.ensure(place.path)
    assert "free" not in place.versions() and asked == []
    place.path.write_text(DEFINITION.replace("debian: trixie", "debian: trixie, packages: [nano]"))
    locking.ensure(place.path)
    assert asked == ["Debian"], "a changed base is one"
    locking.ensure(place.path, upgrade=True)
    assert len(asked) == 2


def test_a_stale_lock_is_not_updated_in_parts(place: Place) -> None:
    """It would be taken for fresh then, with the system of another base."""
    place.path.write_text(DEFINITION.replace("debian: trixie", "debian: trixie, packages: [nano]"))
    with pytest.raises(LockError, match="is stale"):
        locking.update(place.path, ["free"])

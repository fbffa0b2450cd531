"""One lock for several platforms, from every kind of input that may name several."""

from __future__ import annotations

import json
from pathlib import Path

import packages
import pytest
import yaml
from packages import Package

from conda_appliance import cli, lock, locking, resolve, resources
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import LockError, UsageError
from conda_appliance.lock import DebianPackage, DebianSection
from conda_appliance.sources import Cache

BOTH = ("linux-64", "linux-aarch64")
DEFINITION = """\
name: box
version: 1.0
platforms: [linux-64, linux-aarch64]
builder: rootfs
base: {debian: trixie}
conda:
  channels: [./channel]
  environments:
    base: {ENVIRONMENT}
"""
WORKSPACE = """\
[workspace]
name = "x"
channels = ["./channel"]
platforms = ["linux-64", "linux-aarch64"]
[dependencies]
pure = "*"
[target.linux-aarch64.dependencies]
tool = "*"
"""


def debian(image: ImageDefinition, cache: Cache, *_more: object) -> DebianSection:
    """A stand-in: nobody here asks a mirror, or opens what it is given."""
    name = image.platform.debian
    path = cache.root / f"{name}.deb"
    path.write_text(name)
    deb = DebianPackage(
        name="libc6",
        version="2.41-1",
        architecture=name,
        url=path.as_uri(),
        sha256=resources.sha256_of(path),
        size=path.stat().st_size,
    )
    return DebianSection(suite="trixie", architecture=name, glibc="2.41", packages=(deb,))


class Place:
    """A definition for both platforms with a folder channel, whose packages are not the same on both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.channel = folder / "channel"
        self.path = folder / "box.yaml"
        self.add("tool", "1.0", "linux-64")
        self.add("tool", "2.0", "linux-aarch64")
        self.add("pure", "1.0")

    def add(self, name: str, version: str, platform: str = "") -> Path:
        one = Package(name=name, version=version, platform=platform, noarch="" if platform else "generic")
        made = one.write(self.channel)
        packages.index(self.channel)
        return made

    def lock(self, environment: str = "dependencies: [tool, pure]") -> None:
        self.path.write_text(DEFINITION.replace("ENVIRONMENT", environment))
        locking.ensure(self.path)

    def versions(self) -> dict[str, dict[str, str]]:
        """Of each platform: its packages of conda."""
        return {
            one.platform: {
                package.name: f"{package.version} {package.subdir}"
                for package in one.conda.environments["base"].packages
            }
            for one in lock.read_all(lock.path_for(self.path))
        }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(resolve, "debian_section", debian)
    return Place(tmp_path)


def test_each_platform_is_solved_from_its_own_packages(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.lock()
    assert place.versions() == {
        "linux-64": {"tool": "1.0 linux-64", "pure": "1.0 noarch"},
        "linux-aarch64": {"tool": "2.0 linux-aarch64", "pure": "1.0 noarch"},
    }
    intel, arm = lock.read_all(lock.path_for(place.path))
    assert "__archspec=1=x86_64" in intel.conda.virtual_packages
    assert "__archspec=1=aarch64" in arm.conda.virtual_packages
    assert arm.debian is not None and arm.debian.architecture == "arm64"
    capsys.readouterr()
    assert cli.main(["lock", str(place.path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["changed"] is False
    assert said["platforms"]["linux-aarch64"] == {"conda:base": 2, "debian": 1}


def test_an_update_moves_a_package_of_one_platform(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.lock()
    place.add("tool", "1.1", "linux-64")
    place.add("tool", "2.1", "linux-aarch64")
    update = ["lock", str(place.path), "--update", "tool"]
    assert cli.main([*update, "--platform", "linux-aarch64"]) == 0
    assert {name: one["tool"] for name, one in place.versions().items()} == {
        "linux-64": "1.0 linux-64",
        "linux-aarch64": "2.1 linux-aarch64",
    }
    assert cli.main(update) == 0
    assert place.versions()["linux-64"]["tool"] == "1.1 linux-64", "without a word of it, the first"
    capsys.readouterr()
    assert cli.main(["lock", str(place.path), "--platform", "linux-64"]) == 2
    assert "a lock answers for all platforms" in capsys.readouterr().err


def test_a_changed_environment_keeps_the_system_of_each(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.lock()
    monkeypatch.delattr(resolve, "debian_section")
    place.lock("dependencies: [tool]")
    assert [one.debian is not None for one in lock.read_all(lock.path_for(place.path))] == [True, True]
    assert place.versions()["linux-aarch64"] == {"tool": "2.0 linux-aarch64"}


def test_a_workspace_is_read_for_each_platform(place: Place) -> None:
    (place.folder / "pixi.toml").write_text(WORKSPACE)
    place.lock("file: pixi.toml")
    assert place.versions() == {
        "linux-64": {"pure": "1.0 noarch"},
        "linux-aarch64": {"pure": "1.0 noarch", "tool": "2.0 linux-aarch64"},
    }
    text = WORKSPACE.replace(', "linux-aarch64"]', "]")
    (place.folder / "pixi.toml").write_text(text)
    with pytest.raises(UsageError, match=r"is not for linux-aarch64; the workspace's platforms: linux-64"):
        place.lock("file: pixi.toml")


@pytest.mark.parametrize("form", ["pixi", "conda-lock"])
def test_what_is_exported_for_each_platform_is_taken_again(place: Place, form: str) -> None:
    """The two exports put together are one lock of that tool, for both."""
    place.lock()
    before = place.versions()
    found = [yaml.safe_load(locking.export(place.path, form, "base", platform=one)) for one in BOTH]
    whole = found[0]
    if form == "pixi":
        listed = whole["environments"]["default"]["packages"]
        assert [*listed] == ["linux-64"]
        listed |= found[1]["environments"]["default"]["packages"]
        named = {json.dumps(one): one for part in found for one in part["packages"]}
        whole["packages"] = [*named.values()]
    else:
        assert {one["platform"] for one in found[1]["package"]} == {"linux-aarch64"}
        whole["package"] += found[1]["package"]
        whole["metadata"]["platforms"] = [*BOTH]
        whole["metadata"]["content_hash"] |= found[1]["metadata"]["content_hash"]
    (place.folder / "foreign.lock").write_text(yaml.safe_dump(whole, sort_keys=False))
    place.lock("lock: foreign.lock")
    assert place.versions() == before
    (place.folder / "foreign.lock").write_text(yaml.safe_dump(found[1], sort_keys=False))
    with pytest.raises(UsageError, match="is not for linux-64; its platforms: linux-aarch64"):
        place.lock("lock: foreign.lock")


def test_an_explicit_file_is_for_one_platform(place: Place) -> None:
    place.lock()
    for platform, other in (BOTH, BOTH[::-1]):
        text = locking.export(place.path, "explicit", "base", platform=platform)
        assert f"# platform: {platform}\n" in text
        (place.folder / f"{platform}.txt").write_text(text)
        own = place.path.read_text()
        with pytest.raises(UsageError, match=f"is for {platform}, and the machine is {other}") as caught:
            place.lock(f"lock: {platform}.txt")
        assert "an @EXPLICIT file is for one platform" in caught.value.hint
        place.path.write_text(own)


def test_a_lock_that_lacks_a_platform_is_stale(place: Place) -> None:
    place.lock()
    text = place.path.read_text()
    place.path.write_text(text.replace("platforms: [linux-64, linux-aarch64]", "platforms: [linux-64]"))
    with pytest.raises(LockError, match="is stale"):
        locking.fetch(place.path)
    locking.ensure(place.path)
    assert [*place.versions()] == ["linux-64"]
    place.path.write_text(text)
    with pytest.raises(LockError, match="is stale"):
        locking.fetch(place.path, platform="linux-aarch64")

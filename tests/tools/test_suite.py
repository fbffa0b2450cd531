"""Debian's packages of a lock move one by one, as far as apt lets them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import packages
import private_server
import pytest
from debian_archive import Archive
from packages import Package
from tests.conftest import Folders

from conda_appliance import apt, bootstrap, cli, definition, lock, locking, network, resolve, sources
from conda_appliance.apt import Apt
from conda_appliance.errors import BuildError, UsageError
from conda_appliance.lock import DebianSection
from conda_appliance.sources import Download
from conda_appliance.suite import Held

#: The package that stands for the newest kernel.
KERNEL = f"{bootstrap.KERNELS['cloud']}-amd64"

DEFINITION = """\
name: box
version: 1.0
base: {debian: trixie, mirror: "MIRROR", packages: [tool, top, other, user]}
conda: {channels: [./conda], environments: {base: {dependencies: [tool]}}}
"""


class Place:
    """A machine of stand-ins for all packages that every machine has, and of the definition's; locked."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        self.archive, self.cache = archive, sources.Cache(folder / "cache")
        for name in (*bootstrap.PACKAGES, KERNEL):
            needs = {KERNEL: "linux-image-6.12.1-cloud-amd64"}
            archive.add(name, "1", **({"depends": needs[name]} if name in needs else {}))
        archive.add("linux-image-6.12.1-cloud-amd64", "6.12.1-1")
        archive.add("libc6", "2.41-1", essential="yes")
        for name in ("tool", "libtool", "low", "other"):
            archive.add(name, "1", **({"depends": "libtool (= 1)"} if name == "tool" else {}))
        archive.add("top", "1", depends="low")
        archive.add("user", "1", depends="libc6 (<< 3)")
        archive.publish()
        Package(name="tool", noarch="generic").write(folder / "conda")
        packages.index(folder / "conda")
        self.path = folder / "box.yaml"
        self.path.write_text(DEFINITION.replace("MIRROR", archive.url))
        self.image = definition.load_image(self.path)
        locking.ensure(self.path)
        self.locked = lock.read(lock.path_for(self.path))

    def move(self, *names: str) -> tuple[DebianSection, list[Held]]:
        assert self.locked.debian is not None
        return resolve.move_debian(self.locked.debian, self.image, names, self.cache, lambda _: None)

    def moved(self, *names: str) -> dict[str, str]:
        """What is another version now, and what came; what went has none."""
        section, held = self.move(*names)
        assert held == []
        assert self.locked.debian is not None
        before, after = (
            {one.name: one.version for one in part.packages} for part in (self.locked.debian, section)
        )
        return {
            name: after.get(name, "") for name in {**before, **after} if before.get(name) != after.get(name)
        }


@pytest.fixture(scope="module")
def made(folders: Folders) -> Iterator[Place]:
    folder = folders.mktemp("suite")
    with pytest.MonkeyPatch.context() as patch:
        archive = Archive(folder)
        patch.setattr(apt, "KEYRING", archive.keyring)
        patch.setenv("CONDA_APPLIANCE_CACHE", str(folder / "cache"))
        yield Place(folder, archive)


@pytest.fixture
def place(made: Place) -> Iterator[Place]:
    """The machine as it was locked, and its suite as it was then."""
    then = dict(made.archive.newest)
    yield made
    made.archive.newest = then
    made.archive.publish()
    lock.write(made.locked, lock.path_for(made.path))


@pytest.fixture
def newer(place: Place) -> Callable[..., None]:
    """Puts newer packages into the suite, whose index then has the older no more: ``name=fields``."""

    def publish(**made: dict[str, str]) -> None:
        for name, fields in made.items():
            place.archive.add(name, fields.pop("version", "2"), **fields)
        place.archive.publish()

    return publish


def test_what_is_named_moves_alone(place: Place, newer: Callable[..., None]) -> None:
    newer(low={}, other={}, top={})
    assert place.moved("low") == {"low": "2"}
    assert place.moved("low", "other") == {"low": "2", "other": "2"}
    assert place.moved("user") == {}, "there is nothing newer"


@pytest.mark.parametrize("field", ["depends", "pre_depends"])
def test_what_a_new_version_needs_newer_is_named(
    place: Place, newer: Callable[..., None], field: str
) -> None:
    newer(top={field: "low (>= 2)"}, low={}, other={})
    section, held = place.move("top", "other")
    assert held == [Held(name="top", version="2", others=("low",), lost=())]
    versions = {one.name: one.version for one in section.packages}
    assert (versions["top"], versions["low"], versions["other"]) == ("1", "1", "2"), "the other one moved"
    assert place.moved("top", "low") == {"top": "2", "low": "2"}


def test_binaries_of_one_source_move_together(place: Place, newer: Callable[..., None]) -> None:
    newer(tool={"depends": "libtool (= 2)"}, libtool={})
    assert place.move("tool")[1] == [Held(name="tool", version="2", others=("libtool",), lost=())]
    assert place.move("libtool")[1] == [Held(name="libtool", version="2", others=("tool",), lost=())]
    assert place.moved("tool", "libtool") == {"tool": "2", "libtool": "2"}


def test_what_a_new_version_breaks_moves_with_it_or_keeps_it(
    place: Place, newer: Callable[..., None]
) -> None:
    newer(top={"depends": "low", "breaks": "other (<< 2)"}, other={}, low={"conflicts": "user"})
    assert place.move("top")[1] == [Held(name="top", version="2", others=("other",), lost=())]
    assert place.move("low")[1] == [Held(name="low", version="2", others=(), lost=("user",))]


def test_what_nobody_named_may_come_but_not_change(place: Place, newer: Callable[..., None]) -> None:
    newer(top={"depends": "low, fresh"}, fresh={"version": "7"}, low={})
    assert place.moved("top") == {"top": "2", "fresh": "7"}


def test_a_newer_kernel_is_a_package_of_another_name_and_the_old_one_goes(
    place: Place, newer: Callable[..., None]
) -> None:
    kernel = "linux-image-6.12.2-cloud-amd64"
    newer(**{kernel: {"version": "6.12.2-1"}, KERNEL: {"depends": kernel}})
    assert place.moved(KERNEL) == {
        KERNEL: "2",
        kernel: "6.12.2-1",
        "linux-image-6.12.1-cloud-amd64": "",
    }


def test_what_the_machine_promises_follows_its_c_library(place: Place, newer: Callable[..., None]) -> None:
    newer(libc6={"version": "2.42-1", "essential": "yes"})
    section, held = place.move("libc6")
    assert (section.glibc, held) == ("2.42", [])
    newer(libc6={"version": "3.0-1", "essential": "yes"})
    assert place.move("libc6")[1] == [Held(name="libc6", version="3.0-1", others=(), lost=("user",))]


def test_the_command_moves_it_and_tells_what_stays(
    place: Place, newer: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    newer(top={"depends": "low (>= 2)"}, low={}, other={}, libc6={"version": "2.42-1", "essential": "yes"})
    assert cli.main(["lock", str(place.path), "--update", "top", "other", "libc6"]) == 0
    said = capsys.readouterr().err
    assert "other 1 → 2" in said
    assert "top stays: 2 wants others to move with it; to be named too: low" in said
    made = lock.read(lock.path_for(place.path))
    assert made.debian is not None and made.debian.glibc == "2.42"
    assert "__glibc=2.42=0" in made.conda.virtual_packages
    versions = {one.name: one.version for one in made.debian.packages}
    assert (versions["top"], versions["low"], versions["other"]) == ("1", "1", "2")
    assert made.digest == place.locked.digest
    place.archive.add("tool", "2", depends="libtool (= 1)")
    place.archive.publish()
    assert cli.main(["lock", str(place.path), "--update", "tool"]) == 0
    assert "tool is Debian's too, which stays: deb:tool would move that" in capsys.readouterr().err
    assert lock.read(lock.path_for(place.path)) == made
    assert cli.main(["lock", str(place.path), "--update", "deb:tool"]) == 0
    assert "tool 1 → 2" in capsys.readouterr().err


def test_a_mirror_over_https_is_trusted_by_the_authority_that_all_else_trusts(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in network.CERTIFICATE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    ca, certificate = private_server.authority(tmp_path)
    with private_server.serving(place.archive.root.parent, certificate) as server:
        mirror = f"{server.url}/debian"
        with pytest.raises(BuildError, match=r"(?i)certificate"):
            Apt("trixie", state=tmp_path / "unknown", mirror=mirror).update()
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        known = Apt("trixie", state=tmp_path / "known", mirror=mirror)
        known.update()
        found = known.resolve(["top"])
        assert {"top", "low", "libc6", "apt"} == {one.name.partition("_")[0] for one in found}
        wanted = [Download(name=one.name, url=one.url, sha256=one.sha256, size=one.size) for one in found]
        sources.fetch(wanted, sources.Cache(tmp_path / "blobs"), offline=False, progress=lambda _: None)


def test_what_is_not_there_is_refused(place: Place) -> None:
    with pytest.raises(
        UsageError, match="othr is in none of its environments, and not in its system"
    ) as caught:
        locking.update(place.path, ["othr"])
    assert caught.value.hint == "perhaps other"
    with pytest.raises(UsageError, match="lows is not in its system"):
        locking.update(place.path, ["deb:lows"])

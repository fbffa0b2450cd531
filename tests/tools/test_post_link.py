"""Post-link scripts are named when a definition is locked, and run in the machine's tree, or refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import packages
import pytest
import yaml
from debian_made import Debian
from packages import PLACEHOLDER, File, Package

from conda_appliance import definition, package, payload, prefix_check, relocation, resolve, sources
from conda_appliance.errors import BuildError, UsageError
from conda_appliance.layers import Layer, Store
from conda_appliance.lock import Lock

EPOCH = 1_700_000_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts the machine's tree")

#: What conda promises to a script: its package, the final path, the environment's programs.
GREET = """
set -eu
echo "$PKG_NAME $PKG_VERSION $PKG_BUILDNUM in $PREFIX, $(helper)" >"$PREFIX/etc/greeting"
ln -s greeting "$PREFIX/etc/link"
mkdir -p "$PREFIX/share/greeter/deep" && echo made >"$PREFIX/share/greeter/deep/file"
echo changed >>"$PREFIX/etc/helper.conf"
rm "$PREFIX/share/helper-only-for-linking"
rm -r "$PREFIX/share/replaced" && mkdir "$PREFIX/share/replaced" && echo new >"$PREFIX/share/replaced/new"
echo "Say hello to get greeted" >>"$PREFIX/.messages.txt"
"""


def scripted(name: str, script: str, *, depends: tuple[str, ...] = (), kind: str = "post-link") -> Package:
    files = {f"bin/.{name}-{kind}.sh": File(content=script, executable=True)}
    return Package(name=name, version="1.5", depends=depends, files=files)


class Place:
    """A project with a channel of its own, on the Debian of all tests."""

    def __init__(self, folder: Path, debian: Debian) -> None:
        self.folder, self.debian = folder, debian
        self.cache = sources.Cache(folder / "cache")
        self.store = self.new_store("layers")

    def new_store(self, name: str) -> Store:
        store = Store(self.folder / name)
        store.root.mkdir()
        (store.root / "system").symlink_to(self.debian.store.root / "system")
        return store

    def lock(self, *made: Package, post_link: str = "", spec: str = "") -> Lock:
        """Lock a definition that asks for ``spec``, or the first of the packages made."""
        for one in made:
            one.write(self.folder / "channel")
        packages.index(self.folder / "channel")
        value = {
            "name": "demo",
            "version": "1",
            "base": {"debian": "trixie", "packages": ["netcat-openbsd"]},
            "conda": {
                "channels": ["./channel"],
                "environments": {"base": {"dependencies": [spec or made[0].name]}},
                **({"post_link": post_link} if post_link else {}),
            },
        }
        path = self.folder / "demo.yaml"
        path.write_text(yaml.safe_dump(value))
        self.image = definition.load_image(path)
        return resolve.resolve(self.image, path, self.cache, lambda _: None, system=self.debian.section)

    def environment(self, locked: Lock, store: Store | None = None) -> Layer:
        section = locked.conda.environments["base"]
        files = {one.sha256: self.cache.blob(one.sha256) for one in section.packages}
        return payload.environment(
            locked,
            {**self.debian.files, **files},
            store=store or self.store,
            epoch=EPOCH,
            base=self.image.base,
            subject="demo",
        )

    def built(self, script: str) -> Path:
        """The environment of one package with this script."""
        return self.environment(self.lock(scripted("eager", script), post_link="build")).path / "opt/conda"


@pytest.fixture
def place(tmp_path: Path, debian: Debian, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, debian)
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    yield made
    made.store.release()


HELPER = Package(
    name="helper",
    files={
        "bin/helper": File(content=f"#!/bin/sh\necho helped by {PLACEHOLDER}\n", executable=True),
        "etc/helper.conf": File(content="as shipped\n"),
        "share/helper-only-for-linking": File(content="x"),
        "share/replaced/old": File(content="x"),
        "share/kept": File(content="x"),
    },
)
GREETER = scripted("greeter", GREET, depends=("helper",))


# --- locking ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".conda", ".tar.bz2"])
def test_only_its_archive_tells_that_a_package_has_a_script(tmp_path: Path, suffix: str) -> None:
    found = {
        kind: package.link_scripts(path, path.name)
        for kind in ("post-link", "pre-link", "pre-unlink")
        for path in [scripted(kind, "", kind=kind).write(tmp_path, suffix)]
    }
    assert found == {"post-link": {"post-link"}, "pre-link": {"pre-link"}, "pre-unlink": frozenset()}
    innocent = Package(name="innocent", files={"share/bin/.x-post-link.sh": File(content="")})
    assert package.link_scripts(innocent.write(tmp_path, suffix), f"innocent-1.0-0{suffix}") == frozenset()


def test_locking_refuses_scripts_by_the_names_of_their_packages(place: Place) -> None:
    with pytest.raises(UsageError, match=r"environment base: .*\(post-link\): greeter$") as caught:
        place.lock(GREETER, HELPER)
    assert "conda.post_link: build" in caught.value.hint


def test_the_lock_names_them_and_says_where_they_run(place: Place) -> None:
    locked = place.lock(GREETER, HELPER, post_link="build")
    assert locked.conda.post_link == "build"
    assert locked.conda.environments["base"].post_link == ("greeter",)
    assert "  post_link: build\n" in locked.text and "      post_link:\n      - greeter\n" in locked.text


def test_a_lock_without_scripts_says_nothing_of_them(place: Place) -> None:
    assert "post_link" not in place.lock(HELPER, post_link="build").text


def test_a_script_that_runs_before_linking_is_always_refused(place: Place) -> None:
    with pytest.raises(UsageError, match=r"early would run a script before being linked \(pre-link\)"):
        place.lock(scripted("early", "true", kind="pre-link"), post_link="build")


def test_a_lock_that_knows_nothing_of_a_script_builds_nothing(place: Place) -> None:
    locked = place.lock(GREETER, HELPER, post_link="build")
    section = locked.conda.environments["base"].model_copy(update={"post_link": None})
    old = locked.model_copy(
        update={"conda": locked.conda.model_copy(update={"environments": {"base": section}})}
    )
    with pytest.raises(BuildError, match="which the lock does not say: greeter"):
        place.environment(old)


# --- building ---------------------------------------------------------------------------------------


@as_root
def test_a_script_runs_where_the_environment_will_live(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    made = place.environment(place.lock(GREETER, HELPER, post_link="build")).path / "opt/conda"
    assert (made / "etc/greeting").read_text() == "greeter 1.5 0 in /opt/conda, helped by /opt/conda\n"
    assert (made / "etc/link").readlink() == Path("greeting")
    assert (made / "share/greeter/deep/file").read_text() == "made\n"
    assert "greeter: Say hello to get greeted" in capsys.readouterr().err
    assert not (made / ".messages.txt").exists()


@as_root
def test_what_a_script_did_is_recorded_with_its_package_and_the_owners_of_files(place: Place) -> None:
    made = place.environment(place.lock(GREETER, HELPER, post_link="build")).path / "opt/conda"
    assert prefix_check.check(made) == []
    greeter, helper = (
        set(json.loads((made / "conda-meta" / name).read_text())["files"])
        for name in ("greeter-1.5-0.json", "helper-1.0-0.json")
    )
    assert greeter == {
        "bin/.greeter-post-link.sh",
        "etc/greeting",
        "etc/link",
        "share/greeter/deep/file",
        "share/replaced/new",
    }
    assert helper == {"bin/helper", "etc/helper.conf", "share/kept"}
    assert (made / "etc/helper.conf").read_text() == "as shipped\nchanged\n"
    (made / "etc/greeting").write_text("other")
    assert [line.partition(":")[0] for line in prefix_check.check(made)] == ["changed"]


@as_root
def test_the_same_lock_gives_the_same_bytes_and_the_second_time_from_the_cache(place: Place) -> None:
    locked = place.lock(GREETER, HELPER, post_link="build")
    first = place.environment(locked)
    other = place.new_store("other")
    assert place.environment(locked, other).sha256 == first.sha256
    assert not place.environment(locked).made
    other.release()


@as_root
def test_an_environment_after_one_with_scripts_has_nothing_of_them(place: Place) -> None:
    place.environment(place.lock(GREETER, HELPER, post_link="build"))
    plain = place.environment(place.lock(GREETER, HELPER, post_link="build", spec="helper")).path
    assert (plain / "opt/conda/etc/helper.conf").read_text() == "as shipped\n"
    assert not (plain / "opt/conda/etc/greeting").exists()


@as_root
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo went wrong >&2; exit 3", r"eager-1\.5-0\.conda failed \(status 3\):\nwent wrong"),
        ("touch /etc/left", r"writes outside its environment: .*/etc/left"),
        ("rm /usr/bin/nc.openbsd", r"writes outside its environment: .*/usr/bin/nc\.openbsd"),
        ("touch $PREFIX/conda-meta/mine.txt", r"extra: conda-meta/mine\.txt"),
        ("mkfifo $PREFIX/pipe", "made pipe, which is neither a file"),
    ],
)
def test_a_script_that_fails_or_would_be_lost_fails_the_build(
    place: Place, script: str, message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        place.built(script)
    assert not list(place.store.root.glob("environment/*/tree")), "no half-made environment stays"


@as_root
@pytest.mark.parametrize(
    ("script", "seen"),
    [
        ("grep -c : /proc/net/dev", "1\n"),  # the loopback device alone
        ("mount -t tmpfs none /mnt 2>/dev/null || echo refused", "refused\n"),
        ("mknod /tmp/disk b 8 0 2>/dev/null || echo refused", "refused\n"),
        ("(echo x >/proc/sys/kernel/hostname) 2>/dev/null || echo refused", "refused\n"),
        ("echo $HOME $USER $SOURCE_DATE_EPOCH; pwd", f"/tmp {EPOCH}\n/opt/conda\n"),
        (". /etc/os-release; echo $VERSION_CODENAME", "trixie\n"),
    ],
)
def test_a_script_sees_the_machine_and_nothing_of_this_host(place: Place, script: str, seen: str) -> None:
    made = place.built(f"({script}) >$PREFIX/seen")
    assert (made / "seen").read_text() == seen


@as_root
def test_an_environment_whose_scripts_ran_stays_where_it_is(place: Place) -> None:
    locked = place.lock(GREETER, HELPER, post_link="build")
    tree = place.environment(locked).path / "opt/conda"
    found = relocation.find(tree, "/opt/conda", locked, {})
    assert (found.lines, found.longest) == ((), len("/opt/conda"))
    assert "post-link scripts ran for it" in found.fixed

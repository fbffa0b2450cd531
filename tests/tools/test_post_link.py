"""Post-link scripts are named when a definition is locked, and run in the machine's tree, or refused."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import packages
import pytest
import yaml
from debian_made import Debian
from packages import PLACEHOLDER, File, Package

from conda_appliance import (
    ansible,
    bootstrap,
    definition,
    first_boot,
    package,
    payload,
    playbook,
    prefix_check,
    process,
    relocation,
    render,
    resolve,
    resources,
    sources,
)
from conda_appliance.errors import BuildError, CommandFailed, UsageError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
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
    assert "conda.post_link: build, or first-boot" in caught.value.hint


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
def test_scripts_run_in_the_system_that_the_machine_gets(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in another one with what its `slim` leaves out, which would be made for them alone."""
    asked = []

    def system(*_args: object, without: tuple[str, ...], **_more: object) -> Layer:
        asked.append(without)
        return place.debian.system

    monkeypatch.setattr(bootstrap, "system", system)
    locked = place.lock(GREETER, HELPER, post_link="build")
    files = {one.sha256: place.cache.blob(one.sha256) for one in locked.conda.environments["base"].packages}
    payload.environment(
        locked,
        {**place.debian.files, **files},
        store=place.store,
        epoch=EPOCH,
        base=place.image.base,
        without=("locales", "docs"),
    )
    assert asked == [("locales", "docs")]


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


# --- on the machine's first boot --------------------------------------------------------------------

POST_LINK = Path(__file__).parents[2] / "playbooks/roles/conda/files/post-link.sh"


class Booted:
    """An environment at its own path of this host, and what its machine's unit runs for it."""

    def __init__(self, folder: Path, *made: Package) -> None:
        self.prefix, self.state = folder / "conda", folder / "state"
        self.state.mkdir()
        self.names = [one.name for one in made if one.name != "helper"]
        for one in made:
            for name, file in one.files.items():
                path = self.prefix / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(str(file.content).replace(PLACEHOLDER, str(self.prefix)))
                path.chmod(0o755 if file.executable else 0o644)
            self.write_record(one)

    def write_record(self, one: Package) -> None:
        entries = []
        for name in one.files:
            digest = resources.sha256_of(self.prefix / name)
            entries.append({"_path": name, "path_type": "hardlink", "sha256": digest})
        value = {
            "name": one.name,
            "version": one.version,
            "build_number": 7,
            "files": [*one.files],
            "paths_data": {"paths": entries},
        }
        path = self.prefix / f"conda-meta/{one.name}-{one.version}-0.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))

    def run(self) -> str:
        words = ["sh", POST_LINK, self.prefix, self.prefix, *self.names]
        env = {"STATE_DIRECTORY": str(self.state), "RECORDER": first_boot.__file__}
        return process.run(words, env=env).stdout


def test_on_the_machine_a_script_runs_once_and_is_recorded(tmp_path: Path) -> None:
    machine = Booted(tmp_path, GREETER, HELPER)
    assert prefix_check.check(machine.prefix) == []
    assert machine.run() == "Say hello to get greeted\n"
    home = machine.prefix
    assert (home / "etc/greeting").read_text() == f"greeter 1.5 7 in {home}, helped by {home}\n"
    assert prefix_check.check(home) == []
    files = json.loads((home / "conda-meta/greeter-1.5-0.json").read_text())["files"]
    assert {"etc/greeting", "etc/link", "share/replaced/new"} <= {*files}
    assert machine.run() == "", "it does not run again"
    stamp = f"{str(home).replace('/', '-')}.greeter"
    assert {path.name for path in machine.state.iterdir()} == {stamp, "inventory"}


def test_on_the_machine_a_script_that_fails_is_named_and_tried_again(tmp_path: Path) -> None:
    first = scripted("first", 'echo once >>"$PREFIX/count"')
    second = scripted("second", 'test -e "$PREFIX/ready" || { echo not ready >&2; exit 3; }')
    machine = Booted(tmp_path, first, second)
    with pytest.raises(CommandFailed, match=r"not ready\nthe post-link script of second failed \(status 3\)"):
        machine.run()
    (machine.prefix / "ready").touch()
    machine.run()
    assert (machine.prefix / "count").read_text() == "once\n", "what succeeded is not run again"


def test_what_a_try_that_failed_left_is_recorded_when_the_script_succeeds(tmp_path: Path) -> None:
    """So `conda remove` takes it along, and the machine verifies as sound."""
    halfway = """
        [ -e "$PREFIX/half" ] || { mkdir "$PREFIX/half"; echo 1 >"$PREFIX/half/first"; exit 3; }
        echo 2 >"$PREFIX/half/second"
    """
    machine = Booted(tmp_path, scripted("halfway", halfway))
    with pytest.raises(CommandFailed, match="halfway failed"):
        machine.run()
    machine.run()
    files = json.loads((machine.prefix / "conda-meta/halfway-1.5-0.json").read_text())["files"]
    assert {"half/first", "half/second"} <= {*files}
    assert prefix_check.check(machine.prefix) == []
    listed = [line.partition("//")[0] for line in (machine.state / "inventory").read_text().splitlines()]
    assert {f"{machine.prefix}/half", f"{machine.prefix}/half/first"} <= {*listed}


def test_a_package_that_was_removed_asks_for_nothing(tmp_path: Path) -> None:
    machine = Booted(tmp_path, scripted("gone", "exit 1"))
    (machine.prefix / "bin/.gone-post-link.sh").unlink()
    assert machine.run() == ""


@as_root
def test_for_a_first_boot_nothing_runs_when_it_is_built(place: Place) -> None:
    locked = place.lock(GREETER, HELPER, post_link="first-boot")
    assert locked.conda.post_link == "first-boot"
    made = place.environment(locked).path / "opt/conda"
    assert (made / "bin/.greeter-post-link.sh").exists() and not (made / "etc/greeting").exists()
    with pytest.raises(
        UsageError, match=r"a payload disc has no first boot, on which .* of greeter would run"
    ):
        payload.require_finished(locked, "a payload disc")


@as_root
def test_the_machine_is_told_to_run_them_before_its_services(place: Place) -> None:
    """What the role writes, by Ansible itself; the unit, by systemd's own reader."""
    locked = place.lock(GREETER, HELPER, post_link="first-boot")
    image = place.image.model_copy(
        update={"services": (definition.Service(name="web", command="helper", port=80),)}
    )
    values = playbook.variables(image, locked, place.folder)
    role = POST_LINK.parents[1]
    task = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars_files": ["vars.yml"],
        "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
        "tasks": [
            {
                "ansible.builtin.copy": {
                    "content": "{{ lookup('ansible.builtin.template', 'post-link.json.j2') }}",
                    "dest": str(place.folder / "files.json"),
                }
            }
        ],
    }
    (place.folder / "play").mkdir()
    shutil.copytree(role / "templates", place.folder / "play/templates")
    shutil.copytree(role / "files", place.folder / "play/files")
    (place.folder / "play/vars.yml").write_text(render.ansible_variables(values))
    (place.folder / "play/site.yml").write_text(yaml.safe_dump([task]))
    process.run(
        [ansible.playbook_program(), "-i", "localhost,", place.folder / "play/site.yml"],
        env={"ANSIBLE_LOCAL_TEMP": str(place.folder), "ANSIBLE_HOME": str(place.folder / "ansible")},
    )
    files = {one["path"]: one for one in json.loads((place.folder / "files.json").read_text())}
    assert files["/usr/lib/conda-appliance/post-link"]["mode"] == "0755"
    assert files["/usr/lib/conda-appliance/post_link.py"]["content"] == Path(first_boot.__file__).read_text()
    unit = files["/etc/systemd/system/conda-appliance-post-link.service"]["content"]
    assert "ExecStart=/usr/lib/conda-appliance/post-link /opt/conda /opt/conda greeter\n" in unit
    assert "PrivateNetwork=yes" in unit and "ReadWritePaths=/opt/conda\n" in unit
    dropin = files["/etc/systemd/system/web.service.d/10-post-link.conf"]["content"]
    assert "Requires=conda-appliance-post-link.service\nAfter=conda-appliance-post-link.service\n" in dropin
    path = place.folder / "conda-appliance-post-link.service"
    path.write_text(unit.replace("/usr/lib/conda-appliance/post-link ", "/bin/true "))
    said = process.run(["systemd-analyze", "verify", "--man=no", path])
    assert path.name not in said.stdout + said.stderr

"""The rootfs builder runs a playbook in an unpacked Debian: what it writes is a layer, and this host stays as it was.

The playbooks are small ones of a project's own; the shipped one runs in tests/boot.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import packages
import pytest
import yaml
from debian_made import Debian
from tests.conftest import Folders

from conda_appliance import conda, log, process, resources, runs, sparse, squashfs, trees
from conda_appliance.builders import DiskImage, Job, rootfs, rootfs_box, rootfs_plain
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.disk import ROOT_START, SECTOR
from conda_appliance.errors import BuildError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

EPOCH = 1_700_000_000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="looks at mounts and owners as root")


@pytest.fixture(scope="module")
def environment(folders: Folders) -> EnvironmentSection:
    """An environment of one package, in a channel of its own."""
    channel = packages.small_channel(folders.mktemp("channels") / "small")
    found, _ = conda.solve(
        ["prefixed"], [conda.Channel(name="./small", url=channel.as_uri())], contract=Contract(glibc="2.41")
    )
    return EnvironmentSection(prefix="/opt/conda", specs=("prefixed",), packages=found)


class Project:
    """A project with a playbook of its own, built into a store of its own over the Debian of all tests."""

    def __init__(self, folder: Path, debian: Debian, environment: EnvironmentSection) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.store = Store(folder / "layers: a, b")
        self.store.root.mkdir()
        (self.store.root / "system").symlink_to(debian.store.root / "system")
        image = {
            "name": "box",
            "version": "1",
            "base": debian.image.base.model_dump(),
            "conda": {"channels": ["./small"], "environments": {"base": {"dependencies": ["prefixed"]}}},
            "disk": {"size": "1GiB"},
            "builder": "rootfs",
        }
        self.job = Job(
            image=ImageDefinition.model_validate(image),
            lock=Lock(
                name="box",
                digest="0" * 64,
                tools={},
                debian=debian.section,
                conda=CondaSection(virtual_packages=(), environments={"base": environment}),
            ),
            folder=folder,
            project=folder,
            files={
                **debian.files,
                **{one.sha256: Path(one.url.removeprefix("file://")) for one in environment.packages},
            },
            store=self.store,
            epoch=EPOCH,
            identity="c0ffee",
        )

    def build(self, *tasks: dict[str, Any]) -> DiskImage:
        """Run a playbook of these tasks, and write the disk."""
        play = {"name": "Test", "hosts": "all", "gather_facts": False, "tasks": list(tasks)}
        (self.folder / "playbooks").mkdir(exist_ok=True)
        (self.folder / "playbooks/site.yml").write_text(yaml.safe_dump([play]))
        resources.remove(self.folder / "build")
        tree = rootfs.render(self.job, self.folder / "build")
        return rootfs.build(self.job, tree, logs=self.logs)

    def upper(self) -> Path:
        """What the playbook changed."""
        (found,) = (self.store.root / "provisioned").glob("*/tree")
        return found


@pytest.fixture
def project(debian: Debian, environment: EnvironmentSection, tmp_path: Path) -> Project:
    return Project(tmp_path, debian, environment)


def copy(path: str, content: str, **more: str) -> dict[str, Any]:
    return {"name": f"Write {path}", "ansible.builtin.copy": {"dest": path, "content": content, **more}}


def shell(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "ansible.builtin.shell": text, **more}


SURROUNDINGS = """
hostname
whoami
cat /proc/1/comm
ls /sys | wc -l
ls /proc/self/fd >/dev/null && echo x >/dev/null && head -c 1 /dev/zero | wc -c
ls /run/payload
tail -n 1 /etc/passwd >/run/left; tail -n 1 /etc/passwd >/tmp/left
ls -d /opt/conda/conda-meta
"""


class Built:
    def __init__(self, project: Project, debian: Debian) -> None:
        self.project = project
        self.system = debian.system
        self.fetched = project.folder / "fetched"
        self.disk = project.build(
            copy("/etc/written", "by a task\n", mode="0640"),
            shell("Give it away", "chown 1234:5678 /etc/written"),
            {"name": "Remove a file", "ansible.builtin.file": {"path": "/etc/motd", "state": "absent"}},
            shell("Replace a folder", "rm -r /etc/skel; mkdir /etc/skel; echo new >/etc/skel/new"),
            shell("Look around", f"({SURROUNDINGS}) >/etc/seen", become=True),
            shell("Change the environment", "echo more >>/opt/conda/etc/prefixed.conf"),
            {
                "name": "Bring a file here",
                "ansible.builtin.fetch": {
                    "src": "/etc/debian_version",
                    "dest": str(self.fetched),
                    "flat": True,
                },
            },
        )

        self.raw = whole(self.disk, project.folder / "whole.raw")

    def debugfs(self, request: str) -> str:
        place = f"{self.raw}?offset={ROOT_START * SECTOR}"
        return process.run(["debugfs", "-R", request, place]).stdout

    def read(self, path: str) -> str:
        return self.debugfs(f"cat {path}")

    def names(self, path: str) -> set[str]:
        lines = self.debugfs(f"ls -p {path}").splitlines()
        return {line.split("/")[5] for line in lines if line.count("/") >= 6} - {".", ".."}


@pytest.fixture(scope="module")
def built(debian: Debian, environment: EnvironmentSection, folders: Folders) -> Built:
    """A disk on which a playbook did a bit of everything."""
    return Built(Project(folders.mktemp("project"), debian, environment), debian)


# --- where it lands ---------------------------------------------------------------------------------


def test_what_a_task_writes_lands_in_the_layer_and_nothing_else_does(built: Built) -> None:
    found = trees.listing(built.project.upper())
    files = {path for path, about in found.items() if not about.startswith("folder")}
    assert files == {"etc/written", "etc/motd", "etc/skel/new", "etc/seen", "opt/conda/etc/prefixed.conf"}
    assert found["etc/written"].startswith("file 0640 1234:5678 10 ")
    assert found["etc/motd"].startswith("device 0000 0:0 0,0"), "overlayfs' mark of what is deleted"
    assert "overlay.opaque=79" in found["etc/skel"], "it hides what lies below"


def test_the_layer_says_nothing_of_when_and_where_it_was_made(built: Built) -> None:
    for path, about in trees.listing(built.project.upper()).items():
        assert about.endswith(f" mtime:{EPOCH}"), path
        assert not re.search(r"overlay\.(origin|impure|uuid|nlink)", about), path


def test_nothing_of_it_is_on_this_host(built: Built) -> None:
    for path in (
        "/etc/written",
        "/etc/seen",
        "/etc/skel/new",
        "/opt/conda/etc/prefixed.conf",
        "/run/payload",
    ):
        assert not Path(path).exists()
    assert stat.S_ISDIR(Path("/etc/skel").stat().st_mode)
    for place in ("/run/left", "/tmp/left"):
        assert not Path(place).exists()
    assert mounts(built.project) == []


def test_the_layers_below_stay_as_they_were(built: Built) -> None:
    assert trees.listing(built.system.path) == built.system.listing()
    (linked,) = (built.project.store.root / "environment").glob("*/tree")
    assert (linked / "opt/conda/etc/prefixed.conf").read_text() == "home = /opt/conda/share\n"


def test_tasks_find_a_root_file_system_with_all_that_programs_expect(built: Built) -> None:
    seen = (built.project.upper() / "etc/seen").read_text().splitlines()
    host_name, user, first, in_sys, zeroes, payload, meta = seen
    assert (host_name, user) == ("localhost", "root")
    assert first != "systemd", "processes of its own"
    assert in_sys == "0", "nothing of this host's devices"
    assert zeroes == "1"
    assert payload == "appliance.lock"
    assert meta == "/opt/conda/conda-meta"


def test_a_file_can_be_brought_out(built: Built) -> None:
    assert built.fetched.read_text() == (built.system.path / "etc/debian_version").read_text()


def test_the_disk_holds_it_all(built: Built) -> None:
    assert built.read("/etc/written") == "by a task\n"
    assert re.search(r"User: +1234 +Group: +5678", built.debugfs("stat /etc/written"))
    assert "motd" not in built.names("/etc")
    assert built.names("/etc/skel") == {"new"}
    assert built.read("/opt/conda/etc/prefixed.conf") == "home = /opt/conda/share\nmore\n"
    assert built.read("/etc/debian_version") == built.fetched.read_text()
    assert {"written", "seen", "passwd"} <= built.names("/etc")
    process.run(["e2fsck", "-fn", f"{built.raw}?offset={ROOT_START * SECTOR}"])


def test_the_disk_says_which_build_it_is(built: Built) -> None:
    assert '"build": "c0ffee"' in built.read("/etc/conda-appliance/appliance.json")
    assert built.read("/etc/conda-appliance/appliance.lock") == built.project.job.lock.text


def test_the_disk_says_what_it_should_hold_file_by_file(built: Built) -> None:
    job = built.project.job
    (tree,) = (built.project.store.root / "environment").glob("*/tree")
    linked = Layer(kind="environment", key="", place=tree, sha256="", made=False)
    said = built.read("/etc/conda-appliance/inventory")
    assert said == job.inventory(linked)
    before = hashlib.sha256(b"home = /opt/conda/share\n").hexdigest()
    assert f"\n/opt/conda/etc/prefixed.conf//file 644 0:0 {before}\n" in said, "not as a task changed it"


def test_what_programs_leave_while_they_run_is_on_no_disk(built: Built) -> None:
    for folder in ("/run", "/tmp", "/proc", "/dev/shm"):
        assert built.names(folder) <= {"lock", "mount"}, folder  # folders of a Debian package


def test_tasks_see_nothing_of_who_builds_where(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PATH", f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    )  # as users have it
    monkeypatch.setenv("HOME", str(project.folder))
    monkeypatch.setenv("A_SECRET", "of this host")
    project.build(shell("Look", "command -v useradd; env >/etc/seen"))
    seen = (project.upper() / "etc/seen").read_text()
    assert str(project.folder) not in seen
    assert "A_SECRET" not in seen


def test_an_environment_with_more_than_modes_is_packed_though_nothing_is_to_be_compressed(
    project: Project, tmp_path: Path
) -> None:
    """As after setcap(8): the bytes that are put together while they are read know files, folders and links."""
    about = project.job.image.model_dump(by_alias=True)
    about["disk"] = {"size": "2GiB", "layout": "split", "slot": "64MiB", "compression": "none"}
    project.job = replace(project.job, image=ImageDefinition.model_validate(about))
    mark = "import os; os.setxattr('/opt/conda/etc/prefixed.conf', 'user.origin', b'a task')"
    plain = project.build(copy("/etc/written", "one\n"))
    assert isinstance(plain.pieces[1].source, squashfs.Image)
    plain.release()
    made = project.build(shell("Mark a file", f'python3 -c "{mark}"'))
    piece = made.pieces[1]
    assert isinstance(piece.source, Path), "a file of mksquashfs"
    words = ["unsquashfs", "-quiet", "-no-progress", "-dest", tmp_path / "unpacked", "-offset", piece.at]
    process.run([*map(str, words), str(whole(made, tmp_path / "whole.raw"))])
    assert os.getxattr(tmp_path / "unpacked/etc/prefixed.conf", "user.origin") == b"a task"
    made.release()


# --- once -------------------------------------------------------------------------------------------


def test_the_same_playbook_is_not_run_twice_and_another_one_is(project: Project) -> None:
    first = project.build(copy("/etc/written", "one\n"))
    said = (project.logs / "playbook.log").read_text()
    again = project.build(copy("/etc/written", "one\n"))
    assert again.key == first.key
    assert digest_of(again) == digest_of(first)
    assert (project.logs / "playbook.log").read_text() == said
    other = project.build(copy("/etc/written", "two\n"))
    assert other.key != first.key
    assert other.inputs["system"] == first.inputs["system"]
    assert other.inputs["environment"] == first.inputs["environment"]
    assert other.inputs["provisioned"] != first.inputs["provisioned"]


def test_it_is_the_same_disk_where_there_is_no_memory_for_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = copy("/etc/written", "one\n")
    monkeypatch.setattr(rootfs_plain, "LARGE", 1)
    first = project.build(task)
    assert [piece.over for piece in first.pieces] == [False, True]
    wanted = digest_of(first)
    first.release()
    for name in ("memory_file", "keeps_holes"):
        owner = resources if name == "memory_file" else sparse
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, lambda _about: None)
            made = project.build(task)
            assert [piece.over for piece in made.pieces] == [False], "a file of its own"
            assert made.path.is_relative_to(project.folder)
            assert digest_of(made) == wanted
            made.release()


def test_what_large_packages_bring_is_written_before_the_rest_and_once(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs_plain, "LARGE", 1)
    first = whole(project.build(copy("/etc/written", "one\n")), project.folder / "first.raw")
    (filled,) = (project.store.root / "filled").iterdir()
    place = f"?offset={ROOT_START * SECTOR}"

    def names(raw: Path, folder: str) -> str:
        return process.run(["debugfs", "-R", f"ls -p {folder}", f"{raw}{place}"]).stdout

    large = filled / "tree/disk.raw"
    assert "prefixed.conf" in names(large, "/opt/conda/etc")
    assert "prefixed" not in names(large, "/opt/conda/conda-meta"), (
        "its record changes with what is asked for"
    )
    assert "appliance.json" not in names(large, "/etc/conda-appliance"), (
        "what names the build is no package's"
    )
    assert "prefixed.conf" in names(first, "/opt/conda/etc")
    assert "appliance.json" in names(first, "/etc/conda-appliance")
    process.run(["e2fsck", "-fn", f"{first}{place}"])
    before = filled.stat().st_mtime_ns
    project.job = replace(project.job, identity="c0ffee2")
    other = project.build(copy("/etc/written", "one\n"))
    assert (
        '"build": "c0ffee2"'
        in process.run(
            [
                *("debugfs", "-R", "cat /etc/conda-appliance/appliance.json"),
                f"{whole(other, project.folder / 'other.raw')}{place}",
            ]
        ).stdout
    )
    assert [one.stat().st_mtime_ns for one in (project.store.root / "filled").iterdir()] == [before]


# --- a Vagrant box ----------------------------------------------------------------------------------


def test_a_box_has_vagrants_user_and_the_machine_itself_has_not(project: Project) -> None:
    """The same each time, and on a disk of its own."""
    machine = project.build(copy("/etc/written", "x\n"))
    before = digest_of(machine)

    def box() -> DiskImage:
        assert machine.boxed is not None
        with log.step("Make a box") as step:
            return machine.boxed.make(step)

    def look(disk: DiskImage, request: str) -> str:
        raw = whole(disk, project.folder / "looked-at.raw")
        return process.run(["debugfs", "-R", request, f"{raw}?offset={ROOT_START * SECTOR}"]).stdout

    first = box()
    assert "vagrant:x:1000:1000:Vagrant:/home/vagrant:/bin/bash" in look(first, "cat /etc/passwd").split("\n")
    assert look(first, "cat /etc/shadow").split("\nvagrant:")[1].startswith("!:"), "no password"
    assert look(first, "cat /etc/sudoers.d/vagrant") == "vagrant ALL=(ALL:ALL) NOPASSWD: ALL\n"
    key = resources.find(rootfs_box.KEY).read_text()
    assert look(first, "cat /home/vagrant/.ssh/authorized_keys") == key
    assert len(key.splitlines()) == 1, "the one that every Vagrant takes away at the first `up`"
    for path, mode in ((".ssh", "0700"), (".ssh/authorized_keys", "0600")):
        assert re.search(
            rf"Mode: +{mode}.*User: +1000 +Group: +1000", look(first, f"stat /home/vagrant/{path}"), re.DOTALL
        )
    assert look(first, "cat /etc/written") == "x\n"
    assert "vagrant" not in "".join(
        look(machine, f"cat /etc/{name}") for name in ("passwd", "shadow", "group")
    )
    assert "vagrant" not in look(machine, "ls /home") + look(machine, "ls /etc/sudoers.d")
    assert digest_of(machine) == before
    (layer,) = (project.store.root / "vagrant").glob("*/tree")
    assert {path.split("/")[0] for path in trees.listing(layer)} == {".", "etc", "home"}
    project.store.release()
    resources.remove(project.store.root / "vagrant")
    again = box()
    assert (again.key, digest_of(again)) == (first.key, digest_of(first))


# --- when it fails ----------------------------------------------------------------------------------


def test_a_failing_task_is_named_with_its_words(project: Project) -> None:
    with pytest.raises(BuildError) as caught:
        project.build(
            copy("/etc/written", "before\n"),
            shell("Ask for the moon", "echo the moon is not to be had >&2; exit 7"),
            copy("/etc/never", "after\n"),
        )
    assert "Ansible failed in the task 'Ask for the moon'" in caught.value.message
    assert "the moon is not to be had" in caught.value.message
    assert f"less {project.logs / 'ansible.log'}" in caught.value.hint
    assert "the moon is not to be had" in (project.logs / "ansible.log").read_text()
    assert list((project.store.root / "provisioned").iterdir()) == []
    assert not (project.store.root / "disk").exists()


def test_a_playbook_that_cannot_be_read_is_told_in_ansibles_words(project: Project) -> None:
    with pytest.raises(BuildError, match="no_such_module"):
        project.build({"name": "Nonsense", "no_such_module": {}})


def test_a_host_that_cannot_mount_is_told_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = project.folder / "bin/mount"
    mount.parent.mkdir()
    mount.write_text("#!/bin/sh\necho 'mount: root: wrong fs type, bad option' >&2\nexit 32\n")
    mount.chmod(0o755)
    monkeypatch.setenv("PATH", f"{mount.parent}:{os.environ['PATH']}")
    with pytest.raises(BuildError, match="the root file system cannot be mounted here") as caught:
        project.build(copy("/etc/written", "x\n"))
    assert "wrong fs type" in caught.value.message
    assert "CONDA_APPLIANCE_CACHE" in caught.value.hint
    assert list((project.store.root / "provisioned").iterdir()) == []


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


def mounts(project: Project) -> list[str]:
    """What of a project everybody on this host sees mounted."""
    places = (str(project.folder).replace(" ", "\\040"), str(project.store.root))
    lines = Path("/proc/mounts").read_text().splitlines()
    return [line for line in lines if any(place in line for place in places)]


def mounted_anywhere(folder: Path) -> list[int]:
    """Every process in whose mounts a folder is a part of something."""
    found = []
    for about in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            if str(folder).replace(" ", "\\040") in about.read_text():
                found.append(int(about.parent.name))
        except OSError:
            continue
    return found


def test_a_killed_build_leaves_no_mount_and_no_process_and_the_next_run_clears_its_layer(
    project: Project,
) -> None:
    gate = project.folder / "gate"
    os.mkfifo(gate)
    tasks = (
        copy("/etc/started", "x\n"),
        {"name": "Wait", "ansible.builtin.raw": f"cat '{gate}'", "delegate_to": "localhost"},
        copy("/etc/finished", "x\n"),
    )
    layers = project.store.root / "provisioned"
    run = multiprocessing.get_context("fork").Process(target=project.build, args=tasks)
    run.start()
    try:
        wait_until(
            lambda: bool(list(layers.glob("*.partial/upper/etc/started"))) or not run.is_alive(),
            "the playbook's first task has run",
        )
        assert run.is_alive()
        owner = runs.mark(run.pid)
        assert mounted_anywhere(project.store.root), "the builder mounts below the store"
        assert mounts(project) == [], "only it and its programs see its mounts"
    finally:
        os.kill(run.pid or 0, signal.SIGKILL)
        run.join()
    wait_until(lambda: owner not in runs.marked().values(), "all that it started has ended")
    # A process that ends gives up its memory, by which it is known, before its mounts.
    wait_until(lambda: mounted_anywhere(project.store.root) == [], "its mounts have gone with it")
    assert mounts(project) == []
    assert list(layers.glob("*.partial")), "killed in the middle"
    gate.unlink()
    gate.touch()
    project.build(*tasks)
    assert {path.name for path in (project.upper() / "etc").iterdir()} == {"started", "finished"}
    assert len(list(layers.iterdir())) == 1


def whole(made: DiskImage, to: Path) -> Path:
    """The disk as one file."""
    sparse.write(made.pieces, {to: b""})
    return to


def digest_of(made: DiskImage) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return resources.sha256_of(whole(made, Path(folder) / "disk.raw"))

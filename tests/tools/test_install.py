"""install.sh of a payload disc, run for real on small machines: it installs, upgrades, goes back, moves and leaves."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import packages
import pytest
import small_machine
from packages import PLACEHOLDER, File, Package
from small_machine import Machine
from tests.conftest import Folders

from conda_appliance import conda, linking, lock, payload_disc, prefix_check, process, trees
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) and mounts need root's rights")

EPOCH = 1_700_000_000
SERVICES = {"/etc/systemd/system/demo.service", "/etc/systemd/system/multi-user.target.wants/demo.service"}


def python() -> Package:
    """A stand-in that starts this host's Python, which the small machine has too."""
    real = Path(sys.executable).resolve()
    made = packages.python()
    files = {
        name: File(content=f'#!/bin/sh\nexec {real} "$@"\n', executable=True)
        if "bin/python3" in name
        else file
        for name, file in made.files.items()
    }
    # No program of a stand-in's own can say where it lives: this file does, in both ways.
    files["lib/where.bin"] = File(
        content=b"\0\1PATH=" + f"{PLACEHOLDER}/bin:{PLACEHOLDER}/lib".encode() + b"\0\2"
    )
    return replace(made, files=files)


class Discs:
    """Payload discs of versions of one small appliance, each made once and unpacked with xorriso."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        channel = packages.small_channel(folder / "channel")
        python().write(channel)
        Package(name="newer", files={"etc/newer": File(content=f"{PLACEHOLDER} is newer\n")}).write(channel)
        packages.index(channel)
        self.channel = channel
        (folder / "app").mkdir()

    def lock(self, *specs: str, prefix: str = "/opt/demo") -> Lock:
        environments = {}
        for name, home, wanted in (
            ("base", prefix, specs),
            ("second", f"{prefix}/envs/second", ("prefixed",)),
        ):
            found, virtual = conda.solve(
                wanted,
                [conda.Channel(name="./small", url=self.channel.as_uri())],
                contract=Contract(glibc="2.41"),
            )
            environments[name] = EnvironmentSection(prefix=home, specs=wanted, packages=found)
        conda_section = CondaSection(virtual_packages=virtual, environments=environments)
        return Lock(name="demo", digest="0" * 64, tools={}, conda=conda_section)

    @staticmethod
    def archives(locked: Lock) -> dict[str, Path]:
        return {
            package.sha256: Path(package.url.removeprefix("file://"))
            for section in locked.conda.environments.values()
            for package in section.packages
        }

    def make(
        self, version: str, *specs: str, channel: bool = False, name: str = "demo", service: str = "demo"
    ) -> Path:
        (self.folder / "app/demo.py").write_text(f"VERSION = {version!r}\n")
        definition = ImageDefinition.model_validate(
            {
                "name": name,
                "version": version,
                "summary": "A demonstration",
                "base": {"debian": "trixie"},
                "conda": {
                    "prefix": "/opt/demo",
                    "channels": ["./small"],
                    "environments": {
                        "base": {"dependencies": [*specs]},
                        "second": {"dependencies": ["prefixed"]},
                    },
                },
                "services": [
                    {
                        "name": service,
                        "command": "prefixed --serve",
                        "port": 8000,
                        "working_directory": "/srv/demo/app",
                    }
                ],
                "files": [{"from": "app/", "to": "/srv/demo/app"}],
            }
        )
        locked = self.lock(*specs)
        work = self.folder / f"work-{name}-{version}"
        work.mkdir()
        return payload_disc.make(
            definition,
            locked,
            self.archives(locked),
            self.folder / f"{name}-{version}{'-channel' if channel else ''}.iso",
            folder=self.folder,
            project=None,
            store=Store(self.folder / "layers"),
            epoch=EPOCH,
            work=work,
            channel=channel,
        )

    def unpacked(self, image: Path) -> Path:
        to = image.with_suffix("")
        process.run(["xorriso", "-osirrox", "on", "-indev", f"stdio:{image}", "-extract", "/", to])
        return to


@pytest.fixture(scope="module")
def discs(folders: Folders) -> Discs:
    folder = folders.mktemp("discs")
    before = os.environ.get("CONDA_APPLIANCE_CACHE")
    os.environ["CONDA_APPLIANCE_CACHE"] = str(folder / "cache")
    made = Discs(folder)
    made.first = made.unpacked(made.make("1.0", "pure"))
    made.second = made.unpacked(made.make("2.0", "pure", "newer"))
    made.other = made.unpacked(made.make("1.0", "newer", name="other", service="other"))
    del os.environ["CONDA_APPLIANCE_CACHE"]
    if before is not None:
        os.environ["CONDA_APPLIANCE_CACHE"] = before
    return made


@pytest.fixture(scope="module")
def roots(folders: Folders) -> Callable[[str], Path]:
    """Small machines by what they are made of, each made once."""
    made: dict[str, Path] = {}

    def root(kind: str) -> Path:
        if kind not in made:
            made[kind] = small_machine.make(
                folders.mktemp(kind) / "root", busybox=kind == "busybox", systemd=kind != "busybox"
            )
        return made[kind]

    return root


@pytest.fixture
def machine(roots: Callable[[str], Path], discs: Discs, tmp_path: Path) -> Machine:
    return Machine(copied(roots("coreutils"), tmp_path / "root"), discs.first)


def copied(root: Path, to: Path) -> Path:
    process.run(["cp", "-a", root, to])
    return to


def environment(machine: Machine, prefix: str = "/opt/demo") -> Path:
    """The installed environment, as this host sees it."""
    above, _, base = prefix.rpartition("/")
    store = machine.root / above.lstrip("/") / f".{base}.appliance"
    return store / (store / "current").readlink() / "tree"


def version(machine: Machine) -> str:
    """What is in use: as the definition's own file says, through its link."""
    said = machine.read("/srv/demo/app/demo.py")
    found = re.search(r"'(.*)'", said)
    assert found
    return found[1]


@pytest.mark.parametrize("kind", ["coreutils", "busybox"])
def test_the_environment_stands_at_its_prefix_and_runs(
    roots: Callable[[str], Path], discs: Discs, tmp_path: Path, kind: str
) -> None:
    machine = Machine(copied(roots(kind), tmp_path / "root"), discs.first)
    machine.install()
    assert prefix_check.check(environment(machine)) == []
    assert machine.run("/opt/demo/bin/python", "-c", "print(6 * 7)").stdout == "42\n"
    assert machine.read("/opt/demo/etc/prefixed.conf") == "home = /opt/demo/share\n"
    assert "as it was installed" in machine.install("--check").stdout


def test_services_and_users_come_from_the_definition(machine: Machine) -> None:
    said = machine.install().stdout
    assert "service      demo, as the user demo of its own; port: 8000" in said
    unit = machine.read("/etc/systemd/system/demo.service")
    assert 'ExecStart="/opt/demo/bin/prefixed" "--serve"' in unit
    assert "EnvironmentFile=-/opt/.demo.appliance/current/environments/base.env" in unit
    assert "EnvironmentFile=-/etc/conda-appliance/settings.env" in unit
    assert "@" not in re.sub(r"SystemCallFilter=@\S+", "", unit), "no mark is left"
    assert machine.run("getent", "passwd", "demo").stdout.split(":")[4:6] == ["Service demo", "/var/lib/demo"]
    assert all((machine.root / path[1:]).is_symlink() for path in SERVICES)
    assert machine.asked == ["daemon-reload", "restart demo.service"]


def test_what_will_be_done_is_shown_and_nothing_is_done_unasked(machine: Machine) -> None:
    before = machine.listing()
    shown = machine.install("--dry-run").stdout
    assert "file         /srv/demo/app/demo.py" in shown and "environment  /opt/demo (" in shown
    refused = machine.run("sh", "/mnt/install.sh", check=False)
    assert refused.returncode == 2 and "say --yes" in refused.stderr
    assert machine.listing() == before


def test_again_there_is_nothing_to_do(machine: Machine) -> None:
    machine.install()
    before, asked = machine.listing(), machine.asked
    assert "there is nothing to do" in machine.install().stdout
    assert (machine.listing(), machine.asked) == (before, asked)


def test_an_upgrade_keeps_the_version_before_and_goes_back_and_forth(machine: Machine, discs: Discs) -> None:
    machine.install()
    old = machine.listing()
    assert "upgrades     /opt/demo from version 1.0" in machine.install(disc=discs.second).stdout
    assert version(machine) == "2.0"
    assert machine.read("/opt/demo/etc/newer") == "/opt/demo is newer\n"
    machine.install("--check", disc=discs.second)
    machine.run("sh", "/opt/.demo.appliance/current/install.sh", "--rollback", "--yes")
    assert version(machine) == "1.0"
    kept = {path for path in machine.listing() if "/2.0-" in path or path.endswith("/before")}
    assert {path: about for path, about in machine.listing().items() if path not in kept} == old
    machine.install("--rollback", disc=discs.second)
    assert version(machine) == "2.0"
    assert machine.asked[-2:] == ["daemon-reload", "restart demo.service"]


def test_a_third_version_leaves_no_more_than_two(machine: Machine, discs: Discs) -> None:
    third = discs.unpacked(discs.make("3.0", "newer"))
    for disc in (discs.first, discs.second, third):
        machine.install(disc=disc)
    names = sorted(
        path.parent.name.partition("-")[0] for path in (machine.root / "opt/.demo.appliance").glob("*/about")
    )
    assert names == ["2.0", "3.0", "current"]


@pytest.mark.parametrize("second", [False, True])
def test_uninstalling_leaves_no_trace(machine: Machine, discs: Discs, second: bool) -> None:
    before = machine.listing()
    machine.install()
    if second:
        machine.install(disc=discs.second)
    (machine.root / "var/lib/demo").mkdir(parents=True)
    shutil.rmtree(machine.root / "var/lib/demo")
    (machine.root / "var/lib").rmdir()
    (machine.root / "var").rmdir()
    machine.run("sh", "/opt/.demo.appliance/current/install.sh", "--uninstall", "--yes")
    assert trees.differences(before, machine.listing()) == []
    assert "stop demo.service" in machine.asked
    assert "Nothing is installed" in machine.install("--uninstall").stdout


def test_data_of_services_goes_with_them_unless_it_is_to_stay(machine: Machine) -> None:
    data = machine.root / "var/lib/demo/data"
    for words, stays in ((["--keep-data"], True), ([], False)):
        machine.install()
        data.parent.mkdir(parents=True, exist_ok=True)
        data.write_text("precious")
        machine.install("--uninstall", *words)
        assert data.exists() == stays
        assert ("demo:" in machine.read("/etc/passwd")) == stays


@pytest.mark.parametrize("kind", ["coreutils", "busybox"])
@pytest.mark.parametrize("prefix", ["/d", "/srv/a/longer/prefix/than/it/was/linked/for/demo-2"])
def test_another_prefix_gives_what_linking_for_it_gives(
    roots: Callable[[str], Path], discs: Discs, tmp_path: Path, kind: str, prefix: str
) -> None:
    machine = Machine(copied(roots(kind), tmp_path / "root"), discs.first)
    machine.install("--prefix", prefix)
    locked = discs.lock("pure", prefix=prefix)
    for section in locked.conda.environments.values():
        linking.link(
            section.packages,
            discs.archives(locked),
            prefix=section.prefix,
            into=tmp_path / "linked" / section.prefix.lstrip("/"),
            epoch=EPOCH,
            work=tmp_path / "work",
            specs=section.specs,
        )
    linked, moved = tmp_path / "linked" / prefix[1:], environment(machine, prefix)
    assert prefix_check.check(moved) == prefix_check.check(moved / "envs/second") == []
    where = b"\0\1PATH=" + f"{prefix}/bin:{prefix}/lib".encode() + b"\0"
    assert (moved / "lib/where.bin").read_bytes().startswith(where)
    machine.install("--check", "--prefix", prefix)
    assert machine.run(f"{prefix}/bin/python", "-c", "print(1)").stdout == "1\n"
    forget_sizes(linked / "envs/second", moved / "envs/second")
    assert trees.differences(trees.listing(linked, times=False), trees.listing(moved, times=False)) == []


def forget_sizes(*environments: Path) -> None:
    """An environment without Python keeps the sizes in its records: a shell can replace digests, not grow a file."""
    for folder in environments:
        for path in folder.glob("conda-meta/*.json"):
            path.write_text(re.sub(r'"size_in_bytes": \d+', '"size_in_bytes": 0', path.read_text()))


def test_a_prefix_that_nothing_has_room_for_is_refused_before_anything_is_changed(machine: Machine) -> None:
    before = machine.listing()
    told = (machine.disc / "installer/about").read_text()
    found = re.search(r"^longest (\d+)$", told, re.MULTILINE)
    assert found
    longest = int(found[1])
    refused = machine.install("--prefix", "/" + "x" * longest, check=False)
    assert refused.returncode == 2 and f"room for {longest}" in refused.stderr
    for odd in ("relative", "/with space", "/up/../down", "/quote'", "/"):
        assert machine.install("--prefix", odd, check=False).returncode == 2
    assert machine.listing() == before
    machine.install("--prefix", "/" + "x" * (longest - 1))
    assert prefix_check.check(environment(machine, "/" + "x" * (longest - 1))) == []


def test_a_normal_user_installs_at_home(machine: Machine) -> None:
    before = machine.listing()
    said = machine.install(user=1000).stdout
    home = "/home/user/.local/share/demo"
    assert f"demo 1.0 is installed at {home}." in said
    assert machine.run(f"{home}/bin/python", "-c", "print(1)", user=1000).stdout == "1\n"
    unit = machine.read("/home/user/.config/systemd/user/demo.service")
    assert f'ExecStart="{home}/bin/prefixed"' in unit
    assert "WorkingDirectory=/home/user/.local/share/.demo.appliance/current/root/srv/demo/app" in unit
    assert "User=" not in unit
    asked = [line for line in machine.asked if line != "--user show-environment"]
    assert asked == ["--user daemon-reload", "--user restart demo.service"]
    assert machine.listing() == before, "nothing outside of the home"
    machine.install("--uninstall", user=1000)
    assert list((machine.root / "home/user").iterdir()) == []


def test_without_a_user_manager_it_says_how_to_start(machine: Machine) -> None:
    (machine.root / "bin/systemctl").write_text("#!/bin/sh\nexit 1\n")
    said = machine.install(user=1000).stdout
    assert "systemctl --user start demo" in said and "loginctl enable-linger" in said


def test_without_systemd_it_says_how_to_start(
    roots: Callable[[str], Path], discs: Discs, tmp_path: Path
) -> None:
    machine = Machine(copied(roots("busybox"), tmp_path / "root"), discs.first)
    before = machine.listing()
    said = machine.install().stdout
    assert "demo: cd /opt/.demo.appliance/current/root/srv/demo/app && /opt/demo/bin/prefixed --serve" in said
    assert "demo:" not in machine.read("/etc/passwd")
    machine.install("--uninstall")
    assert trees.differences(before, machine.listing()) == []


def test_what_is_in_the_way_is_named_and_left_alone(machine: Machine) -> None:
    (machine.root / "opt/demo").mkdir()
    (machine.root / "srv/demo/app").mkdir(parents=True)
    (machine.root / "srv/demo/app/demo.py").write_text("mine")
    (machine.root / "usr/lib/systemd/system/demo.service").write_text("")
    before = machine.listing()
    refused = machine.install(check=False)
    assert refused.returncode == 1
    for named in ("/opt/demo is there", "/srv/demo/app/demo.py is there", "a service demo of its own"):
        assert named in refused.stderr
    assert machine.listing() == before


def test_another_appliance_at_the_same_prefix_is_refused(machine: Machine, discs: Discs) -> None:
    machine.install()
    before = machine.listing()
    refused = machine.install(check=False, disc=discs.other)
    assert refused.returncode == 1 and "/opt/demo holds another appliance, demo" in refused.stderr
    assert machine.listing() == before


def test_a_damaged_disc_is_refused_by_the_name_of_the_file(machine: Machine, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    process.run(["cp", "-a", machine.disc, damaged])
    data = bytearray((damaged / "environment.tar").read_bytes())
    data[2000] ^= 1
    (damaged / "environment.tar").chmod(0o644)
    (damaged / "environment.tar").write_bytes(data)
    before = machine.listing()
    refused = machine.install(check=False, disc=damaged)
    assert refused.returncode == 3 and "environment.tar: FAILED" in refused.stderr
    assert machine.listing() == before


def test_programs_that_do_not_run_here_are_found_before_the_switch(machine: Machine) -> None:
    (machine.root / str(Path(sys.executable).resolve()).lstrip("/")).unlink()
    before = machine.listing()
    refused = machine.install(check=False)
    assert refused.returncode == 1 and "do not run on this machine" in refused.stderr
    assert machine.listing() == before


def test_check_names_what_changed_and_installing_again_mends_it(machine: Machine) -> None:
    machine.install()
    tree = environment(machine)
    (tree / "etc/prefixed.conf").write_text("changed")
    (tree / "lib/libuser.so").unlink()
    (tree / "share/dangling").unlink()
    (tree / "share/dangling").symlink_to("elsewhere")
    (tree / "etc/extra").write_text("")
    (machine.root / "srv/demo/app/demo.py").unlink()
    found = machine.install("--check", check=False)
    assert found.returncode == 5
    for line in (
        "tree/etc/prefixed.conf: FAILED",
        "tree/lib/libuser.so",
        "tree/share/dangling: no longer a link to nowhere",
        "tree/etc/extra: of no package",
    ):
        assert line in found.stdout
    assert "laid down anew" in machine.install().stdout
    machine.install("--check")
    assert version(machine) == "1.0"


def test_a_service_that_does_not_start_is_told_with_the_way_back(machine: Machine, discs: Discs) -> None:
    machine.install()
    (machine.root / "bin/systemctl").write_text('#!/bin/sh\n[ "$1" != restart ]\n')
    failed = machine.install(check=False, disc=discs.second)
    assert failed.returncode == 1 and "these services do not start: demo" in failed.stderr
    assert "--rollback" in failed.stderr


def test_killed_anywhere_an_installation_is_finished_by_the_next_run(
    machine: Machine, discs: Discs, tmp_path: Path
) -> None:
    before = machine.listing()
    whole = Machine(copied(machine.root, tmp_path / "whole"), discs.first)
    whole.install()
    wanted = content(whole)
    step = 1
    while machine.killed_at(step):
        if (machine.root / "opt/.demo.appliance/current").is_symlink():
            machine.install("--check")
        machine.install()
        assert trees.differences(wanted, content(machine)) == [], f"killed at step {step}"
        machine.install("--uninstall")
        assert trees.differences(before, machine.listing()) == [], f"killed at step {step}"
        step += 1
    assert step > 20


def test_killed_anywhere_an_upgrade_leaves_the_old_version_or_the_new_one_whole(
    machine: Machine, discs: Discs, tmp_path: Path
) -> None:
    machine.install()
    old = copied(machine.root, tmp_path / "old")
    whole = Machine(copied(old, tmp_path / "whole"), discs.second)
    whole.install()
    wanted = content(whole)
    step, seen = 1, set()
    while True:
        upgraded = Machine(copied(old, tmp_path / "upgraded"), discs.second)
        if not upgraded.killed_at(step):
            break
        upgraded.install("--check")
        seen.add(version(upgraded))
        upgraded.install()
        assert trees.differences(wanted, content(upgraded)) == [], f"killed at step {step}"
        shutil.rmtree(upgraded.root)
        step += 1
    assert seen == {"1.0", "2.0"}


def test_killed_anywhere_uninstalling_is_finished_by_the_next_run(
    machine: Machine, discs: Discs, tmp_path: Path
) -> None:
    before = machine.listing()
    machine.install()
    machine.install(disc=discs.second)
    installed = copied(machine.root, tmp_path / "installed")
    step = 1
    while True:
        leaving = Machine(copied(installed, tmp_path / "leaving"), discs.second)
        if not leaving.killed_at(step, "--uninstall"):
            break
        leaving.install("--uninstall")
        assert trees.differences(before, leaving.listing()) == [], f"killed at step {step}"
        shutil.rmtree(leaving.root)
        step += 1
    assert step > 5


def content(machine: Machine) -> dict[str, str]:
    """All that is installed; the installer's own notes of what it made may say a thing twice."""
    return {
        path: about
        for path, about in machine.listing().items()
        if path not in ("opt/.demo.appliance/folders", "opt/.demo.appliance/users")
    }


def test_conda_tools_find_the_packages_on_the_disc(discs: Discs, tmp_path: Path) -> None:
    disc = discs.unpacked(discs.make("1.1", "pure", channel=True))
    found, _ = conda.solve(
        ["pure"],
        [conda.Channel(name="disc", url=(disc / "channel").as_uri())],
        contract=Contract(glibc="2.41"),
    )
    assert {package.sha256 for package in found} == {
        package.sha256 for package in discs.lock("pure").conda.environments["base"].packages
    }
    process.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=disc)


def test_the_same_lock_and_files_give_the_same_disc(discs: Discs) -> None:
    first = discs.make("4.0", "pure").read_bytes()
    shutil.rmtree(discs.folder / "work-demo-4.0")
    shutil.rmtree(discs.folder / "layers")
    assert discs.make("4.0", "pure").read_bytes() == first


def test_the_installer_is_plain_posix_shell(discs: Discs) -> None:
    installer = discs.first / "install.sh"
    follow = ["--external-sources", "--source-path", discs.first / "installer"]
    process.run(["shellcheck", "--shell=sh", *follow, installer])
    assert lock.read(discs.first / "appliance.lock") == discs.lock("pure")

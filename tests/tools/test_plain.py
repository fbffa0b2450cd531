"""The tar for any prefix and the installer in one file, on small machines: they install, move, update and refuse."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import packages
import pytest
import small_machine
from packages import PLACEHOLDER, File, Package
from small_machine import Machine
from tests.conftest import Folders

from conda_appliance import conda, payload, plain, prefix_check, process, trees
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.installation import Shipment
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) and mounts need root's rights")

EPOCH = 1_700_000_000
#: What a tar carries beside the environment, as prefix_check tells it.
OURS = ["bin/activate", "bin/conda-unpack", "bin/deactivate", "share/conda-unpack/*"]

#: Where what changes files is counted, and killed at KILL_AT.
SHIMS = "/shim:/usr/sbin:/usr/bin:/sbin:/bin"


class Maker:
    """Versions of one small appliance, from a channel of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.channel = packages.small_channel(folder / "channel")
        real = Path(sys.executable).resolve()
        python = packages.python()
        # A stand-in that starts this host's Python, which the small machine has too.
        starter = File(content=f'#!/bin/sh\nexec {real} "$@"\n', executable=True)
        named = {name: starter if "bin/python3" in name else file for name, file in python.files.items()}
        replace(python, files=named).write(self.channel)
        Package(name="newer", files={"etc/newer": File(content=f"{PLACEHOLDER} is newer\n")}).write(
            self.channel
        )
        packages.index(self.channel)

    def shipment(self, version: str, *specs: str) -> Shipment:
        channel = conda.Channel(name="./small", url=self.channel.as_uri())
        found, virtual = conda.solve(specs, [channel], contract=Contract(glibc="2.41"))
        environments = {"base": EnvironmentSection(prefix="/opt/demo", specs=specs, packages=found)}
        section = CondaSection(virtual_packages=virtual, environments=environments)
        locked = Lock(name="demo", digest="0" * 64, tools={}, conda=section)
        archives = {one.sha256: Path(one.url.removeprefix("file://")) for one in found}
        store = Store(self.folder / "layers")
        return Shipment(
            image=ImageDefinition.model_validate(
                {
                    "name": "demo",
                    "version": version,
                    "base": {"debian": "trixie"},
                    "conda": {
                        "prefix": "/opt/demo",
                        "channels": ["./small"],
                        "environments": {"base": {"dependencies": [*specs]}},
                    },
                }
            ),
            lock=locked,
            linked=payload.environment(locked, archives, store=store, epoch=EPOCH, subject="demo"),
            archives=archives,
            folder=self.folder,
            project=None,
            store=store,
            epoch=EPOCH,
        )

    def write(self, make: Callable[[Shipment, Path, Path], None], shipment: Shipment, name: str) -> Path:
        work = self.folder / f"work-{name}"
        work.mkdir()
        make(shipment, self.folder / name, work)
        assert list(work.iterdir()) == [], "nothing is left"
        work.rmdir()
        return self.folder / name


@pytest.fixture(scope="module")
def maker(folders: Folders) -> Maker:
    return Maker(folders.mktemp("plain"))


@pytest.fixture(scope="module")
def discs(maker: Maker) -> Path:
    """A folder with both versions' installers, which the machines have as /mnt."""
    folder = maker.folder / "disc"
    folder.mkdir()
    for version, specs in (("1.0", ["pure"]), ("2.0", ["pure", "newer"])):
        made = maker.write(plain.installer, maker.shipment(version, *specs), f"{version}.sh")
        shutil.copy(made, folder)
    return folder


@pytest.fixture(scope="module")
def packed(maker: Maker) -> Path:
    return maker.write(plain.tar, maker.shipment("1.0", "pure"), "demo.tar.zst")


@pytest.fixture(scope="module")
def roots(folders: Folders) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def root(kind: str) -> Path:
        if kind not in made:
            made[kind] = small_machine.make(
                folders.mktemp(kind) / "root", busybox=kind == "busybox", systemd=False
            )
            if kind != "busybox":
                small_machine.copy(made[kind], process.find("gzip"), "/bin/gzip")
        return made[kind]

    return root


@pytest.fixture(params=["coreutils", "busybox"])
def either(
    request: pytest.FixtureRequest, roots: Callable[[str], Path], discs: Path, tmp_path: Path
) -> Machine:
    """A machine with a shell and what it needs, of either family."""
    process.run(["cp", "-a", roots(request.param), tmp_path / "root"])
    return Machine(tmp_path / "root", discs)


@pytest.fixture
def machine(roots: Callable[[str], Path], discs: Path, tmp_path: Path) -> Machine:
    process.run(["cp", "-a", roots("coreutils"), tmp_path / "root"])
    return Machine(tmp_path / "root", discs)


def install(machine: Machine, *words: str, version: str = "1.0", **more: object) -> process.Completed:
    return machine.run("sh", f"/mnt/{version}.sh", "-b", *words, **more)  # type: ignore[arg-type]


def findings(machine: Machine, prefix: str) -> list[str]:
    return prefix_check.check(machine.root / prefix[1:], allow=OURS)


# --- tar ----------------------------------------------------------------------------------------------


def test_a_tar_holds_an_environment_at_its_top_that_is_roots(packed: Path, tmp_path: Path) -> None:
    process.run(["zstd", "-q", "-d", packed, "-o", tmp_path / "demo.tar"])
    with tarfile.open(tmp_path / "demo.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert {"bin/python", "bin/conda-unpack", "conda-meta", "bin/activate"} <= {*members}
    assert {(one.uid, one.gid, one.mtime) for one in members.values()} == {(0, 0, EPOCH)}
    assert members["bin/conda-unpack"].mode == 0o755


def test_conda_unpack_makes_it_name_where_it_is(either: Machine, packed: Path) -> None:
    """A machine that knows no zstd can have it unpacked by another."""
    (either.root / "srv/place").mkdir(parents=True)
    process.run(["tar", "-x", "--zstd", "-f", packed, "-C", either.root / "srv/place"])
    either.run("/srv/place/bin/conda-unpack")
    assert findings(either, "/srv/place") == []
    assert either.read("/srv/place/etc/prefixed.conf") == "home = /srv/place/share\n"
    assert either.run("/srv/place/bin/prefixed").stdout == "/srv/place\n"
    again = either.run("/srv/place/bin/conda-unpack")
    assert again.stdout + again.stderr == "", "once more is no harm"
    refused = either.run("/srv/place/bin/conda-unpack", "--prefix", "/elsewhere", check=False)
    assert refused.returncode == 1 and "its files name /srv/place already" in refused.stderr


def test_at_its_own_prefix_nothing_has_to_change(machine: Machine, packed: Path) -> None:
    (machine.root / "opt/demo").mkdir()
    process.run(["tar", "-x", "--zstd", "-f", packed, "-C", machine.root / "opt/demo"])
    before = trees.listing(machine.root / "opt/demo", times=False)
    machine.run("/opt/demo/bin/conda-unpack")
    after = trees.listing(machine.root / "opt/demo", times=False)
    assert [line.split(": ")[1] for line in trees.differences(before, after)] == ["share/conda-unpack/prefix"]


def test_what_was_cut_short_is_not_taken_for_whole(machine: Machine, packed: Path) -> None:
    (machine.root / "srv/place").mkdir(parents=True)
    process.run(["tar", "-x", "--zstd", "-f", packed, "-C", machine.root / "srv/place"])
    (machine.root / "shim/count").write_text("0\n")
    killed = machine.run(
        "/srv/place/bin/conda-unpack",
        check=False,
        env={"PATH": SHIMS, "KILL_AT": "3"},
    )
    assert killed.returncode == -signal.SIGKILL
    again = machine.run("/srv/place/bin/conda-unpack", check=False)
    assert again.returncode == 1 and "unpack the archive anew" in again.stderr


@pytest.mark.parametrize("shell", ["bash"])
def test_activation_puts_it_first_and_takes_it_away(packed: Path, tmp_path: Path, shell: str) -> None:
    process.run(["tar", "-x", "--zstd", "-f", packed, "-C", tmp_path])
    script = 'before=$PATH; . "$1/bin/activate"; echo "$CONDA_PREFIX ${PATH%%:*}"; . "$1/bin/deactivate"'
    script += '; [ "$PATH" = "$before" ] && echo "${CONDA_PREFIX:-none}"'
    said = process.run([shell, "-euc", script, shell, tmp_path]).stdout
    assert said.splitlines() == [f"{tmp_path} {tmp_path}/bin", "none"]


# --- the installer ------------------------------------------------------------------------------------


def test_in_batch_mode_it_installs_where_it_is_told(either: Machine) -> None:
    assert install(either, "-p", "/srv/deep/er").stdout == "PREFIX=/srv/deep/er\ninstallation finished.\n"
    assert findings(either, "/srv/deep/er") == []
    assert either.run("/srv/deep/er/bin/python", "-c", "print(6 * 7)").stdout == "42\n"
    assert [path.name for path in (either.root / "srv/deep").iterdir()] == ["er"], "nothing is beside it"


def test_without_a_prefix_it_is_at_home(machine: Machine) -> None:
    install(machine, user=1000)
    assert findings(machine, "/home/user/demo") == []


def test_what_is_there_stays_unless_an_update_is_asked_for(machine: Machine) -> None:
    install(machine, "-p", "/opt/demo")
    before = machine.listing()
    refused = install(machine, "-p", "/opt/demo", version="2.0", check=False)
    assert refused.returncode == 1 and "use the -u option" in refused.stderr
    assert machine.listing() == before


@pytest.mark.parametrize("option", ["-u", "-f"])
def test_an_update_keeps_files_of_your_own(either: Machine, option: str) -> None:
    install(either, "-p", "/opt/demo", version="2.0")
    (either.root / "opt/demo/etc/mine").write_text("mine")
    (either.root / "opt/demo/my folder").mkdir()
    (either.root / "opt/demo/my folder/deep").symlink_to("../etc/mine")
    install(either, option, "-p", "/opt/demo", version="1.0")
    assert not (either.root / "opt/demo/etc/newer").exists(), "of the version before"
    assert (either.root / "opt/demo/etc/mine").read_text() == "mine"
    assert (either.root / "opt/demo/my folder/deep").readlink() == Path("../etc/mine")
    assert findings(either, "/opt/demo") == ["extra: etc/mine", "extra: my folder/deep"]


def test_an_environment_of_another_installer_is_left_alone(machine: Machine) -> None:
    (machine.root / "opt/demo/conda-meta").mkdir(parents=True)
    refused = install(machine, "-u", "-p", "/opt/demo", check=False)
    assert refused.returncode == 1 and "another installer made" in refused.stderr


def test_a_damaged_file_installs_nothing(machine: Machine, discs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    whole = (discs / "1.0.sh").read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    (folder / "1.0.sh").write_bytes(flipped)
    (folder / "2.0.sh").write_bytes(whole[:-100])
    before = machine.listing()
    for version in ("1.0", "2.0"):
        refused = install(machine, "-p", "/opt/demo", version=version, check=False, disc=folder)
        assert refused.returncode == 1 and "this file is damaged" in refused.stderr
    assert machine.listing() == before


def test_what_it_cannot_do_is_said_first(machine: Machine) -> None:
    before = machine.listing()
    for prefix, said in (
        ("/opt/a b", "allow only letters"),
        ("/opt/" + "x" * 300, "characters, and the environment's programs have room for"),
        ("/opt/../etc", "name a plain path"),
    ):
        refused = install(machine, "-p", prefix, check=False)
        assert refused.returncode == 1 and said in refused.stderr
    asked = machine.run("sh", "/mnt/1.0.sh", "-h", check=False)
    assert asked.returncode == 2 and "-p PREFIX" in asked.stderr, "as constructor's"
    assert install(machine, "-x", check=False).returncode == 2
    alone = machine.run("sh", "/mnt/1.0.sh", check=False)
    assert alone.returncode == 1 and "say -b" in alone.stderr
    (machine.root / "bin/gzip").unlink()
    refused = install(machine, "-p", "/opt/demo", check=False)
    assert refused.returncode == 1 and "there is no gzip on this machine" in refused.stderr
    (machine.root / "bin/gzip").touch()
    assert {path for path in machine.listing() if path != "bin/gzip"} == {*before} - {"bin/gzip"}


def test_killed_at_any_point_one_version_is_whole_and_another_run_finishes(machine: Machine) -> None:
    """At what changes files: each of the last steps, where one takes the place of the other, and some before."""
    install(machine, "-p", "/opt/demo")

    def killed_at(step: int) -> bool:
        (machine.root / "shim/count").write_text("0\n")
        variables = {"PATH": SHIMS, "KILL_AT": str(step)}
        done = install(machine, "-u", "-p", "/opt/demo", version="2.0", check=False, env=variables)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode != 0

    assert not killed_at(10_000)
    steps = int((machine.root / "shim/count").read_text())
    for step in [1, 3, 5, 8, *range(steps - 7, steps + 1)]:
        assert killed_at(step)
        if (machine.root / "opt/demo").exists():
            assert findings(machine, "/opt/demo") == []
        else:  # between two renames: what was there waits for the next run
            assert findings(machine, "/opt/.demo.replaced") == []
    install(machine, "-u", "-p", "/opt/demo", version="1.0")
    assert findings(machine, "/opt/demo") == []
    assert [path.name for path in (machine.root / "opt").iterdir()] == ["demo"]


def test_the_same_environments_give_the_same_bytes(maker: Maker, packed: Path, discs: Path) -> None:
    again = Maker.shipment(maker, "1.0", "pure")
    assert maker.write(plain.tar, again, "again.tar.zst").read_bytes() == packed.read_bytes()
    assert maker.write(plain.installer, again, "again.sh").read_bytes() == (discs / "1.0.sh").read_bytes()


def test_the_scripts_are_plain_posix_shell(discs: Path, tmp_path: Path) -> None:
    head = (discs / "1.0.sh").read_bytes().partition(b"\nexit 0\n")[0]
    (tmp_path / "head.sh").write_bytes(head)
    shipped = Path(__file__).parents[2] / "iso"
    process.run(["shellcheck", "--shell=sh", tmp_path / "head.sh"])
    process.run(
        ["shellcheck", "--shell=sh", "-x", "--source-path", shipped / "plain", shipped / "plain/conda-unpack"]
    )
    process.run(["shellcheck", shipped / "plain/activate", shipped / "plain/deactivate"])

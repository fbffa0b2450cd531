"""The userspace disc, in each of its forms: mounted by the kernel, the environments run and cannot be changed.

This host's kernel may know no ISO 9660, so what is packed on the disc is mounted from the place where it stands
there; a machine mounts the disc itself in tests/boot/test_discs.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import packages
import pytest
from tests.conftest import Folders

from conda_appliance import conda, disc, prefix_check, process, userspace_disc
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import ToolMissing
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

EPOCH = 1_700_000_000
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
#: What marks an environment that nobody can change, which no package brought.
MARKS = ("conda-meta/frozen", "lib/python3.*/EXTERNALLY-MANAGED")


def definition(form: str) -> ImageDefinition:
    return ImageDefinition.model_validate(
        {
            "name": "demo-line",
            "version": "1.2",
            "summary": "A demonstration",
            "base": {"debian": "trixie"},
            "conda": {
                "prefix": "/opt/demo",
                "channels": ["./small"],
                "environments": {
                    "base": {"dependencies": ["pure"]},
                    "second": {"dependencies": ["prefixed"]},
                },
            },
            "services": [{"name": "demo", "command": "prefixed --serve", "port": 8000}],
            "files": [{"from": "app/", "to": "/srv/demo/app"}],
            "disc": {"userspace": form},
        }
    )


class Maker:
    """Makes discs of one small appliance."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "app").mkdir()
        (folder / "app/demo.py").write_text("VERSION = 1\n")
        channel = packages.small_channel(folder / "channel")
        environments = {}
        for name, prefix, spec in (
            ("base", "/opt/demo", "pure"),
            ("second", "/opt/demo/envs/second", "prefixed"),
        ):
            found, virtual = conda.solve(
                [spec], [conda.Channel(name="./small", url=channel.as_uri())], contract=Contract(glibc="2.41")
            )
            environments[name] = EnvironmentSection(prefix=prefix, specs=(spec,), packages=found)
        section = CondaSection(virtual_packages=virtual, environments=environments)
        self.lock = Lock(name="demo-line", digest="0" * 64, tools={}, conda=section)

    def make(self, form: str, *, turn: int = 0, cache: str = "layers") -> Path:
        archives = {
            package.sha256: Path(package.url.removeprefix("file://"))
            for section in self.lock.conda.environments.values()
            for package in section.packages
        }
        work = self.folder / f"work-{form}-{turn}"
        work.mkdir()
        return userspace_disc.make(
            definition(form),
            self.lock,
            archives,
            self.folder / f"{form}-{turn}.iso",
            folder=self.folder,
            project=None,
            store=Store(self.folder / cache),
            epoch=EPOCH,
            work=work,
        )


@pytest.fixture(scope="module")
def maker(folders: Folders) -> Iterator[Maker]:
    folder = folders.mktemp("userspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDA_APPLIANCE_CACHE", str(folder / "solver"))
        yield Maker(folder)


def unpacked(image: Path, to: Path) -> Path:
    process.run(["xorriso", "-osirrox", "on", "-indev", f"stdio:{image}", "-extract", "/", to])
    return to


def mounted(image: Path, form: str, script: str) -> str:
    """What ``script`` says in a mount namespace where the disc's environments are at their prefix."""
    found = process.run(
        ["xorriso", "-indev", f"stdio:{image}", "-find", "/environment.img", "-exec", "report_lba"]
    )
    place = int(re.search(r"lba:\s+0 ,\s+(\d+) ,", found.stdout)[1]) * 2048
    mount = f"mount -t {form} -o loop,ro,offset={place} {image} /opt/demo"
    prepare = f"mount -t tmpfs tmpfs /opt && mkdir /opt/demo && {mount}"
    return process.run(["unshare", "--mount", "sh", "-euc", f"{prepare}\n{script}"]).stdout


@pytest.mark.parametrize("form", ["squashfs", "erofs"])
def test_the_packed_environments_run_at_their_prefix(maker: Maker, form: str) -> None:
    image = maker.make(form)
    assert disc.verify(image) > 10
    check = f"{sys.executable} -I -B {prefix_check.__file__}" + "".join(f" --allow '{one}'" for one in MARKS)
    said = mounted(
        image,
        form,
        f"""
        {check} /opt/demo
        {check} /opt/demo/envs/second
        /opt/demo/envs/second/bin/prefixed 2>/dev/null || head -n 1 /opt/demo/envs/second/bin/prefixed
        stat -c '%a %u:%g %Y' /opt/demo/bin/{PYTHON} /opt/demo /opt/demo/conda-meta/frozen
        readlink /opt/demo/bin/python
        ! touch /opt/demo/new 2>&1
        ! rm /opt/demo/conda-meta/history 2>&1
        """,
    )
    assert "/opt/demo: 3 packages" in said or "/opt/demo: 4 packages" in said, said
    assert said.count("all as recorded") == 2
    assert "#!/opt/demo/envs/second/bin/python" in said
    assert f"755 0:0 {EPOCH}\n755 0:0 {EPOCH}\n644 0:0 {EPOCH}\n{PYTHON}\n" in said
    assert said.count("Read-only file system") == 2


def test_plain_files_keep_their_modes_and_links(maker: Maker, tmp_path: Path) -> None:
    image = maker.make("iso9660")
    assert disc.verify(image) > 20
    out = unpacked(image, tmp_path / "out")
    assert prefix_check.check(out / "environment", MARKS) == []
    assert prefix_check.check(out / "environment/envs/second", MARKS) == []
    assert (out / f"environment/bin/{PYTHON}").stat().st_mode & 0o7777 == 0o755
    assert (out / "environment/bin/python").readlink() == Path(PYTHON)
    assert not (out / "environment.img").exists()


def test_an_environment_on_a_disc_says_that_nobody_can_change_it(maker: Maker, tmp_path: Path) -> None:
    """CEP 22 and PEP 668; the second environment has no Python."""
    out = unpacked(maker.make("iso9660", turn=1), tmp_path / "out") / "environment"
    for folder in (out, out / "envs/second"):
        assert "DEMO_LINE" in json.loads((folder / "conda-meta/frozen").read_text())["message"]
    told = (out / f"lib/{PYTHON}/EXTERNALLY-MANAGED").read_text()
    assert told.startswith("[externally-managed]\nError=") and "/opt/demo/bin/python -m venv" in told
    assert [*out.rglob("EXTERNALLY-MANAGED")] == [out / f"lib/{PYTHON}/EXTERNALLY-MANAGED"]


@pytest.mark.parametrize("form", ["squashfs", "erofs", "iso9660"])
def test_the_same_lock_gives_the_same_bytes(maker: Maker, form: str) -> None:
    """From another cache too: nothing of when and where it was made is in it."""
    one, other = maker.make(form, turn=2), maker.make(form, turn=3, cache="another")
    assert one.read_bytes() == other.read_bytes()


def test_what_is_packed_is_packed_once(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    one = maker.make("squashfs", turn=4).read_bytes()
    real = process.find
    monkeypatch.setattr(
        process, "find", lambda name: real(name) if name != "unshare" else pytest.fail("it packs again")
    )
    assert maker.make("squashfs", turn=5).read_bytes() == one


def test_the_host_lacks_what_packs(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(maker.folder))
    with pytest.raises(ToolMissing, match=r"mkfs\.erofs"):
        maker.make("erofs", turn=6, cache="third")


def test_what_mount_sh_will_do(maker: Maker, tmp_path: Path) -> None:
    """--dry-run as anybody, who may read the disc; nothing is changed, and a damaged disc is named."""
    out = unpacked(maker.make("squashfs", turn=7), tmp_path / "out")
    shown = process.run(["sh", out / "mount.sh", "--dry-run"]).stdout
    assert "environment  /opt/demo, read-only, from the disc (squashfs)" in shown
    assert "file         /srv/demo/app/demo.py, a link to the disc" in shown
    assert shown.endswith("Nothing was done (--dry-run).\n")
    assert not Path("/etc/conda-appliance/discs").exists() and not Path("/opt/demo").exists()
    (out / "README.txt").chmod(0o644)
    (out / "README.txt").write_text("another")
    damaged = process.run(["sh", out / "mount.sh", "--dry-run"], check=False)
    assert (damaged.returncode, "README.txt: FAILED" in damaged.stderr) == (3, True)


def test_units_wait_for_the_disc_by_its_label(maker: Maker, tmp_path: Path) -> None:
    """systemd itself reads them; a name with a - is escaped as it does it."""
    out = unpacked(maker.make("squashfs", turn=8), tmp_path / "out")
    about = dict(line.split(" ", 1) for line in (out / "setup/about").read_text().splitlines())
    assert (about["label"], disc.contents(maker.folder / "squashfs-8.iso").volume) == (
        "DEMO_LINE",
        "DEMO_LINE",
    )
    for key, path in (("disc_unit", about["where"]), ("unit", about["prefix"])):
        assert process.run(["systemd-escape", "--path", "--suffix=mount", path]).stdout.strip() == about[key]
    units = tmp_path / "units"
    units.mkdir()
    (units / about["disc_unit"]).write_bytes((out / "setup/disc.mount").read_bytes())
    (units / about["unit"]).write_bytes((out / "setup/environment.mount").read_bytes())
    command = ["systemd-analyze", "verify", "--man=no", *sorted(units.iterdir())]
    found = process.run(command, check=False, env={"SYSTEMD_UNIT_PATH": f"{units}:"})
    assert str(units) not in found.stdout + found.stderr
    service = (out / "setup/services/demo.service").read_text()
    assert "EnvironmentFile=-/etc/conda-appliance/discs/demo-line/environments/base.env" in service
    assert f"BindsTo={about['unit']}" in (out / "setup/service.conf").read_text()


def test_shellcheck_finds_nothing_in_mount_sh() -> None:
    process.run(["shellcheck", Path(__file__).parents[2] / "iso/userspace/mount.sh"])

"""A Debian package and an RPM, installed, upgraded and removed by dpkg and rpm in a real Debian."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import packages
import pytest
import rpm_findings
from debian_made import Debian, System
from packages import PLACEHOLDER, File, Package
from tests.conftest import Folders

from conda_appliance import conda, namespace, ospackages, payload, prefix_check, process
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.installation import Shipment
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) and mounts need root's rights")

EPOCH = 1_700_000_000
UNIT = "/usr/lib/systemd/system/demo.service"


class Maker:
    """Versions of a small appliance, as packages of both kinds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.channel = packages.small_channel(folder / "channel")
        odd = {
            "share/odd name 100%.txt": File(content="odd\n"),
            "etc/newer": File(content=f"{PLACEHOLDER}\n"),
        }
        Package(name="newer", files=odd).write(self.channel)
        packages.index(self.channel)
        (folder / "app").mkdir()
        (folder / "demo.conf").write_text("setting = 1\n")

    def shipment(self, version: str, *specs: str, files: object = None) -> Shipment:
        (self.folder / "app/demo.py").write_text(f"VERSION = {version!r}\n")
        channel = conda.Channel(name="./small", url=self.channel.as_uri())
        found, virtual = conda.solve(specs, [channel], contract=Contract(glibc="2.41"))
        environments = {"base": EnvironmentSection(prefix="/opt/demo", specs=specs, packages=found)}
        section = CondaSection(virtual_packages=virtual, environments=environments)
        locked = Lock(name="demo", digest="0" * 64, tools={}, conda=section)
        archives = {one.sha256: Path(one.url.removeprefix("file://")) for one in found}
        store = Store(self.folder / "layers")
        given = files or [{"from": "app/", "to": "/srv/demo"}, {"from": "demo.conf", "to": "/etc/demo.conf"}]
        image = ImageDefinition.model_validate(
            {
                "name": "demo",
                "version": version,
                "summary": "A demonstration of all that a package has",
                "base": {"debian": "trixie"},
                "conda": {
                    "prefix": "/opt/demo",
                    "channels": ["./small"],
                    "environments": {"base": {"dependencies": [*specs]}},
                },
                "services": [
                    {"name": "demo", "command": "prefixed --serve", "working_directory": "/srv/demo"}
                ],
                "files": given,
                "package": {"maintainer": "Me <me@example.com>", "license": "MIT"},
            }
        )
        return Shipment(
            image=image,
            lock=locked,
            linked=payload.environment(locked, archives, store=store, epoch=EPOCH, subject="demo"),
            archives=archives,
            folder=self.folder,
            project=None,
            store=store,
            epoch=EPOCH,
        )

    def write(
        self, make: Callable[[Shipment, Path, Path], None], name: str, version: str, *specs: str
    ) -> Path:
        work = self.folder / f"work-{name}"
        work.mkdir()
        to = self.folder / "made" / name
        to.parent.mkdir(exist_ok=True)
        make(self.shipment(version, *specs), to, work)
        assert list(work.iterdir()) == [], "nothing is left"
        work.rmdir()
        return to


@pytest.fixture(scope="module")
def maker(folders: Folders) -> Maker:
    made = Maker(folders.mktemp("packages"))
    made.write(ospackages.deb, "1.deb", "1.0", "prefixed")
    made.write(ospackages.deb, "2.deb", "2.0", "prefixed", "newer")
    made.write(ospackages.rpm, "1.rpm", "1.0", "prefixed")
    made.write(ospackages.rpm, "2.rpm", "2.0", "prefixed", "newer")
    return made


@pytest.fixture
def system(debian: Debian, maker: Maker, tmp_path: Path) -> System:
    return System(debian.system.path, maker.folder / "made", tmp_path)


DPKG = "chroot root dpkg --force-depends"
RPM = 'rpm --root "$PWD/root" --dbpath /var/lib/rpm'


def test_dpkg_installs_upgrades_removes_and_purges(system: System) -> None:
    system.run(f"{DPKG} --install /run/payload/1.deb")
    prefix = system.work / "upper/opt/demo"
    assert prefix_check.check(prefix) == []
    said = system.run(
        f"{DPKG} --verify demo; chroot root getent passwd demo; cat root{UNIT}; "
        "readlink root/usr/lib/systemd/system/multi-user.target.wants/demo.service; stat -c '%U %a' root/opt/demo"
    )
    assert "demo:" in said and "Service demo" in said
    assert 'ExecStart="/opt/demo/bin/prefixed" "--serve"' in said
    assert "../demo.service\nroot 755\n" in said
    (system.work / "upper/etc/demo.conf").write_text("setting = mine\n")
    system.run(
        f"{DPKG} --force-confold --install /run/payload/2.deb; {DPKG} --verify --no-pager demo || true"
    )
    assert prefix_check.check(prefix) == []
    assert (prefix / "etc/newer").read_text() == "/opt/demo\n"
    assert (system.work / "upper/etc/demo.conf").read_text() == "setting = mine\n", "its owner's"
    system.run("chroot root install -d -o demo /var/lib/demo; chroot root touch /var/lib/demo/data")
    system.run(f"{DPKG} --remove demo")
    assert system.written() == {"etc/demo.conf", "var/lib/demo", "var/lib/demo/data"}, (
        "settings and data stay"
    )
    system.run(f"{DPKG} --purge demo")
    assert system.written() == set()


def test_rpm_installs_verifies_upgrades_and_removes(system: System) -> None:
    said = system.run(
        f"{RPM} --nodeps --install root/run/payload/1.rpm; {RPM} --verify --nodeps demo; chroot root getent passwd demo"
    )
    assert said.startswith("demo:"), "and nothing to verify differs"
    prefix = system.work / "upper/opt/demo"
    assert prefix_check.check(prefix) == []
    system.run(f"{RPM} --nodeps --upgrade root/run/payload/2.rpm; {RPM} --verify --nodeps demo")
    assert prefix_check.check(prefix) == []
    assert (prefix / "share/odd name 100%.txt").read_text() == "odd\n"
    owned = system.run(f"{RPM} --query --list demo").splitlines()
    assert "/opt/demo" in owned and not {"/opt", "/usr/lib", "/etc"} & {*owned}
    system.run(f"{RPM} --erase demo")
    assert system.written() == set()


def test_lintian_is_content_but_for_listed_reasons(maker: Maker, tmp_path: Path) -> None:
    done = process.run(
        ["lintian", "--allow-root", "--fail-on", "none", maker.folder / "made/2.deb"],
        env={"TMPDIR": str(tmp_path)},
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if "mismatched-override" not in line]
    assert said == []
    shown = process.run(["dpkg-deb", "--fsys-tarfile", maker.folder / "made/1.deb"], check=False)
    assert shown.returncode == 0


def test_rpmlint_is_content_but_for_listed_reasons(maker: Maker, tmp_path: Path) -> None:
    named = tmp_path / "demo-2.0-1.x86_64.rpm"
    shutil.copy(maker.folder / "made/2.rpm", named)
    assert rpm_findings.findings(named, tmp_path) == []


def test_each_override_has_its_reason(maker: Maker, tmp_path: Path) -> None:
    process.run(["dpkg-deb", "-x", maker.folder / "made/1.deb", tmp_path])
    lines = (tmp_path / "usr/share/lintian/overrides/demo").read_text().splitlines()
    for number, line in enumerate(lines):
        if line.startswith("demo: "):
            tag = line.removeprefix("demo: ")
            assert lines[number - 1] == f"# {ospackages.OVERRIDDEN[tag]}"


@pytest.mark.parametrize("mounted", [True, False])
def test_the_same_inputs_give_the_same_bytes(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mounted: bool
) -> None:
    """Environments are mounted below what is a package's own, or copied where nobody may mount; and what they share
    with another environment (`layers.Store.get`, ``like``) has more names than one."""
    tree = maker.shipment("1.0", "prefixed").linked.path
    for number, path in enumerate(one for one in tree.rglob("*") if one.is_file() and not one.is_symlink()):
        os.link(path, tmp_path / str(number))
    for path in (maker.folder / "app").iterdir():
        os.utime(path, (1, 1))
    for name, make in (("1.deb", ospackages.deb), ("1.rpm", ospackages.rpm)):
        with monkeypatch.context() as other:
            assert namespace.can_mount()
            other.setattr(namespace, "can_mount", lambda: mounted)
            again = maker.write(make, f"again-{name}", "1.0", "prefixed")
        assert again.read_bytes() == (maker.folder / "made" / name).read_bytes()
        again.unlink()


def test_what_says_of_itself(maker: Maker) -> None:
    shown = process.run(["dpkg-deb", "--info", maker.folder / "made/1.deb"]).stdout
    assert "Maintainer: Me <me@example.com>" in shown and "Depends: libc6 (>= 2.41)" in shown
    assert "Description: demonstration of all" in shown, "without an article"
    listed = process.run(["dpkg-deb", "--contents", maker.folder / "made/1.deb"]).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    about = process.run(["rpm", "-qip", maker.folder / "made/1.rpm"]).stdout
    assert re.search(r"License +: MIT", about) and re.search(r"Build Host +: localhost", about)
    owners = process.run(["rpm", "-qp", "--qf", "[%{FILEUSERNAME} ]", maker.folder / "made/1.rpm"]).stdout
    assert {*owners.split()} == {"root"}


def test_files_within_the_environments_are_refused(maker: Maker, tmp_path: Path) -> None:
    inside = maker.shipment("1.0", "prefixed", files=[{"from": "app/", "to": "/opt/demo/share/app"}])
    with pytest.raises(UsageError, match="lies in /opt/demo"):
        ospackages.deb(inside, tmp_path / "x.deb", tmp_path)

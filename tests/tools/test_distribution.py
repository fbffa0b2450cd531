"""A conda distribution's installer: which one, that it is what was asked for, and what it lays down in the machine.

The installer here is our own form `sh`: it takes constructor's words (-b -p PREFIX) and makes an environment with
records as conda's. It stands in for Miniforge's and Miniconda's, which the places where tests run cannot reach.
"""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import sysconfig
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import Folders
from tests.tools import small_machine
from tests.tools.test_plain import EPOCH, Maker

from conda_appliance import distribution, payload, plain, prefix_check, process, resources, sources, trees
from conda_appliance.definition import Base
from conda_appliance.definition_conda import Distribution
from conda_appliance.errors import BuildError, HashMismatch, UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import (
    CondaSection,
    DebianSection,
    EnvironmentSection,
    InstallerSection,
    Lock,
)

PREFIX = "/opt/box"


@dataclass(frozen=True)
class Box:
    """An installer, and a root file system for it to run in."""

    folder: Path
    installer: Path
    root: Path

    @property
    def section(self) -> InstallerSection:
        return self.of(self.installer)

    def of(self, installer: Path) -> InstallerSection:
        return InstallerSection(
            name="demo",
            version="",
            url=str(installer),
            sha256=resources.sha256_of(installer),
            size=installer.stat().st_size,
        )

    def lay(self, installer: Path, store: Path, root: Path | None = None) -> Path:
        return distribution.tree(
            self.of(installer),
            installer,
            prefix=PREFIX,
            system=lambda: root or self.root,
            store=Store(store),
            epoch=EPOCH,
        ).path


@pytest.fixture(scope="module")
def box(folders: Folders) -> Box:
    maker = Maker(folders.mktemp("made"))
    made = maker.write(plain.installer, maker.shipment("1.0", "pure"), "demo-1.0-Linux-x86_64.sh")
    root = small_machine.make(folders.mktemp("system") / "root", systemd=False)
    for name in ("gzip", "setpriv"):
        small_machine.copy(root, process.find(name), f"/bin/{name}")
    stdlib = Path(sysconfig.get_path("stdlib"))  # the stand-in for Python in the environment is this host's
    unneeded = shutil.ignore_patterns(
        "test", "site-packages", "__pycache__", "idlelib", "tkinter", "config-*"
    )
    shutil.copytree(stdlib, Path(f"{root}{stdlib}"), ignore=unneeded, dirs_exist_ok=True)
    return Box(maker.folder, made, root)


@pytest.fixture(scope="module")
def laid(box: Box) -> Path:
    return box.lay(box.installer, box.folder / "store")


def script(folder: Path, text: str) -> Path:
    path = folder / "theirs.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    return path


# --- what it lays down ------------------------------------------------------------------------------


def test_it_lays_down_an_environment_that_names_its_final_path(laid: Path) -> None:
    assert (laid / "etc/prefixed.conf").read_text() == f"home = {PREFIX}/share\n"
    assert [one.name for one in distribution.packages_of(laid)] == ["libc-user", "prefixed", "pure", "python"]


def test_every_file_of_it_is_known_by_its_digest(laid: Path, tmp_path: Path) -> None:
    assert prefix_check.check(laid) == []
    process.run(["cp", "-a", laid, tmp_path / "copy"])
    copy = tmp_path / "copy"
    (copy / "bin/activate").write_text("changed")
    (copy / "bin/deactivate").unlink()
    (copy / "etc/prefixed.conf").write_text("changed")
    (copy / "bin/more").touch()
    kinds = [line.partition(" (")[0].partition(":")[::2] for line in prefix_check.check(copy)]
    assert [(kind, path.strip()) for kind, path in kinds] == [
        ("changed", "bin/activate"),
        ("changed", "etc/prefixed.conf"),
        ("extra", "bin/more"),
        ("missing", "bin/deactivate"),
    ]


def test_the_same_installer_gives_the_same_tree_whenever_it_runs(
    box: Box, laid: Path, tmp_path: Path
) -> None:
    again = box.lay(box.installer, tmp_path / "store")
    assert trees.differences(trees.listing(laid), trees.listing(again)) == []


def test_the_system_it_ran_in_is_as_it_was(box: Box, tmp_path: Path) -> None:
    before = trees.listing(box.root)
    box.lay(box.installer, tmp_path / "store")
    assert trees.differences(before, trees.listing(box.root)) == []


def test_it_has_no_network_and_nothing_of_this_hosts_environment(
    box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_HOST", "secret")
    body = "env >/opt/said; cat /proc/net/dev >>/opt/said; cat /opt/said >&2; exit 3"
    with pytest.raises(BuildError) as caught:
        box.lay(script(tmp_path, body), tmp_path / "store")
    said = caught.value.message
    assert "failed with status 3" in said
    assert "HOME=/root" in said and "secret" not in said
    assert re.findall(r"^(\w+):", said, re.MULTILINE) == ["lo"]


def test_one_that_makes_no_environment_is_refused(box: Box, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"there is no conda environment at {PREFIX}"):
        box.lay(script(tmp_path, "exit 0"), tmp_path / "store")


def test_what_it_writes_elsewhere_is_told_and_left_out(
    box: Box, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer = tmp_path / "outer.sh"
    # An installer around ours, which begins after the first 200 bytes.
    outer.write_bytes(
        b"#!/bin/sh\nmkdir -p /root/.conda\n: >/root/.conda/environments.txt\n"
        b'tail -c +201 "$0" >/tmp/inner.sh\nexec sh /tmp/inner.sh "$@"\n'.ljust(199)
        + b"\n"
    )
    with outer.open("ab") as file:
        file.write(box.installer.read_bytes())
    made = box.lay(outer, tmp_path / "store")
    assert "/root/.conda/environments.txt" in capsys.readouterr().err
    assert (made / "etc/prefixed.conf").is_file()


# --- in a build -------------------------------------------------------------------------------------


def locked(box: Box, laid: Path, section: InstallerSection) -> Lock:
    environment = EnvironmentSection(
        prefix=PREFIX, specs=(), packages=distribution.packages_of(laid), installer=section
    )
    return Lock(
        name="demo",
        digest="0" * 64,
        tools={},
        debian=DebianSection(suite="trixie", glibc="2.41", packages=()),
        conda=CondaSection(virtual_packages=(), environments={"base": environment}),
    )


@pytest.fixture
def in_the_small_system(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's system is the small one."""

    class System:
        path = box.root

    monkeypatch.setattr("conda_appliance.bootstrap.system", lambda *_args, **_more: System)


@pytest.mark.usefixtures("in_the_small_system")
def test_every_form_begins_with_what_it_laid_down(box: Box, laid: Path, tmp_path: Path) -> None:
    lock = locked(box, laid, box.section)
    archives = {box.section.sha256: box.installer}
    made = payload.environment(
        lock, archives, store=Store(tmp_path / "store"), epoch=EPOCH, base=Base(debian="trixie")
    )
    assert prefix_check.check(made.path / PREFIX[1:]) == []
    assert (
        trees.differences(
            trees.listing(laid, times=False), trees.listing(made.path / PREFIX[1:], times=False)
        )
        == []
    )


@pytest.mark.usefixtures("in_the_small_system")
def test_one_that_leaves_other_packages_than_were_locked_is_refused(
    box: Box, laid: Path, tmp_path: Path
) -> None:
    lock = locked(box, laid, box.section)
    base = lock.conda.environments["base"]
    other = (base.packages[0].model_copy(update={"version": "9"}), *base.packages[1:])
    lock = lock.model_copy(
        update={
            "conda": lock.conda.model_copy(
                update={"environments": {"base": base.model_copy(update={"packages": other})}}
            )
        }
    )
    with pytest.raises(BuildError, match=f"other packages than the lock says: {base.packages[0].name}"):
        payload.environment(
            lock,
            {box.section.sha256: box.installer},
            store=Store(tmp_path / "store"),
            epoch=EPOCH,
            base=Base(debian="trixie"),
        )


# --- which one --------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, box: Box) -> Iterator[str]:
    """A mirror that has one Miniforge and two Minicondas, which are all the stand-in."""
    folder = tmp_path / "site"
    name = "Miniforge3-25.9.1-0-Linux-x86_64.sh"
    (folder / "25.9.1-0").mkdir(parents=True)
    data, digest = box.installer.read_bytes(), box.section.sha256
    (folder / "25.9.1-0" / name).write_bytes(data)
    (folder / "25.9.1-0" / f"{name}.sha256").write_text(f"{digest}  ./{name}\n")
    listed = {}
    for version, time in (("py312_25.1.0-1", 1.0), ("py313_25.9.1-3", 2.0)):
        one = f"Miniconda3-{version}-Linux-x86_64.sh"
        (folder / one).write_bytes(data)
        listed[one] = {"size": len(data), "mtime": time, "sha256": digest}
    listed["Miniconda3-latest-Linux-x86_64.sh"] = {"size": 1, "mtime": 9.0, "sha256": "0" * 64}
    (folder / ".files.json").write_text(json.dumps(listed))
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None: ...


def located(asked: Distribution, tmp_path: Path) -> InstallerSection:
    return distribution.locate(asked, tmp_path, sources.Cache(tmp_path / "cache"), lambda _text: None)


def test_a_miniforge_is_the_one_whose_digest_stands_beside_it(site: str, box: Box, tmp_path: Path) -> None:
    found = located(Distribution(name="miniforge", version="25.9.1-0", mirror=site), tmp_path)
    assert found.sha256 == box.section.sha256
    assert found.size == box.section.size
    assert found.url == f"{site}/25.9.1-0/Miniforge3-25.9.1-0-Linux-x86_64.sh"


def test_a_changed_miniforge_is_refused_by_name(site: str, tmp_path: Path) -> None:
    path = tmp_path / "site/25.9.1-0/Miniforge3-25.9.1-0-Linux-x86_64.sh"
    path.write_bytes(path.read_bytes() + b"# one line more\n")
    with pytest.raises(HashMismatch, match=re.escape(path.name)):
        located(Distribution(name="miniforge", version="25.9.1-0", mirror=site), tmp_path)


def test_the_digest_of_a_miniconda_is_in_its_publishers_list(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = located(Distribution(name="miniconda", version="py312_25.1.0-1", mirror=site), tmp_path)
    assert found.url == f"{site}/Miniconda3-py312_25.1.0-1-Linux-x86_64.sh"
    monkeypatch.setattr(distribution, "MINICONDA", site)
    assert located(Distribution(name="miniconda"), tmp_path).version == "py313_25.9.1-3", "the newest"
    with pytest.raises(UsageError, match=r"no Miniconda py39_1\.0") as caught:
        located(Distribution(name="miniconda", version="py39_1.0", mirror=site), tmp_path)
    assert "py313_25.9.1-3" in caught.value.hint


def test_an_installer_of_ones_own_is_what_the_definition_says(box: Box, tmp_path: Path) -> None:
    asked = Distribution(installer=str(box.installer))
    assert located(asked, tmp_path).sha256 == box.section.sha256
    wrong = Distribution(installer=str(box.installer), sha256="0" * 64)
    with pytest.raises(HashMismatch, match=box.installer.name):
        located(wrong, tmp_path)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/.files.json").write_text("<html>please log in</html>")
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(BuildError, match="is not what it was"):
            located(Distribution(name="miniconda", version="py312_25.1.0-1", mirror=other), tmp_path)
        server.shutdown()

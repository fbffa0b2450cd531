"""The base disk is assembled from exactly the locked packages, boots on BIOS and UEFI, and carries no secret.

Looked at from outside, with the tools of its formats; that it does boot is seen in tests/boot.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from debian_made import Debian, lock_of, written
from inside import Inside

from conda_appliance import basedisk, bootstrap, process, resolve, resources, runs, sources, system_files
from conda_appliance.definition import Base
from conda_appliance.disk import SECTOR
from conda_appliance.errors import BuildError, HashMismatch, UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import DebianSection, ImageSection


@dataclass(frozen=True)
class Made(Inside):
    """A Debian base, and what can be asked of it."""

    debian: Debian
    section: DebianSection
    disk: basedisk.BaseDisk
    raw: Path

    def link(self, path: str) -> str:
        found = re.search(r'Fast link dest: "(.*)"', self.debugfs(f"stat {path}"))
        assert found, f"{path} is not a link"
        return found[1]


@pytest.fixture(scope="session")
def made(debian: Debian, tmp_path_factory: pytest.TempPathFactory) -> Made:
    disk = basedisk.make(
        lock_of(debian=debian.section),
        debian.image,
        debian.files,
        store=debian.store,
        progress=lambda _: None,
    )
    raw = tmp_path_factory.mktemp("base") / "disk.raw"
    process.run(["qemu-img", "convert", "-O", "raw", disk.path, raw])
    return Made(debian, debian.section, disk, raw)


# --- what is locked ---------------------------------------------------------------------------------


def test_the_lock_names_every_package_with_its_hash(made: Made) -> None:
    names = {package.name for package in made.section.packages}
    assert {"libc6", "dpkg", "linux-image-cloud-amd64", "openssh-server", "netcat-openbsd"} <= names
    assert all(re.fullmatch("[0-9a-f]{64}", package.sha256) for package in made.section.packages)
    assert made.section.glibc == "2.41"


def test_bookworm_resolves_too(tmp_path: Path) -> None:
    cache = sources.Cache(resources.cache_root())
    section = resolve.debian_section(written(tmp_path, "{debian: bookworm}"), cache)
    assert section.glibc == "2.36"
    assert {"cloud-init", "systemd-resolved"} <= {package.name for package in section.packages}


def test_a_package_that_does_not_exist_is_named(tmp_path: Path) -> None:
    image = written(tmp_path, "{debian: trixie, packages: [no-such-package]}")
    with pytest.raises(UsageError, match="no-such-package"):
        resolve.debian_section(image, sources.Cache(resources.cache_root()))


# --- the disk ---------------------------------------------------------------------------------------


def test_the_disk_has_the_definitions_size(made: Made) -> None:
    about = json.loads(process.run(["qemu-img", "info", "--output=json", made.disk.path]).stdout)
    assert (about["format"], about["virtual-size"]) == ("qcow2", 2 << 30)


def test_the_file_system_is_sound_and_fills_its_partition(made: Made) -> None:
    process.run(["e2fsck", "-fn", made.file_system])
    about = process.run(["dumpe2fs", "-h", made.file_system]).stdout
    blocks = int(re.search(r"Block count: +(\d+)", about)[1])  # type: ignore[index]
    table = json.loads(process.run(["sfdisk", "--json", made.raw]).stdout)["partitiontable"]
    assert 0 <= table["partitions"][2]["size"] * SECTOR - blocks * 4096 < 1 << 20


def test_grub_and_fstab_name_the_file_system_by_its_uuid(made: Made) -> None:
    uuid = re.search(r"UUID: +(\S+)", process.run(["dumpe2fs", "-h", made.file_system]).stdout)[1]  # type: ignore[index]
    assert f"root=UUID={uuid} " in made.read("/boot/grub/grub.cfg")
    assert made.read("/etc/fstab").startswith(f"UUID={uuid} / ext4 ")


def test_kernel_upgrades_keep_booting_by_the_links_that_grub_follows(made: Made) -> None:
    assert "linux /vmlinuz " in made.read("/boot/grub/grub.cfg")
    assert made.link("/vmlinuz").removeprefix("boot/") in made.names("/boot")
    assert made.link("/initrd.img").removeprefix("boot/") in made.names("/boot")


# --- what is on it ----------------------------------------------------------------------------------


def test_the_machine_holds_exactly_the_locked_packages(made: Made) -> None:
    found = bootstrap.installed(made.read("/var/lib/dpkg/status"))
    assert found == {(package.name, package.version) for package in made.section.packages}


def test_no_account_has_a_password(made: Made) -> None:
    accounts = [line.split(":") for line in made.read("/etc/shadow").splitlines()]
    assert "root" in [account[0] for account in accounts]
    assert [account[0] for account in accounts if account[1][:1] not in ("!", "*")] == []


def test_what_must_differ_between_clones_is_not_there_yet(made: Made) -> None:
    assert "machine-id" in made.names("/etc")
    assert made.read("/etc/machine-id") == ""
    assert not [name for name in made.names("/etc/ssh") if name.startswith("ssh_host_")]
    assert "random-seed" not in made.names("/var/lib/systemd")


def test_nothing_of_this_host_is_on_it(made: Made) -> None:
    assert made.read("/etc/hostname") == "localhost\n"
    assert made.link("/etc/resolv.conf") == "../run/systemd/resolve/stub-resolv.conf"
    assert "URIs: http://deb.debian.org/debian\n" in made.read("/etc/apt/sources.list.d/debian.sources")
    assert "sources.list" not in made.names("/etc/apt")
    assert str(resources.cache_root()) not in made.read("/var/log/dpkg.log")


@pytest.mark.parametrize(
    "path",
    [
        "/boot",
        "/etc",
        "/usr",
        *sorted({*system_files.early_files("", Base(debian="trixie")), *system_files.late_files("", None)}),
    ],
)
def test_what_we_lay_over_debian_is_roots(made: Made, path: str) -> None:
    about = made.debugfs(f"stat {path}")
    assert re.search(r"User: +0 +Group: +0 ", about)
    assert re.search(r"Mode: +(0755|0644) ", about)


def test_debians_python_finds_byte_code_of_all_its_packages(made: Made) -> None:
    """Compiled for all packages at once, and compared with a module by its content (PEP 552's checked hash)."""
    modules = sorted((made.debian.system.path / "usr/lib/python3/dist-packages").rglob("*.py"))
    assert {"jinja2", "cloudinit"} <= {module.parent.name for module in modules}
    for module in modules:
        (code,) = (module.parent / "__pycache__").glob(f"{module.stem}.cpython-*.pyc")
        assert code.read_bytes()[4:8] == b"\3\0\0\0", module


def test_every_authority_that_debian_trusts_is_trusted(made: Made) -> None:
    """Collected once, with all links by hash that OpenSSL looks for."""
    shipped = list((made.debian.system.path / "usr/share/ca-certificates").rglob("*.crt"))
    trusted = made.debian.system.path / "etc/ssl/certs"
    assert len(shipped) > 100
    assert (trusted / "ca-certificates.crt").read_text().count("BEGIN CERTIFICATE") == len(shipped)
    by_hash = [one for one in trusted.iterdir() if re.fullmatch(r"[0-9a-f]{8}\.\d", one.name)]
    assert len(by_hash) == len(shipped)


def test_what_debians_packages_enable_is_enabled_and_recorded(made: Made) -> None:
    """All at the end, where Debian has each package start a program for each unit (deb-systemd-helper(1))."""
    tree = made.debian.system.path
    recorded = tree / "var/lib/systemd/deb-systemd-helper-enabled"
    links = {
        path.name.removesuffix(".dsh-also"): path.read_text().split() for path in recorded.glob("*.dsh-also")
    }
    for unit in ("ssh.service", "cloud-final.service", "fstrim.timer", "dpkg-db-backup.timer"):
        assert links[unit]
        for link in links[unit]:
            assert (tree / link[1:]).is_symlink(), link
            assert (recorded / link.removeprefix("/etc/systemd/system/")).exists(), link
    users = tree / "var/lib/systemd/deb-systemd-user-helper-enabled"
    assert [path.name for path in users.glob("*.dsh-also")] == ["ssh-agent.socket.dsh-also"]


def test_dpkgs_records_are_whole(made: Made) -> None:
    """They were in memory while it worked."""
    root = made.debian.system.path
    said = process.run(["dpkg", f"--root={root}", "--audit"])
    assert said.stdout == ""
    assert "ssh" in process.run(["dpkg", f"--root={root}", "--listfiles", "openssh-server"]).stdout


def test_what_stood_in_while_packages_were_configured_is_gone(made: Made) -> None:
    assert made.names("/var/tmp") == set()


def test_it_speaks_utf_8(made: Made) -> None:
    assert "LANG=C.UTF-8" in made.read("/etc/locale.conf")
    assert made.link("/etc/default/locale") == "../locale.conf"


@pytest.mark.parametrize("unit", [*bootstrap.MASKED, *bootstrap.MASKED_FAST])
def test_units_that_an_appliance_lacks_are_masked(made: Made, unit: str) -> None:
    assert made.link(f"/etc/systemd/system/{unit}") == "/dev/null"


def test_a_fast_start_waits_for_none_of_these(made: Made) -> None:
    there = made.names("/usr/lib/systemd/system")
    held = {unit: targets for unit, targets in bootstrap.UNHELD.items() if unit in there}
    assert len(held) >= len(bootstrap.UNHELD) - 1, "Debian 12 and 13 name one of them differently"
    for unit, targets in held.items():
        ours, theirs = made.read(f"/etc/systemd/system/{unit}"), made.read(f"/usr/lib/systemd/system/{unit}")
        before = " ".join(line for line in ours.splitlines() if line.startswith("Before="))
        assert not any(target in before for target in targets), unit
        assert "ExecStart=" in ours, unit
        assert [line for line in ours.splitlines() if not line.startswith("Before=")] == [
            line for line in theirs.splitlines() if not line.startswith("Before=")
        ], unit


# --- its place in the cache -------------------------------------------------------------------------


def test_it_is_made_once(made: Made) -> None:
    again = basedisk.make(
        lock_of(debian=made.section),
        made.debian.image,
        made.debian.files,
        store=made.debian.store,
        progress=lambda _: None,
    )
    assert not again.made
    assert again.sha256 == made.disk.sha256 == resources.sha256_of(again.path)


# --- cloud images -----------------------------------------------------------------------------------


def some_disk(path: Path, form: str, *, size: str = "1G") -> Path:
    """A disk with a partition table and something in it, as ``form``."""
    raw = path.with_suffix(".made")
    with raw.open("wb") as file:
        file.truncate(64 << 20)
    process.run(["sfdisk", "--quiet", raw], input="label: gpt\n,\n")
    process.run(["qemu-img", "resize", "-q", "-f", "raw", raw, size])
    process.run(["qemu-img", "convert", "-O", form, raw, path])
    raw.unlink()
    return path


def from_cloud(source: Path, tmp_path: Path, size: str = "2GiB") -> basedisk.BaseDisk:
    digest = resources.sha256_of(source)
    image = written(tmp_path, f"{{image: {{url: '{source}', sha256: '{digest}'}}}}", size)
    return basedisk.make(
        lock_of(image=ImageSection(url=source.as_uri(), sha256=digest)),
        image,
        {digest: source},
        store=Store(tmp_path / "layers"),
        progress=lambda _: None,
    )


@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_a_cloud_image_becomes_a_disk_of_the_definitions_size(tmp_path: Path, form: str) -> None:
    source = some_disk(tmp_path / "image", form)
    before = resources.sha256_of(source)
    base = from_cloud(source, tmp_path)
    about = json.loads(process.run(["qemu-img", "info", "--output=json", base.path]).stdout)
    assert (about["format"], about["virtual-size"]) == ("qcow2", 2 << 30)
    assert resources.sha256_of(source) == before


def test_another_kind_of_image_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vmdk") as caught:
        from_cloud(some_disk(tmp_path / "image", "vmdk"), tmp_path)
    assert "qemu-img convert" in caught.value.hint


def test_an_image_that_is_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a disk of 3\.0 GiB, larger than disk\.size \(2\.0 GiB\)"):
        from_cloud(some_disk(tmp_path / "image", "qcow2", size="3G"), tmp_path)


def test_an_overlay_is_refused_because_its_content_is_elsewhere(tmp_path: Path) -> None:
    below = some_disk(tmp_path / "below", "qcow2")
    overlay = tmp_path / "overlay"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, overlay])
    with pytest.raises(UsageError, match="below: give a whole image"):
        from_cloud(overlay, tmp_path)


def test_a_web_page_is_no_disk(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_text("<html>404</html>" * 100)
    with pytest.raises(UsageError, match="is no disk"):
        from_cloud(page, tmp_path)


def test_a_cached_base_with_a_flipped_byte_is_set_aside_and_made_anew(tmp_path: Path) -> None:
    source = some_disk(tmp_path / "image", "qcow2")
    base = from_cloud(source, tmp_path)
    with base.path.open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(HashMismatch, match=re.escape(str(base.path))):
        from_cloud(source, tmp_path)
    again = from_cloud(source, tmp_path)
    assert again.made
    assert again.sha256 == base.sha256


# --- what a killed run leaves -----------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="without root's rights mmdebstrap mounts nothing on this host")
def test_a_killed_bootstrap_leaves_no_mount_and_the_hosts_shared_memory_alone(
    made: Made, tmp_path: Path
) -> None:
    ours = Path(f"/dev/shm/conda-appliance-test-{os.getpid()}")
    ours.write_text("still here")
    packages = {package.filename: str(made.debian.files[package.sha256]) for package in made.section.packages}
    (tmp_path / "files.json").write_text(json.dumps(packages))
    (tmp_path / "lock.json").write_text(made.section.model_dump_json())
    script = (
        "import json, os, sys; from pathlib import Path; from conda_appliance import bootstrap, lock, runs\n"
        "from conda_appliance.definition import Base\n"
        "os.environ[runs.MARK] = runs.mark(); here = Path(sys.argv[1])\n"
        "section = lock.DebianSection.model_validate_json((here / 'lock.json').read_text())\n"
        "names = json.loads((here / 'files.json').read_text())\n"
        "files = {p.sha256: Path(names[p.filename]) for p in section.packages}\n"
        "(here / 'work').mkdir()\n"
        "bootstrap.root_tree(section, Base(debian='trixie', packages=('netcat-openbsd',)), files, here / 'tree',\n"
        "    identity='x', work=here / 'work', progress=lambda line: print(line, flush=True))\n"
    )
    log = tmp_path / "log"
    with log.open("wb") as file:
        run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 300
        while "installing essential" not in log.read_text():
            assert run.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the bootstrap never came to where it mounts"
            time.sleep(0.1)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    runs.reap()
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    for left in ("work", "tree"):
        resources.remove(tmp_path / left)
    assert ours.read_text() == "still here"
    ours.unlink()


def test_other_packages_than_the_locks_are_refused(tmp_path: Path) -> None:
    status = "Package: extra\nStatus: install ok installed\nVersion: 1\n\n"
    folder = tmp_path / "var/lib/dpkg"
    folder.mkdir(parents=True)
    (folder / "status").write_text(status)
    section = DebianSection(suite="trixie", glibc="2.41", packages=())
    with pytest.raises(BuildError, match="too many extra 1; missing nothing"):
        bootstrap._require_same(section, tmp_path)


def test_the_tools_it_needs_are_told_beforehand(tmp_path: Path) -> None:
    for tool in basedisk.tools(written(tmp_path, "{debian: trixie}")):
        assert shutil.which(tool, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"), tool


@pytest.mark.parametrize("failing", ["linux-version", "update-initramfs", "linux-update-symlinks", ""])
def test_an_initramfs_that_cannot_be_made_ends_the_bootstrap(tmp_path: Path, failing: str) -> None:
    """The hook under a chroot that is none: it says what it is asked, and one program of it fails."""
    chroot = tmp_path / "chroot"
    chroot.write_text(
        f'#!/bin/sh\n[ "$2" != "{failing}" ] || exit 1\n'
        '[ "$2" = linux-version ] && echo 6.1 && echo 6.12 || echo "$INITRD$*" >>"$1/said"\n'
    )
    chroot.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", bootstrap._INITRAMFS, "sh", tmp_path],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "INITRD": "No"},
        check=False,
    )
    assert (done.returncode == 0) == (not failing)
    if not failing:
        assert (tmp_path / "said").read_text().splitlines() == [
            f"{tmp_path} {words}"
            for version in ("6.1", "6.12")
            for words in (
                f"update-initramfs -c -k {version}",
                f"linux-update-symlinks install {version} /boot/vmlinuz-{version}",
            )
        ]

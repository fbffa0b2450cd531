"""Locked ``.debs`` → a Debian root file system, as a tar file with owners, modes and capabilities.

mmdebstrap unpacks and configures exactly the locked packages, from a folder on this host; no network takes part.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from conda_appliance import process, render, resources
from conda_appliance.apt import DEFAULT_MIRROR, DEFAULT_SECURITY
from conda_appliance.definition import Base
from conda_appliance.errors import BuildError
from conda_appliance.lock import DebianSection

#: What every appliance has beside Debian's Essential packages, and why.
PACKAGES = (
    "linux-image-cloud-amd64",  # the kernel for virtual machines: a tenth of the modules
    "initramfs-tools",
    "zstd",  # the initramfs' compression
    "systemd-sysv",
    "systemd-resolved",  # names, as DHCP and the seed say them
    "systemd-timesyncd",
    "dbus",
    "udev",
    "kmod",
    "openssh-server",
    "sudo",
    "python3",  # Ansible's modules, while it is built
    "cloud-init",  # keys, host name and network of each clone, from a seed disc or the cloud
    "cloud-guest-utils",  # growpart: the root partition follows a larger disk
    "fdisk",
    "e2fsprogs",
    "iproute2",
    "ca-certificates",
    "apt",
)

#: Units that only cost an appliance its start-up, or change it behind its owner's back.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-pstore.service",  # crash dumps from hardware that a virtual machine does not have
)
ENABLED = ("systemd-networkd", "systemd-resolved", "systemd-timesyncd", "sshd-keygen")

#: Files of packages that stay out: documentation (not the licences), and a registration with binfmt_misc that
#: costs each boot a service, so that ``.pyc`` files can be run like programs.
EXCLUDED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/lib/binfmt.d/python3*")
INCLUDED = ("/usr/share/doc/*/copyright",)

#: The clock of every file that is made here: 2020-01-01.
EPOCH = "1577836800"

#: What holds a root disk under the hypervisors and clouds that Debian's cloud kernel is for.
_DISK_DRIVERS = (
    "virtio_pci virtio_mmio virtio_blk virtio_scsi nvme sd_mod sr_mod ahci ata_piix ata_generic "
    "vmw_pvscsi BusLogic mpi3mr hv_vmbus hv_storvsc pci-hyperv xen-blkfront xen-scsifront ext4"
)


def tools() -> tuple[str, ...]:
    """The programs of the host that a bootstrap needs."""
    return ("mmdebstrap", "dpkg-scanpackages", "tar", "unshare")


def root_tar(
    section: DebianSection,
    base: Base,
    files: Mapping[str, Path],
    *,
    identity: str,
    work: Path,
    progress: Callable[[str], None],
) -> Path:
    """The root file system as a tar file in ``work``, made from exactly the locked packages.

    ``files`` are the verified packages by SHA-256; ``identity`` is the root file system's UUID. Raises
    CommandFailed with mmdebstrap's words, BuildError when other packages than the lock's came out.
    """
    tar = work / "root.tar"
    with _workshop(work) as shop:
        _repository(section, files, shop / "repository")
        early = _packed(early_files(identity), shop / "early.tar")
        late = _packed(late_files(section.suite, base.mirror), shop / "late.tar")
        command = [
            "mmdebstrap",
            "--variant=essential",
            f"--include={','.join([*PACKAGES, *base.packages])}",
            "--architectures=amd64",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
            *(f"--dpkgopt=path-include={pattern}" for pattern in INCLUDED),
            '--aptopt=Apt::Install-Recommends "false"',
            # Before the kernel's package makes its initramfs.
            f"--essential-hook=tar-in {early} /",
            f"--customize-hook=tar-in {late} /",
            *(f"--customize-hook={line}" for line in _FINISH),
            section.suite,
            str(tar),
            f"deb [trusted=yes] copy:{shop / 'repository'} ./",
        ]
        process.run(
            _private(command),
            env={"SOURCE_DATE_EPOCH": EPOCH, "TMPDIR": str(shop)},
            on_line=lambda line: _tell(line, progress),
        )
    _require_same(section, tar)
    return tar


def _tell(line: str, progress: Callable[[str], None]) -> None:
    """Pass on mmdebstrap's stages: its lines that begin with ``I:``, but for those that speak of its own hooks."""
    if line.startswith("I: ") and "hook" not in line and "tempdir" not in line:
        progress(line.removeprefix("I: ").rstrip("."))


_FINISH = (
    'rm -f "$1"/etc/apt/sources.list "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap'
    ' "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/ssh/ssh_host_*',
    f'chroot "$1" systemctl --quiet mask {" ".join(MASKED)}',
    f'chroot "$1" systemctl --quiet enable {" ".join(ENABLED)}',
    'ln -sf ../run/systemd/resolve/stub-resolv.conf "$1"/etc/resolv.conf',
    # Empty: each machine makes its own. ("uninitialized" would also make systemd apply its presets on the first
    # boot, and enable again what was disabled on purpose, or warn that /etc is read-only. machine-id(5).)
    ': > "$1"/etc/machine-id',
    'chroot "$1" update-locale LANG=C.UTF-8',
    'chroot "$1" passwd --quiet --lock root',
    # Caches that packages made just now are as new as what they were made of: no need to remake them at first boot
    # (systemd-update-done.service(8)).
    'touch "$1"/etc/.updated "$1"/var/.updated',
)


def early_files(identity: str) -> dict[str, str]:
    """What the packages find already when they are configured, as path → text."""
    return {
        "etc/fstab": f"UUID={identity} / ext4 defaults,errors=remount-ro 0 1\n",
        "etc/initramfs-tools/conf.d/conda-appliance": (
            "# The drivers come from hooks/conda-appliance; with `most` it is six times the size.\n"
            "MODULES=list\n"
        ),
        "etc/initramfs-tools/hooks/conda-appliance": render.text(
            "boot/initramfs-hook.j2", disk_drivers=_DISK_DRIVERS
        ),
        "boot/grub/grub.cfg": render.text("boot/grub.cfg.j2", uuid=identity),
    }


def late_files(suite: str, mirror: str | None) -> dict[str, str]:
    """What is laid over the configured packages, as path → text."""
    main = mirror if mirror and not mirror.startswith("file:") else DEFAULT_MIRROR
    keyring = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    return {
        "etc/hostname": "localhost\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "etc/apt/sources.list.d/debian.sources": (
            f"Types: deb\nURIs: {main}\nSuites: {suite} {suite}-updates\nComponents: main\n{keyring}\n"
            f"Types: deb\nURIs: {DEFAULT_SECURITY}\nSuites: {suite}-security\nComponents: main\n{keyring}"
        ),
        "etc/systemd/network/80-dhcp.network": (
            "# Any wired interface that nothing else configures (cloud-init's own files sort before this one).\n"
            "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n"
        ),
        # An appliance answers on no port that it was not asked to answer on.
        "etc/systemd/resolved.conf.d/appliance.conf": "[Resolve]\nLLMNR=no\nMulticastDNS=no\n",
        "etc/systemd/system/systemd-networkd-wait-online.service.d/appliance.conf": (
            "# One interface with an address is enough, and a machine without a network starts all the same.\n"
            "[Service]\nExecStart=\nExecStart=/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=30\n"
        ),
        # Answers to host and guest talking over AF_VSOCK, which few hypervisors have, with an error on each boot.
        "etc/systemd/system-generators/systemd-ssh-generator": "",
        # Replaces trixie's unit of this name, which makes an RSA key beside cloud-init's (a slow one, made twice).
        "etc/systemd/system/sshd-keygen.service": render.text("boot/sshd-keygen.service.j2"),
        "etc/cloud/cloud.cfg.d/10-conda-appliance.cfg": (
            "# The key types that every SSH client of the last ten years speaks; RSA's take seconds to make.\n"
            "ssh_genkeytypes: [ed25519, ecdsa]\n"
            "# C.UTF-8, which the image has already; a seed may set another.\n"
            "locale: false\n"
        ),
    }


@contextmanager
def _workshop(work: Path) -> Iterator[Path]:
    """A folder for mmdebstrap that the users it works as can enter.

    Without root's rights those are the user's subordinate ids, which a private home or cache folder shuts out.
    """
    if os.geteuid() == 0:
        shop = work / "bootstrap"
        shop.mkdir()
        yield shop
        resources.remove(shop)
        return
    parent = Path(os.environ.get("TMPDIR", "/tmp")) / f"conda-appliance-{os.geteuid()}"  # noqa: S108
    parent.mkdir(mode=0o711, exist_ok=True)
    if parent.stat().st_uid != os.geteuid() or parent.is_symlink():
        raise BuildError(f"{parent} belongs to somebody else", hint="set TMPDIR to a folder of your own")
    resources.sweep(parent)
    with resources.work_folder(parent, work.name.removesuffix(".partial")) as shop:
        yield shop


def _private(command: list[str]) -> list[str]:
    """``command`` with mounts of its own, which end with it.

    As root, mmdebstrap binds the host's /dev/shm and others into the tree. Were it killed, whoever removes the
    tree would empty the host's. (Where root may not unshare, in a container, mmdebstrap cannot mount either.)
    """
    if os.geteuid() != 0 or process.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        return command
    return ["unshare", "--mount", *command]


def _repository(section: DebianSection, files: Mapping[str, Path], to: Path) -> None:
    """A folder that apt takes for an archive: the locked packages and an index of them."""
    to.mkdir()
    for package in section.packages:
        place = to / package.filename
        if os.geteuid() == 0:
            place.symlink_to(files[package.sha256])
        else:
            # The cache may lie where mmdebstrap's users cannot enter; a second name costs nothing.
            _link_or_copy(files[package.sha256], place)
    index = process.run(["dpkg-scanpackages", "--multiversion", "."], cwd=to).stdout
    packages = to / "Packages"
    packages.write_text(index, encoding="utf-8")
    # mmdebstrap looks for Essential packages in an archive of the suite's name.
    (to / "Release").write_text(
        f"Suite: {section.suite}\nCodename: {section.suite}\n"
        f"SHA256:\n {resources.sha256_of(packages)} {packages.stat().st_size} Packages\n",
        encoding="utf-8",
    )


def _link_or_copy(source: Path, to: Path) -> None:
    try:
        os.link(source, to)
    except OSError:
        to.write_bytes(source.read_bytes())


def _packed(files: Mapping[str, str], to: Path) -> Path:
    """``files`` as a tar, with the owners and modes that they have on the machine, whoever makes it."""
    with tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            data = content.encode()
            one = tarfile.TarInfo(f"./{name}")
            one.size, one.mtime = len(data), int(EPOCH)
            one.mode = 0o755 if "/hooks/" in name else 0o644
            one.uname = one.gname = "root"
            archive.addfile(one, io.BytesIO(data))
    return to


def _require_same(section: DebianSection, tar: Path) -> None:
    """Raise BuildError unless the tree holds the locked packages, all of them and no other."""
    status = process.run(["tar", "-xOf", tar, "./var/lib/dpkg/status"]).stdout
    found = installed(status)
    wanted = {(package.name, package.version) for package in section.packages}
    if found != wanted:
        extra = ", ".join(" ".join(one) for one in sorted(found - wanted)) or "nothing"
        missing = ", ".join(" ".join(one) for one in sorted(wanted - found)) or "nothing"
        raise BuildError(f"the bootstrapped packages are not the lock's: too many {extra}; missing {missing}")


def installed(status: str) -> set[tuple[str, str]]:
    """Name and version of each installed package, from the text of dpkg's status file."""
    found = set()
    for stanza in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status") == "install ok installed":
            found.add((fields["Package"], fields["Version"]))
    return found

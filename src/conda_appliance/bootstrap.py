"""Locked ``.debs`` → a Debian root file system, with owners, modes and capabilities.

mmdebstrap unpacks and configures exactly the locked packages, from a folder on this host; no network takes part.
"""

from __future__ import annotations

import io
import json
import shlex
import sys
import tarfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from conda_appliance import (
    debs,
    emulation,
    layers,
    once,
    process,
    render,
    resources,
    system_files,
    trees,
    unsynced,
)
from conda_appliance.definition import Base
from conda_appliance.definition_slim import Part
from conda_appliance.errors import BuildError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import DebianSection

#: What every appliance has beside Debian's Essential packages, and why.
PACKAGES = (
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

#: … and its kernel, by `Base.kernel`, but for the architecture that their names end in.
KERNELS = {
    "cloud": "linux-image-cloud",  # for virtual machines: a tenth of the modules
    "generic": "linux-image",
}
#: What has the boot loader of another platform than the host's: its own packages, which are locked with the machine's
#: and never installed. (Debian has GRUB's files for arm64 for hosts of that architecture alone.)
LOADERS = {"linux-aarch64": ("grub-common", "grub-efi-arm64-bin", "libdevmapper1.02.1")}

#: Units that only cost an appliance its start-up, or change it behind its owner's back.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-pstore.service",  # crash dumps from hardware that a virtual machine does not have
)
#: … and those that a fast start (`boot: fast`) does without: file systems for debugging and tuning a kernel, modules
#: that are loaded when they are used, what reads settings from a hypervisor or the kernel's command line. Each costs
#: an emulated machine the start of one or two programs.
MASKED_FAST = (
    "cloud-init-hotplugd.socket",
    "dev-hugepages.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-network-generator.service",
    "systemd-networkd-persistent-storage.service",
    "systemd-udev-load-credentials.service",
)
#: What Debian lets all other units wait for, and a fast start does not: each unit with the targets it no longer
#: holds up. systemd cannot take back an ordering, so such a unit is copied to /etc without it.
UNHELD = {
    "cloud-init-local.service": ("sysinit.target", "network-pre.target"),  # see network-settings.service
    "cloud-init-network.service": ("sysinit.target",),
    "cloud-init.service": ("sysinit.target",),  # Debian 12's name of it
    "systemd-resolved.service": ("sysinit.target", "network.target"),
    "systemd-timesyncd.service": ("sysinit.target", "time-set.target"),
}
ENABLED = ("systemd-networkd", "systemd-resolved", "systemd-timesyncd", "sshd-keygen")

#: Files of packages that stay out: documentation (not the licences), and a registration with binfmt_misc that
#: costs each boot a service, so that ``.pyc`` files can be run like programs.
EXCLUDED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/lib/binfmt.d/python3*")
INCLUDED = ("/usr/share/doc/*/copyright",)
#: … and what `slim` leaves out beside them: what locale-gen would make other locales than C.UTF-8 from (but for their
#: list, which the package itself reads when it is configured), and info pages.
EXCLUDED_SLIM: dict[Part, tuple[str, ...]] = {
    "locales": ("/usr/share/i18n/charmaps/*", "/usr/share/i18n/locales/*"),
    "docs": ("/usr/share/info/*", "/usr/share/lintian/*", "/usr/share/bug/*"),
}
#: A fast start's initramfs finds the disk by itself (templates/boot/drivers.j2): udev and what it needs is its half.
EXCLUDED_FAST = (
    "/usr/share/initramfs-tools/hooks/udev",
    "/usr/share/initramfs-tools/scripts/init-top/udev",
    "/usr/share/initramfs-tools/scripts/init-bottom/udev",
)

#: The clock of every file that is made here.
EPOCH = render.EPOCH

_NAMESPACE = uuid.UUID("6f1cde62-2b5a-4d0c-9a55-3c2a9b0e9d11")


def tools() -> tuple[str, ...]:
    """The programs of the host that a bootstrap needs."""
    return ("mmdebstrap", "unshare")


def packages(base: Base, architecture: str) -> list[str]:
    """The names of the packages that a machine asks for: what they depend on comes with them.

    ``architecture`` is Debian's name of it.
    """
    return [f"{KERNELS[base.kernel]}-{architecture}", *PACKAGES, *base.packages]


def identity_of(section: DebianSection) -> str:
    """The UUID of the root file system: it follows from what is in it, so two machines of one lock look alike."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps(section.model_dump(exclude={"boot"}), sort_keys=True)))


def system(
    section: DebianSection,
    base: Base,
    files: Mapping[str, Path],
    *,
    store: Store,
    progress: Callable[[str], None],
    without: Sequence[Part] = (),
) -> Layer:
    """The root file system of the locked packages as a tree: from the cache, or made now.

    What the cache has is verified by the first look at it: a disk that is made from another one may need none.
    ``files`` are the verified packages by SHA-256; ``without`` is what a definition's ``slim`` leaves out. Raises as
    `root_tree` does.
    """
    slim = _slim(without)
    identity = identity_of(section)

    def make(to: Path, work: Path) -> None:
        progress(f"unpacking {len(section.packages)} packages")
        root_tree(section, base, files, to, identity=identity, work=work, progress=progress, without=slim)

    parts = _parts(section, base, slim)
    return store.get("system", parts, make, subject=section.suite, progress=progress, later=True)


def there(section: DebianSection, base: Base, *, store: Store, without: Sequence[Part] = ()) -> Layer | None:
    """What `system` returns, if it has been made. Raises HashMismatch as `layers.Store.find` does."""
    return store.find("system", _parts(section, base, _slim(without)))


def _slim(without: Sequence[Part]) -> list[Part]:
    return [part for part in without if part in EXCLUDED_SLIM]


def _parts(section: DebianSection, base: Base, slim: Sequence[Part]) -> layers.Parts:
    """What decides the root file system."""
    return {
        "suite": section.suite,
        "packages": {package.name: f"{package.version} {package.sha256}" for package in section.packages},
        # With what was asked for: apt remembers which of the packages that was (its extended_states).
        "base": json.dumps(base.model_dump(mode="json"), sort_keys=True),
        "files": {
            **system_files.early_files(identity_of(section), base, section.architecture),
            **system_files.late_files(section.suite, base.mirror, base.boot),
        },
        "code": layers.code(__file__, str(once.__file__)),
        **({"slim": ", ".join(slim)} if slim else {}),
    }


def boot_loader(
    section: DebianSection, files: Mapping[str, Path], *, store: Store, progress: Callable[[str], None]
) -> Layer | None:
    """The packages with the boot loader of another platform, unpacked: from the cache or now; else the host has it."""
    if not section.boot:
        return None
    wanted = section.boot

    def make(to: Path, work: Path) -> None:
        progress("unpacking the boot loader")
        emulation.unpack([files[one.sha256] for one in wanted], to, work)

    parts: layers.Parts = {
        "packages": {one.name: one.sha256 for one in wanted},
        "code": layers.code(str(emulation.__file__)),
    }
    return store.get("boot-loader", parts, make, subject=section.suite, progress=progress, quiet=True)


def root_tree(
    section: DebianSection,
    base: Base,
    files: Mapping[str, Path],
    to: Path,
    *,
    identity: str,
    work: Path,
    progress: Callable[[str], None],
    without: Sequence[Part] = (),
) -> None:
    """Make the root file system of exactly the locked packages: the new folder ``to``.

    ``files`` are the verified packages by SHA-256; ``identity`` is the root file system's UUID. Nothing in it is newer
    than `EPOCH`. Raises CommandFailed with mmdebstrap's words, BuildError when other packages than the lock's came out.
    """
    shop = work / "bootstrap"
    shop.mkdir()
    _repository(section, files, shop / "repository")
    early = {**once.STAND_INS, **system_files.early_files(identity, base, section.architecture)}
    early_tar = _packed(early, shop / "early.tar")
    late = _packed(system_files.late_files(section.suite, base.mirror, base.boot), shop / "late.tar")
    excluding = _packed(_excluding(base, without), shop / "excluding.tar")
    command = [
        "mmdebstrap",
        "--format=directory",
        "--variant=essential",
        f"--include={','.join(packages(base, section.architecture))}",
        f"--architectures={section.architecture}",
        "--skip=check/qemu",  # `emulation` has looked, and knows more
        "--skip=cleanup/apt",
        "--dpkgopt=force-unsafe-io",
        # Not by --dpkgopt: mmdebstrap would pass each of the first packages through a filter in Python.
        f"--extract-hook=settings={shlex.quote(str(excluding))}\n{_LEAVE_OUT}",
        '--aptopt=Apt::Install-Recommends "false"',
        # debconf's questions before packages are unpacked: nobody answers, and each package asks again.
        "--aptopt=#clear DPkg::Pre-Install-Pkgs",
        # All are unpacked before the first is configured: dpkg reads what there is fewer times.
        '--aptopt=APT::Immediate-Configure "false"',
        f'--aptopt=DPkg::Path "/{once.FOLDER}:/usr/sbin:/usr/bin:/sbin:/bin"',
        f"--setup-hook={_RECORDS_IN_MEMORY}",
        # Before the initramfs is made.
        f"--essential-hook=tar-in {early_tar} /",
        f"--customize-hook={once.AT_ONCE}",
        f"--customize-hook={_INITRAMFS}",
        f"--customize-hook={_RECORDS_ON_DISK}",
        f"--customize-hook=tar-in {late} /",
        *(f"--customize-hook={line}" for line in [*(_FAST if base.boot == "fast" else ()), *_FINISH]),
        section.suite,
        str(to.absolute()),
        f"deb [trusted=yes] copy:{shop / 'repository'} ./",
    ]
    process.run(
        # In mounts of its own, which end with it: mmdebstrap binds the host's /dev/shm and others into the tree. Were
        # it killed, whoever removes the tree would empty the host's.
        ["unshare", "--mount", sys.executable, "-IS", str(unsynced.__file__), *command],
        env={"SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(shop), "TZ": "UTC", **_NO_INITRAMFS},
        on_line=lambda line: _tell(line, progress),
    )
    _require_same(section, to)
    resources.remove(to / "dev")  # devices come from the kernel (devtmpfs)
    (to / "dev").mkdir()
    trees.set_times(to, EPOCH, newer_only=True)


#: The kernel's package would make an initramfs, and initramfs-tools another when all is configured; one is enough.
#: /etc/kernel/postinst.d/initramfs-tools and linux-update-symlinks(1) look at this variable.
_NO_INITRAMFS = {"INITRD": "No"}
_INITRAMFS = """set -e
unset INITRD
versions=$(chroot "$1" linux-version list)
for version in $versions; do
    chroot "$1" update-initramfs -c -k "$version"
    chroot "$1" linux-update-symlinks install "$version" "/boot/vmlinuz-$version"
done"""
#: dpkg's records, of which it makes and removes thousands of files, are in memory until all is installed: ext4 passes
#: by each inode that was freed lately whenever it looks for a free one. What is mounted ends with mmdebstrap.
_RECORDS_IN_MEMORY = """set -e
mkdir "$1"/var/lib/dpkg.memory
mount -t tmpfs -o mode=0755 tmpfs "$1"/var/lib/dpkg.memory
cp -a "$1"/var/lib/dpkg/. "$1"/var/lib/dpkg.memory
mount --move "$1"/var/lib/dpkg.memory "$1"/var/lib/dpkg
rmdir "$1"/var/lib/dpkg.memory"""
_RECORDS_ON_DISK = """set -e
cp -a "$1"/var/lib/dpkg "$1"/var/lib/dpkg.disk
umount "$1"/var/lib/dpkg
rm -r "$1"/var/lib/dpkg
mv "$1"/var/lib/dpkg.disk "$1"/var/lib/dpkg"""
#: Where dpkg finds what stays out while packages are installed; gone afterwards.
_EXCLUDES = "etc/dpkg/dpkg.cfg.d/conda-appliance-excludes"
#: The first packages are unpacked without dpkg: what stays out is removed from what they brought, folders that are
#: empty then as well.
_LEAVE_OUT = f"""
cd "$1"
tar -x -f "$settings"
sed -n s/^path-exclude=//p {_EXCLUDES} | while read -r pattern; do
    folder=${{pattern%%[*]*}}
    folder=.${{folder%/*}}
    [ -d "$folder" ] || continue
    find "$folder" ! -type d -path ".$pattern" ! -path './usr/share/doc/*/copyright' -delete
    find "$folder" -depth -type d -path ".$pattern" -empty -delete
done
"""


def _excluding(base: Base, without: Sequence[Part]) -> dict[str, str]:
    """dpkg's settings for what stays out, as path → text."""
    excluded = [*EXCLUDED, *(EXCLUDED_FAST if base.boot == "fast" else ())]
    excluded += [pattern for part in without for pattern in EXCLUDED_SLIM[part]]
    lines = [f"path-exclude={pattern}" for pattern in excluded]
    lines += [f"path-include={pattern}" for pattern in INCLUDED]
    return {_EXCLUDES: "".join(f"{line}\n" for line in lines)}


def _tell(line: str, progress: Callable[[str], None]) -> None:
    """Pass on mmdebstrap's stages: its lines that begin with ``I:``, but for those that speak of its own hooks."""
    if line.startswith("I: ") and "hook" not in line and "tempdir" not in line:
        progress(line.removeprefix("I: ").rstrip("."))


_FINISH = (
    f'rm -f "$1"/{_EXCLUDES}',
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
    # What apt leaves, taken away here rather than by mmdebstrap: its apt gives these folders to root instead of its own
    # user wherever that user cannot reach the tree (a cache below a home of mode 0700), which would show in the image.
    'find "$1"/var/lib/apt/lists "$1"/var/cache/apt -mindepth 1 -delete',
    'chroot "$1" install -d /var/cache/apt/archives',
    'chroot "$1" install -d -m 0700 -o _apt -g root /var/lib/apt/lists/partial /var/cache/apt/archives/partial',
)


_FAST = (
    f'chroot "$1" systemctl --quiet mask {" ".join(MASKED_FAST)}',
    'chroot "$1" systemctl --quiet enable network-settings.service',
    *(
        f'unit="$1"/usr/lib/systemd/system/{unit}; [ ! -e "$unit" ] || '
        f'sed -E \'/^Before=/{{s/({"|".join(targets)})//g; /^Before= *$/d}}\' "$unit" >"$1"/etc/systemd/system/{unit}'
        for unit, targets in UNHELD.items()
    ),
)


def _repository(section: DebianSection, files: Mapping[str, Path], to: Path) -> None:
    """A folder that apt takes for an archive: the locked packages and an index of them."""
    to.mkdir()
    for package in section.packages:
        (to / package.filename).symlink_to(files[package.sha256])
    packages = to / "Packages"
    packages.write_text(index(section, files), encoding="utf-8")
    # mmdebstrap looks for Essential packages in an archive of the suite's name.
    (to / "Release").write_text(
        f"Suite: {section.suite}\nCodename: {section.suite}\n"
        f"SHA256:\n {resources.sha256_of(packages)} {packages.stat().st_size} Packages\n",
        encoding="utf-8",
    )


def index(section: DebianSection, files: Mapping[str, Path]) -> str:
    """What the locked packages say of themselves, as the Packages file of an archive that has them in one folder."""
    stanzas = [
        f"{debs.control(files[one.sha256])}Filename: ./{one.filename}\nSize: {one.size}\nSHA256: {one.sha256}\n"
        for one in section.packages
    ]
    return "\n".join(stanzas)


def _packed(files: Mapping[str, str], to: Path) -> Path:
    """``files`` as a tar, with the owners and modes that they have on the machine, whoever makes it."""
    with tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            data = content.encode()
            one = tarfile.TarInfo(f"./{name}")
            one.size, one.mtime = len(data), EPOCH
            one.mode = 0o755 if data.startswith(b"#!") else 0o644
            one.uname = one.gname = "root"
            archive.addfile(one, io.BytesIO(data))
    return to


def _require_same(section: DebianSection, tree: Path) -> None:
    """Raise BuildError unless the tree holds the locked packages, all of them and no other."""
    found = installed((tree / "var/lib/dpkg/status").read_text(encoding="utf-8"))
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

"""The root that peers run in: Debian 13, whose versions are newer than Debian 12's, and PyPI's for the others."""

from __future__ import annotations

import shutil
from pathlib import Path

from conda_appliance import process, resources

SUITE = "trixie"

#: Peers, and the programs they start; what Debian 13 has no package for comes from PyPI.
PACKAGES = """
mkosi vmdb2 debos live-build
debootstrap mmdebstrap apt-utils ca-certificates debian-archive-keyring gpgv sudo udev systemd-container
kpartx parted fdisk gdisk dosfstools mtools e2fsprogs btrfs-progs xfsprogs squashfs-tools erofs-utils
grub-pc-bin grub-efi-amd64-bin grub2-common systemd-repart isolinux syslinux-common xorriso
qemu-utils zerofree zstd xz-utils pigz cpio rsync python3-venv python3-pip dracut-core
"""
FROM_PYPI = ("kiwi", "diskimage-builder")


def make(work: Path) -> Path:
    """The toolbox below ``work``, made once; needs the network."""
    final = work / "toolbox"
    if final.is_dir():
        return final
    with resources.work_folder(work, "toolbox") as folder:
        root = folder / "root"
        process.run(
            [
                "mmdebstrap",
                "--variant=minbase",
                f"--include={','.join(PACKAGES.split())}",
                "--aptopt=Apt::Install-Recommends false",
                "--dpkgopt=force-unsafe-io",
                SUITE,
                root,
            ]
        )
        _from_pypi(root)
        root.rename(final)
    return final


def _from_pypi(root: Path) -> None:
    """Install `FROM_PYPI` in a venv of the toolbox; how the network is reached is the host's matter."""
    for name in ("resolv.conf", "ssl/certs/ca-certificates.crt"):
        inside = root / "etc" / name
        inside.unlink(missing_ok=True)
        shutil.copyfile(Path("/etc") / name, inside)
    process.run(["chroot", root, "python3", "-m", "venv", "--system-site-packages", "/opt/peers"])
    process.run(["chroot", root, "/opt/peers/bin/pip", "install", "--quiet", *FROM_PYPI])

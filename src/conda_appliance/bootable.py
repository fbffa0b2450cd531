"""What a disc needs to start a machine: a kernel, an initramfs that finds the disc, and GRUB for both firmwares.

Kernel and initramfs come from the appliance's own Debian system, so that the disc knows the hardware that the machine
knows. The scripts in the initramfs are ``iso/boot``, ``iso/live`` and ``iso/installer``.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import disk, layers, namespace, process, render, resources, system_files, trees
from conda_appliance.definition import Base
from conda_appliance.errors import BuildError
from conda_appliance.hybrid import Boot
from conda_appliance.layer import Layer
from conda_appliance.layers import Store

#: The scripts of the initramfs: where they are found, and what initramfs-tools(7) calls them.
_SCRIPTS = {
    "iso/boot/medium.sh": "medium",
    "iso/live/live.sh": "live",
    "iso/installer/installer.sh": "installer",
}
#: The programs of the appliance's system that the scripts call.
_PROGRAMS = (
    "blkdiscard blkid blockdev cat cmp dd e2fsck losetup rm sfdisk sha256sum tail tr truncate wipefs zstd"
)

#: Makes the initramfs in the mounted system; the words are the kernel's version and where the initramfs goes.
_MAKE = """
chroot root mkinitramfs -d /run/payload -o /tmp/initrd.img "$1"
cp root/tmp/initrd.img "$2"
"""

_MODULES = (
    *("part_gpt", "part_msdos", "iso9660", "fat", "ext2", "search", "search_fs_uuid", "search_fs_file"),
    *("linux", "normal", "minicmd", "configfile", "boot", "echo", "test", "all_video", "serial", "terminal"),
)
#: The UEFI image's size in bytes: GRUB is 300 KB, and firmware wants FAT to be at least this.
_EFI_SIZE = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the boot menu, and the words that it adds to the kernel's command line."""

    title: str
    options: str = ""


def tools() -> tuple[str, ...]:
    """The programs of the host that this module needs."""
    return (*namespace.tools(), "chroot", "grub-mkimage", "mkfs.vfat", "mmd", "mcopy")


def initramfs(
    system: Layer, base: Base, *, store: Store, epoch: int, project: Path | None, subject: str
) -> Layer:
    """A folder with ``vmlinuz`` and an ``initrd.img`` that starts from a disc, made from the system layer ``system``.

    ``epoch`` (seconds since 1970) is every time stamp; ``project`` may have scripts of its own.
    """
    scripts = {
        f"scripts/{name}": resources.find(source, project).read_text(encoding="utf-8")
        for source, name in _SCRIPTS.items()
    }
    files = {**_configuration(base), **scripts}
    parts: layers.Parts = {
        "system": system.sha256,
        "files": {name: layers.digest_of([text]) for name, text in files.items()},
        "epoch": str(epoch),
        "code": layers.code(__file__),
    }

    def make(to: Path, work: Path) -> None:
        configuration = work / "initramfs-tools"
        for name, text in files.items():
            path = configuration / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)
        for name in ("conf.d", "hooks"):
            (configuration / name).mkdir(exist_ok=True)
        kernel = _kernel(system.path)
        to.mkdir()
        shutil.copyfile(kernel, to / "vmlinuz")
        mounted, variables = namespace.script(
            work, [system.path], upper="upper", payload=configuration, system=True
        )
        version = kernel.name.removeprefix("vmlinuz-")
        process.run(
            namespace.isolated(mounted, ["sh", "-euc", _MAKE, "sh", version, to.resolve() / "initrd.img"]),
            env={**variables, "SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"},
            orphaned=signal.SIGKILL,
        )
        trees.set_times(to, epoch)

    return store.get("disc-boot", parts, make, subject=subject)


def _configuration(base: Base) -> dict[str, str]:
    """What mkinitramfs reads in place of /etc/initramfs-tools, but for the scripts: path → text."""
    full = base.boot == "full"
    hook = render.text(
        "disc/hook.j2", disk_drivers=system_files.disk_drivers(base), programs=_PROGRAMS, udev=full
    )
    found = {
        "initramfs.conf": "MODULES=list\nBUSYBOX=n\nCOMPRESS=zstd\nBOOT=local\nRUNSIZE=10%\n",
        "modules": "",
        "hooks/appliance": hook,
        "scripts/init-top/appliance-drivers": render.text("boot/drivers.j2"),
    }
    if not full:  # udev has its own
        found["scripts/init-bottom/appliance-hand-over"] = render.text("boot/hand-over.j2")
    return found


def _kernel(system: Path) -> Path:
    """The system's kernel: the one that its own link names."""
    link = system / "vmlinuz"
    path = system / os.fspath(link.readlink()).lstrip("/") if link.is_symlink() else link
    if not path.is_file():
        raise BuildError(f"the appliance's system has no kernel ({path}), so no disc can start with it")
    return path


def grub(to: Path, *, identity: str, epoch: int) -> dict[str, bytes]:
    """GRUB's images for BIOS and UEFI, which find the disc by the file ``/appliance/IDENTITY`` on it.

    ``to`` is an empty folder for what is only needed meanwhile. Keys are ``bios`` and ``efi``.
    """
    early, efi, bios, fat = (to / name for name in ("early.cfg", "bootx64.efi", "bios.img", "efi.img"))
    early.write_text(render.text("disc/early.cfg.j2", id=identity), encoding="utf-8")
    common: list[process.Argument] = ["grub-mkimage", "-c", early, "-p", "/boot/grub"]
    env = {"SOURCE_DATE_EPOCH": str(epoch), "TZ": "UTC"}
    process.run([*common, "-O", "x86_64-efi", "-o", efi, *_MODULES, "efi_gop"], env=env)
    process.run([*common, "-O", "i386-pc-eltorito", "-o", bios, "biosdisk", *_MODULES], env=env)
    os.utime(efi, (epoch, epoch))
    with fat.open("wb") as file:
        file.truncate(_EFI_SIZE)
    process.run(["mkfs.vfat", "--invariant", "-n", "ESP", "-i", identity[:8], fat], env=env)
    process.run(["mmd", "-i", fat, "::EFI", "::EFI/BOOT"], env=env)
    process.run(["mcopy", "-m", "-i", fat, efi, "::EFI/BOOT/BOOTX64.EFI"], env=env)
    return {"bios": bios.read_bytes(), "efi": fat.read_bytes()}


def menu(
    kind: str,
    entries: Sequence[Entry],
    *,
    identity: str,
    project: Path | None,
    boot: str,
    timeout: int,
    installed: str = "",
) -> str:
    """The boot menu of a disc of ``kind`` (live, installer), whose first entry starts after ``timeout`` seconds.

    ``boot`` is the definition's fast or full. A disk with the file ``installed`` is started instead, if there is one.
    """
    return render.text(
        "disc/grub.cfg.j2",
        project=project,
        kind=kind,
        entries=entries,
        id=identity,
        options=system_files.OPTIONS_FAST if boot == "fast" else "",
        timeout=timeout,
        installed=installed,
    )


def starter(identity: str) -> Boot:
    """Where the images for firmware stand on every disc that starts a machine, and its first sector's code."""
    return Boot(
        bios="/boot/grub/bios.img",
        efi="/boot/grub/efi.img",
        mbr=(disk.GRUB / "i386-pc/boot_hybrid.img").read_bytes(),
        identity=bytes.fromhex(identity[:8]),
    )


def common(
    linked: Layer, *, identity: str, menu: str, lock: str, readme: str, epoch: int, work: Path
) -> Mapping[str, Path | bytes]:
    """What every disc that starts a machine holds, by the names in ``iso/live.yaml`` and ``iso/installer.yaml``.

    ``linked`` is the layer of `initramfs`; ``identity`` 16 hexadecimal digits that no other disc has.
    """
    for name in ("mark", "grub"):
        (work / name).mkdir()
    (work / "mark" / identity).write_text(f"{identity}\n", encoding="utf-8")
    images = grub(work / "grub", identity=identity, epoch=epoch)
    return {
        "kernel": linked.path / "vmlinuz",
        "initrd": linked.path / "initrd.img",
        "grub.cfg": menu.encode(),
        "bios": images["bios"],
        "efi": images["efi"],
        "mark": work / "mark",
        "lock": lock.encode(),
        "readme": readme.encode(),
    }

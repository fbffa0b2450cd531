"""What a definition says of the forms that it ships as: its disk, installer, OVA, container, packages, discs."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from conda_appliance.fields import Name, Size
from conda_appliance.yamlfile import Model


class Disk(Model):
    """The machine's disk."""

    size: Annotated[Size, Field(description="Its size, e.g. 4GiB.")] = 4 << 30
    firmware: Annotated[
        tuple[Literal["bios", "uefi"], ...],
        Field(
            min_length=1,
            description="What it boots on; a check boots the first one named. A linux-aarch64 machine has uefi alone.",
        ),
    ] = ("bios", "uefi")
    layout: Annotated[
        Literal["plain", "split"],
        Field(
            description="plain: one root file system. split: the environments in a read-only partition of their own, "
            "mounted at the prefix, beside an empty one for an update (builder: rootfs)."
        ),
    ] = "plain"
    compression: Annotated[
        Literal["zstd", "zlib", "none"],
        Field(
            description="qcow2: zstd makes the smallest file; zlib one for QEMU before 5.1; none the fastest build, "
            "and leaves the partition of a split layout uncompressed, too."
        ),
    ] = "zstd"
    slot: Annotated[
        Size, Field(description="split: the size of each of the two partitions for environments.")
    ] = 1 << 30

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if not (1 << 30) <= self.size <= (16 << 40):
            raise ValueError("size must lie between 1GiB and 16TiB")
        if self.size % (1 << 20):
            raise ValueError("size must be a whole number of MiB")
        if self.slot % (1 << 20) or self.slot < 1 << 24:
            raise ValueError("slot must be a whole number of MiB, 16 at least")
        if self.layout == "split" and self.size < 2 * self.slot + (1 << 30):
            raise ValueError("size must leave 1GiB for the system beside two times slot")
        return self


class InstallerDisk(Model):
    """The disk that the installer disc may overwrite: all that is said here must be so."""

    model: Annotated[str, Field(description="As the kernel has it: /sys/block/NAME/device/model.")] = ""
    serial: Annotated[str, Field(description="Its serial number, as the installer shows it.")] = ""
    path: Annotated[
        str, Field(pattern=r"^(|/dev/[a-z0-9]+)$", description="Such as /dev/nvme0n1; names may change.")
    ] = ""
    size: Annotated[Size | None, Field(description="Its size, within two in a hundred, e.g. 466GiB.")] = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not (self.model or self.serial or self.path or self.size):
            raise ValueError("name the disk by its model, serial, path or size")
        return self


class Installer(Model):
    """What the installer disc does without asking (`conda-appliance disc IMAGE installer`)."""

    unattended: Annotated[
        bool,
        Field(description="Install without a question: on 'disk', else on the machine's only empty disk."),
    ] = False
    disk: Annotated[
        InstallerDisk | None,
        Field(description="The disk to install to; it may hold data, which is lost."),
    ] = None


class Ova(Model):
    """The machine that the form ova describes."""

    controller: Annotated[
        Literal["sata", "nvme", "scsi"],
        Field(description="What its disk hangs on. sata: VMware and VirtualBox; nvme, scsi: VMware."),
    ] = "sata"
    nic: Annotated[
        Literal["vmxnet3", "virtio", "e1000"],
        Field(
            description="Its network adapter. vmxnet3: VMware; virtio: VirtualBox; e1000: both, base.kernel generic."
        ),
    ] = "vmxnet3"
    cpus: Annotated[int, Field(ge=1, le=128, description="Its processors.")] = 2
    memory: Annotated[Size, Field(description="Its memory, in whole MiB.")] = 1 << 30

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.memory % (1 << 20) or self.memory < 256 << 20:
            raise ValueError("memory must be a whole number of MiB, 256 at least")
        return self


class Container(Model):
    """The container image that the forms oci and docker-archive make."""

    base: Annotated[
        str,
        Field(
            min_length=1,
            description="'system': the machine's Debian without its kernel; or a path from this file to an OCI image "
            "layout, a folder or a tar.",
        ),
    ] = "system"
    service: Annotated[Name | None, Field(description="The service that it runs; without it, the first.")] = (
        None
    )


class Package(Model):
    """What the forms deb and rpm say of themselves."""

    maintainer: Annotated[
        str | None,
        Field(
            pattern=r"^[^<>\n]+ <[^<>@\s]+@[^<>\s]+>$",
            description="Who answers for it: Name <mail address>. Both forms need it.",
        ),
    ] = None
    license: Annotated[
        str, Field(pattern=r"^[^\n]+$", description="Of the appliance itself; its packages have their own.")
    ] = "Proprietary"


class Disc(Model):
    """What `conda-appliance disc` makes of it."""

    userspace: Annotated[
        Literal["squashfs", "erofs", "iso9660"],
        Field(
            description="How the environments lie on a disc that they run from: packed in one file (squashfs is read "
            "least of; erofs), or as plain files that any system can read (three times as large, more seeking)."
        ),
    ] = "squashfs"

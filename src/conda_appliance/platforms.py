"""The platforms that a machine may be of, by conda's names, and what all others call them: one table.

Sources: the discoverable partitions specification (types of root partitions), UEFI 2.10, 3.5.1.1 (the boot loader's
file name), the ABIs' supplements (the dynamic loader's place).
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Platform:
    """A platform: ``name`` is conda's.

    ``machine`` is what uname(1) says, ``debian`` Debian's architecture (and Go's, so containers' and Vagrant's),
    ``triplet`` the folder of its libraries, ``loader`` its C library's, ``root_type`` the GUID of a root partition,
    ``efi`` GRUB's name of its UEFI, ``efi_file`` what firmware starts, ``firmware`` all that machines of it have,
    ``console`` its first serial port, ``speaks`` its processors' name for people.
    """

    name: str
    machine: str
    debian: str
    triplet: str
    loader: str
    root_type: str
    efi: str
    efi_file: str
    firmware: tuple[str, ...]
    console: str
    speaks: str

    @property
    def qemu(self) -> str:
        """QEMU's program that emulates such a machine."""
        return f"qemu-system-{self.machine}"

    @property
    def native(self) -> bool:
        """Whether this host is of it, and so runs its programs itself."""
        return os.uname().machine == self.machine

    def tool(self, name: str) -> str:
        """A program of the compiler's for this platform, such as gcc or strip, as Debian names it."""
        return name if self.native else f"{self.triplet}-{name}"

    @property
    def mark(self) -> str:
        """What files' names say of it: nothing for the usual one."""
        return "" if self.name == DEFAULT else f"-{self.machine}"


#: What a definition is for that does not say it.
DEFAULT = "linux-64"

PLATFORMS = {
    one.name: one
    for one in (
        Platform(
            name="linux-64",
            machine="x86_64",
            debian="amd64",
            triplet="x86_64-linux-gnu",
            loader="usr/lib64/ld-linux-x86-64.so.2",
            root_type="4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",
            efi="x86_64-efi",
            efi_file="BOOTX64.EFI",
            firmware=("bios", "uefi"),
            console="ttyS0",
            speaks="x86-64",
        ),
        Platform(
            name="linux-aarch64",
            machine="aarch64",
            debian="arm64",
            triplet="aarch64-linux-gnu",
            loader="usr/lib/ld-linux-aarch64.so.1",
            root_type="B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
            efi="arm64-efi",
            efi_file="BOOTAA64.EFI",
            firmware=("uefi",),
            console="ttyAMA0",
            speaks="64-bit Arm",
        ),
    )
}

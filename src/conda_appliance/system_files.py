"""The settings of a machine's system: the files that it has before its packages are configured, and after.

Debian's own stay where they are; these stand beside them, in the folders that their readers have for that.
"""

from __future__ import annotations

from conda_appliance import render
from conda_appliance.apt import DEFAULT_MIRROR, DEFAULT_SECURITY
from conda_appliance.definition import Base
from conda_appliance.platforms import PLATFORMS

#: Generators run before all units: those for a disk's other partitions, hibernation, TPMs and one-time commands.
GENERATORS_OFF = (
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-run-generator",
    "systemd-tpm2-generator",
)
#: What a fast start leaves for later, as units → their drop-in: what needs the network, or nobody yet, starts after it;
#: the clock of a machine is its hypervisor's, and what the network says of it can wait for the services; cloud-init
#: works beside the services, and leaves them the processors that they can use.
LATER = {
    ("systemd-logind", "systemd-resolved"): "[Unit]\nAfter=network.target\n",
    ("systemd-timesyncd",): "[Unit]\nAfter=multi-user.target\n",
    ("cloud-init-main", "cloud-init-local", "cloud-init", "cloud-config", "cloud-final"): (
        "[Service]\nCPUWeight=20\n"
    ),
}

#: The kernel's options for a fast start: only those security modules that have a policy (attaching a program to the
#: one of BPF takes systemd seconds without KVM), no tests of timers and ciphers that hypervisors and Debian test, and
#: no line on the console for each unit unless one fails or is slow.
OPTIONS_FAST = "lsm=lockdown,landlock,yama,apparmor cryptomgr.notests no_timer_check systemd.show_status=auto"

#: /etc/hosts before the machine has a name.
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"

#: What holds a root disk under the hypervisors and clouds that Debian's cloud kernel is for.
_DISK_DRIVERS = (
    "virtio_pci virtio_mmio virtio_blk virtio_scsi nvme sd_mod sr_mod ahci ata_piix ata_generic "
    "vmw_pvscsi BusLogic mpi3mr hv_vmbus hv_storvsc pci-hyperv xen-blkfront xen-scsifront ext4"
)
#: … and in machines that one can touch, for which the generic kernel is: USB, cards, controllers of servers.
_DISK_DRIVERS_GENERIC = (
    "usb_storage uas xhci_pci ehci_pci ohci_pci uhci_hcd sdhci_pci sdhci_acpi mmc_block "
    "megaraid_sas mpt3sas aacraid hpsa smartpqi vmd"
)


def disk_drivers(base: Base) -> str:
    """The kernel's modules that its initramfs may need to reach a disk, space-separated."""
    return _DISK_DRIVERS if base.kernel == "cloud" else f"{_DISK_DRIVERS} {_DISK_DRIVERS_GENERIC}"


def early_files(identity: str, base: Base, architecture: str = "amd64") -> dict[str, str]:
    """What the packages find already when they are configured, as path → text."""
    platform = next(one for one in PLATFORMS.values() if one.debian == architecture)
    fast = base.boot == "fast"
    drivers = render.text("boot/drivers.j2")
    scripts = {
        "init-top/conda-appliance": drivers,
        "local-block/conda-appliance": drivers,
        "init-bottom/conda-appliance": render.text("boot/hand-over.j2"),
    }
    return {
        "etc/fstab": f"UUID={identity} / ext4 defaults,errors=remount-ro 0 1\n",
        "etc/initramfs-tools/conf.d/conda-appliance": (
            "# The drivers come from hooks/conda-appliance; with `most` it is six times the size.\n"
            "MODULES=list\n"
        ),
        "etc/initramfs-tools/hooks/conda-appliance": render.text(
            "boot/initramfs-hook.j2", disk_drivers=disk_drivers(base), fast=fast
        ),
        **({f"etc/initramfs-tools/scripts/{name}": text for name, text in scripts.items()} if fast else {}),
        "boot/grub/grub.cfg": render.text(
            "boot/grub.cfg.j2",
            uuid=identity,
            console=platform.console,
            port="bios" in platform.firmware,
            options=OPTIONS_FAST if fast else "",
        ),
    }


def late_files(suite: str, mirror: str | None, boot: str = "fast") -> dict[str, str]:
    """What is laid over the configured packages, as path → text."""
    fast = {
        **{f"etc/systemd/system-generators/{name}": "" for name in GENERATORS_OFF},
        **{
            f"etc/systemd/system/{unit}.service.d/appliance.conf": text
            for units, text in LATER.items()
            for unit in units
        },
        "etc/cloud/cloud.cfg.d/20-conda-appliance-fast.cfg": render.text("boot/cloud-fast.cfg.j2"),
        "etc/systemd/system/network-settings.service": render.text("boot/network-settings.service.j2"),
        "usr/lib/conda-appliance/network-settings": render.text("boot/network-settings.j2"),
    }
    main = mirror if mirror and not mirror.startswith("file:") else DEFAULT_MIRROR
    keyring = "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    return {
        "etc/hostname": "localhost\n",
        "etc/hosts": HOSTS,
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
            "# One interface with an address is enough, and a machine without a network, or with a slow one, starts\n"
            "# all the same: that is no failure (the dash).\n"
            "[Service]\nExecStart=\nExecStart=-/usr/lib/systemd/systemd-networkd-wait-online --any --timeout=30\n"
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
        **(fast if boot == "fast" else {}),
    }

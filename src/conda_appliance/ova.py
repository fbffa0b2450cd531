"""A disk → an appliance in one file, for VMware and VirtualBox: OVF descriptor, manifest and disk in a tar.

Source: DMTF DSP0243 1.1, "Open Virtualization Format Specification": chapter 5 has the package (ustar; descriptor,
manifest, then the files in the descriptor's order) and the manifest's lines, chapter 8 the hardware's items.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

from conda_appliance import render
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError

#: A disk controller as an item of the hardware: CIM's type and subtype. VirtualBox's ``ovfreader.cpp`` knows the first.
CONTROLLERS = {
    "sata": {"type": 20, "subtype": "vmware.sata.ahci", "about": "SATA controller"},
    "nvme": {"type": 20, "subtype": "vmware.nvme.controller", "about": "NVMe controller"},
    "scsi": {"type": 6, "subtype": "VirtualSCSI", "about": "SCSI controller (paravirtual)"},
}
#: A network adapter's subtype. VirtualBox takes its own default for one that it does not know.
ADAPTERS = {"vmxnet3": "VmxNet3", "virtio": "virtio", "e1000": "E1000"}


def write(
    vmdk: Path, sha256: str, to: Path, image: ImageDefinition, *, epoch: int, project: Path | None
) -> None:
    """Write the file ``to`` around a streamOptimized ``vmdk``, whose SHA-256 is given.

    ``epoch`` (seconds since 1970) is every time stamp; ``project`` may have a ``templates/ovf/`` of its own. Raises
    BuildError for a disk that a ustar has no room for: 8 GiB, compressed.
    """
    name = f"{image.name}.ovf"
    disk = f"{image.name}-disk1.vmdk"
    text = descriptor(image, disk=disk, size=vmdk.stat().st_size, project=project).encode()
    manifest = f"SHA256({name})= {hashlib.sha256(text).hexdigest()}\nSHA256({disk})= {sha256}\n".encode()
    with tarfile.open(to, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in ((name, text), (f"{image.name}.mf", manifest)):
            tar.addfile(_member(member, len(content), epoch), io.BytesIO(content))
        with vmdk.open("rb") as file:
            try:
                tar.addfile(_member(disk, vmdk.stat().st_size, epoch), file)
            except ValueError:
                raise BuildError(
                    f"{vmdk.name} is larger than the 8 GiB that an OVA can hold",
                    hint="ship the vmdk instead: formats: [vmdk]",
                ) from None


def _member(name: str, size: int, epoch: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, epoch, 0o644
    info.uname = info.gname = "root"
    return info


def descriptor(image: ImageDefinition, *, disk: str, size: int, project: Path | None = None) -> str:
    """The OVF descriptor of a machine whose ``disk`` is a file of that name and ``size`` in bytes."""
    return render.text(
        "ovf/machine.ovf.j2",
        project=project,
        name=image.name,
        version=image.version,
        summary=image.summary,
        disk=disk,
        size=size,
        capacity=image.disk.size,
        cpus=image.ova.cpus,
        memory_mib=image.ova.memory >> 20,
        controller=CONTROLLERS[image.ova.controller],
        nic=ADAPTERS[image.ova.nic],
        firmware=image.disk.firmware[0],
    )

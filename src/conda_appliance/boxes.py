"""A disk that has Vagrant's user → a Vagrant box: a tar.gz of metadata, a Vagrantfile, the disk.

Sources: https://developer.hashicorp.com/vagrant/docs/boxes/format (metadata.json) and …/providers/virtualbox/boxes
(box.ovf, the base MAC address); https://vagrant-libvirt.github.io/vagrant-libvirt/boxes.html, "Version 1" (box.img,
virtual_size in GB); vagrant-qemu's ``lib/vagrant-qemu/action/import.rb``, which reads the same layout.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from conda_appliance import layers, ova, process, render
from conda_appliance.definition import ImageDefinition

#: Each form's provider, as Vagrant calls it.
PROVIDERS = {"box-libvirt": "libvirt", "box-virtualbox": "virtualbox", "box-qemu": "qemu"}
#: The form of the disk in each box.
DISKS = {"box-libvirt": "qcow2", "box-virtualbox": "vmdk", "box-qemu": "qcow2"}

#: UEFI's firmware in one file, by the machine's processor: where Debian and Ubuntu have it.
_FIRMWARE = {
    "x86_64": "/usr/share/ovmf/OVMF.fd",
    "aarch64": "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
}

_PACK = "pigz -n"


def decides(form: str, image: ImageDefinition, project: Path | None) -> dict[str, object]:
    """What decides a box beside its disk."""
    return {
        "form": form,
        "texts": _texts(form, image, size=0, project=project),
        "compression": image.disk.compression if DISKS[form] == "qcow2" else "",
        "pack": [_PACK, _level(form, image)],
        "code": layers.code(__file__, ova.__file__),
    }


def write(
    form: str, disk: Path, to: Path, image: ImageDefinition, *, epoch: int, project: Path | None, work: Path
) -> None:
    """Write the box ``to`` around ``disk``, which is in the form that `DISKS` names.

    ``epoch`` (seconds since 1970) is every time stamp; ``project`` may have a ``templates/vagrant/`` of its own;
    ``work`` is a folder beside the disk that is used up.
    """
    work.mkdir()
    texts = _texts(form, image, size=disk.stat().st_size, project=project)
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")
    os.link(disk, work / _disk(form))
    about = ["--owner=0", "--group=0", "--numeric-owner", "--mode=0644", f"--mtime=@{epoch}"]
    # One processor's pigz would write in another way; two do on any machine.
    pack = f"--use-compress-program={_PACK} -{_level(form, image)} -p {max(2, os.cpu_count() or 1)}"
    # What Vagrant asks for first comes first; gnu, because a ustar ends at 8 GiB.
    names = [*texts, _disk(form)]
    process.run(
        ["tar", "--create", "--format=gnu", *about, pack, "--file", to, "--directory", work, "--", *names]
    )


def _level(form: str, image: ImageDefinition) -> int:
    """gzip's: a disk that is compressed already would only take its time."""
    return 6 if DISKS[form] == "qcow2" and image.disk.compression == "none" else 0


def _disk(form: str) -> str:
    return "box-disk1.vmdk" if form == "box-virtualbox" else "box.img"


def _texts(form: str, image: ImageDefinition, *, size: int, project: Path | None) -> dict[str, str]:
    """The files of a box but its disk, whose ``size`` in bytes an OVF names."""
    provider = PROVIDERS[form]
    about: dict[str, object] = {"provider": provider, "architecture": image.platform.debian}
    if provider != "virtualbox":
        # In GiB, and only whole ones are understood.
        about |= {"format": "qcow2", "virtual_size": -(-image.disk.size // (1 << 30))}
    texts = {
        "metadata.json": json.dumps(about, indent=2) + "\n",
        "Vagrantfile": render.text(
            "vagrant/Vagrantfile.j2",
            project=project,
            name=image.name,
            version=image.version,
            machine=image.platform.machine,
            firmware=_FIRMWARE[image.platform.machine],
            provider=provider,
            cpus=image.ova.cpus,
            memory_mib=image.ova.memory >> 20,
            mac=mac(image.name),
            # Without a word of it every hypervisor starts a BIOS.
            uefi="bios" not in image.disk.firmware,
        ),
    }
    if provider == "virtualbox":
        # What VirtualBox has, and the machine's kernel has drivers for.
        machine = image.ova.model_copy(update={"controller": "sata", "nic": "virtio"})
        theirs = image.model_copy(update={"ova": machine})
        texts["box.ovf"] = ova.descriptor(theirs, disk=_disk(form), size=size, project=project)
    return texts


def mac(name: str) -> str:
    """An Ethernet address that follows from a machine's name, as Vagrant writes it; 080027 is VirtualBox's prefix."""
    return "080027" + hashlib.sha256(name.encode()).hexdigest()[:6].upper()

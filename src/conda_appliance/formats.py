"""What an appliance ships as: one table of all forms, for definitions, builds, the command line and the docs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from conda_appliance import platforms


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to ship an appliance.

    ``family`` is "disk" for what is made from the machine's disk, "box" for what is made from one with Vagrant's
    user. ``file`` is the artifact's name, with {name} and {version} in it. ``opens`` says what consumes it,
    ``tested`` what is done with it in this project's tests, ``use`` the command that takes it into use; ``page`` is
    the how-to page. ``command`` makes it where it is none of a definition's ``formats``. ``qemu`` is QEMU's name of
    it, where QEMU boots it; ``tools`` are the programs of the host that only this form needs; ``x86``: it describes a
    machine with an x86-64 processor. ``file`` has {machine}, {debian} or {mark} too, as `platforms` has them.
    """

    name: str
    family: str
    file: str
    opens: str
    tested: str
    use: str
    page: str
    command: str = ""
    qemu: str = ""
    tools: tuple[str, ...] = ()
    x86: bool = False


_BOOTED = "compared with the disk, sector by sector; hello booted in QEMU until its service answered"

FORMS = (
    Form(
        name="qcow2",
        family="disk",
        file="{name}{mark}.qcow2",
        opens="QEMU 5.1 and later, libvirt, Proxmox VE, OpenStack",
        tested="qemu-img check; every build boots it in QEMU and runs its checks",
        use="virt-install --import --disk {file} --name {name} --memory 1024 --osinfo debian13",
        page="disk-images",
        qemu="qcow2",
    ),
    Form(
        name="raw",
        family="disk",
        file="{name}{mark}.raw",
        opens="everything, dd too",
        tested="compared with the disk, sector by sector",
        use="qm importdisk VMID {file} STORAGE",
        page="disk-images",
        qemu="raw",
    ),
    Form(
        name="raw.zst",
        family="disk",
        file="{name}{mark}.raw.zst",
        opens="zstd, and then everything",
        tested="unpacked, and compared with the disk byte by byte",
        use="zstd -d --sparse {file} && qm importdisk VMID {name}.raw STORAGE",
        page="disk-images",
    ),
    Form(
        name="vmdk",
        family="disk",
        file="{name}{mark}.vmdk",
        opens="VMware (streamOptimized), VirtualBox, AWS import",
        tested=_BOOTED,
        use="aws ec2 import-image --disk-containers Format=VMDK,Url=s3://BUCKET/{file}",
        page="disk-images",
        qemu="vmdk",
    ),
    Form(
        name="ova",
        family="disk",
        file="{name}{mark}.ova",
        opens="VMware vSphere, Workstation and Fusion; VirtualBox",
        tested="its descriptor's structure and its manifest's digests; its disk is the vmdk",
        use="govc import.ova {file}    |    VBoxManage import {file}",
        page="disk-images",
        x86=True,
    ),
    Form(
        name="vhd",
        family="disk",
        file="{name}{mark}.vhd",
        opens="Azure (fixed size, whole MiB), older Hyper-V",
        tested=_BOOTED,
        use="az storage blob upload --type page --file {file} … && az image create --source URL --os-type Linux …",
        page="disk-images",
        qemu="vpc",
    ),
    Form(
        name="vhdx",
        family="disk",
        file="{name}{mark}.vhdx",
        opens="Hyper-V",
        tested=_BOOTED,
        use="New-VM -Name {name} -MemoryStartupBytes 1GB -Generation 2 -VHDPath {file}",
        page="disk-images",
        qemu="vhdx",
    ),
    Form(
        name="vdi",
        family="disk",
        file="{name}{mark}.vdi",
        opens="VirtualBox",
        tested=_BOOTED,
        use="VBoxManage storageattach VM --storagectl SATA --port 0 --type hdd --medium {file}",
        page="disk-images",
        qemu="vdi",
    ),
    Form(
        name="gce",
        family="disk",
        file="{name}{mark}.gce.tar.gz",
        opens="Google Compute Engine",
        tested="unpacked with GNU tar, and compared with the disk byte by byte",
        use="gcloud compute images create {name} --source-uri gs://BUCKET/{file}",
        page="disk-images",
        tools=("tar", "pigz"),
    ),
    Form(
        name="box-libvirt",
        family="box",
        file="{name}-{version}{mark}.libvirt.box",
        opens="Vagrant with vagrant-libvirt (KVM)",
        tested="Debian's Vagrant and libvirt: added from its catalog, up, ssh, checks, halt, destroy",
        use="vagrant box add out/{name}/{name}.json --provider libvirt && vagrant init {name} && vagrant up",
        page="vagrant",
        tools=("tar", "pigz"),
    ),
    Form(
        name="box-virtualbox",
        family="box",
        file="{name}-{version}{mark}.virtualbox.box",
        opens="Vagrant with VirtualBox",
        tested="added by Debian's Vagrant; its OVF's structure; its vmdk booted in QEMU until its service answered",
        use="vagrant box add out/{name}/{name}.json --provider virtualbox && vagrant init {name} && vagrant up",
        page="vagrant",
        tools=("tar", "pigz"),
        x86=True,
    ),
    Form(
        name="box-qemu",
        family="box",
        file="{name}-{version}{mark}.qemu.box",
        opens="Vagrant with vagrant-qemu",
        tested="added by Debian's Vagrant; the disk is box-libvirt's",
        use="vagrant box add out/{name}/{name}.json --provider qemu && vagrant init {name} && vagrant up",
        page="vagrant",
        tools=("tar", "pigz"),
    ),
    Form(
        name="tar",
        family="plain",
        file="{name}-{version}{mark}.tar.zst",
        opens="any Linux with zstd and tar; laid out as conda-pack's",
        tested="unpacked and moved where there are only dash, coreutils and tar, or only busybox",
        use="mkdir ENV && tar -x --zstd -f {file} -C ENV && ENV/bin/conda-unpack",
        page="plain-archives",
        tools=("zstd",),
    ),
    Form(
        name="sh",
        family="plain",
        file="{name}-{version}-Linux-{machine}.sh",
        opens="any Linux with a shell, coreutils, tar and gzip; options as constructor's installers",
        tested="installed, updated and damaged where there are only dash, coreutils, tar and gzip, or only busybox",
        use="sh {file} -b -p PREFIX",
        page="plain-archives",
        tools=("pigz",),
    ),
    Form(
        name="oci",
        family="container",
        file="{name}-{version}{mark}.oci.tar",
        opens="podman, skopeo, containerd, Docker 25 and later",
        tested="skopeo inspect and copy; unpacked by umoci and run by runc until its service answered",
        use="podman load -i {file}    |    skopeo copy oci-archive:{file} docker://REGISTRY/{name}:{version}",
        page="containers",
    ),
    Form(
        name="docker-archive",
        family="container",
        file="{name}-{version}{mark}.docker.tar",
        opens="every Docker, podman, kind, k3s",
        tested="skopeo inspect and copy; the same layers and configuration as oci",
        use="docker load -i {file}",
        page="containers",
    ),
    Form(
        name="deb",
        family="package",
        file="{name}_{version}_{debian}.deb",
        opens="Debian, Ubuntu and their kin, from Debian 11's dpkg on",
        tested="installed, upgraded, removed and purged by dpkg in a Debian; clean for lintian but for listed reasons",
        use="apt install ./{file}",
        page="os-packages",
        tools=("dpkg-deb", "unshare", "mount"),
    ),
    Form(
        name="rpm",
        family="package",
        file="{name}-{version}-1.{machine}.rpm",
        opens="Fedora, RHEL 8 and later, openSUSE and their kin",
        tested="installed, verified, upgraded and removed by rpm --root in a Debian (--nodeps); clean for rpmlint but "
        "for listed reasons",
        use="dnf install ./{file}",
        page="os-packages",
        tools=("rpmbuild", "unshare", "mount"),
    ),
    Form(
        name="payload-iso",
        family="disc",
        file="{name}-{version}{mark}-payload.iso",
        opens="any machine that runs Linux, from a CD or a stick",
        tested="installed, upgraded, rolled back, killed, damaged and removed where there are only dash and coreutils, "
        "or only busybox",
        use="mount -r /dev/sdX /mnt && sh /mnt/install.sh",
        page="payload-disc",
        command="conda-appliance disc IMAGE payload",
    ),
    Form(
        name="userspace-iso",
        family="disc",
        file="{name}-{version}{mark}-userspace.iso",
        opens="any machine that runs Linux and systemd, which runs the environments from the disc",
        tested="its services answered, were stopped by taking the disc out, and came back with it",
        use="mount -r /dev/sdX /mnt && sh /mnt/mount.sh",
        page="userspace-disc",
        command="conda-appliance disc IMAGE userspace",
    ),
    Form(
        name="live-iso",
        family="disc",
        file="{name}-{version}{mark}-live.iso",
        opens="a machine that starts from a CD or a stick, BIOS or UEFI",
        tested="started as a CD and as a stick on SeaBIOS and OVMF",
        use="conda-appliance disc write {file} /dev/sdX --erase /dev/sdX",
        page="live-disc",
        command="conda-appliance disc IMAGE live",
        x86=True,
    ),
    Form(
        name="installer-iso",
        family="disc",
        file="{name}-{version}{mark}-installer.iso",
        opens="a machine whose disk it installs, BIOS or UEFI",
        tested="installed onto empty and used disks, with write errors and power cuts, on SeaBIOS and OVMF",
        use="conda-appliance disc write {file} /dev/sdX --erase /dev/sdX",
        page="installer-disc",
        command="conda-appliance disc IMAGE installer",
        x86=True,
    ),
)

BY_NAME = {form.name: form for form in FORMS}

#: What a definition's ``formats`` may name: what a build makes.
BUILT = tuple(form.name for form in FORMS if not form.command)


def is_disk(name: str) -> bool:
    """Whether a form is made from the machine's disk, or from one like it."""
    return BY_NAME[name].family in ("disk", "box")


def of_family(family: str, names: Iterable[str]) -> list[str]:
    """Those of the forms that are of one family."""
    return [name for name in names if BY_NAME[name].family == family]


def file_name(form: str, *, name: str, version: str, platform: str = platforms.DEFAULT) -> str:
    """The name of an artifact's file, for a platform of conda's."""
    about = platforms.PLATFORMS[platform]
    return BY_NAME[form].file.format(
        name=name, version=version, machine=about.machine, debian=about.debian, mark=about.mark
    )


def use(form: Form, *, name: str = "NAME", version: str = "VERSION") -> str:
    """The command that takes a form into use."""
    file = file_name(form.name, name=name, version=version)
    return form.use.format(file=file, name=name, version=version)


def as_dict(form: Form) -> dict[str, str]:
    """A form as programs read it."""
    return {
        "name": form.name,
        "family": form.family,
        "file": file_name(form.name, name="NAME", version="VERSION"),
        "made_by": form.command or f"formats: [{form.name}]",
        "opened_by": form.opens,
        "tested": form.tested,
        "use": use(form),
    }


def text() -> str:
    """The table for people, on a terminal."""
    blocks = []
    for form in FORMS:
        about = as_dict(form)
        rows = [
            f"  {key.replace('_', ' '):<10} {about[key]}" for key in ("made_by", "opened_by", "tested", "use")
        ]
        blocks.append("\n".join([form.name, *rows]))
    return "\n\n".join(blocks)


def reference() -> str:
    """The reference page, in Markdown."""
    rows = [
        "# Forms that an appliance ships as",
        "",
        "<!-- made by `conda-appliance formats --markdown` -->",
        "",
        "A definition's `formats` names what a build makes; the others have a command of their own.",
        "",
        "| form | opened by | tested | take it into use |",
        "| --- | --- | --- | --- |",
    ]
    for form in FORMS:
        link = f"[{form.name}](../how-to/{form.page}.md)"
        rows.append(f"| {link} | {form.opens} | {form.tested} | {_code(use(form))} |")
    return "\n".join([*rows, ""])


def _code(command: str) -> str:
    """A command in a cell of a Markdown table, where a bar would end the cell."""
    return "<br>".join(f"`{part.strip()}`" for part in command.split("    |    "))

#!/usr/bin/env python3
"""How large a machine with an environment is: hello, slim and whole, and a usual way to the same.

    python bench/sizes.py [--work DIR]

The usual way is Debian's cloud image with the environment as conda-pack packs it. That image itself is not used: what
stands in for it is what Debian's own configuration of `genericcloud` installs (debian-cloud-images, config_space/13,
classes SYSTEM_BOOT, CLOUD, GENERIC, EXTRAS, TIME_SYSTEMD, AMD64 with the cloud kernel), from the same suite on the same
day, without that configuration's settings. Needs root, Debian's mirror and PyPI. Every tree is measured as its files
and as an ext4 file system in a qcow2 that is compressed with zstd, all made in the same way. Prints a table (Markdown).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from conda_appliance import apt, compare, linking, lock, locking, namespace, process, resources

HERE = Path(__file__).resolve().parents[1]
SUITE = "trixie"
CONDA_PACK = "conda-pack==0.9.2"
EPOCH = 1_577_836_800

#: debian-cloud-images, config_space/13/package_config, by class.
GENERICCLOUD = {
    "SYSTEM_BOOT": "sudo e2fsprogs libpam-systemd systemd-resolved libnss-resolve libnss-myhostname netplan.io polkitd "
    "unattended-upgrades apparmor zstd apt-utils init iptables iputils-ping linux-sysctl-defaults less nano netbase "
    "vim-tiny whiptail",
    "TIME_SYSTEMD": "systemd-timesyncd",
    "CLOUD": "openssh-server ssh-import-id cloud-initramfs-growroot",
    "GENERIC": "cloud-init cloud-guest-utils",
    "AMD64": "linux-image-cloud-amd64 grub-cloud-amd64 dosfstools",
    "EXTRAS": "apt-listchanges bash-completion bind9-host less man-db manpages socat pciutils reportbug traceroute vim "
    "psmisc tcpdump ca-certificates curl ethtool uuid-runtime screen xz-utils",
}


def main() -> int:
    """Make the trees, measure them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/bench-sizes"))  # noqa: S108
    work = parser.parse_args().work.resolve()
    resources.remove(work)
    work.mkdir(parents=True)
    shutil.copytree(HERE / "images", work / "images")
    whole = work / "images/hello.yaml"
    slim = work / "images/hello-slim.yaml"
    slim.write_text(whole.read_text().replace("name: hello\n", "name: hello-slim\n", 1) + "slim: true\n")
    cloud = genericcloud(work / "cloud")
    rows = [
        ("hello, `slim: true`", tree_of(hello(slim, work), work / "slim")),
        ("hello", tree_of(hello(whole, work), work / "whole")),
        ("stand-in for Debian's cloud image, without an environment", cloud),
    ]
    measured = [(name, *sizes(tree, work)) for name, tree in rows]
    add_packed(whole, cloud, work)
    measured.append(("… with the same environment by conda-pack", *sizes(cloud, work)))
    print("| | files, MiB | qcow2 (zstd), MiB |")
    print("| --- | --- | --- |")
    for name, files, packed in measured:
        print(f"| {name} | {files / (1 << 20):.1f} | {packed / (1 << 20):.1f} |")
    return 0


def hello(path: Path, work: Path) -> Path:
    """The disk of a definition, as `conda-appliance build` makes it."""
    words = ["build", "--lock", "--no-check", "--builder", "rootfs", path, "--out", work / "out"]
    done = process.run([sys.executable, "-m", "conda_appliance", *words])
    (disk,) = Path(done.stdout.strip()).glob("*.qcow2")
    return disk


def tree_of(image: Path, to: Path) -> Path:
    """The root file system of a disk, as a tree of its own."""
    to.mkdir()
    raw, root = to.with_suffix(".raw"), to.with_suffix(".root")
    root.mkdir()
    process.run(["qemu-img", "convert", "-O", "raw", image, raw])
    look = 'mount -t ext4 -o "loop,ro,noload,offset=$OFFSET" "$RAW" "$ROOT"\nexec "$@"'
    process.run(
        namespace.isolated(look, ["cp", "-a", f"{root}/.", to]),
        env={"RAW": str(raw), "ROOT": str(root), "OFFSET": str(compare.root_partition(raw) * 512)},
    )
    raw.unlink()
    return to


def genericcloud(to: Path) -> Path:
    """What Debian's configuration of its image installs, on `debootstrap --variant=minbase`."""
    main, security = apt.host_mirrors()
    names = {name for listed in GENERICCLOUD.values() for name in listed.split()}
    places = [(main, SUITE), (main, f"{SUITE}-updates"), (security, f"{SUITE}-security")]
    process.run(
        [
            *("mmdebstrap", "--variant=minbase", '--aptopt=Apt::Install-Recommends "false"'),
            *(f"--include={','.join(sorted(names))}", SUITE, to),
            *(f"deb [signed-by={apt.KEYRING}] {url} {suite} main" for url, suite in places),
        ],
        network=True,
    )
    return to


def add_packed(path: Path, tree: Path, work: Path) -> None:
    """Put the definition's environment into ``tree`` as conda-pack's users do: packed, unpacked, its prefix mended."""
    locked = lock.read(lock.path_for(path))
    files = locking.fetch(path, locked=locked).files
    section, prefix = locked.conda.environments["base"], work / "environment"
    linking.link(
        section.packages,
        files,
        prefix=str(prefix),
        into=prefix,
        epoch=EPOCH,
        work=work / "link",
        specs=section.specs,
    )
    tools, archive, home = work / "tools", work / "environment.tar.gz", tree / "opt/conda"
    process.run([sys.executable, "-m", "pip", "install", "--target", tools, CONDA_PACK], network=True)
    process.run(
        [sys.executable, "-m", "conda_pack.cli", "-p", prefix, "-o", archive], env={"PYTHONPATH": str(tools)}
    )
    home.mkdir(parents=True)
    process.run(["tar", "-xzf", archive, "-C", home])
    process.run(["chroot", tree, "/opt/conda/bin/python", "/opt/conda/bin/conda-unpack"])
    process.run(["chroot", tree, "/opt/conda/bin/python", "-B", "-c", "import flask, gunicorn, numpy"])


def sizes(tree: Path, work: Path) -> tuple[int, int]:
    """The bytes of a tree's files, and of a compressed qcow2 with an ext4 file system of 4 GiB that holds it."""
    files = process.run(["du", "--apparent-size", "--block-size=1", "--summarize", tree]).stdout.split()[0]
    raw, packed = work / "measured.raw", work / "measured.qcow2"
    process.run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1", "-d", tree, raw, "4G"])
    process.run(["qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", raw, packed])
    found = packed.stat().st_size
    raw.unlink()
    packed.unlink()
    return int(files), found


if __name__ == "__main__":
    sys.exit(main())

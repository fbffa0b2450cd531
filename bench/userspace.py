#!/usr/bin/env python3
"""What an environment costs that runs from a disc, in each form: size, time to write, and cold starts in a machine.

    python bench/userspace.py IMAGE.qcow2 TREE [--work DIR] [--turns N]

IMAGE is a machine of images/hello.yaml, TREE the environment that it has at /opt/conda. Each form lies on an ISO 9660
disc in the machine's CD drive, is mounted over /opt/conda, and read after the machine has forgotten what it knew of
files (drop_caches); what is packed is also mounted and read by this host's own kernel. Seconds are those that
processors worked (QEMU's, less what an empty command costs): a busy host does not change them. What was read from the
disc, and in how many requests, says what a real drive adds. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from conda_appliance import disc, machine, process, seed
from conda_appliance.definition_disc import DiscDefinition

EPOCH = 1_577_836_800
_IMPORT = "/opt/conda/bin/python -B -c 'import numpy, flask'"
_FORGET = "sync; echo 3 >/proc/sys/vm/drop_caches"


def main() -> int:
    """Make the discs, start the machine, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, metavar="IMAGE.qcow2")
    parser.add_argument("tree", type=Path, metavar="TREE")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/bench-userspace"))  # noqa: S108
    parser.add_argument("--turns", type=int, default=3, help="how often; the median counts")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    made = {name: written(name, form, args.tree, args.work) for name, form in FORMS.items()}
    figures = started(args.image, {name: path for name, (path, _) in made.items()}, args.work, args.turns)
    print("| form | disc | written in | read | in requests | first import | again | first, not emulated |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (path, seconds) in made.items():
        cold, read, requests, warm = figures[name]
        print(
            f"| {name} | {path.stat().st_size / 1e6:.0f} MB | {seconds:.1f} s | {read / 1e6:.0f} MB "
            f"| {requests:.0f} | {cold:.1f} s | {warm:.1f} s | {here(name, path)} |"
        )
    return 0


def iso9660(tree: Path, to: Path) -> None:
    """The files themselves."""
    entry = {"from": "tree", "to": "/environment", "keep": True}
    definition = DiscDefinition.model_validate({"name": "bench", "volume": "BENCH", "entries": [entry]})
    disc.write(definition, {"tree": tree}, to, epoch=EPOCH)


def zisofs(tree: Path, to: Path) -> None:
    """The files themselves, each compressed with zlib: an extension that Linux reads. xorriso makes it."""
    command = ["xorriso", "-outdev", f"stdio:{to}", "-volid", "BENCH", "-zisofs", "level=6:block_size=128k"]
    command += ["-map", str(tree), "/environment", "-set_filter_r", "--zisofs", "/environment", "--"]
    process.run(command)


def image(*command: str) -> Callable[[Path, Path], None]:
    """A file system in a file on the disc; ``TO`` and ``TREE`` in ``command`` are replaced."""

    def make(tree: Path, to: Path) -> None:
        file = to.with_suffix(".image")
        file.unlink(missing_ok=True)
        words = {"TO": str(file), "TREE": str(tree)}
        process.run([words.get(word, word) for word in command], env={"SOURCE_DATE_EPOCH": str(EPOCH)})
        entry = {"from": "image", "to": "/environment.image"}
        definition = DiscDefinition.model_validate({"name": "bench", "volume": "BENCH", "entries": [entry]})
        disc.write(definition, {"image": file}, to, epoch=EPOCH)
        file.unlink()

    return make


def squashfs(*more: str) -> Callable[[Path, Path], None]:
    """A squashfs file."""
    return image("mksquashfs", "TREE", "TO", "-noappend", "-all-root", "-no-progress", "-quiet", *more)


FORMS = {
    "iso9660": iso9660,
    "zisofs": zisofs,
    "squashfs lz4": squashfs("-comp", "lz4"),
    "squashfs zstd 3": squashfs("-comp", "zstd", "-Xcompression-level", "3"),
    "squashfs zstd 15": squashfs("-comp", "zstd", "-Xcompression-level", "15"),
    "erofs": image("mkfs.erofs", "-T", str(EPOCH), "TO", "TREE"),
    "erofs lz4": image("mkfs.erofs", "-z", "lz4", "-T", str(EPOCH), "TO", "TREE"),
    "erofs lz4hc, 64 KiB": image(
        "mkfs.erofs", "-z", "lz4hc,9", "-C", "65536", "-T", str(EPOCH), "TO", "TREE"
    ),
}


def written(name: str, form: Callable[[Path, Path], None], tree: Path, work: Path) -> tuple[Path, float]:
    """The disc of one form, and the processor's seconds that it took."""
    to = work / f"{name.replace(' ', '-').replace(',', '')}.iso"
    to.unlink(missing_ok=True)
    before = sum(os.times()[:4])
    form(tree, to)
    return to, sum(os.times()[:4]) - before


def started(at: Path, discs: dict[str, Path], work: Path, turns: int) -> dict[str, list[float]]:
    """Seconds of a cold import, bytes and requests that it reads, seconds of a warm one; by form."""
    folder = work / "machine"
    process.run(["rm", "-rf", folder])
    folder.mkdir()
    key = machine.new_key(folder)
    given = seed.write(
        folder / "seed.iso",
        host_name="bench",
        instance_id=f"bench-{os.getpid()}",
        public_keys=[key.with_suffix(".pub").read_text().strip()],
        epoch=EPOCH,
    )
    found: dict[str, list[list[float]]] = {name: [] for name in discs}
    with machine.boot(
        at, work=folder, seed=given, discs=[next(iter(discs.values()))], name="bench"
    ) as running:
        running.wait_for_ssh("admin", key)
        running.run("cloud-init status --wait; sudo -n systemctl stop hello", timeout=600, check=False)
        for _ in range(turns):
            for name, path in discs.items():
                running.eject()
                running.insert(path)
                found[name].append(_measured(running))
    return {name: [statistics.median(one) for one in zip(*rows, strict=True)] for name, rows in found.items()}


def here(name: str, path: Path) -> str:
    """Seconds of the first import by this host's processor and kernel; it may know no ISO 9660."""
    form = name.split()[0]
    if "iso" in form or "zisofs" in form:
        return ""
    found = process.run(
        ["xorriso", "-indev", f"stdio:{path}", "-find", "/environment.image", "-exec", "report_lba"]
    )
    place = int(found.stdout.partition("lba:")[2].split(",")[1]) * 2048
    mount = f"mount -t tmpfs tmpfs /opt; mkdir /opt/conda; mount -t {form} -o loop,ro,offset={place} {path} /opt/conda"
    seconds = []
    for _ in range(5):
        before = sum(os.times()[2:4])
        process.run(["unshare", "--mount", "sh", "-euc", f"{mount}\n{_IMPORT}"])
        both = sum(os.times()[2:4]) - before
        before = sum(os.times()[2:4])
        process.run(["unshare", "--mount", "sh", "-euc", mount])
        seconds.append(both - (sum(os.times()[2:4]) - before))
    return f"{statistics.median(seconds):.2f} s"


def _measured(running: machine.Machine) -> list[float]:
    def root(script: str) -> str:
        return running.run("sudo -n sh -eu", input=script, timeout=600).stdout.strip()

    def cost(script: str) -> float:
        before = running.cpu_seconds()
        root(script)
        return running.cpu_seconds() - before

    def read() -> tuple[int, int]:
        words = root("cat /sys/block/sr0/stat").split()
        return int(words[2]) * 512, int(words[0])

    root(
        "for try in 1 2 3 4 5 6 7 8 9; do mount -r /dev/sr0 /mnt 2>/dev/null && break; sleep 1; done\n"
        "if [ -e /mnt/environment ]; then mount --bind /mnt/environment /opt/conda\n"
        "else mount -o loop,ro /mnt/environment.image /opt/conda; fi"
    )
    root(_FORGET)
    idle, before = cost("true"), read()
    cold = cost(_IMPORT) - idle
    after = read()
    warm = cost(_IMPORT) - idle
    root("umount /opt/conda; umount /mnt")
    return [cold, after[0] - before[0], after[1] - before[1], warm]


if __name__ == "__main__":
    sys.exit(main())

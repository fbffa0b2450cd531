"""What the root file system of a disk image holds, path by path, looked at from outside."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import conda_appliance
from conda_appliance import namespace, process, trees
from conda_appliance.errors import BuildError

#: What reads a tree out of a raw disk: mounts and the loop device end with their namespace. ``noload``: a journal
#: that a crash left is not replayed, so nothing is written.
_LOOK = """
mkdir -p "$WORK/root"
mount -t ext4 -o "loop,ro,noload,offset=$OFFSET" "$RAW" "$WORK/root"
"""


def tools() -> tuple[str, ...]:
    """The programs of the host that this module needs."""
    return (*namespace.tools(), "sfdisk", "qemu-img")


def tree_of(image: Path, work: Path, *, times: bool = True) -> dict[str, str]:
    """Every path of a disk image's root file system (ext4) and what it is, as `trees.listing` says it.

    ``work`` is a folder for what is only needed meanwhile. Raises BuildError for a disk without a root partition;
    CommandFailed where this host lets nobody mount a loop device.
    """
    raw = work / "disk.raw"
    process.run(["qemu-img", "convert", "-O", "raw", image, raw])
    try:
        command: list[process.Argument] = [sys.executable, "-P", "-m", "conda_appliance.compare"]
        done = process.run(
            namespace.isolated(_LOOK + 'exec "$@"', [*command, work / "root", "times" if times else ""]),
            env={
                "WORK": str(work),
                "RAW": str(raw),
                "OFFSET": str(root_partition(raw) * 512),
                "PYTHONPATH": str(Path(conda_appliance.__file__).parents[1]),
            },
            orphaned=signal.SIGKILL,
            hint="run as root on a host that has loop devices",
        )
    finally:
        raw.unlink()
    return trees.load(done.stdout)


def root_partition(raw: Path) -> int:
    """The first sector of the partition that is named or typed as the root, else of the largest."""
    table = json.loads(process.run(["sfdisk", "--json", raw]).stdout)["partitiontable"]
    partitions = table.get("partitions", [])
    named = [one for one in partitions if one.get("name") == "root"]
    found = named or sorted(partitions, key=lambda one: int(one["size"]))[-1:]
    if not found:
        raise BuildError(f"{raw} has no partition")
    return int(found[0]["start"])


if __name__ == "__main__":
    sys.stdout.write(trees.dump(trees.listing(Path(sys.argv[1]), times=bool(sys.argv[2]))))

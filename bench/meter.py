#!/usr/bin/env python3
"""Runs one program and writes down what its whole process tree cost. Standard library only; Linux only.

The meter makes itself the reaper of every orphan below it (prctl(2) PR_SET_CHILD_SUBREAPER), so that a double-forked
child's times come back here too. What it writes, as JSON:

``status``      the program's exit status; null when it ran out of time and was ended
``wall_s``      seconds from the start of the program to its end
``cpu_s``       user and system seconds of every process below the meter that was waited for (getrusage(2))
``kernel_s``    seconds that the kernel's own threads took meanwhile and in the sync(2) that follows: loop devices and
                write-back work there, in no process's account. The whole machine's: quiet machines only
``memory``      bytes: the largest sum, over samples, of the tree's proportional set sizes and of what tmpfs grew by
``written``     bytes made dirty on file systems that have a disk below (``write_bytes`` of proc_pid_io(5)); tmpfs is
                memory and does not count; ``cancelled`` of them were deleted before they reached the disk
``flush_s``     seconds that sync(2) took afterwards
``left``        what the program left behind: processes, mounts, loop devices. All of it is ended, unmounted, detached.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

#: Seconds between two looks at the tree's memory.
PERIOD = 0.1
#: Seconds that a process which outlived the program has to end by itself after SIGTERM.
PATIENCE = 5.0

_PR_SET_CHILD_SUBREAPER = 36


def descendants() -> list[int]:
    """The processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


class Memory(threading.Thread):
    """Samples the tree's memory until `stop`; ``peak`` is the largest sum seen, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()
        self._tmpfs = _tmpfs_bytes()

    def run(self) -> None:
        """Sample every `PERIOD`."""
        while True:
            grown = max(0, _tmpfs_bytes() - self._tmpfs)
            self.peak = max(self.peak, grown + sum(_proportional(pid) for pid in descendants()))
            if self._done.wait(PERIOD):
                return

    def stop(self) -> None:
        """Sample no more."""
        self._done.set()
        self.join()


def _tmpfs_bytes() -> int:
    match = re.search(r"^Shmem:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _proportional(pid: int) -> int:
    """A process's share of private and shared pages, in bytes; pages of tmpfs left out, which are counted apart."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    sizes = {name: int(size) for name, size in re.findall(r"^(Pss\w*):\s+(\d+) kB", text, re.MULTILINE)}
    return (sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0)) * 1024


def kernel_seconds() -> dict[int, float]:
    """What each of the kernel's threads has taken, in seconds, by id."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if fields[1] == "2":  # the parent of them all
                    found[int(entry.name)] = (int(fields[11]) + int(fields[12])) / ticks
    return found


def io_counters() -> dict[str, int]:
    """``/proc/self/io``: this process and every child it has waited for, in bytes."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


def loops() -> dict[str, str]:
    """Loop devices in use, as device → backing file."""
    found = {}
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            found[f"/dev/{path.parents[1].name}"] = path.read_text().strip()
    return found


def mounts() -> list[str]:
    """Mount points of this namespace, in the order they were made."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def end_rest() -> list[str]:
    """End every process that is still below us, and reap it; returns their command lines."""
    names = []
    for number in (signal.SIGTERM, signal.SIGKILL):
        rest = descendants()
        watched = select.poll()
        handles = []
        for pid in rest:
            with suppress(OSError):
                if number == signal.SIGTERM:
                    names.append(
                        Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    )
                handles.append(os.pidfd_open(pid))
                watched.register(handles[-1], select.POLLIN)
                os.kill(pid, number)
        deadline = time.monotonic() + PATIENCE
        alive = len(handles)
        while alive and (left := deadline - time.monotonic()) > 0:
            for handle, _ in watched.poll(left * 1000):
                watched.unregister(handle)
                alive -= 1
            _reap()
        for handle in handles:
            os.close(handle)
        _reap()
    return [name for name in names if name]


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def clean_devices(mounted: list[str], looped: dict[str, str], own: list[str]) -> list[str]:
    """Unmount and detach what was not there before; returns what that was.

    Mounts are this namespace's; loop devices are the machine's, and only those on files below ``own`` are ours.
    """
    left = []
    mounted = list(mounted)
    for point in reversed(mounts()):
        if point in mounted:
            mounted.remove(point)  # a point can be mounted over more than once
            continue
        left.append(f"mount {point}")
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    for device, backing in loops().items():
        if looped.get(device) != backing and any(backing.startswith(folder) for folder in own):
            left.append(f"loop device {device} on {backing}")
            subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)
    return left


def measure(
    command: list[str], *, log: Path, root: str | None, own: list[str], limit: float | None
) -> dict[str, object]:
    """Run ``command`` to its end, in ``root`` if given; both streams are appended to ``log``; see `clean_devices`."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    mounted, looped = mounts(), loops()
    os.sync()
    load = os.getloadavg()[0]
    memory = Memory()
    memory.start()
    before, threads = io_counters(), kernel_seconds()

    def enter() -> None:
        if root:
            os.chroot(root)
        os.chdir("/")

    with log.open("ab") as output:
        started = time.monotonic()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, preexec_fn=enter
        )
        status: int | None = None
        with suppress(subprocess.TimeoutExpired):
            status = child.wait(limit)
        wall = time.monotonic() - started
    memory.stop()
    left = [f"process {name}" for name in end_rest()]
    used, after = resource.getrusage(resource.RUSAGE_CHILDREN), io_counters()
    started = time.monotonic()
    os.sync()
    flush = time.monotonic() - started
    kernel = sum(max(0.0, now - threads.get(pid, 0.0)) for pid, now in kernel_seconds().items())
    left += clean_devices(mounted, looped, own)
    return {
        "status": status,
        "wall_s": round(wall, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "kernel_s": round(kernel, 3),
        "user_s": round(used.ru_utime, 3),
        "system_s": round(used.ru_stime, 3),
        "memory": max(memory.peak, used.ru_maxrss * 1024),
        "written": after["write_bytes"] - before["write_bytes"],
        "cancelled": after["cancelled_write_bytes"] - before["cancelled_write_bytes"],
        "flush_s": round(flush, 3),
        "load_before": round(load, 2),
        "left": left,
    }


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def prepare_root(root: str, binds: list[str]) -> None:
    """Mount what a program needs to see inside ``root``; the caller's mount namespace is gone with the meter."""
    # Programs that make namespaces of their own want / to be a mount point.
    _mount("--bind", root, root)
    for name in ("proc", "sys", "dev"):
        _mount("--rbind", f"/{name}", f"{root}/{name}")
    for name in ("tmp", "run"):
        _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}/{name}")
    for bind in binds:
        source, _, target = bind.partition(":")
        inside = Path(root, target.lstrip("/"))
        inside.mkdir(parents=True, exist_ok=True)
        _mount("--bind", source, str(inside))


def main() -> int:
    """Measure; the exit status is the program's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--log", type=Path, required=True, help="where both streams go")
    parser.add_argument(
        "--root", help="run it in this root; needs a mount namespace of our own: unshare --mount"
    )
    parser.add_argument(
        "--bind", action="append", default=[], metavar="FROM:TO", help="mount FROM at TO inside"
    )
    parser.add_argument(
        "--own", action="append", default=[], metavar="DIR", help="whose files' loop devices are ours"
    )
    parser.add_argument("--limit", type=float, metavar="S", help="end the program after so many seconds")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    if args.root:
        prepare_root(args.root, args.bind)
    own = [*args.own, *([args.root] if args.root else [])]
    figures = measure(args.command, log=args.log, root=args.root, own=own, limit=args.limit)
    args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if figures["status"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())

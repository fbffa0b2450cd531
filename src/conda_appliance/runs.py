"""Which run of ours a process belongs to, and an end for those whose run is dead.

Every program inherits an environment variable that names the run which started it (the idea is
Jenkins' ``BUILD_ID``). When a run ends, and when the next one starts after a SIGKILL, whatever still
carries the mark of a dead run is ended: grandchildren (Packer's plugins, their QEMU) included.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

#: The environment variable that every program we start carries: the `mark` of the run's process.
MARK = "CONDA_APPLIANCE_RUN"


def mark(pid: int | None = None) -> str:
    """``PID:START:NAMESPACE`` of a process: its id, its start in clock ticks, its PID namespace's inode.

    The start is there because ids are used again; the namespace because a container's processes are in the
    host's ``/proc`` too, under other ids.
    """
    pid = os.getpid() if pid is None else pid
    stat = Path(f"/proc/{pid}/stat").read_text()
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}:{_namespace()}"


def _namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def alive(owner: str) -> bool:
    """Whether the process that ``mark`` named is still running; one of another PID namespace counts as running."""
    if not owner.endswith(f":{_namespace()}"):
        return True  # a container's, or its host's: not ours to judge
    pid = owner.partition(":")[0]
    try:
        return pid.isdigit() and mark(int(pid)) == owner
    except OSError:
        return False


def carrying(variable: str) -> dict[int, str]:
    """Every process that has an environment variable, as id → value; our own process left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in variables:
            name, _, value = entry.partition(b"=")
            if name == variable.encode():
                found[int(folder.name)] = value.decode(errors="replace")
    return found


def marked() -> dict[int, str]:
    """Every process that carries a run's mark, as id → mark; our own process left out."""
    return carrying(MARK)


def end(which: Callable[[], Sequence[int]], *, patience: float = 10.0) -> list[int]:
    """End the processes that ``which`` lists, and those it lists next: SIGTERM, and SIGKILL after ``patience`` seconds.

    Returns the process ids it found first.
    """
    ended = found = list(which())
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not found:  # as most of the time: each look is one at all that runs here
            break
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while (found := list(which())) and time.monotonic() < deadline:
            time.sleep(0.05)
    return ended


def reap(*, own: bool = False, patience: float = 10.0) -> list[int]:
    """End the programs of runs that are dead, and with ``own`` those of this run too.

    They get SIGTERM, and SIGKILL after ``patience`` seconds. Returns their process ids.
    """
    me = mark()
    return end(
        lambda: [
            pid
            for pid, owner in marked().items()
            if (own and owner == me) or (owner != me and not alive(owner))
        ],
        patience=patience,
    )

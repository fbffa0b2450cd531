"""Finds data files, the cache and work folders.

A folder of the user's own project (``templates/``, ``playbooks/``, ``iso/`` … beside the definition or
above it) goes before what is shipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from conda_appliance.errors import BuildError, UsageError

_PACKAGE = Path(__file__).resolve().parent


def shipped() -> Path:
    """The folder of the shipped data: inside the installed package, or the checkout's top level."""
    installed = _PACKAGE / "data"
    return installed if installed.is_dir() else _PACKAGE.parents[1]


def project(path: Path) -> Path:
    """The folder whose ``templates/``, ``playbooks/`` and so on go before the shipped ones.

    A definition in ``images/`` belongs to the folder above it, any other to its own.
    """
    folder = path.resolve().parent
    return folder.parent if folder.name == "images" else folder


def find(relative: str, project: Path | None = None) -> Path:
    """A data file or folder such as ``templates/packer``: the project's own, else the shipped one.

    Raises UsageError when neither has it.
    """
    for root in (project, shipped()):
        if root is not None and (root / relative).exists():
            return root / relative
    raise UsageError(f"no {relative} in {project or shipped()}, and none is shipped")


def cache_root() -> Path:
    """Where verified downloads and made layers are kept: ``$CONDA_APPLIANCE_CACHE``, else the user's cache."""
    given = os.environ.get("CONDA_APPLIANCE_CACHE")
    root = Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("conda-appliance"))
    root.mkdir(parents=True, exist_ok=True)
    return root.resolve()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, text: str) -> None:
    """Write a small file in one step: readers see the old text or the new one, whoever else writes it."""
    temporary = path.with_name(f".{path.name}.{own_name()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_text(value: Mapping[str, Any]) -> str:
    """``value`` as JSON, a line for each member and each item of a list in it: so diff(1) shows what changed.

    What ``json.dumps`` does with an indent takes it three times as long.
    """
    members = []
    for name, member in value.items():
        if isinstance(member, list):
            items = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in member)
            members.append(f"{json.dumps(name)}: [\n  {items}\n ]" if member else f"{json.dumps(name)}: []")
        else:
            members.append(f"{json.dumps(name)}: {json.dumps(member, ensure_ascii=False)}")
    return "{\n " + ",\n ".join(members) + "\n}\n"


def hard_link_or_copy(source: Path, to: Path) -> None:
    """Give a file that nobody writes to another name, or where file systems do not allow that, a copy."""
    try:
        os.link(source.resolve(), to)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, to)


def require_space(folder: Path, need: int, what: str) -> None:
    """Raise BuildError unless ``folder``'s file system has ``need`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise BuildError(
            f"{what} needs {size_text(need)} free in {folder}, and {size_text(free)} are",
            hint="free some space, `conda-appliance clean`, or use --out and CONDA_APPLIANCE_CACHE",
        )


def memory_file(need: int) -> int | None:
    """A file in memory (memfd_create(2)), as a descriptor that other programs open below /proc; it ends with us.

    None when less than ``need`` bytes and 1 GiB for everything else are free.
    """
    words = Path("/proc/meminfo").read_text(encoding="ascii").partition("MemAvailable:")[2].split()
    if not words or int(words[0]) * 1024 < need + (1 << 30):
        return None
    return os.memfd_create("conda-appliance", os.MFD_CLOEXEC)


def size_text(count: float) -> str:
    """A byte count for people, e.g. ``1.4 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def own_name() -> str:
    """A name that nobody else has at the same time: several images of one process work side by side."""
    return f"{os.getpid()}-{threading.get_ident()}"


@contextmanager
def work_folder(parent: Path, name: str, *, wait: Callable[[str], None] | None = None) -> Iterator[Path]:
    """A fresh folder ``parent/name.partial`` that only one run holds; removed when the block ends.

    The block renames what it wants to keep. A folder left by a killed run is emptied by the next run
    that takes it, and by `sweep`: its lock is free as soon as its owner is dead.
    When another living run holds it, ``wait`` is told and waits; without it, BuildError is raised.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{name}.partial"
    lock = filelock.FileLock(parent / f"{name}.partial.lock")
    try:
        # A `sweep` that looks whether the owner of a new lock lives holds it for a moment.
        lock.acquire(timeout=1 if wait is None else 0, poll_interval=0.05)
    except filelock.Timeout:
        if wait is None:
            raise BuildError(
                f"another run is working in {folder}",
                hint="wait for it to end, or use another --out",
            ) from None
        wait("another run is making the same; waiting for it")
        lock.acquire(poll_interval=0.1)
    try:
        remove(folder)
        folder.mkdir()
        yield folder
    finally:
        remove(folder)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def sweep(parent: Path) -> list[Path]:
    """Remove the work folders in ``parent`` whose owner is dead; returns what was removed."""
    removed = []
    for path in sorted(parent.glob("*.partial.lock")) + sorted(parent.glob(".*.partial.lock")):
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (filelock.Timeout, OSError):
            continue
        folder = path.with_suffix("")
        if folder.exists():
            remove(folder)
            removed.append(folder)
        path.unlink(missing_ok=True)
        lock.release()
    return removed


def remove(path: Path) -> None:
    """Remove a file or a whole tree, read-only folders included; nothing there is no error."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.is_dir():

        def retry(function: object, name: str, _error: object) -> None:
            Path(name).parent.chmod(0o700)
            Path(name).chmod(0o700)
            if Path(name).is_dir():
                shutil.rmtree(name)
            else:
                Path(name).unlink()

        shutil.rmtree(path, onerror=retry)

"""Finds data files, the cache and work folders.

A folder of the user's own project (``templates/``, ``playbooks/``, ``iso/`` … beside the definition or
above it) goes before what is shipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock
import platformdirs

from conda_appliance.errors import BuildError, UsageError

_PACKAGE = Path(__file__).resolve().parent


def shipped() -> Path:
    """The folder of the shipped data: inside the installed package, or the checkout's top level."""
    installed = _PACKAGE / "data"
    return installed if installed.is_dir() else _PACKAGE.parents[1]


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


def require_space(folder: Path, need: int, what: str) -> None:
    """Raise BuildError unless ``folder``'s file system has ``need`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise BuildError(
            f"{what} needs {size_text(need)} free in {folder}, and {size_text(free)} are",
            hint="free some space, `conda-appliance clean`, or use --out and CONDA_APPLIANCE_CACHE",
        )


def size_text(count: float) -> str:
    """A byte count for people, e.g. ``1.4 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


@contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """A fresh folder ``parent/name.partial`` that only one run holds; removed when the block ends.

    The block renames what it wants to keep. A folder left by a killed run is emptied by the next run
    that takes it, and by `sweep`: its lock is free as soon as its owner is dead.
    Raises BuildError when another living run holds it.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{name}.partial"
    lock = filelock.FileLock(parent / f"{name}.partial.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise BuildError(
            f"another run is working in {folder}",
            hint="wait for it to end, or use another --out",
        ) from None
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

"""One layer: its content, what is kept beside it, and whether the content is still what was made.

The folder of a layer holds the content (a file or a tree), ``layer.json`` (what decided it, and its SHA-256), ``seen``,
by which an unchanged content is known again without reading it, and ``sums``, what a tree holds.
"""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conda_appliance import overlay, resources, trees
from conda_appliance.errors import BuildError, HashMismatch

ABOUT, SEEN, SUMS = "layer.json", "seen", "sums"
#: How many layers are asked for what they share with one that was touched: to ask all may take longer than to read it.
_TRIED = 2
#: What the name of a layer ends in that was set aside.
ASIDE = ".damaged"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that is there: ``place`` is its content, ``sha256`` the file's or the tree's listing's.

    ``size`` is what it takes on disk, in bytes.

    ``why`` says what was new when it had to be made now; it is empty when it was there. ``verify`` returns what it
    holds, or raises HashMismatch; BuildError where another run took it away.
    """

    kind: str
    key: str
    place: Path
    sha256: str
    made: bool
    size: int = 0
    why: tuple[str, ...] = ()
    verify: Callable[[], trees.Paths] = field(default=tuple, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The content, verified. Raises HashMismatch as `Store.get` says."""
        self.verify()
        return self.place

    @property
    def paths(self) -> trees.Paths:
        """What it holds, as it was when it was verified or made. Raises as `path` does."""
        return self.verify()

    def listing(self) -> Mapping[str, str]:
        """The content, path by path (`trees.listing`). Raises as `path` does."""
        self.verify()
        return self._listed

    @cached_property
    def _listed(self) -> Mapping[str, str]:
        return trees.load((self.place.parent / SUMS).read_text(encoding="utf-8"))

    @cached_property
    def contents(self) -> overlay.Contents:
        """What it holds, for those who lay it over others."""
        return overlay.Contents.of(self.paths, self.listing())


class Once:
    """What a layer holds, verified by whoever asks first: several images of one run may want the same one."""

    def __init__(self, verify: Callable[[], trees.Paths]) -> None:
        self._verify = verify
        self._lock = threading.Lock()
        self._found: trees.Paths | HashMismatch | None = None

    def __call__(self) -> trees.Paths:
        with self._lock:
            if self._found is None:
                try:
                    self._found = self._verify()
                except HashMismatch as error:
                    self._found = error
            if isinstance(self._found, HashMismatch):
                raise self._found
            return self._found


def read(folder: Path) -> dict[str, Any] | None:
    """The record of the layer in ``folder``; None where there is none that is whole."""
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if {"subject", "sha256", "name", "size", "parts"} <= about.keys() else None


def verify(
    folder: Path, about: Mapping[str, Any], damage: Callable[[Path], str] | None, *, closely: bool = False
) -> trees.Paths:
    """Raise HashMismatch unless the content is what was made; it is read when the file system says it was touched, or
    to look ``closely``. Returns what it holds. What is damaged is set aside; ``damage`` may tell more of it.

    Files that it shares with a layer that nobody touched are not read.
    """
    content = folder / about["name"]
    try:
        paths = trees.all_of(content)
    except FileNotFoundError:
        raise BuildError(
            f"the cached {content} is gone: another run set it aside",
            hint="run the same command again: it is made anew",
        ) from None
    if untouched(folder, paths) and (not closely or not about["sha256"]):
        return paths
    listed = trees.listing(content, paths=paths, known={} if closely else _known(folder, paths))
    digest = digest_of(listed, trees.dump(listed))
    if digest == about["sha256"]:
        resources.write(folder / SEEN, trees.seen(paths))
        return paths
    what = damage(content) if damage is not None else _damage(folder, content, listed)
    aside = folder.with_name(f"{folder.name}{ASIDE}")
    resources.remove(aside)
    folder.rename(aside)
    raise HashMismatch(
        what,
        expected=about["sha256"],
        found=digest,
        hint=f"it was set aside in {aside}; run the same command again: it is made anew",
    )


def untouched(folder: Path, paths: trees.Paths) -> bool:
    """Whether the file system says of the content what it said when it was made (`trees.seen`)."""
    try:
        return (folder / SEEN).read_text(encoding="utf-8") == trees.seen(paths)
    except OSError:
        return False


def _known(folder: Path, paths: trees.Paths) -> Mapping[tuple[int, int], str]:
    """What another layer of the kind, which nobody touched, says of its files (`trees.descriptions`).

    Files that several layers share have another ctime as soon as one more shares them; only the two that took part
    are known again by it (`now`).
    """
    shared = [one for one in paths if stat.S_ISREG(one[1].st_mode) and one[1].st_nlink > 1]
    if not shared:
        return {}
    path, largest = max(shared, key=lambda one: one[1].st_size)
    others = [one.parent for one in folder.parent.glob(f"*/{ABOUT}") if one.parent != folder]
    tried = 0
    for other in sorted(others, key=_used, reverse=True):
        if tried == _TRIED:
            break
        about = read(other)
        if about is None or not about["sha256"] or other.name.endswith(ASIDE):
            continue
        content = other / about["name"]
        try:
            if not os.path.samestat((content / path).lstat(), largest):
                continue
            tried += 1
            held, text = trees.all_of(content), (other / SUMS).read_text(encoding="utf-8")
            if untouched(other, held) and trees.digest(text) == about["sha256"]:
                return trees.descriptions(held, trees.load(text))
        except (OSError, ValueError):  # it is being taken away, or is no layer
            continue
    return {}


def _used(folder: Path) -> int:
    """When a layer was used last, in nanoseconds since 1970; 0 for one that is gone."""
    try:
        return (folder / ABOUT).stat().st_mtime_ns
    except OSError:
        return 0


def digest_of(listed: Mapping[str, str], text: str) -> str:
    """The digest of the content where it is one file (`trees.describe`), else that of the tree's listing as text."""
    if set(listed) == {"."} and (one := re.search(r" (?:sha256|blocks):([0-9a-f]{64})", listed["."])):
        return one[1]
    return trees.digest(text)


def now(paths: trees.Paths, others: trees.Paths) -> trees.Paths:
    """``paths`` as they are now that ``others`` share some of their files: those have another ctime."""
    shared = {(about.st_dev, about.st_ino): about for _, about in others if not stat.S_ISDIR(about.st_mode)}
    return [(path, shared.get((about.st_dev, about.st_ino), about)) for path, about in paths]


def _damage(folder: Path, content: Path, listed: Mapping[str, str]) -> str:
    """Which part of a damaged layer is damaged."""
    if set(listed) == {"."}:
        return f"the cached {content}"
    try:
        before = trees.load((folder / SUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"the cached tree {content}"
    lines = [line.split(" → ")[0] for line in trees.differences(before, listed)]
    return f"the cached tree {content} ({trees.some(lines)})"

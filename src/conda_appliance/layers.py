"""Layers: what was made once and is used again, addressed by the hash of everything that decided it.

A layer is a folder ``layers/KIND/KEY/`` of the cache. It holds the content (a file or a tree), ``layer.json`` (what
decided it, and its SHA-256), ``seen``, by which an unchanged content is known again without reading it, and
``users``, who used it when. It appears in one step, is verified when a run first uses it or looks at it, and is held
while it is used, so that nobody prunes it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from conda_appliance import direct, layer, log, resources, trees
from conda_appliance.errors import HashMismatch
from conda_appliance.layer import Layer

#: What decides a layer: the name of an input → its digest, or its own parts by name.
Parts = Mapping[str, "str | Mapping[str, str]"]

#: How much the layers may take together, in bytes, before the ones that were not used for longest go.
LIMIT = 20 << 30
#: A layer used within this many seconds stays, whatever the limit: the next build wants it again.
FRESH = 3600

#: The folder of a cache that they are kept in.
FOLDER = "layers"

#: A folder with an empty file for each subject that used the layer, whose time says when it last did.
_USERS = "users"
#: One for each layer's folder: several images of one run that want the same layer have it read once.
_LOCKS: dict[Path, threading.Lock] = {}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A layer as ``cache list`` shows it: ``size`` in bytes on disk, ``used`` in seconds since 1970."""

    kind: str
    key: str
    subject: str
    folder: Path
    size: int
    used: float


def key_of(kind: str, parts: Parts) -> str:
    """The name of a layer: 16 hexadecimal digits of the hash of what decides it."""
    return hashlib.sha256(json.dumps([kind, parts], sort_keys=True).encode()).hexdigest()[:16]


def changes(before: Parts, after: Parts) -> list[str]:
    """What differs between two layers' inputs, a line each: ``packages: numpy 2.1 → 2.2``."""
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, ""), after.get(name, "")
        if old == new:
            continue
        if isinstance(old, str) or isinstance(new, str):
            found.append(f"{name}: {_short(old)} → {_short(new)}" if old and new else f"{name}: changed")
            continue
        for one in sorted({*old, *new}):
            if old.get(one) != new.get(one):
                found.append(f"{name}: {one} {_step(old.get(one, ''), new.get(one, ''))}")
    return found


def _step(old: str, new: str) -> str:
    if not old or not new:
        return "is new" if new else "is gone"
    return f"{_short(old)} → {_short(new)}"


def code(*files: str) -> dict[str, str]:
    """Our own code as an input of a layer: each module's file name and SHA-256."""
    return {Path(file).name: _code(file) for file in files}


@functools.cache
def _code(file: str) -> str:
    return resources.sha256_of(Path(file))


def digest_of(values: Iterable[object]) -> str:
    """The SHA-256 of values that JSON can write, in their order."""
    return hashlib.sha256(json.dumps(list(values), sort_keys=True).encode()).hexdigest()


def _short(value: object) -> str:
    """A digest by its first digits, other text as it is, up to a length."""
    text = str(value)
    is_digest = len(text) == 64 and all(char in "0123456789abcdef" for char in text)
    return text[:12] if is_digest else text if len(text) <= 60 else text[:57] + "…"


@dataclass
class Store:
    """The layers of a cache. ``explain`` tells, for each layer that has to be made, every input that changed.

    What was verified or made is not verified again until `release`: one run uses a layer many times.
    """

    root: Path
    explain: bool = False
    _held: list[int] = field(default_factory=list)
    _known: dict[Path, Layer] = field(default_factory=dict)

    def get(
        self,
        kind: str,
        parts: Parts,
        make: Callable[[Path, Path], None],
        *,
        name: str = "tree",
        subject: str = "",
        progress: Callable[[str], None] = lambda _text: None,
        damage: Callable[[Path], str] | None = None,
        quiet: bool = False,
        like: Layer | None = None,
        read: bool = True,
        later: bool = False,
        sums: trees.Sums | None = None,
    ) -> Layer:
        """The layer that ``parts`` decide, from the cache or made now by ``make(content, work)``.

        ``name`` is the content's file name; ``work`` is a folder that vanishes. ``subject`` says what the layer is
        of (an image's name): what changed is told against the latest one of the same subject, unless ``quiet``.
        ``like`` is a layer whose files the new one may share by hard links: those are not read again.
        ``make`` fills ``sums`` with the SHA-256 of files that it has read as they will be: those are not read again.
        A layer that is sooner made than read has ``read`` false, and no digest: touched, it is made anew. One that may
        not be looked at in the end is verified ``later``, by the first look at its `Layer.path`.
        Another run that makes the same layer is waited for. Raises HashMismatch when the cached content is not what
        was made (naming what ``damage`` finds out); it is set aside, so that the next run makes it anew.
        """
        key = key_of(kind, parts)
        folder = self.root / kind / key
        found = self.find(kind, parts, name=name, subject=subject, damage=damage, later=later)
        if found is not None:
            return found
        with resources.work_folder(folder.parent, key, wait=progress) as work:
            found = self.find(kind, parts, name=name, subject=subject, damage=damage)  # made while we waited
            if found is not None:
                return found
            why = [] if quiet else self._why(kind, subject, parts)
            ready = work / "ready"
            ready.mkdir()
            make(ready / name, work)
            digest = ""
            paths = trees.all_of(ready / name)
            shared = layer.now(like.paths, paths) if like is not None else []
            if read:
                known = trees.descriptions(shared, like.listing()) if like is not None else {}
                listed = trees.listing(ready / name, paths=paths, known=known, sums=sums)
                text = trees.dump(listed)
                digest = layer.digest_of(listed, text)
                (ready / layer.SUMS).write_text(text, encoding="utf-8")
            about: dict[str, Any] = {
                "kind": kind,
                "subject": subject,
                "sha256": digest,
                "name": name,
                "size": trees.size(paths),
                "parts": parts,
            }
            (ready / layer.ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
            (ready / layer.SEEN).write_text(trees.seen(paths), encoding="utf-8")
            _used(ready, subject)
            resources.remove(folder)
            ready.rename(folder)
            self._hold(folder)
            if like is not None:  # shared files have one name more now, which changes their ctime
                resources.write(like.place.parent / layer.SEEN, trees.seen(shared))
                self._know(replace(like, verify=lambda: shared))
        made = Layer(
            kind=kind,
            key=key,
            place=folder / name,
            sha256=digest,
            size=about["size"],
            made=True,
            why=tuple(why),
            verify=lambda: paths,
        )
        self._know(made)
        return made

    def before(
        self, kind: str, subject: str, parts: Parts, *, same: Iterable[str], name: str = "tree"
    ) -> tuple[Layer, Parts] | None:
        """A layer that is near the one that ``parts`` decide, with its own, of which those named in ``same`` are equal.

        Of the one that ``subject`` used last and the one that anybody did it is the one from which less changed; where
        that is equal the latter, whose files are more likely to be known as they are. One that is damaged is not
        needed: it is set aside, and that is said.
        """
        names, near = tuple(same), []
        for user in ("*", subject):
            for about in self._uses(kind, user):
                if all(about["parts"].get(one) == parts.get(one) for one in names):
                    near.append(about["parts"])
                    break
        if not near:
            return None
        nearest = min(near, key=lambda one: len(changes(one, parts)))
        try:
            found = self.find(kind, nearest, name=name)
        except HashMismatch as error:
            log.warn(f"{error.what} is damaged: it was set aside, and what is made here goes without it")
            return None
        return None if found is None else (found, nearest)

    def find(
        self,
        kind: str,
        parts: Parts,
        *,
        name: str = "tree",
        subject: str = "",
        damage: Callable[[Path], str] | None = None,
        later: bool = False,
    ) -> Layer | None:
        """The layer that ``parts`` decide if it is there, verified; ``subject`` uses it. Raises as `get` does."""
        key = key_of(kind, parts)
        found = self._there(kind, key, self.root / kind / key, name, damage, later=later)
        if found is not None:
            _used(self.root / kind / key, subject)
        return found

    def _there(
        self,
        kind: str,
        key: str,
        folder: Path,
        name: str,
        damage: Callable[[Path], str] | None,
        *,
        later: bool,
    ) -> Layer | None:
        """The layer if it is there; held, and its content verified, or ``later``."""
        with _LOCKS.setdefault(folder, threading.Lock()):
            found = self._known.get(folder / name)
            if found is None:
                if not self._hold(folder):
                    return None
                about = layer.read(folder)
                if about is None or not (folder / name).exists():
                    return None
                if about["sha256"]:
                    verify = layer.Once(partial(self._verified, folder, about, damage))
                else:
                    paths = trees.all_of(folder / name)
                    if not layer.untouched(folder, paths):
                        return None
                    verify = layer.Once(lambda: paths)
                os.utime(folder / layer.ABOUT)
                found = Layer(
                    kind=kind,
                    key=key,
                    place=folder / name,
                    sha256=about["sha256"],
                    size=about["size"],
                    made=False,
                    verify=verify,
                )
                self._know(found)
            if not later:
                found.verify()
            return found

    def _verified(
        self, folder: Path, about: Mapping[str, Any], damage: Callable[[Path], str] | None
    ) -> trees.Paths:
        try:
            return layer.verify(folder, about, damage)
        except HashMismatch:
            self._known.pop(folder / about["name"], None)  # set aside: the next image of this run makes it
            raise

    def _know(self, one: Layer) -> None:
        self._known[one.place] = replace(one, made=False, why=())

    def _hold(self, folder: Path) -> bool:
        """Keep a layer from being pruned while this process lives (a shared flock(2) on its record)."""
        try:
            handle = os.open(folder / layer.ABOUT, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        fcntl.flock(handle, fcntl.LOCK_SH)
        self._held.append(handle)
        return True

    def release(self) -> None:
        """Let go of all layers that were used."""
        self._known.clear()
        while self._held:
            os.close(self._held.pop())

    def _why(self, kind: str, subject: str, parts: Parts) -> list[str]:
        """What is new about a layer that has to be made; told line by line with ``explain``."""
        before = self.latest(kind, subject)
        if before is None:
            found = ["there was none before"]
        else:
            found = changes(before["parts"], parts) or ["the one that was there is gone"]
        if self.explain:
            for line in found:
                log.info(f"    {kind}: {line}")
        return found

    def latest(self, kind: str, subject: str) -> dict[str, Any] | None:
        """The record of the layer that ``subject`` used last, whoever it was made for."""
        return next(self._uses(kind, subject), None)

    def _uses(self, kind: str, subject: str) -> Iterator[dict[str, Any]]:
        """The records of the layers that ``subject`` used (``*`` is anybody), the one that was used last first."""
        uses = sorted(
            (self.root / kind).glob(f"*/{_USERS}/{subject}"),
            key=lambda path: path.stat().st_mtime_ns,
            reverse=True,
        )
        return (about for path in uses if (about := layer.read(path.parents[1])) is not None)

    def entries(self) -> list[Entry]:
        """All layers, the one that was not used for longest first."""
        found = []
        for path in self.root.glob(f"*/*/{layer.ABOUT}"):
            about = layer.read(path.parent)
            if about is not None:
                found.append(
                    Entry(
                        kind=path.parent.parent.name,
                        key=path.parent.name,
                        subject=about["subject"],
                        folder=path.parent,
                        size=about["size"],
                        used=path.stat().st_mtime,
                    )
                )
        return sorted(found, key=lambda one: one.used)

    def prune(self, *, size: int | None = None, age: float | None = None) -> list[Entry]:
        """Remove what was not used within ``age`` seconds, and then the oldest until ``size`` bytes are left.

        A layer that a running build uses stays. Returns what was removed.
        """
        entries, removed = self.entries(), []
        total = sum(one.size for one in entries)
        for one in entries:
            old = age is not None and time.time() - one.used > age
            if (old or (size is not None and total > size)) and _take(one.folder):
                total -= one.size
                removed.append(one)
        return removed

    def keep_within(self, limit: int = LIMIT) -> list[Entry]:
        """What every build does at its end: `prune` to ``limit`` bytes, but nothing used within `FRESH` seconds."""
        entries = self.entries()
        recent = sum(one.size for one in entries if time.time() - one.used < FRESH)
        return self.prune(size=max(limit, recent))

    def verify(self) -> list[str]:
        """Read every layer and compare it with its record; a line for each that is damaged, which is set aside."""
        found = []
        for one in self.entries():
            about = layer.read(one.folder)
            if about is None or one.key.endswith(layer.ASIDE):
                continue
            try:
                layer.verify(one.folder, about, None, closely=True)
            except HashMismatch as error:
                found.append(error.message)
        return found


def _used(folder: Path, subject: str) -> None:
    """Note that ``subject`` uses a layer now."""
    if subject:
        (folder / _USERS).mkdir(exist_ok=True)
        (folder / _USERS / subject).touch()


def size_of(folder: Path) -> int:
    """What a folder takes on disk, in bytes; holes and second names of a file take nothing."""
    return trees.size(trees.all_of(folder))


def _take(folder: Path) -> bool:
    """Remove a layer unless a run holds it: renamed away first, so that nobody finds half of it."""
    try:
        handle = os.open(folder / layer.ABOUT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        away = folder.with_name(f".{folder.name}.pruned")
        resources.remove(away)
        folder.rename(away)
    except OSError:
        return False
    finally:
        os.close(handle)
    resources.remove(away)
    return True


def copy(source: Path, to: Path) -> None:
    """A copy of a file that shares its blocks where the file system can, and keeps its holes."""
    with source.open("rb") as one, to.open("wb") as other:
        try:
            fcntl.ioctl(other, 0x40049409, one.fileno())  # FICLONE: btrfs, xfs
        except OSError:
            if os.fstat(one.fileno()).st_size < direct.CHUNK:
                _copy_data(one.fileno(), other.fileno())
            else:
                direct.copy(source, to)
    shutil.copymode(source, to)


def _copy_data(source: int, to: int) -> None:
    """Copy what is no hole. sendfile(2) goes from any file system to any other; copy_file_range(2) does not."""
    size = os.fstat(source).st_size
    os.truncate(to, size)
    for start, end in trees.extents(source, size):
        os.lseek(to, start, os.SEEK_SET)
        while start < end:
            start += os.sendfile(to, source, start, min(end - start, 1 << 30))

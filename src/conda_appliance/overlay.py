"""Trees laid over each other, of which a file system holds some already → what is to be added to it.

What overlayfs shows of the same trees (the kernel's Documentation/filesystems/overlayfs.rst): the uppermost name wins,
folders are merged, a device 0,0 hides a name, and an opaque folder hides what lies below it.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


class Added(NamedTuple):
    """A path that the file system gets.

    ``tree`` is the number of the tree that it comes from, ``about`` its lstat there. ``there`` is the lstat of a folder
    that the file system has by this name, and keeps. ``twin`` is the path that was added before with the same inode.
    """

    path: str
    tree: int
    about: os.stat_result
    there: os.stat_result | None = None
    twin: str = ""


@dataclass(frozen=True, slots=True)
class Removed:
    """A path that the file system has and that goes: a file, or an empty folder."""

    path: str
    folder: bool


@dataclass(frozen=True, kw_only=True)
class Additions:
    """What is removed first, what folders hold before them; then what is added, folders before what they hold.

    ``names`` is how many names each inode (tree, number) of what is added gets.
    """

    removed: Sequence[Removed] = ()
    paths: Sequence[Added]
    names: Mapping[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a tree that stays as it is: the names in each folder with their lstat (a folder's path ends in ``/``).

    ``attributed`` are the paths that have extended attributes.
    """

    inside: Mapping[str, Sequence[tuple[str, os.stat_result]]]
    attributed: frozenset[str]

    @classmethod
    def of(cls, paths: Iterable[tuple[str, os.stat_result]], listed: Mapping[str, str]) -> Contents:
        """As `trees.all_of` and `trees.listing` have it."""
        inside: dict[str, list[tuple[str, os.stat_result]]] = {}
        for path, about in paths:
            folder, slash, name = path.rpartition("/")
            if path != ".":
                inside.setdefault(folder + slash, []).append((name, about))
        named = re.compile(r" (?:security|system|trusted|user)\.[^ =]+=[0-9a-f]*(?: |$)")
        return cls(
            inside, frozenset(path for path, about in listed.items() if "=" in about and named.search(about))
        )


class CannotAdd(Exception):
    """The trees cannot be added one by one: something in them is no file, folder or link, or has more than a mode."""


@dataclass(kw_only=True)
class _Merge:
    trees: Sequence[str]
    held: frozenset[int]
    known: Sequence[Contents | None]
    only: str = ""
    removed: list[Removed] = field(default_factory=list)
    found: list[Added] = field(default_factory=list)
    twins: dict[tuple[int, int], str] = field(default_factory=dict)
    names: dict[tuple[int, int], int] = field(default_factory=dict)

    def folder(self, at: str, layers: Sequence[int]) -> None:
        """Merge the folder ``at`` of the trees ``layers``, the uppermost first."""
        if all(number in self.held for number in layers):
            return
        if len(layers) == 1:
            self._alone(at, layers[0])
            return
        entries: dict[str, list[tuple[int, os.stat_result]]] = {}
        for number in layers:
            for name, about in self._inside(number, at):
                entries.setdefault(name, []).append((number, about))
        below = []
        for name in sorted(entries):
            path = at + name
            if inner := self._entry(path, entries[name]):
                below.append((f"{path}/", inner))
        for path, inner in below:
            self.folder(path, inner)

    def _alone(self, at: str, number: int) -> None:
        """Take the folder ``at`` of a tree as it is: nothing lies over it or below it. Most of a tree is like that."""
        below = []
        for name, about in sorted(self._inside(number, at)):
            if stat.S_ISDIR(about.st_mode):
                self.found.append(Added(at + name, number, about))
                below.append(f"{at}{name}/")
            else:
                self._add(at + name, number, about, None)
        for path in below:
            self._alone(path, number)

    def _inside(self, number: int, at: str) -> Sequence[tuple[str, os.stat_result]]:
        """What the folder ``at`` of a tree holds; above the one that is asked for, what leads there."""
        found: Sequence[tuple[str, os.stat_result]]
        if (known := self.known[number]) is not None:
            found = known.inside.get(at, ())
        else:
            with os.scandir(f"{self.trees[number]}/{at}") as inside:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in inside]
        if at != self.only and self.only.startswith(at):
            wanted = self.only[len(at) :].partition("/")[0]
            return [one for one in found if one[0] == wanted]
        return found

    def attributes(self, number: int, path: str) -> list[str]:
        """The names of the extended attributes of what a tree has at ``path``."""
        if (known := self.known[number]) is not None and path not in known.attributed:
            return []
        return _attributes(f"{self.trees[number]}/{path}")

    def _entry(self, path: str, seen: Sequence[tuple[int, os.stat_result]]) -> list[int]:
        """Take the uppermost of what has one name, and return the trees whose folders are merged there."""
        number, about = seen[0]
        held = next((there for there in seen if there[0] in self.held), None)
        there = None if held is None or _is_hidden(held[1]) else held[1]
        if not stat.S_ISDIR(about.st_mode):
            if number not in self.held:
                self._add(path, number, about, there)
            return []
        merged = self._merged(path, seen)
        if number not in self.held:
            if there is not None and not stat.S_ISDIR(there.st_mode):
                self.removed.append(Removed(path, folder=False))
                there = None
            self.found.append(Added(path, number, about, there))
        return merged

    def _merged(self, path: str, seen: Sequence[tuple[int, os.stat_result]]) -> list[int]:
        """The trees whose folders are merged: down to the first that hides the others."""
        found = []
        for place, (number, about) in enumerate(seen):
            is_folder = stat.S_ISDIR(about.st_mode)
            if is_folder:
                found.append(number)
            if not is_folder or any(name in _OPAQUE for name in self.attributes(number, path)):
                for one, there in seen[place + 1 :] if number not in self.held else ():
                    if one in self.held and stat.S_ISDIR(there.st_mode):
                        self._empty(path)  # the file system has what is hidden now
                break
        return found

    def _add(self, path: str, number: int, about: os.stat_result, there: os.stat_result | None) -> None:
        if there is not None:
            if stat.S_ISDIR(there.st_mode):
                self._empty(path)
            self.removed.append(Removed(path, folder=stat.S_ISDIR(there.st_mode)))
        if _is_hidden(about):
            return
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode)):
            raise CannotAdd(path)
        inode = number, about.st_ino
        twin = ""
        if stat.S_ISREG(about.st_mode):
            twin = self.twins.setdefault(inode, path)
            self.names[inode] = self.names.get(inode, 0) + 1
        self.found.append(Added(path, number, about, None, twin if twin != path else ""))

    def _empty(self, path: str) -> None:
        """Remove what the file system has in a folder: what the only tree that it holds has there."""
        if len(self.held) > 1:
            raise CannotAdd(path)
        (number,) = self.held
        with os.scandir(f"{self.trees[number]}/{path}") as inside:
            for name, is_folder in sorted(
                (entry.name, entry.is_dir(follow_symlinks=False)) for entry in inside
            ):
                if is_folder:
                    self._empty(f"{path}/{name}")
                self.removed.append(Removed(f"{path}/{name}", folder=is_folder))


def additions(
    trees: Sequence[Path],
    held: frozenset[int],
    known: Mapping[Path, Contents] | None = None,
    *,
    only: str = "",
) -> Additions:
    """What the file system that holds the trees whose numbers are ``held`` needs to hold all of ``trees``.

    They are the uppermost first; those that are in ``known`` are not looked into again. ``only`` is a folder without
    which, and without the folders above it, nothing is asked for. Raises CannotAdd for a device
    or a pipe, for extended attributes, and where a folder is hidden and the file system holds several trees.
    """
    merge = _Merge(
        trees=[os.fspath(tree) for tree in trees],
        held=held,
        known=[(known or {}).get(tree) for tree in trees],
        only=f"{only.strip('/')}/" if only else "",
    )
    merge.folder("", range(len(trees)))
    for one in merge.found:
        if any(name not in _OPAQUE for name in merge.attributes(one.tree, one.path)):
            raise CannotAdd(one.path)
    return Additions(removed=merge.removed, paths=merge.found, names=merge.names)


def parted(found: Additions, first: Callable[[Added], bool]) -> tuple[Additions, Additions]:
    """``found`` in two, one to be added after the other: the files that ``first`` takes, with folders, and the rest.

    A file of several names is taken if all of them are. What goes, goes with the rest: a file that takes the place of
    something is not taken, nor is one in a folder that does.
    """
    blocked = {one.path for one in found.removed}
    free: dict[str, bool] = {"": True}

    def is_free(path: str) -> bool:
        if path not in free:
            free[path] = path not in blocked and is_free(path.rpartition("/")[0])
        return free[path]

    chosen = [
        one
        for one in found.paths
        if not stat.S_ISDIR(one.about.st_mode)
        and first(one)
        and one.path not in blocked
        and is_free(one.path.rpartition("/")[0])
    ]
    inodes = Counter((one.tree, one.about.st_ino) for one in chosen)
    taken = {
        one.path
        for one in chosen
        if inodes[one.tree, one.about.st_ino] >= found.names.get((one.tree, one.about.st_ino), 1)
    }
    for at in {path.rpartition("/")[0] for path in taken}:
        folder = at
        while folder and folder not in taken:
            taken.add(folder)
            folder = folder.rpartition("/")[0]
    return (
        Additions(paths=[one for one in found.paths if one.path in taken], names=found.names),
        Additions(
            removed=found.removed,
            paths=[one for one in found.paths if one.path not in taken],
            names=found.names,
        ),
    )


def _is_hidden(about: os.stat_result) -> bool:
    """Whether this is overlayfs's word for: nothing is here."""
    return stat.S_ISCHR(about.st_mode) and about.st_rdev == 0


def _attributes(path: str) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)

"""What a disc will hold: a tree planned from its definition and inputs, its SHA256SUMS, its names in each alphabet.

Pure: nothing is written here. `disc` writes what is planned.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from conda_appliance import resources
from conda_appliance.definition_disc import DiscDefinition, DiscEntry
from conda_appliance.errors import BuildError

#: Letters of a plain ISO 9660 name before and after its dot. Level 3 allows 30 together; a record holds 254
#: bytes and Rock Ridge wants its share of them.
_STEM, _EXTENSION = 20, 8
#: The longest Joliet name: the standard says 64 characters, pycdlib counts bytes of UTF-8.
_JOLIET = 64
#: The longest target of a symbolic link, in bytes: libisofs (xorriso) refuses a disc that has a longer one.
_TARGET = 1023
#: What Joliet forbids in a name, and what lies outside UCS-2.
_NOT_JOLIET = re.compile(r"[\x00-\x1f*/:;?\\\U00010000-\U0010ffff]")


class Stream(Protocol):
    """A file that is made while it is read, so that it needs no place of its own before it is on the disc."""

    @property
    def size(self) -> int:
        """How many bytes ``chunks`` gives, known beforehand."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The content from its start; each call gives the same bytes (the first for SHA256SUMS)."""
        ...


#: What a maker may pass for an entry of a disc.
Input = Path | bytes | Stream


#: A user's and a group's number.
Owner = tuple[int, int]
_ROOT: Owner = (0, 0)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file with its permissions. ``inode`` (device, number) is set where it has more names than this one."""

    mode: int
    content: Input
    owner: Owner = _ROOT
    inode: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Link:
    """A symbolic link."""

    target: str
    owner: Owner = _ROOT


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder with its permissions, and what is in it by name."""

    mode: int = 0o555
    owner: Owner = _ROOT
    children: dict[str, Folder | File | Link] = field(default_factory=dict)


def plan(definition: DiscDefinition, inputs: Mapping[str, Input]) -> Folder:
    """The tree of the disc, before any byte of it is written; its SHA256SUMS, if it has one, is made here.

    For the arguments and errors see `disc.write`.
    """
    known = {entry.source for entry in definition.entries}
    if unknown := sorted(set(inputs) - known):
        raise BuildError(
            f"the disc {definition.name!r} has no place for {', '.join(unknown)}",
            hint=f"its definition (iso/{definition.name}.yaml) knows: {', '.join(sorted(known))}",
        )
    root = Folder()
    for entry in definition.entries:
        if entry.source in inputs:
            _put(root, entry.to, _node(inputs[entry.source], entry))
        elif not entry.optional:
            raise BuildError(
                f"the disc {definition.name!r} needs {entry.source!r} for {entry.to}, and none was given",
                hint=f"give it, or say `optional: true` in iso/{definition.name}.yaml",
            )
    if definition.sums is not None:
        text = _sums(root, PurePosixPath(definition.sums)).encode()
        _put(root, definition.sums, File(mode=0o444, content=text))
    return root


def _node(content: Input, entry: DiscEntry) -> Folder | File | Link:
    """An input as a part of the tree."""
    if not isinstance(content, Path):
        return File(mode=int(entry.mode, 8), content=content)
    try:
        about = content.stat()
        if not stat.S_ISDIR(about.st_mode):
            return _file(content, about, int(entry.mode, 8), keep=entry.keep, alone=True)
        return _tree(content, about, int(entry.mode, 8), keep=entry.keep)
    except OSError as error:
        raise BuildError(f"{content} cannot be put on a disc: {error.strerror}") from None


def _tree(folder: Path, about: os.stat_result, mode: int, *, keep: bool) -> Folder:
    """A folder and all below it. Without ``keep``, files get ``mode``, with x for each r if their owner has x."""
    made = Folder(
        mode=stat.S_IMODE(about.st_mode) if keep else mode | (mode & 0o444) >> 2, owner=_owner(about, keep)
    )
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path, about = Path(entry.path), entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            made.children[entry.name] = Link(target=_target(path), owner=_owner(about, keep))
        elif entry.is_dir():
            made.children[entry.name] = _tree(path, about, mode, keep=keep)
        else:
            executable = (mode & 0o444) >> 2 if about.st_mode & stat.S_IXUSR else 0
            made.children[entry.name] = _file(path, about, mode | executable, keep=keep)
    return made


def _file(path: Path, about: os.stat_result, mode: int, *, keep: bool, alone: bool = False) -> File:
    if not stat.S_ISREG(about.st_mode):
        raise BuildError(f"{path} cannot be put on a disc: neither a file, a folder nor a symbolic link")
    return File(
        mode=stat.S_IMODE(about.st_mode) if keep else mode,
        content=path,
        owner=_owner(about, keep),
        inode=(about.st_dev, about.st_ino) if about.st_nlink > 1 and not alone else None,
    )


def _owner(about: os.stat_result, keep: bool) -> Owner:
    return (about.st_uid, about.st_gid) if keep else _ROOT


def _target(link: Path) -> str:
    """What a link says, without the empty parts (``a//b/``) that Rock Ridge has no way to write down."""
    text = os.readlink(link)  # noqa: PTH115 (pathlib would take ./ away too)
    tidy = re.sub("/+", "/", text).rstrip("/") or "/"
    if len(os.fsencode(tidy)) > _TARGET:
        raise BuildError(
            f"{link} cannot be put on a disc: what it links to has {len(os.fsencode(tidy))} bytes, "
            f"and not all readers of discs know more than {_TARGET}"
        )
    return tidy


def _put(root: Folder, place: str, node: Folder | File | Link) -> None:
    """Set ``node`` at ``place``, making the folders above it; folders that meet become one."""
    parts = PurePosixPath(place).parts[1:]
    if not parts:
        if not isinstance(node, Folder):
            raise BuildError("a file cannot be the top of a disc", hint="give it a name: `to: /NAME`")
        _merge(root, node, "")
        return
    folder = root
    for part in parts[:-1]:
        below = folder.children.setdefault(part, Folder())
        if not isinstance(below, Folder):
            raise BuildError(f"{place}: {part} is a file and a folder on one disc")
        folder = below
    there = folder.children.get(parts[-1])
    if isinstance(there, Folder) and isinstance(node, Folder):
        _merge(there, node, place)
    elif there is not None:
        raise BuildError(f"two things stand at {place} on one disc")
    else:
        folder.children[parts[-1]] = node


def _merge(there: Folder, more: Folder, place: str) -> None:
    """Add what ``more`` holds to a folder that is at ``place`` already and stays what it is."""
    for name, node in more.children.items():
        below = there.children.setdefault(name, node)
        if below is node:
            continue
        if not (isinstance(below, Folder) and isinstance(node, Folder)):
            raise BuildError(f"two things stand at {place}/{name} on one disc")
        _merge(below, node, f"{place}/{name}")


def _sums(root: Folder, at: PurePosixPath) -> str:
    """Every file's SHA-256 as ``sha256sum -c`` reads it, names relative to the list's own folder."""
    lines = []
    for place, node in _files(root, "/"):
        digest = _digest(node.content)
        name = posixpath.relpath(place, at.parent)
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        mark = "\\" if escaped != name else ""
        lines.append(f"{mark}{digest}  {escaped}\n")
    return "".join(lines)


def _digest(content: Input) -> str:
    if isinstance(content, Path):
        return resources.sha256_of(content)
    digest = hashlib.sha256()
    for chunk in [content] if isinstance(content, bytes) else content.chunks():
        digest.update(chunk)
    return digest.hexdigest()


def parse_sums(text: str) -> Iterator[tuple[str, str]]:
    """(digest, name) of each line that `_sums` or ``sha256sum`` wrote."""
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if digest.startswith("\\"):
            digest = digest[1:]
            name = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), name)
        yield digest, name


def _files(folder: Folder, at: str) -> Iterator[tuple[str, File]]:
    for name, node in sorted(folder.children.items()):
        place = posixpath.join(at, name)
        if isinstance(node, Folder):
            yield from _files(node, place)
        elif isinstance(node, File):
            yield place, node


# --- names ------------------------------------------------------------------------------------------


class Names:
    """The names of one folder in one of a disc's alphabets: no two are the same.

    Names that would meet are numbered. The last number of each is remembered: to try them all anew would take minutes
    in a folder with some ten thousand files whose names begin alike.
    """

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def plain(self, name: str, *, folder: bool = False) -> str:
        """``name`` for plain ISO 9660, level 3: A-Z, 0-9 and _, one dot, short."""
        stem, dot, extension = name.rpartition(".")
        if folder or not stem:
            stem, dot, extension = name, "", ""
        stem = re.sub(r"[^A-Z0-9_]", "_", stem.upper())
        extension = re.sub(r"[^A-Z0-9_]", "_", extension.upper())[:_EXTENSION]
        ending = f".{extension}" if dot else ""

        def made(number: int) -> str:
            tail = f"_{number}" if number else ""
            return stem[: _STEM - len(tail)] + tail + ending

        return self._free(made)

    def joliet(self, name: str) -> str:
        """``name`` for Joliet: 64 bytes at most, nothing that Windows refuses, in any case another one."""
        clean = _NOT_JOLIET.sub("_", name)
        stem, dot, extension = clean.rpartition(".")
        if not stem or len(extension.encode()) > 16:
            stem, dot, extension = clean, "", ""

        def made(number: int) -> str:
            tail = (f"~{number}" if number else "") + dot + extension
            room = _JOLIET - len(tail.encode())
            return stem.encode()[:room].decode(errors="ignore") + tail

        return self._free(made)

    def _free(self, made: Callable[[int], str]) -> str:
        """The first name that is not taken yet, in any case; it is taken then."""
        first = made(0).casefold()
        for number in itertools.count(self._next.get(first, 0)):
            name = made(number)
            if name.casefold() not in self._next:
                self._next[first] = number + 1
                self._next.setdefault(name.casefold(), 1)
                return name
        raise AssertionError

"""Writes and reads back ISO 9660 discs with pycdlib, and is the only module that does.

A disc says its names three times: plain ISO 9660 (upper case, short, for any reader), Rock Ridge (the real
names, modes and owner, for Linux) and Joliet (64 bytes of Unicode, for Windows). The data stands there once.
The same inputs and the same ``epoch`` give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import itertools
import os
import pkgutil
import posixpath
import random
import re
import stat
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import IO, Any, Protocol

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from conda_appliance import resources
from conda_appliance.definition import DiscDefinition
from conda_appliance.errors import BuildError, HashMismatch

#: How much is copied at once, in bytes.
_BLOCK = 1 << 20
#: A sector of a disc, in bytes.
_SECTOR = 2048
#: Letters of a plain ISO 9660 name before and after its dot. Level 3 allows 30 together; a record holds 254
#: bytes and Rock Ridge wants its share of them.
_STEM, _EXTENSION = 20, 8
#: The longest Joliet name: the standard says 64 characters, pycdlib counts bytes of UTF-8.
_JOLIET = 64
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


def write(definition: DiscDefinition, inputs: Mapping[str, Input], to: Path, *, epoch: int) -> Path:
    """Write the disc that ``definition`` describes to the file ``to`` and return it.

    ``inputs`` are by the names in the entries' ``from``: bytes, a file, a `Stream`, or a folder that is copied
    as a tree (files and symbolic links; a file that its owner may execute stays so). All belongs to root.
    ``epoch`` in seconds since 1970 is every time stamp on the disc. The file appears in one step, after its
    SHA256SUMS, if the definition wants one, was checked against what was written.
    Raises BuildError for inputs that are missing, unknown, or of a kind that a disc cannot hold.
    """
    root = _plan(definition, inputs)
    if definition.sums is not None:
        text = _sums(root, PurePosixPath(definition.sums)).encode()
        _put(root, definition.sums, _File(mode=0o444, content=text))
    temporary = to.with_name(f".{to.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with _pinned(epoch):
            _master(definition.volume, root, temporary)
        if definition.sums is not None:
            verify(temporary, definition.sums, shown=str(to))
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)
    return to


def verify(disc: Path, sums: str = "/SHA256SUMS", *, shown: str | None = None) -> int:
    """Read a disc back and check every file that its SHA256SUMS names; returns how many there are.

    Raises HashMismatch naming the first file that is not what it was, and BuildError when the file is not
    a disc, has no SHA256SUMS or lacks a file it names. ``shown`` is what messages call the disc.
    """
    shown = shown or str(disc)
    count = 0
    with _opened(disc, shown) as iso, disc.open("rb") as file:
        folders: dict[str, dict[str, list[_Extent]]] = {}

        def chunks(place: str) -> Iterator[bytes]:
            folder, name = posixpath.split(place)
            if folder not in folders:
                folders[folder] = _files_in(iso, folder)
            if name not in folders[folder]:
                raise BuildError(f"the disc {shown} lacks the file {place}")
            return _read(file, folders[folder][name])

        for expected, name in _parse_sums(b"".join(chunks(sums)).decode()):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(sums), name))
            digest = hashlib.sha256()
            for chunk in chunks(place):
                digest.update(chunk)
            if digest.hexdigest() != expected:
                raise HashMismatch(
                    f"{place} on the disc {shown}",
                    expected=expected,
                    found=digest.hexdigest(),
                    hint=f"the disc was damaged or tampered with; remove {shown} and make it again",
                )
            count += 1
    return count


# --- what goes where --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _File:
    mode: int
    content: Input


@dataclass(frozen=True, kw_only=True)
class _Link:
    target: str


@dataclass(frozen=True, kw_only=True)
class _Folder:
    mode: int = 0o555
    children: dict[str, _Folder | _File | _Link] = field(default_factory=dict)


def _plan(definition: DiscDefinition, inputs: Mapping[str, Input]) -> _Folder:
    """The tree of the disc, before any byte of it is written."""
    known = {entry.source for entry in definition.entries}
    if unknown := sorted(set(inputs) - known):
        raise BuildError(
            f"the disc {definition.name!r} has no place for {', '.join(unknown)}",
            hint=f"its definition (iso/{definition.name}.yaml) knows: {', '.join(sorted(known))}",
        )
    root = _Folder()
    for entry in definition.entries:
        if entry.source in inputs:
            _put(root, entry.to, _node(inputs[entry.source], int(entry.mode, 8)))
        elif not entry.optional:
            raise BuildError(
                f"the disc {definition.name!r} needs {entry.source!r} for {entry.to}, and none was given",
                hint=f"give it, or say `optional: true` in iso/{definition.name}.yaml",
            )
    return root


def _node(content: Input, mode: int) -> _Folder | _File | _Link:
    """An input as a part of the tree. Folders get ``mode`` with x wherever it has r."""
    if not isinstance(content, Path):
        return _File(mode=mode, content=content)
    try:
        if not content.is_dir():
            return _file(content, content.stat(), mode)
        return _tree(content, mode)
    except OSError as error:
        raise BuildError(f"{content} cannot be put on a disc: {error.strerror}") from None


def _tree(folder: Path, mode: int) -> _Folder:
    made = _Folder(mode=mode | (mode & 0o444) >> 2)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if entry.is_symlink():
            made.children[entry.name] = _Link(target=os.readlink(path))  # noqa: PTH115 (exactly)
        elif entry.is_dir():
            made.children[entry.name] = _tree(path, mode)
        else:
            about = entry.stat()
            executable = (mode & 0o444) >> 2 if about.st_mode & stat.S_IXUSR else 0
            made.children[entry.name] = _file(path, about, mode | executable)
    return made


def _file(path: Path, about: os.stat_result, mode: int) -> _File:
    if not stat.S_ISREG(about.st_mode):
        raise BuildError(f"{path} cannot be put on a disc: neither a file, a folder nor a symbolic link")
    return _File(mode=mode, content=path)


def _put(root: _Folder, place: str, node: _Folder | _File | _Link) -> None:
    """Set ``node`` at ``place``, making the folders above it; folders that meet become one."""
    parts = PurePosixPath(place).parts[1:]
    if not parts:
        if not isinstance(node, _Folder):
            raise BuildError("a file cannot be the top of a disc", hint="give it a name: `to: /NAME`")
        root.children.update(node.children)
        return
    folder = root
    for part in parts[:-1]:
        below = folder.children.setdefault(part, _Folder())
        if not isinstance(below, _Folder):
            raise BuildError(f"{place}: {part} is a file and a folder on one disc")
        folder = below
    there = folder.children.get(parts[-1])
    if isinstance(there, _Folder) and isinstance(node, _Folder):
        there.children.update(node.children)
    elif there is not None:
        raise BuildError(f"two things stand at {place} on one disc")
    else:
        folder.children[parts[-1]] = node


def _sums(root: _Folder, at: PurePosixPath) -> str:
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


def _parse_sums(text: str) -> Iterator[tuple[str, str]]:
    """(digest, name) of each line that `_sums` or ``sha256sum`` wrote."""
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if digest.startswith("\\"):
            digest = digest[1:]
            name = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), name)
        yield digest, name


def _files(folder: _Folder, at: str) -> Iterator[tuple[str, _File]]:
    for name, node in sorted(folder.children.items()):
        place = posixpath.join(at, name)
        if isinstance(node, _Folder):
            yield from _files(node, place)
        elif isinstance(node, _File):
            yield place, node


# --- names ------------------------------------------------------------------------------------------


def plain_name(name: str, taken: set[str], *, folder: bool = False) -> str:
    """``name`` for plain ISO 9660, level 3: A-Z, 0-9 and _, one dot, short, and not in ``taken``."""
    stem, dot, extension = name.rpartition(".")
    if folder or not stem:
        stem, dot, extension = name, "", ""
    stem = re.sub(r"[^A-Z0-9_]", "_", stem.upper())
    extension = re.sub(r"[^A-Z0-9_]", "_", extension.upper())[:_EXTENSION]
    for number in itertools.count():
        tail = f"_{number}" if number else ""
        made = stem[: _STEM - len(tail)] + tail + (f".{extension}" if dot else "")
        if made not in taken:
            return made
    raise AssertionError


def joliet_name(name: str, taken: set[str]) -> str:
    """``name`` for Joliet: 64 bytes at most, nothing that Windows refuses, and not in ``taken`` in any case.

    ``taken`` holds case-folded names.
    """
    clean = _NOT_JOLIET.sub("_", name)
    stem, dot, extension = clean.rpartition(".")
    if not stem or len(extension.encode()) > 16:
        stem, dot, extension = clean, "", ""
    for number in itertools.count():
        tail = (f"~{number}" if number else "") + dot + extension
        room = _JOLIET - len(tail.encode())
        made = stem.encode()[:room].decode(errors="ignore") + tail
        if made.casefold() not in taken:
            return made
    raise AssertionError


# --- pycdlib ----------------------------------------------------------------------------------------


def _master(volume: str, root: _Folder, to: Path) -> None:
    iso = pycdlib.PyCdlib()
    try:
        # Rock Ridge 1.09 is what every reader knows; 1.12 adds only file serial numbers.
        iso.new(
            interchange_level=3,
            vol_ident=volume,
            joliet=3,
            rock_ridge="1.09",
            app_ident_str="CONDA-APPLIANCE",
        )
        _add(iso, root, "", "")
        iso.write(str(to), blocksize=_BLOCK)
    except PyCdlibException as error:
        raise BuildError(f"the disc {volume} cannot be written: {error}") from error
    finally:
        iso.close()


def _add(iso: Any, folder: _Folder, plain: str, joliet: str) -> None:
    """Add what ``folder`` holds; ``plain`` and ``joliet`` are its own paths in the two sets of names."""
    plain_taken: set[str] = set()
    joliet_taken: set[str] = set()
    for name, node in sorted(folder.children.items()):
        _require_unicode(name)
        short = plain_name(name, plain_taken, folder=isinstance(node, _Folder))
        plain_taken.add(short)
        iso_path = f"{plain}/{short}"
        if isinstance(node, _Link):
            iso.add_symlink(symlink_path=f"{iso_path};1", rr_symlink_name=name, rr_path=node.target)
            continue
        wide = joliet_name(name, joliet_taken)
        joliet_taken.add(wide.casefold())
        both = {"rr_name": name, "joliet_path": f"{joliet}/{wide}"}
        if isinstance(node, _Folder):
            iso.add_directory(iso_path=iso_path, file_mode=stat.S_IFDIR | node.mode, **both)
            _add(iso, node, iso_path, f"{joliet}/{wide}")
        else:
            _add_file(iso, node, iso_path=f"{iso_path};1", **both)


def _add_file(iso: Any, file: _File, **paths: str) -> None:
    mode = stat.S_IFREG | file.mode
    if isinstance(file.content, bytes):
        iso.add_fp(io.BytesIO(file.content), len(file.content), file_mode=mode, **paths)
    elif isinstance(file.content, Path):
        iso.add_file(str(file.content), file_mode=mode, **paths)
    else:
        iso.add_fp(_Reader(file.content), file.content.size, file_mode=mode, **paths)


class _Reader(io.RawIOBase):
    """A `Stream` as the file that pycdlib reads once, from its start."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._chunks: Iterator[bytes] = iter(())
        self._rest = bytearray()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset or whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a stream is read from its start")
        self._chunks, self._rest = self._stream.chunks(), bytearray()
        return 0

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest += chunk
        size = len(self._rest) if size < 0 else size
        made = bytes(self._rest[:size])
        del self._rest[:size]
        return made


def _require_unicode(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise BuildError(f"{name!r} cannot be put on a disc: the name is not UTF-8") from None


@contextmanager
def _opened(disc: Path, shown: str) -> Iterator[Any]:
    """The disc, open for reading; what pycdlib cannot read is told as our own error."""
    iso = pycdlib.PyCdlib()
    try:
        iso.open(str(disc))
    except (OSError, PyCdlibException) as error:
        raise BuildError(f"{shown} cannot be read as a disc: {error}") from error
    try:
        yield iso
    except PyCdlibException as error:
        raise BuildError(f"the disc {shown} is damaged: {error}") from error
    finally:
        iso.close()


#: Where a run of a file's bytes stands in the disc's file, and how many they are.
_Extent = tuple[int, int]


def _files_in(iso: Any, folder: str) -> dict[str, list[_Extent]]:
    """The files of a folder by their real names, each with its extents (more than one above 4 GiB).

    pycdlib finds some extent of a large file by its Rock Ridge name, not always the first; a listing has
    the first.
    """
    found: dict[str, list[_Extent]] = {}
    for record in iso.list_children(rr_path=folder):
        if record.is_file() and record.rock_ridge is not None:
            extents = found[record.rock_ridge.name().decode()] = []
            while record is not None:
                extents.append((record.extent_location() * _SECTOR, record.data_length))
                record = record.data_continuation
    return found


def _read(file: IO[bytes], extents: list[_Extent]) -> Iterator[bytes]:
    for start, length in extents:
        file.seek(start)
        while length and (chunk := file.read(min(_BLOCK, length))):
            length -= len(chunk)
            yield chunk


_writing = threading.Lock()


@contextmanager
def _pinned(epoch: int) -> Iterator[None]:
    """Let pycdlib's modules see one moment, in UTC, and ids that follow from it, while the block runs.

    pycdlib asks the wall clock, the local zone, uuid4 and random all over, and takes no such value from
    its caller. Only its own modules see the stand-ins; one write at a time has them.
    """
    dice = random.Random(epoch)  # noqa: S311 (ids, not secrets)
    stand_ins = {
        time: _StandIn(time, time=lambda: float(epoch), localtime=time.gmtime),
        random: dice,
        uuid: _StandIn(uuid, uuid4=lambda: uuid.UUID(int=dice.getrandbits(128), version=4)),
    }
    names = [f"pycdlib.{module.name}" for module in pkgutil.iter_modules(pycdlib.__path__)]
    with _writing:
        changed = [
            (module, name, value)
            for module in map(importlib.import_module, names)
            for name, value in vars(module).items()
            if any(value is module_used for module_used in stand_ins)
        ]
        try:
            for module, name, value in changed:
                setattr(module, name, stand_ins[value])
            yield
        finally:
            for module, name, value in changed:
                setattr(module, name, value)


class _StandIn:
    """A module with some of its functions replaced."""

    def __init__(self, module: ModuleType, **functions: Any) -> None:
        self.__dict__.update(functions)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

"""Writes and reads back ISO 9660 discs with pycdlib, and is the only module that does.

A disc says its names three times: plain ISO 9660 (upper case, short, for any reader), Rock Ridge (the real
names, modes and owner, for Linux) and Joliet (64 bytes of Unicode, for Windows). The data stands there once.
The same inputs and the same ``epoch`` give the same bytes.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import io
import os
import pkgutil
import posixpath
import random
import stat
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from conda_appliance import disctree, hybrid, lazy, resources
from conda_appliance.definition_disc import DiscDefinition
from conda_appliance.disctree import File, Folder, Input, Link, Names, Stream
from conda_appliance.errors import BuildError, HashMismatch
from conda_appliance.hybrid import Boot

if TYPE_CHECKING:
    import pycdlib
    from pycdlib import pycdlibexception
else:
    pycdlib = lazy.module("pycdlib")
    pycdlibexception = lazy.module("pycdlib.pycdlibexception")

#: How much is copied at once, in bytes.
_BLOCK = 1 << 20
#: A sector of a disc, in bytes.
_SECTOR = 2048
_ZEROES = bytes(_BLOCK)
#: The longest name that Linux reads whole, in bytes (fs/isofs/rock.c, get_rock_ridge_filename).
_LONGEST = 253
#: The most that one record of a folder can say a file has, in bytes; a larger file has several records.
_LARGEST_EXTENT = 0xFFFFF800
#: Follows a disc's last sector, in bytes: readers look ahead by whole runs of sectors, GRUB by 16, and CD drives cannot
#: read the last two of some discs. 150 sectors is mkisofs's and xorriso's ``-padding``.
_PADDING = 150 * _SECTOR


def write(
    definition: DiscDefinition,
    inputs: Mapping[str, Input],
    to: Path,
    *,
    epoch: int,
    boot: Boot | None = None,
) -> Path:
    """Write the disc that ``definition`` describes to the file ``to`` and return it.

    ``inputs`` are by the names in the entries' ``from``: bytes, a file, a `Stream`, or a folder that is copied
    as a tree (files, symbolic and hard links; a file that its owner may execute stays so). All belongs to root,
    except in an entry that says ``keep``. ``epoch`` in seconds since 1970 is every time stamp on the disc. With
    ``boot`` it starts a machine, from a CD and from a stick; the image for BIOS then has to be among ``inputs`` as
    bytes. The file appears in one step, after its SHA256SUMS, if the definition wants one, was checked against what
    was written.
    Raises BuildError for inputs that are missing, unknown, or of a kind that a disc cannot hold.
    """
    root = disctree.plan(definition, inputs)
    temporary = to.with_name(f".{to.name}.{resources.own_name()}.tmp")
    try:
        with _pinned(epoch), _uncollected():
            _master(definition, root, temporary, boot)
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

        for expected, name in disctree.parse_sums(b"".join(chunks(sums)).decode()):
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


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something on a disc: ``path`` from its top, ``mode`` as lstat has it, ``size`` in bytes, a link's ``target``."""

    path: str
    mode: int
    size: int
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A disc's volume label, and all that is on it, sorted by path."""

    volume: str
    entries: tuple[Entry, ...]


def contents(disc: Path) -> Contents:
    """What a disc (a file or a device) holds, by its Rock Ridge names.

    Raises BuildError for what is not a disc, is damaged, or has no such names, as other programs' discs may.
    """
    with _opened(disc, str(disc)) as iso:
        if not iso.has_rock_ridge():
            raise BuildError(
                f"{disc} has no Rock Ridge names: it was not made for Linux, and not by this program",
                hint=f"isoinfo -l -i {disc}    lists it by its plain names",
            )
        volume = iso.pvd.volume_identifier.decode("ascii", "replace").rstrip()
        return Contents(volume=volume, entries=tuple(_entries_in(iso, "/")))


# --- pycdlib ----------------------------------------------------------------------------------------


def _master(definition: DiscDefinition, root: Folder, to: Path, boot: Boot | None) -> None:
    volume = definition.volume
    iso: Any = pycdlib.PyCdlib()
    try:
        # Rock Ridge 1.09 is what every reader knows; 1.12 adds only file serial numbers.
        iso.new(
            interchange_level=3,
            vol_ident=volume,
            joliet=3,
            rock_ridge="1.09",
            app_ident_str="CONDA-APPLIANCE",
        )
        tree = _Tree(iso)
        tree.add(root, "", "", "")
        if boot is not None:
            _make_bootable(iso, definition.sums, boot, tree.texts)
        with to.open("wb", buffering=_BLOCK) as file:
            iso.write_fp(_Output(file), blocksize=_BLOCK)
        os.truncate(to, to.stat().st_size + _PADDING)
        if boot is not None:
            _write_mbr(iso, boot, to)
    except pycdlibexception.PyCdlibException as error:
        raise BuildError(f"the disc {volume} cannot be written: {error}") from error
    finally:
        iso.close()


def _make_bootable(iso: Any, sums: str | None, boot: Boot, texts: Mapping[str, io.BytesIO]) -> None:
    """Add the boot catalog, and tell GRUB's image where on the disc it stands: known when all else is added.

    That changes its digest, so the one in ``sums`` changes with it: it is as long.
    """
    for place, efi in ((boot.bios, False), (boot.efi, True)):
        iso.add_eltorito(
            iso.full_path_from_dirrecord(iso.get_record(rr_path=place)),
            "/BOOT.CAT;1",
            rr_bootcatname="boot.cat",
            joliet_bootcatfile="/boot.cat",
            boot_load_size=None if efi else 4,
            efi=efi,
        )
    iso.force_consistency()
    image = texts[boot.bios]
    before = image.getvalue()
    after = hybrid.bios_image(before, sector=iso.get_record(rr_path=boot.bios).extent_location())
    image.getbuffer()[:] = after
    if sums is not None:
        old, new = (hashlib.sha256(one).hexdigest().encode() for one in (before, after))
        text = texts[sums]
        text.getbuffer()[:] = text.getvalue().replace(old, new)


def _write_mbr(iso: Any, boot: Boot, disc: Path) -> None:
    """Let a disc start from a stick too. Its first sixteen sectors are for such use (ECMA-119, 6.2.1)."""
    efi = iso.get_record(rr_path=boot.efi)
    with disc.open("r+b") as file:
        file.write(
            hybrid.mbr(
                boot.mbr,
                bios_sector=iso.get_record(rr_path=boot.bios).extent_location(),
                efi_sector=efi.extent_location(),
                efi_size=efi.get_data_length(),
                size=disc.stat().st_size,
                identity=boot.identity,
            )
        )


@dataclass
class _Tree:
    """What is being added to a disc."""

    iso: Any
    #: The plain paths of each file that has several names on this disc, by its inode.
    names: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    #: The files that are bytes, by their real paths: they may be changed until the disc is written.
    texts: dict[str, io.BytesIO] = field(default_factory=dict)

    def add(self, folder: Folder, plain: str, joliet: str, real: str) -> None:
        """Add what ``folder`` holds; ``plain``, ``joliet`` and ``real`` are its own paths in the three alphabets."""
        plain_names, joliet_names = Names(), Names()
        for name, node in sorted(folder.children.items()):
            _require_readable(name)
            path = f"{plain}/{plain_names.plain(name, folder=isinstance(node, Folder))}"
            if isinstance(node, Link):
                self.iso.add_symlink(symlink_path=f"{path};1", rr_symlink_name=name, rr_path=node.target)
                self._own(f"{path};1", node)
                continue
            wide = f"{joliet}/{joliet_names.joliet(name)}"
            if isinstance(node, Folder):
                mode = stat.S_IFDIR | node.mode
                self.iso.add_directory(iso_path=path, rr_name=name, joliet_path=wide, file_mode=mode)
                self._own(path, node)
                self.add(node, path, wide, f"{real}/{name}")
            else:
                if isinstance(node.content, bytes):
                    self.texts[f"{real}/{name}"] = io.BytesIO(node.content)
                self._add_file(node, self.texts.get(f"{real}/{name}"), f"{path};1", name, wide)

    def _add_file(self, file: File, text: io.BytesIO | None, path: str, name: str, joliet: str) -> None:
        known = self.names.setdefault(file.inode, []) if file.inode and _is_linkable(file) else []
        mode = stat.S_IFREG | file.mode
        if known:
            self.iso.add_hard_link(iso_old_path=known[0], iso_new_path=path, rr_name=name)
            self.iso.add_hard_link(iso_old_path=known[0], joliet_new_path=joliet)
        else:
            self._add_data(file, text, iso_path=path, rr_name=name, joliet_path=joliet, file_mode=mode)
        self._own(path, file)
        known.append(path)
        if len(known) > 1:
            self._attributes(path)[0].posix_file_mode = mode
            for one in known:
                self._attributes(one)[0].posix_file_links = len(known)

    def _add_data(self, file: File, text: io.BytesIO | None, **about: Any) -> None:
        content = file.content
        if isinstance(content, bytes):
            self.iso.add_fp(text, len(content), **about)
        elif isinstance(content, Path):
            self.iso.add_file(str(content), **about)
        else:
            self.iso.add_fp(_Reader(content), content.size, **about)

    def _own(self, path: str, node: Folder | File | Link) -> None:
        """Note the owner, where it is not root; pycdlib takes none from its caller."""
        if node.owner == (0, 0):
            return
        for about in self._attributes(path):
            about.posix_user_id, about.posix_group_id = node.owner

    def _attributes(self, path: str) -> list[Any]:
        """What Rock Ridge says of a path's mode, owner and number of names (its PX entries).

        A folder has one in its own ``.`` too, which is what Linux reads, and one more where it was moved to.
        """
        records = [self.iso.get_record(iso_path=path)]
        if (moved := records[0].rock_ridge.cl_to_moved_dr) is not None:
            records.append(moved)
        records += [record.children[0] for record in records if record.is_dir() and record.children]
        entries = [record.rock_ridge for record in records]
        return [one.dr_entries.px_record or one.ce_entries.px_record for one in entries]


def _is_linkable(file: File) -> bool:
    """Whether a second name can share the data: not above 4 GiB, where a file has more than one record a name."""
    return isinstance(file.content, Path) and file.content.stat().st_size <= _LARGEST_EXTENT


class _Output:
    """The file that pycdlib writes a disc to: small files go in many at once, and zeroes become holes.

    pycdlib seeks before and after each file, which would empty a buffer each time; only what leads elsewhere is done.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = self._end = 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        to = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        if self._at == self._end and 0 < to - self._at < _SECTOR:
            self.write(bytes(to - self._at))
        elif to != self._at:
            self._file.seek(to)
        self._at = to
        return to

    def write(self, data: bytes) -> int:
        self._at += len(data)
        if data == _ZEROES:  # what follows is written, if only the last byte of the disc
            self._file.seek(self._at)
        else:
            self._file.write(data)
        self._end = max(self._end, self._at)
        return len(data)


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


def _require_readable(name: str) -> None:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise BuildError(f"{name!r} cannot be put on a disc: the name is not UTF-8") from None
    if size > _LONGEST:
        raise BuildError(
            f"{name!r} cannot be put on a disc: the name has {size} bytes, and Linux cuts one off that has more "
            f"than {_LONGEST}"
        )


@contextmanager
def _opened(disc: Path, shown: str) -> Iterator[Any]:
    """The disc, open for reading; what pycdlib cannot read is told as our own error."""
    iso = pycdlib.PyCdlib()
    try:
        with _uncollected():
            iso.open(str(disc))
    except (OSError, pycdlibexception.PyCdlibException) as error:
        raise BuildError(f"{shown} cannot be read as a disc: {error}") from error
    try:
        yield iso
    except pycdlibexception.PyCdlibException as error:
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
    return {
        record.rock_ridge.name().decode(): [
            (one.extent_location() * _SECTOR, one.data_length) for one in _records(record)
        ]
        for record in iso.list_children(rr_path=folder)
        if record.is_file() and record.rock_ridge is not None
    }


def _records(record: Any) -> Iterator[Any]:
    """The records of one file, from its first."""
    while record is not None:
        yield record
        record = record.data_continuation


def _entries_in(iso: Any, folder: str) -> Iterator[Entry]:
    """All that is below ``folder``, sorted."""
    records = {
        record.rock_ridge.name().decode("utf-8", "surrogateescape"): record
        for record in iso.list_children(rr_path=folder)
        if record is not None and not record.is_dot() and not record.is_dotdot()
    }
    for name, record in sorted(records.items()):
        path, about = posixpath.join(folder, name), record.rock_ridge
        if (
            path == "/rr_moved"
        ):  # where Rock Ridge keeps what lies deeper than ISO 9660 allows; it is met at its place
            continue
        target = about.symlink_path().decode("utf-8", "surrogateescape") if about.is_symlink() else ""
        size = sum(one.data_length for one in _records(record)) if record.is_file() and not target else 0
        yield Entry(path=path, mode=about.get_file_mode(), size=size, target=target)
        if record.is_dir():
            yield from _entries_in(iso, path)


def _read(file: IO[bytes], extents: list[_Extent]) -> Iterator[bytes]:
    for start, length in extents:
        file.seek(start)
        while length and (chunk := file.read(min(_BLOCK, length))):
            length -= len(chunk)
            yield chunk


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no garbage while the block runs, and once at its end.

    pycdlib keeps a few objects for each path, which refer to each other. To go through all of them again and again as
    they become more takes a third of the time; to keep those of a disc that is written while it is read back, twice
    the memory.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.collect()


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

"""Large files, past the kernel's page cache (open(2), O_DIRECT).

A disk image is written once and read by another program, if at all. Pages of the cache for it are pages that something
else loses, and finding them is most of what a write costs: a copy of 1 GB took 2.6 s of processor time by way of the
cache, and 0.1 s past it, in a virtual machine whose memory comes from its host when it is touched first.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from conda_appliance import trees

#: What places, lengths and memory are multiples of: a page, and more than any disk asks for.
ALIGN = 1 << 12
#: Bytes that are moved at a time. A file that is smaller is not worth it.
CHUNK = 1 << 20
#: From that many bytes on what is written is moved as it is, and not gathered with what follows.
_LARGE = CHUNK // 4
#: A disk that moves less than that, in bytes a second, is not waited for: the cache reads ahead, and writes later.
_SLOW = 300 << 20
#: Seconds after which that is known.
_ENOUGH = 0.1
#: Pages that are asked whether they are in the cache.
_SAMPLES = 64


def buffer(size: int) -> mmap.mmap:
    """Memory that `Input` and `Output` can move as it is."""
    return mmap.mmap(-1, size)


class _Way:
    """A file opened past the cache, and used until it turns out that the cache is better. Threads may share it."""

    def __init__(self, path: Path, flags: int) -> None:
        self._file = -1
        try:
            self._file = os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        self._spent, self._moved = 0.0, 0
        self._better = self._file >= 0

    def move(self, call: Callable[[int, memoryview, int], int], data: memoryview, at: int) -> int:
        """Let pread or pwrite move ``data``; returns how much of it was: its whole pages, or less.

        It is nothing where its memory is not as the disk wants it.
        """
        done, length = 0, len(data) // ALIGN * ALIGN
        if not self._better or at % ALIGN:
            return 0
        started = time.monotonic()
        while done < length and done % ALIGN == 0:
            try:
                with data[done:length] as rest:
                    count = call(self._file, rest, at + done)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break
            done += count
            if not count:
                break
        self._spent += time.monotonic() - started
        self._moved += done
        if self._spent > _ENOUGH and self._moved < _SLOW * self._spent:
            self._better = False
        return done

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)


def _pread(file: int, to: memoryview, at: int) -> int:
    return os.preadv(file, [to], at)


class Input:
    """A file to read: from the cache where that has it, else past it. Raises OSError as open(2) and pread(2) do."""

    def __init__(self, path: Path) -> None:
        #: Its descriptor, for everything else.
        self.file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._way = None
        try:
            if os.fstat(self.file).st_blocks * 512 >= CHUNK and not _is_cached(self.file):
                self._way = _Way(path, os.O_RDONLY)
        except BaseException:
            os.close(self.file)
            raise

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return os.fstat(self.file).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)
        if self._way:
            self._way.close()

    def read_into(self, to: memoryview, at: int) -> int:
        """Fill ``to`` from that place; returns how much there was, and lays zeroes behind it."""
        done = self._way.move(_pread, to, at) if self._way and len(to) >= CHUNK // 16 else 0
        while done < len(to):
            with to[done:] as rest:
                if not (count := os.preadv(self.file, [rest], at + done)):
                    rest[:] = bytes(len(rest))
                    break
            done += count
        return done


class Output:
    """A new file. What it holds does not depend on how it is written: cached, where its file system or disk wants that.

    `write` adds to its end; `put` writes elsewhere. Use one of them, and `put` after the last `write` at most. Raises
    OSError as open(2) and pwrite(2) do.
    """

    def __init__(self, path: Path) -> None:
        self._cached = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            self._way = _Way(path, os.O_WRONLY)
        except BaseException:
            os.close(self._cached)
            raise
        self._stage = memoryview(buffer(CHUNK))
        self._at = self._staged = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            os.close(self._cached)
            self._way.close()

    @property
    def size(self) -> int:
        """How many bytes `write` was given."""
        return self._at + self._staged

    def write(self, data: bytes | memoryview) -> None:
        """Add ``data`` to what was written."""
        with memoryview(data) as left:
            done = 0
            while done < len(left):
                if len(left) - done >= _LARGE and self._staged % ALIGN == 0:
                    self._flush()
                    with left[done:] as part:
                        count = self._way.move(os.pwrite, part, self._at)
                    self._at += count
                    done += count
                count = min(CHUNK - self._staged, len(left) - done)
                self._stage[self._staged : self._staged + count] = left[done : done + count]
                self._staged += count
                done += count
                if self._staged == CHUNK:
                    self._flush()

    def put(self, data: bytes | memoryview, at: int) -> None:
        """Write all of ``data`` at that place."""
        self._flush()
        with memoryview(data) as whole:
            self._put(whole, at)

    def resize(self, size: int) -> None:
        """Make it that long, in bytes; what is new is a hole."""
        self._flush()
        os.truncate(self._cached, size)

    def _flush(self) -> None:
        if not self._staged:
            return
        with self._stage[: self._staged] as part:
            self._put(part, self._at)
        self._at += self._staged
        self._staged = 0

    def _put(self, data: memoryview, at: int) -> None:
        done = self._way.move(os.pwrite, data, at)
        while done < len(data):
            with data[done:] as rest:
                done += os.pwrite(self._cached, rest, at + done)


def copy(source: Path, to: Path) -> None:
    """A copy of a file's data that keeps its holes. Raises OSError as `Input` and `Output` do."""
    with Input(source) as one, Output(to) as other, memoryview(buffer(CHUNK)) as whole:
        size = one.size
        other.resize(size)
        for start, end in trees.extents(one.file, size):
            for at in range(start, end, CHUNK):
                with whole[: min(CHUNK, end - at)] as part:
                    one.read_into(part, at)
                    other.put(part, at)


def sha256(path: Path) -> str:
    """The SHA-256 of a large file, as 64 hexadecimal digits."""
    summed = hashlib.sha256()
    with Input(path) as file, memoryview(buffer(CHUNK)) as whole:
        for at in range(0, file.size, CHUNK):
            count = file.read_into(whole, at)
            with whole[:count] as part:
                summed.update(part)
    return summed.hexdigest()


def _is_cached(file: int) -> bool:
    """Whether most of a file is in the page cache (mincore(2)), by some of its pages that are no holes."""
    size = os.fstat(file).st_size
    with mmap.mmap(file, size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        start, page, call = ctypes.addressof(first), ctypes.create_string_buffer(1), _mincore()
        del first
        asked = here = 0
        for number in range(_SAMPLES):
            try:
                at = os.lseek(file, size * number // _SAMPLES, os.SEEK_DATA) // mmap.PAGESIZE * mmap.PAGESIZE
            except OSError:  # ENXIO: only a hole is left
                break
            if call(start + at, 1, page) == 0:
                asked += 1
                here += page.raw[0] & 1
    return 2 * here > asked


def _mincore() -> Callable[..., int]:
    call = ctypes.CDLL(None).mincore
    call.argtypes, call.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p], ctypes.c_int
    return partial(call)

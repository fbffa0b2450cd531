"""Large files past the page cache: the same bytes as by way of it, whatever the file system and the disk."""

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from conda_appliance import direct
from conda_appliance.direct import ALIGN, CHUNK, Input, Output


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on this disk, and one in memory, where most kernels know no way past the cache."""
    if request.param == "disk":
        yield tmp_path
        return
    found = Path(f"/dev/shm/conda-appliance-test-{os.getpid()}")
    found.mkdir()
    yield found
    for path in found.iterdir():
        path.unlink()
    found.rmdir()


@pytest.fixture(params=["quick", "slow"])
def disk_speed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is never too slow, and one that always is: then the cache takes over at once."""
    monkeypatch.setattr(direct, "_ENOUGH", 0.0 if request.param == "slow" else 3600.0)
    monkeypatch.setattr(direct, "_SLOW", 1 << 60)


def is_cached(path: Path) -> bool:
    with path.open("rb") as file:
        return direct._is_cached(file.fileno())


def forget(path: Path) -> None:
    """Put a file on its disk and take it out of the cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.usefixtures("disk_speed")
@pytest.mark.parametrize(
    "sizes",
    [(), (1,), (ALIGN,), (CHUNK,), (CHUNK + 1,), (3 * CHUNK, 5), (7, 3 * CHUNK + 9, ALIGN - 1, CHUNK)],
)
def test_what_is_written_is_what_stands_there(folder: Path, sizes: tuple[int, ...]) -> None:
    parts = [os.urandom(size) for size in sizes]
    with Output(folder / "file") as file:
        for part in parts:
            file.write(part)
        assert file.size == sum(sizes)
    assert (folder / "file").read_bytes() == b"".join(parts)


@pytest.mark.usefixtures("disk_speed")
def test_places_are_written_in_any_order_and_holes_stay(folder: Path) -> None:
    rest = random.Random(1)
    expected = bytearray(8 * CHUNK + 100)
    with Output(folder / "file") as file, memoryview(direct.buffer(CHUNK)) as aligned:
        file.resize(len(expected))
        for at in (6 * CHUNK, 0, 3 * CHUNK + ALIGN, 8 * CHUNK, 17):
            data = rest.randbytes(min(CHUNK - 5, len(expected) - at))
            aligned[: len(data)] = data
            with aligned[: len(data)] as part:
                file.put(part, at)
            expected[at : at + len(data)] = data
    assert (folder / "file").read_bytes() == expected
    assert (folder / "file").stat().st_blocks * 512 < len(expected) - 2 * CHUNK


def test_the_head_of_a_file_can_be_written_last(folder: Path) -> None:
    with Output(folder / "file") as file:
        file.write(bytes(100))
        file.write(b"x" * CHUNK)
        file.put(b"head", 0)
    assert (folder / "file").read_bytes() == b"head" + bytes(96) + b"x" * CHUNK


def test_what_is_written_stays_out_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_SLOW", 0)
    path = tmp_path / "file"
    with Output(path) as file:
        file.write(os.urandom(8 * CHUNK))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        assert is_cached(path)  # a file system without a way past its cache
    else:
        assert not is_cached(path)


@pytest.mark.usefixtures("disk_speed")
@pytest.mark.parametrize("cached", [True, False])
def test_what_is_read_is_what_stands_there(folder: Path, cached: bool) -> None:
    data = os.urandom(5 * CHUNK + 777)
    path = folder / "file"
    path.write_bytes(data)
    if not cached:
        forget(path)
    with Input(path) as file, memoryview(direct.buffer(CHUNK)) as whole:
        for at in (0, ALIGN, 3 * CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 776, 6 * CHUNK):
            count = file.read_into(whole, at)
            assert whole[:count] == data[at : at + CHUNK]
            assert bytes(whole[count:]) == bytes(CHUNK - count)
    assert direct.sha256(path) == hashlib.sha256(data).hexdigest()


def test_a_copy_has_the_holes_of_what_it_was_made_from(folder: Path) -> None:
    path = folder / "file"
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(40 * CHUNK + 3)
        file.write(os.urandom(3 * CHUNK))
        file.truncate(50 * CHUNK + 1)
    direct.copy(path, folder / "copy")
    assert (folder / "copy").read_bytes() == path.read_bytes()
    assert (folder / "copy").stat().st_blocks <= path.stat().st_blocks + 16


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Output(tmp_path / "none" / "file")
    with pytest.raises(FileNotFoundError):
        Input(tmp_path / "file")

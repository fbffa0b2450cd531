"""A disk and files laid into it: which blocks are data, as a raw disk and as qcow2 (read by QEMU in tests/tools)."""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from conda_appliance import qcow2, rawzst, resources, sparse, vmdk
from conda_appliance.blockpack import zstd
from conda_appliance.errors import BuildError
from conda_appliance.sparse import BLOCK, PAGE, Piece

SIZE = 64 * BLOCK


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Blocks 3 to 5 and the end of block 40 hold data; block 9 holds zeroes that are no hole."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(3 * BLOCK)
        file.write(os.urandom(3 * BLOCK))
        file.seek(9 * BLOCK)
        file.write(bytes(BLOCK))
        file.seek(41 * BLOCK - 1)
        file.write(b"x")
    return path


def numbers(*pieces: Piece) -> list[int]:
    with sparse.opened(pieces) as (size, blocks):
        assert size == SIZE
        return [block.number for block in blocks]


def test_blocks_of_zeroes_are_holes_whether_they_are_or_not(disk: Path) -> None:
    assert numbers(Piece(source=disk, at=0)) == [3, 4, 5, 40]


def test_a_file_lies_where_it_is_laid(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_bytes(b"y" * (BLOCK + 1))
    assert numbers(Piece(source=disk, at=0), Piece(source=tmp_path / "more", at=20 * BLOCK)) == [
        3,
        4,
        5,
        20,
        21,
        40,
    ]


def test_which_blocks_a_kept_disk_has_need_be_asked_once(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "known").write_bytes(sparse.survey(disk))
    assert numbers(Piece(source=disk, at=0, known=tmp_path / "known")) == [3, 4, 5, 40]
    (tmp_path / "known").write_bytes(sparse.survey(disk)[4:])
    assert numbers(Piece(source=disk, at=0, known=tmp_path / "known")) == [4, 5, 40], (
        "what is said is believed"
    )


def test_what_is_compressed_in_itself_is_not_searched_for_zeroes(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_bytes(bytes(BLOCK) + b"y")
    assert numbers(Piece(source=disk, at=0), Piece(source=tmp_path / "more", at=20 * BLOCK, packed=True)) == [
        *(3, 4, 5),
        *(20, 21),
        40,
    ]


def test_a_raw_disk_in_frames_of_zstd(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.write(os.urandom(2 * BLOCK))
        file.seek(rawzst.FRAME - 1)
        file.write(b"xy")
        file.truncate(5 * rawzst.FRAME + 512)
    digest = rawzst.write([Piece(source=disk, at=0)], tmp_path / "disk.zst")
    packed = (tmp_path / "disk.zst").read_bytes()
    assert digest == hashlib.sha256(packed).hexdigest()
    assert packed.count(b"\x28\xb5\x2f\xfd") == 6, "a frame for each part, one for the rest"
    assert zstd.decompress(packed) == disk.read_bytes()
    assert len(packed) < 3 * BLOCK


@pytest.mark.parametrize("at", [1, 512, BLOCK - 1])
def test_a_file_begins_with_a_block(disk: Path, at: int) -> None:
    with pytest.raises(BuildError, match="not aligned"):
        numbers(Piece(source=disk, at=0), Piece(source=disk, at=at))


def test_a_disk_has_whole_sectors(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"z" * 513)
    with pytest.raises(BuildError, match="not aligned"):
        numbers(Piece(source=tmp_path / "odd", at=0))


def test_a_raw_disk_is_written_again_with_its_holes_and_its_digest(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_bytes(b"y" * (BLOCK + 1))
    pieces = [Piece(source=disk, at=0), Piece(source=tmp_path / "more", at=20 * BLOCK)]
    to = tmp_path / "again.raw"
    other = tmp_path / "plain.raw"
    digests = sparse.write(pieces, {to: b"the end", other: b""})
    wanted = bytearray(disk.read_bytes())
    wanted[20 * BLOCK : 21 * BLOCK + 1] = b"y" * (BLOCK + 1)
    assert to.read_bytes() == bytes(wanted) + b"the end"
    assert other.read_bytes() == bytes(wanted)
    assert digests == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (to, other)}
    assert to.stat().st_blocks * 512 <= 8 * BLOCK


@pytest.fixture
def memory(disk: Path) -> Iterator[int]:
    """A file in memory, as long as the disk."""
    file = os.memfd_create("over")
    assert sparse.keeps_holes(file), "a page is a page where tests run"
    os.truncate(file, SIZE)
    yield file
    os.close(file)


def over(memory: int) -> Piece:
    return Piece(source=Path(f"/proc/self/fd/{memory}"), at=0, over=True)


def test_what_lies_over_a_disk_hides_it_page_by_page(disk: Path, tmp_path: Path, memory: int) -> None:
    wanted = bytearray(disk.read_bytes())
    # Within a block, from one into the next, a whole one, where nothing was; zeroes hide as well.
    for at, data in (
        (3 * BLOCK + 2 * PAGE, b"a" * PAGE),
        (4 * BLOCK - PAGE, bytes(2 * PAGE)),
        (5 * BLOCK, b"b" * BLOCK),
        (20 * BLOCK + 3 * PAGE, b"c" * PAGE),
    ):
        os.pwrite(memory, data, at)
        wanted[at : at + len(data)] = data
    again = tmp_path / "again"
    digests = sparse.write([Piece(source=disk, at=0), over(memory)], {again: b""})
    assert again.read_bytes() == bytes(wanted)
    assert digests[again] == resources.sha256_of(again)
    assert numbers(Piece(source=disk, at=0), over(memory)) == [3, 4, 5, 20, 40]


def test_a_block_that_is_hidden_by_zeroes_is_a_hole(disk: Path, memory: int) -> None:
    os.pwrite(memory, bytes(BLOCK), 4 * BLOCK)
    os.pwrite(memory, bytes(PAGE), 41 * BLOCK - PAGE)
    assert numbers(Piece(source=disk, at=0), over(memory)) == [3, 5]


def test_a_vmdk_and_a_qcow2_hold_what_lies_over_a_disk(disk: Path, tmp_path: Path, memory: int) -> None:
    os.pwrite(memory, b"d" * PAGE, 4 * BLOCK + PAGE)
    pieces, whole = [Piece(source=disk, at=0), over(memory)], tmp_path / "whole.raw"
    sparse.write(pieces, {whole: b""})
    for number, write in enumerate((qcow2.write, partial(vmdk.write, cid=1))):
        one, other = tmp_path / f"{number}/disk", tmp_path / f"{number}/same/disk"
        other.parent.mkdir(parents=True)
        assert write(pieces, one) == write([Piece(source=whole, at=0)], other)
        assert one.read_bytes() == other.read_bytes()


def test_pages_of_zeroes_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE) + b"a" * 2 * PAGE + bytes(3 * PAGE) + b"b" * 300 * PAGE + bytes(PAGE) + b"c")
    with path.open("rb") as file:
        found = list(sparse.pages(file.fileno()))
    assert found[0] == (PAGE, b"a" * 2 * PAGE)
    assert b"".join(data for _, data in found[1:]) == b"b" * 300 * PAGE + b"c"
    assert found[-1] == (307 * PAGE, b"c")


def test_long_runs_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "full.raw"
    path.write_bytes(os.urandom(SIZE))
    again = tmp_path / "again"
    assert sparse.write([Piece(source=path, at=0)], {again: b""}) == {again: resources.sha256_of(path)}
    assert qcow2.write([Piece(source=path, at=0)], again) == resources.sha256_of(again)
    assert again.read_bytes()[-SIZE:] == path.read_bytes()


def test_a_qcow2_says_where_each_cluster_is(disk: Path, tmp_path: Path) -> None:
    to = tmp_path / "disk.qcow2"
    digest = qcow2.write([Piece(source=disk, at=0)], to)
    data = to.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    assert struct.unpack_from(">4sI", data) == (b"QFI\xfb", 3)
    assert struct.unpack_from(">Q", data, 24) == (SIZE,)
    upper = struct.unpack_from(">Q", data, 40)[0]
    lower = struct.unpack_from(">Q", data, upper)[0] & ~(1 << 63)
    entries = struct.unpack_from(">64Q", data, lower)
    assert [number for number, entry in enumerate(entries) if entry] == [3, 4, 5, 40]
    place = entries[4] & ~(1 << 63)
    assert data[place : place + BLOCK] == disk.read_bytes()[4 * BLOCK : 5 * BLOCK]
    assert len(data) % BLOCK == 0


def test_every_cluster_of_a_qcow2_is_counted_once(disk: Path, tmp_path: Path) -> None:
    to = tmp_path / "disk.qcow2"
    qcow2.write([Piece(source=disk, at=0)], to)
    data = to.read_bytes()
    table = struct.unpack_from(">Q", data, 48)[0]
    block = struct.unpack_from(">Q", data, table)[0]
    counts = struct.unpack_from(f">{BLOCK // 2}H", data, block)
    assert sum(counts) == len(data) // BLOCK
    assert set(counts[: len(data) // BLOCK]) == {1}


def test_an_empty_disk_is_a_small_qcow2(tmp_path: Path) -> None:
    path = tmp_path / "empty.raw"
    path.touch()
    os.truncate(path, SIZE)
    qcow2.write([Piece(source=path, at=0)], tmp_path / "empty.qcow2")
    assert (tmp_path / "empty.qcow2").stat().st_size == 4 * BLOCK


def test_a_vmdk_finds_each_grain_by_its_footer_and_its_tables(disk: Path, tmp_path: Path) -> None:
    to = tmp_path / "disk.vmdk"
    digest = vmdk.write([Piece(source=disk, at=0)], to, cid=0x1234)
    data = to.read_bytes()
    assert digest == hashlib.sha256(data).hexdigest()
    head, footer = data[:512], data[-1024:-512]
    assert struct.unpack_from("<4sII", head) == (b"KDMV", 3, 0x30001)
    assert struct.unpack_from("<Q", head, 56) == ((1 << 64) - 1,), "its directory is told by the footer"
    assert head[:56] == footer[:56] and data[-512:] == bytes(512)
    assert b"CID=00001234\n" in data[512 : 21 * 512]
    (directory,) = struct.unpack_from("<Q", footer, 56)
    (table,) = struct.unpack_from("<I", data, directory * 512)
    entries = struct.unpack_from("<512I", data, table * 512)
    assert [number for number, entry in enumerate(entries) if entry] == [3, 4, 5, 40]
    place, size = struct.unpack_from("<QI", data, entries[4] * 512)
    assert place == 4 * BLOCK // 512
    packed = data[entries[4] * 512 + 12 :][:size]
    assert zlib.decompress(packed) == disk.read_bytes()[4 * BLOCK : 5 * BLOCK]


def test_the_same_disk_gives_the_same_vmdk(disk: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.add(vmdk.write([Piece(source=disk, at=0)], tmp_path / name / "disk.vmdk", cid=7))
    assert len(digests) == 1

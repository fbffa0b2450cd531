"""A disc is written to real block devices (loop), read back, and never to one that something uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from conda_appliance import device, disc, discs, process
from conda_appliance.definition_disc import DiscDefinition
from conda_appliance.errors import BuildError, HashMismatch, UsageError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root's rights")

SIZE = 8 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    wanted = DiscDefinition.model_validate(
        {"name": "x", "volume": "X", "entries": [{"from": "a", "to": "/a"}], "sums": "/SHA256SUMS"}
    )
    return disc.write(wanted, {"a": os.urandom(3 << 20)}, tmp_path / "x.iso", epoch=1_700_000_000)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Path]:
    """A loop device of 8 MiB whose end holds something old."""
    backing = tmp_path / "stick"
    backing.write_bytes(b"\xff" * SIZE)
    found = Path(process.run(["losetup", "--find", "--show", "--partscan", backing]).stdout.strip())
    yield found
    process.run(["losetup", "--detach", found])


def test_a_device_has_the_discs_bytes_and_nothing_old_at_its_end(
    image: Path, loop: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    target = device.examine(loop, image)
    assert (target.size, target.block) == (SIZE, True)
    device.write(image, target, told.append)
    written = (tmp_path / "stick").read_bytes()
    assert written.startswith(image.read_bytes())
    assert written[-(1 << 20) :] == bytes(1 << 20), "a GPT's second copy would stand there"
    assert told[-1].startswith("read back") and told[-1].endswith("(100 %)") and "flushing" in told
    assert discs.verify(loop) == 1, "a disc is verified on the device as in a file"


def test_a_mounted_device_is_refused_by_its_mount(image: Path, loop: Path, tmp_path: Path) -> None:
    process.run(["mkfs.ext4", "-q", loop])
    (tmp_path / "a mount").mkdir()
    process.run(["mount", loop, tmp_path / "a mount"])
    try:
        with pytest.raises(UsageError, match=rf"{loop.name} is mounted at {tmp_path}/a mount"):
            device.examine(loop, image)
        target = device.Target(path=loop, size=SIZE, about="", block=True)
        with pytest.raises(BuildError, match="something uses it"):
            device.write(image, target)
    finally:
        process.run(["umount", tmp_path / "a mount"])
    device.examine(loop, image)


def test_swap_space_is_refused(image: Path, loop: Path) -> None:
    process.run(["mkswap", loop])
    if process.run(["swapon", loop], check=False).returncode:
        pytest.skip("this host lets nobody add swap space")
    try:
        with pytest.raises(UsageError, match=f"{loop.name} is swap space"):
            device.examine(loop, image)
    finally:
        process.run(["swapoff", loop])


def test_the_disk_that_this_system_runs_from_is_refused(image: Path) -> None:
    number = next(
        line.split()[2] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " / / " in line
    )
    if number.startswith("0:"):
        pytest.skip("this system runs from no block device")
    node = (Path("/sys/dev/block") / number).resolve()
    disk = node.parent if (node / "partition").exists() else node
    with pytest.raises(UsageError, match="this system runs from it"):
        device.examine(Path("/dev") / disk.name, image)


def test_a_device_must_be_large_enough_writable_and_there(image: Path, loop: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.iso"
    large.write_bytes(b"")
    os.truncate(large, SIZE + 1)
    with pytest.raises(UsageError, match=r"has 8\.0 MiB, and .*large\.iso needs 8\.0 MiB"):
        device.examine(loop, large)
    process.run(["blockdev", "--setro", loop])
    with pytest.raises(UsageError, match="is read-only"):
        device.examine(loop, image)
    process.run(["blockdev", "--setrw", loop])
    with pytest.raises(UsageError, match="/dev/not-there: No such file"):
        device.examine(Path("/dev/not-there"), image)
    with pytest.raises(UsageError, match="neither a disk nor a file"):
        device.examine(Path("/dev/null"), image)


def test_a_file_behind_a_loop_device_and_the_disc_itself_are_refused(
    image: Path, loop: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"it is the disk /dev/{loop.name}"):
        device.examine(tmp_path / "stick", image)
    with pytest.raises(UsageError, match="is the disc itself"):
        device.examine(image, image)


def test_a_device_must_be_named_twice(image: Path, loop: Path, tmp_path: Path) -> None:
    before = (tmp_path / "stick").read_bytes()
    for erase, answer in ((None, None), ("/dev/other", None), (None, ""), (None, "yes\n")):
        with pytest.raises(UsageError, match="nothing was written") as caught:
            discs.write(image, loop, erase=erase, ask=None if answer is None else lambda _, a=answer: a)
        assert f"--erase {loop}" in caught.value.hint
    assert (tmp_path / "stick").read_bytes() == before
    discs.write(image, loop, erase=None, ask=lambda _: f"{loop}\n")
    assert (tmp_path / "stick").read_bytes().startswith(image.read_bytes())


def test_a_damaged_disc_is_not_written(image: Path, loop: Path, tmp_path: Path) -> None:
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    image.write_bytes(data)
    before = (tmp_path / "stick").read_bytes()
    with pytest.raises(HashMismatch, match="/a on the disc"):
        discs.write(image, loop, erase=str(loop), ask=None)
    assert (tmp_path / "stick").read_bytes() == before


def test_a_medium_that_is_full_is_told(image: Path) -> None:
    target = device.Target(path=Path("/dev/full"), size=SIZE, about="", block=False)
    with pytest.raises(BuildError, match="/dev/full cannot be written: it is full"):
        device.write(image, target)


def test_a_medium_that_gives_back_other_bytes_is_told_with_the_place(
    image: Path, loop: Path, tmp_path: Path
) -> None:
    others = bytes(
        255 - one for one in image.read_bytes()[1 << 20 :][:512]
    )  # each of them: the image is random

    def meddle(text: str) -> None:
        if text == "flushing":
            with loop.open("r+b", buffering=0) as other:
                other.seek(1 << 20)
                other.write(others)

    with pytest.raises(BuildError, match=rf"does not give back .*from byte {1 << 20} on"):
        device.write(image, device.examine(loop, image), meddle)
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    device.write(image, device.examine(plain, image))
    assert plain.read_bytes() == image.read_bytes()

"""Discs that start machines: the appliance from a CD or a stick, and its installation on disks, empty and not."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.boot.conftest import ROOT, cli
from tests.boot.consoles import DOWN, Console, disk, power_on
from tests.boot.forms_seen import Seen
from tests.conftest import Folders

from conda_appliance import check, definition, disc, lock, log, process, qemu
from conda_appliance.boottime import Asker

GIB = 1 << 30


@dataclass(frozen=True)
class Box:
    """An appliance for hardware: its definition, its result, and the discs made of it."""

    definition: Path
    result: Path
    live: Path
    installer: Path
    unattended: Path


@pytest.fixture(scope="module")
def box(folders: Folders, seen: Seen) -> Box:
    """hello with the kernel for real hardware; ``unattended`` installs without a question on an empty disk."""
    folder = folders.mktemp("box")
    shutil.copytree(ROOT / "images/hello", folder / "images/hello")
    text = (ROOT / "images/hello.yaml").read_text().replace("name: hello\n", "name: box\n", 1)
    text = text.replace("debian: trixie\n", "debian: trixie\n  kernel: generic\n").replace("4GiB", "2GiB")
    path = folder / "images/box.yaml"
    path.write_text(text)
    words = ("--out", folder / "out")
    result = made(cli("build", "--lock", "--no-check", path, *words))
    made_of = {"live": path, "installer": result}
    discs = {}
    for kind, source in made_of.items():
        started = time.monotonic()
        discs[kind] = made(cli("disc", source, kind, *words, cwd=folder))
        seen.disc(f"{kind}-iso", discs[kind], time.monotonic() - started)
        process.run(["xorriso", "-indev", discs[kind], "-find"])
        seen.opened(f"{kind}-iso", "xorriso")
        assert cli("verify", discs[kind], "--files", *words, cwd=folder).returncode == 0
    path.write_text(text + "installer: {unattended: true}\n")
    unattended = made(cli("disc", result, "installer", "--to", folder / "unattended", *words, cwd=folder))
    return Box(path, result, discs["live"], discs["installer"], unattended)


def made(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def checks_of(image: Path, box: Box, work: Path, attached: qemu.Attachment = "disk") -> None:
    """Boot ``image`` and let all shipped checks look at it."""
    with log.step(f"Check {image.name}") as step:
        report = check.run(
            image,
            definition.load_image(box.definition),
            lock.read(box.result / "box.lock"),
            definition_folder=box.definition.parent,
            work=work / "work",
            report=work / "report",
            step=step,
            attached=attached,
        )
    assert report.failed == 0, report.text()
    assert report.passed > 25


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blank(path: Path, size: int = 3 * GIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


# --- live -------------------------------------------------------------------------------------------


def test_a_live_disc_passes_the_checks_of_the_image(box: Box, tmp_path: Path, seen: Seen) -> None:
    checks_of(box.live, box, tmp_path, attached="cd")
    seen.ran("live-iso", "QEMU: BIOS, CD; the image's checks")


def test_it_starts_from_cd_and_stick_by_bios_and_uefi(box: Box, tmp_path: Path, seen: Seen) -> None:
    """Each in a way of its own: from memory without the CD, with what was kept, verified before."""
    ways = {
        "UEFI, CD, from memory": from_memory,
        "BIOS, stick, with data kept": with_data,
        "UEFI, stick, verified": verified,
    }
    with ThreadPoolExecutor(2) as pool:
        for way, run in {way: pool.submit(run, box, tmp_path) for way, run in ways.items()}.items():
            seen.ran("live-iso", f"QEMU: {way}", run.result())


def from_memory(box: Box, folder: Path) -> bytes:
    """UEFI, CD: the second entry; all that is read after the CD was taken out is not the CD's."""
    with power_on(folder / "memory", box.live, firmware="uefi") as console:
        console.wait_for("Start from memory")
        console.type(DOWN)
        console.wait_for("Copying the appliance to memory")
        console.wait_for("The medium may be taken out")
        console.control.monitor("eject -f medium")
        return answers(console)


def with_data(box: Box, folder: Path) -> bytes:
    """BIOS, stick: a partition behind the disc keeps what is written."""
    stick, kept = folder / "stick", folder / "kept"
    kept.write_text("kept from before\\n\n")
    blank(stick, GIB // 2)
    done = cli("disc", "write", box.live, stick, "--data", "--erase", stick)
    assert done.returncode == 0, done.stderr
    start = partition(stick, 3)
    for command in ("mkdir upper", "mkdir upper/etc", f"write {kept} upper/etc/issue"):
        debugfs(stick, start, command, "-w")
    with power_on(folder / "data", stick, how="usb") as console:
        console.wait_for("kept from before")
        said = answers(console)
        console.shut_down()
    assert "machine-id" in debugfs(stick, start, "ls upper/etc")
    return said


def partition(stick: Path, number: int) -> int:
    """Where a partition of a raw disk begins, in bytes."""
    said = subprocess.check_output(["sfdisk", "--dump", stick], text=True)
    (start,) = re.findall(rf"{re.escape(str(stick))}{number} : start= *(\d+),", said)
    return int(start) * 512


def debugfs(stick: Path, offset: int, command: str, *words: str) -> str:
    """What debugfs answers; it ends with 0 whatever happens, and says more than its version when it could not."""
    argv = ["debugfs", *words, "-R", command, f"{stick}?offset={offset}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stdout


def verified(box: Box, folder: Path) -> bytes:
    """UEFI, stick: the third entry."""
    with power_on(folder / "verified", box.live, how="usb", firmware="uefi") as console:
        console.wait_for("Verify the disc")
        console.type(DOWN + DOWN)
        console.wait_for("every file has its checksum")
        return answers(console)


def answers(console: Console) -> bytes:
    """The appliance's service answers: what."""
    asker = Asker(console.ports[8000], "/", console.started)
    assert asker.wait(500) is not None, console.text[-4000:]
    with urllib.request.urlopen(f"http://127.0.0.1:{console.ports[8000]}/", timeout=60) as response:
        said: bytes = response.read()
    return said


def test_a_damaged_disc_says_so_when_asked_and_does_not_start(box: Box, tmp_path: Path) -> None:
    bad = tmp_path / "bad.iso"
    shutil.copyfile(box.live, bad)
    content = next(one for one in disc.contents(box.live).entries if one.path.endswith("root.squashfs"))
    with bad.open("r+b") as file:
        data = file.read()
        at = data.index(b"hsqs") + content.size // 2
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    with power_on(tmp_path / "machine", bad) as console:
        console.wait_for("Verify the disc")
        console.type(DOWN + DOWN)
        console.wait_for("root.squashfs: FAILED")
        console.wait_for("The medium is damaged")
        assert "Starting systemd" not in console.text


# --- installer --------------------------------------------------------------------------------------


def test_it_installs_on_an_empty_disk_which_then_starts_alone_and_passes_the_checks(
    box: Box, tmp_path: Path
) -> None:
    """BIOS, CD, virtio; a person is asked."""
    target = blank(tmp_path / "target")
    with power_on(tmp_path / "machine", box.installer, disks=disk("virtio", target, "V1RT")) as console:
        console.wait_for("/dev/vda  3.0 GiB .* serial V1RT: empty")
        console.wait_for("Name of the disk to install to")
        console.type("vda")
        console.wait_for("Written, read back, and the same")
        console.wait_for("Installed")
        console.cut_power()
    checks_of(target, box, tmp_path)
    table = subprocess.check_output(["sfdisk", "--json", target], text=True)
    assert '"lastlba":6291422' in table.replace(" ", ""), "the table reaches to the end of 3 GiB"


def test_without_a_question_it_takes_the_only_empty_disk_and_leaves_others_alone(
    box: Box, tmp_path: Path, seen: Seen
) -> None:
    """UEFI, stick, NVMe; beside it a SATA disk that holds data. The stick stays in, and what is installed starts."""
    target, other = blank(tmp_path / "target"), blank(tmp_path / "other")
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-L", "precious", other], check=True)
    before = digest(other)
    disks = [*disk("nvme", target, "NVME1"), *disk("sata", other, "SATA2", 2)]
    with power_on(tmp_path / "machine", box.unattended, how="usb", firmware="uefi", disks=disks) as console:
        console.wait_for("Installing box 1.0.0 to /dev/nvme0n1")
        console.wait_for("Installed")
        console.wait_for("box login:")
        seen.ran("installer-iso", "QEMU: UEFI, stick, onto NVMe, which then started", answers(console))
        console.shut_down()  # its file system grew meanwhile, and debugfs reads no journal
    assert digest(other) == before
    root = partition(target, 3)
    (name,) = re.findall(r"install-[0-9a-f]{16}\.log", debugfs(target, root, "ls /var/log/conda-appliance"))
    said = debugfs(target, root, f"cat /var/log/conda-appliance/{name}")
    assert "holds ext4" in said and "Written, read back, and the same." in said


def test_a_disk_that_holds_anything_is_written_to_only_when_it_is_named_twice(
    box: Box, tmp_path: Path
) -> None:
    """A file system, a partition table, LVM, LUKS, something unknown, too small, read-only: nobody is asked in vain."""
    kinds = ["ext4", "gpt", "lvm", "luks", "unknown", "small", "read-only"]
    paths = {kind: blank(tmp_path / kind, 64 << 20 if kind == "small" else 3 * GIB) for kind in kinds}
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", paths["ext4"]], check=True)
    subprocess.run(["sfdisk", "-q", paths["gpt"]], input=b"label: gpt\n,\n", check=True)
    put(paths["lvm"], 512, b"LABELONE" + (1).to_bytes(8, "little"))
    put(paths["lvm"], 512 + 24, b"LVM2 001" + b"a" * 32)
    put(paths["luks"], 0, b"LUKS\xba\xbe\x00\x02" + (16384).to_bytes(8, "big"))
    put(paths["unknown"], GIB, os.urandom(64 << 20))  # encrypted without a header, say
    before = {kind: digest(path) for kind, path in paths.items()}
    disks = [
        word
        for number, (kind, path) in enumerate(paths.items(), 1)
        for word in disk(
            "virtio", path, kind.upper(), number, more=",readonly=on" if kind == "read-only" else ""
        )
    ]
    with power_on(tmp_path / "machine", box.unattended, disks=disks) as console:
        listed = console.wait_for("(?s)The disks of this machine:.*Name of the disk")
        for serial, words in {
            "EXT4": "holds ext4",
            "GPT": "holds .*gpt.*, 1 partitions",
            "LVM": "holds LVM2_member",
            "LUKS": "holds crypto_LUKS",
            "UNKNOWN": "holds something without a name",
            "SMALL": "too small: the image takes 2.0 GiB",
            "READ-ONLY": "it is read-only",
        }.items():
            assert re.search(rf"serial {serial}: {words}", listed), (serial, listed)
        assert "one empty disk is needed, and here are: none" in listed
        console.type("vdb")
        console.wait_for("Everything on /dev/vdb will be lost.*\n")
        console.wait_for('Type "erase vdb"')
        console.type("yes")
        console.wait_for("Nothing was written")
        console.wait_for("Name of the disk")
        console.type("vdf")
        console.wait_for("no such disk that can take the appliance: vdf")
    assert {kind: digest(path) for kind, path in paths.items()} == before


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_of_two_empty_disks_it_takes_none_by_itself_and_power_that_fails_costs_only_the_installation(
    box: Box, tmp_path: Path
) -> None:
    """SATA and USB. Cut in the middle, the disk starts nothing; the disc does again, and goes on without a question."""
    one, other = blank(tmp_path / "one"), blank(tmp_path / "other")
    untouched = digest(one)
    disks = [*disk("sata", one, "ONE"), *disk("usb", other, "OTHER", 2)]
    with power_on(tmp_path / "machine", box.unattended, disks=disks) as console:
        said = console.wait_for(
            "(?s)The disks of this machine:.*one empty disk is needed, and here are: sd. sd."
        )
        (name,) = re.findall("/dev/(sd.) .* serial OTHER: empty", said)
        console.wait_for("Name of the disk")
        console.type(name)
        console.wait_for("Writing [2-9][0-9] %")
        console.cut_power()
    assert nothing_starts_from(other)
    disks = disk("usb", other, "OTHER", 2)
    with power_on(tmp_path / "machine", box.unattended, disks=disks) as console:
        console.wait_for("serial OTHER: holds an unfinished installation by this disc")
        console.wait_for("Reading back [2-9][0-9] %")
        console.cut_power()
    assert nothing_starts_from(other)
    assert digest(one) == untouched


def nothing_starts_from(path: Path) -> bool:
    """Whether a disk has no boot sector and no partition table."""
    with path.open("rb") as file:
        return not any(file.read(1 << 20))


def test_a_disk_that_fails_is_told_and_left_without_a_partition_table(box: Box, tmp_path: Path) -> None:
    target, errors = blank(tmp_path / "target"), tmp_path / "errors"
    errors.write_text('[inject-error]\nevent = "pwritev"\nerrno = "5"\nsector = "614400"\n')  # at 300 MiB
    disks = disk("virtio", target, "BROKEN", blkdebug=errors)
    with power_on(tmp_path / "machine", box.installer, disks=disks) as console:
        console.wait_for("Name of the disk")
        console.type("vda")
        console.wait_for("failed on /dev/vda: the disk or its cable is broken")
        console.wait_for("Name of the disk")
    assert nothing_starts_from(target)

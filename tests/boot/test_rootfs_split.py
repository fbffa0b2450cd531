"""disk.layout: split — the environments in a read-only partition of their own, beside room for an update."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from tests.boot.conftest import ROOT, cli


def test_it_passes_all_checks_and_one_that_fails_is_exit_5_with_its_name_and_the_console(
    hello_rootfs: Path, tmp_path: Path
) -> None:
    """One boot for both: the machine's own check wants what it has not, and nothing else fails."""
    path, report = split(tmp_path, "none"), tmp_path / "report"
    built("--lock", path, "--out", tmp_path / "out")
    (path.parent / "hello/checks/test_hello.py").write_text(
        "def test_this_machine_makes_coffee(host):\n    assert host.file('/dev/coffee').exists\n"
    )
    done = cli("check", path, "--out", tmp_path / "out", "--report", report)
    assert done.returncode == 5, done.stderr
    assert "test_this_machine_makes_coffee" in done.stderr
    assert "1 failed" in done.stderr
    suite = ElementTree.parse(report / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("failures"), suite.get("errors")) == ("1", "0")
    assert int(suite.get("tests", "0")) > 30
    assert any(one.stat().st_size > 1000 for one in report.glob("*.log"))


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_changed_environment_rewrites_its_partition_alone(
    hello_rootfs: Path, tmp_path: Path, compression: str
) -> None:
    path, out = split(tmp_path, compression), tmp_path / "out"
    first = raw(built("--lock", path, "--out", out), tmp_path / "first.raw")
    partitions = {one["name"]: one for one in table(first)}
    assert list(partitions) == ["bios", "esp", "environment-a", "environment-b", "root"]

    path.write_text(path.read_text().replace(", numpy]", "]"))
    done = cli("build", "--lock", "--no-check", path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "playbook unchanged" in done.stderr
    assert "root unchanged" in done.stderr
    second = raw(Path(done.stdout.strip()), tmp_path / "second.raw")
    for name, one in partitions.items():
        same = content(first, one) == content(second, one)
        assert same == (name != "environment-a"), name
    assert content(second, partitions["environment-a"])[:4] == b"hsqs"
    assert not content(second, partitions["environment-b"]).strip(b"\0")


def test_compressed_or_not_the_environment_is_the_same(hello_rootfs: Path, tmp_path: Path) -> None:
    """One is packed by mksquashfs; the other is read from where it was linked, and that was booted."""
    found = []
    for compression in ("none", "zstd"):
        folder = built("--lock", split(tmp_path / compression, compression), "--out", tmp_path / "out")
        assert not {"stamp", "disk"} & {one.name for one in folder.iterdir()}, (
            "what was only needed meanwhile"
        )
        found.append(environment(folder, tmp_path / f"{compression}.raw"))
    assert found[0] == found[1]


def split(folder: Path, compression: str) -> Path:
    """images/hello.yaml in ``folder``, with its environments in a partition of their own."""
    shutil.copytree(ROOT / "images", folder / "images")
    path = folder / "images/hello.yaml"
    disk = f"disk: {{size: 4GiB, layout: split, slot: 256MiB, compression: {compression},"
    path.write_text(path.read_text().replace("disk: {size: 4GiB,", disk))
    return path


def built(*words: str | Path) -> Path:
    done = cli("build", "--no-check", *words)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def environment(folder: Path, disk: Path) -> list[str]:
    """What is in the environments' partition: kinds, modes, owners, sizes of files, times, names, targets."""
    one = next(one for one in table(raw(folder, disk)) if one["name"] == "environment-a")
    said = subprocess.check_output(
        ["unsquashfs", "-offset", str(one["start"] * 512), "-lln", disk], text=True
    )
    return sorted(re.sub(r"^(d\S+ \S+) +\d+", r"\1", line) for line in said.splitlines())


def raw(folder: Path, to: Path) -> Path:
    subprocess.run(["qemu-img", "convert", "-O", "raw", folder / "hello.qcow2", to], check=True)
    return to


def table(disk: Path) -> list[dict[str, Any]]:
    said = subprocess.check_output(["sfdisk", "--json", disk])
    found: list[dict[str, Any]] = json.loads(said)["partitiontable"]["partitions"]
    return found


def content(disk: Path, partition: dict[str, int]) -> bytes:
    with disk.open("rb") as file:
        file.seek(partition["start"] * 512)
        return file.read(partition["size"] * 512)

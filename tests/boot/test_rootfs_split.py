"""disk.layout: split — the environments in a read-only partition of their own, beside room for an update."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.boot.conftest import ROOT, cli


def test_it_passes_the_same_checks_and_a_changed_environment_rewrites_its_partition_alone(
    hello_rootfs: Path, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "images", tmp_path / "images")
    path = tmp_path / "images/hello.yaml"
    path.write_text(
        path.read_text().replace("disk: {size: 4GiB,", "disk: {size: 4GiB, layout: split, slot: 256MiB,")
    )
    out = tmp_path / "out"
    done = cli("build", "--lock", path, "--out", out)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert json.loads((folder / "manifest.json").read_text())["check"]["failed"] == 0
    first = raw(folder, tmp_path / "first.raw")
    partitions = {one["name"]: one for one in table(first)}
    assert list(partitions) == ["bios", "esp", "environment-a", "environment-b", "root"]

    path.write_text(path.read_text().replace(", numpy]", "]"))
    done = cli("build", "--lock", "--no-check", path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "playbook unchanged" in done.stderr
    assert "root unchanged; environments made" in done.stderr
    second = raw(Path(done.stdout.strip()), tmp_path / "second.raw")
    for name, one in partitions.items():
        same = content(first, one) == content(second, one)
        assert same == (name != "environment-a"), name
    assert content(second, partitions["environment-a"])[:4] == b"hsqs"
    assert not content(second, partitions["environment-b"]).strip(b"\0")


def raw(folder: Path, to: Path) -> Path:
    subprocess.run(["qemu-img", "convert", "-O", "raw", folder / "hello.qcow2", to], check=True)
    return to


def table(disk: Path) -> list[dict[str, int]]:
    said = subprocess.check_output(["sfdisk", "--json", disk])
    found: list[dict[str, int]] = json.loads(said)["partitiontable"]["partitions"]
    return found


def content(disk: Path, partition: dict[str, int]) -> bytes:
    with disk.open("rb") as file:
        file.seek(partition["start"] * 512)
        return file.read(partition["size"] * 512)

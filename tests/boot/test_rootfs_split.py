"""disk.layout: split — the environments in a read-only partition of their own, beside room for an update."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.boot.conftest import ROOT, cli


def test_it_passes_the_same_checks_and_a_changed_environment_rewrites_its_partition_alone(
    hello_rootfs: Path, tmp_path: Path
) -> None:
    path, out = split(tmp_path, "zstd"), tmp_path / "out"
    folder = built("--lock", path, "--out", out)
    assert json.loads((folder / "manifest.json").read_text())["check"]["failed"] == 0
    first = raw(folder, tmp_path / "first.raw")
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


def test_what_is_not_compressed_has_the_same_environment_and_passes_the_same_checks(
    hello_rootfs: Path, tmp_path: Path
) -> None:
    """It is read from where it was linked; mksquashfs packs the other one."""
    compressed = built("--lock", "--no-check", split(tmp_path / "one", "zstd"), "--out", tmp_path / "out")
    listed = environment(compressed, tmp_path / "one.raw")
    plain = built("--lock", split(tmp_path / "other", "none"), "--out", tmp_path / "out")
    assert json.loads((plain / "manifest.json").read_text())["check"]["failed"] == 0
    assert not {"stamp", "disk"} & {one.name for one in plain.iterdir()}, "what was only needed meanwhile"
    assert environment(plain, tmp_path / "other.raw") == listed


def split(folder: Path, compression: str) -> Path:
    """images/hello.yaml in ``folder``, with its environments in a partition of their own."""
    shutil.copytree(ROOT / "images", folder / "images")
    path = folder / "images/hello.yaml"
    disk = f"disk: {{size: 4GiB, layout: split, slot: 256MiB, compression: {compression},"
    path.write_text(path.read_text().replace("disk: {size: 4GiB,", disk))
    return path


def built(*words: str | Path) -> Path:
    done = cli("build", *words)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def environment(folder: Path, disk: Path) -> list[str]:
    """What is in the environments' partition: kinds, modes, owners, sizes, times, names, targets."""
    one = next(one for one in table(raw(folder, disk)) if one["name"] == "environment-a")
    said = subprocess.check_output(
        ["unsquashfs", "-offset", str(one["start"] * 512), "-lln", disk], text=True
    )
    return sorted(said.splitlines())


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

"""Built without booting, an image holds what Packer's holds, and one lock gives the same bytes on every host."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from tests.boot.conftest import ROOT, cli

from conda_appliance import compare, resources, trees

#: What a machine that booted has, or has otherwise: which paths, whose they are, and why. All else is the same.
ALLOWED = {
    "etc/conda-appliance/appliance.json": ("differs", "names the build, and its builder is a part of that"),
    "etc/hosts": ("differs", "cloud-init wrote it anew, with its own spacing, when Packer's machine booted"),
    "var/lib/cloud*": ("only packer's", "cloud-init made its folders; what was in them is gone"),
    "var/lib/dbus/machine-id": ("only packer's", "systemd linked it to /etc/machine-id, which is empty"),
    "var/lib/systemd/linger": ("only packer's", "systemd-logind made the empty folder"),
    "var/lib/systemd/timers*": ("only packer's", "systemd noted when it began to wait for a timer"),
    "var/lib/systemd/timesync*": ("only packer's", "systemd-timesyncd noted the time"),
    "var/log/cloud-init*.log": ("only packer's", "cloud-init's logs, emptied"),
    "var/tmp/systemd-private-*": ("only packer's", "folders of units that run until the end"),
}


def test_both_builders_make_the_same_tree(hello: Path, hello_rootfs: Path, tmp_path: Path) -> None:
    """Paths, types, modes, owners, contents and attributes; each difference is allowed, each allowance needed."""
    listed = []
    for folder in (hello, hello_rootfs):
        work = tmp_path / folder.name
        work.mkdir()
        listed.append(compare.tree_of(folder / "hello.qcow2", work, times=False))
    packers, rootfs = listed
    assert len(rootfs) > 10_000
    kinds = {"missing": "only packer's", "extra": "only rootfs's", "changed": "differs"}
    unexplained, needed = [], set()
    for line in trees.differences(packers, rootfs):
        kind, path = line.split(": ")[:2]
        match = [name for name in ALLOWED if fnmatch.fnmatchcase(path, name)]
        if match and ALLOWED[match[0]][0] == kinds[kind]:
            needed.add(match[0])
        else:
            unexplained.append(line)
    assert unexplained == []
    assert needed == {*ALLOWED}, "an allowance that nothing needs any more"
    assert not loop_devices(tmp_path)


def loop_devices(folder: Path) -> list[str]:
    """The loop devices whose file is in ``folder``."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    return [text for text in (path.read_text() for path in files) if text.startswith(str(folder))]


def test_the_facts_differ_in_the_builds_id_alone(hello: Path, hello_rootfs: Path, tmp_path: Path) -> None:
    packers, rootfs = (json.loads(facts(folder, tmp_path)) for folder in (hello, hello_rootfs))
    assert (packers.pop("build"), rootfs.pop("build")) == (hello.name, hello_rootfs.name)
    assert packers == rootfs


def facts(result: Path, work: Path) -> str:
    """What an image says of itself."""
    raw = work / f"{result.name}.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", result / "hello.qcow2", raw], check=True)
    partitions = json.loads(subprocess.check_output(["sfdisk", "--json", raw]))["partitiontable"][
        "partitions"
    ]
    place = f"{raw}?offset={next(one['start'] for one in partitions if one['name'] == 'root') * 512}"
    command = ["debugfs", "-R", "cat /etc/conda-appliance/appliance.json", place]
    said = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)
    raw.unlink()
    return said


def test_nothing_in_the_image_is_newer_than_its_clock(hello_rootfs: Path, tmp_path: Path) -> None:
    listed = compare.tree_of(hello_rootfs / "hello.qcow2", tmp_path)
    times = {path: int(re.findall(r" mtime:(\d+)$", about)[0]) for path, about in listed.items()}
    assert [path for path, time in times.items() if time > 1_577_836_800] == []


def test_a_result_holds_all_that_belongs_to_it(hello_rootfs: Path, out_rootfs: Path) -> None:
    written = json.loads((hello_rootfs / "manifest.json").read_text())
    assert written["builder"] == "rootfs"
    assert written["check"]["failed"] == 0
    assert written["check"]["passed"] > 10
    assert {"lock", "system", "environment", "provisioned"} <= written["inputs"].keys()
    assert (out_rootfs / "hello/latest").resolve() == hello_rootfs
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=hello_rootfs, check=True)
    for name in (
        "hello.lock",
        "build/README.md",
        "build/playbook/site.yml",
        "build/files/opt/hello/hello.py",
    ):
        assert (hello_rootfs / name).stat().st_size > 0
    assert list((hello_rootfs / "report").glob("*.xml"))


def test_nothing_changed_means_nothing_done(hello_rootfs: Path, out_rootfs: Path) -> None:
    done = cli("build", "--builder", "rootfs", "images/hello.yaml", "--out", out_rootfs)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert done.stdout.strip() == str(hello_rootfs)


# --- the same bytes ---------------------------------------------------------------------------------


def sha256_of(result: str) -> str:
    return hashlib.sha256((Path(result.strip()) / "hello.qcow2").read_bytes()).hexdigest()


def copy_of_hello(folder: Path) -> Path:
    """images/hello.yaml with all that it names and its lock, in a folder of its own."""
    shutil.copytree(ROOT / "images", folder / "images")
    return folder / "images/hello.yaml"


def elsewhere(folder: Path, cache: Path) -> dict[str, str]:
    """The environment of somebody else, who works somewhere else."""
    (folder / "tmp").mkdir()
    return {
        "CONDA_APPLIANCE_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "TZ": "Pacific/Chatham",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "",
        "PATH": os.environ["PATH"] + os.pathsep + str(folder),
        "EDITOR": "ed",
    }


def test_a_fresh_cache_elsewhere_gives_the_same_bytes(
    hello_rootfs: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    """Another umask, time zone, locale, home and folder; nothing is there but the downloads."""
    path = copy_of_hello(tmp_path)
    done = cli(
        *("build", "--builder", "rootfs", "--no-check", "--offline", path, "--out", tmp_path / "results"),
        env=elsewhere(tmp_path, fresh_cache),
        cwd=tmp_path,
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    for layer in ("system", "environment", "playbook"):
        assert f"{layer} made (there was none before)" in done.stderr
    assert sha256_of(done.stdout) == sha256_of(str(hello_rootfs))
    assert Path(done.stdout.strip()).name == hello_rootfs.name
    # apt's user cannot reach this cache, and may be able to reach the other one: the image must not tell.
    (apt,) = (fresh_cache / "layers/system").glob("*/tree/var/cache/apt/archives/partial")
    assert apt.stat().st_uid == 42


def test_a_changed_environment_runs_no_playbook_and_gives_the_bytes_of_a_fresh_build(
    hello_rootfs: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    path = copy_of_hello(tmp_path)
    never_asked_before = f"click <{time.time_ns()}"
    path.write_text(path.read_text().replace(", numpy]", f", '{never_asked_before}']"))
    quick = cli(
        *("build", "--lock", "--explain", "--builder", "rootfs", "--no-check", path),
        *("--out", tmp_path / "quick"),
    )
    assert quick.returncode == 0, quick.stderr
    assert "system unchanged" in quick.stderr
    assert "environment made (packages: base/" in quick.stderr
    assert "environment: packages: base/numpy is gone" in quick.stderr
    assert "playbook unchanged" in quick.stderr
    for kind in ("environment", "bytecode", "provisioned"):
        resources.remove(fresh_cache / "layers" / kind)
    fresh = cli(
        *("build", "--builder", "rootfs", "--no-check", "--offline", path, "--out", tmp_path / "fresh"),
        env=elsewhere(tmp_path, fresh_cache),
        cwd=tmp_path,
        umask=0o027,
    )
    assert fresh.returncode == 0, fresh.stderr
    assert "playbook made" in fresh.stderr
    assert sha256_of(quick.stdout) == sha256_of(fresh.stdout)
    assert sha256_of(quick.stdout) != sha256_of(str(hello_rootfs))


def test_an_image_whose_disk_is_the_same_is_not_written_again(
    hello_rootfs: Path, out_rootfs: Path, tmp_path: Path
) -> None:
    shutil.copytree(out_rootfs, tmp_path / "out", symlinks=True)
    done = cli(
        *("build", "--force", "--no-check", "--builder", "rootfs", "images/hello.yaml"),
        *("--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "unchanged, from an earlier result" in done.stderr
    assert sha256_of(done.stdout) == sha256_of(str(hello_rootfs))


def test_a_result_is_verified_by_reading_it_and_by_building_it_anew(
    hello_rootfs: Path, out_rootfs: Path, tmp_path: Path
) -> None:
    done = cli("verify", "--rebuild", "--offline", "--json", "images/hello.yaml", "--out", out_rootfs)
    assert done.returncode == 0, done.stderr
    assert "the same bytes again" in done.stderr
    assert json.loads(done.stdout)["artifacts"] == {"hello.qcow2": sha256_of(str(hello_rootfs))}
    assert sorted(path.name for path in (out_rootfs / "hello").iterdir()) == [hello_rootfs.name, "latest"]

    shutil.copytree(out_rootfs, tmp_path / "out", symlinks=True)
    damaged = tmp_path / "out/hello" / hello_rootfs.name / "hello.qcow2"
    with damaged.open("r+b") as file:
        file.seek(1 << 20)
        byte = file.read(1)
        file.seek(1 << 20)
        file.write(bytes([byte[0] ^ 1]))
    done = cli("verify", "hello", "--out", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert str(damaged) in done.stderr

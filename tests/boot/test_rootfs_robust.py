"""A rootfs build that is killed, starved of room or run beside another leaves nothing behind and loses nothing."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.conftest import ROOT, cli, link_downloads, link_layers, programs_of, start, wait_until

from conda_appliance import layers, resources

#: What is made anew in each of these runs; the system, which takes a minute, is made once.
MADE = ("environment", "provisioned")


@pytest.fixture
def cache(hello_rootfs: Path) -> Iterator[Path]:
    """A copy, by hard links, of the cache that this session built from, without what is made in seconds."""
    copy = resources.cache_root().parent / f"conda-appliance-robust-{os.getpid()}"
    link_downloads(copy)
    for kind in ("system", "bytecode"):
        link_layers(copy, kind)
    yield copy
    resources.remove(copy)


def forget(cache: Path) -> None:
    for kind in MADE:
        resources.remove(cache / "layers" / kind)


def left_behind(cache: Path, out: Path) -> list[str]:
    """Everything that a run should not leave: mounts, loop devices, half-made layers, temporary folders."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(cache) in line]
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        found += [text for text in [file.read_text()] if str(cache) in text or str(out) in text]
    for folder in (cache, out):
        found += [str(path) for path in folder.glob("**/*.partial*")]
        found += [str(path) for path in folder.glob("**/.*.pruned")]
    return found


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "hello.qcow2").read_bytes()).hexdigest()


def test_killed_at_any_moment_it_leaves_nothing_and_the_next_run_gives_the_same_bytes(
    hello_rootfs: Path, cache: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    env = {"CONDA_APPLIANCE_CACHE": str(cache), "TMPDIR": str(tmp_path)}
    words = ("build", "--builder", "rootfs", "--offline", "--no-check", "--force", "images/hello.yaml")
    started = time.monotonic()
    assert cli(*words, "--out", out, env=env).returncode == 0
    whole = time.monotonic() - started
    last = (out / "hello/latest").resolve()
    moments = random.Random(1)  # the same moments each time
    for number in (signal.SIGKILL,) * 8 + (signal.SIGTERM,) * 3:
        forget(cache)
        run = start(*words, "--out", out, log=log, env=env)
        try:
            run.wait(timeout=moments.uniform(0.1, 0.95) * whole)
        except subprocess.TimeoutExpired:
            run.send_signal(number)
        run.wait(timeout=60)
        if number == signal.SIGTERM:
            assert run.returncode in (0, 130), log.read_text()
            assert left_behind(cache, out) == []
        # The next run of any kind clears up.
        assert cli("cache", "list", env=env).returncode == 0
        assert cli("clean", "--leftovers", "--out", out, env=env).returncode == 0
        assert programs_of(run.pid) == []
        assert left_behind(cache, out) == []
        assert not list(tmp_path.glob("conda-appliance-*"))
        assert (out / "hello/latest").resolve() == last
        assert digest(last) == digest(hello_rootfs)
    done = cli(*words, "--out", out, env=env)
    assert done.returncode == 0, done.stderr
    assert digest(Path(done.stdout.strip())) == digest(hello_rootfs)


def test_two_builds_at_once_make_each_layer_once_and_both_are_right(
    hello_rootfs: Path, cache: Path, tmp_path: Path
) -> None:
    env = {"CONDA_APPLIANCE_CACHE": str(cache)}
    words = ("build", "--builder", "rootfs", "--offline", "--no-check", "images/hello.yaml", "--out")
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    runs = [start(*words, log.with_suffix(""), log=log, env=env) for log in logs]
    for run, log in zip(runs, logs, strict=True):
        assert run.wait(timeout=600) == 0, log.read_text()
    said = [log.read_text() for log in logs]
    for layer in ("environment", "playbook"):
        assert sum(f"{layer} made" in text for text in said) == 1, said
        assert sum(f"{layer} unchanged" in text for text in said) == 1, said
    for log in logs:
        assert digest(log.with_suffix("") / "hello/latest") == digest(hello_rootfs)
    assert left_behind(cache, tmp_path) == []


def test_a_disk_that_fills_up_is_said_in_one_line_and_nothing_is_lost(
    hello_rootfs: Path, cache: Path, tmp_path: Path
) -> None:
    small, out, log = tmp_path / "small", tmp_path / "out", tmp_path / "log"
    small.mkdir()
    shutil.copytree(hello_rootfs, out / "hello/good", symlinks=True)
    (out / "hello/latest").symlink_to("good")
    # Whatever else the cache holds: a build wants its own part of that free before it begins.
    size = (3 << 30) + layers.size_of(cache / "blobs")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "small", small], check=True)
    try:
        shutil.copytree(cache / "blobs", small / "cache/blobs")
        env = {"CONDA_APPLIANCE_CACHE": str(small / "cache")}
        words = ("build", "--builder", "rootfs", "--offline", "--no-check", "images/hello.yaml", "--out", out)
        run = start(*words, log=log, env=env)
        try:
            wait_until(
                lambda: run.poll() is not None or list(small.glob("cache/layers/system/*.partial")) != [],
                60,
                "the system is being made",
                log=log,
            )
            assert run.poll() is None, log.read_text()
            fill(small, 64 << 20)
            assert run.wait(timeout=300) == 1, log.read_text()
        finally:
            run.kill()
            run.wait()
        said = log.read_text()
        assert "no space" in said.lower() or "full" in said.lower()
        assert "Traceback" not in said
        assert programs_of(run.pid) == []
        assert not list(small.glob("cache/layers/*/*.partial"))
        assert (out / "hello/latest").resolve().name == "good"
        assert digest(out / "hello/good") == digest(hello_rootfs)
    finally:
        subprocess.run(["umount", small], check=True)


def fill(folder: Path, left: int) -> None:
    """Leave ``left`` bytes of a file system, or less, while another program writes to it."""
    for _ in range(20):
        length = shutil.disk_usage(folder).free - left
        if length <= 0:
            return
        command = ["fallocate", "--length", str(length), folder / "filler"]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return
    pytest.fail("the file system could not be filled")


# --- several at once --------------------------------------------------------------------------------


def several(folder: Path, names: list[str]) -> list[Path]:
    """Definitions like hello that differ in their name and their application."""
    shutil.copytree(ROOT / "images", folder / "images")
    made = []
    for name in names:
        text = (ROOT / "images/hello.yaml").read_text()
        text = text.replace("name: hello\n", f"name: {name}\n", 1).replace("hello/app/", f"{name}/app/")
        shutil.copytree(ROOT / "images/hello/app", folder / "images" / name / "app")
        with (folder / "images" / name / "app/hello.py").open("a") as file:
            file.write(f"# {name}\n")
        path = folder / "images" / f"{name}.yaml"
        path.write_text(text)
        shutil.copy(ROOT / "images/hello.lock", path.with_suffix(".lock"))
        made.append(path)
    return made


def test_several_definitions_share_what_they_can_and_one_failure_is_not_the_others(
    hello_rootfs: Path, cache: Path, tmp_path: Path
) -> None:
    env = {"CONDA_APPLIANCE_CACHE": str(cache)}
    paths = several(tmp_path, ["one", "two", "broken"])
    paths[2].write_text(paths[2].read_text().replace("gunicorn --bind", "gunikorn --bind"))
    out = tmp_path / "out"
    done = cli("build", "--builder", "rootfs", "--offline", "--no-check", *paths, "--out", out, env=env)
    assert done.returncode == 1, done.stderr
    assert "2 of 3 images are ready" in done.stderr
    assert "there is no program /opt/conda/bin/gunikorn" in done.stderr
    assert len(list((cache / "layers/environment").glob("*/layer.json"))) == 1
    assert done.stderr.count("system unchanged") == 3
    digests = {
        hashlib.sha256((out / name / f"latest/{name}.qcow2").read_bytes()).digest() for name in ("one", "two")
    }
    assert len(digests) == 2
    assert not (out / "broken/latest").exists()
    assert left_behind(cache, out) == []

"""A flipped byte in anything that a build takes from its cache is caught by name, before it is used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.boot.conftest import ROOT, cli

from conda_appliance import lock, resources


@pytest.fixture
def cache(hello: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the cache that this session built from, to break things in: hard links until they break."""
    copy = resources.cache_root().parent / f"conda-appliance-test-{os.getpid()}"
    shutil.copytree(resources.cache_root(), copy, copy_function=os.link, symlinks=True)
    yield copy
    resources.remove(copy)


def flip(path: Path) -> None:
    """Change one byte in the middle of a file, in a copy of it: the original may be linked elsewhere."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_a_deb_and_a_conda_package_are_named(cache: Path) -> None:
    locked = lock.read(ROOT / "images/hello.lock")
    assert locked.debian is not None
    deb = locked.debian.packages[17]
    package = locked.conda.environments["base"].packages[3]
    for sha256, name in ((deb.sha256, deb.filename), (package.sha256, package.filename)):
        blob = cache / "blobs" / sha256[:2] / sha256
        flip(blob)
        done = cli("fetch", "--offline", "images/hello.yaml", env={"CONDA_APPLIANCE_CACHE": str(cache)})
        assert done.returncode == 3, done.stderr
        assert name in done.stderr
        assert sha256 in done.stderr
        # Set aside, so the next run with a network brings it anew; without one it is said to be missing.
        assert not blob.exists()
        done = cli("fetch", "images/hello.yaml", env={"CONDA_APPLIANCE_CACHE": str(cache)})
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("what", "said"), [("payload/*/payload.iso", "environment.tar"), ("base/*/disk.qcow2", "base disk")]
)
def test_the_payload_disc_and_the_base_disk_are_named(
    cache: Path, tmp_path: Path, what: str, said: str
) -> None:
    for path in cache.glob(what):
        flip(path)
    done = cli(
        "build",
        "--offline",
        "--force",
        "images/hello.yaml",
        "--out",
        tmp_path / "out",
        env={"CONDA_APPLIANCE_CACHE": str(cache)},
    )
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert "Build with packer" not in done.stderr

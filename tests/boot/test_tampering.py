"""A flipped byte in anything that a build takes from its cache is caught by name, before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.boot.conftest import ROOT, cli, link_downloads, link_layers

from conda_appliance import layers, lock, resources


@pytest.fixture
def cache() -> Iterator[Path]:
    """A copy of the cache that this session built from, to break things in: downloads are hard links until then."""
    copy = resources.cache_root().parent / f"conda-appliance-test-{os.getpid()}"
    link_downloads(copy)
    yield copy
    resources.remove(copy)


def flip(path: Path) -> None:
    """Change one byte in the middle of a file, in a copy of it: the original may be linked elsewhere."""
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
    copy = path.with_name(f"{path.name}.flipped")
    layers.copy(path, copy)
    with copy.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes([byte ^ 1]))
    copy.replace(path)


def test_a_deb_and_a_conda_package_are_named(hello: Path, cache: Path) -> None:
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
    ("what", "said"),
    [
        ("payload/*/payload.iso", "/environment.tar on the disc"),
        ("base/*/disk.qcow2", "disk.qcow2"),
        ("environment/*/tree/opt/conda/conda-meta/history", "changed: opt/conda/conda-meta/history"),
    ],
)
def test_what_packer_is_given_is_named(
    hello: Path, cache: Path, tmp_path: Path, what: str, said: str
) -> None:
    refused("packer", cache, tmp_path, what, said)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("environment/*/tree/opt/conda/conda-meta/history", "changed: opt/conda/conda-meta/history"),
        ("system/*/tree/usr/bin/sudo", "changed: usr/bin/sudo"),
        (
            "provisioned/*/tree/etc/systemd/system/hello.service",
            "changed: etc/systemd/system/hello.service",
        ),
    ],
)
def test_the_layers_that_a_disk_is_written_from_are_named(
    hello_rootfs: Path, cache: Path, tmp_path: Path, what: str, said: str
) -> None:
    refused("rootfs", cache, tmp_path, what, said)


def refused(builder: str, cache: Path, tmp_path: Path, what: str, said: str) -> None:
    """A build from a cache with a flipped byte in ``what`` ends before it is used, and ``said`` says where."""
    link_layers(cache)
    flipped = list((cache / "layers").glob(what))
    assert flipped
    for path in flipped:
        flip(path)
    done = cli(
        *("build", "--offline", "--force", "--no-check", "--builder", builder),
        "images/hello.yaml",
        "--out",
        tmp_path / "out",
        env={"CONDA_APPLIANCE_CACHE": str(cache)},
    )
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert "set aside" in done.stderr
    assert "Build with packer" not in done.stderr
    assert "Export" not in done.stderr

"""Runs a container image as its users do, but without cgroups and with the host's network: tests run anywhere."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conda_appliance import process


@dataclass(frozen=True, kw_only=True)
class Container:
    """A running container: its state in ``work``, what it says in ``log``."""

    work: Path
    log: Path

    def run(self, *words: str) -> process.Completed:
        """Run a program in it."""
        return process.run(["runc", "--root", self.work / "state", "exec", "test", *words], check=False)


def unpacked(archive: str, work: Path) -> Path:
    """The bundle that umoci makes of an image, which skopeo reads at ``archive`` (such as oci-archive:FILE)."""
    process.run(["skopeo", "--insecure-policy", "copy", "-q", archive, f"oci:{work}/layout:test"])
    process.run(["umoci", "unpack", "--image", f"{work}/layout:test", work / "bundle"])
    return work / "bundle"


@contextmanager
def running(bundle: Path, work: Path) -> Iterator[Container]:
    """The image's entry point runs while the block does, as the image's user."""
    path = bundle / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    linux = config["linux"]
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] not in ("network", "cgroup")]
    linux.pop("resources", None)
    skipped = ("/sys/fs/cgroup", "/etc/resolv.conf")
    config["mounts"] = [one for one in config["mounts"] if one["destination"] not in skipped]
    path.write_text(json.dumps(config))
    log = work / "container.log"
    with process.background(["runc", "--root", work / "state", "run", "-b", bundle, "test"], log=log):
        try:
            yield Container(work=work, log=log)
        finally:
            process.run(["runc", "--root", work / "state", "kill", "test", "KILL"], check=False)
            process.run(["runc", "--root", work / "state", "delete", "--force", "test"], check=False)


def answer(url: str, container: Container, *, seconds: float = 120) -> bytes:
    """What the service says, as soon as it does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                said: bytes = response.read()
                return said
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < deadline, container.log.read_text()
            time.sleep(0.2)

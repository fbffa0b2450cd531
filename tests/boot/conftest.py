"""Boot tests use the program as its users do: through the command line, with the user's own cache."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.boot.forms_seen import Seen

from conda_appliance import resources, runs

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.boot)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--forms-table", metavar="FILE", help="write what this run saw of each form, as a page")


@pytest.fixture(scope="session")
def seen(request: pytest.FixtureRequest) -> Iterator[Seen]:
    """What this session sees of each form."""
    found = Seen(wanted=bool(request.config.getoption("--forms-table")))
    yield found
    if to := request.config.getoption("--forms-table"):
        Path(to).write_text(found.page(), encoding="utf-8")


def cli(
    *words: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT, umask: int = -1
) -> subprocess.CompletedProcess[str]:
    """Run `conda-appliance` to its end, in the checkout's top folder unless ``cwd`` is another."""
    return subprocess.run(
        [sys.executable, "-m", "conda_appliance", *map(str, words)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )


def start(*words: str | Path, log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start `conda-appliance` and go on; what it says goes to ``log``."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "conda_appliance", *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )


def wait_until(condition: Callable[[], bool], seconds: float, what: str, *, log: Path | None = None) -> None:
    """Wait for ``condition``; fail after ``seconds`` saying ``what`` never came, and what ``log`` says."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            said = "" if log is None else f"; the run said:\n{log.read_text()}"
            pytest.fail(f"not within {seconds:.0f} s: {what}{said}")
        time.sleep(0.1)


def programs_of(pid: int) -> list[str]:
    """The command lines of all programs that the run ``pid`` started and that still live."""
    found = []
    for child, owner in runs.marked().items():
        if owner.startswith(f"{pid}:"):
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words != [b""]:
                found.append(b" ".join(words).decode(errors="replace"))
    return found


def link_downloads(cache: Path, *names: str) -> None:
    """Give a new cache what the one in use has downloaded and compiled, or ``names`` of it, by hard links.

    Another row of tests may be working there: what is not finished is left out, here and in `link_layers`.
    """
    used = resources.cache_root()
    unfinished = shutil.ignore_patterns("*.part", "*.partial", "*.partial.lock")
    for name in names or ("blobs", "channel"):
        shutil.copytree(used / name, cache / name, copy_function=os.link, symlinks=True, ignore=unfinished)


def link_layers(cache: Path, kinds: str = "*") -> None:
    """The same for its layers of these kinds (a pattern), with owners and modes as they are.

    Those without a digest stay where they are: of a second name they would be made anew, for all who use the cache.
    """
    for layer in sorted((resources.cache_root() / "layers").glob(f"{kinds}/*/layer.json")):
        kind, key = layer.parts[-3:-1]
        if not re.fullmatch("[0-9a-f]+", key) or not json.loads(layer.read_text())["sha256"]:
            continue
        to = cache / "layers" / kind / key
        to.parent.mkdir(parents=True, exist_ok=True)
        for last in (False, False, True):  # its record may be replaced meanwhile: it is being used
            if not subprocess.run(["cp", "-al", layer.parent, to], check=last).returncode:
                break
            resources.remove(to)


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's results land."""
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="session")
def hello(out: Path) -> Path:
    """images/hello.yaml, locked, built by Packer, booted and checked: the folder of its result."""
    done = cli("build", "--lock", "--builder", "packer", "images/hello.yaml", "--out", out)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def out_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's results of the rootfs builder land."""
    return tmp_path_factory.mktemp("out-rootfs")


@pytest.fixture(scope="session")
def hello_rootfs(out_rootfs: Path, seen: Seen) -> Path:
    """The same definition and lock, built without booting, then booted and checked: the folder of its result."""
    done = cli("build", "--lock", "--builder", "rootfs", "images/hello.yaml", "--out", out_rootfs)
    assert done.returncode == 0, done.stderr
    seen.ran("qcow2", "QEMU: every build boots it; the image's checks")
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def fresh_cache(hello_rootfs: Path) -> Iterator[Path]:
    """A cache with this session's downloads, by hard links, and nothing that was made of them."""
    fresh = resources.cache_root().parent / f"conda-appliance-fresh-{os.getpid()}"
    link_downloads(fresh, "blobs")
    yield fresh
    resources.remove(fresh)

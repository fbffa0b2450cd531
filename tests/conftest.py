"""Several tests at once (`make test`): a file at a time in each row, and in one row all that share built machines."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: Boot tests that make their own machines; the others start from two that are built once in a run.
ALONE = (
    "test_aarch64.py",
    "test_boot_discs.py",
    "test_cloud_image.py",
    "test_distributions.py",
    "test_programs.py",
)

#: Tools tests that share a Debian, which takes a minute to make.
DEBIAN = (
    "test_basedisk.py",
    "test_bill.py",
    "test_bootable.py",
    "test_disk.py",
    "test_ospackages.py",
    "test_post_link.py",
    "test_rootfs.py",
)


class Folders:
    """Makes the folders of a module's fixtures, and remembers them."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self.made: list[Path] = []

    def mktemp(self, name: str) -> Path:
        """A new, empty folder whose name begins with ``name``."""
        self.made.append(self._factory.mktemp(name))
        return self.made[-1]


@pytest.fixture(scope="module")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    """Folders that go with the module whose tests passed, as a test's own do: all of a run's are 20 GB and more."""
    failed = request.session.testsfailed
    folders = Folders(tmp_path_factory)
    yield folders
    if request.session.testsfailed == failed:
        for folder in folders.made:
            shutil.rmtree(folder, ignore_errors=True)


def _row(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    folder, _, name = file.rpartition("/")
    if folder == "tests/boot" and name not in ALONE:
        return "boot"
    return "debian" if folder == "tests/tools" and name in DEBIAN else file


#: The rows that come first. One compiles the starter channel, for minutes and partly on one processor: the other begins
#: with what needs no channel, and has it for the longest row.
FIRST = ("tests/boot/test_aarch64.py", "debian", "boot")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first rows, then what boots, then what runs programs."""
    folders = ("boot", "tools", "unit")

    def place(item: pytest.Item) -> int:
        row, folder = _row(item.nodeid), item.path.parent.name
        if row in FIRST:
            return FIRST.index(row)
        return len(FIRST) + (folders.index(folder) if folder in folders else len(folders))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What shares machines, or anything else that is long in the making, goes to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Rows(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _row(nodeid)

    return Rows(config, log)

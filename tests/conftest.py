"""Several tests at once (`make test`): machines boot one after the other, and beside them a file of other tests."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest row first."""
    items.sort(key=lambda item: item.path.parent.name != "boot")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What shares machines, or anything else that is long in the making, goes to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Rows(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "boot" if nodeid.startswith("tests/boot/") else nodeid.partition("::")[0]

    return Rows(config, log)

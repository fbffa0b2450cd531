"""Several tests at once (`make test`): machines boot one after the other, and beside them a file of other tests."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares machines or anything else that is long in the making goes to one worker; the longest row first."""
    for item in items:
        boots = item.path.parent.name == "boot"
        item.add_marker(
            pytest.mark.xdist_group("boot" if boots else f"{item.path.parent.name}/{item.path.name}")
        )
    items.sort(key=lambda item: item.path.parent.name != "boot")

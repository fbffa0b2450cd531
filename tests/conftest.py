"""Several tests at once (`make test`): machines boot one after the other, and beside them a file of other tests."""

from __future__ import annotations

import pytest


def pytest_itemcollected(item: pytest.Item) -> None:
    """What shares machines, or anything else that is long in the making, goes to one worker."""
    folder, name = item.path.parent.name, item.path.name
    item.add_marker(pytest.mark.xdist_group("boot" if folder == "boot" else f"{folder}/{name}"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest row first."""
    items.sort(key=lambda item: item.path.parent.name != "boot")

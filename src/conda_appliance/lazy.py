"""Large libraries that are loaded when they are first used, and what of ours is there to call them.

Those for the network take longer than a small build.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """Looks as the library does. The import itself is Python's own, which several threads may ask for at once.

    ``importlib.util.LazyLoader`` is not made for that in older Pythons (python/cpython#114763), and downloads are
    threads.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def module(name: str) -> ModuleType:
    """The module ``name``, loaded by the first look into it. That raises ModuleNotFoundError if it is missing."""
    return _Lazy(name)

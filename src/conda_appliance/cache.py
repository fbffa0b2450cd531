"""The cache of downloads and layers, with what runs that were killed left in it cleared away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conda_appliance import layers, log, resources, runs, sources


def layer_store(*, explain: bool = False) -> layers.Store:
    """The layers of the cache (`layers.Store`), after what dead runs left has been cleared away."""
    with opened() as blobs:
        return layers.Store(blobs.root / layers.FOLDER, explain=explain)


@contextmanager
def opened() -> Iterator[sources.Cache]:
    """The cache, after what dead runs left has been cleared away."""
    ended = runs.reap()
    if ended:
        log.warn(f"ended {len(ended)} programs that an earlier, killed run left")
    root = resources.cache_root()
    for path in sweep(root):
        log.warn(f"removed what an earlier, killed run left: {path}")
    yield sources.Cache(root)


def sweep(root: Path) -> list[Path]:
    """Remove what dead runs left in the cache: it has folders of folders, and its layers one level more."""
    folders = (root, *sorted(root.glob("*/")), *sorted((root / layers.FOLDER).glob("*/")))
    return [path for folder in folders for path in resources.sweep(folder)]

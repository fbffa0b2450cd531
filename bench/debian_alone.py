#!/usr/bin/env python3
"""Makes the Debian of a definition's machine and nothing else: what mmdebstrap and dpkg take, whatever follows.

    python bench/debian_alone.py DEFINITION CACHE FOLDER

The lock stands beside the definition, the packages are in the cache, and the folder is new.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from conda_appliance import bootstrap, definition, lock, runs, sources


def main() -> int:
    """Make it."""
    os.environ[runs.MARK] = runs.mark()
    path, cache, folder = (Path(word).absolute() for word in sys.argv[1:])
    image, locked = definition.load_image(path), lock.read(lock.path_for(path))
    assert locked.debian is not None
    blobs = sources.Cache(cache)
    files = {one.sha256: blobs.blob(one.sha256) for one in locked.debian.packages}
    (folder / "work").mkdir(parents=True)
    bootstrap.root_tree(
        locked.debian,
        image.base,
        files,
        folder / "tree",
        identity=bootstrap.identity_of(locked.debian),
        work=folder / "work",
        progress=print,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A Debian archive of the bench's own: every package that ours or a peer installs, downloaded once and verified.

"Cold" in the benchmark means that packages are on this machine already. Each peer would cache them its own way; all of
them ask this archive instead, over HTTP from the loopback address, so that none waits for a network.
"""

from __future__ import annotations

import contextlib
import http.server
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from conda_appliance import apt, process, resources, sources

SUITE = "trixie"
#: The same in every run: peers remember package lists by their URL.
PORT = 43117

_RELEASE = {
    "Origin": "bench",
    "Label": "bench",
    "Suite": SUITE,
    "Codename": SUITE,
    "Architectures": "amd64",
    "Components": "main",
}


def make(packages: Sequence[str], *, work: Path, cache: sources.Cache) -> Path:
    """The archive's folder below ``work``: what each set of ``packages`` needs, and all that Debian calls required.

    Made once for the same sets; remove the folder to have it made anew from today's Debian. Raises what
    `apt.Apt` and `sources.fetch` raise.
    """
    final = work / "archive"
    asked = "".join(f"{line}\n" for line in packages)
    if (final / "asked").is_file() and (final / "asked").read_text() == asked:
        return final
    with resources.work_folder(work, "archive") as folder:
        index = apt.Apt(SUITE, state=folder / "apt")
        index.update()
        wanted = [
            # The archive's own name: apt's has the epoch, %-escaped, which a web server would undo.
            sources.Download(
                name=file.url.rpartition("/")[2], url=file.url, sha256=file.sha256, size=file.size
            )
            for file in _resolve(index, packages)
        ]
        sources.fetch(wanted, cache, offline=False, progress=print)
        tree = folder / "tree"
        pool = tree / "pool/main"
        pool.mkdir(parents=True)
        for one in wanted:
            shutil.copyfile(cache.verified(one.sha256, one.name), pool / one.name)
        _index(tree)
        (tree / "asked").write_text(asked)
        resources.remove(final)
        tree.rename(final)
    return final


def _resolve(index: apt.Apt, packages: Iterable[str]) -> list[apt.RemoteFile]:
    """Everything for one machine at a time: what peers install may not go together on one."""
    found: dict[str, apt.RemoteFile] = {}
    for group in packages:
        for file in index.resolve(["?priority(required)", *group.split()]):
            found[file.sha256] = file
    return list(found.values())


def _index(tree: Path) -> None:
    """Write ``dists/``: Packages and Release, unsigned (its users are told to trust it)."""
    folder = tree / f"dists/{SUITE}"
    binary = folder / "main/binary-amd64"
    binary.mkdir(parents=True)
    listed = process.run(["apt-ftparchive", "packages", "pool/main"], cwd=tree).stdout
    (binary / "Packages").write_text(listed, encoding="utf-8")
    process.run(["xz", "--keep", binary / "Packages"])
    options = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in _RELEASE.items()]
    release = process.run(["apt-ftparchive", *options, "release", folder]).stdout
    (folder / "Release").write_text(release, encoding="utf-8")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing; HTTP/1.1, so that apt keeps its connection."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Not a word for each file."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The archive's URL while the block runs. Its server's CPU is the harness's and no peer's."""
    http.server.ThreadingHTTPServer.allow_reuse_address = True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{PORT}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

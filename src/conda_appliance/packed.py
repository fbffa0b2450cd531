"""Trees of files → one read-only file system in a file, squashfs or erofs, the same bytes each time."""

from __future__ import annotations

import os
import re
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from conda_appliance import namespace, process

#: What can be written; a kernel mounts it by this name.
Form = Literal["squashfs", "erofs"]
#: How a squashfs is compressed: lz4 costs a processor least, zstd leaves a quarter less to be read
#: (docs/explanation/discs.md). Where it shall not be, `squashfs` makes it.
Compression = Literal["lz4", "zstd"]

#: Words of mksquashfs. Level 15, its default for zstd, takes twenty times as long for an eighth less.
_SQUASHFS = {
    "lz4": ("-comp", "lz4"),
    "zstd": ("-comp", "zstd", "-Xcompression-level", "3"),
}
#: Words of mkfs.erofs 1.5, which knows no zstd.
_EROFS = ("-z", "lz4hc,9", "-C", "65536")

#: From this all identities of erofs files follow: their prefix is the name in it.
_NAMES = uuid.UUID("0d6f1f50-6d0c-5b0c-9a3e-8a5b0f9f2c11")


def tools(form: Form) -> tuple[str, ...]:
    """The programs of the host that write it."""
    return (*namespace.tools(), "mksquashfs" if form == "squashfs" else "mkfs.erofs")


def versions(form: Form) -> dict[str, str]:
    """The host's program that writes it, by its version: another one may write other bytes."""
    program, word = ("mksquashfs", "-version") if form == "squashfs" else ("mkfs.erofs", "--version")
    said = process.run([program, word], check=False)
    found = re.search(rf"{program}\D+\d\S*", said.stdout + said.stderr)
    return {program: found[0] if found else ""}


def write(
    to: Path,
    trees: Sequence[Path],
    prefix: str,
    *,
    form: Form,
    compression: Compression = "zstd",
    epoch: int,
    work: Path,
) -> None:
    """Write the folder ``prefix`` of ``trees``, laid over each other (the uppermost first), to the file ``to``.

    All belongs to root; ``epoch`` (seconds since 1970) is every time stamp. ``compression`` is a squashfs'.
    """
    process.require(*tools(form))
    mounted, variables = namespace.script(work, trees)
    folder, target = f"root{prefix}", os.fspath(to.absolute())
    if form == "squashfs":
        command = ["mksquashfs", folder, target, "-noappend", *_SQUASHFS[compression]]
        command += ["-all-root", "-no-progress", "-quiet"]
    else:
        identity = str(uuid.uuid5(_NAMES, prefix))
        command = ["mkfs.erofs", *_EROFS, "-T", str(epoch), "-U", identity, "--all-root", target, folder]
    process.run(
        namespace.isolated(mounted, command),
        env={**variables, "SOURCE_DATE_EPOCH": str(epoch)},
        orphaned=signal.SIGKILL,
    )

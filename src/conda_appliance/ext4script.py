"""What is added to an ext4 file system → the commands that debugfs(8) adds it with.

debugfs writes as ``mke2fs -d`` does, into a file system that is there: owner 0:0, the file's own mode, and as the time
what E2FSPROGS_FAKE_TIME says. Source of its words: e2fsprogs' debugfs/debug_cmds.ct and lib/ss/parse.c (a double quote
is doubled, nothing else is special).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from conda_appliance.overlay import Added, Additions, CannotAdd

#: It reads lines of this many bytes (BUFSIZ of glibc).
_LINE = 8192


def text(trees: Sequence[Path], found: Additions, *, epoch: int, work: Path) -> str:
    """The commands that add ``found``; ``work`` is a folder that is made for links to ``trees``.

    ``epoch`` (seconds since 1970) is the time that what is added gets by itself. Raises CannotAdd for a name that no
    command can say.
    """
    work.mkdir(parents=True)
    for number, tree in enumerate(trees):
        (work / str(number)).symlink_to(tree.resolve())
    lines = [f"lcd {_quoted(os.fspath(work.absolute()))}"]
    lines += [f"{'rmdir' if one.folder else 'rm'} {_quoted(f'/{one.path}')}" for one in found.removed]
    at = ""
    for one in found.paths:
        folder, _, name = one.path.rpartition("/")
        if f"/{folder}" != at:
            at = f"/{folder}"
            lines.append(f"cd {_quoted(at)}")
        lines += _commands(one, name, trees[one.tree], found, epoch)
    return "".join(f"{line}\n" for line in lines)


def _commands(one: Added, name: str, tree: Path, found: Additions, epoch: int) -> Iterator[str]:
    about, place = one.about, _quoted(f"/{one.path}")
    if one.twin:
        yield f"ln {_quoted(f'/{one.twin}')} {_quoted(name)}"
        return
    mode = about.st_mode
    if stat.S_ISLNK(mode):
        target = os.readlink(tree / one.path)  # noqa: PTH115 (pathlib would tidy ./ and // away)
        yield f"symlink {_quoted(name)} {_quoted(target)}"
        made = {"mode": mode, "uid": 0, "gid": 0, "mtime": epoch, "links_count": 1}
    elif stat.S_ISDIR(mode):
        if one.there is None:
            yield f"mkdir {_quoted(name)}"
            made = {"mode": stat.S_IFDIR | 0o755, "uid": 0, "gid": 0, "mtime": epoch}
        else:
            made = _facts(one.there)
    else:
        yield f"write {_quoted(f'{one.tree}/{one.path}')} {_quoted(name)}"
        made = {"mode": mode, "uid": 0, "gid": 0, "mtime": epoch, "links_count": 1}
    wanted = _facts(about)
    if "links_count" in made:
        wanted["links_count"] = found.names.get((one.tree, about.st_ino), 1)
    for field, value in wanted.items():
        if made[field] != value:
            yield f"sif {place} {field} {_number(field, value)}"


def _facts(about: os.stat_result) -> dict[str, int]:
    return {
        "mode": about.st_mode,
        "uid": about.st_uid,
        "gid": about.st_gid,
        "mtime": int(about.st_mtime),
    }


def _number(field: str, value: int) -> str:
    return f"0{value:o}" if field == "mode" else f"@{value}" if field == "mtime" else str(value)


def _quoted(word: str) -> str:
    doubled = word.replace('"', '""')
    if "\n" in word or len(os.fsencode(doubled)) > _LINE // 2 - 64:
        raise CannotAdd(word)
    return f'"{doubled}"'

"""Records what post-link scripts do to a conda environment, for a build and, on a machine, on its first boot.

This one file is copied to the machine too, where ``post-link.sh`` calls it by the system's Python (3.9 or newer) before
and after each script::

    python3 -I -B post_link.py begin PREFIX ROOT_PREFIX PACKAGE BEFORE    # prints the script's variables, NAME=VALUE
    python3 -I -B post_link.py end PREFIX PACKAGE BEFORE INVENTORY

``BEFORE`` is a file that keeps what was there; one that is there already, from a try that failed, stays. ``INVENTORY``
is a list as ``appliance-verify`` reads it (`inventory`), of what the scripts made different from what was built: to
its lines ``PATH//…`` come ``gone PATH``, and later lines go before earlier ones. It uses the standard library alone and
imports nothing else of this project.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: What a script tells the user, by conda's convention.
MESSAGES = ".messages.txt"


def variables(record: Mapping[str, Any], prefix: str, base: str) -> dict[str, str]:
    """The environment that conda promises to a script; ``base`` is the prefix of the environment 'base'."""
    return {
        "PREFIX": prefix,
        "ROOT_PREFIX": base,
        "PKG_NAME": str(record["name"]),
        "PKG_VERSION": str(record["version"]),
        "PKG_BUILDNUM": str(record.get("build_number", 0)),
        "PATH": f"{prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",  # noqa: S108 (a file system of the script's own)
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def record(into: Path, own: str, written: set[str], gone: set[str]) -> None:
    """Write to the records in ``into/conda-meta`` what a script did to the environment ``into``.

    ``own`` is the record of the script's package, which gets the new files of ``written``; changed files, and those in
    ``gone``, belong to their owners.
    """
    records: dict[str, dict[str, Any]] = {}
    owners: dict[str, str] = {}
    for path in sorted((into / "conda-meta").glob("*.json")):
        records[path.name] = json.loads(path.read_text(encoding="utf-8"))
        owners.update({entry["_path"]: path.name for entry in records[path.name]["paths_data"]["paths"]})
    touched = {own}
    for name in sorted(written):
        if name.startswith("conda-meta/"):
            continue  # the environment's check will say so
        owner = owners.get(name, own)
        touched.add(owner)
        paths = records[owner]["paths_data"]["paths"]
        entry = next((one for one in paths if one["_path"] == name), None)
        if entry is None:
            entry = {"_path": name}
            paths.append(entry)
        _describe(entry, into / name)
    for name in gone & set(owners):
        touched.add(owners[name])
        data = records[owners[name]]["paths_data"]
        data["paths"] = [one for one in data["paths"] if one["_path"] != name]
    for name in touched:
        found = records[name]
        found["paths_data"]["paths"].sort(key=lambda one: one["_path"])
        found["files"] = [one["_path"] for one in found["paths_data"]["paths"]]
        _replace(into / "conda-meta" / name, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def _describe(entry: dict[str, Any], path: Path) -> None:
    if path.is_symlink():
        text = os.fsencode(os.readlink(path))  # noqa: PTH115 (pathlib would tidy ./ and // away)
        kind, digest, size = "softlink", hashlib.sha256(text).hexdigest(), len(text)
    else:
        data = path.read_bytes()
        kind, digest, size = "hardlink", hashlib.sha256(data).hexdigest(), len(data)
    if entry.get("path_type") in (None, "softlink") or kind == "softlink":
        entry["path_type"] = kind
    entry.setdefault("sha256", digest)
    entry["sha256_in_prefix"] = digest
    entry["size_in_bytes"] = size


def _replace(path: Path, text: str) -> None:
    """In one step: a machine that loses its power has the old record or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _seen(folder: Path) -> dict[str, list[int]]:
    """Everything below ``folder`` and what tells that it changed; a folder's path ends in a slash.

    Other environments are left out.
    """
    found = {}
    folders = [("", os.fspath(folder))]
    while folders:
        at, where = folders.pop()
        for entry in os.scandir(where):
            path = at + entry.name
            about = entry.stat(follow_symlinks=False)
            if not entry.is_dir(follow_symlinks=False):
                found[path] = [about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]
            elif at != "envs/" or not Path(entry.path, "conda-meta").is_dir():
                found[f"{path}/"] = [about.st_mode, about.st_uid, about.st_gid]
                folders.append((f"{path}/", entry.path))
    return found


def _changes(was: Mapping[str, list[int]], prefix: Path) -> tuple[set[str], set[str]]:
    """What was written below ``prefix`` since ``was`` was seen, and what is gone."""
    now = _seen(prefix)
    return {path for path in now if was.get(path) != now[path]}, set(was) - set(now)


def _note(inventory: Path, prefix: Path, written: set[str], gone: set[str]) -> None:
    """Add to the list ``inventory`` how what a script wrote is now, and what is gone."""
    lines = inventory.read_text(encoding="utf-8") if inventory.exists() else ""
    for path in sorted(gone):
        lines += f"gone {_text(f'{prefix}/{path}'.rstrip('/'))}\n"
    for path in sorted(written):
        place = prefix / path
        about = place.lstat()
        owner = f"{about.st_uid}:{about.st_gid}"
        if stat.S_ISLNK(about.st_mode):
            state = f"link {owner} {_text(os.readlink(place))}"  # noqa: PTH115 (pathlib would tidy ./ and // away)
        elif stat.S_ISDIR(about.st_mode):
            state = f"folder {stat.S_IMODE(about.st_mode):o} {owner}"
        else:
            digest = hashlib.sha256(place.read_bytes()).hexdigest()
            state = f"file {stat.S_IMODE(about.st_mode):o} {owner} {digest}"
        lines += f"{_text(str(place))}//{state}\n"
    _replace(inventory, lines)


def _text(path: str) -> str:
    """A path or target as it stands in a line (`inventory`)."""
    return path.replace("\n", "\x01").replace("\t", "\x02")


def _record_of(prefix: Path, name: str) -> tuple[str, dict[str, Any]]:
    """A package's record: its file's name, and what it says. Raises LookupError for a package that is not there."""
    for path in (prefix / "conda-meta").glob(f"{name}-*.json"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["name"] == name:
            return path.name, value
    raise LookupError(f"{prefix} has no record of {name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Begin or end what the top of this file says."""
    task, prefix, *words = sys.argv[1:] if arguments is None else arguments
    if task == "begin":
        base, name, before = words
        if not Path(before).exists():
            _replace(Path(before), json.dumps(_seen(Path(prefix))))
        for key, value in variables(_record_of(Path(prefix), name)[1], prefix, base).items():
            print(f"{key}={value}")
        return
    name, before, inventory = words
    was = json.loads(Path(before).read_text(encoding="utf-8"))
    written, gone = (
        {path for path in paths if not path.endswith("/")} for paths in _changes(was, Path(prefix))
    )
    record(Path(prefix), _record_of(Path(prefix), name)[0], written, gone)
    # What that wrote is different from what was built, too.
    _note(Path(inventory), Path(prefix), *_changes(was, Path(prefix)))


if __name__ == "__main__":
    main()

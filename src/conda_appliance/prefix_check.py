"""Checks a conda environment on disk, file by file, against its own records in ``conda-meta/``.

This one file can be copied to a machine and run there by the environment's own Python (3.9 or newer)::

    python -I -B prefix_check.py /opt/conda [--json] [--allow .condarc]

It exits with 0 when every file is there, is unchanged and is recorded, and with 1 when not. It uses the
standard library alone and imports nothing else of this project.
"""

from __future__ import annotations

import argparse
import base64
import csv
import fnmatch
import hashlib
import json
import os
import posixpath
import stat
import sys
from collections.abc import Collection, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

#: Where an environment that an installer laid down lists its files of no package: ``SHA-256  PATH``, as sha256sum(1).
INSTALLED = "etc/conda-appliance/installer.sha256"

#: What conda itself keeps in an environment beside its records, what says which parts were left out of it, and what
#: names the build where the environment has a partition of its own.
_OWN = frozenset(
    {
        "conda-meta/history",
        "conda-meta/slim",
        INSTALLED,
        "etc/conda-appliance/appliance.json",
        "etc/conda-appliance/appliance.lock",
        "etc/conda-appliance/inventory",
        "etc/conda-appliance/sbom.cdx.json",
    }
)


def check(
    prefix: Path,
    allow: Sequence[str] = (),
    unread: Collection[str] = (),
    sums: dict[tuple[int, int], str] | None = None,
    *,
    there: Set[str] | None = None,
    named: Set[str] | None = None,
) -> list[str]:
    """What is wrong with the environment at ``prefix``: a line each, sorted; an empty list means nothing.

    A line is ``missing: PATH (PACKAGE)``, ``changed: PATH (PACKAGE): …`` or ``extra: PATH``. ``allow`` are
    patterns (as the shell's, ``*`` matches ``/`` too) of files that may be there though no package brought
    them. Of the packages in ``unread`` the files must be there, and are not read; nor are their records where it is
    known which files those are (``named``), and no line then says whose one is. Environments in ``envs/`` are checked
    by their own path. ``sums`` gets the SHA-256 of each file of a package, by its inode and its change time in
    nanoseconds. ``there`` are all files and links by path, where that is known.
    """
    findings = []
    recorded = set(_OWN)
    there = set(_files(prefix)) if there is None else there
    if named is not None:
        files = {_package(path): f"conda-meta/{path.name}" for path in record_files(prefix)}
        recorded |= named | {path for name, path in files.items() if name in unread}
        findings += [f"missing: {path}" for path in named - there]
        findings += [f"missing: conda-meta/{name}-*.json" for name in unread if name not in files]
    for record in records(prefix, without=unread if named is not None else ()):
        recorded.add("conda-meta/" + record["_file"])
        for entry in record["paths_data"]["paths"]:
            recorded.add(entry["_path"])
            if record["name"] in unread:
                known = entry["_path"] in there or os.path.lexists(prefix / entry["_path"])
                problem = "" if known else "missing"
            else:
                problem = _compare(f"{prefix}/{entry['_path']}", entry, sums)
            if problem:
                kind, _, detail = problem.partition(": ")
                findings.append(
                    f"{kind}: {entry['_path']} ({record['name']}){': ' + detail if detail else ''}"
                )
    for name, entries in wheels(prefix, recorded):
        for path, digest in entries.items():
            recorded.add(path)
            if problem := _compare_recorded(prefix / path, digest):
                kind, _, detail = problem.partition(": ")
                findings.append(f"{kind}: {path} ({name}){': ' + detail if detail else ''}")
    for path, expected in _installed(prefix):
        recorded.add(path)
        if not os.path.lexists(prefix / path):
            findings.append(f"missing: {path} (the installer)")
        elif (found := digest_of(prefix / path)) != expected:
            findings.append(f"changed: {path} (the installer): expected SHA-256 {expected}, found {found}")
    if recorded <= _OWN:
        findings.append(f"missing: conda-meta/*.json: {prefix} is not a conda environment")
    for path in there - recorded:
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in allow):
            findings.append(f"extra: {path}")
    return sorted(findings)


def records(prefix: Path, *, without: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """The environment's package records, each with its file's name as ``_file``; those of some packages left out."""
    for path in record_files(prefix):
        if not without or _package(path) not in without:
            record = json.loads(path.read_text(encoding="utf-8"))
            record["_file"] = path.name
            yield record


def record_files(prefix: Path) -> list[Path]:
    """The files of `records`, ``NAME-VERSION-BUILD.json``."""
    return sorted((prefix / "conda-meta").glob("*.json"))


def _package(record: Path) -> str:
    return record.name.removesuffix(".json").rsplit("-", 2)[0]


def wheels(prefix: Path, recorded: Collection[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """The wheels in the environment: the name, and its files with their SHA-256 (or nothing, where RECORD has none).

    Those that conda packages brought, whose RECORD is among the files ``recorded``, are not. Source of the format:
    https://packaging.python.org/en/latest/specifications/recording-installed-packages/
    """
    for site in sorted(prefix.glob("lib/python3*/site-packages")):
        inside = site.relative_to(prefix).as_posix()
        for record in sorted(site.glob("*.dist-info/RECORD")):
            if record.relative_to(prefix).as_posix() in recorded:
                continue
            entries = {}
            with record.open(encoding="utf-8", newline="") as file:
                for row in csv.reader(file):
                    kind, _, value = row[1].partition("=")
                    digest = base64.urlsafe_b64decode(value + "==").hex() if kind == "sha256" else ""
                    entries[posixpath.normpath(f"{inside}/{row[0]}")] = digest
            yield record.parent.name.partition("-")[0], entries


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, or of the text that a link holds."""
    if path.is_symlink():
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()  # noqa: PTH115 (exactly)
    return _sha256(path) if path.is_file() else ""


def _installed(prefix: Path) -> Iterator[tuple[str, str]]:
    """The files of no package that an installer left, and their SHA-256."""
    if (prefix / INSTALLED).is_file():
        for line in (prefix / INSTALLED).read_text(encoding="utf-8").splitlines():
            sha256, _, path = line.partition("  ")
            yield path, sha256


def _compare_recorded(path: Path, digest: str) -> str:
    """What is wrong with one file of a wheel, or nothing."""
    if not os.path.lexists(path):
        return "missing"
    if path.is_symlink() or not path.is_file():
        return "changed: no longer a file"
    if digest and (found := _sha256(path)) != digest:
        return f"changed: expected SHA-256 {digest}, found {found}"
    return ""


def _compare(path: str, entry: dict[str, Any], sums: dict[tuple[int, int], str] | None) -> str:
    """What is wrong with one recorded path, or nothing; of every file, for which pathlib would double what it costs."""
    kind = entry.get("path_type", "hardlink")
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return "missing"
    if kind == "directory":
        return "" if os.path.isdir(path) else "changed: no longer a folder"  # noqa: PTH112
    if kind == "softlink":
        if not stat.S_ISLNK(mode):
            return "changed: no longer a symbolic link"
        # A link's digest is that of the text it holds; links to folders and to nothing have one too.
        found = hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()  # noqa: PTH115
    elif not stat.S_ISREG(mode):
        return "changed: no longer a file"
    else:
        found = _sha256(path, sums)
    expected = entry.get("sha256_in_prefix") or entry.get("sha256")
    if expected and found != expected:
        return f"changed: expected SHA-256 {expected}, found {found}"
    return ""


def _sha256(path: str | Path, sums: dict[tuple[int, int], str] | None = None) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        about = os.fstat(file.fileno())
        # Most files are small: a buffer as long as they are, and not one of a MiB for each.
        while block := file.read(min(about.st_size, 1 << 20) + 1):
            digest.update(block)
    if sums is not None:
        sums[about.st_ino, about.st_ctime_ns] = digest.hexdigest()
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[str]:
    """Every file and link below ``folder``, by path from it; other environments are left out."""
    folders = [("", os.fspath(folder))]
    while folders:
        at, where = folders.pop()
        for entry in os.scandir(where):
            path = at + entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield path
            elif at != "envs/" or not Path(entry.path, "conda-meta").is_dir():
                folders.append((f"{path}/", entry.path))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the prefix named on the command line; print findings, or all of it as JSON; 1 if there are any."""
    parser = argparse.ArgumentParser(description="Check a conda environment against its records.")
    parser.add_argument("prefix", type=Path, help="the environment's folder, such as /opt/conda")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--allow", action="append", default=[], metavar="PATTERN", help="files of no package")
    options = parser.parse_args(arguments)
    findings = check(options.prefix, options.allow)
    found = list(records(options.prefix))
    files = sum(len(record["paths_data"]["paths"]) for record in found)
    brought = {entry["_path"] for record in found for entry in record["paths_data"]["paths"]}
    installed = [entries for _, entries in wheels(options.prefix, brought)]
    files += sum(map(len, installed))
    if options.json:
        about = {
            "prefix": str(options.prefix),
            "packages": len(found) + len(installed),
            "files": files,
            "findings": findings,
        }
        print(json.dumps(about))
    else:
        count = f"{len(found) + len(installed)} packages, {files} files"
        print("\n".join(findings) or f"{options.prefix}: {count}, all as recorded")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

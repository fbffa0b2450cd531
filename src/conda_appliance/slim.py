"""Linked environments → the same without the parts that `slim` leaves out, and without a lie in their records.

conda's records (and the RECORD of wheels that were installed beside them) no longer name what was removed: then
`verify`, the check on the machine, conda itself and the bill of materials all say the same, and conda can update or
remove a package as ever. ``conda-meta/slim`` says what each part saved, on the machine too. (RECORD files that conda
packages bring stay as they came: they are files of the packages.)
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import posixpath
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from conda_appliance import (
    definition_slim,
    elf,
    importable,
    layers,
    namespace,
    prefix_check,
    process,
    resources,
    slim_rules,
    testsuites,
    trees,
)
from conda_appliance.definition_slim import Part
from conda_appliance.errors import BuildError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.platforms import DEFAULT, PLATFORMS, Platform
from conda_appliance.process import Starter

#: Where an environment says what was left out of it.
PLACE = "conda-meta/slim"


class Saving(BaseModel):
    """What one part saved: files that are gone, and bytes that all its files took more."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    files: int
    bytes: int


class Savings(BaseModel):
    """What was left out of one environment: ``before`` is its size in bytes, ``kept`` says why a part had to stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    before: int
    parts: dict[str, Saving]
    kept: dict[str, str] = Field(default_factory=dict)

    @property
    def saved(self) -> int:
        """All that was saved, in bytes."""
        return sum(one.bytes for one in self.parts.values())

    def text(self) -> str:
        """``41.2 MiB of 115.0 MiB: tests 20.1 MiB, headers 3.1 MiB``, the largest first."""
        parts = sorted(self.parts.items(), key=lambda one: -one[1].bytes)
        told = ", ".join(f"{name} {resources.size_text(one.bytes)}" for name, one in parts if one.bytes)
        kept = "".join(f"; {name} stay, because {why}" for name, why in sorted(self.kept.items()))
        head = f"{resources.size_text(self.saved)} of {resources.size_text(self.before)}"
        return f"{head}{': ' if told else ''}{told}{kept}"


def layer(
    linked: Layer,
    prefixes: Mapping[str, str],
    parts: Sequence[Part],
    *,
    store: Store,
    epoch: int,
    subject: str = "",
    platform: Platform = PLATFORMS[DEFAULT],
    starter: Callable[[], Starter] = Starter,
    progress: Callable[[str], None] = lambda _text: None,
) -> Layer:
    """The environments ``linked`` (their ``prefixes`` by name) without ``parts``: from the cache, or made now.

    What stays is shared with ``linked`` by hard links. ``epoch`` (seconds since 1970) is every time stamp. ``platform``
    is what they are for, and ``starter`` gives how their programs are started here. Raises
    BuildError when a module can no longer be imported that could be, ToolMissing without what that check needs.
    """
    decided: layers.Parts = {
        "environment": linked.key,
        "slim": ", ".join(parts),
        "code": layers.code(
            __file__,
            *(
                str(module.__file__)
                for module in (definition_slim, elf, importable, prefix_check, slim_rules, testsuites, trees)
            ),
        ),
        "tools": {"strip": _strip_version(platform)} if "debug-symbols" in parts else {},
    }

    def make(to: Path, work: Path) -> None:
        require(parts, platform)
        _share(linked.path, to)
        for name, prefix in sorted(prefixes.items(), key=lambda one: one[1]):
            progress(f"leaving {', '.join(parts)} out of {name}")
            before, after = linked.path / prefix.lstrip("/"), to / prefix.lstrip("/")
            _slim(after, parts, platform)
            progress(f"importing what {name} has")
            _require_imports(before, after, prefix, work / "confined", starter())
        trees.settle(to, epoch)

    return store.get("slim", decided, make, subject=subject, progress=progress, like=linked)


def require(parts: Sequence[Part], platform: Platform = PLATFORMS[DEFAULT]) -> None:
    """Raise ToolMissing unless this host has what leaving out ``parts`` needs."""
    namespace.require_root()
    process.require(
        "setpriv", *namespace.tools(), *([platform.tool("strip")] if "debug-symbols" in parts else [])
    )


def read(tree: Path, prefixes: Mapping[str, str]) -> dict[str, Savings]:
    """What was left out of the environments in ``tree``, by name; nothing of those that are whole."""
    found = {}
    for name, prefix in sorted(prefixes.items()):
        path = tree / prefix.lstrip("/") / PLACE
        if path.is_file():
            found[name] = Savings.model_validate_json(path.read_text("utf-8"))
    return found


def _share(folder: Path, to: Path) -> None:
    """Give all files in ``folder`` a second name in the new folder ``to``: none of them may be written to."""
    for path, about in trees.walk(folder):
        if stat.S_ISDIR(about.st_mode):
            (to / path).mkdir(parents=True)
        else:
            os.link(folder / path, to / path, follow_symlinks=False)


def _slim(prefix: Path, parts: Sequence[Part], platform: Platform) -> None:
    """Remove ``parts`` from the environment in the folder ``prefix``, and note what that saved."""
    plan = slim_rules.plan(prefix, parts)
    before = sum(about.st_size for path, about in _files(prefix))
    owners = {path: part for part, paths in plan.removed.items() for path in paths}
    _follow_links(prefix, owners)
    saved: Counter[Part] = Counter()
    for path, part in owners.items():
        saved[part] += (prefix / path).lstat().st_size
        (prefix / path).unlink()
    _remove_empty(prefix, owners)
    changed = _strip(prefix, platform) if "debug-symbols" in plan.removed else {}
    saved["debug-symbols"] += sum(was - now for was, now in changed.values())
    _mend_records(prefix, owners, changed)
    _mend_installed(prefix, owners, changed)
    counts = Counter(owners.values())
    told = Savings(
        before=before,
        parts={part: Saving(files=counts[part], bytes=saved[part]) for part in plan.removed},
        kept={str(part): why for part, why in plan.kept.items()},
    )
    resources.write(prefix / PLACE, json.dumps(told.model_dump(mode="json"), indent=2) + "\n")
    stripped = frozenset(changed)
    unread = {
        record["name"]
        for record in prefix_check.records(prefix)
        if not any(entry["_path"] in stripped for entry in record["paths_data"]["paths"])
    }
    if findings := prefix_check.check(prefix, (".condarc",), unread=unread):  # which an installer brings
        raise BuildError(
            f"what was left out of {prefix} left records that are not true: {trees.some(findings)}"
        )


def _files(prefix: Path) -> list[tuple[str, os.stat_result]]:
    """The files of one environment, without those of the environments in its ``envs``."""
    inner = [one.parent.relative_to(prefix).as_posix() + "/" for one in prefix.glob("envs/*/conda-meta")]
    return [
        (path, about)
        for path, about in trees.walk(prefix)
        if not stat.S_ISDIR(about.st_mode) and not path.startswith(tuple(inner))
    ]


def _follow_links(prefix: Path, owners: dict[str, Part]) -> None:
    """A link goes with what it leads to: none that led somewhere may lead nowhere."""
    links = [path for path, about in _files(prefix) if stat.S_ISLNK(about.st_mode) and path not in owners]
    found = True
    while found:
        found = False
        for path in [one for one in links if one not in owners and not slim_rules.is_kept(one)]:
            target = (prefix / path).readlink()
            led = posixpath.normpath(posixpath.join(posixpath.dirname(path), str(target)))
            if led in owners:
                owners[path] = owners[led]
                found = True


def _remove_empty(prefix: Path, paths: Collection[str]) -> None:
    """Remove the folders that are empty now, and so those above them."""
    above = {
        "/".join(parts[:count])
        for path in paths
        for parts in [path.split("/")]
        for count in range(1, len(parts))
    }
    for folder in sorted(above, key=len, reverse=True):
        if not any(os.scandir(prefix / folder)):
            (prefix / folder).rmdir()


# --- debug symbols ----------------------------------------------------------------------------------


def _strip_version(platform: Platform) -> str:
    """What binutils this host has: another one may lay out a file in another way."""
    return process.run([platform.tool("strip"), "--version"]).stdout.partition("\n")[0]


def _strip(prefix: Path, platform: Platform) -> dict[str, tuple[int, int]]:
    """Take the debug symbols from programs and libraries: each file's size before and after, in bytes.

    A file that names the prefix is left: where it does is known by its place in the file (`relocation`). So is one that
    would no longer be loaded as it was.
    """
    fixed = {
        entry["_path"]
        for record in prefix_check.records(prefix)
        for entry in record["paths_data"]["paths"]
        if entry.get("prefix_placeholder")
    }
    changed = {}
    for path, about in _files(prefix):
        wanted = re.search(r"\.so(\.[\d.]+)?$", path) or re.match(r"s?bin/|libexec/", path)
        if (
            not wanted
            or path in fixed
            or not stat.S_ISREG(about.st_mode)
            or not elf.has_debug_symbols(prefix / path)
        ):
            continue
        file, made = prefix / path, prefix / f"{path}.stripped"
        done = process.run([platform.tool("strip"), "--strip-debug", "-o", made, file], check=False)
        if done.returncode == 0 and elf.loads_the_same(file, made) and made.stat().st_size < about.st_size:
            made.chmod(stat.S_IMODE(about.st_mode))
            changed[path] = (about.st_size, made.stat().st_size)
            made.replace(file)  # a new file: the old one has another name in the layer that this is made from
        made.unlink(missing_ok=True)
    return changed


# --- records ----------------------------------------------------------------------------------------


def _mend_records(prefix: Path, removed: Collection[str], changed: Collection[str]) -> None:
    """Let the records say what is there: no file that is ``removed``, and the digests of those that ``changed``."""
    recorded: set[str] = set()
    for record in prefix_check.records(prefix):
        name = record.pop("_file")
        paths = record["paths_data"]["paths"]
        recorded |= {entry["_path"] for entry in paths}
        left = [entry for entry in paths if entry["_path"] not in removed and _is_there(prefix, entry)]
        renewed = [entry for entry in left if entry["_path"] in changed]
        for entry in renewed:
            file = prefix / entry["_path"]
            entry.update(sha256_in_prefix=resources.sha256_of(file), size_in_bytes=file.stat().st_size)
        if renewed or len(left) < len(paths):
            record["paths_data"]["paths"] = left
            record["files"] = [entry["_path"] for entry in left]
            _replace(prefix / "conda-meta" / name, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    for site in sorted(prefix.glob("lib/python3*/site-packages")):
        for path in sorted(site.glob("*.dist-info/RECORD")):
            if path.relative_to(prefix).as_posix() not in recorded:  # else it is a conda package's own file
                _mend_wheel(prefix, site, path, removed, changed)


def _mend_installed(prefix: Path, removed: Collection[str], changed: Collection[str]) -> None:
    """The same for the list of what an installer brought beside packages."""
    listed = prefix / prefix_check.INSTALLED
    if listed.is_file():
        lines = []
        for line in listed.read_text("utf-8").splitlines():
            sha256, _, path = line.partition("  ")
            if path not in removed:
                lines.append(
                    f"{prefix_check.digest_of(prefix / path) if path in changed else sha256}  {path}\n"
                )
        _replace(listed, "".join(lines))


def _is_there(prefix: Path, entry: Mapping[str, object]) -> bool:
    return entry.get("path_type") != "directory" or (prefix / str(entry["_path"])).is_dir()


def _mend_wheel(
    prefix: Path, site: Path, path: Path, removed: Collection[str], changed: Collection[str]
) -> None:
    inside = site.relative_to(prefix).as_posix()
    rows = []
    for row in csv.reader(io.StringIO(path.read_text("utf-8"))):
        named = posixpath.normpath(f"{inside}/{row[0]}")
        if named in removed:
            continue
        if named in changed:
            data = (prefix / named).read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            row = [row[0], f"sha256={digest}", str(len(data))]
        rows.append(row)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _replace(path, text.getvalue())


def _replace(path: Path, text: str) -> None:
    """Write a file anew: what was there has another name elsewhere, and stays."""
    path.unlink()
    path.write_text(text, encoding="utf-8")


# --- what must still be -----------------------------------------------------------------------------


def _require_imports(before: Path, after: Path, prefix: str, work: Path, starter: Starter) -> None:
    gone = {*importable.modules(before)} - {*importable.modules(after)}
    removed = {
        name
        for name in gone
        if re.fullmatch(r"_test\w*|_ctypes_test|_xxtestfuzz|xxlimited\w*|xxsubtype", name)
    }
    lost = importable.lost(before, after, prefix, work, removed, starter)
    if lost:
        told = trees.some([f"{name} ({why})" for name, why in sorted(lost.items())])
        raise BuildError(
            f"without what slim leaves out of {prefix}, this can no longer be imported: {told}",
            hint="name in slim: the parts that may go, without the one that these need, and build again; "
            "and tell us, it is a mistake of ours",
        )

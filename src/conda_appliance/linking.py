"""Links conda environments for their final path.

An environment is linked from outside: its files are written to one folder and carry another path, the one
they will have on the machine, so that nothing there has to install or relocate anything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import conda_appliance
from conda_appliance import bytecode, log, platforms, prefix_check, process, rattler, resources, trees
from conda_appliance.errors import BuildError, HashMismatch
from conda_appliance.layers import Store
from conda_appliance.lock import CondaPackage

#: How the line of an environment's history begins that says what was asked for, as JSON.
_SPECS = "# update specs: "
#: Where the licence texts of packages stand in an environment, in a folder each.
LICENCES = "share/licenses"


def link(
    packages: Sequence[CondaPackage],
    archives: Mapping[str, Path],
    *,
    prefix: str,
    into: Path,
    epoch: int,
    work: Path,
    specs: Sequence[str] = (),
    scripted: Collection[str] = (),
    store: Store | None = None,
    before: Before | None = None,
    platform: str = platforms.DEFAULT,
    loader: Sequence[process.Argument] = (),
    sums: trees.Sums | None = None,
) -> None:
    """Link ``packages`` into the new folder ``into`` as an environment that will live at ``prefix``.

    ``archives`` are by SHA-256, which is checked again here. ``epoch`` (seconds since 1970) is every time
    stamp. ``work`` is a folder for what is only needed meanwhile, best on the same file system. ``specs``
    are what was asked for; conda on the machine then knows what its user wanted. ``scripted`` are packages whose
    post-link script runs later; here none does. ``store`` keeps byte code.
    ``before`` is an environment for the same prefix, of whose files those that stay are shared. ``platform`` is what
    the packages are for, and ``loader`` the words that start a program of theirs, where this host is of another
    (`emulation.starter`). ``sums`` gets the SHA-256 of the files that were read last, to be compared with the records.

    The same packages give the same tree: modes are 0755 and 0644, records name channels and not this host,
    byte code is compiled and recorded, and nothing is there that no record names.
    Raises HashMismatch naming a package whose bytes are not the lock's; BuildError for packages with
    scripts that want to run when linked, and when the result differs from its own records.
    """
    if into.exists() and any(into.iterdir()):
        raise BuildError(f"{into} is not empty; an environment is linked into a new folder")
    made = _Linked(
        packages=packages, prefix=prefix, into=into, epoch=epoch, specs=specs, store=store, loader=loader
    )
    install = partial(_install, packages, archives, prefix=prefix, into=into, work=work, platform=platform)
    try:
        kept, shared = _follow(made, before) if before is not None else (frozenset[str](), set[str]())
        install(kept)
        if kept and (into / "__clobbers__").exists():
            # Which package's file is used follows from the order of linking: only a new environment has that.
            resources.remove(into)
            kept, shared = frozenset(), set()
            install(kept)
        _refuse_scripts(into, scripted)
        _warn_of_clashes(into)
        there = _normalise(made, kept, shared, before=before)
        if findings := prefix_check.check(into, unread=kept, sums=sums, there=there, named=shared):
            raise BuildError(
                f"the environment for {prefix} differs from its packages' own records: {trees.some(findings)}",
                hint="a package holds other files than it lists; rebuild it or leave it out",
            )
    except BaseException:
        resources.remove(into)
        raise


def settle_installed(
    packages: Sequence[CondaPackage],
    *,
    into: Path,
    prefix: str,
    epoch: int,
    store: Store,
    cmd: str,
    loader: Sequence[process.Argument] = (),
) -> None:
    """Make an environment that another program laid down at ``into`` say nothing of when and where that was.

    Byte code is compiled as `link` does and recorded; each file that no record names is listed in
    `prefix_check.INSTALLED`. ``cmd`` is what its history names; ``loader`` is `link`'s. Raises BuildError as that does.
    """
    made = _Linked(
        packages=packages, prefix=prefix, into=into, epoch=epoch, specs=(), store=store, loader=loader
    )
    for path, about in trees.walk(into):
        if path.endswith(".pyc") and stat.S_ISREG(about.st_mode) and "/__pycache__/" in path:
            (into / path).unlink()
    for record in prefix_check.records(into):
        entries = record["paths_data"]["paths"]
        record["paths_data"]["paths"] = [
            one for one in entries if "/__pycache__/" not in one["_path"] or (into / one["_path"]).exists()
        ]
        name = record.pop("_file")
        _replace(into / "conda-meta" / name, json.dumps(record))
    _normalise(made, frozenset(), cmd=cmd)
    unnamed = prefix_check.check(into, (".condarc",))
    lines = [
        f"{prefix_check.digest_of(into / path)}  {path}\n"
        for path in (line.removeprefix("extra: ") for line in unnamed if line.startswith("extra: "))
    ]
    if lines:
        listed = into / prefix_check.INSTALLED
        listed.parent.mkdir(parents=True, exist_ok=True)
        _replace(listed, "".join(lines))
    trees.settle(into, epoch)


@dataclass(frozen=True, kw_only=True)
class Before:
    """An environment that was linked before: its folder, its packages' SHA-256 by name, and what it holds.

    The next one may share its files by hard links, so nothing in it may be written to.
    """

    folder: Path
    packages: Mapping[str, str]
    paths: trees.Paths

    @property
    def specs(self) -> frozenset[str]:
        """What was asked for, as its history has it."""
        found: set[str] = set()
        for line in (self.folder / "conda-meta/history").read_text(encoding="utf-8").splitlines():
            if line.startswith(_SPECS):
                found.update(json.loads(line.removeprefix(_SPECS)))
        return frozenset(found)


@dataclass(frozen=True, kw_only=True)
class _Linked:
    """An environment that is being linked; see `link`."""

    packages: Sequence[CondaPackage]
    prefix: str
    into: Path
    epoch: int
    specs: Sequence[str]
    store: Store | None
    loader: Sequence[process.Argument]


def verify(root: Path, prefix: str) -> list[str]:
    """What is wrong with the environment at ``prefix`` of the file system that stands at ``root``.

    A line for each file that is missing, changed or extra; see `prefix_check`.
    """
    return prefix_check.check(root / prefix.lstrip("/"))


def _verify_archives(packages: Sequence[CondaPackage], archives: Mapping[str, Path]) -> None:
    # rattler checks no digest of a file it is given, and conda none of a file:// channel.
    for package in packages:
        path = archives.get(package.sha256)
        if path is None:
            raise BuildError(f"{package.filename} was not fetched", hint="conda-appliance fetch FILE")
        found = resources.sha256_of(path)
        if found != package.sha256:
            raise HashMismatch(
                f"{package.filename} ({path})",
                expected=package.sha256,
                found=found,
                hint=f"rm {path}    and run again: it is fetched anew",
            )


def _install(
    packages: Sequence[CondaPackage],
    archives: Mapping[str, Path],
    kept: Set[str],
    *,
    prefix: str,
    into: Path,
    work: Path,
    platform: str,
) -> None:
    """Let rattler unpack and link; its package cache is our own and ends with this call.

    So it may use hard links: when the cache is gone, no file of the environment has a second name. Packages that are
    there (``kept``) it knows by their records; their archives are not read.
    """
    new = [package for package in packages if package.name not in kept]
    _verify_archives(new, archives)
    named = work / "archives"
    given = []
    try:
        for package in new:
            # rattler tells the format by the file's real name, and the cache names files as it likes.
            path = named / package.subdir / package.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            resources.hard_link_or_copy(archives[package.sha256], path)
            given.append(str(path))
        rattler.in_child(
            "link",
            {
                "archives": given,
                "records": [
                    str(into / "conda-meta" / _record_name(one)) for one in packages if one.name in kept
                ],
                "into": str(into),
                "prefix": prefix,
                "cache": str(work / "unpacked"),
                "platform": platform,
            },
        )
        for package in new:
            keep_licences(
                work / "unpacked" / re.sub(r"\.(conda|tar\.bz2)$", "", package.filename), package.name, into
            )
    finally:
        resources.remove(named)
        resources.remove(work / "unpacked")


def keep_licences(unpacked: Path, name: str, into: Path) -> None:
    """Lay a package's licence texts beside its files: what unpacks packages elsewhere leaves them in its cache."""
    texts = unpacked / "info" / "licenses"
    target = into / LICENCES / name
    if texts.is_dir() and not target.exists():  # one that is there may be another environment's too
        shutil.copytree(texts, target)


def _record_licences(into: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """Record the licence texts with the package whose they are."""
    for name, record in records.items():
        paths = record["paths_data"]["paths"]
        known = {entry["_path"] for entry in paths}
        for path, about in trees.walk(into / LICENCES / name) if (into / LICENCES / name).is_dir() else ():
            inside = f"{LICENCES}/{name}/{path}"
            if stat.S_ISREG(about.st_mode) and inside not in known:
                digest = resources.sha256_of(into / inside)
                paths.append(
                    {
                        "_path": inside,
                        "path_type": "hardlink",
                        "sha256": digest,
                        "sha256_in_prefix": digest,
                        "size_in_bytes": about.st_size,
                    }
                )


def _refuse_scripts(into: Path, scripted: Collection[str]) -> None:
    """Refuse packages with link scripts but those whose post-link script will run (``scripted``).

    To leave them out silently would give an environment that is not what its packages promise.
    """
    found = sorted(
        match[1]
        for path in into.glob("bin/.*")
        if (match := re.fullmatch(r"\.(.+)-(pre|post)-link\.sh", path.name))
        and not (match[2] == "post" and match[1] in scripted)
    )
    if found:
        raise BuildError(
            f"these packages want to run a script when linked, which the lock does not say: {', '.join(found)}",
            hint="conda-appliance lock FILE    and see conda.post_link; or leave them out",
        )


def _warn_of_clashes(into: Path) -> None:
    """Say which files more than one package brings: rattler links one and keeps the others aside."""
    aside = into / "__clobbers__"
    for package in sorted(aside.iterdir()) if aside.is_dir() else ():
        paths = [path for path, about in trees.walk(package) if not stat.S_ISDIR(about.st_mode)]
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        log.warn(
            f"{package.name} brings files that another package brings too, and the other's are used: "
            f"{', '.join(paths[:3])}{more}"
        )


def _follow(made: _Linked, before: Before) -> tuple[frozenset[str], set[str]]:
    """Begin with what stays of the environment ``before``; returns the packages that do, and the files, by name.

    Nothing stays where Python itself changed (all byte code and paths of packages follow it) or where packages
    brought the same file.
    """
    wanted = {package.name: package.sha256 for package in made.packages}
    stay = {name for name, sha256 in before.packages.items() if wanted.get(name) == sha256}
    same_python = before.packages.get("python") == wanted.get("python")
    if not stay or not same_python or (before.folder / "__clobbers__").exists():
        return frozenset(), set()
    gone = {
        entry["_path"]
        for record in prefix_check.records(before.folder, without=stay)
        for entry in (*record["paths_data"]["paths"], {"_path": f"conda-meta/{record['_file']}"})
    }
    return frozenset(stay), _share(before, made.into, gone)


def _share(before: Before, into: Path, gone: Set[str]) -> set[str]:
    """Give all files of an environment but ``gone`` a second name in the new folder ``into``; returns their names.

    Records are copied, as conda's tools may write to them. Environments in ``envs/`` are left out.
    """
    source, target = os.fspath(before.folder), os.fspath(into)
    others = tuple(
        path.removesuffix("conda-meta")
        for path, _ in before.paths
        if path.startswith("envs/") and path.endswith("/conda-meta") and path.count("/") == 2
    )
    shared, folders = set(), {""}
    into.mkdir(parents=True, exist_ok=True)

    def make(folder: str) -> None:
        if folder not in folders:
            make(folder.rpartition("/")[0])
            os.mkdir(f"{target}/{folder}")  # noqa: PTH102 (this is done for every file: pathlib would double its cost)
            folders.add(folder)

    for path, about in before.paths:
        if stat.S_ISDIR(about.st_mode) or path in gone or path.startswith(others):
            continue
        folder = path.rpartition("/")[0]
        make(folder)
        if folder == "conda-meta":
            shutil.copy2(f"{source}/{path}", f"{target}/{path}")
        else:
            os.link(f"{source}/{path}", f"{target}/{path}", follow_symlinks=False)
            shared.add(path)
    return shared


def _normalise(
    made: _Linked,
    kept: Set[str],
    shared: Set[str] = frozenset(),
    *,
    cmd: str = "",
    before: Before | None = None,
) -> set[str]:
    """Make the tree say nothing of this host, this moment and rattler's ways; returns the names of all files in it.

    The packages ``kept`` already are so, but for what was asked for ``before``, and the files ``shared``.
    """
    into, meta = made.into, made.into / "conda-meta"
    asked = {_spec_name(spec) for spec in (before.specs if before else frozenset()) ^ {*made.specs}}
    changed = [package for package in made.packages if package.name not in kept or package.name in asked]
    records = {package.name: _read_record(meta, package) for package in changed}
    (into / "CACHEDIR.TAG").unlink(missing_ok=True)  # or backup programs would skip the environment
    new = [package for package in made.packages if package.name not in kept]
    python = next((package for package in made.packages if package.name == "python"), None)
    bytecode.make(
        new, records, python=python, into=into, prefix=made.prefix, store=made.store, loader=made.loader
    )
    bytecode.record(into, {package.name: records[package.name] for package in new})
    _record_licences(into, {package.name: records[package.name] for package in new})
    for package in changed:
        record = records[package.name]
        _clean_record(record, package, made.specs)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        _replace(meta / _record_name(package), text)
    _replace(meta / "history", _history(made.packages, made.specs, made.epoch, cmd))
    return trees.settle(into, made.epoch, shared)


def _record_name(package: CondaPackage) -> str:
    return f"{package.name}-{package.version}-{package.build}.json"


def _read_record(meta: Path, package: CondaPackage) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((meta / _record_name(package)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(f"{package.filename} holds another package than its name and the lock say") from None
    return record


def _clean_record(record: dict[str, Any], package: CondaPackage, specs: Sequence[str]) -> None:
    """Replace what a record says of this host: paths of caches, the URL of a folder."""
    for key in ("extracted_package_dir", "package_tarball_full_path"):
        record.pop(key, None)
    # The folder of a cache that it was linked from, which conda-pack asks: it leaves a record that says none.
    record["link"] = {"source": "", "type": 1}
    record["fn"] = package.filename
    record["channel"] = _channel_name(package)
    record["url"] = public_url(package)
    record["requested_specs"] = _requested(package, specs)
    record["paths_data"]["paths"].sort(key=lambda entry: entry["_path"])
    record["files"] = [entry["_path"] for entry in record["paths_data"]["paths"]]


def _requested(package: CondaPackage, specs: Sequence[str]) -> list[str]:
    return [spec for spec in specs if _spec_name(spec) == package.name]


def public_url(package: CondaPackage) -> str:
    """A package's URL as a record on the machine may name it.

    A channel that is a folder here does not exist there. conda and rattler want a URL all the same, so it
    reads ``file:///CHANNEL/SUBDIR/FILE``, with the last part of the folder's name alone.
    """
    if re.match(r"https?://", package.url):
        return package.url
    return f"file:///{_channel_name(package)}/{package.subdir}/{package.filename}"


def _channel_name(package: CondaPackage) -> str:
    if re.match(r"https?://", package.url):
        return package.channel
    return Path(package.channel.removeprefix("file://")).name or "local"


def _spec_name(spec: str) -> str:
    """The package that a match spec such as ``conda-forge::numpy >=2`` is about."""
    match = re.match(r"\s*([A-Za-z0-9_.-]+)", spec.rpartition("::")[2])
    return match[1].lower() if match else ""


def _history(packages: Sequence[CondaPackage], specs: Sequence[str], epoch: int, cmd: str = "") -> str:
    """conda's own log of an environment, in which it looks up what its user asked for."""
    when = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"==> {when} <==", f"# cmd: {cmd or f'conda-appliance {conda_appliance.__version__}'}"]
    lines += [
        f"+{_channel_name(package)}/{package.subdir}::{package.name}-{package.version}-{package.build}"
        for package in sorted(packages, key=lambda package: package.name)
    ]
    if specs:
        lines.append(f"{_SPECS}{json.dumps(list(specs))}")
    return "\n".join(lines) + "\n"


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")

"""Locks of other tools, in and out: pixi.lock, conda-lock.yml, @EXPLICIT.

What such a lock names is taken as it is: nothing is solved. Every archive is fetched while it is read, because two of
the three do not say enough of a package, and an ``@EXPLICIT`` file may know only its MD5.

Sources: https://pixi.sh/latest/workspace/lockfile/, https://conda.github.io/conda-lock/output/#unified-lockfile,
https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html (explicit).
"""

from __future__ import annotations

import graphlib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml
from packaging.utils import canonicalize_name

from conda_appliance import conda, lazy, package, sources
from conda_appliance.contract import Contract
from conda_appliance.errors import UsageError
from conda_appliance.lock import CondaPackage, EnvironmentSection, Wheel

if TYPE_CHECKING:
    from conda_appliance import pypi
else:
    pypi = lazy.module("conda_appliance.pypi")

#: What `write` can write.
FORMATS = ("pixi", "conda-lock", "explicit")

_ARCHIVE = re.compile(r"(?P<name>.+)-(?P<version>[^-]+)-(?P<build>[^-]+)\.(conda|tar\.bz2)")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A package of somebody's lock: where it is, and the digests that the lock knows (hexadecimal, or nothing)."""

    url: str
    sha256: str = ""
    md5: str = ""

    @property
    def filename(self) -> str:
        """The archive's file name."""
        return unquote(self.url.rpartition("/")[2])


@dataclass(frozen=True, kw_only=True)
class Locked:
    """An environment as another tool locked it."""

    packages: tuple[Entry, ...]
    wheels: tuple[Entry, ...] = ()


def read(path: Path, environment: str, platform: str) -> Locked:
    """An environment of a lock, for a conda platform; which kind of lock it is, its text says.

    Raises UsageError for what is no such lock, has no such environment or platform, or names what cannot be verified.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    lines = [line.strip() for line in text.splitlines()]
    if "@EXPLICIT" in lines:
        found = Locked(packages=tuple(_explicit(path, lines)))
    else:
        said = conda.read_lock(path, environment, platform)
        found = Locked(
            packages=tuple(Entry(**one) for one in said["conda"]),
            wheels=tuple(Entry(**one) for one in said["pypi"]),
        )
    for one in (*found.packages, *found.wheels):
        if not one.sha256 and not (one.md5 and one in found.packages):
            raise UsageError(
                f"{path} has no digest of {one.filename}: it could not be verified",
                hint="lock it again with digests (conda list --explicit --sha256)",
            )
        if (parts := urlsplit(one.url)).username or "/t/" in parts.path:
            raise UsageError(
                f"{path} names {one.filename} by a URL with a password or token, which would land in the image",
                hint="lock it from a mirror without one",
            )
    return found


def _explicit(path: Path, lines: Sequence[str]) -> Sequence[Entry]:
    entries = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#") or line == "@EXPLICIT":
            continue
        url, _, digest = line.partition("#")
        digest = digest.removeprefix("sha256:")
        if not re.fullmatch(r"(https?|file)://\S+\.(conda|tar\.bz2)", url):
            raise UsageError(f"{path}:{number}: {line!r} is not the URL of a conda package")
        if digest and not re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", digest):
            raise UsageError(f"{path}:{number}: {digest!r} is neither an MD5 nor a SHA-256")
        entries.append(
            Entry(
                url=url, sha256=digest if len(digest) == 64 else "", md5=digest if len(digest) == 32 else ""
            )
        )
    return entries


def take(
    locked: Locked,
    channels: Sequence[conda.Channel],
    *,
    contract: Contract,
    platform: str,
    cache: sources.Cache,
    mirrored: Sequence[conda.Channel] = (),
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[tuple[CondaPackage, ...], tuple[str, ...]]:
    """The packages of another tool's lock as ours has them, in the order they are linked; those that no other needs,
    by name.

    All of them are in ``cache`` afterwards, from the mirrors of ``mirrored`` where they are of one of those channels.
    Raises UsageError for a package that needs more than the ``contract``, that is for another platform, or that stands
    there twice; HashMismatch for one that is not what its lock says.
    """
    digests = sources.identify(
        [
            sources.Named(
                name=one.filename,
                url=one.url,
                sha256=one.sha256,
                md5=one.md5,
                mirrors=conda.mirrors_of(one.url, mirrored),
            )
            for one in locked.packages
        ],
        cache,
        progress=progress,
    )
    found: dict[str, CondaPackage] = {}
    needs: dict[str, list[str]] = {}
    indexes = []
    for one, sha256 in zip(locked.packages, digests, strict=True):
        path = cache.verified(sha256, one.filename)
        index = package.read_index_of(path, one.filename)
        name, subdir = str(index["name"]), str(index.get("subdir") or _subdir(one.url))
        if subdir not in (platform, "noarch"):
            raise UsageError(
                f"{one.filename} is for {subdir}, and the machine is {platform}",
                hint="an @EXPLICIT file is for one platform: take a pixi.lock or conda-lock.yml for several, or a "
                "definition for each",
            )
        if name in found:
            raise UsageError(f"the lock names {name} twice: {found[name].filename} and {one.filename}")
        found[name] = CondaPackage(
            name=name,
            version=str(index["version"]),
            build=str(index["build"]),
            subdir=subdir,
            channel=_channel(one.url, channels),
            url=one.url,
            sha256=sha256,
            size=path.stat().st_size,
        )
        indexes.append(index)
        needs[name] = [str(need) for need in index.get("depends", [])]
    conda.require_virtual(indexes, contract=contract, platform=platform)
    missing = {
        f"{name} needs {need}"
        for name, texts in needs.items()
        for need in texts
        if not need.startswith("__") and _name(need) not in found
    }
    if missing:
        raise UsageError(f"the lock is not whole: {', '.join(sorted(missing)[:5])}", hint="lock it again")
    graph = {
        name: {_name(need) for need in texts} & {*found} - {name} for name, texts in sorted(needs.items())
    }
    roots = {*found} - {need for needed in graph.values() for need in needed}
    return tuple(found[name] for name in _ordered(graph)), tuple(sorted(roots))


def _ordered(graph: Mapping[str, set[str]]) -> list[str]:
    """Each package after those it needs; of a ring (python and pip need each other) no order is asked."""
    sorter = graphlib.TopologicalSorter(graph)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        ring = error.args[1]
        smaller = {name: {*needs} for name, needs in graph.items()}
        smaller[ring[1]].discard(ring[0])
        return _ordered(smaller)
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return order


def wheels(
    locked: Locked,
    target: pypi.Target,
    *,
    cache: sources.Cache,
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[Wheel, ...] | None:
    """The wheels of another tool's lock as ours has them, sorted by name.

    Raises UsageError for one that does not fit.
    """
    if not locked.wheels:
        return None
    for one in locked.wheels:
        if not one.filename.endswith(".whl") or not pypi.fits(one.filename, target):
            raise UsageError(
                f"{one.filename} is no wheel for a {target.machine} machine with Python {target.minor}",
                hint="only wheels are installed: build one, and name it in `pip`",
            )
    names = [
        sources.Named(name=one.filename, url=one.url, sha256=one.sha256, md5="") for one in locked.wheels
    ]
    made = []
    for one, sha256 in zip(locked.wheels, sources.identify(names, cache, progress=progress), strict=True):
        path = cache.verified(sha256, one.filename)
        about = pypi.metadata_of(path, one.filename)
        made.append(
            Wheel(
                name=canonicalize_name(about["Name"]),
                version=about["Version"],
                url=one.url,
                sha256=sha256,
                size=path.stat().st_size,
            )
        )
    return tuple(sorted(made, key=lambda one: one.name))


def _name(spec: str) -> str:
    return re.split(r"[\s=<>!~\[]", spec.strip().rpartition("::")[2], maxsplit=1)[0].lower()


def _subdir(url: str) -> str:
    return url.split("/")[-2]


def _channel(url: str, channels: Sequence[conda.Channel]) -> str:
    """What the definition calls the channel of a package, or else where it is."""
    for channel in channels:
        if url.startswith(channel.url.rstrip("/") + "/"):
            return channel.name
    base = "/".join(url.split("/")[:-2])
    return base.removeprefix(f"{conda.ALIAS}/")


# --- writing ----------------------------------------------------------------------------------------


def write(
    form: str,
    section: EnvironmentSection,
    files: Mapping[str, Path],
    *,
    platform: str,
    places: Mapping[str, str],
) -> str:
    """An environment of our lock as another tool's: the text of its file.

    ``files`` are the packages by SHA-256; ``places`` the URLs of folder channels by their name. Raises UsageError for
    ``explicit`` of an environment with wheels, which it cannot name.
    """
    urls = {one.sha256: _public(one, places) for one in section.packages}
    if form == "explicit":
        if section.wheels:
            names = ", ".join(one.name for one in section.wheels)
            raise UsageError(
                f"an explicit file cannot name wheels: {names}", hint="--export pixi, or conda-lock"
            )
        head = f"# for conda 24.1 and later: conda create --name NAME --file THIS\n# platform: {platform}\n@EXPLICIT\n"
        return head + "".join(f"{urls[one.sha256]}#{one.sha256}\n" for one in section.packages)
    conda_entries = [(one, urls[one.sha256], _about(files[one.sha256], one)) for one in section.packages]
    if form == "pixi":
        value = _pixi(section, conda_entries, files, platform)
    else:
        value = _conda_lock(section, conda_entries, platform)
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=4096))


def _public(one: CondaPackage, places: Mapping[str, str]) -> str:
    if "://" in one.url:
        return one.url
    return f"{places[one.channel].rstrip('/')}/{one.subdir}/{one.filename}"


def _about(path: Path, one: CondaPackage) -> dict[str, Any]:
    index = package.read_index_of(path, one.filename)
    with path.open("rb") as file:
        index["md5"] = hashlib.file_digest(file, "md5").hexdigest()
    return index


_Entries = Sequence[tuple[CondaPackage, str, Mapping[str, Any]]]


def _channel_urls(entries: _Entries) -> list[str]:
    return list(dict.fromkeys("/".join(url.split("/")[:-2]) + "/" for _, url, _ in entries))


def _pixi(
    section: EnvironmentSection, entries: _Entries, files: Mapping[str, Path], platform: str
) -> dict[str, Any]:
    """Version 6, which every pixi since 0.35 reads."""
    packages: list[dict[str, Any]] = []
    for one, url, about in entries:
        packages.append(
            {
                "conda": url,
                "sha256": one.sha256,
                "md5": about["md5"],
                # What pixi reads from the URL of a channel on a server.
                **({} if url.startswith("http") else {"subdir": one.subdir}),
                **{key: about[key] for key in ("depends", "constrains") if about.get(key)},
                **({"license": about["license"]} if about.get("license") else {}),
                "size": one.size,
                **({"timestamp": about["timestamp"]} if about.get("timestamp") else {}),
            }
        )
    for wheel in section.wheels or ():
        said = pypi.metadata_of(files[wheel.sha256], wheel.filename)
        packages.append(
            {
                "pypi": wheel.url,
                "name": wheel.name,
                "version": wheel.version,
                "sha256": wheel.sha256,
                **({"requires_dist": needs} if (needs := said.get_all("Requires-Dist", [])) else {}),
                **({"requires_python": said["Requires-Python"]} if said["Requires-Python"] else {}),
            }
        )
    named = [{key: one[key]} for one in packages for key in ("conda", "pypi") if key in one]
    default: dict[str, Any] = {"channels": [{"url": url} for url in _channel_urls(entries)]}
    if section.wheels:
        default["indexes"] = ["https://pypi.org/simple"]
    default["packages"] = {platform: named}
    return {"version": 6, "environments": {"default": default}, "packages": packages}


def _conda_lock(section: EnvironmentSection, entries: _Entries, platform: str) -> dict[str, Any]:
    asked = hashlib.sha256("\n".join(section.specs).encode()).hexdigest()
    packages: list[dict[str, Any]] = [
        {
            "name": one.name,
            "version": one.version,
            "manager": "conda",
            "platform": platform,
            "dependencies": {
                _name(need): need.partition(" ")[2]
                for need in map(str, about.get("depends", []))
                if not need.startswith("__")
            },
            "url": url,
            "hash": {"md5": about["md5"], "sha256": one.sha256},
            "category": "main",
            "optional": False,
        }
        for one, url, about in entries
    ]
    packages += [
        {
            "name": wheel.name,
            "version": wheel.version,
            "manager": "pip",
            "platform": platform,
            "dependencies": {},
            "url": wheel.url,
            "hash": {"sha256": wheel.sha256},
            "category": "main",
            "optional": False,
        }
        for wheel in section.wheels or ()
    ]
    return {
        "version": 1,
        "metadata": {
            "content_hash": {platform: asked},
            "channels": [{"url": url, "used_env_vars": []} for url in _channel_urls(entries)],
            "platforms": [platform],
            "sources": [],
        },
        "package": packages,
    }

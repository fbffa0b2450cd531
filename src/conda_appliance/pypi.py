"""What an environment asks of PyPI → wheels by URL and SHA-256, for the machine they are for and its conda packages.

uv resolves: it knows the markers and platform of another Python than the one that runs it, where pip only knows its
own. What it leaves open, which of a release's wheels fits best, is decided here by PEP 425's tags. Conda packages count
as installed under their own name; where conda calls a project otherwise (``pytorch`` for torch), name the project's
conda package in the environment and leave it out of ``pip``.
"""

from __future__ import annotations

import re
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import uv
from packaging import tags
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, NormalizedName, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from conda_appliance import credentials, network, process, redact, resources, sources
from conda_appliance.errors import BuildError, CommandFailed, UsageError
from conda_appliance.lock import CondaPackage, Wheel

#: The manylinux platforms that uv can resolve for: the newest that a machine's glibc has is taken.
_MANYLINUX = ("2_17", "2_28", *(f"2_{minor}" for minor in range(31, 41)))
#: Machines by conda's platforms.
_MACHINES = {"linux-64": "x86_64", "linux-aarch64": "aarch64"}
#: What uv calls the index that a definition names.
_INDEX = "appliance"
#: manylinux by its older names (PEP 600).
_OLD_NAMES = {"2_5": "manylinux1", "2_12": "manylinux2010", "2_17": "manylinux2014"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The Python that wheels are for: its version (``3.13.5``), the machine's glibc, and its conda platform."""

    python: str
    glibc: str
    platform: str = "linux-64"

    @property
    def minor(self) -> str:
        """``3.13``."""
        return ".".join(self.python.split(".")[:2])

    @property
    def machine(self) -> str:
        """As uname(1) says it."""
        return _MACHINES[self.platform]

    def tags(self) -> list[tags.Tag]:
        """What a wheel may say it fits, the closest first (PEP 425, PEP 600)."""
        newest = int(self.glibc.split(".")[1])
        platforms = []
        for minor in range(newest, 4, -1):
            platforms.append(f"manylinux_2_{minor}_{self.machine}")
            if old := _OLD_NAMES.get(f"2_{minor}"):
                platforms.append(f"{old}_{self.machine}")
        platforms.append(f"linux_{self.machine}")
        version = tuple(int(part) for part in self.minor.split("."))
        interpreter = f"cp{version[0]}{version[1]}"
        return [
            *tags.cpython_tags(version, platforms=platforms),
            *tags.compatible_tags(version, interpreter, platforms),
        ]

    def markers(self) -> dict[str, str]:
        """The environment that PEP 508's markers are read in."""
        return {
            "implementation_name": "cpython",
            "implementation_version": self.python,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.python,
            "python_version": self.minor,
            "sys_platform": "linux",
            "extra": "",
        }


def target(packages: Sequence[CondaPackage], glibc: str, platform: str) -> Target:
    """The target of an environment. Raises UsageError for one without a Python."""
    python = next((one for one in packages if one.name == "python"), None)
    if python is None:
        raise UsageError(
            "packages of PyPI need a Python, and the environment has none",
            hint="add python to its dependencies",
        )
    return Target(python=python.version, glibc=glibc, platform=platform)


def resolve(
    asked: Sequence[str],
    packages: Sequence[CondaPackage],
    wanted: Target,
    *,
    own: Mapping[str, Path],
    cache: sources.Cache,
    index: str | None = None,
    constraints: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[Wheel, ...]:
    """The wheels that satisfy the requirements ``asked``, and those that the definition has itself, sorted by name.

    All of them are in ``cache`` afterwards. ``own`` are files by what the definition calls them, a path or URL that
    ends with the wheel's name. ``constraints`` are requirements that hold for what is needed anyway. ``packages`` are
    the environment's conda packages, which are not installed again. Raises UsageError for what cannot be satisfied, is
    not understood, has no wheel for the target, or disagrees with a conda package; BuildError when the index cannot be
    read.
    """
    locals_ = [_local(url, path, wanted, cache) for url, path in own.items()]
    given = _applying([_requirement(item) for item in asked], wanted)
    for one in locals_:
        given += _needs(one.metadata, wanted)
    conda = {canonicalize_name(one.name): one for one in packages}
    mine = {one.wheel.name for one in locals_}
    for requirement in given:
        name = canonicalize_name(requirement.name)
        if name in conda:
            _agree(requirement, conda[name], "is asked for")
    progress("asking the package index")
    found = _ask(
        [str(one) for one in given if canonicalize_name(one.name) not in {*conda, *mine}],
        excluded=sorted({*conda, *mine}),
        wanted=wanted,
        index=index,
        constraints=constraints,
    )
    downloads = [
        sources.Download(name=one.filename, url=one.url, sha256=one.sha256, size=one.size) for one in found
    ]
    sources.fetch(downloads, cache, offline=False, progress=progress)
    files = {one.sha256: cache.verified(one.sha256, one.filename) for one in found}
    found = [one.model_copy(update={"size": files[one.sha256].stat().st_size}) for one in found]
    read = {one.sha256: metadata_of(files[one.sha256], one.filename) for one in found}
    said = {one.name: read[one.sha256] for one in found} | {one.wheel.name: one.metadata for one in locals_}
    _consistent(said, conda, wanted)
    return tuple(sorted([*found, *(one.wheel for one in locals_)], key=lambda one: one.name))


def fits(filename: str, wanted: Target) -> bool:
    """Whether a wheel of this name can be installed on the target."""
    try:
        return not {*wanted.tags()}.isdisjoint(parse_wheel_filename(filename)[3])
    except InvalidWheelFilename:
        return False


def metadata_of(path: Path, filename: str) -> Message:
    """A wheel's METADATA. Raises BuildError for a file that is no wheel."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(one for one in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", one))
            return HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    except (zipfile.BadZipFile, StopIteration, UnicodeDecodeError, OSError) as error:
        raise BuildError(f"{filename} is not a wheel: {error or 'it has no METADATA'}") from None


@dataclass(frozen=True, kw_only=True)
class _Local:
    wheel: Wheel
    metadata: Message


def _local(item: str, path: Path, wanted: Target, cache: sources.Cache) -> _Local:
    """A wheel that the definition names itself, which goes to the cache too."""
    name = unquote(item.rpartition("/")[2])
    if not fits(name, wanted):
        raise UsageError(
            f"{item} does not fit a {wanted.machine} machine with Python {wanted.minor} and glibc {wanted.glibc}",
            hint="its name says what it fits (PEP 425): build it for that, or as a pure one",
        )
    metadata = metadata_of(path, item)
    sha256 = resources.sha256_of(path)
    wheel = Wheel(
        name=canonicalize_name(metadata["Name"]),
        version=metadata["Version"],
        url=item,
        sha256=sha256,
        size=path.stat().st_size,
    )
    sources.fetch(
        [sources.Download(name=name, url=str(path.resolve()), sha256=sha256, size=wheel.size)],
        cache,
        offline=False,
        progress=lambda _text: None,
    )
    return _Local(wheel=wheel, metadata=metadata)


def _requirement(item: str) -> Requirement:
    if re.match(r"\s*(-|git\+|\.|/|~)", item) or "://" in item:
        raise UsageError(
            f"pip: {item!r} is an option, a folder or a URL, which a lock cannot hold",
            hint="write requirements such as 'bottle >=0.13', or a wheel's path; conda.pip_index names an index",
        )
    try:
        return Requirement(item)
    except InvalidRequirement as error:
        raise UsageError(
            f"pip: {item!r} is not a requirement: {error}", hint="write for example 'bottle >=0.13' (PEP 508)"
        ) from None


def _needs(metadata: Message, wanted: Target) -> list[Requirement]:
    """What a wheel requires on the target, without what its extras do."""
    return _applying([Requirement(text) for text in metadata.get_all("Requires-Dist", [])], wanted)


def _applying(requirements: Sequence[Requirement], wanted: Target) -> list[Requirement]:
    """Those whose marker holds on the target, without it."""
    environment: dict[str, Any] = {**wanted.markers()}
    found = [one for one in requirements if one.marker is None or one.marker.evaluate(environment)]
    for one in found:
        one.marker = None
    return found


def _agree(requirement: Requirement, package: CondaPackage, why: str) -> None:
    try:
        version = Version(package.version)
    except InvalidVersion:
        return  # conda's versions are freer: what cannot be compared is taken
    if not requirement.specifier.contains(version, prereleases=True):
        raise UsageError(
            f"{requirement} {why}, and the environment's conda package is {package.name} {package.version}",
            hint=f"ask the channels for '{package.name} {requirement.specifier}', or loosen the other",
        )


def _consistent(
    read: Mapping[str, Message], conda: Mapping[NormalizedName, CondaPackage], wanted: Target
) -> None:
    """Whether everything that a wheel requires is there in a version it takes, as ``pip check`` tells it."""
    wheels = {canonicalize_name(name): metadata for name, metadata in read.items()}
    for name, metadata in sorted(wheels.items()):
        for need in _needs(metadata, wanted):
            other = canonicalize_name(need.name)
            if other in wheels:
                continue  # uv saw to it, or it is a wheel of the definition's own
            if other not in conda:
                raise UsageError(
                    f"{name} {metadata['Version']} requires {need}, which is neither a conda package of the "
                    "environment nor a wheel",
                    hint=f"add {need.name} to its dependencies, or to its pip",
                )
            _agree(need, conda[other], f"is required by {name} {metadata['Version']}")


# --- uv -------------------------------------------------------------------------------------------


def _ask(
    requirements: Sequence[str],
    *,
    excluded: Sequence[str],
    wanted: Target,
    index: str | None,
    constraints: Sequence[str],
) -> list[Wheel]:
    """The wheels of these requirements and of all they require, but the projects ``excluded``."""
    if not requirements:
        return []
    glibc = tuple(map(int, wanted.glibc.split(".")[:2]))
    known = [one for one in _MANYLINUX if tuple(map(int, one.split("_"))) <= glibc]
    if not known:
        raise UsageError(f"no wheels are made for glibc {wanted.glibc}; 2.17 is the oldest")
    with resources.work_folder(resources.cache_root() / "pip", resources.own_name()) as work:
        (work / "requirements.in").write_text("".join(f"{one}\n" for one in requirements), encoding="utf-8")
        (work / "excluded.in").write_text("".join(f"{one}\n" for one in excluded), encoding="utf-8")
        (work / "constraints.in").write_text("".join(f"{one}\n" for one in constraints), encoding="utf-8")
        argv: list[process.Argument] = [uv.find_uv_bin(), "pip", "compile", "requirements.in", "--quiet"]
        argv += ["--python-version", wanted.python, "--no-python-downloads"]
        argv += ["--python-platform", f"{wanted.machine}-manylinux_{known[-1]}"]
        argv += ["--only-binary", ":all:", "--excludes", "excluded.in", "--constraints", "constraints.in"]
        argv += ["--format", "pylock.toml", "--output-file", "pylock.toml"]
        env = {**network.variables(), "UV_CACHE_DIR": str(resources.cache_root() / "uv")}
        if index:
            argv += ["--default-index", f"{_INDEX}={index}"]
            env |= _credentials(index)
        try:
            process.run(argv, cwd=work, env=env, network=True)
        except CommandFailed as error:
            said = redact.text(re.sub(r"\x1b\[[0-9;]*m", "", error.output).strip())
            raise UsageError(
                f"no set of wheels for Python {wanted.minor} satisfies {', '.join(requirements)}:\n{said}",
                hint="only wheels are taken, and only such as fit the machine; a project that has none can be made a "
                "conda package, or a wheel of your own that `pip` names by its path",
            ) from None
        locked = tomllib.loads((work / "pylock.toml").read_text("utf-8"))
    return [_best(package, wanted) for package in locked.get("packages", [])]


def require_askable(index: str) -> None:
    """Raise UsageError for an index to whose host we are somebody that uv cannot say.

    uv knows a user and a password alone (https://github.com/astral-sh/uv/issues/1369).
    """
    found = credentials.find(index)
    if found is not None and found.kind != "BasicHTTP":
        raise UsageError(
            f"conda.pip_index: uv can give {index} a user and password, and the host's credentials are a {found.kind}",
            hint="most indexes take a token as a password too, of a user that they name, such as __token__: give it as "
            "BasicHTTP or in ~/.netrc (docs/how-to/channels.md)",
        )


def _credentials(index: str) -> dict[str, str]:
    """The variables by which uv knows who we are to the index that is called `_INDEX`.

    Source: https://docs.astral.sh/uv/concepts/indexes/#providing-credentials-directly
    """
    require_askable(index)
    found = credentials.find(index)
    if found is None:
        return {}
    name = _INDEX.upper()
    return {f"UV_INDEX_{name}_USERNAME": found.user, f"UV_INDEX_{name}_PASSWORD": found.secret}


def _best(package: Mapping[str, Any], wanted: Target) -> Wheel:
    """The wheel of a release (a package of PEP 751's pylock.toml) that fits the target best."""
    ranks = {tag: rank for rank, tag in enumerate(wanted.tags())}
    fitting = []
    for one in package.get("wheels", ()):
        name = unquote(urlsplit(one["url"]).path.rpartition("/")[2])
        rank = min((ranks[tag] for tag in parse_wheel_filename(name)[3] if tag in ranks), default=None)
        if rank is not None and "sha256" in one.get("hashes", {}):
            fitting.append((rank, name, one))
    if not fitting:
        raise UsageError(
            f"{package['name']} {package.get('version', '')} has no wheel with a SHA-256 for the machine",
            hint="it can be made a conda package, or a wheel of your own that `pip` names by its path",
        )
    _, _, best = min(fitting, key=lambda one: one[:2])
    return Wheel(
        name=canonicalize_name(package["name"]),
        version=package["version"],
        url=_without_secret(best["url"]),
        sha256=best["hashes"]["sha256"],
        size=best.get("size", 0),
    )


def _without_secret(url: str) -> str:
    """A URL without a user's name and password: those belong to ``~/.netrc``, and never into a lock."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

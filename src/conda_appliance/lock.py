"""The lock: every input of a build by name, place, size and SHA-256. Pure: reads and writes text, no network.

It is YAML for people's diffs; a program reads it with any YAML library. Field order and formatting are fixed,
so that the same content is the same bytes. A `Lock` is of one platform; a file may hold those of several.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from conda_appliance import platforms, resources
from conda_appliance.errors import LockError

#: libyaml's safe loader and dumper where PyYAML was built with it: ten times as fast on a lock of 300 packages.
_FastLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FastDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

#: How deep a lock cannot be nested: libyaml's loader calls itself for each level, and ends the process some levels on.
_DEPTH = 5_000
_INDENTED, _OPENED = re.compile(rf"^[ ?-]{{{_DEPTH}}}", re.MULTILINE), re.compile(r"\[(?!\])|\{(?!\})")

#: The versions of the lock's own shape: for one platform, and for several.
VERSION, SEVERAL = 1, 2

if TYPE_CHECKING:
    PlatformName = str
else:
    PlatformName = Literal[tuple(platforms.PLATFORMS)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DebianPackage(_Part):
    """A .deb: ``url`` is absolute, ``size`` in bytes."""

    name: str
    version: str
    architecture: str
    url: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The name apt gives the file, e.g. ``libc6_2.41-12_amd64.deb``: epoch and all, unique."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


class DebianSection(_Part):
    """A bootstrapped Debian: the exact packages of a suite.

    ``boot`` are packages with the boot loader of a platform that the host's own may not have; the machine's disk gets
    what is made from them, its file system does not.
    """

    suite: str
    architecture: str = "amd64"
    glibc: str
    packages: tuple[DebianPackage, ...]
    boot: tuple[DebianPackage, ...] | None = None

    @property
    def every(self) -> tuple[DebianPackage, ...]:
        """All packages that a build reads."""
        return (*self.packages, *(self.boot or ()))


class ImageSection(_Part):
    """A cloud image as the base: ``url`` absolute."""

    url: str
    sha256: str


class CondaPackage(_Part):
    """A conda package archive: ``channel`` as its user knows it, ``url`` where it was found, ``size`` in bytes."""

    name: str
    version: str
    build: str
    subdir: str
    channel: str
    url: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The archive's file name, e.g. ``numpy-2.3.1-py313_0.conda``."""
        return self.url.rpartition("/")[2]


class File(_Part):
    """A file that is fetched: ``url`` absolute, or a path from the definition; ``size`` in bytes."""

    name: str
    version: str
    url: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """Its file name."""
        return unquote(self.url.rpartition("/")[2])


class Wheel(File):
    """A wheel (PEP 427) that is installed after the conda packages; its file name says what it fits."""


class InstallerSection(File):
    """The installer that makes an environment; ``version`` is empty where the definition names the file."""


class EnvironmentSection(_Part):
    """A solved environment, in the order its packages are linked. ``specs`` are what was asked for.

    Where an ``installer`` lays it down, the packages are what that left.
    ``post_link`` names the packages with a post-link script, in the order they run.
    """

    prefix: str
    specs: tuple[str, ...]
    packages: tuple[CondaPackage, ...]
    wheels: tuple[Wheel, ...] | None = None
    installer: InstallerSection | None = None
    post_link: tuple[str, ...] | None = None


class ProgramSection(_Part):
    """What a service runs that is no package: a file, or the files of a git ``commit`` as one tar (`git.export`)."""

    kind: Literal["pex", "zipapp", "wheel", "git", "frozen"]
    url: str
    sha256: str
    size: int
    commit: str | None = None


class CondaSection(_Part):
    """What was solved, for which platform and which virtual packages (``__glibc=2.41=0``).

    ``post_link`` says where post-link scripts run, if there are any.
    """

    platform: PlatformName = platforms.DEFAULT
    virtual_packages: tuple[str, ...]
    post_link: Literal["build", "first-boot"] | None = None
    environments: dict[str, EnvironmentSection]


class Lock(_Part):
    """Everything a build reads. ``digest`` is `definition.lock_digest` of what it answers, ``base`` of its base.

    It is of one platform: that of its ``conda``.
    """

    version: Literal[1] = 1
    name: str
    digest: str
    base: str | None = None
    tools: dict[str, str]
    debian: DebianSection | None = None
    image: ImageSection | None = None
    conda: CondaSection
    programs: dict[str, ProgramSection] | None = None

    @property
    def text(self) -> str:
        """The lock as YAML text; the same lock gives the same text."""
        return _text(self)

    @property
    def platform(self) -> str:
        """The platform it is of, by conda's name."""
        return self.conda.platform

    @property
    def downloads(self) -> int:
        """How many bytes the lock's packages have together."""
        debian = self.debian.every if self.debian else ()
        sections = self.conda.environments.values()
        conda = [p for e in sections if e.installer is None for p in e.packages]
        installers = [e.installer for e in sections if e.installer is not None]
        wheels = [p for e in self.conda.environments.values() for p in e.wheels or ()]
        everything: list[CondaPackage | File | ProgramSection] = [
            *conda,
            *installers,
            *wheels,
            *(self.programs or {}).values(),
        ]
        return sum(p.size for p in debian) + sum({p.sha256: p.size for p in everything}.values())


class _Platform(_Part):
    """What a lock of several platforms has of one."""

    debian: DebianSection | None = None
    image: ImageSection | None = None
    conda: CondaSection
    programs: dict[str, ProgramSection] | None = None


class _Several(_Part):
    """Locks of several platforms that answer one definition."""

    version: Literal[2] = 2
    name: str
    digest: str
    base: str | None = None
    tools: dict[str, str]
    platforms: dict[str, _Platform]

    def locks(self) -> list[Lock]:
        return [
            Lock(
                name=self.name,
                digest=self.digest,
                base=self.base,
                tools=self.tools,
                debian=one.debian,
                image=one.image,
                conda=one.conda,
                programs=one.programs,
            )
            for one in self.platforms.values()
        ]


def _text(value: _Part) -> str:
    head = "# Written by conda-appliance; `conda-appliance lock` renews it. Builds read this and nothing newer.\n"
    body = yaml.dump(
        value.model_dump(mode="json", exclude_none=True),
        Dumper=_FastDumper,
        sort_keys=False,
        width=4096,
        allow_unicode=True,
    )
    return head + str(body)


def path_for(definition: Path) -> Path:
    """Where a definition's lock stands: beside it, ``NAME.lock``."""
    return definition.with_suffix(".lock")


def text_of(locks: Sequence[Lock]) -> str:
    """The file that holds ``locks``, one of each platform, as YAML text."""
    if len(locks) == 1:
        return locks[0].text
    first = locks[0]
    return _text(
        _Several(
            name=first.name,
            digest=first.digest,
            base=first.base,
            tools=first.tools,
            platforms={
                one.platform: _Platform(
                    debian=one.debian, image=one.image, conda=one.conda, programs=one.programs
                )
                for one in locks
            },
        )
    )


def write(locks: Lock | Sequence[Lock], path: Path) -> None:
    """Write ``path`` in one step, with the locks of all platforms: readers see the old file or the new one."""
    resources.write(path, text_of([locks] if isinstance(locks, Lock) else locks))


def write_one(lock: Lock, path: Path) -> None:
    """Write the lock of one platform into a file that may hold others', which stay as they are."""
    write([lock if one.platform == lock.platform else one for one in read_all(path)], path)


def read(path: Path, platform: str | None = None) -> Lock:
    """Read the lock of a platform; none is the first. Raises LockError as `read_all` and `chosen` do."""
    return chosen(read_all(path), platform, path)


def chosen(locks: Sequence[Lock], platform: str | None, path: Path) -> Lock:
    """Of the locks that the file at ``path`` has, a platform's; none is the first. Raises LockError without such."""
    found = next((one for one in locks if platform in (None, one.platform)), None)
    if found is None:
        raise LockError(
            f"{path} is for {', '.join(one.platform for one in locks)}, not for {platform}",
            hint=f"name it in platforms, and: conda-appliance lock {path.with_suffix('.yaml')}",
        )
    return found


def read_all(path: Path) -> list[Lock]:
    """Read the locks of a file, one of each platform.

    Raises LockError when it is missing, not a lock, or of a newer shape.
    """
    mend = f"conda-appliance lock {path.with_suffix('.yaml')}"
    try:
        text = path.read_text(encoding="utf-8")
        if _INDENTED.search(text) or len(_OPENED.findall(text)) >= _DEPTH:
            raise LockError(f"{path} is nested too deeply to be a lock", hint=mend)
        value: Any = yaml.load(text, Loader=_FastLoader)  # noqa: S506
    except FileNotFoundError:
        raise LockError(f"there is no lock {path}", hint=mend) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LockError(f"{path} cannot be read as a lock: {error}", hint=mend) from None
    version = value.get("version") if isinstance(value, dict) else VERSION
    if version not in (VERSION, SEVERAL):
        raise LockError(
            f"{path} has lock version {version!r}; this program knows {VERSION} and {SEVERAL}", hint=mend
        )
    try:
        return [Lock.model_validate(value)] if version == VERSION else _Several.model_validate(value).locks()
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise LockError(f"{path} is not a lock: {at}: {first['msg']}", hint=mend) from None


def require_fresh(lock: Lock, digest: str, definition: Path) -> None:
    """Raise LockError when ``lock`` does not answer the definition as it is now."""
    if lock.digest != digest:
        raise LockError(
            f"{path_for(definition)} is stale: the base or conda section of {definition} changed since it was written",
            hint=f"conda-appliance lock {definition}",
        )

"""A locked Debian, some of its packages moved to what its suite has today, and no other; apt decides what that takes.

apt is told that the machine has the locked packages, as dpkg's status would have it, and is asked to install those that
are to move: so versions, Pre-Depends, Breaks and Conflicts are checked by what will check them on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from conda_appliance import bootstrap, sources
from conda_appliance.apt import Apt, RemoteFile, Steps
from conda_appliance.definition import Base
from conda_appliance.lock import DebianPackage, DebianSection


@dataclass(frozen=True, kw_only=True)
class Held:
    """A package that stays: ``version`` is what it would have become.

    ``others`` are the locked packages that would have to move with it, and ``lost`` those that could not stay.
    """

    name: str
    version: str
    others: tuple[str, ...]
    lost: tuple[str, ...]


def move(
    section: DebianSection,
    base: Base,
    names: Sequence[str],
    files: Mapping[str, Path],
    *,
    work: Path,
    progress: Callable[[str], None] = lambda _text: None,
) -> tuple[DebianSection, list[Held]]:
    """``section`` with ``names`` as new as the suite has them, and what stays because others would have to move.

    What a new version needs beside the locked packages comes, and what nothing needs any more goes: a kernel's next
    version is a package of another name. ``files`` are the locked packages by SHA-256; ``work`` is an empty folder.
    Raises as `Apt` does.
    """
    apt = Apt(section.suite, state=work / "apt", mirror=base.mirror, architecture=section.architecture)
    progress(f"Debian {section.suite}: reading the signed index")
    apt.update()
    progress(f"reading {len(section.packages)} packages")
    locked = {one.name for one in section.packages}
    apt.has(bootstrap.index(section, files), wanted=bootstrap.packages(base, section.architecture))
    going = list(dict.fromkeys(names))
    held: list[Held] = []
    while going and (kept := _held(apt, going, locked)):
        held += kept
        going = [name for name in going if name not in {one.name for one in kept}]
    if not going:
        return section, held
    gone = set(apt.steps(going, unneeded=True).removed)
    came = {one.name: one for one in packages_of(apt.moving(going))}
    packages = [came.pop(one.name, one) for one in section.packages if one.name not in gone]
    packages += [one for one in came.values() if one.name not in gone]
    return section.model_copy(update={"packages": tuple(packages), "glibc": glibc_of(packages)}), held


def _held(apt: Apt, names: Sequence[str], locked: set[str]) -> list[Held]:
    """Which of ``names`` would not move alone: each by itself; all, if only together they would not."""
    if not _besides(apt.steps(names), names, locked):
        return []
    found = []
    for name in names:
        steps = apt.steps([name])
        if others := _besides(steps, names, locked):
            found.append(_one(name, steps, others))
    if not found:
        steps = apt.steps(names)
        found = [_one(name, steps, _besides(steps, names, locked)) for name in names]
    return found


def _besides(steps: Steps, names: Sequence[str], locked: set[str]) -> set[str]:
    """The locked packages that would not stay as they are, though nobody named them."""
    return ((steps.installed.keys() & locked) | set(steps.removed)) - set(names)


def _one(name: str, steps: Steps, others: set[str]) -> Held:
    return Held(
        name=name,
        version=steps.installed.get(name, ""),
        others=tuple(sorted(others - set(steps.removed))),
        lost=tuple(sorted(steps.removed)),
    )


def packages_of(files: Iterable[RemoteFile]) -> tuple[DebianPackage, ...]:
    """What apt would download, as a lock has it."""
    packages = []
    for file in files:
        name, version, architecture = unquote(file.name.removesuffix(".deb")).split("_")
        packages.append(
            DebianPackage(
                name=name,
                version=version,
                architecture=architecture,
                url=file.url,
                sha256=file.sha256,
                size=file.size,
            )
        )
    return tuple(packages)


def glibc_of(packages: Iterable[DebianPackage]) -> str:
    """The version of the C library, without Debian's own part of it."""
    return next(one.version for one in packages if one.name == "libc6").partition("-")[0]


def downloads(section: DebianSection) -> tuple[sources.Download, ...]:
    """Every package of a locked Debian, as what is to be fetched."""
    return tuple(
        sources.Download(name=p.filename, url=p.url, sha256=p.sha256, size=p.size) for p in section.every
    )

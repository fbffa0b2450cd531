"""The linked environments and ``install.sh`` → the payload disc for a machine that already runs Linux.

``iso/payload/install.sh`` reads what is written here as ``installer/``; all that needs more than a shell is done now:
the lists of files, the places of the prefix (`relocation`), the units.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from conda_appliance import (
    disc,
    installation,
    package,
    payload,
    playbook,
    relocation,
    render,
    resources,
    trees,
    units,
)
from conda_appliance.definition import ImageDefinition
from conda_appliance.definition_disc import load_disc
from conda_appliance.disctree import Input
from conda_appliance.layers import Store
from conda_appliance.lock import Lock


def make(
    definition: ImageDefinition,
    lock: Lock,
    archives: Mapping[str, Path],
    to: Path,
    *,
    folder: Path,
    project: Path | None,
    store: Store,
    epoch: int,
    work: Path,
    channel: bool = False,
    progress: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Write the disc ``to`` and return it; the same inputs and ``epoch`` (seconds since 1970) give the same bytes.

    ``folder`` is the definition's, ``project`` may have an ``iso/`` and ``templates/`` of its own, ``archives`` are the
    packages by SHA-256, ``work`` is an empty folder for what is only needed meanwhile. With ``channel`` the disc is an
    offline conda channel too. Raises as `payload.environment`, `units.payload_units` and `disc.write` do.
    """
    payload.require_finished(lock, "a payload disc")
    linked = payload.of_image(definition, lock, archives, store=store, epoch=epoch, progress=progress)
    prefix = definition.conda.prefix
    tree = linked.path / prefix.lstrip("/")
    root = work / "root"
    root.mkdir()
    playbook.lay_files(definition, folder, root)
    progress("finding where the environments name their prefix")
    found = relocation.find(tree, prefix, lock, archives)
    installer = work / "installer"
    _write_installer(installer, definition, lock, tree, root, found, project)
    inputs: dict[str, Input] = {
        "environment.tar": payload.Tar(linked.path, [prefix], epoch),
        "lock": lock.text.encode(),
        "readme": _readme(definition, lock, project, channel=channel).encode(),
        "install.sh": resources.find("iso/payload/install.sh", project),
        "installer": installer,
        "root.tar": payload.Tar(root, [f"/{path.name}" for path in sorted(root.iterdir())], epoch),
    }
    if channel:
        progress("gathering the packages")
        inputs["channel"] = _channel(lock, archives, work / "channel")
    progress("writing the disc")
    return disc.write(load_disc(resources.find("iso/payload.yaml", project)), inputs, to, epoch=epoch)


def _write_installer(
    to: Path,
    definition: ImageDefinition,
    lock: Lock,
    tree: Path,
    root: Path,
    found: relocation.Relocations,
    project: Path | None,
) -> None:
    """What ``install.sh`` reads, each file in the form that suits a shell's ``read``."""
    to.mkdir()
    installation.copy_scripts(to, project)
    services = units.payload_units(definition, project=project)
    for kind in ("system", "user"):
        (to / kind).mkdir()
    for unit in services:
        installation.lines(to / "system" / f"{unit.name}.service", unit.system.splitlines())
        installation.lines(to / "user" / f"{unit.name}.service", unit.user.splitlines())
    installation.lines(
        to / "services", [f"{unit.name} {unit.port or '-'} {unit.command}" for unit in services]
    )
    installation.lines(to / "sysusers.conf", units.payload_users(definition, project=project).splitlines())
    below = {f"tree/{path}": about for path, about in trees.walk(tree) if path != "."}
    outside = {f"root/{path}": about for path, about in trees.walk(root) if path != "."}
    installation.require_plain([*below, *outside], "a payload disc")
    everything = {**below, **outside}
    files = [path for path, about in everything.items() if stat.S_ISREG(about.st_mode)]
    where = {"tree": tree, "root": root}
    installation.lines(to / "sums", [f"{resources.sha256_of(_at(where, path))}  {path}" for path in files])
    links = {
        path: str((tree / path[5:]).readlink())
        for path, about in below.items()
        if stat.S_ISLNK(about.st_mode)
    }
    installation.lines(to / "links", [f"{target}\t{path[5:]}" for path, target in links.items()])
    # As `du -a . | cut -f 2- | sort` names them on the machine.
    installation.lines(to / "paths", sorted([".", *(f"./{path[5:]}" for path in below)], key=os.fsencode))
    installation.lines(
        to / "root.paths", [path[5:] for path, about in outside.items() if not stat.S_ISDIR(about.st_mode)]
    )
    installation.lines(to / "relocations", found.lines)
    size = sum(about.st_size for about in everything.values())
    installation.lines(to / "about", installation.about(definition, lock, found, size, _identity(to, lock)))


def _identity(installer: Path, lock: Lock) -> str:
    """What names a version: everything that is installed is in these lists, by its SHA-256."""
    listed = trees.listing(installer, times=False)
    return hashlib.sha256(f"{trees.digest(trees.dump(listed))} {lock.digest}".encode()).hexdigest()[:12]


def _at(where: Mapping[str, Path], path: str) -> Path:
    top, _, inside = path.partition("/")
    return where[top] / inside


def _channel(lock: Lock, archives: Mapping[str, Path], to: Path) -> Path:
    """The packages as a channel: ``noarch/`` and its platform's, each with its repodata.json."""
    linked = [one for one in lock.conda.environments.values() if one.installer is None]
    packages = {one.sha256: one for section in linked for one in section.packages}
    for one in packages.values():
        path = to / one.subdir / one.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        resources.hard_link_or_copy(archives[one.sha256], path)
    package.write_repodata(to, lock.platform)
    return to


def _readme(definition: ImageDefinition, lock: Lock, project: Path | None, *, channel: bool) -> str:
    return render.text(
        "payload/README.txt.j2",
        project=project,
        name=definition.name,
        version=definition.version,
        summary=definition.summary,
        speaks=definition.platform.speaks,
        environments=[
            {"name": name, "prefix": section.prefix, "packages": len(section.packages)}
            for name, section in sorted(lock.conda.environments.items())
        ],
        channel=channel,
    )

"""conda packages → the linked environments, as a tree, and on the payload disc as one tar."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from conda_appliance import (
    bootstrap,
    bytecode,
    conda_child,
    disc,
    disctree,
    distribution,
    emulation,
    first_boot,
    layers,
    lazy,
    linking,
    namespace,
    post_link,
    prefix_check,
    process,
    resources,
    slim,
    trees,
)
from conda_appliance.definition import Base, ImageDefinition
from conda_appliance.definition_disc import load_disc
from conda_appliance.definition_slim import Part
from conda_appliance.errors import BuildError, HashMismatch, UsageError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import EnvironmentSection, Lock
from conda_appliance.platforms import PLATFORMS

if TYPE_CHECKING:
    from conda_appliance import wheels
else:
    wheels = lazy.module("conda_appliance.wheels")

#: How much of a file is read at once, in bytes.
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A payload disc: its file, size in bytes and SHA-256; ``made`` is False when the cache had it."""

    path: Path
    size: int
    sha256: str
    made: bool


def environment(
    lock: Lock,
    archives: Mapping[str, Path],
    *,
    store: Store,
    epoch: int,
    base: Base | None = None,
    subject: str = "",
    without: Sequence[Part] = (),
    progress: Callable[[str], None] = lambda _text: None,
) -> Layer:
    """Every environment of ``lock``, linked, as one tree whose root is the machine's: from the cache, or made now.

    ``archives`` are the lock's files by SHA-256. ``epoch`` (seconds since 1970) is every time stamp. ``base`` is the
    machine's, in whose system installers and post-link scripts run. ``without`` are the parts that a definition's
    ``slim`` leaves out. Raises HashMismatch naming a damaged package or file of a cached tree; BuildError as
    `linking.link`, `post_link.run`, `distribution.tree` and `slim.layer` do.
    """
    whole = _whole(
        lock,
        archives,
        store=store,
        epoch=epoch,
        system=lambda: _system(lock, base, archives, store, without, progress),
        subject=subject,
        progress=progress,
    )
    if not without:
        return whole
    prefixes = {name: section.prefix for name, section in lock.conda.environments.items()}
    return slim.layer(
        whole,
        prefixes,
        without,
        store=store,
        epoch=epoch,
        subject=subject,
        platform=PLATFORMS[lock.platform],
        starter=lambda: emulation.starter(lock.platform, lock.debian, archives, store),
        progress=progress,
    )


def of_image(
    definition: ImageDefinition,
    lock: Lock,
    archives: Mapping[str, Path],
    *,
    store: Store,
    epoch: int,
    progress: Callable[[str], None] = lambda _text: None,
) -> Layer:
    """`environment` as ``definition`` has it: in its base, without what it leaves out, used by its name."""
    return environment(
        lock,
        archives,
        store=store,
        epoch=epoch,
        base=definition.base,
        subject=f"{definition.name}{definition.platform.mark}",
        without=definition.slim,
        progress=progress,
    )


def _whole(
    lock: Lock,
    archives: Mapping[str, Path],
    *,
    store: Store,
    epoch: int,
    system: Callable[[], Layer],
    subject: str,
    progress: Callable[[str], None],
) -> Layer:
    """`environment` with all that its packages bring; ``system`` makes what scripts run in, where there are any."""
    sections = sorted(lock.conda.environments.items(), key=lambda one: one[1].prefix)
    same: layers.Parts = {
        "epoch": str(epoch),
        "code": layers.code(
            __file__,
            *(str(module.__file__) for module in (bytecode, conda_child, linking, prefix_check, wheels)),
            *([str(distribution.__file__)] if any(one.installer for _, one in sections) else []),
        ),
        "tools": {name: metadata.version(name) for name in ("py-rattler", "installer")},
        "prefixes": {name: section.prefix for name, section in sections},
    }
    parts: layers.Parts = {
        **same,
        "packages": {
            f"{name}/{package.name}": f"{package.version} {package.build} {package.sha256}"
            for name, section in sections
            for package in section.packages
        }
        | {
            f"{name}/pip:{wheel.name}": f"{wheel.version} {wheel.sha256}"
            for name, section in sections
            for wheel in section.wheels or ()
        },
        # The order of linking, and what records say of a package beside its archive.
        "records": layers.digest_of(
            section.model_dump(mode="json", exclude_none=True) for _, section in sections
        ),
    }
    scripted = any(section.post_link for _, section in sections)
    around: Layer | None = None
    if scripted and lock.conda.post_link == "build":
        around = system()
        code = layers.code(str(post_link.__file__), str(first_boot.__file__), str(namespace.__file__))
        parts = {**parts, "scripts": {"system": around.sha256, **code}}
    found = store.find("environment", parts, subject=subject)
    if found is not None:
        return found
    # What most changes leave as it is need not be linked again. What scripts changed has no package to go with.
    earlier = None if scripted else store.before("environment", subject, parts, same=same)
    home = min((section.prefix for _, section in sections), key=len, default="")
    sums: trees.Sums = {}

    def make(to: Path, work: Path) -> None:
        loader = emulation.starter(lock.platform, lock.debian, archives, store).words
        for name, section in sections:
            if section.installer is not None:
                laid = _laid(
                    section,
                    archives,
                    system,
                    store=store,
                    epoch=epoch,
                    loader=loader,
                    progress=progress,
                )
                into = to / section.prefix.lstrip("/")
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(laid, into, symlinks=True, copy_function=_copy)
                trees.settle(into, epoch)  # a copy of a folder has its own time
                continue
            progress(f"linking {len(section.packages)} packages into {name}")
            linking.link(
                section.packages,
                archives,
                prefix=section.prefix,
                into=to / section.prefix.lstrip("/"),
                epoch=epoch,
                work=work / "link",
                specs=section.specs,
                scripted=section.post_link or (),
                store=store,
                before=_before(earlier, name, section.prefix),
                platform=lock.platform,
                loader=loader,
                sums=sums,
            )
            if around is not None:
                post_link.run(
                    section,
                    root=to,
                    system=around.path,
                    base=home,
                    epoch=epoch,
                    work=work,
                    progress=progress,
                )
            if section.wheels:
                progress(f"installing {len(section.wheels)} wheels into {name}")
                wheels.install(
                    section.wheels,
                    archives,
                    into=to / section.prefix.lstrip("/"),
                    prefix=section.prefix,
                    epoch=epoch,
                    work=work / "link",
                    loader=loader,
                )
        # Folders above an environment, in another one too: as tar makes them on a machine, and after what they hold.
        inside = {PurePosixPath(section.prefix[1:]) for _, section in sections}
        for path in sorted({above for one in inside for above in (one, *one.parents)}, reverse=True):
            (to / path).chmod(0o755)
            os.utime(to / path, (epoch, epoch))

    return store.get(
        "environment",
        parts,
        make,
        subject=subject,
        progress=progress,
        like=earlier[0] if earlier else None,
        sums=sums,
    )


def _copy(source: str, to: str) -> None:
    layers.copy(Path(source), Path(to))


def _laid(
    section: EnvironmentSection,
    archives: Mapping[str, Path],
    system: Callable[[], Layer],
    *,
    store: Store,
    epoch: int,
    loader: Sequence[process.Argument],
    progress: Callable[[str], None],
) -> Path:
    """The environment that the installer of ``section`` makes. Raises BuildError when that is not what was locked."""
    installer = section.installer
    assert installer is not None
    made = distribution.tree(
        installer,
        archives[installer.sha256],
        prefix=section.prefix,
        system=lambda: system().path,
        store=store,
        epoch=epoch,
        loader=lambda: loader,
        progress=progress,
    )
    found, wanted = set(distribution.packages_of(made.path)), set(section.packages)
    if found != wanted:
        names = sorted({one.name for one in found ^ wanted})
        raise BuildError(
            f"{installer.filename} leaves other packages than the lock says: {trees.some(names)}",
            hint="it depends on more than its own bytes; lock it again, or take another installer",
        )
    return made.path


def require_finished(lock: Lock, what: str) -> None:
    """Raise UsageError where the environments wait for a machine's first boot, which ``what`` has not."""
    if lock.conda.post_link == "first-boot":
        names = [name for one in lock.conda.environments.values() for name in one.post_link or ()]
        raise UsageError(
            f"{what} has no first boot, on which the post-link scripts of {trees.some(names)} would run",
            hint="conda.post_link: build    runs them when the environments are linked",
        )


def _system(
    lock: Lock,
    base: Base | None,
    archives: Mapping[str, Path],
    store: Store,
    without: Sequence[Part],
    progress: Callable[[str], None],
) -> Layer:
    """The machine's own system, where scripts run: the very tree that it gets, without what ``slim`` leaves out."""
    if lock.debian is None or base is None:
        raise BuildError(
            "installers and post-link scripts run in the system of the machine, and its base has none before it boots",
            hint="take a Debian base, or packages without scripts",
        )
    namespace.require_root()
    return bootstrap.system(lock.debian, base, archives, store=store, progress=progress, without=without)


def _before(earlier: tuple[Layer, layers.Parts] | None, name: str, prefix: str) -> linking.Before | None:
    """The environment ``name`` of a layer that was made before, if it has one at ``prefix``."""
    if earlier is None:
        return None
    layer, parts = earlier
    inside = f"{prefix.lstrip('/')}/"
    folder = layer.path / inside
    if "scripts" in parts:
        return None
    named = parts["packages"]
    if isinstance(named, str) or not (folder / "conda-meta").is_dir():
        return None
    if any(one.startswith(f"{name}/pip:") for one in named):
        return None  # whose files are whose is what conda's records do not say
    return linking.Before(
        folder=folder,
        packages={
            one.partition("/")[2]: about.rpartition(" ")[2]
            for one, about in named.items()
            if one.partition("/")[0] == name
        },
        paths=[(path[len(inside) :], about) for path, about in layer.paths if path.startswith(inside)],
    )


def make(
    definition: ImageDefinition,
    lock: Lock,
    archives: Mapping[str, Path],
    *,
    store: Store,
    epoch: int,
    project: Path | None,
    lock_text: str,
    sbom: str = "",
    inventory: str = "",
    progress: Callable[[str], None] = lambda _text: None,
) -> Payload:
    """Link every environment of ``lock`` and write the payload disc, or take it from ``store`` when it is there.

    ``lock_text``, ``sbom`` and ``inventory`` go on the disc; ``project`` may have an ``iso/payload.yaml`` of its own.
    For the rest see `environment`. Raises HashMismatch naming what is damaged: a package, or a file of a disc in the
    cache, which is then set aside so that the next run makes it anew. Raises BuildError as `linking.link` and
    `disc.write` do.
    """
    linked = of_image(definition, lock, archives, store=store, epoch=epoch, progress=progress)
    layout = resources.find("iso/payload.yaml", project)
    readme = _readme(definition, lock)
    parts: layers.Parts = {
        "environment": linked.key,
        "lock": layers.digest_of([lock_text]),
        "sbom": layers.digest_of([sbom]),
        "inventory": layers.digest_of([inventory]),
        "readme": readme,
        "epoch": str(epoch),
        "layout": layout.read_text(encoding="utf-8"),
        "code": layers.code(__file__, str(disc.__file__), str(disctree.__file__)),
        "tools": {"pycdlib": metadata.version("pycdlib")},
    }

    def write(to: Path, _work: Path) -> None:
        progress("writing the disc")
        prefixes = [section.prefix for section in lock.conda.environments.values()]
        inputs: dict[str, disctree.Input] = {
            "environment.tar": Tar(linked.path, prefixes, epoch),
            "lock": lock_text.encode(),
            "readme": readme.encode(),
            **({"sbom": sbom.encode()} if sbom else {}),
            **({"inventory": inventory.encode()} if inventory else {}),
        }
        disc.write(load_disc(layout), inputs, to, epoch=epoch)

    found = store.get(
        "payload",
        parts,
        write,
        name="payload.iso",
        subject=definition.name,
        progress=progress,
        damage=_damaged,
    )
    return Payload(path=found.path, size=found.path.stat().st_size, sha256=found.sha256, made=found.made)


class Tar:
    """The environments below ``root`` as one tar, made while it is read (`disctree.Stream`).

    Uncompressed, because unpacking is what costs in a guest. Members are sorted, belong to root, carry
    ``epoch`` as their time, and are named from the machine's root: ``opt/conda/…``. The folders above an
    environment are the machine's own and left out.
    """

    def __init__(self, root: Path, prefixes: list[str], epoch: int) -> None:
        tops = [one for one in sorted(set(prefixes)) if not any(one.startswith(f"{up}/") for up in prefixes)]
        self._take([(root / top.lstrip("/"), top.lstrip("/")) for top in tops], epoch)

    @classmethod
    def of(cls, folders: Sequence[Path], epoch: int) -> Tar:
        """What ``folders`` hold, named from there, one after the other."""
        made = cls.__new__(cls)
        inside = [(path, path.name) for folder in folders for path in sorted(folder.iterdir())]
        made._take(inside, epoch)
        return made

    def _take(self, tops: Sequence[tuple[Path, str]], epoch: int) -> None:
        self._members = [member for path, name in tops for member in _members(path, name, epoch)]
        content = sum(
            len(head) + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for head, _, size in self._members
        )
        #: The end is two empty blocks, filled up to a record.
        self._end = 2 * tarfile.BLOCKSIZE + -(content + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE
        self.size = content + self._end

    def chunks(self) -> Iterator[bytes]:
        """The tar's bytes. Raises BuildError when a file changed its size meanwhile."""
        for head, path, size in self._members:
            yield head
            if path is not None:
                yield from _content(path, size)
        yield bytes(self._end)


def _members(path: Path, name: str, epoch: int) -> Iterator[tuple[bytes, Path | None, int]]:
    """(header, file to read, its size) for ``path`` and all below it, in order."""
    about = path.lstat()
    info = tarfile.TarInfo(name)
    info.uname = info.gname = "root"
    info.mtime = epoch
    info.mode = about.st_mode & 0o7777
    source: Path | None = None
    if path.is_symlink():
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777  # noqa: PTH115 (exactly)
    elif path.is_dir():
        info.type = tarfile.DIRTYPE
    else:
        info.size, source = about.st_size, path
    yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"), source, info.size
    if info.isdir():
        for child in sorted(path.iterdir(), key=lambda child: child.name):
            yield from _members(child, f"{name}/{child.name}", epoch)


def _content(path: Path, size: int) -> Iterator[bytes]:
    count = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            count += len(block)
            yield block
    if count != size:
        raise BuildError(f"{path} changed while it was packed", hint="run the build again")
    yield bytes(-size % tarfile.BLOCKSIZE)


def _damaged(path: Path) -> str:
    """Which part of a damaged disc is damaged, as far as it can be told."""
    try:
        disc.verify(path)
    except HashMismatch as error:
        return error.what
    except BuildError:
        return f"the directory of the disc {path}"
    return f"the disc {path} (outside its files)"


def _readme(definition: ImageDefinition, lock: Lock) -> str:
    title = f"{definition.name} {definition.version}" + (
        f": {definition.summary}" if definition.summary else ""
    )
    rows = "\n".join(
        f"  {section.prefix}    ({name}, {len(section.packages)} packages)"
        for name, section in sorted(lock.conda.environments.items())
    )
    return f"""{title}

This disc holds conda environments, linked for the path where they belong:

{rows}

Check it:   cd MOUNTPOINT && sha256sum --check SHA256SUMS
Unpack it:  tar --extract --file environment.tar --directory /        (as root)

appliance.lock names every package by URL and SHA-256.
"""

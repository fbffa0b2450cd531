"""conda packages → the payload disc: the environments, linked for their final path, as one tar.

A made disc stays in the cache under the hash of all that it depends on, with its SHA-256 beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from conda_appliance import conda, disc, prefix_check, resources
from conda_appliance.definition import ImageDefinition, load_disc
from conda_appliance.errors import BuildError, HashMismatch
from conda_appliance.lock import Lock

#: How much of a file is read at once, in bytes.
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Payload:
    """A payload disc: its file, size in bytes and SHA-256; ``made`` is False when the cache had it."""

    path: Path
    size: int
    sha256: str
    made: bool


def make(
    definition: ImageDefinition,
    lock: Lock,
    archives: Mapping[str, Path],
    *,
    cache: Path,
    epoch: int,
    project: Path | None,
    lock_text: str,
) -> Payload:
    """Link every environment of ``lock`` and write the payload disc, or take it from ``cache`` when it is there.

    ``archives`` are the packages by SHA-256. ``epoch`` (seconds since 1970) is every time stamp.
    ``lock_text`` goes on the disc; ``project`` may have an ``iso/payload.yaml`` of its own.
    Raises HashMismatch naming what is damaged: a package, or a file of a disc in the cache, which is then set
    aside so that the next run makes it anew. Raises BuildError as `conda.link` and `disc.write` do.
    """
    layout = resources.find("iso/payload.yaml", project)
    readme = _readme(definition, lock)
    key = _key(lock, lock_text, readme, epoch, layout)
    final = cache / "payload" / key
    if found := _reuse(final):
        return found
    with resources.work_folder(final.parent, key) as work:
        root = work / "root"
        for section in sorted(lock.conda.environments.values(), key=lambda one: one.prefix):
            conda.link(
                section.packages,
                archives,
                prefix=section.prefix,
                into=root / section.prefix.lstrip("/"),
                epoch=epoch,
                work=work / "link",
                specs=section.specs,
            )
        made = work / "made"
        made.mkdir()
        prefixes = [section.prefix for section in lock.conda.environments.values()]
        inputs: dict[str, disc.Input] = {
            "environment.tar": Tar(root, prefixes, epoch),
            "lock": lock_text.encode(),
            "readme": readme.encode(),
        }
        image = disc.write(load_disc(layout), inputs, made / "payload.iso", epoch=epoch)
        digest = resources.sha256_of(image)
        (made / "payload.iso.sha256").write_text(f"{digest}  payload.iso\n", encoding="utf-8")
        resources.remove(final)
        made.rename(final)
    path = final / "payload.iso"
    return Payload(path=path, size=path.stat().st_size, sha256=digest, made=True)


class Tar:
    """The environments below ``root`` as one tar, made while it is read (`disc.Stream`).

    Uncompressed, because unpacking is what costs in a guest. Members are sorted, belong to root, carry
    ``epoch`` as their time, and are named from the machine's root: ``opt/conda/…``. The folders above an
    environment are the machine's own and left out.
    """

    def __init__(self, root: Path, prefixes: list[str], epoch: int) -> None:
        tops = [one for one in sorted(set(prefixes)) if not any(one.startswith(f"{up}/") for up in prefixes)]
        self._members = [
            member for top in tops for member in _members(root / top.lstrip("/"), top.lstrip("/"), epoch)
        ]
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


# --- the cache --------------------------------------------------------------------------------------


def _key(lock: Lock, lock_text: str, readme: str, epoch: int, layout: Path) -> str:
    """The hash of everything that decides the disc's bytes: what goes in, and the code that makes it."""
    modules = (conda, disc, prefix_check)
    code = [Path(__file__), *(Path(str(module.__file__)) for module in modules)]
    parts = {
        "conda": lock.conda.model_dump(mode="json"),
        "lock": lock_text,
        "readme": readme,
        "epoch": epoch,
        "layout": layout.read_text(encoding="utf-8"),
        "code": [resources.sha256_of(path) for path in code],
        "tools": {name: metadata.version(name) for name in ("py-rattler", "pycdlib")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _reuse(folder: Path) -> Payload | None:
    """The disc that was made before, if it is still what it was."""
    path, beside = folder / "payload.iso", folder / "payload.iso.sha256"
    if not path.exists() or not beside.exists():
        return None
    expected = beside.read_text(encoding="utf-8").partition(" ")[0]
    found = resources.sha256_of(path)
    if found == expected:
        return Payload(path=path, size=path.stat().st_size, sha256=found, made=False)
    what = _damaged(path)
    aside = folder.with_name(f"{folder.name}.damaged")
    resources.remove(aside)
    folder.rename(aside)
    raise HashMismatch(
        what, expected=expected, found=found, hint=f"it was set aside in {aside}; run again: it is made anew"
    )


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

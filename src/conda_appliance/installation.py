"""What linked environments carry with them to a machine where a shell moves and installs them: the lists it reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from conda_appliance import relocation, resources, trees
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import Lock


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What a form without a disk is made from.

    ``linked`` are the environments, as a tree whose root is the machine's; ``archives`` the packages by SHA-256;
    ``folder`` is the definition's; ``project`` may have templates of its own; ``epoch`` (seconds since 1970) is every
    time stamp.
    """

    image: ImageDefinition
    lock: Lock
    linked: Layer
    archives: Mapping[str, Path]
    folder: Path
    project: Path | None
    store: Store
    epoch: int

    @property
    def tree(self) -> Path:
        """What will stand at the prefix."""
        return self.linked.path / self.image.conda.prefix.lstrip("/")

    @cached_property
    def relocations(self) -> relocation.Relocations:
        """Where that names the prefix."""
        return relocation.find(self.tree, self.image.conda.prefix, self.lock, self.archives)


def copy_scripts(to: Path, project: Path | None) -> None:
    """Put what moves environments to another prefix into the folder ``to``."""
    for name in ("relocate.sh", "bytecode.py"):
        (to / name).write_bytes(resources.find(f"iso/payload/{name}", project).read_bytes())
        (to / name).chmod(0o644)


def about(
    definition: ImageDefinition, lock: Lock, found: relocation.Relocations, size: int, identity: str
) -> Iterator[str]:
    """``KEY VALUE`` lines; ``size`` is what is unpacked, in bytes."""
    yield f"name {definition.name}"
    yield f"version {definition.version}"
    yield f"summary {' '.join(definition.summary.split())}"
    yield f"machine {definition.platform.machine}"
    yield f"id {identity}"
    yield f"prefix {definition.conda.prefix}"
    yield f"longest {found.longest}"
    if found.fixed:
        yield f"fixed {found.fixed}"
    yield f"kilobytes {-(-size // 1024)}"
    yield f"packages {sum(len(section.packages) for section in lock.conda.environments.values())}"
    for name, section in sorted(lock.conda.environments.items()):
        yield f"environment {name}:{section.prefix.removeprefix(definition.conda.prefix)}"


def require_plain(paths: Sequence[str], place: str) -> None:
    """Lists hold a path a line, and sha256sum writes others in its own way. Raises BuildError naming those."""
    odd = [path for path in paths if re.search(r"[\x00-\x1f\\]", path)]
    if odd:
        raise BuildError(
            f"these files cannot be put on {place}: {trees.some([repr(path) for path in odd])}",
            hint="their names hold a control character or a backslash: rename them, or leave the package out",
        )


def lines(path: Path, lines: Iterable[str]) -> None:
    """Write a list, a line each."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    path.chmod(0o644)

"""Builders: what turns a definition and its lock into a provisioned disk image.

A builder is a module that satisfies `Builder`; `BUILDERS` is the one place that lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from conda_appliance import lazy
from conda_appliance.builders.job import Boxed, DiskImage, Job
from conda_appliance.buildtree import BuildTree
from conda_appliance.definition import ImageDefinition

__all__ = ["BUILDERS", "Boxed", "Builder", "DiskImage", "Job"]


class Builder(Protocol):
    """What a builder can do."""

    def tools(self, image: ImageDefinition) -> tuple[str, ...]:
        """The programs of the host that it needs for ``image``."""
        ...

    def version(self) -> str:
        """The version of its main program, e.g. ``1.6.6``."""
        ...

    def render(self, job: Job, into: Path) -> BuildTree:
        """Write the ordinary files of a build into the new folder ``into``, and make what they name."""
        ...

    def build(self, job: Job, tree: BuildTree, *, logs: Path) -> DiskImage:
        """Run the build that ``tree`` describes; all logs go to ``logs``. Raises BuildError."""
        ...


if TYPE_CHECKING:
    from conda_appliance.builders import packer, rootfs

    BUILDERS: dict[str, Builder] = {"packer": packer, "rootfs": rootfs}
else:
    BUILDERS = {name: lazy.module(f"conda_appliance.builders.{name}") for name in ("packer", "rootfs")}

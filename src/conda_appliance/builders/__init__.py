"""Builders: what turns a base disk and a payload into a provisioned disk image.

A builder is a module that satisfies `Builder`; `BUILDERS` is the one place that lists them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from conda_appliance.builders import packer
from conda_appliance.builders.packer import DiskImage
from conda_appliance.log import Step
from conda_appliance.render import BuildTree

__all__ = ["BUILDERS", "Builder", "DiskImage"]


class Builder(Protocol):
    """What a builder can do."""

    def tools(self) -> tuple[str, ...]:
        """The programs of the host that it needs."""
        ...

    def version(self) -> str:
        """The version of its main program, e.g. ``1.6.6``."""
        ...

    def build(self, tree: BuildTree, *, logs: Path, step: Step, keep_failed: bool = False) -> DiskImage:
        """Run the build that ``tree`` describes; all logs go to ``logs``. Raises BuildError."""
        ...


BUILDERS: dict[str, Builder] = {"packer": packer}

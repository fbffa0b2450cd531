"""Looks into a raw disk of ours with e2fsprogs' programs, without mounting it."""

from __future__ import annotations

from pathlib import Path

from conda_appliance import process
from conda_appliance.disk import ROOT_START, SECTOR


class Inside:
    """What can be asked of the root file system in ``raw``."""

    raw: Path

    @property
    def file_system(self) -> str:
        """The root file system as e2fsprogs' programs name one inside a disk."""
        return f"{self.raw}?offset={ROOT_START * SECTOR}"

    def debugfs(self, request: str) -> str:
        return process.run(["debugfs", "-R", request, self.file_system]).stdout

    def read(self, path: str) -> str:
        return self.debugfs(f"cat {path}")

    def names(self, path: str) -> set[str]:
        """What a folder holds."""
        lines = self.debugfs(f"ls -p {path}").splitlines()
        return {line.split("/")[5] for line in lines if line.count("/") >= 6} - {".", ".."}

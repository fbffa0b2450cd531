"""What the makers of a channel's packages share: the job, and where it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from conda_appliance import sources
from conda_appliance.apt import Apt, RemoteFile
from conda_appliance.package import Package
from conda_appliance.platforms import Platform
from conda_appliance.recipes import Pin, Recipes

#: Raised when what is written for the same recipe and sources changes.
FORMAT = 3

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One package to make: ``key`` is the hash of its recipe and sources, ``make`` fills a folder with it."""

    name: str
    key: str
    make: Callable[[Path], Package]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """One run over the recipes of ``folder`` for ``platform``.

    ``work`` is a folder for what is only needed meanwhile.
    """

    recipes: Recipes
    folder: Path
    store: sources.Cache
    work: Path
    progress: Progress
    platform: Platform
    _apts: dict[str, Apt] = field(default_factory=dict, init=False)

    @property
    def pins(self) -> dict[str, Pin]:
        """The wheels of the platform, by name."""
        found = {name: one.on(self.platform.name) for name, one in self.recipes.wheels.items()}
        return {name: one for name, one in found.items() if one is not None}

    def apt(self, suite: str) -> Apt:
        """The signed index of a Debian suite, read at the first call."""
        if suite not in self._apts:
            self.progress(f"reading Debian {suite}'s signed index")
            python = self.recipes.python
            apt = Apt(
                suite,
                state=self.work / "apt" / f"{suite}-{self.platform.debian}",
                architecture=self.platform.debian,
                sources=python is not None and python.suite == suite,
            )
            apt.update()
            self._apts[suite] = apt
        return self._apts[suite]

    def have(self, files: Iterable[RemoteFile]) -> list[Path]:
        """The files, fetched and verified. Raises as `sources.fetch` does."""
        wanted = [sources.Download(name=f.name, url=f.url, sha256=f.sha256, size=f.size) for f in files]
        sources.fetch(wanted, self.store, offline=False, progress=self.progress)
        return [self.store.verified(one.sha256, one.name) for one in wanted]


def provenance(files: Iterable[RemoteFile]) -> dict[str, object]:
    """What a package says of the files that it was made from."""
    return {"sources": [{"name": unquote(file.name), "sha256": file.sha256} for file in files]}


def digest(*parts: object) -> str:
    """16 hexadecimal digits of the hash of what decides a package."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

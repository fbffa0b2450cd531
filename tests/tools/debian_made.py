"""What tests of a Debian base share: small definitions, and a Debian that was resolved and made for real."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import (
    bootstrap,
    definition,
    layers,
    namespace,
    process,
    resolve,
    resources,
    sources,
    trees,
)
from conda_appliance.definition import ImageDefinition
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, DebianSection, ImageSection, Lock

DEFINITION = """
name: base
version: "1"
base: {BASE}
conda:
  channels: [starter]
  environments: {{base: {{dependencies: [python]}}}}
disk: {{size: SIZE}}
"""


def written(folder: Path, base: str, size: str = "2GiB") -> ImageDefinition:
    path = folder / "base.yaml"
    path.write_text(
        DEFINITION.replace("BASE", base).replace("SIZE", size).replace("{{", "{").replace("}}", "}")
    )
    return definition.load_image(path)


def lock_of(*, debian: DebianSection | None = None, image: ImageSection | None = None) -> Lock:
    return Lock(
        name="base",
        digest="0" * 64,
        tools={},
        debian=debian,
        image=image,
        conda=CondaSection(virtual_packages=(), environments={}),
    )


@dataclass(frozen=True, kw_only=True)
class Debian:
    """Debian 13 with one package more, as its lock names it and as a tree."""

    image: ImageDefinition
    section: DebianSection
    files: dict[str, Path]
    store: Store
    system: Layer


def debian(folder: Path) -> Debian:
    """Resolved from the mirror and made for real; kept in the user's cache, where a build finds it too."""
    image = written(folder, "{debian: trixie, packages: [netcat-openbsd]}")
    cache = sources.Cache(resources.cache_root())
    section = resolve.debian_section(image, cache)
    wanted = [
        sources.Download(name=p.filename, url=p.url, sha256=p.sha256, size=p.size) for p in section.packages
    ]
    sources.fetch(wanted, cache, offline=False, progress=lambda _: None)
    files = {one.sha256: cache.verified(one.sha256, one.name) for one in wanted}
    store = Store(cache.root / layers.FOLDER)
    system = bootstrap.system(section, image.base, files, store=store, progress=lambda _: None)
    return Debian(image=image, section=section, files=files, store=store, system=system)


class System:
    """A Debian that nobody booted: ``below`` is its root, and what is written lands in ``work/upper``.

    The folder ``payload`` is its /run/payload.
    """

    def __init__(self, below: Path, payload: Path, work: Path) -> None:
        self.below, self.payload, self.work = below, payload, work

    def run(self, script: str) -> str:
        """Run a shell script beside its root, which is the folder ``root``; returns what it says."""
        mounted, variables = namespace.script(
            self.work, [self.below], upper="upper", payload=self.payload, system=True
        )
        command = namespace.isolated(mounted, ["sh", "-euc", script])
        return process.run(command, env={**variables, "DEBIAN_FRONTEND": "noninteractive"}).stdout

    def written(self) -> set[str]:
        """What is there and was not, but package managers' own notes and users."""
        own = (
            r"\.|dev.*|run|tmp|proc|etc|etc/(passwd|group|g?shadow|subuid|subgid)-?|etc/\.pwd\.lock"
            r"|var|var/lib|var/(lib/(dpkg|rpm)|log|cache)(/.*)?"
        )
        listed = [path for path, _ in trees.walk(self.work / "upper") if not re.fullmatch(own, path)]
        return {path for path in listed if not (self.below / path).exists()}

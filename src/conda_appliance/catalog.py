"""The boxes of several versions → the catalog from which Vagrant adds and updates them.

Source: https://developer.hashicorp.com/vagrant/docs/boxes/format#box-metadata: versions, each with its providers,
each with a URL, which is absolute, and a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conda_appliance import boxes, formats, layers, manifest, resources
from conda_appliance.errors import ApplianceError, UsageError
from conda_appliance.manifest import ArtifactRecord, Manifest


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box of a finished build."""

    path: Path
    record: ArtifactRecord

    @property
    def provider(self) -> str:
        """Whose it is, as Vagrant says it."""
        return boxes.PROVIDERS[self.record.format]


def refresh(home: Path) -> Path | None:
    """Write ``home/NAME.json`` over the boxes of all builds in ``home``, out/NAME/; None when none has any.

    Its URLs lead to the files where they are. Of builds of one version the latest counts.
    """
    found = _builds(home)
    if not found:
        return None
    name = next(iter(found.values())).name
    versions = [
        _version(
            written, {box.provider: (box.path.as_uri(), box.record.sha256) for box in _boxes(folder, written)}
        )
        for folder, written in found.items()
    ]
    target = home / f"{name}.json"
    resources.write(target, _text(name, next(reversed(found.values())).summary, versions))
    return target


def publish(home: Path, to: Path, url: str) -> Path:
    """Copy the boxes of the latest build in ``home`` to the folder ``to``, and put them in its catalog NAME.json.

    ``url`` is where the folder is found; without it, its own file URL. Versions that the catalog has stay, but the one
    that is published. Raises UsageError when the build has no boxes, or what is there is no catalog.
    """
    folder = (home / "latest").resolve()
    written = manifest.read(folder) if (folder / manifest.NAME).is_file() else None
    ours = _boxes(folder, written) if written else []
    if written is None or not ours:
        raise UsageError(
            f"the latest build in {home} has no Vagrant boxes",
            hint="add box-libvirt to the definition's formats and build it",
        )
    if bad := manifest.damaged(folder, written):
        raise UsageError(f"{folder} is damaged ({', '.join(bad)})", hint="build it again")
    to.mkdir(parents=True, exist_ok=True)
    target = to / f"{written.name}.json"
    base = (url or to.resolve().as_uri()).rstrip("/")
    with resources.work_folder(to, f".{written.name}") as work:
        others = [one for one in _read(target, written.name) if one["version"] != written.version]
        for box in ours:
            layers.copy(box.path, work / box.path.name)
            (work / box.path.name).replace(to / box.path.name)
        providers = {box.provider: (f"{base}/{box.path.name}", box.record.sha256) for box in ours}
        versions = [*others, _version(written, providers)]
        resources.write(target, _text(written.name, written.summary, versions))
    return target


def _builds(home: Path) -> dict[Path, Manifest]:
    """The builds with boxes, one of each version, the oldest first."""
    latest = (home / "latest").resolve()
    found = []
    for record in home.glob(f"[!.]*/{manifest.NAME}"):
        folder = record.parent.resolve()
        try:
            written = manifest.read(folder)
        except ApplianceError:
            continue
        if _boxes(folder, written):
            found.append((folder == latest, written.created, folder, written))
    one_each = {
        written.version: (folder, written) for _, _, folder, written in sorted(found, key=lambda one: one[:3])
    }
    return dict(sorted(one_each.values(), key=lambda one: one[1].created))


def _boxes(folder: Path, written: Manifest) -> list[Box]:
    return [
        Box(path=folder / one.file, record=one)
        for one in written.artifacts
        if formats.BY_NAME[one.format].family == "box"
    ]


def _version(written: Manifest, providers: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """A version as the catalog has it; ``providers``: name → URL and SHA-256."""
    return {
        "version": written.version,
        "providers": [
            {
                "name": name,
                "url": url,
                "checksum_type": "sha256",
                "checksum": digest,
                "architecture": "amd64",
                "default_architecture": True,
            }
            for name, (url, digest) in providers.items()
        ],
    }


def _text(name: str, summary: str, versions: Iterable[Mapping[str, Any]]) -> str:
    value = {"name": name, "description": summary, "versions": list(versions)}
    return json.dumps(value, indent=2) + "\n"


def _read(path: Path, name: str) -> list[dict[str, Any]]:
    """The versions of a catalog that is there. Raises UsageError for another file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        versions: list[dict[str, Any]] = value["versions"]
        theirs = value["name"] == name and all("version" in one for one in versions)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, LookupError, TypeError):
        theirs = False
    if not theirs:
        raise UsageError(
            f"{path} is there, and is no catalog of {name}", hint="name another folder with --to"
        )
    return versions

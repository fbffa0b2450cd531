"""The boxes of several versions → the catalog from which Vagrant adds and updates them.

Source: https://developer.hashicorp.com/vagrant/docs/boxes/format#box-metadata: versions, each with its providers,
each with a URL, which is absolute, and a checksum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conda_appliance import boxes, formats, layers, manifest, resources
from conda_appliance.errors import ApplianceError, UsageError
from conda_appliance.manifest import ArtifactRecord, Manifest
from conda_appliance.platforms import DEFAULT, PLATFORMS

#: The link to the latest build (`results`).
LATEST = "latest"


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

    Its URLs lead to the files where they are. Of builds of one version for one platform the latest counts.
    """
    found = _builds(home)
    if not found:
        return None
    last = found[-1][1]
    versions: dict[str, list[dict[str, Any]]] = {}
    for folder, written in found:
        urls = {box: box.path.as_uri() for box in _boxes(folder, written)}
        versions.setdefault(written.version, []).extend(_providers(written, urls))
    target = home / f"{last.name}.json"
    resources.write(target, _text(last.name, last.summary, versions))
    return target


def publish(home: Path, to: Path, url: str) -> Path:
    """Copy the boxes of the latest builds in ``home`` (one of each platform) to the folder ``to``, and put them in its
    catalog NAME.json.

    ``url`` is where the folder is found; without it, its own file URL. What the catalog has stays, but the boxes of the
    versions that are published, for the same platforms. Raises UsageError when no build has boxes, or what is there is
    no catalog.
    """
    found = [(folder, manifest.read(folder)) for folder in _latest(home)]
    ours = [(folder, written, boxes) for folder, written in found if (boxes := _boxes(folder, written))]
    if not ours:
        raise UsageError(
            f"the latest build in {home} has no Vagrant boxes",
            hint="add box-libvirt to the definition's formats and build it",
        )
    for folder, written, _ in ours:
        if bad := manifest.damaged(folder, written):
            raise UsageError(f"{folder} is damaged ({', '.join(bad)})", hint="build it again")
    to.mkdir(parents=True, exist_ok=True)
    first = ours[0][1]
    target = to / f"{first.name}.json"
    base = (url or to.resolve().as_uri()).rstrip("/")
    with resources.work_folder(to, f".{first.name}") as work:
        versions = {one["version"]: one["providers"] for one in _read(target, first.name)}
        for _, written, boxes in ours:
            for box in boxes:
                layers.copy(box.path, work / box.path.name)
                (work / box.path.name).replace(to / box.path.name)
            made = _providers(written, {box: f"{base}/{box.path.name}" for box in boxes})
            architecture = PLATFORMS[written.platform].debian
            others = [
                one for one in versions.pop(written.version, []) if one.get("architecture") != architecture
            ]
            versions[written.version] = [*others, *made]
        resources.write(target, _text(first.name, first.summary, versions))
    return target


def _latest(home: Path) -> list[Path]:
    """The latest build of each platform, that of the definition's first one first."""
    links = [home / LATEST, *(home / f"{LATEST}-{platform}" for platform in PLATFORMS)]
    return [link.resolve() for link in links if (link / manifest.NAME).is_file()]


def _builds(home: Path) -> list[tuple[Path, Manifest]]:
    """The builds with boxes, one of each version and platform, the oldest first."""
    latest = _latest(home)
    found = []
    for record in home.glob(f"[!.]*/{manifest.NAME}"):
        folder = record.parent.resolve()
        try:
            written = manifest.read(folder)
        except ApplianceError:
            continue
        if _boxes(folder, written):
            found.append((folder in latest, written.created, folder, written))
    one_each = {
        (written.version, written.platform): (folder, written)
        for _, _, folder, written in sorted(found, key=lambda one: one[:3])
    }
    return sorted(one_each.values(), key=lambda one: one[1].created)


def _boxes(folder: Path, written: Manifest) -> list[Box]:
    return [
        Box(path=folder / one.file, record=one)
        for one in written.artifacts
        if formats.BY_NAME[one.format].family == "box"
    ]


def _providers(written: Manifest, urls: Mapping[Box, str]) -> list[dict[str, Any]]:
    """The boxes of a build as a version of the catalog has them; ``urls`` are where they are."""
    return [
        {
            "name": box.provider,
            "url": url,
            "checksum_type": "sha256",
            "checksum": box.record.sha256,
            "architecture": PLATFORMS[written.platform].debian,
        }
        for box, url in urls.items()
    ]


def _text(name: str, summary: str, versions: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The catalog of these versions, each with its providers. Vagrant before 2.4 takes the architecture marked so."""
    listed = []
    for version, providers in versions.items():
        known = {str(one.get("architecture")) for one in providers}
        usual = PLATFORMS[DEFAULT].debian if PLATFORMS[DEFAULT].debian in known else min(known)
        marked = [{**one, "default_architecture": one.get("architecture") == usual} for one in providers]
        listed.append({"version": version, "providers": marked})
    value = {"name": name, "description": summary, "versions": listed}
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

"""What a build says of itself: manifest.json for programs, SHA256SUMS for ``sha256sum -c``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from conda_appliance import platforms, resources, trees
from conda_appliance.errors import BuildError
from conda_appliance.lock import Lock

NAME = "manifest.json"
SUMS = "SHA256SUMS"
_SEEN = ".seen"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArtifactRecord(_Record):
    """An artifact by its file name; sizes in bytes. ``virtual_size`` is the machine's disk, 0 for what is none."""

    file: str
    format: str
    size: int
    virtual_size: int
    sha256: str
    #: What it was made from, where that is the same each time (`export.source_of`).
    source: str = ""
    #: How long it took when it was made, in seconds, beside whatever was made at the same time.
    seconds: float = 0.0


class CheckRecord(_Record):
    """What the checks on the booted machine said; ``digest`` is of the checks themselves."""

    digest: str
    passed: int
    failed: int
    skipped: int
    seconds: float


class SlimRecord(_Record):
    """What was left out of an environment, in bytes: its size ``before``, what was ``saved``, and by which part."""

    before: int
    saved: int
    parts: dict[str, int]


class Manifest(_Record):
    """The output record of a build. ``created`` is ISO 8601 in UTC, ``steps`` are seconds by title."""

    manifest: int = 1
    name: str
    version: str
    summary: str
    platform: str = platforms.DEFAULT
    id: str
    created: str
    builder: str
    accelerator: str | None
    artifacts: tuple[ArtifactRecord, ...]
    inputs: dict[str, str]
    tools: dict[str, str]
    packages: dict[str, int]
    check: CheckRecord | None
    steps: dict[str, float]
    #: By environment; empty where nothing was left out.
    slim: dict[str, SlimRecord] = {}


def package_counts(lock: Lock) -> dict[str, int]:
    """How many packages of each kind the image holds."""
    counts = {f"conda:{name}": len(section.packages) for name, section in lock.conda.environments.items()}
    counts |= {f"pip:{name}": len(one.wheels) for name, one in lock.conda.environments.items() if one.wheels}
    if lock.debian is not None:
        counts["debian"] = len(lock.debian.packages)
    return counts


def write(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json and SHA256SUMS into ``folder``: over the artifacts, the lock, the bills and the manifest."""
    (folder / NAME).write_text(
        json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8"
    )
    seen = {record.file: trees.seen(trees.all_of(folder / record.file)) for record in manifest.artifacts}
    (folder / _SEEN).write_text(json.dumps(seen), encoding="utf-8")
    sums = {record.file: record.sha256 for record in manifest.artifacts}
    beside = [path for pattern in ("*.lock", "*.cdx.json", "*.spdx.json") for path in folder.glob(pattern)]
    for path in (folder / NAME, *sorted(beside)):
        sums[path.name] = resources.sha256_of(path)
    (folder / SUMS).write_text(
        "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())), encoding="utf-8"
    )


def read(folder: Path) -> Manifest:
    """Read a result's manifest. Raises BuildError when ``folder`` holds no finished build."""
    try:
        return Manifest.model_validate_json((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(f"{folder} holds no finished build") from None
    except (OSError, ValidationError) as error:
        raise BuildError(f"{folder / NAME} cannot be read: {error}") from None


def damaged(folder: Path, manifest: Manifest) -> list[str]:
    """The artifacts of a result that are missing or no longer have the bytes that the manifest names.

    One of which the file system says what it said when the manifest was written (`trees.seen`) is not read.
    """
    try:
        seen: dict[str, str] = json.loads((folder / _SEEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        seen = {}
    return [
        record.file
        for record in manifest.artifacts
        if not (folder / record.file).is_file()
        or (
            seen.get(record.file) != trees.seen(trees.all_of(folder / record.file))
            and resources.sha256_of(folder / record.file) != record.sha256
        )
    ]


def tree_digest(paths: Iterable[Path]) -> str:
    """The SHA-256 of files and folders: names, modes' execute bits, links and contents; order does not matter."""
    digest = hashlib.sha256()
    for root in sorted(paths):
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if "__pycache__" in path.parts:
                continue
            name = path.name if path == root else str(path.relative_to(root))
            if path.is_symlink():
                digest.update(f"link {name} {path.readlink()}\n".encode())
            elif path.is_file():
                executable = path.stat().st_mode & 0o111 != 0
                digest.update(f"file {name} {executable} {resources.sha256_of(path)}\n".encode())
            else:
                digest.update(f"folder {name}\n".encode())
    return digest.hexdigest()


def summary(manifest: Manifest, folder: Path, seconds: Mapping[str, float]) -> Sequence[str]:
    """The lines that end a build: each step's time, then what came out."""
    width = max((len(title) for title in seconds), default=0)
    lines = [f"  {title:<{width}}  {spent:7.1f} s" for title, spent in seconds.items()]
    for record in manifest.artifacts:
        lines.append(f"{folder / record.file}")
        disk = f" ({resources.size_text(record.virtual_size)} for the machine)" if record.virtual_size else ""
        lines.append(f"  {resources.size_text(record.size)}{disk}, SHA-256 {record.sha256}")
    return lines


def as_json(value: Any) -> str:
    """``value`` as the JSON that programs read."""
    return json.dumps(value, indent=2, sort_keys=False)

"""A build's id: the hash of everything that decides what an image holds."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from conda_appliance import lock, manifest, playbook, render, resources
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError


def epoch() -> int:
    """``SOURCE_DATE_EPOCH`` (https://reproducible-builds.org/specs/source-date-epoch/), else a fixed day."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given and not given.isdigit():
        raise UsageError(f"SOURCE_DATE_EPOCH is {given!r}, not a number of seconds")
    return int(given) if given else render.EPOCH


def identify(image: ImageDefinition, locked: lock.Lock, path: Path) -> str:
    """The build's id: 12 hexadecimal digits of the hash of all that decides the image's content.

    The definition (but for its checks, its installer, its mirrors and formats' order), the lock, the files it copies,
    the keys it admits, the playbooks, templates and disc definitions in use, and this program's own code.
    """
    folder = path.resolve().parent
    project = resources.project(path)
    decided = image.model_dump(mode="json", exclude={"checks": True, "installer": True, "conda": {"mirrors"}})
    parts = {
        "definition": decided,
        "epoch": epoch(),
        "lock": hashlib.sha256(locked.model_dump_json().encode()).hexdigest(),
        "files": [manifest.tree_digest([folder / Path(item.source).expanduser()]) for item in image.files],
        "container": []
        if image.container.base == "system"
        else [manifest.tree_digest([folder / image.container.base])],
        "keys": playbook.public_keys(image, folder),
        "data": {
            name: manifest.tree_digest([root / name])
            for name in ("playbooks", "templates", "iso")
            for root in (resources.shipped(), project)
            if (root / name).is_dir()
        },
        "code": manifest.tree_digest(Path(__file__).parent.rglob("*.py")),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def digest_of_checks(image: ImageDefinition, path: Path) -> str:
    """The digest of the checks that a build must pass: the shipped ones and the definition's own."""
    folder = path.resolve().parent
    own = [folder / Path(name).expanduser() for name in image.checks]
    return manifest.tree_digest([resources.find("tests/guest"), *own])

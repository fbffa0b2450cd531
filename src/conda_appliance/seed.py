"""Keys and a host name → the NoCloud disc that cloud-init reads at a machine's first boot.

https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from conda_appliance import buildtree, definition_disc, disc, render, resources
from conda_appliance.machines import Machine


def write(
    to: Path,
    *,
    host_name: str,
    instance_id: str,
    public_keys: Sequence[str],
    root_login: bool = False,
    epoch: int,
    project: Path | None = None,
) -> Path:
    """Write the seed disc ``to`` that lets ``public_keys`` in, and return it.

    They are the default user's (an appliance's administrator); with ``root_login`` they are root's alone.
    A machine takes a seed once for each ``instance_id``. ``epoch`` stamps the disc, in seconds since 1970.
    """
    files = render.seed_files(
        host_name=host_name,
        instance_id=instance_id,
        public_keys=public_keys,
        root_login=root_login,
        project=project,
    )
    return pack(files, to, epoch=epoch, project=project)


def for_machine(
    to: Path, machine: Machine, *, services: Sequence[str], epoch: int, project: Path | None = None
) -> Path:
    """Write the seed disc ``to`` of one machine of a batch, and return it.

    Its instance-id follows from what the disc says: a machine takes a changed seed anew. The same machine and ``epoch``
    (seconds since 1970) give the same bytes.
    """
    digest = hashlib.sha256(json.dumps(machine.model_dump(mode="json"), sort_keys=True).encode())
    files = render.seed_files(
        host_name=machine.hostname,
        instance_id=f"{machine.hostname}-{digest.hexdigest()[:12]}",
        public_keys=machine.keys,
        settings=machine.settings,
        services=services,
        network=machine.network.model_dump(mode="json") if machine.network else None,
        project=project,
    )
    return pack(files, to, epoch=epoch, project=project)


def for_build(tree: buildtree.BuildTree, *, epoch: int, project: Path | None = None) -> Path:
    """Write the seed disc of a build from the files in its ``seed/`` folder."""
    files = {name: path.read_text(encoding="utf-8") for name, path in tree.seed_sources().items()}
    return pack(files, tree.seed, epoch=epoch, project=project)


def pack(files: Mapping[str, str], to: Path, *, epoch: int, project: Path | None = None) -> Path:
    """Write the files of a seed as the disc that ``iso/seed.yaml`` describes."""
    described = definition_disc.load_disc(resources.find("iso/seed.yaml", project))
    inputs = {name: content.encode() for name, content in files.items()}
    return disc.write(described, inputs, to, epoch=epoch)

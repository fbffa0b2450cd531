"""A definition with its lock → a folder of ordinary files in which `packer build` makes the image, by hand too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from conda_appliance import playbook, process, resources
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.lock import Lock
from conda_appliance.render import seed_files, text, write

#: Packer's version as numbers, e.g. ``(1, 11, 2)``.
Version = tuple[int, int, int]

#: From here on Packer knows ``required_plugins``; before, it rejects the block and needs none.
PLUGINS_SINCE: Version = (1, 7, 0)

#: What of a build tree differs from host to host or from run to run, or is only there once it has run.
_OF_THIS_HOST = (
    "machine.auto.pkrvars.hcl",
    "seed.iso",
    "console.log",
    "qemu.pid",
)
_FOLDERS_OF_THIS_RUN = ("ssh", "seed", "disk")


@dataclass(frozen=True, kw_only=True)
class MachineInputs:
    """What of a build belongs to this host.

    ``base_disk`` is qcow2; ``acceleration`` is "kvm" or "tcg"; ``memory_mib`` in MiB.
    """

    base_disk: Path
    base_sha256: str
    payload: Path
    payload_sha256: str = ""
    acceleration: str
    ansible_playbook: Path
    qemu: str = "qemu-system-x86_64"
    cpus: int = 1
    memory_mib: int = 2048


@dataclass(frozen=True, kw_only=True)
class BuildTree:
    """The files of a build in ``folder``: `packer build -force .` there makes ``disk``.

    ``inputs`` are the SHA-256 of what they name by name. ``public_key`` is empty where no machine is logged in to.
    """

    folder: Path
    name: str
    public_key: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def disk(self) -> Path:
        """Where Packer leaves the image: a qcow2 overlay on the base disk."""
        return self.folder / "disk" / f"{self.name}.qcow2"

    @property
    def seed(self) -> Path:
        """The seed disc, made from the files in ``seed/``."""
        return self.folder / "seed.iso"

    @property
    def pid_file(self) -> Path:
        """Where the build's QEMU writes its process id; it removes the file when it ends."""
        return self.folder / "qemu.pid"

    def seed_sources(self) -> dict[str, Path]:
        """The files of the seed disc, by their name on it."""
        return {path.name: path for path in sorted((self.folder / "seed").iterdir())}

    def digest(self) -> str:
        """The SHA-256 of all files that are the same on every host, with their names and whether they run."""
        found = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if relative.parts[0] in _FOLDERS_OF_THIS_RUN or str(relative) in _OF_THIS_HOST:
                continue
            if path.is_symlink():
                found.update(f"link {relative} {path.readlink()}\n".encode())
            elif path.is_file():
                mode = path.stat().st_mode & 0o777
                found.update(f"file {relative} {mode:o} {resources.sha256_of(path)}\n".encode())
        return found.hexdigest()


def build_tree(
    definition: ImageDefinition,
    lock: Lock,
    *,
    folder: Path,
    into: Path,
    inputs: MachineInputs,
    packer_version: Version,
    project: Path | None = None,
    identity: str = "",
) -> BuildTree:
    """Write everything that a build of ``definition`` runs as ordinary files into the new folder ``into``.

    ``folder`` is the definition's; ``identity`` is the build's id, which the machine can tell of itself. The seed
    disc is not among the files: `seed.for_build` makes it from ``seed/``.
    Raises UsageError for what cannot be rendered: a file or role that is not there, a path Packer cannot name.
    """
    into.mkdir(parents=True)
    key = _make_key(into / "ssh" / "id_ed25519", f"build of {definition.name}")
    named = {"base": inputs.base_sha256, "payload": inputs.payload_sha256}
    tree = BuildTree(folder=into, name=definition.name, public_key=key, inputs=named)
    _write_packer(definition, inputs, packer_version, into, project)
    playbook.tree(definition, lock, folder=folder, into=into, project=project, identity=identity)
    sources = seed_files(
        host_name=definition.name,
        instance_id=f"build-{hashlib.sha256(key.encode()).hexdigest()[:12]}",
        public_keys=[key],
        root_login=True,
        project=project,
    )
    for name, content in sources.items():
        write(into / "seed" / name, content)
    return tree


def _write_packer(
    definition: ImageDefinition, inputs: MachineInputs, version: Version, into: Path, project: Path | None
) -> None:
    for path in (inputs.base_disk, inputs.payload, inputs.ansible_playbook, into):
        _require_speakable(path)
    kvm = inputs.acceleration == "kvm"
    values: dict[str, object] = {
        "name": definition.name,
        "version": definition.version,
        "disk_name": f"{definition.name}.qcow2",
        "disk_mib": definition.disk.size >> 20,
        "packer": ".".join(map(str, version)),
        "needs_init": version >= PLUGINS_SINCE,
        "base_disk": inputs.base_disk.resolve(),
        "base_sha256": inputs.base_sha256,
        "payload": inputs.payload.resolve(),
        "acceleration": "kvm" if kvm else "tcg,thread=multi",
        # Without acceleration: 5-level page tables and nested virtualisation only cost an emulated kernel time.
        "cpu": "host" if kvm else "max,-svm,-la57",
        "cpus": inputs.cpus,
        "memory_mib": inputs.memory_mib,
        "qemu": inputs.qemu,
        # Not resolved: beside a virtual environment's program stands its interpreter.
        "ansible_playbook": inputs.ansible_playbook.absolute(),
    }
    names = ["machine.pkr.hcl", "machine.auto.pkrvars.hcl", "README.md"]
    if version >= PLUGINS_SINCE:
        names.append("plugins.pkr.hcl")
    for name in names:
        write(into / name, text(f"packer/{name}.j2", project=project, **values))


def _require_speakable(path: Path) -> None:
    """Packer expands ``{{ }}`` in every setting, and nothing switches that off."""
    if "{{" in str(path) or any(ord(char) < 0x20 for char in str(path)):
        raise UsageError(
            f"Packer cannot name the path {str(path)!r}: it has '{{{{' or a control character in it",
            hint="use another folder (--out, CONDA_APPLIANCE_CACHE)",
        )


def _make_key(path: Path, comment: str) -> str:
    """A key pair for one build; returns the public line."""
    path.parent.mkdir(mode=0o700)
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
    return path.with_suffix(".pub").read_text(encoding="utf-8").strip()

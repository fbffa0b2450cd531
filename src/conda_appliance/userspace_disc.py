"""The linked environments → the userspace disc: a machine mounts them at their prefix and runs them from there.

The packed form is a layer, as the environments are. ``iso/userspace/mount.sh`` reads what is written as ``setup/``: the
units, and where each goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import disc, layers, packed, payload, playbook, render, resources, trees, units
from conda_appliance.definition import ImageDefinition
from conda_appliance.definition_disc import load_disc
from conda_appliance.disctree import Input
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import Lock

#: The most letters of a volume label that Joliet has room for.
_LABEL = 16
#: What a machine keeps of the discs that were set up there, a folder each; mount.sh says what.
STATE = "/etc/conda-appliance/discs"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a machine has the disc of an appliance, and what systemd calls that."""

    name: str
    label: str
    prefix: str

    @classmethod
    def of(cls, definition: ImageDefinition) -> Places:
        label = definition.name.upper().replace("-", "_")[:_LABEL]
        return cls(name=definition.name, label=label, prefix=definition.conda.prefix)

    @property
    def state(self) -> str:
        return f"{STATE}/{self.name}"

    @property
    def where(self) -> str:
        """Where the disc itself is mounted."""
        return f"/run/appliances/{self.name}"

    @property
    def device(self) -> str:
        return render.systemd_unit(f"/dev/disk/by-label/{self.label}", "device")

    @property
    def disc_unit(self) -> str:
        return render.systemd_unit(self.where, "mount")

    @property
    def unit(self) -> str:
        return render.systemd_unit(self.prefix, "mount")


def make(
    definition: ImageDefinition,
    lock: Lock,
    archives: Mapping[str, Path],
    to: Path,
    *,
    folder: Path,
    project: Path | None,
    store: Store,
    epoch: int,
    work: Path,
    progress: Callable[[str], None] = lambda _text: None,
) -> Path:
    """Write the disc ``to`` and return it; the same inputs and ``epoch`` (seconds since 1970) give the same bytes.

    ``folder`` is the definition's, ``project`` may have an ``iso/`` and ``templates/`` of its own, ``archives`` are the
    packages by SHA-256, ``work`` is an empty folder for what is only needed meanwhile. Raises as
    `payload.environment`, `packed.write` and `disc.write` do.
    """
    payload.require_finished(lock, "a disc that environments run from")
    linked = payload.of_image(definition, lock, archives, store=store, epoch=epoch, progress=progress)
    places, form = Places.of(definition), definition.disc.userspace
    marks, root = work / "marks", work / "root"
    _mark(marks, lock, linked.path, places, project)
    root.mkdir()
    playbook.lay_files(definition, folder, root)
    _write_setup(work / "setup", definition, root, places, project)
    inputs: dict[str, Input] = {
        "mount.sh": resources.find("iso/userspace/mount.sh", project),
        "readme": _readme(definition, lock, places, project).encode(),
        "lock": lock.text.encode(),
        "root": root,
        "setup": work / "setup",
    }
    if form == "iso9660":
        inputs["environment"] = linked.path / places.prefix.lstrip("/")
        inputs["marks"] = marks / places.prefix.lstrip("/")
    else:
        inputs["environment.img"] = _packed(
            form, linked, marks, places, store=store, epoch=epoch, progress=progress
        ).path
    progress("writing the disc")
    described = load_disc(resources.find("iso/userspace.yaml", project))
    return disc.write(described.model_copy(update={"volume": places.label}), inputs, to, epoch=epoch)


def _packed(
    form: packed.Form,
    linked: Layer,
    marks: Path,
    places: Places,
    *,
    store: Store,
    epoch: int,
    progress: Callable[[str], None],
) -> Layer:
    """The environments and their marks as one file system: from the cache, or made now."""
    parts: layers.Parts = {
        "environment": linked.sha256,
        "marks": trees.listing(marks, times=False),
        "prefix": places.prefix,
        "epoch": str(epoch),
        "code": layers.code(packed.__file__),
        "tools": packed.versions(form),
    }

    def make(to: Path, work: Path) -> None:
        progress("packing the environments")
        trees.set_times(marks, epoch)
        packed.write(to, [marks, linked.path], places.prefix, form=form, epoch=epoch, work=work)

    name = f"environment.{form}"
    return store.get("userspace", parts, make, name=name, subject=places.name, progress=progress)


def _mark(to: Path, lock: Lock, linked: Path, places: Places, project: Path | None) -> None:
    """What tells conda and pip that nothing can be installed into these environments.

    CEP 22 (https://github.com/conda/ceps/blob/main/cep-0022.md) and PEP 668.
    """
    for section in lock.conda.environments.values():
        environment = section.prefix.lstrip("/")
        _write(
            to / environment / "conda-meta/frozen",
            json.dumps({"message": f"It is on the disc {places.label} of the {places.name} appliance."})
            + "\n",
        )
        for program in sorted((linked / environment).glob("bin/python3.*")):
            library = linked / environment / "lib" / program.name
            if not library.is_dir():  # python3.13-config
                continue
            _write(
                to / library.relative_to(linked) / "EXTERNALLY-MANAGED",
                render.text(
                    "userspace/externally-managed.j2",
                    project=project,
                    label=places.label,
                    name=places.name,
                    prefix=section.prefix,
                ),
            )


def _write_setup(
    to: Path, definition: ImageDefinition, root: Path, places: Places, project: Path | None
) -> None:
    """What ``mount.sh`` reads: its lists in the form that suits a shell's ``read``."""
    common = {
        "label": places.label,
        "name": places.name,
        "prefix": places.prefix,
        "where": places.where,
        "device": places.device,
        "disc_unit": places.disc_unit,
        "unit": places.unit,
        "form": definition.disc.userspace,
    }
    for name in ("disc.mount", "environment.mount", "service.conf", "device.conf"):
        _write(to / name, render.text(f"userspace/{name}.j2", project=project, **common))
    services = units.disc_units(definition, environments=f"{places.state}/environments", project=project)
    for service, text in services.items():
        _write(to / "services" / f"{service}.service", text)
    _write(to / "services/names", "".join(f"{service}\n" for service in services))
    _write(to / "sysusers.conf", units.payload_users(definition, project=project))
    outside = [path for path, _ in trees.walk(root) if path != "." and not (root / path).is_dir()]
    _write(to / "root.paths", "".join(f"{path}\n" for path in outside))
    _write(to / "about", "".join(f"{line}\n" for line in _about(definition, places)))


def _about(definition: ImageDefinition, places: Places) -> Iterator[str]:
    """``KEY VALUE`` lines."""
    yield f"name {definition.name}"
    yield f"version {definition.version}"
    yield f"summary {' '.join(definition.summary.split())}"
    yield f"machine {definition.platform.machine}"
    yield f"label {places.label}"
    yield f"prefix {places.prefix}"
    yield f"where {places.where}"
    yield f"state {places.state}"
    yield f"form {definition.disc.userspace}"
    yield f"device {places.device}"
    yield f"disc_unit {places.disc_unit}"
    yield f"unit {places.unit}"
    for name in definition.conda.environments:
        yield f"environment {name}:{definition.prefix_of(name)}"


def _readme(definition: ImageDefinition, lock: Lock, places: Places, project: Path | None) -> str:
    form = definition.disc.userspace
    what = (
        "mount --bind MOUNTPOINT/environment"
        if form == "iso9660"
        else (f"mount -t {form} -o loop,ro MOUNTPOINT/environment.img")
    )
    return render.text(
        "userspace/README.txt.j2",
        project=project,
        name=definition.name,
        version=definition.version,
        summary=definition.summary,
        label=places.label,
        environments=[
            {"name": name, "prefix": section.prefix, "packages": len(section.packages)}
            for name, section in sorted(lock.conda.environments.items())
        ],
        services=[service.name for service in definition.services],
        by_hand=f"{what} {places.prefix}",
    )


def _write(path: Path, content: str) -> None:
    for above in reversed(path.parents):
        if not above.exists():
            above.mkdir()
            above.chmod(0o755)
    path.write_text(content, encoding="utf-8")
    path.chmod(0o644)

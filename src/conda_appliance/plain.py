"""Linked environments → a tar that is unpacked anywhere, and an installer that is one file.

The tar is laid out as conda-pack's (https://conda.github.io/conda-pack/): an environment at its top, which
``bin/conda-unpack`` makes name the folder where it lies. The installer takes the options of those that constructor
makes (https://conda.github.io/constructor/), and does its work with that tar.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from conda_appliance import installation, layers, payload, process, relocation, render, resources, trees
from conda_appliance.installation import Shipment

#: What stands in the tar beside the environments, and only where they have no file of that name.
_PROGRAMS = ("activate", "deactivate", "conda-unpack")


def parts(shipment: Shipment) -> dict[str, object]:
    """What decides the bytes of a tar or an installer."""
    files = ["iso/payload/relocate.sh", "iso/payload/bytecode.py", "templates/plain/installer.sh.j2"]
    files += [f"iso/plain/{name}" for name in _PROGRAMS]
    return {
        "environment": shipment.linked.sha256,
        "name": f"{shipment.image.name} {shipment.image.version} {shipment.image.summary}",
        "prefix": shipment.image.conda.prefix,
        "platform": shipment.image.platform.name,
        "lock": shipment.lock.digest,
        "epoch": str(shipment.epoch),
        "code": layers.code(*(str(one.__file__) for one in (installation, payload, relocation)), __file__),
        **{file: resources.sha256_of(resources.find(file, shipment.project)) for file in files},
    }


def tar(shipment: Shipment, to: Path, work: Path) -> None:
    """Write the environments as ``to``, a tar compressed by zstd; ``work`` is for what is only needed meanwhile."""
    whole, _ = _packed(shipment, work)
    process.run(["zstd", "-10", "-T0", "--quiet", "--rm", whole, "-o", to])


def installer(shipment: Shipment, to: Path, work: Path) -> None:
    """Write the installer ``to``: a shell script, and behind it the same tar, compressed by what every machine has."""
    whole, about = _packed(shipment, work)
    process.run(["pigz", "-n", "-4", "-p", str(max(2, os.cpu_count() or 1)), whole])
    archive = whole.with_name(f"{whole.name}.gz")
    values = {
        "name": shipment.image.name,
        "version": shipment.image.version,
        "prefix": shipment.image.conda.prefix,
        "sha256": resources.sha256_of(archive),
        "machine": shipment.image.platform.machine,
        "longest": about["longest"],
        "fixed": about.get("fixed", ""),
        "kilobytes": about["kilobytes"],
    }
    # The script says its own length, in a field of a fixed width.
    length = len(render.text("plain/installer.sh.j2", project=shipment.project, header=0, **values).encode())
    head = render.text("plain/installer.sh.j2", project=shipment.project, header=length, **values)
    with to.open("wb") as file, archive.open("rb") as packed:
        file.write(head.encode())
        while block := packed.read(1 << 20):
            file.write(block)
    archive.unlink()
    to.chmod(0o755)


def _packed(shipment: Shipment, work: Path) -> tuple[Path, dict[str, str]]:
    """The tar, not compressed, in the folder ``work``; and what its ``about`` says."""
    beside = work / "beside"
    about = _beside(shipment, shipment.relocations, beside)
    whole = work / "environment.tar"
    with whole.open("wb") as file:
        file.writelines(payload.Tar.of([shipment.tree, beside], shipment.epoch).chunks())
    resources.remove(beside)
    return whole, about


def _beside(shipment: Shipment, found: relocation.Relocations, to: Path) -> dict[str, str]:
    """Write what moves the environments, as it lies in the tar beside them; returns what ``about`` says."""
    data = to / "share/conda-unpack"
    data.mkdir(parents=True)
    (to / "bin").mkdir()
    for name in _PROGRAMS:
        if not (shipment.tree / "bin" / name).exists():
            source = resources.find(f"iso/plain/{name}", shipment.project)
            (to / "bin" / name).write_bytes(source.read_bytes())
            (to / "bin" / name).chmod(0o755 if name == "conda-unpack" else 0o644)
    installation.copy_scripts(data, shipment.project)
    installation.lines(data / "relocations", found.lines)
    inside = dict(trees.walk(shipment.tree))
    size = sum(about.st_size for about in inside.values())
    text = list(installation.about(shipment.image, shipment.lock, found, size, shipment.linked.sha256[:12]))
    installation.lines(data / "about", text)
    (data / "paths").touch()
    (data / "prefix").touch()
    installation.lines(data / "paths", _paths(inside, dict(trees.walk(to))))
    (data / "prefix").unlink()
    for folder in (to, *(path for path in to.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    return {key: value for key, _, value in (line.partition(" ") for line in text)}


def _paths(*listed: dict[str, os.stat_result]) -> Iterator[str]:
    """Every path, as ``du -a . | cut -f 2- | sort`` names them on the machine."""
    every = {path if path == "." else f"./{path}" for paths in listed for path in paths}
    installation.require_plain(sorted(every), "a machine by a shell script")
    yield from sorted(every, key=os.fsencode)

"""What a build ships: the disk's forms, Vagrant boxes, and what is made from the environments alone."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from conda_appliance import (
    boxes,
    builders,
    containers,
    diskforms,
    export,
    formats,
    layers,
    log,
    ospackages,
    plain,
    process,
    resources,
    results,
)
from conda_appliance.installation import Shipment


class _Progress:
    """Says which forms are still being made."""

    def __init__(self, step: log.Step, forms: Sequence[str]) -> None:
        self.step, self._left = step, list(forms)
        step.update(f"making {', '.join(forms)}")

    def done(self, *forms: str) -> None:
        """These are made."""
        for form in forms:
            if form in self._left:
                self._left.remove(form)
        self.step.update(f"still at {', '.join(self._left)}" if self._left else "")


def shipped(
    disk: builders.DiskImage | None, job: builders.Job, home: Path, work: Path, used: dict[str, str]
) -> list[export.Artifact]:
    """Every form that the definition asks for, in its order, made side by side.

    ``disk`` is there where one of them is made of a disk. What they are made from besides is told in ``used``.
    """
    forms = job.image.formats
    named = ", ".join(forms) if len(forms) < 4 else f"{len(forms)} forms"
    with log.step(f"Export {job.image.name} as {named}") as step:
        progress = _Progress(step, forms)
        made = process.side_by_side(
            partial(_exported, disk, job, home, work, progress),
            partial(_boxed, disk, job, home, work, progress),
            partial(_delivered, job, home, work, used, progress),
        )
        by_form = {one.record.format: one for artifacts, _ in made for one in artifacts}
        for form in forms:
            step.note(f"{form} {resources.size_text(by_form[form].record.size)}")
        taken = {form for _, some in made for form in some}
        if taken:
            step.note(
                f"{', '.join(form for form in forms if form in taken)} unchanged, from an earlier result"
            )
    return [by_form[form] for form in forms]


#: What was made, and which of it is a copy of an earlier result's.
_Made = tuple[list[export.Artifact], list[str]]


def _exported(
    disk: builders.DiskImage | None, job: builders.Job, home: Path, work: Path, progress: _Progress
) -> _Made:
    """Every form of the disk that the definition asks for."""
    forms = formats.of_family("disk", job.image.formats)
    if not forms or disk is None:
        return [], []
    return _exporter(disk, job, home, work / "export").every(forms, work, progress.done)


def _boxed(
    disk: builders.DiskImage | None, job: builders.Job, home: Path, work: Path, progress: _Progress
) -> _Made:
    """Every Vagrant box that the definition asks for: from an earlier result, or made now."""
    forms = formats.of_family("box", job.image.formats)
    if not forms or disk is None:
        return [], []
    assert disk.boxed is not None, "the definition admits boxes where a builder makes their disk"
    wanted, made = {}, []
    for form in forms:
        decided = {**boxes.decides(form, job.image, job.project), "epoch": job.epoch}
        source = layers.digest_of([disk.boxed.key, decided, layers.code(diskforms.__file__)])
        if there := results.artifact(home, source):
            made.append(export.take(there, work / _file_name(form, job)))
            progress.done(form)
        else:
            wanted[form] = source
    taken = [one.record.format for one in made]
    return [*made, *(_boxes(wanted, disk.boxed, job, home, work, progress) if wanted else [])], taken


def _boxes(
    sources_of: dict[str, str],
    boxed: builders.Boxed,
    job: builders.Job,
    home: Path,
    work: Path,
    progress: _Progress,
) -> list[export.Artifact]:
    """The boxes of these forms (form → its source), from a disk of their own: it has Vagrant's user."""
    image, made = job.image, []
    kinds = sorted({boxes.DISKS[form] for form in sources_of})
    with resources.work_folder(work, "boxes") as scratch:
        own = boxed.make(log.Step(""))
        try:
            exported, _ = _exporter(own, job, home, scratch / "export").every(kinds, scratch)
        finally:
            own.release()
        disks = {one.record.format: one.path for one in exported}
        for form, source in sources_of.items():
            started = time.monotonic()
            disk, to = disks[boxes.DISKS[form]], work / _file_name(form, job)
            boxes.write(form, disk, to, image, epoch=job.epoch, project=job.project, work=scratch / form)
            made.append(export.artifact(to, form, size=image.disk.size, source=source, started=started))
            progress.done(form)
    return made


def _file_name(form: str, job: builders.Job) -> str:
    return formats.file_name(
        form, name=job.image.name, version=job.image.version, platform=job.image.platform.name
    )


def _exporter(disk: builders.DiskImage, job: builders.Job, home: Path, work: Path) -> export.Exporter:
    return export.Exporter(
        image=job.image,
        disk=disk.path,
        format=disk.format,
        key=disk.key,
        identity=job.identity,
        inserts=disk.inserts,
        around=disk.around,
        store=job.store,
        epoch=job.epoch,
        project=job.project,
        work=work,
        earlier=lambda source: results.artifact(home, source),
    )


#: What makes each form that needs no disk, and what decides its bytes.
_MAKERS = {
    "tar": (plain.tar, plain.parts),
    "sh": (plain.installer, plain.parts),
    "oci": (containers.oci, containers.parts),
    "docker-archive": (containers.docker, containers.parts),
    "deb": (ospackages.deb, ospackages.parts),
    "rpm": (ospackages.rpm, ospackages.parts),
}


def _delivered(job: builders.Job, home: Path, work: Path, used: dict[str, str], progress: _Progress) -> _Made:
    """Every form that is made from the environments alone; what they are is told in ``used``."""
    forms = [form for form in job.image.formats if form in _MAKERS]
    if not forms:
        return [], []
    linked = job.linked(progress.step.update)
    used["environment"] = linked.sha256
    shipment = Shipment(
        image=job.image,
        lock=job.lock,
        linked=linked,
        archives=job.files,
        folder=job.folder,
        project=job.project,
        store=job.store,
        epoch=job.epoch,
    )
    if {"tar", "sh"} & {*forms}:
        _ = shipment.relocations  # once, before several want it at the same time

    def one(form: str) -> tuple[export.Artifact, bool]:
        made = _packed(form, shipment, home, work)
        progress.done(form)
        return made

    made = process.side_by_side(*(partial(one, form) for form in forms), workers=os.cpu_count() or 1)
    return [artifact for artifact, _ in made], [artifact.record.format for artifact, taken in made if taken]


def _packed(form: str, shipment: Shipment, home: Path, work: Path) -> tuple[export.Artifact, bool]:
    """One form of the environments; whether it is a copy of an earlier result's, made from the same."""
    make, parts = _MAKERS[form]
    about = shipment.image
    to = work / formats.file_name(form, name=about.name, version=about.version, platform=about.platform.name)
    source = layers.digest_of([form, parts(shipment)])
    there = results.artifact(home, source)
    if there:
        return export.take(there, to), True
    started = time.monotonic()
    with resources.work_folder(work, form) as scratch:
        make(shipment, to, scratch)
    return export.artifact(to, form, size=0, source=source, started=started), False


def bootable(
    disk: builders.DiskImage, job: builders.Job, artifacts: list[export.Artifact], work: Path
) -> Path:
    """What is booted to be checked: the first artifact that QEMU boots, else the disk in a form that it does."""
    for one in artifacts:
        if formats.BY_NAME[one.record.format].qemu:
            return one.path
    (work / "bootable").mkdir()
    plain = job.image.disk.model_copy(update={"compression": "none"})
    quick = replace(job, image=job.image.model_copy(update={"disk": plain}))
    made, _ = _exporter(disk, quick, work / "none", work / "export").every(("qcow2",), work / "bootable")
    return made[0].path

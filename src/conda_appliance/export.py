"""A provisioned disk image → the artifacts that a definition asks for, side by side."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from conda_appliance import (
    blockpack,
    diskforms,
    formats,
    layers,
    ova,
    process,
    qcow2,
    rawzst,
    resources,
    sparse,
    vmdk,
)
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError
from conda_appliance.manifest import ArtifactRecord
from conda_appliance.sparse import Piece

#: What takes longest is begun first, so that nothing large is left for one processor at the end.
_SLOWEST = ("vmdk", "gce", "raw.zst", "qcow2")
#: What is as long as the machine's disk: its size is what holes leave of it.
_SPARSE = ("raw", "vhd")
#: What ``qemu-img check`` can read.
_CHECKED = ("qcow2", "vmdk", "vhdx", "vdi")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that ships, and its record in the manifest."""

    path: Path
    record: ArtifactRecord


def tools(forms: Sequence[str]) -> tuple[str, ...]:
    """The programs of the host that this module needs to make ``forms``."""
    disks = ("qemu-img",) if any(map(formats.is_disk, forms)) else ()
    return (*disks, *(tool for form in forms for tool in formats.BY_NAME[form].tools))


def source_of(disk: str, form: str, compression: str, *more: str) -> str:
    """What names an artifact before it is made: the digest of its disk, the format, and how it is written."""
    return layers.digest_of([disk, form, diskforms.words(form, compression), *more])


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """Makes the forms of one disk.

    ``disk`` is in any format that QEMU reads, with its backing files; ``key`` names its content where it is the same
    each time, and ``identity`` the build. ``inserts`` are yet to be written into it; the blocks of what is around them,
    whose digest is ``around``, are compressed once and kept in ``store``. ``earlier`` finds an artifact of an earlier
    result by its `source_of`. ``epoch`` (seconds since 1970) is every time stamp; ``project`` may have
    templates of its own; ``work`` is a folder for what is only needed meanwhile.
    """

    image: ImageDefinition
    disk: Path
    format: str = "raw"
    key: str = ""
    identity: str
    inserts: Sequence[Piece] = ()
    around: str = ""
    store: layers.Store | None = None
    epoch: int
    project: Path | None = None
    work: Path
    earlier: Callable[[str], Artifact | None] = lambda _source: None

    def every(
        self, forms: Sequence[str], into: Path, progress: Callable[..., None] = lambda *_forms: None
    ) -> tuple[list[Artifact], list[str]]:
        """Make ``forms`` in the folder ``into``; returns them in that order, and which were taken as they were.

        One that an earlier result has, made from the same disk, is copied. ``progress`` is told of those that are made.
        Raises BuildError for what is not sound.
        """
        made: dict[str, Artifact] = {}
        taken: list[str] = []
        for form in forms:
            if there := self.earlier(source) if (source := self._source(form)) else None:
                made[form] = take(there, into / self._name(form))
                taken.append(form)
                progress(form)
        missing = [form for form in forms if form not in made]
        wanted = sorted(
            {*missing} - {"ova"} | ({"vmdk"} if "ova" in missing and "vmdk" not in made else set()),
            key=lambda form: (_SLOWEST.index(form) if form in _SLOWEST else len(_SLOWEST), form),
        )
        self.work.mkdir(exist_ok=True)
        raw = self._raw(wanted)
        disks = [form for form in wanted if form in diskforms.RAW]
        groups = [[form] for form in wanted if form not in disks] + ([disks] if disks else [])

        def some(group: list[str]) -> list[Artifact]:
            files = {form: (into if form in forms else self.work) / self._name(form) for form in group}
            artifacts = self._disks(files, raw) if group is disks else self._made(group[0], files, raw, whole)
            progress(*group)
            return artifacts

        with self._whole(wanted, raw) as whole:
            done = process.side_by_side(
                *(partial(some, group) for group in groups),
                workers=os.cpu_count() or 1,
            )
        made |= {one.record.format: one for group in done for one in group}
        if "ova" in missing:
            made["ova"] = self._ova(made["vmdk"], into / self._name("ova"))
        resources.remove(self.work)
        return [made[form] for form in forms], taken

    def _name(self, form: str) -> str:
        return formats.file_name(
            form, name=self.image.name, version=self.image.version, platform=self.image.platform.name
        )

    def _source(self, form: str) -> str:
        """`source_of` a form, or nothing for a disk that is another one each time."""
        if not self.key:
            return ""
        if form in ("qcow2", "raw"):
            compression = self.image.disk.compression
            codec = diskforms.codec(form, compression)
            ours = str(layers.code(blockpack.__file__, qcow2.__file__, sparse.__file__))
            return source_of(self.key, form, compression, ours, codec.name if codec else "")
        code = str(
            layers.code(*(str(one.__file__) for one in (blockpack, diskforms, ova, rawzst, sparse, vmdk)))
        )
        if form == "ova":
            text = ova.descriptor(self.image, disk="", size=0, project=self.project)
            return layers.digest_of([source_of(self.key, "vmdk", "", str(self.epoch), code), "ova", text])
        return source_of(self.key, form, "", str(self.epoch), code)

    def _raw(self, forms: Sequence[str]) -> Sequence[Piece]:
        """What makes up the raw disk; nothing where it is in another format and none of ``forms`` needs it."""
        if not forms:
            return ()
        if self.format == "raw":
            return (Piece(source=self.disk, at=0, known=self._survey()), *self.inserts)
        if not {*forms} & {*diskforms.FROM_RAW}:
            return ()
        raw = self.work / "disk.raw"
        diskforms.write(self.disk, "raw", raw, seed="", epoch=0)
        return (Piece(source=raw, at=0),)

    def _survey(self) -> Path | None:
        """Which blocks of the disk are not empty, where it is a layer: that is kept, too."""
        if not self.around or self.store is None:
            return None

        def make(to: Path, _work: Path) -> None:
            to.write_bytes(sparse.survey(self.disk))

        parts: layers.Parts = {"disk": self.around, "code": layers.code(sparse.__file__)}
        return self.store.get("survey", parts, make, name="blocks", quiet=True, read=False).path

    @contextmanager
    def _whole(self, forms: Sequence[str], raw: Sequence[Piece]) -> Iterator[Path]:
        """The disk with all that is in it as one file, for those of ``forms`` that another program makes."""
        if len(raw) < 2 or {*forms} <= {*diskforms.RAW, *diskforms.BLOCKS}:
            yield raw[0].path if raw else self.disk
            return
        need = sum(piece.taken for piece in raw)
        memory = resources.memory_file(2 * need)
        whole = self.work / "whole.raw" if memory is None else Path(f"/proc/{os.getpid()}/fd/{memory}")
        try:
            sparse.write(raw, {whole: b""})
            yield whole
        finally:
            if memory is not None:
                os.close(memory)

    def _disks(self, files: Mapping[str, Path], raw: Sequence[Piece]) -> list[Artifact]:
        """The forms that are the raw disk itself, written and summed up together."""
        started = time.monotonic()
        seed = self.key or self.identity
        digests = diskforms.write_raw(raw, files, seed=seed, epoch=self.epoch)
        return [
            self._artifact(form, to, started, digest)
            for (form, to), digest in zip(files.items(), digests, strict=True)
        ]

    def _made(
        self, form: str, files: Mapping[str, Path], raw: Sequence[Piece], whole: Path
    ) -> list[Artifact]:
        started = time.monotonic()
        to, compression, seed, digest = (
            files[form],
            self.image.disk.compression,
            self.key or self.identity,
            "",
        )
        if raw and form in diskforms.BLOCKS:
            kept = self._kept(form, raw[0].path)
            digest = diskforms.write_blocks(raw, form, to, seed=seed, compression=compression, kept=kept)
        else:
            diskforms.write(whole, form, to, seed=seed, epoch=self.epoch, compression=compression)
        return [self._artifact(form, to, started, digest)]

    def _artifact(self, form: str, to: Path, started: float, sha256: str) -> Artifact:
        source = self._source(form)
        return artifact(to, form, size=self.image.disk.size, source=source, started=started, sha256=sha256)

    def _kept(self, form: str, disk: Path) -> Path | None:
        """The compressed blocks of what is around the inserts, kept; None where that is no layer."""
        codec = diskforms.codec(form, self.image.disk.compression)
        if codec is None or not self.around or self.store is None:
            return None
        return self.store.get(
            "blocks",
            {
                "disk": self.around,
                "codec": codec.name,
                "code": layers.code(blockpack.__file__, sparse.__file__),
            },
            lambda to, _work: blockpack.keep(disk, codec, to),
            quiet=True,
            read=False,
        ).path

    def _ova(self, disk: Artifact, to: Path) -> Artifact:
        started = time.monotonic()
        ova.write(disk.path, disk.record.sha256, to, self.image, epoch=self.epoch, project=self.project)
        return artifact(to, "ova", size=self.image.disk.size, source=self._source("ova"), started=started)


def artifact(
    path: Path, form: str, *, size: int, source: str = "", started: float, sha256: str = ""
) -> Artifact:
    """The file of a form with its record; ``size`` is the machine's disk in bytes, where QEMU does not read it.

    ``started`` is when it was begun, by `time.monotonic`; ``sha256`` its digest, where that is known already.

    Raises BuildError when it is not sound, or no disk of its own.
    """
    driver = formats.BY_NAME[form].qemu
    if form in _CHECKED:
        checked = process.run(["qemu-img", "check", "--output=json", "-f", driver, path], check=False)
        if checked.returncode != 0:
            raise BuildError(f"qemu-img finds {path.name} unsound:\n{checked.stdout}{checked.stderr}")
    if driver:
        about = json.loads(process.run(["qemu-img", "info", "--output=json", "-f", driver, path]).stdout)
        if about.get("backing-filename"):
            raise BuildError(
                f"{path.name} still needs {about['backing-filename']}: it is no image of its own"
            )
        size = int(about["virtual-size"])
    record = ArtifactRecord(
        file=path.name,
        format=form,
        size=path.stat().st_blocks * 512 if form in _SPARSE else path.stat().st_size,
        virtual_size=size,
        sha256=sha256 or resources.sha256_of(path),
        source=source,
        seconds=round(time.monotonic() - started, 2),
    )
    return Artifact(path=path, record=record)


def take(there: Artifact, to: Path) -> Artifact:
    """A copy of an artifact that an earlier result has."""
    layers.copy(there.path, to)
    return Artifact(path=to, record=there.record.model_copy(update={"file": to.name}))

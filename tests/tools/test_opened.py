"""An artifact of any form is opened, and what was done to the environments in it is told by path."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import packages
import pytest
import test_export
from tests.conftest import Folders

from conda_appliance import (
    boxes,
    conda,
    containers,
    disk,
    export,
    formats,
    installer_disc,
    opened,
    ospackages,
    payload,
    payload_disc,
    plain,
    process,
    trees,
    userspace_disc,
)
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError
from conda_appliance.installation import Shipment
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and loop devices need root's rights")

EPOCH = 1_700_000_000
PREFIX = "/opt/demo"
SIZE = 256 << 20
CHANGED = ["changed: etc/prefixed.conf", "missing: lib/prefixed.bin", "extra: share/added"]
DISKS = tuple(form.name for form in formats.FORMS if form.family == "disk")


class Maker:
    """Makes every form of one small appliance, of its environments as they are linked or as somebody changed them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        channel = packages.small_channel(folder / "channel")
        found, virtual = conda.solve(
            ["pure"], [conda.Channel(name="./small", url=channel.as_uri())], contract=Contract(glibc="2.41")
        )
        section = EnvironmentSection(prefix=PREFIX, specs=("pure",), packages=found)
        conda_section = CondaSection(virtual_packages=virtual, environments={"base": section})
        self.lock = Lock(name="demo", digest="0" * 64, tools={}, conda=conda_section)
        self.archives = {one.sha256: Path(one.url.removeprefix("file://")) for one in found}
        self.store = Store(folder / "layers")
        self.linked = payload.environment(
            self.lock, self.archives, store=self.store, epoch=EPOCH, subject="demo"
        )
        self.tampered = dataclasses.replace(self.linked, place=folder / "tampered")
        shutil.copytree(self.linked.path, self.tampered.path, symlinks=True)
        place = self.tampered.path / PREFIX[1:]
        (place / "etc/prefixed.conf").write_text("home = /evil\n")
        (place / "lib/prefixed.bin").unlink()
        (place / "share/added").write_text("new\n")
        trees.set_times(self.tampered.path, EPOCH)
        process.run(["umoci", "init", "--layout", folder / "base"])
        process.run(["umoci", "new", "--image", f"{folder}/base:1"])
        self.image = ImageDefinition.model_validate(
            {
                "name": "demo",
                "version": "1.0",
                "base": {"debian": "trixie"},
                "conda": {
                    "prefix": PREFIX,
                    "channels": ["./small"],
                    "environments": {"base": {"dependencies": ["pure"]}},
                },
                "services": [{"name": "web", "command": "pure-tool"}],
                "container": {"base": "base"},
                "package": {"maintainer": "Me <me@example.com>"},
            }
        )

    def make(self, form: str, linked: Layer, work: Path) -> Path:
        """The artifact of one form; ``work`` is an empty folder."""
        to = work / formats.file_name(form, name="demo", version="1.0")
        scratch = work / "scratch"
        scratch.mkdir()
        shipment = Shipment(
            image=self.image,
            lock=self.lock,
            linked=linked,
            archives=self.archives,
            folder=self.folder,
            project=None,
            store=Store(work / "layers"),
            epoch=EPOCH,
        )
        makers = {
            "tar": plain.tar,
            "sh": plain.installer,
            "deb": ospackages.deb,
            "rpm": ospackages.rpm,
            "oci": containers.oci,
            "docker-archive": containers.docker,
        }
        if form in makers:
            makers[form](shipment, to, scratch)
        elif form in ("payload-iso", "userspace-iso"):
            module = payload_disc if form == "payload-iso" else userspace_disc
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(payload, "environment", lambda *_args, **_more: linked)
                module.make(
                    self.image,
                    self.lock,
                    self.archives,
                    to,
                    folder=self.folder,
                    project=None,
                    store=shipment.store,
                    epoch=EPOCH,
                    work=scratch,
                )
        elif form == "live-iso":  # what of it is opened, without a kernel: booting is another test's matter
            (work / "disc/appliance").mkdir(parents=True)
            process.run(
                ["mksquashfs", linked.path, work / "disc/appliance/root.squashfs", "-quiet", "-no-progress"]
            )
            process.run(["xorriso", "-outdev", to, "-map", work / "disc", "/"])
        else:
            self.of_disk(form, linked, to, work)
        return to

    def of_disk(self, form: str, linked: Layer, to: Path, work: Path) -> None:
        disk.loaders(work / "boot", identity="6f1cde62-2b5a-4d0c-9a55-3c2a9b0e9d11", epoch=EPOCH)
        disk.write(
            work / "machine.raw",
            [linked.path],
            size=SIZE,
            identity="6f1cde62-2b5a-4d0c-9a55-3c2a9b0e9d11",
            epoch=EPOCH,
            work=work,
            taken=linked.size,
            boot=work / "boot",
        )
        if form == "installer-iso":  # as `installer_disc` lays the image on the disc, without what starts it
            laid = work / "disc/appliance"
            laid.mkdir(parents=True)
            reached = []
            with (work / "machine.raw").open("rb") as file, (work / "body").open("wb") as body:
                (laid / "disk.first").write_bytes(file.read(1 << 20))
                for start, length in installer_disc.runs(file, SIZE):
                    file.seek(start)
                    body.write(file.read(length))
                    reached.append(f"{start} {length} {body.tell()}\n")
            (laid / "installer.conf").write_text(f"title='demo 1.0'\nsize={SIZE}\n")
            (laid / "disk.map").write_text("".join(reached))
            process.run(["zstd", "-q", work / "body", "-o", laid / "disk.zst"])
            process.run(["xorriso", "-outdev", to, "-map", work / "disc", "/"])
            return
        image = test_export.definition().model_copy(update={"name": "demo", "version": "1.0"})
        kind = boxes.DISKS.get(form, form)
        one = export.Exporter(
            image=image,
            disk=work / "machine.raw",
            key="d" * 64,
            identity="0123456789ab",
            epoch=EPOCH,
            work=work / "work",
        )
        made, _ = one.every([kind], work)
        if form in boxes.DISKS:
            boxes.write(form, made[0].path, to, image, epoch=EPOCH, project=None, work=work / "box")
        else:
            assert made[0].path == to


@pytest.fixture(scope="module")
def maker(folders: Folders) -> Iterator[Maker]:
    folder = folders.mktemp("opened")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDA_APPLIANCE_CACHE", str(folder / "cache"))
        yield Maker(folder)


@pytest.mark.parametrize("form", formats.BY_NAME)
def test_what_is_changed_missing_or_extra_is_told_of_every_form(
    maker: Maker, form: str, tmp_path: Path
) -> None:
    expected = maker.linked.path / PREFIX[1:]
    for linked, told in ((maker.linked, []), (maker.tampered, CHANGED)):
        work = tmp_path / ("changed" if told else "sound")
        work.mkdir()
        path = maker.make(form, linked, work)
        assert opened.form_of(path, name="demo", version="1.0") == form
        (work / "open").mkdir()
        found = opened.differences(form, path, expected, prefix=PREFIX, work=work / "open")
        assert [": ".join(line.split(": ")[:2]) for line in found] == told, found
        shutil.rmtree(work)


def test_a_mode_that_changed_is_told(maker: Maker, tmp_path: Path) -> None:
    loose = dataclasses.replace(maker.linked, place=tmp_path / "loose")
    shutil.copytree(maker.linked.path, loose.path, symlinks=True)
    (loose.path / PREFIX[1:] / "bin/prefixed").chmod(0o4755)
    work = tmp_path / "work"
    work.mkdir()
    path = maker.make("deb", loose, work)
    (work / "open").mkdir()
    (line,) = opened.differences(
        "deb", path, maker.linked.path / PREFIX[1:], prefix=PREFIX, work=work / "open"
    )
    assert line.startswith("changed: bin/prefixed: file 0755 ") and "→ file 4755 " in line


def test_what_is_none_of_it_is_said_so(maker: Maker, tmp_path: Path) -> None:
    (tmp_path / "demo.sh").write_text("#!/bin/sh\n")
    with pytest.raises(BuildError, match=r"demo\.sh is no installer"):
        opened.differences("sh", tmp_path / "demo.sh", maker.linked.path, prefix=PREFIX, work=tmp_path)
    assert opened.form_of(tmp_path / "demo.sh", name="demo", version="1.0") is None


@pytest.mark.parametrize("how", ["a link before it", "a link in its place", "a hard link", "a whiteout"])
def test_a_container_made_to_write_elsewhere_writes_nowhere(tmp_path: Path, how: str) -> None:
    """It is opened by root: what its layers name stays in the folder where they are laid."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    link = tarfile.TarInfo("opt/demo/link")
    link.type, link.linkname = (
        tarfile.SYMTYPE,
        str(victim if how != "a link in its place" else victim / "file"),
    )
    evil = tarfile.TarInfo("opt/demo/link/file")
    evil.size = 4
    if how == "a link in its place":
        evil.name = "opt/demo/link"
    elif how == "a hard link":
        link.type, link.linkname = tarfile.LNKTYPE, os.path.relpath(victim / "file", tmp_path / "open/tree")
        evil.name = "opt/demo/link"
    elif how == "a whiteout":
        evil.name = "opt/demo/link/.wh.file"
    (tmp_path / "image").mkdir()
    (tmp_path / "image/manifest.json").write_text('[{"Layers": ["layer.tar"]}]')
    with tarfile.open(tmp_path / "image/layer.tar", "w") as archive:
        archive.addfile(link)
        archive.addfile(evil, io.BytesIO(b"evil"))
    process.run(["tar", "-c", "-f", tmp_path / "demo.docker.tar", "-C", tmp_path / "image", "."])
    (tmp_path / "open").mkdir()
    (tmp_path / "expected").mkdir()

    def look() -> list[str]:
        image = tmp_path / "demo.docker.tar"
        return opened.differences(
            "docker-archive", image, tmp_path / "expected", prefix=PREFIX, work=tmp_path / "open"
        )

    if how == "a link in its place":
        assert look() == ["extra: link"]
    else:
        with pytest.raises(BuildError, match="which leads out of it"):
            look()
    assert (victim / "file").read_text() == "untouched"


def test_more_than_a_form_adds_is_told(maker: Maker, tmp_path: Path) -> None:
    """Each form's own additions are known by name: those of another form are strange to it."""
    strange = dataclasses.replace(maker.linked, place=tmp_path / "strange")
    shutil.copytree(maker.linked.path, strange.path, symlinks=True)
    for name in (".condarc", "bin/activate", "share/conda-unpack/more"):
        path = strange.path / PREFIX[1:] / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("strange\n")
    for form, told in (
        ("deb", [".condarc", "bin/activate", "share/conda-unpack", "share/conda-unpack/more"]),
        ("tar", [".condarc", "share/conda-unpack/more"]),
    ):
        work = tmp_path / form
        work.mkdir()
        path = maker.make(form, strange, work)
        (work / "open").mkdir()
        found = opened.differences(
            form, path, maker.linked.path / PREFIX[1:], prefix=PREFIX, work=work / "open"
        )
        assert [line.removeprefix("extra: ") for line in found] == told

"""One table of forms: what a definition may name, what each is called, what of the host each needs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from conda_appliance import cli, definition, export, formats
from conda_appliance.errors import DefinitionError

ROOT = Path(__file__).parents[2]
BASE = """\
name: box
version: "1.2"
base: {debian: trixie}
conda: {channels: [x], environments: {base: {dependencies: [python]}}}
"""


def load(folder: Path, more: str) -> definition.ImageDefinition:
    path = folder / "box.yaml"
    path.write_text(BASE + more)
    return definition.load_image(path)


def test_every_form_of_the_table_may_be_named(tmp_path: Path) -> None:
    more = "\nbuilder: rootfs\npackage: {maintainer: Me <me@example.com>}"
    image = load(tmp_path, f"formats: [{', '.join(formats.BUILT)}]{more}")
    assert image.formats == formats.BUILT
    names = [formats.file_name(form, name="box", version="1.2") for form in image.formats]
    assert len({*names}) == len(names), "each has a file of its own"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("formats: [vmkd]", "formats[0]: 'vmkd' is not one of .*; perhaps you meant 'vmdk'"),
        ("formats: [raw, vdi, raw]", "formats names raw twice"),
        ("formats: [gce]\ndisk: {size: 1500MiB}", "the format gce needs a disk.size of whole GiB"),
        ("formats: [deb]", "the format deb says who answers for it: package: {maintainer"),
        ("package: {maintainer: me}", "'me' does not match"),
        ("container: {service: web}", "container.service 'web' is none of the services"),
        ("container: {base: nowhere}", "nowhere is not there"),
        ("ova: {memory: 100MiB}", "memory must be a whole number of MiB, 256 at least"),
        ("ova: {controller: ide}", "'ide' is not one of 'sata', 'nvme' or 'scsi'"),
    ],
)
def test_what_cannot_be_made_is_said_before_anything_is(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message.replace("[0]", r"\[0\]")):
        load(tmp_path, more)


def test_a_program_of_the_host_is_needed_by_who_asks_for_its_form() -> None:
    assert export.tools(["qcow2", "vmdk", "ova"]) == ("qemu-img",)
    assert {"pigz", "tar"} <= {*export.tools(["gce"])}
    assert "pigz" in export.tools(["gce"])


def test_the_reference_page_is_up_to_date() -> None:
    assert (ROOT / "docs/reference/formats.md").read_text() == formats.reference(), "make docs"


def test_every_form_has_a_page_and_says_all_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["formats", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told] == [*formats.BY_NAME]
    for form, one in zip(formats.FORMS, told, strict=True):
        assert all(one.values()), one
        assert "{" not in "".join(one.values()), "every blank is filled in"
        assert (ROOT / f"docs/how-to/{form.page}.md").is_file()
    assert cli.main(["formats"]) == 0
    assert "VBoxManage import NAME.ova" in capsys.readouterr().out


def test_a_version_must_be_one_that_packages_can_have(tmp_path: Path) -> None:
    package = "formats: [deb, rpm]\npackage: {maintainer: Me <me@example.com>}\n"
    (tmp_path / "box.yaml").write_text(BASE.replace('"1.2"', "v1_2") + package)
    with pytest.raises(DefinitionError, match="'v1_2' cannot be that of a deb or rpm: it must begin with"):
        definition.load_image(tmp_path / "box.yaml")


def test_the_table_of_a_test_run_has_every_form() -> None:
    page = (ROOT / "docs/reference/forms-tested.md").read_text()
    assert re.findall(r"^\| \[(.+?)\]", page, re.MULTILINE) == [*formats.BY_NAME], "make forms-table"

"""What an appliance is made of: every package with licence and digest, as the formats' own tools accept it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import packages
import pytest
import wheels_made
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from debian_made import Debian
from packages import File, Package
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
from tests.conftest import Folders

from conda_appliance import (
    bill,
    conda,
    cyclonedx,
    debs,
    licences,
    osv,
    payload,
    prefix_check,
    pypi,
    sources,
    spdx,
)
from conda_appliance.bill import Bill, Component
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

EPOCH = 1_700_000_000


@pytest.fixture(scope="module")
def linked(debian: Debian, folders: Folders) -> Iterator[tuple[Bill, Path]]:
    """The bill of a real Debian with a small environment, a wheel and a file on it; and the environments' tree."""
    folder = folders.mktemp("bill")
    channel = packages.small_channel(folder / "channel")
    text = {"LICENSE": "Do what you like.\n"}
    Package(name="licensed", license="mit", licenses=text, files={"share/x": File(content="x")}).write(
        channel
    )
    Package(name="odd", license="Our own terms", files={"share/y": File(content="y")}).write(channel)
    packages.index(channel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONDA_APPLIANCE_CACHE", str(folder / "cache"))
        place = conda.Channel(name="./small", url=channel.as_uri())
        found, virtual = conda.solve(
            ["pure", "python", "licensed", "odd"], [place], contract=Contract(glibc="2.41")
        )
        modules = {"wheeled.py": "", "wheeled-1.0.dist-info/licenses/LICENSE": "Terms.\n"}
        made = wheels_made.wheel(folder, "wheeled", modules=modules)
        wheels = pypi.resolve(
            [],
            found,
            pypi.target(found, "2.41", "linux-64"),
            own={made.name: made},
            cache=sources.Cache(folder / "cache"),
        )
    (folder / "app.conf").write_text("setting = 1\n")
    section = EnvironmentSection(prefix="/opt/conda", specs=("pure",), packages=found, wheels=wheels)
    lock = Lock(
        name="box",
        digest="a" * 64,
        tools={},
        debian=debian.section,
        conda=CondaSection(virtual_packages=virtual, environments={"base": section}),
    )
    image = ImageDefinition.model_validate(
        {
            "name": "box",
            "version": "1.0",
            "base": {"debian": "trixie"},
            "conda": {"channels": ["x"], "environments": {"base": {"dependencies": ["python"]}}},
            "files": [{"from": "app.conf", "to": "/etc/app.conf"}],
        }
    )
    files = {one.sha256: Path(one.url.removeprefix("file://")) for one in found} | {wheels[0].sha256: made}
    store = Store(folder / "layers")
    tree = payload.environment(lock, files, store=store, epoch=EPOCH, subject="box").path
    yield (
        bill.make(image, lock, files | debian.files, tree, folder=folder, store=debian.store, epoch=EPOCH),
        tree,
    )


def one_of(found: Bill, kind: str, name: str) -> Component:
    (one,) = (one for one in found.components if (one.kind, one.name) == (kind, name))
    return one


def test_debians_packages_say_the_same_whether_they_are_unpacked_already_or_not(
    debian: Debian, tmp_path: Path
) -> None:
    names = debian.section.packages
    bill._unpack_copyrights(names, debian.files, tmp_path / "docs")
    for one in names:
        control = debs.control(debian.files[one.sha256])
        facts = bill._facts(one, control, debian.system.path)
        assert facts == bill._facts(one, control, tmp_path / "docs")
        assert facts["maintainer"] and facts["text"], one.name


def test_every_part_of_it_is_listed_as_its_lock_and_itself_say(
    linked: tuple[Bill, Path], debian: Debian
) -> None:
    found, _ = linked
    kinds = [one.kind for one in found.components]
    assert kinds.count("deb") == len(debian.section.packages) and kinds.count("conda") == 6
    libc = one_of(found, "deb", "libc6")
    assert libc.purl.startswith("pkg:deb/debian/libc6@2.41") and "upstream=glibc" in libc.purl
    assert "distro=trixie" in libc.purl and libc.supplier.startswith("GNU Libc Maintainers <")
    assert "LGPL-2.1-or-later" in libc.licences and libc.texts == ("/usr/share/doc/libc6/copyright",)
    licensed = one_of(found, "conda", "licensed")
    assert licensed.licences == ("MIT",) and licensed.texts == ("/opt/conda/share/licenses/licensed/LICENSE",)
    assert licensed.purl == "pkg:conda/licensed@1.0?build=0&channel=small&subdir=linux-64&type=conda"
    assert one_of(found, "conda", "odd").licences == ("Our own terms",)
    assert one_of(found, "pypi", "wheeled").purl == "pkg:pypi/wheeled@1.0"
    assert one_of(found, "pypi", "wheeled").texts[0].endswith("wheeled-1.0.dist-info/licenses/LICENSE")
    assert len(one_of(found, "file", "/etc/app.conf").sha256) == 64


def test_licence_texts_stay_with_their_packages_as_files_that_are_recorded(linked: tuple[Bill, Path]) -> None:
    prefix = linked[1] / "opt/conda"
    assert (prefix / "share/licenses/licensed/LICENSE").read_text() == "Do what you like.\n"
    assert prefix_check.check(prefix) == []
    record = next(one for one in prefix_check.records(prefix) if one["name"] == "licensed")
    assert "share/licenses/licensed/LICENSE" in record["files"]


def test_cyclonedx_own_validator_accepts_it(linked: tuple[Bill, Path]) -> None:
    text = cyclonedx.write(linked[0])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    value = json.loads(text)
    assert value["compositions"][0]["aggregate"] == "complete"
    partly = cyclonedx.write(replace(linked[0], whole=False))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(partly) is None
    assert json.loads(partly)["compositions"][0]["aggregate"] == "incomplete"
    broken = text.replace('"alg": "SHA-256"', '"alg": "SHA-0"')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_spdx_own_validator_accepts_it(linked: tuple[Bill, Path], tmp_path: Path) -> None:
    path = tmp_path / "box.spdx.json"
    path.write_text(spdx.write(linked[0]))
    messages = [str(one.validation_message) for one in validate_full_spdx_document(parse_file(str(path)))]
    assert messages == []
    value = json.loads(path.read_text())
    odd = next(one for one in value["packages"] if one["name"] == "odd")
    assert odd["licenseDeclared"] == "LicenseRef-Our-own-terms"


def test_the_same_bill_is_the_same_bytes_and_another_has_another_number(linked: tuple[Bill, Path]) -> None:
    found, _ = linked
    assert cyclonedx.write(found) == cyclonedx.write(replace(found))
    other = replace(found, components=found.components[1:])
    numbers = {json.loads(cyclonedx.write(one))["serialNumber"] for one in (found, other)}
    assert len(numbers) == 2
    assert spdx.write(found) != spdx.write(other)


def test_the_licence_report_tells_first_what_is_not_known(linked: tuple[Bill, Path]) -> None:
    found, _ = linked
    text = licences.text(found)
    assert text.index("NO LICENCE KNOWN") < text.index("pure 1.0 (conda, base)") < text.index("\nMIT\n")
    assert "licensed 1.0 (conda, base)  /opt/conda/share/licenses/licensed/LICENSE" in text
    page = licences.html(replace(found, name="<box>"))
    assert "<h1>Licences of &lt;box&gt; 1.0</h1>" in page and "Our own terms" in page


# --- vulnerabilities --------------------------------------------------------------------------------


def record(
    ecosystem: str, name: str, *events: dict[str, str], id: str = "X-1", **more: object
) -> dict[str, object]:
    """An OSV record as its schema has it."""
    ranged = {"type": "ECOSYSTEM", "events": list(events)}
    return {
        "schema_version": "1.6.0",
        "id": id,
        "modified": "2025-01-01T00:00:00Z",
        "aliases": ["CVE-2025-1"],
        "summary": "It breaks.",
        "affected": [{"package": {"ecosystem": ecosystem, "name": name}, "ranges": [ranged]}],
        **more,
    }


def found_of(linked: tuple[Bill, Path], folder: Path, *records: dict[str, object]) -> list[osv.Finding]:
    for number, one in enumerate(records):
        (folder / f"{number}.json").write_text(json.dumps(one))
    return osv.find(linked[0], folder)


ZERO = {"introduced": "0"}


def test_a_debian_package_is_found_by_its_source(linked: tuple[Bill, Path], tmp_path: Path) -> None:
    found = found_of(
        linked, tmp_path, record("Debian:13", "glibc", ZERO, {"fixed": "2.99-1"}, id="DEBIAN-CVE-2025-1")
    )
    names = {one.component.name for one in found}
    assert {"libc6", "libc-bin"} <= names and {one.fixed for one in found} == {"2.99-1"}
    assert {one.name for one in found} == {"CVE-2025-1"} and not found[0].by_name
    (tmp_path / "0.json").unlink()
    fixed = record("Debian:13", "glibc", ZERO, {"fixed": "2.41~"})
    assert found_of(linked, tmp_path, fixed, record("Debian:12", "glibc", ZERO)) == []


def test_a_project_is_found_as_wheel_and_as_conda_package(linked: tuple[Bill, Path], tmp_path: Path) -> None:
    found = found_of(
        linked,
        tmp_path,
        record("PyPI", "wheeled", ZERO, {"last_affected": "1.0"}),
        record("PyPI", "Pure", {"introduced": "0.5"}, {"fixed": "1.0.post1"}),
        record("PyPI", "licensed", ZERO, {"fixed": "1.0"}),
        record("PyPI", "odd", ZERO, withdrawn="2025-02-01T00:00:00Z"),
        record("npm", "pure", ZERO),
    )
    assert [(one.component.kind, one.component.name, one.fixed, one.by_name) for one in found] == [
        ("conda", "pure", "1.0.post1", True),
        ("pypi", "wheeled", "", False),
    ]


def test_a_version_is_affected_that_is_listed_or_between_two_events(
    linked: tuple[Bill, Path], tmp_path: Path
) -> None:
    between = record("PyPI", "pure", ZERO, {"fixed": "0.1"}, {"introduced": "0.9"}, {"fixed": "2.0"})
    listed = record("PyPI", "odd", {"introduced": "5"})
    listed["affected"][0]["versions"] = ["0.9", "1.0"]  # type: ignore[index]
    found = found_of(linked, tmp_path, between, listed)
    assert [(one.component.name, one.fixed) for one in found] == [("odd", ""), ("pure", "2.0")]


def test_a_dump_may_be_a_zip_and_must_be_one(linked: tuple[Bill, Path], tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(record("PyPI", "pure", ZERO)))
    subprocess.run(["python3", "-m", "zipfile", "-c", "all.zip", "one.json"], cwd=tmp_path, check=True)
    assert len(osv.find(linked[0], tmp_path / "all.zip")) == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match="holds no OSV records"):
        osv.find(linked[0], tmp_path / "none")
    (tmp_path / "none/x.json").write_text("[]")
    with pytest.raises(UsageError, match=r"x\.json is no OSV record"):
        osv.find(linked[0], tmp_path / "none")

"""A wheel's own metadata is its recipe."""

import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conda_appliance import wheel
from conda_appliance.errors import BuildError

METADATA = """\
Metadata-Version: 2.4
Name: Small.Thing
Version: 1.2
Summary: A small thing
License-Expression: mit
License-File: LICENSE
Requires-Python: >=3.9, !=3.10.*
Requires-Dist: Flask_Extra (>=2,<4)
Requires-Dist: tomli>=1; python_version < "3.11"
Requires-Dist: colorama; sys_platform == "win32"
Requires-Dist: pytest; extra == "test"
"""


def make_wheel(folder: Path, metadata: str = METADATA, **files: str) -> Path:
    info = "small_thing-1.2.dist-info"
    path = folder / "small_thing-1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small_thing/__init__.py", "def main(): return 0\n")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr(f"{info}/licenses/LICENSE", "do as you like\n")
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def test_a_pure_wheel_becomes_a_noarch_package(tmp_path: Path) -> None:
    points = "[console_scripts]\nsmall = small_thing:main [extra]\n[gui_scripts]\nwindow = small_thing:main\n"
    path = make_wheel(tmp_path, **{"small_thing-1.2.dist-info__entry_points.txt": points})
    package = wheel.convert(path, tmp_path / "root", minor="3.13", build="abc1234")
    assert (package.name, package.version, package.build) == ("small-thing", "1.2", "pyhabc1234_0")
    assert package.noarch_python
    assert package.depends == ("python !=3.10.*,>=3.9", "flask-extra <4,>=2")
    assert package.license == "MIT"
    assert package.licenses == {"licenses_LICENSE": b"do as you like\n"}
    assert package.entry_points == ("small = small_thing:main",)
    site = tmp_path / "root/site-packages"
    assert (site / "small_thing/__init__.py").stat().st_mode & 0o777 == 0o644
    assert (site / "small_thing-1.2.dist-info/INSTALLER").read_text() == "conda\n"
    assert not (site / "small_thing-1.2.dist-info/RECORD").exists()


def test_an_executable_inside_a_wheel_stays_one(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        member = zipfile.ZipInfo("small_thing/tool")
        member.external_attr = 0o100755 << 16
        archive.writestr(member, "#!/bin/sh\n")
    wheel.convert(path, tmp_path / "root", minor="3.13", build="0")
    assert (tmp_path / "root/site-packages/small_thing/tool").stat().st_mode & 0o777 == 0o755


def test_extras_of_others_must_be_spelt_out(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, METADATA + "Requires-Dist: requests[socks]>=2\n")
    with pytest.raises(BuildError, match=r"requests\[socks\]>=2"):
        wheel.convert(path, tmp_path / "one", minor="3.13", build="0")
    package = wheel.convert(path, tmp_path / "two", minor="3.13", build="0", depends=["pysocks >=1.5"])
    assert package.depends[-2:] == ("requests >=2", "pysocks >=1.5")


def test_a_data_folder_is_refused_and_not_dropped(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, **{"small_thing-1.2.data__scripts__run": "#!python\n"})
    with pytest.raises(BuildError, match=r"\.data folder"):
        wheel.convert(path, tmp_path / "root", minor="3.13", build="0")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License-Expression": "bsd-3-clause"}, "BSD-3-Clause"),
        ({"License": "Apache-2.0"}, "Apache-2.0"),
        (
            {
                "License": "MIT License\n\nPermission is hereby …",
                "Classifier": "License :: OSI Approved :: MIT License",
            },
            "MIT",
        ),
        ({"Classifier": "License :: OSI Approved :: Apache Software License"}, "Apache-2.0"),
    ],
)
def test_the_licence_is_an_spdx_expression(fields: dict[str, str], expected: str) -> None:
    assert wheel.license_of(headers(fields)) == expected


@pytest.mark.parametrize(
    "fields", [{}, {"License": "BSD"}, {"Classifier": "License :: OSI Approved :: BSD License"}]
)
def test_a_vague_licence_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(BuildError, match="SPDX") as caught:
        wheel.license_of(headers(fields))
    assert "channel.yaml" in caught.value.hint


@pytest.mark.parametrize(
    ("tag", "glibc"),
    [
        ("cp313-cp313-manylinux_2_28_x86_64", "2.28"),
        ("cp313-cp313-manylinux2014_x86_64", "2.17"),
        ("cp39-abi3-manylinux1_x86_64", "2.5"),
        ("cp313-cp313-linux_x86_64", None),
        ("py3-none-any", None),
    ],
)
def test_a_tag_names_its_glibc(tag: str, glibc: str | None) -> None:
    assert wheel.glibc_of(tag) == glibc


@pytest.mark.parametrize(
    ("requirement", "spec"),
    [
        ("Jinja2>=3.1.2", "jinja2 >=3.1.2"),
        ("zope.interface", "zope-interface"),
        ("a~=1.4", "a ~=1.4"),
        ("a===1.0", "a ==1.0"),
        ("a>=1,!=1.5.*,<2", "a !=1.5.*,<2,>=1"),
    ],
)
def test_requirements_become_match_specs(requirement: str, spec: str) -> None:
    assert wheel.match_spec(Requirement(requirement)) == spec


def headers(fields: dict[str, str]) -> Message:
    message = Message()
    for name, value in {"Name": "x", "Version": "1", **fields}.items():
        message[name] = value
    return message

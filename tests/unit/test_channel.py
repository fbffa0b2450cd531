"""``channel.yaml``: what may stand in it, and how Debian's versions become conda's."""

import shutil
from pathlib import Path

import pytest
import yaml

from conda_appliance import channel, channel_library, recipes, resources
from conda_appliance.errors import HashMismatch, UsageError
from conda_appliance.recipes import Recipes, Wheel

SHA = "0" * 64


def test_the_shipped_recipes_are_sound() -> None:
    shipped = recipes.read(resources.shipped() / "channel")
    assert shipped.minor == "3.13"
    assert {"flask", "gunicorn", "numpy"} <= shipped.wheels.keys()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"wheels": {"a": {"version": "1", "sha256": "12"}}, "python_version": "3.13"}, "wheels.a.sha256"),
        ({"wheels": {"a": {"version": "1"}}, "python_version": "3.13"}, "wheels.a.sha256"),
        ({"wheels": {"a": {"version": "1", "sha256": SHA}}}, "need a 'python'"),
        (
            {"wheels": {"a": {"version": "1", "sha256": SHA, "license": "BSD"}}, "python_version": "3.13"},
            "wheels.a.license",
        ),
        ({"certificates": {"wheel": "certifi", "license": "MPL-2.0"}}, "none of 'wheels'"),
        (
            {
                "libraries": {
                    "suite": "trixie",
                    "glibc": "2.41",
                    "packages": {"z": {"debs": [], "license": "Zlib"}},
                }
            },
            "z.debs",
        ),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_mistake_is_named_by_its_place(tmp_path: Path, content: object, complaint: str) -> None:
    (tmp_path / "channel.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError) as caught:
        recipes.read(tmp_path)
    assert complaint in str(caught.value)
    assert str(tmp_path / "channel.yaml") in str(caught.value)


@pytest.mark.parametrize("content", [b"\x00\xff\xfe", b"{", b""])
def test_what_is_no_recipe_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "channel.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=r"channel\.yaml"):
        recipes.read(tmp_path)


def test_compilers_are_asked_for_only_where_python_is_compiled() -> None:
    wheels_only = Recipes(python_version="3.13", wheels={"a": Wheel(version="1", sha256=SHA)})
    assert "gcc" not in channel.tools(wheels_only)
    assert {"gcc", "make", "patch"} <= set(channel.tools())


@pytest.mark.parametrize(
    ("debian", "conda"),
    [
        ("3.0.17-1~deb12u2", "3.0.17"),
        ("1:1.2.13.dfsg-1", "1.2.13"),
        ("1:1.3.dfsg+really1.3.1-1+b1", "1.3.1"),
        ("6.4+20240113-1", "6.4+20240113"),
        ("8.2-1.3", "8.2"),
        ("2.38.1-5+deb12u3", "2.38.1"),
        ("20230311+deb12u1", "20230311"),
    ],
)
def test_debian_versions_lose_epoch_and_revision(debian: str, conda: str) -> None:
    assert channel_library.conda_version(debian) == conda


def test_a_flipped_byte_in_a_kept_package_is_caught_by_name(tmp_path: Path) -> None:
    place = tmp_path / "0123456789abcdef"
    place.mkdir()
    path = place / "zlib-1.2.13-0.conda"
    path.write_bytes(b"archive")
    (place / "SHA256").write_text(resources.sha256_of(path))
    assert channel.kept_package(place) == path
    path.write_bytes(b"archivf")
    with pytest.raises(HashMismatch, match=r"zlib-1\.2\.13-0\.conda"):
        channel.kept_package(place)
    assert not place.exists(), "the next run makes it anew"
    shutil.rmtree(place.with_suffix(".corrupt"))

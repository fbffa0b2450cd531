"""What an environment asks for, and what a record may say, before any solver runs."""

from pathlib import Path

import pytest

from conda_appliance import conda, environments, linking
from conda_appliance.definition_conda import Environment
from conda_appliance.errors import UsageError
from conda_appliance.lock import CondaPackage


def specs_of(tmp_path: Path, text: str) -> tuple[str, ...]:
    (tmp_path / "environment.yml").write_text(text)
    return environments.read(Environment(file="environment.yml"), tmp_path).specs


def package(channel: str, url: str) -> CondaPackage:
    return CondaPackage(
        name="x", version="1", build="0", subdir="noarch", channel=channel, url=url, sha256="0" * 64, size=1
    )


def test_dependencies_stand_for_themselves(tmp_path: Path) -> None:
    assert environments.read(Environment(dependencies=("numpy", "flask >=3")), tmp_path).specs == (
        "numpy",
        "flask >=3",
    )


def test_an_environment_file_gives_its_dependencies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "name: x\nchannels: [conda-forge]\ndependencies: [python=3.13, 'numpy >=2']\nprefix: /home/me\n"
    assert specs_of(tmp_path, text) == ("python=3.13", "numpy >=2")
    assert "'channels' are not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dependencies: [python, {pip: [requests, 3]}]", "the dependency 3 is not text"),
        ("dependencies: [python, {npm: [left-pad]}]", "{'npm'"),
        ("dependencies: [python, 3.13]", "the dependency 3.13 is not text"),
        ("dependencies: python", "no list 'dependencies'"),
        ("- python", "no list 'dependencies'"),
        ("dependencies: [", "cannot be read"),
        ("dependencies: [python]\nvariables: {A: b}", "sets 'variables'"),
    ],
)
def test_an_environment_file_that_cannot_be_honoured_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        specs_of(tmp_path, text)
    assert "environment.yml" in caught.value.message


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("conda-forge", "https://conda.anaconda.org/conda-forge"),
        ("conda-forge/label/dev", "https://conda.anaconda.org/conda-forge/label/dev"),
        ("https://mirror.example/channel/", "https://mirror.example/channel"),
    ],
)
def test_where_a_channel_is(name: str, url: str) -> None:
    assert conda.channel_url(name) == url


@pytest.mark.parametrize(
    "name", ["https://me:secret@mirror.example/c", "https://mirror.example/t/tk-secret/c"]
)
def test_a_channel_with_a_secret_is_refused_without_telling_it(name: str) -> None:
    with pytest.raises(UsageError, match="password or token") as caught:
        conda.channel_url(name)
    assert "secret" not in caught.value.message


def test_defaults_is_refused_for_what_it_is() -> None:
    with pytest.raises(UsageError, match="several channels") as caught:
        conda.channel_url("defaults")
    assert "conda-forge" in caught.value.hint


@pytest.mark.parametrize(
    ("channel", "url", "public"),
    [
        (
            "conda-forge",
            "https://c.org/conda-forge/noarch/x-1-0.conda",
            "https://c.org/conda-forge/noarch/x-1-0.conda",
        ),
        ("starter", "starter/noarch/x-1-0.conda", "file:///starter/noarch/x-1-0.conda"),
        ("./my/channel", "./my/channel/noarch/x-1-0.conda", "file:///channel/noarch/x-1-0.conda"),
        ("~/channel", "file:///home/me/channel/noarch/x-1-0.conda", "file:///channel/noarch/x-1-0.conda"),
    ],
)
def test_a_record_names_the_channel_and_not_the_build_host(channel: str, url: str, public: str) -> None:
    assert linking.public_url(package(channel, url)) == public

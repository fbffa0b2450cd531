"""Which credentials a URL's host is given, from which place; and that no message tells them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from conda_appliance import credentials, definition, network, redact
from conda_appliance.builders import packer
from conda_appliance.definition import ImageDefinition
from conda_appliance.definition_conda import Conda
from conda_appliance.errors import UsageError

SECRET = "s3cret-value"
CLEAN = ("CONDA_APPLIANCE_AUTH", "RATTLER_AUTH_FILE", "NETRC")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user who has said nothing yet, and has no keyring."""
    for name in CLEAN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.setattr(credentials, "_failed", {})
    credentials._in_keyring.cache_clear()
    return tmp_path


def secret_of(url: str) -> str:
    found = credentials.find(url)
    return found.secret if found else ""


def bearer(host: str, secret: str = SECRET) -> str:
    return json.dumps({host: {"BearerToken": secret}})


def test_nothing_said_nothing_given() -> None:
    assert credentials.find("https://host.example/c") is None


def test_the_first_place_that_knows_the_host_counts(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    url = "https://host.example/c"
    (home / ".netrc").write_text("machine host.example login me password of-netrc\n")
    (home / ".netrc").chmod(0o600)
    assert secret_of(url) == "of-netrc"
    (home / ".rattler").mkdir()
    (home / ".rattler/credentials.json").write_text(bearer("host.example", "of-home"))
    assert secret_of(url) == "of-home"
    kept = {("rattler", "host.example"): json.dumps({"BearerToken": "of-keyring"})}
    keyring = SimpleNamespace(get_password=lambda service, name: kept.get((service, name)))
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    credentials._in_keyring.cache_clear()
    assert secret_of(url) == "of-keyring"
    (home / "auth.json").write_text(bearer("host.example", "of-file"))
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(home / "auth.json"))
    assert secret_of(url) == "of-file"
    monkeypatch.setenv("CONDA_APPLIANCE_AUTH", bearer("host.example", "of-variable"))
    assert secret_of(url) == "of-variable"


class KeyringLocked(Exception):
    pass


class NoKeyringError(Exception):
    """What keyring raises where there is none (keyring.errors)."""


@pytest.mark.parametrize("error", [KeyringLocked("the vault is closed"), NoKeyringError("no backend")])
def test_a_keyring_that_fails_is_told_once_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, home: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    asked = []

    def get_password(_service: str, name: str) -> str:
        asked.append(name)
        raise error

    monkeypatch.setitem(sys.modules, "keyring", SimpleNamespace(get_password=get_password))
    (home / ".rattler").mkdir()
    (home / ".rattler/credentials.json").write_text(bearer("host.example", "of-home"))
    assert [secret_of(f"https://{host}/c") for host in ("host.example", "other.example")] == ["of-home", ""]
    assert asked == ["host.example"]
    said = capsys.readouterr().err
    assert said.count("KeyringLocked: the vault is closed") == isinstance(error, KeyringLocked)
    assert ("PYTHON_KEYRING_BACKEND" in said) == isinstance(error, KeyringLocked)


def test_a_star_stands_for_every_host_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_AUTH", bearer("*.example.org"))
    assert secret_of("https://conda.example.org/c") == SECRET
    assert secret_of("https://a.conda.example.org/c") == SECRET
    assert secret_of("https://example.org/c") == ""
    assert secret_of("https://badexample.org/c") == ""


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("https://host.example/c", True),
        ("https://HOST.example:8443/c", True),
        ("http://host.example/c", False),
        ("https://host.example.evil.example/c", False),
        ("https://evil.example/host.example", False),
        ("file:///host.example", False),
    ],
)
def test_they_go_to_that_host_over_https_alone(
    monkeypatch: pytest.MonkeyPatch, url: str, given: bool
) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_AUTH", bearer("host.example"))
    assert (credentials.find(url) is not None) == given


def test_a_netrcs_default_goes_to_nobody(home: Path) -> None:
    (home / ".netrc").write_text("default login me password s3cret-value\n")
    (home / ".netrc").chmod(0o600)
    assert credentials.find("https://host.example/c") is None


def test_one_host_over_http_too_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_AUTH", bearer("host.example"))
    with pytest.raises(UsageError, match="in the clear"):
        credentials.of_hosts(["https://host.example/c", "http://host.example/d"])


def test_a_conda_token_goes_before_the_path() -> None:
    token = credentials.Credential(kind="CondaToken", secret="tk-1")
    assert token.sent("https://host.example:8443/c/noarch/x") == "https://host.example:8443/t/tk-1/c/noarch/x"
    assert token.header == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"host.example": {"BearerToken": "s3cret-value"}', "is not JSON, line 1"),
        ('["s3cret-value"]', "no JSON object"),
        ('{"host.example": "s3cret-value"}', "host.example is not understood"),
        ('{"host.example": {"Bearer": "s3cret-value"}}', "host.example is not understood"),
    ],
)
def test_a_file_that_is_wrong_is_refused_without_quoting_it(
    monkeypatch: pytest.MonkeyPatch, home: Path, content: str, told: str
) -> None:
    (home / "auth.json").write_text(content)
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(home / "auth.json"))
    with pytest.raises(UsageError, match=told) as caught:
        credentials.find("https://host.example/c")
    assert "auth.json" in caught.value.message
    assert SECRET not in caught.value.message + caught.value.hint
    assert "BearerToken" in caught.value.hint


@pytest.mark.parametrize("name", ["RATTLER_AUTH_FILE", "NETRC"])
def test_a_file_that_is_not_there_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "/nowhere/file")
    with pytest.raises(UsageError, match="/nowhere/file") as caught:
        credentials.find("https://host.example/c")
    assert name in caught.value.message + caught.value.hint


def test_a_netrc_that_is_wrong_is_refused_without_quoting_it(home: Path) -> None:
    (home / ".netrc").write_text("machine host.example login me pasword s3cret-value\n")
    with pytest.raises(UsageError, match=r"\.netrc, line 1") as caught:
        credentials.find("https://host.example/c")
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://me:s3cret-value@host.example/c",
        "https://s3cret-value@host.example/c",
        "https://host.example/t/s3cret-value/c",
        "https://host.example/t/s3cret-value",
    ],
)
def test_a_url_with_a_secret_is_refused_without_telling_it(url: str) -> None:
    with pytest.raises(UsageError, match=r"host\.example") as caught:
        credentials.require_clean(url, "the channel URL")
    assert SECRET not in caught.value.message
    assert "RATTLER_AUTH_FILE" in caught.value.hint
    assert ".netrc" in caught.value.hint


@pytest.mark.parametrize("url", ["https://host.example/team/c", "file:///t/c", "conda-forge", "./t/c"])
def test_a_url_without_one_is_not(url: str) -> None:
    credentials.require_clean(url, "the channel URL")


def test_no_repr_shows_a_secret() -> None:
    assert SECRET not in repr(credentials.Credential(kind="BasicHTTP", user="me", secret=SECRET))


# --- what is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("GET https://me:pw@host.example/c: 404", "GET https://…@host.example/c: 404"),
        ("https://me:p@w@host.example/c", "https://…@host.example/c"),
        ("https://host.example/t/tk-1/c/noarch", "https://host.example/t/…/c/noarch"),
        ("https://host.example/conda/t/tk-1/c", "https://host.example/conda/t/…/c"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer …"),
        ("ssh://git@host.example/repo", "ssh://git@host.example/repo"),
        ("https://host.example/at/c", "https://host.example/at/c"),
        ("write to me@host.example", "write to me@host.example"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(given: str, told: str) -> None:
    assert redact.text(given) == told


def test_what_was_read_as_one_is_taken_out_however_it_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "_known", set())
    redact.keep("pa55/w=rd", "me")
    for spelled in ("pa55/w=rd", "pa55%2Fw%3Drd", "cGE1NS93PXJk", "bWU6cGE1NS93PXJk"):
        assert redact.text(f"<{spelled}>") == "<…>"


def test_standard_output_and_error_let_none_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(redact, "_known", {SECRET})
    with redact.guarded():
        print(f"out {SECRET}")
        print(f"err {SECRET}", file=sys.stderr)
    assert capsys.readouterr() == ("out …\n", "err …\n")


def test_what_packer_starts_is_given_none_and_we_have_them_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = {
        "CONDA_APPLIANCE_AUTH": bearer("host.example"),
        "https_proxy": "http://us:pw@proxy.example:3128",
    }
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    with packer._environment({"PACKER_LOG": "1"}):
        assert os.environ["PACKER_LOG"] == "1"
        assert not {*secret} & {*os.environ}
    assert {name: os.environ[name] for name in secret} == secret


@pytest.mark.parametrize(
    "proxy",
    ["http://me:s3cret-value@", "http://me:s3cret-value@host:port", "http://:3128", "me:s3cret-value@"],
)
def test_a_proxy_that_cannot_be_asked_is_refused_without_telling_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setattr(redact, "_known", set())
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UsageError, match="https_proxy is not the URL of a proxy") as caught:
        network.check_proxies()
    assert SECRET not in caught.value.message


@pytest.mark.parametrize(
    "proxy", ["http://proxy.example:3128", "proxy.example:3128", "socks5h://me:pw@proxy.example"]
)
def test_a_proxy_that_can_is_not(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    network.check_proxies()


def test_certificates_that_are_not_there_are_refused_by_their_variables_name(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(home / "none.pem"))
    with pytest.raises(UsageError, match=r"SSL_CERT_FILE names .*none\.pem"):
        network.variables()


# --- in a definition --------------------------------------------------------------------------------


def conda_section(**changed: object) -> Conda:
    usual = {"channels": ["conda-forge"], "environments": {"base": {"dependencies": ["python"]}}}
    return Conda.model_validate({**usual, **changed})


def test_a_channel_may_be_mirrored_by_its_name_or_url() -> None:
    for key in ("conda-forge", "https://conda.anaconda.org/conda-forge"):
        assert conda_section(mirrors={key: ["https://mirror.example/cf"]}).mirrors


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"mirrors": {"conda-frge": ["https://mirror.example/cf"]}},
            "conda-frge, which is none of the channels",
        ),
        ({"mirrors": {"conda-forge": ["mirror.example/cf"]}}, "is no URL"),
        ({"mirrors": {"conda-forge": []}}, "at least 1 item"),
        ({"mirrors": {"conda-forge": ["https://me:s3cret-value@mirror.example/cf"]}}, "password or token"),
        ({"channels": ["https://host.example/t/s3cret-value/c"]}, "password or token"),
        ({"pip_index": "https://me:s3cret-value@host.example/simple"}, "password or token"),
    ],
)
def test_what_would_not_work_or_leak_is_refused(changed: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        conda_section(**changed)


def test_another_mirror_needs_no_new_lock(tmp_path: Path) -> None:
    path = tmp_path / "box.yaml"
    image = {"name": "box", "version": "1", "base": {"debian": "trixie"}}
    mirrors = {"conda-forge": ["https://mirror.example/cf"]}
    plain = ImageDefinition.model_validate({**image, "conda": conda_section().model_dump()})
    mirrored = ImageDefinition.model_validate({**image, "conda": conda_section(mirrors=mirrors).model_dump()})
    assert definition.lock_digest(path, plain) == definition.lock_digest(path, mirrored)

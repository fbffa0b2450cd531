"""Channels of one's own: mirrors, credentials, authorities, proxies and bad lines; solve and downloads agree."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import packages
import private_server
import pytest
import wheels_made
from private_server import PrivateServer, basic
from tests.conftest import Folders

from conda_appliance import conda, definition, git, process, pypi, resolve, sources, transport
from conda_appliance.contract import Contract
from conda_appliance.errors import BuildError, CommandFailed, UsageError
from conda_appliance.sources import Cache, Download

PASSWORD = "pa55/word+very=secret"
TOKEN = "tk-0123456789-secret"


@pytest.fixture(scope="module")
def made(folders: Folders) -> Path:
    """A folder with a channel, the certificate of an authority and a server's."""
    folder = folders.mktemp("private")
    big = packages.File(content=random.Random(0).randbytes(1 << 20))
    packages.Package(name="big", files={"share/big": big}).write(folder / "served/channel")
    packages.small_channel(folder / "served/channel")
    private_server.authority(folder)
    return folder


@pytest.fixture
def server(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PrivateServer]:
    """Serves the channel; its authority is trusted, and nothing of the user's own is read."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "RATTLER_AUTH_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(made / "ca.pem"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transport, "PAUSE", 0.01)
    with private_server.serving(made / "served", made / "server.pem") as serving:
        yield serving


def solve(url: str, *mirrors: str, specs: Sequence[str] = ("prefixed", "python")) -> list[Download]:
    """What ``specs`` of the channel at ``url`` are, as a fetch would bring them."""
    channel = conda.Channel(name="mine", url=url, mirrors=mirrors)
    found, _ = conda.solve(specs, [channel], contract=Contract(glibc="2.41"))
    return [
        Download(
            name=one.filename,
            url=one.url,
            sha256=one.sha256,
            size=one.size,
            mirrors=conda.mirrors_of(one.url, [channel]),
        )
        for one in found
    ]


def fetch(files: list[Download], cache: Path) -> None:
    sources.fetch(files, Cache(cache), offline=False, progress=lambda _text: None)
    for one in files:
        Cache(cache).verified(one.sha256, one.name)


def in_auth_file(monkeypatch: pytest.MonkeyPatch, folder: Path, **entry: object) -> None:
    path = folder / "auth.json"
    path.write_text(json.dumps({"localhost": entry}))
    monkeypatch.setenv("RATTLER_AUTH_FILE", str(path))


def basic_by_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    in_auth_file(monkeypatch, folder, BasicHTTP={"username": "me", "password": PASSWORD})


def bearer_by_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    in_auth_file(monkeypatch, folder, BearerToken=TOKEN)


def token_by_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    in_auth_file(monkeypatch, folder, CondaToken=TOKEN)


def bearer_by_variable(monkeypatch: pytest.MonkeyPatch, _folder: Path) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_AUTH", json.dumps({"localhost": {"BearerToken": TOKEN}}))


def basic_by_netrc(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "my-netrc").write_text(f"machine localhost login me password {PASSWORD}\n")
    (folder / "my-netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(folder / "my-netrc"))


@pytest.mark.parametrize(
    ("given", "authorization", "token"),
    [
        (basic_by_file, basic("me", PASSWORD), ""),
        (bearer_by_file, f"Bearer {TOKEN}", ""),
        (token_by_file, "", TOKEN),
        (bearer_by_variable, f"Bearer {TOKEN}", ""),
        (basic_by_netrc, basic("me", PASSWORD), ""),
    ],
    ids=["basic, file", "bearer, file", "conda token, file", "bearer, variable", "basic, .netrc"],
)
def test_a_private_channel_is_solved_and_fetched_with_what_its_host_is_to_be_given(
    server: PrivateServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: Callable[[pytest.MonkeyPatch, Path], None],
    authorization: str,
    token: str,
) -> None:
    server.authorization, server.token = authorization, token
    given(monkeypatch, tmp_path)
    files = solve(f"{server.url}/channel")
    fetch(files, tmp_path / "blobs")
    assert {one.url.rpartition("/")[0].rpartition("/")[0] for one in files} == {f"{server.url}/channel"}
    assert 401 not in {one.status for one in server.asked}


def test_without_credentials_both_say_401_and_where_to_put_them(
    server: PrivateServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    basic_by_file(monkeypatch, tmp_path)
    server.authorization = basic("me", PASSWORD)
    files = solve(f"{server.url}/channel")
    monkeypatch.delenv("RATTLER_AUTH_FILE")
    with pytest.raises(BuildError, match="401") as of_fetch:
        fetch(files[:1], tmp_path / "blobs")
    with pytest.raises(BuildError, match="401") as of_solve:
        solve(f"{server.url}/channel")
    assert "RATTLER_AUTH_FILE" in of_fetch.value.hint
    assert "RATTLER_AUTH_FILE" in of_solve.value.hint


def test_another_hosts_credentials_stay_here(
    server: PrivateServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_AUTH", json.dumps({"other.example": {"BearerToken": TOKEN}}))
    fetch(solve(f"{server.url}/channel"), tmp_path / "blobs")
    assert {one.authorization for one in server.asked} == {""}


def test_a_redirect_to_another_host_is_followed_without_them(
    server: PrivateServer, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    basic_by_file(monkeypatch, tmp_path)
    server.authorization = basic("me", PASSWORD)
    with private_server.serving(made / "served", made / "server.pem", "127.0.0.1") as other:
        server.elsewhere = other.url
        files = solve(f"{server.url}/channel")
        solving = len(other.asked)
        fetch(files, tmp_path / "blobs")
        assert 0 < solving < len(other.asked), "the solve and the downloads were sent on"
        assert {one.authorization for one in other.asked} == {""}


def test_bytes_come_from_the_first_mirror_that_answers_and_urls_stay_the_channels(
    server: PrivateServer, tmp_path: Path
) -> None:
    home = "https://conda.invalid/mine"
    files = solve(home, "https://127.0.0.1:1/gone", f"{server.url}/nothing", f"{server.url}/channel")
    fetch(files, tmp_path / "blobs")
    assert all(one.url.startswith(f"{home}/") for one in files)
    assert {path.split("/")[1] for path in server.paths()} == {"nothing", "channel"}


def test_when_no_mirror_answers_each_ones_reason_is_told(server: PrivateServer) -> None:
    with pytest.raises(BuildError) as caught:
        solve("https://conda.invalid/mine", "https://127.0.0.1:1/gone", f"{server.url}/nothing")
    assert "https://127.0.0.1:1/gone: " in caught.value.message
    assert f"{server.url}/nothing: the server answers 404" in caught.value.message


def test_a_mirrors_credentials_are_its_own(
    server: PrivateServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bearer_by_variable(monkeypatch, tmp_path)
    server.authorization = f"Bearer {TOKEN}"
    fetch(solve("https://conda.invalid/mine", f"{server.url}/channel"), tmp_path / "blobs")
    assert 401 not in {one.status for one in server.asked}


def test_an_authority_that_is_not_trusted_is_refused_by_all(
    server: PrivateServer, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = solve(f"{server.url}/channel")
    (tmp_path / "others").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(private_server.authority(tmp_path / "others")[0]))
    with pytest.raises(BuildError, match=r"(?i)certificate"):
        fetch(files[:1], tmp_path / "blobs")
    with pytest.raises(BuildError, match=r"a channel cannot be read"):
        solve(f"{server.url}/channel")
    with pytest.raises(BuildError, match=r"(?i)certificate"):
        git.export(f"{server.url}/repo.git", "0" * 40, tmp_path / "tar", cache=tmp_path / "cache")


def test_git_trusts_the_same_authority(server: PrivateServer, made: Path, tmp_path: Path) -> None:
    work, served = tmp_path / "work", made / "served/repo.git"
    work.mkdir()
    (work / "file").write_text("content\n")
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    process.run(["git", "init", "-q", work])
    process.run(["git", "-C", work, "add", "file"])
    process.run(["git", *name, "-C", work, "commit", "-q", "-m", "one"])
    commit = process.run(["git", "-C", work, "rev-parse", "HEAD"]).stdout.strip()
    process.run(["git", "clone", "-q", "--bare", work, served])
    process.run(["git", "-C", served, "update-server-info"])
    git.export(f"{server.url}/repo.git", commit, tmp_path / "tar", cache=tmp_path / "cache")
    assert (tmp_path / "tar").stat().st_size > 0


def test_all_go_through_the_proxy_with_its_password_and_not_where_no_proxy_says(
    server: PrivateServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = int(server.url.rpartition(":")[2])
    with private_server.proxying(basic("us", "proxy-secret"), port) as proxy:
        monkeypatch.setenv("https_proxy", f"http://us:proxy-secret@127.0.0.1:{proxy.port}")
        fetch(solve(f"{server.url}/channel"), tmp_path / "blobs")
        seen = len(proxy.asked)
        assert seen >= 2, "the solve and the downloads"
        assert {*proxy.asked} == {f"localhost:{port}"}
        with pytest.raises(
            BuildError, match="cannot fetch"
        ):  # there is no such repository; the proxy was asked
            git.export(f"{server.url}/none.git", "0" * 40, tmp_path / "tar", cache=tmp_path / "cache")
        assert len(proxy.asked) > seen
        seen = len(proxy.asked)
        monkeypatch.setenv("no_proxy", "localhost")
        fetch(solve(f"{server.url}/channel"), tmp_path / "blobs again")
        assert len(proxy.asked) == seen


@pytest.mark.parametrize("given", [basic_by_file, basic_by_netrc])
def test_a_private_index_is_given_the_same(
    server: PrivateServer,
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    wheels_made.wheel(made / "served/index/files", "wheeled")
    wheels_made.index(made / "served/index")
    server.authorization = basic("me", PASSWORD)
    given(monkeypatch, tmp_path)
    target = pypi.Target(python="3.13.5", glibc="2.41")
    index = f"{server.url}/index/simple"
    (found,) = pypi.resolve(["wheeled"], [], target, own={}, cache=Cache(tmp_path / "blobs"), index=index)
    assert found.url == f"{server.url}/index/files/wheeled-1.0-py3-none-any.whl"
    bearer_by_variable(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match="BearerToken"):
        pypi.resolve(["wheeled"], [], target, own={}, cache=Cache(tmp_path / "blobs"), index=index)
    seen = len(server.asked)
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""\
name: mine
version: 1.0.0
base: {{debian: trixie}}
conda:
  channels: [{server.url}/channel]
  pip_index: {index}
  environments: {{base: {{dependencies: [pure], pip: [wheeled]}}}}
"""
    )
    image = definition.load_image(path)
    with pytest.raises(UsageError, match=r"conda\.pip_index: uv can give .* BearerToken") as caught:
        resolve.resolve(image, path, Cache(tmp_path / "blobs"), lambda _: None)
    assert "__token__" in caught.value.hint
    assert len(server.asked) == seen, "before anything is asked"


def test_a_line_that_breaks_and_a_server_that_is_busy_cost_only_time(
    server: PrivateServer, tmp_path: Path
) -> None:
    server.refusals = [503, 503]
    files = solve(f"{server.url}/channel", specs=["big"])
    server.cut, server.refusals = 600_000, [503, 429]
    fetch(files, tmp_path / "blobs")
    (resumed,) = [one for one in server.asked if one.range]
    assert resumed.status == 206
    assert int(resumed.range.removeprefix("bytes=").removesuffix("-")) > 0


@pytest.mark.parametrize("kind", ["repodata_shards.msgpack.zst", "repodata.json"])
def test_repodata_is_kept_and_asked_for_again_only_if_it_changed(
    server: PrivateServer, made: Path, kind: str
) -> None:
    own = made / "served" / kind.partition(".")[0]
    others = [] if "shards" in kind else ["*shards*", "*.zst"]
    shutil.copytree(made / "served/channel", own, ignore=shutil.ignore_patterns(*others))
    solve(f"{server.url}/{own.name}")
    first = [one for one in server.asked if one.path.endswith(f"/{kind}")]
    assert [(one.etag, one.status) for one in first] == [("", 200)] * 2
    server.asked.clear()
    solve(f"{server.url}/{own.name}")
    again = [one for one in server.asked if one.path.endswith(f"/{kind}")]
    assert [(one.etag != "", one.status) for one in again] == [(True, 304)] * 2
    assert {one.status for one in server.asked} <= {304, 404}


def test_a_program_that_asks_no_server_is_given_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "CONDA_APPLIANCE_AUTH": "{}",
        "RATTLER_AUTH_FILE": "/somewhere",
        "NETRC": "/somewhere",
        "https_proxy": "http://us:proxy-secret@proxy.example:3128",
        "UV_INDEX_MINE_PASSWORD": "secret",
    }
    for name, value in {**secrets, "http_proxy": "http://proxy.example:3128"}.items():
        monkeypatch.setenv(name, value)
    given = process.run(["env"]).stdout.splitlines()
    names = {line.partition("=")[0] for line in given}
    assert not names & {*secrets}
    assert "http_proxy=http://proxy.example:3128" in given, "one without a password is no secret"
    asking = process.run(["env"], network=True).stdout
    assert "proxy-secret" in asking
    assert "CONDA_APPLIANCE_AUTH" not in asking


def test_what_failed_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = "https://me:secret-in-url@host.example/t/secret-token/c"
    with pytest.raises(CommandFailed) as caught:
        process.run(["sh", "-c", 'echo "cannot read $1"; exit 1', "sh", url], log=tmp_path / "log")
    for told in (caught.value.message, caught.value.output, (tmp_path / "log").read_text()):
        assert "host.example" in told
        assert "secret" not in told

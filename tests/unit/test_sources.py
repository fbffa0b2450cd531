"""Downloads arrive whole and verified, or the reason is told; the server is the test's own, on 127.0.0.1."""

import hashlib
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from conda_appliance import runs, sources, transport
from conda_appliance.errors import BuildError, HashMismatch, LockError
from conda_appliance.sources import Cache, Download

pytestmark = pytest.mark.allow_loopback

CONTENT = bytes(range(256)) * 8192  # 2 MiB


@dataclass
class Server:
    """A web server with a memory of what was asked, and of how it shall fail."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    #: The status codes to answer before the file, one a request.
    refusals: list[int] = field(default_factory=list)
    #: Break the connection after this many bytes of the next answer.
    cut: int = 0


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            server.asked.append((self.path, wanted))
            if server.refusals:
                return self.plain(server.refusals.pop(0))
            if self.path not in server.files:
                return self.plain(404)
            content = server.files[self.path]
            start = int(match[1]) if (match := re.match(r"bytes=(\d+)-$", wanted)) else 0
            if start and start >= len(content):
                return self.plain(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            cut, server.cut = server.cut, 0
            self.wfile.write(content[start : start + cut] if cut else content[start:])
            self.close_connection = bool(cut)
            return None

        def plain(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(transport, "PAUSE", 0.01)
    made = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(made)) as httpd:
        made.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        httpd.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def download(url: str, content: bytes = CONTENT, name: str = "file") -> Download:
    return Download(name=name, url=url, sha256=sha256(content), size=len(content))


def fetch(cache: Cache, *wanted: Download, offline: bool = False) -> list[str]:
    said: list[str] = []
    sources.fetch(wanted, cache, offline=offline, progress=said.append)
    return said


def parts(cache: Cache) -> list[Path]:
    return list(cache.root.rglob("*.part"))


def test_a_file_arrives_and_the_way_there_is_told(server: Server, cache: Cache) -> None:
    server.files["/a"] = CONTENT
    said = fetch(cache, download(f"{server.url}/a"))
    assert cache.verified(sha256(CONTENT), "a").read_bytes() == CONTENT
    assert said[-1] == "1/1 files, 2.0 MiB of 2.0 MiB"
    assert parts(cache) == []


def test_what_is_there_is_not_asked_for_again(server: Server, cache: Cache) -> None:
    server.files["/a"] = CONTENT
    fetch(cache, download(f"{server.url}/a"))
    fetch(cache, download(f"{server.url}/a"), offline=True)
    assert len(server.asked) == 1


def test_the_same_file_wanted_twice_is_fetched_once(server: Server, cache: Cache) -> None:
    server.files["/a"] = server.files["/b"] = CONTENT
    fetch(cache, download(f"{server.url}/a"), download(f"{server.url}/b"))
    assert len(server.asked) == 1


def test_several_images_of_one_run_that_want_the_same_file_fetch_it_once(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fetches what its lock names, at the same time; the one that is not first waits for the file."""
    server.files["/file"] = CONTENT
    entered, both = threading.Semaphore(0), threading.Event()
    one, whole = sources._fetch_one, sources._fetch_whole

    def entering(wanted: Download, run: sources._Run) -> None:
        entered.release()
        one(wanted, run)

    def slow(wanted: Download, target: Path, run: sources._Run) -> None:
        assert both.wait(60), "the other one did not come"
        whole(wanted, target, run)

    monkeypatch.setattr(sources, "_fetch_one", entering)
    monkeypatch.setattr(sources, "_fetch_whole", slow)
    said: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: said.append(fetch(cache, download(f"{server.url}/file"))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert entered.acquire(timeout=60) and entered.acquire(timeout=60)
    both.set()
    for thread in threads:
        thread.join(60)
    assert server.asked == [("/file", "")]
    assert [lines[-1] for lines in said] == ["1/1 files, 2.0 MiB of 2.0 MiB"] * 2
    assert cache.verified(sha256(CONTENT), "file").read_bytes() == CONTENT
    assert parts(cache) == []


def test_a_file_url_and_a_plain_path_are_copied(tmp_path: Path, cache: Cache) -> None:
    with_space = tmp_path / "my file"
    with_space.write_bytes(b"one")
    plain = tmp_path / "plain"
    plain.write_bytes(b"two")
    fetch(cache, download(with_space.as_uri(), b"one"), download(str(plain), b"two"))
    assert cache.verified(sha256(b"one"), "x").read_bytes() == b"one"
    assert cache.verified(sha256(b"two"), "x").read_bytes() == b"two"


def test_a_broken_connection_is_gone_on_with(server: Server, cache: Cache) -> None:
    server.files["/a"] = CONTENT
    server.cut = 1_000_000
    fetch(cache, download(f"{server.url}/a"))
    assert cache.verified(sha256(CONTENT), "a").read_bytes() == CONTENT
    (_, first), (_, second) = server.asked
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1_000_000


def dead_part(cache: Cache, content: bytes) -> Path:
    """What a killed run left: its name tells a process that is no more."""
    blob = cache.blob(sha256(CONTENT))
    blob.parent.mkdir(parents=True)
    owner = f"{os.getpid()}-1-{runs.mark().rpartition(':')[2]}"
    part = blob.with_name(f"{blob.name}.{owner}.part")
    part.write_bytes(content)
    return part


def test_what_a_killed_run_had_is_gone_on_with(server: Server, cache: Cache) -> None:
    server.files["/a"] = CONTENT
    dead_part(cache, CONTENT[:500_000])
    fetch(cache, download(f"{server.url}/a"))
    assert cache.verified(sha256(CONTENT), "a").read_bytes() == CONTENT
    assert server.asked == [("/a", "bytes=500000-")]
    assert parts(cache) == []


@pytest.mark.parametrize(
    "left", [b"\xff" * 500_000, CONTENT + b"more"], ids=["other bytes", "longer than the file"]
)
def test_a_killed_runs_beginning_that_does_not_fit_is_thrown_away(
    server: Server, cache: Cache, left: bytes
) -> None:
    server.files["/a"] = CONTENT
    dead_part(cache, left)
    fetch(cache, download(f"{server.url}/a"))
    assert cache.verified(sha256(CONTENT), "a").read_bytes() == CONTENT
    assert server.asked[-1] == ("/a", "")


def test_another_living_runs_beginning_is_left_alone(server: Server, cache: Cache) -> None:
    server.files["/a"] = CONTENT
    blob = cache.blob(sha256(CONTENT))
    blob.parent.mkdir(parents=True)
    theirs = blob.with_name(f"{blob.name}.{runs.mark(os.getppid()).replace(':', '-')}.part")
    theirs.write_bytes(b"theirs")
    fetch(cache, download(f"{server.url}/a"))
    assert theirs.read_bytes() == b"theirs"


def test_a_server_that_is_overloaded_is_asked_again(server: Server, cache: Cache) -> None:
    server.files["/a"] = CONTENT
    server.refusals = [503, 429]
    fetch(cache, download(f"{server.url}/a"))
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("86400", transport.LONGEST_PAUSE), ("soon", 0.0), ("", 0.0)]
)
def test_a_server_may_say_when_to_ask_again_within_reason(header: str, seconds: float) -> None:
    answer = requests.Response()
    answer.headers["Retry-After"] = header
    assert transport._asked_pause(answer) == seconds


@pytest.mark.parametrize(
    ("answers", "status"),
    [([404], "other"), ([503] * 4, "other"), ([403], "other"), ([], "first")],
)
def test_a_mirror_that_does_not_give_a_file_is_passed_over(
    server: Server, cache: Cache, answers: list[int], status: str
) -> None:
    server.files["/first/a"] = server.files["/other/a"] = CONTENT
    server.refusals = answers
    mirrors = (f"{server.url}/first/a", f"{server.url}/other/a")
    fetch(cache, replace(download("https://home.invalid/a"), mirrors=mirrors))
    assert server.asked[-1][0] == f"/{status}/a"


def test_a_mirror_with_other_bytes_is_passed_over_and_told_when_there_is_no_better(
    server: Server, cache: Cache
) -> None:
    server.files.update({"/bad/a": b"bad", "/good/a": CONTENT})
    bad, good = f"{server.url}/bad/a", f"{server.url}/good/a"
    with pytest.raises(HashMismatch):
        fetch(cache, replace(download("https://home.invalid/a"), mirrors=(bad,)))
    fetch(cache, replace(download("https://home.invalid/a"), mirrors=(bad, good)))
    assert cache.verified(sha256(CONTENT), "a").read_bytes() == CONTENT


def test_a_server_that_stays_overloaded_is_named(server: Server, cache: Cache) -> None:
    server.refusals = [503] * transport.TRIES
    with pytest.raises(BuildError, match=rf"{server.url}/a: the server answers 503 .*\(4 tries\)"):
        fetch(cache, download(f"{server.url}/a"))


@pytest.mark.parametrize("status", [403, 404])
def test_a_clear_no_is_not_asked_again(server: Server, cache: Cache, status: int) -> None:
    server.refusals = [status]
    with pytest.raises(BuildError, match=str(status)):
        fetch(cache, download(f"{server.url}/a"))
    assert len(server.asked) == 1


def test_other_bytes_than_the_locks_are_refused_by_name(server: Server, cache: Cache) -> None:
    server.files["/a"] = b"\xff" + CONTENT[1:]
    with pytest.raises(HashMismatch, match=r"numpy\.conda") as caught:
        fetch(cache, download(f"{server.url}/a", name="numpy.conda"))
    assert (caught.value.expected, caught.value.found) == (sha256(CONTENT), sha256(server.files["/a"]))
    assert not cache.has(sha256(CONTENT))
    assert parts(cache) == []


def test_all_failures_are_told_at_once_and_the_rest_arrives(server: Server, cache: Cache) -> None:
    server.files.update({"/good": CONTENT, "/bad": b"bad"})
    with pytest.raises(LockError) as caught:
        fetch(
            cache,
            download(f"{server.url}/gone", b"gone", "gone.conda"),
            download(f"{server.url}/bad", b"other", "bad.conda"),
            download(f"{server.url}/good"),
        )
    assert "2 files could not be had" in caught.value.message
    assert "bad.conda" in caught.value.message
    assert "/gone is not there (404)" in caught.value.message
    assert cache.has(sha256(CONTENT))


def test_a_host_that_is_down_is_told_once_tried_out(server: Server, cache: Cache) -> None:
    nobody = "http://127.0.0.1:1"
    wanted = [download(f"{nobody}/{number}", str(number).encode()) for number in range(40)]
    with pytest.raises(BuildError, match="40 files could not be had") as caught:
        fetch(cache, *wanted)
    assert "Connection refused" in caught.value.message
    assert "and 28 more" in caught.value.message
    assert "0x" not in caught.value.message, "no Python object addresses in what people read"


def test_offline_says_what_is_missing_and_how_to_get_it(cache: Cache) -> None:
    with pytest.raises(LockError, match="not in the cache: a, b") as caught:
        fetch(
            cache,
            download("http://nowhere.invalid/a", b"a", "a"),
            download("http://nowhere.invalid/b", b"b", "b"),
            offline=True,
        )
    assert "conda-appliance fetch FILE" in caught.value.hint


def test_a_full_disk_stops_everything(server: Server, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    cache = Cache(tmp_path / "cache")
    server.files["/a"] = CONTENT
    part = cache.blob(sha256(CONTENT))
    part.parent.mkdir(parents=True)
    part.with_name(f"{part.name}.{runs.mark().replace(':', '-')}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        fetch(cache, download(f"{server.url}/a"))


# --- the cache --------------------------------------------------------------------------------------


def test_a_flipped_bit_in_the_cache_is_caught_by_name_and_mended_by_the_next_fetch(
    server: Server, cache: Cache
) -> None:
    server.files["/a"] = CONTENT
    one = download(f"{server.url}/a", name="libc6_2.41-12_amd64.deb")
    fetch(cache, one)
    cache.blob(one.sha256).write_bytes(b"\x01" + CONTENT[1:])
    with pytest.raises(HashMismatch, match=r"libc6_2\.41-12_amd64\.deb in the cache") as caught:
        cache.verified(one.sha256, one.name)
    assert ".corrupt" in caught.value.hint
    assert not cache.has(one.sha256)
    fetch(cache, one)
    assert cache.verified(one.sha256, one.name).read_bytes() == CONTENT


def test_a_file_that_is_not_in_the_cache_is_named(cache: Cache) -> None:
    with pytest.raises(LockError, match="libc6 is not in the cache"):
        cache.verified("0" * 64, "libc6")


# --- snapshot.debian.org, played by a stand-in ------------------------------------------------------

#: As the lock names it (apt's own spelling of an epoch), and where its mirror has it: without the epoch.
DEB = "libexample_1%3a2.0-3_amd64.deb"
POOL = "/pool/libexample_2.0-3_amd64.deb"
API = "/mr/binary/libexample/1%3A2.0-3/binfiles"


@pytest.fixture
def snapshot(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A stand-in for snapshot.debian.org on the same server: what its API answers for one package."""
    monkeypatch.setenv("CONDA_APPLIANCE_SNAPSHOT", server.url)
    server.files[API] = (
        b'{"_comment": "a stand-in, not snapshot.debian.org", "result": ['
        b'{"architecture": "arm64", "hash": "00"}, {"architecture": "amd64", "hash": "aa"}]}'
    )
    return server


def test_a_package_that_left_its_mirror_comes_from_the_archive(snapshot: Server, cache: Cache) -> None:
    snapshot.files["/file/aa"] = CONTENT
    fetch(cache, download(f"{snapshot.url}{POOL}", name=DEB))
    assert cache.verified(sha256(CONTENT), DEB).read_bytes() == CONTENT
    assert [path for path, _ in snapshot.asked] == [POOL, API, "/file/aa"]


def test_the_archives_bytes_are_verified_too(snapshot: Server, cache: Cache) -> None:
    snapshot.files["/file/aa"] = b"other bytes"
    with pytest.raises(HashMismatch, match="libexample"):
        fetch(cache, download(f"{snapshot.url}{POOL}", name=DEB))
    assert not cache.has(sha256(CONTENT))


def test_a_package_that_the_archive_lacks_too(snapshot: Server, cache: Cache) -> None:
    del snapshot.files[API]
    with pytest.raises(BuildError, match=r"has left the mirror .* does not have it either") as caught:
        fetch(cache, download(f"{snapshot.url}{POOL}", name=DEB))
    assert caught.value.hint == "conda-appliance lock --upgrade FILE"


def test_an_archive_that_cannot_be_reached(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_SNAPSHOT", "http://127.0.0.1:1")
    with pytest.raises(BuildError, match=r"has left the mirror .*:1 could not give it either.*refused"):
        fetch(cache, download(f"{server.url}{POOL}", name=DEB))

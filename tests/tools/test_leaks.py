"""Secrets planted wherever they can be given are found nowhere: lock, output, cache, results, programs started."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import packages
import private_server
import pytest
import wheels_made
from debian_made import Debian
from packages import File, Package
from private_server import basic
from tests.conftest import Folders

from conda_appliance import process
from conda_appliance.disk import ROOT_START, SECTOR

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds a machine, as root")

#: One secret for each way in which one can be given: where → (user, secret).
SECRETS = {
    "file, basic": ("alice", "Basic/in+a=file-1f7a"),
    "file, conda token": ("", "tk-in-a-file-2c9d"),
    "variable, bearer": ("", "bearer.in-variable_3e5b"),
    "netrc": ("bob", "in-a-netrc-4a8c"),
    "proxy": ("carol", "of-the-proxy-5d6e"),
    "uv's own": ("dave", "in-uvs-variable-6b0f"),
}
#: The programs that may know the proxy's password, because they ask servers: words of their command lines.
ASK_SERVERS = (b"conda_appliance.conda_child\0solve", b"/uv\0pip", b"apt-get\0")


def spellings(user: str, secret: str) -> set[bytes]:
    """A secret as it may be written: raw, percent-encoded, in base64 and at each of base64's three offsets."""
    found = {secret, quote(secret, safe=""), base64.b64encode(f"{user}:{secret}".encode()).decode()}
    for offset in range(3):
        packed = base64.b64encode(b"\0" * offset + secret.encode()).decode()
        found.add(packed[4 if offset else 0 : -4])
    return {one.encode() for one in found}


EVERY = {spelled: where for where, given in SECRETS.items() for spelled in spellings(*given)}


def leaks(data: bytes) -> set[str]:
    return {where for spelled, where in EVERY.items() if spelled in data}


def commands(pid: int, main: int) -> bytes:
    """The command lines of a process and of those above it, up to ``main``."""
    found = b""
    while pid > 1:
        found += Path(f"/proc/{pid}/cmdline").read_bytes() + b"\n"
        if pid == main:
            return found
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return b""


@dataclass
class Watch:
    """Looks at one run's process and all below it, for as long as it runs: command lines (`commands`) → the leaks in
    them, and in the environment.
    """

    main: int
    lines: dict[bytes, set[str]] = field(default_factory=dict)
    environments: dict[bytes, set[str]] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self.over.is_set():
            for folder in Path("/proc").iterdir():
                with suppress(OSError, ValueError):
                    pid = int(folder.name)
                    line = commands(pid, self.main)
                    environment = (folder / "environ").read_bytes()
                    if line and line == commands(
                        pid, self.main
                    ):  # it has not become another program meanwhile
                        self.lines.setdefault(line, set()).update(leaks(line))
                        self.environments.setdefault(line, set()).update(leaks(environment))
            time.sleep(0.002)


@dataclass
class Place:
    """A project of a user who has said every secret, and what its runs said and started."""

    folder: Path
    env: dict[str, str]
    said: list[bytes] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)

    def run(self, *words: str, status: int = 0) -> str:
        program = subprocess.Popen(
            [sys.executable, "-P", "-m", "conda_appliance", *words],
            cwd=self.folder / "project",
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        watch = Watch(main=program.pid)
        thread = threading.Thread(target=watch.look)
        thread.start()
        said, _ = program.communicate()
        watch.over.set()
        thread.join()
        self.said.append(said)
        self.watches.append(watch)
        assert program.returncode == status, said.decode()
        return said.decode()


def channel(folder: Path, name: str) -> None:
    Package(name=name, files={f"share/{name}": File(content=f"{name}\n")}).write(folder)
    packages.index(folder)


def machine(definition: str) -> str:
    """The same as a machine that the rootfs builder makes."""
    kept = [line for line in definition.splitlines() if not line.startswith(("base:", "builder:", "name:"))]
    return "\n".join(
        [
            "name: machine",
            "base: {debian: trixie, packages: [netcat-openbsd]}",
            "builder: rootfs",
            "formats: [qcow2]",
            "disk: {size: 1GiB}",
            *kept,
        ]
    )


def share(debian: Debian, cache: Path) -> None:
    """Give a new cache the Debian of all tests: its packages, and its tree."""
    for sha256, path in debian.files.items():
        blob = cache / "blobs" / sha256[:2] / sha256
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
    (cache / "layers/system").mkdir(parents=True)
    process.run(["cp", "-a", debian.system.path.parent, cache / "layers/system"])


@pytest.fixture(scope="module")
def place(folders: Folders, debian: Debian) -> Iterator[Place]:
    folder = folders.mktemp("leaks")
    served, home, project = folder / "served", folder / "home", folder / "project"
    for one in (served, home, project):
        one.mkdir()
    ca, certificate = private_server.authority(folder)
    packages.small_channel(served / "channel")
    for name in ("by-token", "by-bearer"):
        channel(served / name, name)
    wheels_made.wheel(served / "index/files", "wheeled")
    wheels_made.index(served / "index")
    (folder / "base.qcow2").write_bytes(b"a disk")
    digest = hashlib.sha256(b"a disk").hexdigest()
    (project / "leaky.yaml").write_text(
        f"""\
name: leaky
version: 1.0.0
base: {{image: {{url: {(folder / "base.qcow2").as_uri()}, sha256: {digest}}}}}
builder: packer
conda:
  channels: [https://conda.invalid/mine, https://token.private.test/by-token, https://bearer.private.test/by-bearer]
  mirrors: {{https://conda.invalid/mine: [https://basic.private.test/channel]}}
  pip_index: https://netrc.private.test/index/simple
  environments:
    base: {{dependencies: [pure, by-token, by-bearer], pip: [wheeled]}}
"""
    )
    of = {where: secret for where, (_user, secret) in SECRETS.items()}
    (home / "auth.json").write_text(
        json.dumps(
            {
                "basic.private.test": {"BasicHTTP": {"username": "alice", "password": of["file, basic"]}},
                "token.private.test": {"CondaToken": of["file, conda token"]},
            }
        )
    )
    (home / ".netrc").write_text(f"machine netrc.private.test login bob password {of['netrc']}\n")
    (home / ".netrc").chmod(0o600)
    bearer = {"bearer.private.test": {"BearerToken": of["variable, bearer"]}}
    left_out = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NETRC", "SSL_CERT_DIR")
    usual = {
        name: value
        for name, value in os.environ.items()
        if name not in left_out and not name.lower().endswith("_proxy")
    }
    with private_server.serving(served, certificate) as server:
        server.hosts = {
            "basic.private.test": basic("alice", of["file, basic"]),
            "token.private.test": of["file, conda token"],
            "bearer.private.test": f"Bearer {of['variable, bearer']}",
            "netrc.private.test": basic("bob", of["netrc"]),
        }
        port = int(server.url.rpartition(":")[2])
        with private_server.proxying(basic("carol", of["proxy"]), port) as proxy:
            env = {
                **usual,
                "HOME": str(home),
                "CONDA_APPLIANCE_CACHE": str(folder / "cache"),
                "RATTLER_AUTH_FILE": str(home / "auth.json"),
                "CONDA_APPLIANCE_AUTH": json.dumps(bearer),
                "https_proxy": f"http://carol:{of['proxy']}@127.0.0.1:{proxy.port}",
                "SSL_CERT_FILE": str(ca),
                "UV_INDEX_OTHER_USERNAME": "dave",
                "UV_INDEX_OTHER_PASSWORD": of["uv's own"],
                # As much as can be told.
                "RUST_LOG": "trace",
                "RUST_BACKTRACE": "1",
                "UV_VERBOSE": "3",
            }
            made = Place(folder, env)
            made.run("lock", "leaky.yaml")
            made.run("fetch", "leaky.yaml")
            made.run("disc", "leaky.yaml", "payload")
            share(debian, folder / "cache")
            (project / "machine.yaml").write_text(machine((project / "leaky.yaml").read_text()))
            made.run("lock", "machine.yaml")
            made.run("build", "machine.yaml", "--no-check")
            assert 401 not in {one.status for one in server.asked if "by-" in one.path}, "each was let in"
            assert {one.rpartition(":")[0] for one in proxy.asked} == {*server.hosts}
            yield made


#: Files in which there was nothing, by what tells that one changed: a cache with a system in it has many.
CLEAN: set[tuple[str, int, int, int]] = set()


def files_with_leaks(*folders: Path) -> dict[str, set[str]]:
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                about = path.stat()
                which = (str(path), about.st_ino, about.st_size, about.st_mtime_ns)
                if which not in CLEAN and (seen := leaks(path.read_bytes())):
                    found[str(path)] = seen
                else:
                    CLEAN.add(which)
            if seen := leaks(os.fsencode(path)):
                found[str(path)] = seen
    return found


def test_the_search_finds_what_was_planted(place: Place) -> None:
    """Else the other tests here would find nothing whatever leaked."""
    planted = leaks((place.folder / "home/auth.json").read_bytes())
    planted |= leaks((place.folder / "home/.netrc").read_bytes())
    planted |= leaks(json.dumps(place.env).encode())
    assert planted == {*SECRETS}
    for where, (user, secret) in SECRETS.items():
        for offset in range(3):
            assert leaks(base64.b64encode(b"x" * offset + secret.encode() + b"y")) >= {where}
        assert leaks(basic(user, secret).encode()) >= {where}


def test_the_lock_has_none_and_keeps_the_channels_own_urls(place: Place) -> None:
    text = (place.folder / "project/leaky.lock").read_text()
    assert not leaks(text.encode())
    for url in (
        "https://conda.invalid/mine/noarch/pure-",
        "https://token.private.test/by-token/linux-64/by-token-",
        "https://bearer.private.test/by-bearer/linux-64/by-bearer-",
        "https://netrc.private.test/index/files/wheeled-",
    ):
        assert url in text


def test_neither_the_cache_nor_the_project_nor_its_results_have_any(place: Place) -> None:
    """A build's logs and the files that it rendered and ran are among them, and the layers of its system."""
    results = list((place.folder / "project").rglob("*.iso"))
    assert results, "the payload disc was made"
    built = place.folder / "project/out/machine/latest"
    for name in (
        "machine.lock",
        "machine.cdx.json",
        "manifest.json",
        "build/playbook/vars.yml",
        "logs/ansible.log",
    ):
        assert (built / name).exists(), name
    assert list((place.folder / "cache/layers").glob("provisioned/*/tree/etc/conda-appliance"))
    assert files_with_leaks(place.folder / "cache", place.folder / "project") == {}


def disk_leaks(disk: Path, work: Path) -> set[str]:
    """The leaks anywhere in a disk: in its files, what is left of deleted ones, the file systems' own blocks."""
    raw, spelled = work / "disk.raw", work / "spelled"
    process.run(["qemu-img", "convert", "-O", "raw", disk, raw])
    spelled.write_bytes(b"\n".join(EVERY) + b"\n")
    # Its lines end in NUL, of which a disk has enough; no secret has one.
    found = process.run(["grep", "-zaoF", "-f", spelled, raw], check=False).stdout
    raw.unlink()
    return {EVERY[one.encode()] for one in found.split("\0") if one}


def test_no_byte_of_a_machines_disk_has_any(place: Place, tmp_path: Path) -> None:
    (disk,) = (place.folder / "project/out/machine/latest/").glob("*.qcow2")
    assert disk_leaks(disk, tmp_path) == set()


def test_the_search_of_a_disk_finds_what_was_planted_in_its_copy(place: Place, tmp_path: Path) -> None:
    (disk,) = (place.folder / "project/out/machine/latest/").glob("*.qcow2")
    for at, (where, (user, secret)) in enumerate(SECRETS.items()):
        (tmp_path / f"planted-{at}").write_text(f"password={secret}\n" if at % 2 else basic(user, secret))
        assert leaks((tmp_path / f"planted-{at}").read_bytes()) >= {where}
    raw, planted = tmp_path / "copy.raw", tmp_path / "copy.qcow2"
    process.run(["qemu-img", "convert", "-O", "raw", disk, raw])
    place_of = f"{raw}?offset={ROOT_START * SECTOR}"
    for at in range(len(SECRETS)):
        process.run(["debugfs", "-w", "-R", f"write {tmp_path}/planted-{at} /etc/planted-{at}", place_of])
    process.run(["debugfs", "-w", "-R", "rm /etc/planted-0", place_of])  # its bytes are still there
    process.run(["qemu-img", "convert", "-O", "qcow2", "-c", raw, planted])
    raw.unlink()
    assert disk_leaks(planted, tmp_path) == {*SECRETS}


def test_nothing_that_was_said_has_any(place: Place) -> None:
    assert len(b"".join(place.said)) > 100
    assert not leaks(b"".join(place.said))


def test_no_command_line_has_any(place: Place) -> None:
    seen = {line: found for watch in place.watches for line, found in watch.lines.items()}
    for words in ASK_SERVERS:
        assert any(words in line for line in seen), f"{words!r} was seen at all"
    assert {line: found for line, found in seen.items() if found} == {}


def test_only_what_asks_servers_has_a_proxys_password_in_its_environment_and_none_has_more(
    place: Place,
) -> None:
    asking, others = set[str](), dict[bytes, set[str]]()
    for watch in place.watches:
        for line, found in watch.environments.items():
            command = line.partition(b"\n")[0]
            if any(words in line for words in ASK_SERVERS):
                asking |= found
            elif b"-m\0conda_appliance\0" not in command:  # ours, or what we start before it is that program
                others[command] = found
    assert len(others) > 1, "others were seen"
    assert {command: found for command, found in others.items() if found} == {}
    assert asking == {"proxy", "uv's own", "netrc"}, (
        "uv is given its index's password and nothing else of ours"
    )


@pytest.mark.parametrize(
    "broken", ["password", "mirror", "channel with a token", "proxy's password", "proxy"]
)
def test_no_error_tells_any(place: Place, broken: str) -> None:
    """What fails is told at length, by us, rattler and uv: with a wrong password, host, and proxy's password."""
    definition = (place.folder / "project/leaky.yaml").read_text()
    env = place.env
    changed = dict(env)
    if broken == "password":
        entry = {"username": "alice", "password": "wrong" + SECRETS["file, basic"][1]}
        changed["CONDA_APPLIANCE_AUTH"] = json.dumps({"basic.private.test": {"BasicHTTP": entry}})
    elif broken == "mirror":
        definition = definition.replace(
            "https://basic.private.test/channel", "https://basic.private.test/none"
        )
    elif broken == "channel with a token":
        definition = definition.replace(
            "https://token.private.test/by-token,", "https://token.private.test/none,"
        )
    elif broken == "proxy":  # requests and urllib3 quote such a setting
        changed["https_proxy"] = env["https_proxy"].partition("@")[0] + "@"
        definition = definition.replace("[https://basic.", "[https://other.private.test/none, https://basic.")
    else:
        changed["https_proxy"] = env["https_proxy"].replace("@", "wrong@")
    (place.folder / "project/failing.yaml").write_text(definition)
    place.env = changed
    try:
        said = place.run("lock", "failing.yaml", status=2 if broken == "proxy" else 1)
    finally:
        place.env = env
    assert "error:" in said
    assert not leaks(said.encode())
    assert files_with_leaks(place.folder / "cache", place.folder / "project") == {}


@pytest.mark.parametrize(
    "line",
    [
        "pip_index: https://bob:{}@netrc.private.test/simple",
        "mirrors: {{https://conda.invalid/mine: ['https://bob:{}@basic.private.test/channel']}}",
        "mirrors: {{https://conda.invalid/mine: [https://basic.private.test/t/{}/channel]}}",
        "channels: [https://basic.private.test/t/{}/channel]",
    ],
)
def test_a_secret_in_the_definition_is_refused_with_where_it_belongs_and_not_told(
    place: Place, line: str
) -> None:
    secret = SECRETS["netrc"][1]
    keep = [
        kept
        for kept in (place.folder / "project/leaky.yaml").read_text().splitlines()
        if not kept.strip().startswith(line.partition(":")[0] + ":")
    ]
    at = keep.index("conda:") + 1
    path = place.folder / "refused.yaml"
    path.write_text("\n".join([*keep[:at], f"  {line.format(secret)}", *keep[at:]]))
    said = place.run("lock", str(path), status=2)
    assert secret not in said
    assert ".netrc" in said


def test_a_secret_in_another_tools_lock_is_refused_and_not_told(place: Place) -> None:
    secret = SECRETS["netrc"][1]
    path = place.folder / "taken.yaml"
    path.write_text(
        (place.folder / "project/leaky.yaml")
        .read_text()
        .replace("{dependencies: [pure, by-token, by-bearer], pip: [wheeled]}", "{lock: explicit.txt}")
    )
    (place.folder / "explicit.txt").write_text(
        f"@EXPLICIT\nhttps://basic.private.test/t/{secret}/channel/noarch/pure-1.0-0.conda#{'0' * 32}\n"
    )
    said = place.run("lock", str(path), status=2)
    assert "explicit.txt" in said
    assert "password or token" in said
    assert secret not in said

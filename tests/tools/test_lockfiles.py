"""Locks of other tools: taken as they are, verified, refused by name; and ours written as theirs, and back."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packages
import pytest
import wheels_made
import yaml
from packages import File, Package

from conda_appliance import conda, lockfiles, payload, prefix_check, pypi, sources
from conda_appliance.contract import Contract
from conda_appliance.errors import BuildError, HashMismatch, UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

EPOCH = 1_700_000_000
FORMS = ("explicit md5", "explicit sha256", "conda-lock v1", "pixi v6", "pixi v7")


class Place:
    """A channel that is served, with wheels beside it, and what other tools' locks of it look like."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.channel = packages.small_channel(folder / "channel")
        self.cache = sources.Cache(folder / "cache")
        (folder / "files").mkdir()
        self.wheel = wheels_made.wheel(folder / "files", "wheeled", scripts=["wheeled = wheeled:NAME.strip"])
        self.solved = conda.solve(["pure", "python"], [self.named], contract=Contract(glibc="2.36"))[0]

    @property
    def named(self) -> conda.Channel:
        return conda.Channel(name="small", url=f"{self.url}/channel")

    def about(self, name: str) -> dict[str, Any]:
        path = next(self.channel.glob(f"*/{name}-*"))
        data = path.read_bytes()
        return {
            "url": f"{self.url}/channel/{path.parent.name}/{path.name}",
            "md5": hashlib.md5(data).hexdigest(),
            "sha256": hashlib.sha256(data).hexdigest(),
        }

    def lock(self, form: str, **changed: dict[str, str]) -> Path:
        """A lock as its tool writes it; ``changed`` replaces what it says of a package."""
        entries = {one.name: {**self.about(one.name), **changed.get(one.name, {})} for one in self.solved}
        if form.startswith("explicit"):
            digest = form.split()[1]
            lines = [f"{one['url']}#{one[digest]}" for one in entries.values()]
            text = "\n".join(["# platform: linux-64", "@EXPLICIT", *lines, ""])
        elif form == "conda-lock v1":
            listed = [
                {
                    "name": name,
                    "version": "1.0",
                    "manager": "conda",
                    "platform": "linux-64",
                    "dependencies": {},
                    "url": one["url"],
                    "hash": {key: one[key] for key in ("md5", "sha256") if one[key]},
                    "category": "main",
                    "optional": False,
                }
                for name, one in entries.items()
            ]
            listed.append(
                {
                    **listed[0],
                    "name": "wheeled",
                    "manager": "pip",
                    "url": f"{self.url}/files/{self.wheel.name}",
                    "hash": {"sha256": hashlib.sha256(self.wheel.read_bytes()).hexdigest()},
                }
            )
            about = {
                "content_hash": {"linux-64": "0" * 64},
                "channels": [{"url": self.named.url, "used_env_vars": []}],
                "platforms": ["linux-64"],
                "sources": ["environment.yml"],
            }
            text = yaml.safe_dump({"version": 1, "metadata": about, "package": listed})
        else:
            version = int(form[-1])
            names = [{"conda": one["url"]} for one in entries.values()]
            environment = {"channels": [{"url": self.named.url}], "packages": {"linux-64": names}}
            value: dict[str, Any] = {
                "version": version,
                **({"platforms": [{"name": "linux-64"}]} if version == 7 else {}),
                "environments": {"default": environment, "other": environment},
                "packages": [
                    {
                        "conda": one["url"],
                        **{key: one[key] for key in ("sha256", "md5") if one[key]},
                        "depends": [],
                    }
                    for one in entries.values()
                ],
            }
            text = yaml.safe_dump(value, sort_keys=False)
        path = self.folder / "foreign.lock"
        path.write_text(text)
        return path

    def take(self, path: Path, *, select: str = "default", glibc: str = "2.36") -> EnvironmentSection:
        locked = lockfiles.read(path, select, "linux-64")
        found, roots = lockfiles.take(
            locked, [self.named], contract=Contract(glibc=glibc), platform="linux-64", cache=self.cache
        )
        target = pypi.target(found, glibc, "linux-64")
        wheels = lockfiles.wheels(locked, target, cache=self.cache)
        return EnvironmentSection(prefix="/opt/conda", specs=roots, packages=found, wheels=wheels)

    def files(self, section: EnvironmentSection) -> dict[str, Path]:
        named = [*section.packages, *(section.wheels or ())]
        return {one.sha256: self.cache.verified(one.sha256, one.filename) for one in named}

    def link(self, section: EnvironmentSection) -> Path:
        locked = Lock(
            name="x",
            digest="0" * 64,
            tools={},
            conda=CondaSection(virtual_packages=(), environments={"base": section}),
        )
        store = Store(self.folder / "layers")
        return payload.environment(locked, self.files(section), store=store, epoch=EPOCH).path / "opt/conda"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    with wheels_made.served(tmp_path) as url:
        yield Place(tmp_path, url)


@pytest.mark.parametrize("form", FORMS)
def test_each_kind_of_lock_becomes_an_environment_that_runs(place: Place, form: str) -> None:
    section = place.take(place.lock(form))
    assert {one.sha256 for one in section.packages} == {one.sha256 for one in place.solved}
    names = [one.name for one in section.packages]
    assert names.index("python") < names.index("pure") and section.specs == ("pure",)
    assert {one.channel for one in section.packages} == {"small"}
    prefix = place.link(section)
    assert prefix_check.check(prefix) == []
    wheeled = [one.name for one in section.wheels or ()]
    assert wheeled == (["wheeled"] if form == "conda-lock v1" else [])
    site = next(prefix.glob("lib/python3*/site-packages"))
    env = {"PYTHONPATH": f"{site}:{site.parent}"}
    for module in ("pure.main", *wheeled):
        subprocess.run([prefix / "bin/python", "-c", f"import {module}"], check=True, env=env)


@pytest.mark.parametrize("form", FORMS)
def test_a_package_that_is_not_what_its_lock_says_is_refused_by_name(place: Place, form: str) -> None:
    wrong = place.lock(form, pure={"md5": "0" * 32, "sha256": "0" * 64})
    with pytest.raises(HashMismatch, match=r"pure-1\.0-0\.conda from"):
        place.take(wrong)


def test_what_no_digest_is_known_of_is_refused(place: Place) -> None:
    with pytest.raises(UsageError, match=r"has no digest of pure-1\.0-0\.conda"):
        place.take(place.lock("pixi v6", pure={"md5": "", "sha256": ""}))


def test_a_secret_in_a_url_is_refused(place: Place) -> None:
    url = place.about("pure")["url"].replace("http://", "http://me:secret@")
    with pytest.raises(UsageError, match="by a URL with a password or token") as caught:
        place.take(place.lock("explicit md5", pure={"url": url}))
    assert "me:secret" not in str(caught.value)


def test_another_name_for_a_package_does_not_hide_what_it_is(place: Place) -> None:
    """What a package is its archive says, whatever the lock calls it."""
    section = place.take(place.lock("explicit sha256"))
    twice = place.folder / "twice.txt"
    one = place.about("pure")
    twice.write_text(f"@EXPLICIT\n{one['url']}#{one['md5']}\n{one['url']}#{one['md5']}\n")
    with pytest.raises(UsageError, match="names pure twice"):
        place.take(twice)
    lone = place.folder / "lone.txt"
    lone.write_text(f"@EXPLICIT\n{one['url']}#{one['md5']}\n")
    with pytest.raises(UsageError, match=r"the lock is not whole: pure needs prefixed, pure needs python"):
        place.take(lone)
    assert len(section.packages) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("http://x/noarch/a-1-0.conda#xyz", "neither an MD5 nor a SHA-256"),
        ("a-1-0.conda", "is not the URL of a conda package"),
    ],
)
def test_an_explicit_file_is_read_line_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "explicit.txt"
    path.write_text(f"# made by conda\n@EXPLICIT\n{line}\n")
    with pytest.raises(UsageError, match=f"explicit.txt:3: .*{message}"):
        lockfiles.read(path, "default", "linux-64")


def test_what_is_not_for_the_machine_is_refused_before_it_is_built(place: Place) -> None:
    with pytest.raises(
        UsageError, match=r"libc-user needs __glibc >=2\.17, and the machine has .*__glibc 2\.12"
    ):
        place.take(place.lock("explicit md5"), glibc="2.12")
    with pytest.raises(UsageError, match=r"is not for linux-aarch64; its platforms: linux-64"):
        lockfiles.read(place.lock("pixi v6"), "default", "linux-aarch64")
    with pytest.raises(UsageError, match=r"has no environment 'test'; it has default, other"):
        lockfiles.read(place.lock("pixi v7"), "test", "linux-64")
    place.lock("pixi v6").write_text("just: text\n")
    with pytest.raises(UsageError, match=r"cannot be read as a pixi\.lock"):
        lockfiles.read(place.folder / "foreign.lock", "default", "linux-64")


def test_what_is_broken_is_said_so(place: Place) -> None:
    broken = place.folder / "channel/noarch/broken-1.0-0.conda"
    broken.write_bytes(b"no archive")
    path = place.folder / "broken.txt"
    path.write_text(
        f"@EXPLICIT\n{place.url}/channel/noarch/broken-1.0-0.conda#{hashlib.md5(b'no archive').hexdigest()}\n"
    )
    with pytest.raises(BuildError, match=r"broken-1\.0-0\.conda cannot be read as a package"):
        place.take(path)


def test_packages_that_need_each_other_are_ordered_too(place: Place) -> None:
    for one, other in (("ring-a", "ring-b"), ("ring-b", "ring-a")):
        Package(name=one, depends=[other, "python"], files={f"share/{one}": File(content="x")}).write(
            place.channel
        )
    lines = [place.about(name) for name in ("ring-a", "ring-b", "python", "libc-user")]
    path = place.folder / "ring.txt"
    path.write_text("@EXPLICIT\n" + "".join(f"{one['url']}#{one['md5']}\n" for one in lines))
    names = [one.name for one in place.take(path).packages]
    assert names.index("python") < min(names.index("ring-a"), names.index("ring-b"))


@pytest.mark.parametrize("form", lockfiles.FORMATS)
def test_our_lock_as_another_tools_comes_back_as_it_was(place: Place, form: str) -> None:
    section = place.take(place.lock("pixi v6" if form == "explicit" else "conda-lock v1"))
    text = lockfiles.write(form, section, place.files(section), platform="linux-64", places={})
    path = place.folder / "exported"
    path.write_text(text)
    again = place.take(path)
    assert {one.sha256 for one in again.packages} == {one.sha256 for one in section.packages}
    assert again.wheels == section.wheels
    if form != "explicit":  # by the library that pixi itself reads locks with
        script = (
            "import os, sys, rattler; lock = rattler.LockFile.from_path(sys.argv[1]).default_environment();"
            "print(sorted(one.name for one in lock.packages(lock.platforms()[0])), flush=True); os._exit(0)"
        )
        said = subprocess.check_output([sys.executable, "-c", script, path], text=True)
        assert json.loads(said.replace("'", '"')) == ["libc-user", "prefixed", "pure", "python", "wheeled"]


def test_an_explicit_file_cannot_name_wheels(place: Place) -> None:
    section = place.take(place.lock("conda-lock v1"))
    with pytest.raises(UsageError, match="cannot name wheels: wheeled"):
        lockfiles.write("explicit", section, place.files(section), platform="linux-64", places={})

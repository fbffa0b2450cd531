"""What services run beside packages: locked as it is, refused where it could not run, laid down as files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipapp
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wheels_made

from conda_appliance import definition, git, process, programs, pypi, resources, sources
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError, DefinitionError, HashMismatch, LockError, UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, Lock, ProgramSection

TARGET = pypi.Target(python="3.13.5", glibc="2.41", platform="linux-64")
ZEROS = "0" * 40


def silent(_text: str) -> None:
    pass


class Place:
    """A folder with a definition, and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = sources.Cache(folder / "cache")
        self.store = Store(folder / "layers")

    def define(self, program: dict[str, Any], **service: object) -> ImageDefinition:
        given: dict[str, Any] = {"name": "app", "program": program, **service}
        return ImageDefinition.model_validate(
            {
                "name": "box",
                "version": "1.0",
                "base": {"debian": "trixie"},
                "conda": {"channels": ["x"], "environments": {"base": {"dependencies": ["python"]}}},
                "services": [given],
            }
        )

    def lock(self, image: ImageDefinition, **target: str) -> dict[str, ProgramSection]:
        given = pypi.Target(**{"python": "3.13.5", "glibc": "2.41", "platform": "linux-64", **target})
        found = programs.resolve_wheels(image, self.folder, self.cache, silent)
        return found | programs.resolve(
            image,
            self.folder,
            self.cache,
            target=lambda _environment: given,
            glibc=given.glibc,
            platform=given.platform,
            progress=silent,
        )

    def fetch(self, locked: Lock, *, offline: bool = False) -> dict[str, Path]:
        return programs.fetch(locked, self.folder, self.cache, offline=offline, progress=silent)

    def placed(self, image: ImageDefinition) -> ImageDefinition:
        locked = lock_of(self.lock(image))
        return programs.place(image, locked, self.fetch(locked), self.store)

    def zipapp(self, name: str = "app.pyz") -> str:
        (self.folder / "source").mkdir(exist_ok=True)
        (self.folder / "source/__main__.py").write_text("print('ran')\n")
        zipapp.create_archive(self.folder / "source", self.folder / name)
        return name

    def repository(self) -> str:
        """A repository with one commit, which is returned."""
        tree = self.folder / "repo"
        tree.mkdir()
        (tree / "run.py").write_text("print('ran')\n")
        (tree / "run.py").chmod(0o755)
        (tree / "link").symlink_to("run.py")
        self.git("init", "--quiet", "--initial-branch=main")
        return self.commit()

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=me", "-c", "user.email=me@example.com")
        return process.run(["git", "-C", self.folder / "repo", *who, *words]).stdout.strip()

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x")
        return self.git("rev-parse", "HEAD")


def lock_of(found: dict[str, ProgramSection]) -> Lock:
    conda = CondaSection(virtual_packages=(), environments={})
    return Lock(name="box", digest="0" * 64, tools={}, conda=conda, programs=found)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_zip_application_is_a_file_that_the_environments_python_runs(place: Place) -> None:
    image = place.define({"zipapp": {"url": place.zipapp()}}, command="{program} --port 8000")
    placed = place.placed(image)
    (service,), (files,) = placed.services, placed.files
    assert service.command == "python /opt/appliance/app/app.pyz --port 8000"
    assert files.to == "/opt/appliance/app"
    assert [(one.name, one.stat().st_mode & 0o777) for one in Path(files.source).iterdir()] == [
        ("app.pyz", 0o644)
    ]
    assert (
        place.placed(place.define({"zipapp": {"url": "app.pyz"}})).services[0].command
        == "python /opt/appliance/app/app.pyz"
    )
    other = place.define({"zipapp": {"url": "app.pyz"}}, command="nice {program}")
    assert place.placed(other).services[0].command == "nice /opt/conda/bin/python /opt/appliance/app/app.pyz"


def test_a_repository_is_its_files_at_a_commit(place: Place) -> None:
    commit = place.repository()
    image = place.define({"git": {"url": "./repo", "commit": commit}}, command="python {program}/run.py")
    placed = place.placed(image)
    assert placed.services[0].command == "python /opt/appliance/app/run.py"
    assert placed.services[0].working_directory == "/opt/appliance/app"
    laid = Path(placed.files[0].source)
    assert subprocess.check_output([sys.executable, laid / "link"], text=True) == "ran\n"
    assert not (laid / ".git").exists() and (laid / "run.py").stat().st_mode & 0o777 == 0o755


def test_a_commit_gives_the_same_bytes_wherever_it_is_fetched_from(place: Place, tmp_path: Path) -> None:
    commit = place.repository()
    (place.folder / "repo/run.py").write_text("print('newer')\n")
    place.commit()
    bare = tmp_path / "served/repo.git"
    place.git("clone", "--quiet", "--bare", ".", str(bare))
    process.run(["git", "-C", bare, "update-server-info"])
    with wheels_made.served(
        tmp_path / "served"
    ) as url:  # a server that knows no git: it cannot give one commit alone
        digests = {
            place.lock(place.define({"git": {"url": where, "commit": commit}}, command="python x"))[
                "app"
            ].sha256
            for where in ("./repo", bare.as_uri(), f"{url}/repo.git")
        }
    assert len(digests) == 1


def test_images_of_one_batch_may_bring_the_same_commit_at_once(place: Place) -> None:
    commit = place.repository()
    locked = lock_of(
        place.lock(
            place.define({"git": {"url": "./repo", "commit": commit}}, command="python {program}/run.py")
        )
    )
    resources.remove(place.cache.root)
    found = process.side_by_side(*[partial(place.fetch, locked)] * 4, workers=4)
    assert len({tuple(one.items()) for one in found}) == 1


def test_what_git_cannot_give_whole_is_refused(place: Place, tmp_path: Path) -> None:
    commit = place.repository()
    cache = place.cache.root

    def export(at: str) -> None:
        git.export(str(place.folder / "repo"), at, tmp_path / "x.tar", cache=cache)

    with pytest.raises(BuildError, match=f"has no commit {ZEROS}"):
        export(ZEROS)
    with pytest.raises(BuildError, match="cannot fetch from /nowhere"):
        git.export("/nowhere", commit, tmp_path / "x.tar", cache=cache)
    (place.folder / "repo/large.bin").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    )
    with pytest.raises(UsageError, match=r"large\.bin is kept in git-lfs"):
        export(place.commit())
    (place.folder / "repo/large.bin").unlink()
    (place.folder / "repo/out").symlink_to("../../etc/passwd")
    with pytest.raises(UsageError, match="the link out leads out of the repository"):
        export(place.commit())
    (place.folder / "repo/out").unlink()
    place.git("update-index", "--add", "--cacheinfo", f"160000,{commit},vendored")
    place.git("commit", "--quiet", "--message=module")
    with pytest.raises(UsageError, match=r"has submodules, .*: vendored"):
        export(place.git("rev-parse", "HEAD"))


def test_a_frozen_program_needs_no_environment(place: Place) -> None:
    shutil.copy("/bin/true", place.folder / "frozen")
    placed = place.placed(place.define({"frozen": {"url": "frozen"}}))
    assert placed.services[0].command == "/opt/appliance/app/app"
    assert os.access(Path(placed.files[0].source) / "app", os.X_OK)
    (place.folder / "dist").mkdir()
    shutil.copy("/bin/true", place.folder / "dist/start")
    with tarfile.open(place.folder / "dist.tar.gz", "w:gz") as archive:
        archive.add(place.folder / "dist", "dist")
    image = place.define({"frozen": {"url": "dist.tar.gz"}}, command="{program}/dist/start --now")
    assert place.placed(image).services[0].command == "/opt/appliance/app/dist/start --now"


def test_a_wheels_script_is_what_runs(place: Place) -> None:
    one = wheels_made.wheel(place.folder, "served", scripts=["serve = served:run"])
    two = wheels_made.wheel(place.folder, "tools", scripts=["a = tools:a", "b = tools:b"])
    assert place.placed(place.define({"wheel": {"url": one.name}})).services[0].command == "serve"
    with pytest.raises(UsageError, match="several console scripts: a, b"):
        place.placed(place.define({"wheel": {"url": two.name}}))
    image = place.define({"wheel": {"url": two.name}}, command="b --port 1")
    assert place.placed(image).services[0].command == "b --port 1"


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("zipapp", b"#!/bin/sh\n", "is no zip file with Python in it"),
        ("frozen", b"MZ\x90\0", "is no program: neither ELF nor a script"),
    ],
)
def test_what_is_another_thing_is_refused(place: Place, kind: str, content: bytes, message: str) -> None:
    (place.folder / "thing").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        place.lock(place.define({kind: {"url": "thing"}}))


def test_what_cannot_run_on_the_machine_is_refused_when_it_is_locked(place: Place) -> None:
    image = place.define({"frozen": {"url": "frozen"}})
    shutil.copy("/bin/true", place.folder / "frozen")
    with pytest.raises(UsageError, match=r"needs glibc 2\.[0-9]+, and the machine has 2\.1"):
        place.lock(image, glibc="2.1")
    with pytest.raises(UsageError, match=r"is for another machine \(EM_X86_64\) than linux-aarch64"):
        place.lock(image, platform="linux-aarch64")
    with zipfile.ZipFile(place.folder / "app.pex", "w") as archive:
        archive.writestr("__main__.py", "")
    pex = place.define({"pex": {"url": "app.pex"}})
    with pytest.raises(UsageError, match="has no PEX-INFO"):
        place.lock(pex)
    info = '{"interpreter_constraints": ["CPython==3.11.*"], "distributions": {}}'
    with zipfile.ZipFile(place.folder / "app.pex", "a") as archive:
        archive.writestr("PEX-INFO", info)
    with pytest.raises(
        UsageError, match=r"wants Python CPython==3\.11\.\*, and its environment has 3\.13\.5"
    ):
        place.lock(pex)
    with zipfile.ZipFile(place.folder / "app.pex", "w") as archive:
        archive.writestr("__main__.py", "")
        archive.writestr(
            "PEX-INFO", '{"distributions": {"numpy-2.0-cp311-cp311-manylinux_2_17_x86_64.whl": ""}}'
        )
    with pytest.raises(
        UsageError, match=r"holds numpy-2\.0-cp311-.*, which does not fit a x86_64 machine with Python 3"
    ):
        place.lock(pex)


def test_another_file_than_the_locked_one_is_refused_by_name(place: Place) -> None:
    image = place.define({"zipapp": {"url": place.zipapp()}})
    locked = lock_of(place.lock(image))
    place.cache.blob(locked.programs["app"].sha256).unlink()  # type: ignore[index]
    with (place.folder / "app.pyz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(HashMismatch, match="app's zipapp from"):
        place.fetch(locked)
    with pytest.raises(LockError, match="--offline, and 1 files are not in the cache: app's zipapp"):
        place.fetch(locked, offline=True)


def test_a_repository_that_gives_other_files_for_a_commit_is_refused(place: Place) -> None:
    image = place.define({"git": {"url": "./repo", "commit": place.repository()}}, command="python x")
    found = place.lock(image)["app"]
    locked = lock_of({"app": found.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(LockError, match=r"--offline, and not in the cache: the repository \./repo of app"):
        place.fetch(locked, offline=True)
    with pytest.raises(HashMismatch, match=r"the files of \./repo at"):
        place.fetch(locked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "program: {git: {url: ./repo, commit: main}}",
            "'main' is not a full commit, which never moves; `git ls-remote",
        ),
        (f"program: {{git: {{url: 'https://me:secret@x/y', commit: {ZEROS}}}}}", "holds a password"),
        (f"program: {{git: {{url: ./repo, commit: {ZEROS}}}}}", "a git repository needs a command"),
        ("program: {pex: {url: 'https://x/y.pex'}}", "needs its sha256: nothing unverified is downloaded"),
        ("program: {pex: {url: there}, frozen: {url: there}}", "give one of pex, zipapp, wheel, git, frozen"),
        ("program: {zipapp: {url: gone.pyz}}", r"gone\.pyz is not there"),
        ("program: {}", "give one of pex"),
        ("command: ''", "needs a command, or a program"),
        ("command: '{program}'", "it has none"),
    ],
)
def test_what_the_definition_says_wrong_is_told_with_its_place(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "there").write_text("")
    (tmp_path / "repo").mkdir()
    path = tmp_path / "box.yaml"
    path.write_text(
        "name: box\nversion: 1.0\nbase: {debian: trixie}\n"
        "conda: {channels: [x], environments: {base: {dependencies: [python]}}}\n"
        f"services:\n  - name: app\n    {text}\n"
    )
    with pytest.raises(DefinitionError, match=message) as caught:
        definition.load_image(path)
    assert f"{path}:" in str(caught.value) and "services[0]" in str(caught.value)

"""Packages from an index, beside conda's: locked for the machine, installed as locked, told of when changed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import packages
import pytest
import wheels_made

from conda_appliance import conda, linking, prefix_check, pypi, sources, trees, wheels
from conda_appliance.contract import Contract
from conda_appliance.errors import BuildError, HashMismatch, UsageError
from conda_appliance.lock import CondaPackage, Wheel

EPOCH = 1_700_000_000
MINOR = f"{sys.version_info.major}{sys.version_info.minor}"


class Place:
    """A channel, an index that is served, and a cache of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.channel = packages.small_channel(folder / "channel")
        self.cache = sources.Cache(folder / "cache")
        self.conda: tuple[CondaPackage, ...] = conda.solve(
            ["pure", "python"],
            [conda.Channel(name="./small", url=self.channel.as_uri())],
            contract=Contract(glibc="2.36"),
        )[0]
        self.target = pypi.target(self.conda, "2.36", "linux-64")

    def add(self, name: str, version: str = "1.0", **about: object) -> Path:
        path = wheels_made.wheel(self.folder / "index/files", name, version, **about)  # type: ignore[arg-type]
        wheels_made.index(self.folder / "index")
        return path

    def lock(self, *asked: str, own: dict[str, Path] | None = None) -> tuple[Wheel, ...]:
        return pypi.resolve(
            asked, self.conda, self.target, own=own or {}, cache=self.cache, index=f"{self.url}/index/simple"
        )

    def install(self, found: tuple[Wheel, ...], prefix: str = "/opt/conda", root: str = "root") -> Path:
        into = self.folder / root / prefix.lstrip("/")
        archives = {one.sha256: Path(one.url.removeprefix("file://")) for one in self.conda}
        work = self.folder / "work"
        linking.link(self.conda, archives, prefix=prefix, into=into, epoch=EPOCH, work=work)
        files = {one.sha256: self.cache.verified(one.sha256, one.name) for one in found}
        wheels.install(found, files, into=into, prefix=prefix, epoch=EPOCH, work=work)
        return into


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index/files").mkdir(parents=True)
    with wheels_made.served(tmp_path) as url:
        yield Place(tmp_path, url)


def test_what_fits_the_machine_best_is_locked_with_all_it_requires(place: Place) -> None:
    place.add("tool", requires=["helper >=1", "pure", "other; sys_platform == 'win32'"])
    for tag in (
        f"cp{MINOR}-cp{MINOR}-win_amd64",
        f"cp{MINOR}-cp{MINOR}-manylinux_2_38_x86_64",
        f"cp{MINOR}-cp{MINOR}-manylinux_2_28_x86_64",
        "cp39-abi3-manylinux_2_17_x86_64",
        "py3-none-any",
    ):
        place.add("helper", "1.5", tag=tag)
    found = place.lock("tool")
    assert [(one.name, one.version) for one in found] == [("helper", "1.5"), ("tool", "1.0")]
    assert found[0].filename == f"helper-1.5-cp{MINOR}-cp{MINOR}-manylinux_2_28_x86_64.whl", (
        "glibc 2.36 has that"
    )
    assert found[0].url == f"{place.url}/index/files/{found[0].filename}"


def test_what_is_a_conda_package_is_not_installed_twice_but_must_agree(place: Place) -> None:
    place.add("tool", requires=["pure >=1"])
    assert [one.name for one in place.lock("tool", "pure")] == ["tool"]
    place.add("strict", requires=["pure >=9"])
    with pytest.raises(
        UsageError, match=r"pure>=9 is required by strict 1\.0, and .* conda package is pure 1\.0"
    ):
        place.lock("strict")
    with pytest.raises(UsageError, match=r"pure<1 is asked for, and"):
        place.lock("pure <1")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("missing", "no set of wheels for Python .* satisfies missing"),
        ("source", "no set of wheels .* satisfies source"),
        ("--index-url=http://x", "an option, a folder or a URL"),
        ("git+https://example.org/x", "an option, a folder or a URL"),
        ("./folder", "an option, a folder or a URL"),
        ("what ever", "not a requirement"),
    ],
)
def test_what_cannot_be_locked_is_refused(place: Place, asked: str, message: str) -> None:
    (place.folder / "index/files/source-1.0.tar.gz").write_bytes(b"a source distribution")
    wheels_made.index(place.folder / "index")
    with pytest.raises(UsageError, match=message) as caught:
        place.lock(asked)
    assert caught.value.hint


def test_a_wheel_of_ones_own_is_taken_with_what_it_requires(place: Place) -> None:
    place.add("helper")
    mine = wheels_made.wheel(place.folder / "dist", "mine", "2.0", requires=["helper"])
    found = place.lock(own={"dist/mine-2.0-py3-none-any.whl": mine})
    assert [(one.name, one.url.rpartition("/")[0]) for one in found] == [
        ("helper", f"{place.url}/index/files"),
        ("mine", "dist"),
    ]
    other = wheels_made.wheel(place.folder / "dist", "other", tag="cp27-cp27m-win32")
    with pytest.raises(UsageError, match=r"other-1\.0-cp27-cp27m-win32\.whl does not fit a x86_64 machine"):
        place.lock(own={f"dist/{other.name}": other})


def test_an_environment_has_them_where_it_will_live_and_where_it_is_moved(place: Place) -> None:
    modules = {"tool/__init__.py": "def run():\n    print('ran', __file__)\n", "tool/data.txt": "x"}
    place.add("tool", modules=modules, scripts=["tool = tool:run"])
    into = place.install(place.lock("tool"))
    assert prefix_check.check(into) == []
    site = next(into.glob("lib/python3*/site-packages"))
    record = (site / "tool-1.0.dist-info/RECORD").read_text()
    assert (
        f"tool/__pycache__/__init__.cpython-{MINOR}.pyc,sha256=" in record and "../../../bin/tool," in record
    )
    assert (site / "tool-1.0.dist-info/INSTALLER").read_text() == "conda-appliance\n"
    moved = place.folder / "moved to"
    shutil.copytree(into, moved, symlinks=True)
    said = subprocess.check_output(
        [moved / "bin/tool"], text=True, env={"PYTHONPATH": str(next(moved.glob("lib/*/site-packages")))}
    )
    assert said == f"ran {moved}/lib/{site.parent.name}/site-packages/tool/__init__.py\n"


def test_what_is_changed_missing_or_extra_is_told(place: Place) -> None:
    place.add("tool", modules={"tool/__init__.py": "A = 1\n", "tool/gone.py": "B = 2\n"})
    into = place.install(place.lock("tool"))
    site = next(into.glob("lib/python3*/site-packages"))
    (site / "tool/__init__.py").write_text("A = 2\n")
    (site / "tool/gone.py").unlink()
    (site / "tool/new.py").write_text("")
    inside = site.relative_to(into)
    found = prefix_check.check(into)
    assert found[0].startswith(f"changed: {inside}/tool/__init__.py (tool): expected SHA-256")
    assert found[1:] == [f"extra: {inside}/tool/new.py", f"missing: {inside}/tool/gone.py (tool)"]


def test_the_same_lock_gives_the_same_files(place: Place) -> None:
    place.add("tool", scripts=["tool = tool:run"])
    found = place.lock("tool")
    assert trees.listing(place.install(found)) == trees.listing(place.install(found, root="again"))


def test_two_packages_cannot_own_one_file(place: Place) -> None:
    place.add("rude", modules={"pure/main.py": "stolen\n"})
    with pytest.raises(BuildError, match=r"rude-1\.0-.* brings lib/.*/pure/main\.py, which pure has brought"):
        place.install(place.lock("rude"))


def test_other_bytes_are_refused_by_name(place: Place) -> None:
    path = place.add("tool")
    found = place.lock("tool")
    blob = place.cache.blob(found[0].sha256)
    blob.write_bytes(blob.read_bytes().replace(b"NAME", b"EVIL"))
    with pytest.raises(HashMismatch, match=r"tool in the cache"):
        place.install(found)
    path.write_bytes(path.read_bytes().replace(b"NAME", b"EVIL"))
    one = found[0]
    download = sources.Download(name=one.filename, url=one.url, sha256=one.sha256, size=one.size)
    with pytest.raises(HashMismatch, match=r"tool-1\.0-py3-none-any\.whl from http://127"):
        sources.fetch([download], place.cache, offline=False, progress=lambda _text: None)
    with pytest.raises(HashMismatch, match="is not what the lock names"):
        place.lock("tool ==1.0")  # the index promises the old digest


def test_an_environment_without_python_takes_none() -> None:
    with pytest.raises(UsageError, match="the environment has none"):
        pypi.target((), "2.36", "linux-64")

"""Real environments without what slim leaves out: smaller, as recorded, and what could be imported still can be."""

import json
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import packages
import pytest
import wheels_made
from packages import File, Package
from tests.conftest import Folders

from conda_appliance import (
    build,
    channel,
    conda,
    importable,
    linking,
    payload,
    prefix_check,
    resources,
    slim,
    slim_rules,
    trees,
)
from conda_appliance.builders import Job
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.definition_slim import CAREFUL, Part
from conda_appliance.errors import BuildError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock, Wheel

EPOCH = 1_700_000_000
SITE = "lib/python3.13/site-packages"
Make = Callable[..., Layer]


@pytest.fixture(scope="module")
def starter() -> Path:
    folder = resources.shipped() / "channel"
    return channel.build(folder, resources.cache_root(), on_progress=lambda _text: None)


def locked(
    own: Path, starter: Path, *specs: str, wheels: tuple[Wheel, ...] = ()
) -> tuple[Lock, dict[str, Path]]:
    """A lock with these packages in one environment, from ``own`` and the starter channel; and its archives."""
    packages.index(own)
    places = [conda.Channel(name=one.name, url=one.as_uri()) for one in (own, starter)]
    found, virtual = conda.solve(list(specs), places, contract=Contract(glibc="2.41"))
    section = EnvironmentSection(prefix="/opt/conda", specs=specs, packages=found, wheels=wheels or None)
    lock = Lock(
        name="demo",
        digest="0" * 64,
        tools={},
        conda=CondaSection(virtual_packages=virtual, environments={"base": section}),
    )
    return lock, {one.sha256: Path(one.url.removeprefix("file://")) for one in found}


def awkward(own: Path, files: Mapping[str, str | File], *, name: str = "awkward") -> Path:
    made = {path: one if isinstance(one, File) else File(content=one) for path, one in files.items()}
    Package(name=name, depends=["python"], files=made, licenses={"LICENSE": "the text"}).write(own)
    return own


#: What each part must see: suites that are needed and one that is not, a link to what goes, a licence among manuals.
AWKWARD: dict[str, str | File] = {
    f"{SITE}/awkward/__init__.py": "from awkward.tests import helpers\n",
    f"{SITE}/awkward/tests/__init__.py": "",
    f"{SITE}/awkward/tests/helpers.py": "HELP = 1\n",
    f"{SITE}/awkward/tests/test_it.py": "",
    f"{SITE}/awkward/deep/__init__.py": "",
    f"{SITE}/awkward/deep/tests/test_deep.py": "",
    f"{SITE}/awkward/deep/tests/LICENSE": "of the data",
    f"{SITE}/fails.py": "raise ImportError('as ever')\n",
    "share/doc/awkward/README": "read me" * 1000,
    "share/doc/awkward/COPYING": "the licence",
    "share/awkward.txt": File(link="doc/awkward/README"),
    "share/man/man1/awkward.1": ".TH",
    "share/locale/de/LC_MESSAGES/awkward.mo": "messages",
    "lib/libawkward.a": "!<arch>\n",
    "include/awkward.h": f'#define HOME "{packages.PLACEHOLDER}"\n',
}


@pytest.fixture(scope="module")
def made(starter: Path, folders: Folders) -> Make:
    """Links numpy, flask's markupsafe and what is awkward, whole or without parts."""
    folder = folders.mktemp("slim")
    lock, archives = locked(
        awkward(folder / "own", AWKWARD), starter, "python 3.13.*", "numpy", "markupsafe", "awkward"
    )

    def make(*parts: Part, cache: str = "cache") -> Layer:
        store = Store(folder / cache)
        return payload.environment(lock, archives, store=store, epoch=EPOCH, subject="demo", without=parts)

    return make


@pytest.fixture(scope="module")
def whole(made: Make) -> Path:
    return made().path / "opt/conda"


@pytest.fixture(scope="module")
def small(made: Make) -> Path:
    return made(*CAREFUL).path / "opt/conda"


def size(folder: Path) -> int:
    return sum(about.st_size for _, about in trees.walk(folder) if not stat.S_ISDIR(about.st_mode))


def names(folder: Path) -> set[str]:
    return set(trees.listing(folder))


def python(prefix: Path, program: str) -> str:
    return subprocess.check_output([prefix / "bin/python", "-I", "-B", "-c", program], text=True).strip()


def test_every_file_is_as_recorded_before_and_after(whole: Path, small: Path) -> None:
    assert prefix_check.check(small) == []
    assert prefix_check.check(whole) == [], "what is shared was not written to"
    assert not (whole / slim.PLACE).exists()
    for record in prefix_check.records(small):
        assert record["files"] == [entry["_path"] for entry in record["paths_data"]["paths"]]


def test_each_part_is_gone_and_nothing_else(whole: Path, small: Path) -> None:
    gone = names(whole) - names(small)
    assert {
        "share/doc/awkward/README",
        "share/awkward.txt",  # would lead nowhere
        "share/man",
        "share/locale",
        "lib/libawkward.a",
        "include/awkward.h",
        f"{SITE}/awkward/deep/tests/test_deep.py",
        f"{SITE}/numpy/linalg/tests",
        "include/python3.13/Python.h",
    } <= gone
    assert names(small) - names(whole) == {slim.PLACE}
    planned = {path for paths in slim_rules.plan(whole, CAREFUL).removed.values() for path in paths}
    files = {path for path in gone if not (whole / path).is_dir() or (whole / path).is_symlink()}
    assert files - planned == {"share/awkward.txt"}


def test_what_is_needed_stays(small: Path) -> None:
    assert python(small, "import awkward; print(awkward.helpers.HELP)") == "1"
    assert python(small, "import numpy, numpy.testing; print(numpy.ones(3).sum())") == "3.0"
    assert python(small, "import markupsafe._speedups as one; print(one.__name__)") == "markupsafe._speedups"
    config = "import sysconfig; print(sysconfig.parse_config_h(open(sysconfig.get_config_h_filename()))['SIZEOF_LONG'])"
    assert python(small, config) == "8"


def test_every_licence_text_stays(whole: Path, small: Path) -> None:
    texts = {path for path in names(whole) if slim_rules.is_kept(path)}
    assert texts <= names(small)
    assert {
        "share/doc/awkward/COPYING",
        f"{SITE}/awkward/deep/tests/LICENSE",
        "share/licenses/awkward/LICENSE",
    } <= texts
    assert len([path for path in texts if path.startswith("share/licenses/numpy/")]) > 5


def test_what_it_says_it_saved_is_what_it_saved(made: Make, whole: Path) -> None:
    tree = made(*CAREFUL).path
    savings = slim.read(tree, {"base": "/opt/conda"})["base"]
    assert savings.before == size(whole)
    records = size(whole / "conda-meta") - size(tree / "opt/conda/conda-meta")
    assert savings.saved == size(whole) - size(tree / "opt/conda") - records
    assert savings.parts["docs"].files == 2 and savings.parts["docs"].bytes == 7000 + len(
        "doc/awkward/README"
    )
    assert savings.parts["tests"].bytes > 5_000_000 and savings.parts["debug-symbols"].bytes > 0
    assert savings.text().split(": ")[1].startswith("tests ")


def test_debug_symbols_go_and_what_is_loaded_stays_the_same(whole: Path, small: Path) -> None:
    (path,) = small.glob(f"{SITE}/markupsafe/_speedups.*.so")
    before = whole / path.relative_to(small)
    assert "debug_info" in subprocess.check_output(["readelf", "-SW", before], text=True)
    assert "debug_info" not in subprocess.check_output(["readelf", "-SW", path], text=True)
    (record,) = [one for one in prefix_check.records(small) if one["name"] == "markupsafe"]
    (entry,) = [one for one in record["paths_data"]["paths"] if one["_path"].endswith(f"/{path.name}")]
    assert entry["sha256_in_prefix"] == resources.sha256_of(path) != entry["sha256"]


def test_without_byte_code_python_has_its_sources(made: Make) -> None:
    prefix = made("byte-code").path / "opt/conda"
    assert not list(prefix.rglob("*.pyc"))
    assert python(prefix, "import json; print(json.dumps(1))") == "1"


def test_none_appears_when_it_is_moved(made: Make, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(made("byte-code").path / "opt/conda", moved, symlinks=True)
    program = resources.find("iso/payload/bytecode.py")
    subprocess.run([moved / "bin/python", "-I", "-S", "-B", program, moved, "/srv/env"], check=True)
    assert not list(moved.rglob("*.pyc"))
    assert prefix_check.check(moved) == []


def test_the_same_is_found_and_another_choice_is_made(made: Make) -> None:
    first = made(*CAREFUL)
    assert (made(*CAREFUL).made, made(*CAREFUL).key) == (False, first.key)
    assert made("docs").key != first.key


def test_two_runs_give_the_same_bytes(made: Make) -> None:
    assert made(*CAREFUL).sha256 == made(*CAREFUL, cache="another").sha256


def test_an_import_that_would_be_lost_stops_the_build(starter: Path, tmp_path: Path) -> None:
    reads = "open(__file__.partition('/lib/python')[0] + '/share/doc/reader/usage.txt')\n"
    files = {f"{SITE}/reader.py": reads, "share/doc/reader/usage.txt": "read by reader.py"}
    lock, archives = locked(
        awkward(tmp_path / "own", files, name="reader"), starter, "python 3.13.*", "reader"
    )
    store = Store(tmp_path / "cache")
    with pytest.raises(BuildError, match=r"can no longer be imported: reader \(FileNotFoundError") as caught:
        payload.environment(lock, archives, store=store, epoch=EPOCH, without=["docs"])
    assert "name in slim: the parts that may go" in caught.value.hint
    made = payload.environment(lock, archives, store=store, epoch=EPOCH, without=["man-pages"])
    assert linking.verify(made.path, "/opt/conda") == []


def test_packages_code_runs_as_nobody_without_a_network(starter: Path, tmp_path: Path) -> None:
    look = (
        "import os, socket\n"
        "seen = [os.getuid(), os.path.exists('/root'), os.path.exists('/etc/shadow'), len(socket.if_nameindex()),\n"
        "        os.access(__file__, os.W_OK), os.environ.get('SECRET'), __file__]\n"
        "raise RuntimeError(str(seen))\n"
    )
    lock, archives = locked(
        awkward(tmp_path / "own", {f"{SITE}/look.py": look}), starter, "python 3.13.*", "awkward"
    )
    tree = (
        payload.environment(lock, archives, store=Store(tmp_path / "cache"), epoch=EPOCH).path / "opt/conda"
    )
    for prefix, place in (("/opt/conda", "/opt/conda"), ("/usr/lib/conda", "/environment")):
        said = importable.failing(tree, prefix, ["look", "json"], tmp_path / "work")
        expected = [65534, False, False, 1, False, None, f"{place}/{SITE}/look.py"]
        assert said == {"look": f"RuntimeError: {expected}"}


def test_the_record_of_a_wheel_is_true_too(starter: Path, tmp_path: Path) -> None:
    modules = {"tool/__init__.py": "", "tool/tests/test_tool.py": "", "tool/tests/__init__.py": ""}
    path = wheels_made.wheel(tmp_path / "wheels", "tool", modules=modules)
    wheel = Wheel(
        name="tool",
        version="1.0",
        url=str(path),
        sha256=resources.sha256_of(path),
        size=path.stat().st_size,
    )
    (tmp_path / "own").mkdir()
    lock, archives = locked(tmp_path / "own", starter, "python 3.13.*", wheels=(wheel,))
    archives[wheel.sha256] = path
    made = payload.environment(
        lock, archives, store=Store(tmp_path / "cache"), epoch=EPOCH, without=["tests"]
    )
    record = (made.path / f"opt/conda/{SITE}/tool-1.0.dist-info/RECORD").read_text()
    assert "tool/__init__.py," in record and "tool/tests" not in record
    assert linking.verify(made.path, "/opt/conda") == []


def test_the_record_on_the_machine_is_json_that_conda_does_not_take_for_a_package(small: Path) -> None:
    assert json.loads((small / slim.PLACE).read_text())["parts"]["tests"]["files"] > 100
    assert slim.PLACE not in [f"conda-meta/{path.name}" for path in (small / "conda-meta").glob("*.json")]


def test_the_manifest_says_what_was_saved(starter: Path, tmp_path: Path) -> None:
    image = ImageDefinition.model_validate(
        {
            "name": "demo",
            "version": "1",
            "base": {"debian": "trixie"},
            "conda": {"channels": ["starter"], "environments": {"base": {"dependencies": ["python"]}}},
            "slim": True,
        }
    )
    own = awkward(tmp_path / "own", {"share/doc/awkward/README": "read me"})
    lock, archives = locked(own, starter, "python 3.13.*", "awkward")
    job = Job(
        image=image,
        lock=lock,
        folder=tmp_path,
        project=tmp_path,
        files=archives,
        store=Store(tmp_path / "cache"),
        epoch=EPOCH,
        identity="",
    )
    said = build._left_out(job)["base"]
    assert said.parts["docs"] == 7 and set(said.parts) == set(CAREFUL)
    assert said.saved == sum(said.parts.values()) < said.before

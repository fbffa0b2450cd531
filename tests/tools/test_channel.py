"""A folder of recipes becomes a channel of real conda packages, from Debian and PyPI alone."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conda_package_streaming import package_streaming
from tests.conftest import Folders

from conda_appliance import channel, conda, linking, process, resources
from conda_appliance.contract import Contract
from conda_appliance.errors import CommandFailed, HashMismatch, UsageError
from conda_appliance.package import PLACEHOLDER, read_index

EPOCH = 1_700_000_000
WHEEL = "c6242fc49e35958c8b15141343aa660db5fc54d4f13a1db01a3f5891b98700ef"
SMALL = {
    "python_version": "3.13",
    "libraries": {
        "suite": "bookworm",
        "glibc": "2.36",
        "packages": {"libuuid": {"debs": ["libuuid1"], "license": "BSD-3-Clause"}},
    },
    "wheels": {"itsdangerous": {"version": "2.2.0", "sha256": WHEEL, "license": "BSD-3-Clause"}},
}


def members(path: Path, component: str) -> dict[str, bytes]:
    """The plain files of one half of a ``.conda``: ``info`` or ``pkg``."""
    found = {}
    with path.open("rb") as file:
        for archive, member in package_streaming.stream_conda_component(str(path), file, component):
            if member.isreg():
                found[member.name] = archive.extractfile(member).read()
    return found


# --- a small channel of one's own -------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(folders: Folders) -> Path:
    return folders.mktemp("cache")


def write(folder: Path, recipes: object = SMALL) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "channel.yaml").write_text(yaml.safe_dump(recipes))
    return folder


def make(folder: Path, cache: Path, *, refresh: bool = False) -> tuple[Path, list[str]]:
    """The channel, and which packages were made for it now."""
    said: list[str] = []
    made = channel.build(folder, cache, on_progress=said.append, refresh=refresh)
    return made, [line.partition(": ")[2] for line in said if line.startswith("package ")]


def test_recipes_become_packages_that_a_solver_takes(tmp_path: Path, cache: Path) -> None:
    folder, _ = make(write(tmp_path / "own"), cache)
    place = conda.Channel(name="./own", url=folder.as_uri())
    (library,), _ = conda.solve(["libuuid"], [place], contract=Contract(glibc="2.36"))
    assert (library.subdir, library.version) == ("linux-64", "2.38.1")
    path = folder / "linux-64" / library.filename
    assert resources.sha256_of(path) == library.sha256
    assert {name for name in members(path, "pkg") if name.startswith("lib/libuuid.so.1")}
    info = members(path, "info")
    assert b"Redistribution" in info["info/licenses/libuuid1-copyright"]
    (source,) = json.loads(info["info/about.json"])["sources"]
    assert source["name"].startswith("libuuid1_")
    assert len(source["sha256"]) == 64
    assert list((folder / "noarch").glob("itsdangerous-2.2.0-pyh*_0.conda"))


def test_a_channel_is_built_once(tmp_path: Path, cache: Path) -> None:
    recipes = write(tmp_path / "own")
    first, _ = make(recipes, cache)

    def nothing(text: str) -> None:
        raise AssertionError(f"nothing was to do, and yet: {text}")

    assert channel.build(recipes, cache, on_progress=nothing) == first


def test_only_what_a_changed_recipe_touches_is_made_again(tmp_path: Path, cache: Path) -> None:
    before, _ = make(write(tmp_path / "own"), cache)
    changed = {
        **SMALL,
        "wheels": {"itsdangerous": {**SMALL["wheels"]["itsdangerous"], "depends": ["libuuid"]}},
    }
    after, made = make(write(tmp_path / "own", changed), cache)
    assert made == ["itsdangerous"]
    assert after != before
    assert before.is_dir(), "the earlier channel stays for those who locked it"


def test_a_refresh_asks_the_archive_and_keeps_what_has_not_changed(tmp_path: Path, cache: Path) -> None:
    before, _ = make(write(tmp_path / "own"), cache)
    after, made = make(write(tmp_path / "own"), cache, refresh=True)
    assert (after, made) == (before, [])


def test_a_flipped_byte_in_a_kept_package_is_caught_by_name(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "own")
    make(tmp_path / "own", cache)
    path = next((cache / "channel/packages").glob("*/libuuid-*.conda"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(HashMismatch, match=path.name):
        make(tmp_path / "own", cache, refresh=True)
    _, made = make(tmp_path / "own", cache, refresh=True)
    assert made == ["libuuid"], "the next run makes it anew"


def test_a_wheel_that_is_not_the_pinned_one_is_refused(tmp_path: Path, cache: Path) -> None:
    wheels = {"itsdangerous": {**SMALL["wheels"]["itsdangerous"], "sha256": "0" * 64}}
    recipes = {"python_version": "3.13", "wheels": wheels}
    with pytest.raises(CommandFailed, match="itsdangerous"):
        make(write(tmp_path / "own", recipes), cache)
    assert not list((cache / "channel").glob("*.partial")), "nothing is left behind"


def test_two_runs_give_the_same_bytes(tmp_path: Path, cache: Path) -> None:
    recipes = write(tmp_path / "own")
    first, _ = make(recipes, cache)
    shutil.copytree(cache / "blobs", tmp_path / "cache/blobs")
    second, _ = make(recipes, tmp_path / "cache")
    assert (first / "linux-64/repodata.json").read_bytes() == (second / "linux-64/repodata.json").read_bytes()
    assert (first / "noarch/repodata.json").read_bytes() == (second / "noarch/repodata.json").read_bytes()


def test_another_platform_has_its_own_packages_beside_the_same_noarch_ones(
    tmp_path: Path, cache: Path
) -> None:
    recipes = write(tmp_path / "own")
    usual, _ = make(recipes, cache)
    folder = channel.build(recipes, cache, "linux-aarch64", on_progress=lambda _text: None)
    place = conda.Channel(name="./own", url=folder.as_uri())
    promised = Contract(glibc="2.36", arch_level="aarch64")
    (library,), _ = conda.solve(["libuuid"], [place], contract=promised, platform="linux-aarch64")
    assert library.subdir == "linux-aarch64"
    path = folder / "linux-aarch64" / library.filename
    assert json.loads(members(path, "info")["info/index.json"])["arch"] == "aarch64"
    machine = members(path, "pkg")["lib/libuuid.so.1.3.0"][18:20]
    assert int.from_bytes(machine, "little") == 183, "an ELF file of 64-bit Arm (elf(5): EM_AARCH64)"
    assert not (folder / "linux-64").exists()
    assert [one.name for one in (folder / "noarch").iterdir()] == [
        one.name for one in (usual / "noarch").iterdir()
    ]


def test_a_wheel_without_a_digest_for_the_platform_is_refused(tmp_path: Path, cache: Path) -> None:
    pinned = {"version": "2.2.0", "sha256": {"linux-64": WHEEL}, "license": "BSD-3-Clause"}
    recipes = write(tmp_path / "own", {"python_version": "3.13", "wheels": {"itsdangerous": pinned}})
    make(recipes, cache)
    with pytest.raises(UsageError, match="pins no wheel for linux-aarch64 of itsdangerous"):
        channel.build(recipes, cache, "linux-aarch64", on_progress=lambda _text: None)


# --- the starter channel ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starter() -> Path:
    """The real one: taken from the user's cache, or built now (minutes)."""
    folder = resources.shipped() / "channel"
    return channel.build(folder, resources.cache_root(), on_progress=lambda _text: None)


@pytest.fixture(scope="module")
def environment(starter: Path, folders: Folders) -> Iterator[Path]:
    """The quickstart's environment, linked for a folder that is not the one it was compiled for."""
    work = folders.mktemp("starter")
    place = conda.Channel(name="starter", url=starter.as_uri())
    specs = ["python 3.13.*", "flask", "gunicorn", "numpy", "tzdata"]
    packages, _ = conda.solve(specs, [place], contract=Contract(glibc="2.36"))
    prefix = work / "another-place"
    archives = {one.sha256: starter / one.subdir / one.filename for one in packages}
    linking.link(packages, archives, prefix=str(prefix), into=prefix, epoch=EPOCH, work=work / "work")
    yield prefix


def python(prefix: Path, program: str) -> str:
    """Run the environment's interpreter as a service would: without activation, with nothing in its environment."""
    command = ["env", "-i", "LC_ALL=C.UTF-8", prefix / "bin/python", "-I", "-c", program]
    return process.run(command).stdout.strip()


def archives(starter: Path) -> list[Path]:
    found = sorted(starter.glob("*/*.conda"))
    assert len(found) > 20
    return found


def test_every_package_has_a_licence_its_text_and_a_hash(starter: Path) -> None:
    for path in archives(starter):
        records = json.loads((path.parent / "repodata.json").read_text())["packages.conda"]
        assert records[path.name]["sha256"] == resources.sha256_of(path), path.name
        assert records[path.name]["license"], path.name
        texts = [name for name in members(path, "info") if name.startswith("info/licenses/")]
        assert texts, path.name


def test_every_dependency_is_in_the_channel(starter: Path) -> None:
    place = conda.Channel(name="starter", url=starter.as_uri())
    for path in archives(starter):
        index = read_index(path)
        packages, _ = conda.solve(
            [f"{index['name']} =={index['version']}"], [place], contract=Contract(glibc="2.36")
        )
        assert index["name"] in {package.name for package in packages}


def test_no_package_holds_a_folder_of_the_build(starter: Path) -> None:
    cache = str(resources.cache_root()).encode()
    for path in archives(starter):
        assert not [name for name, content in members(path, "pkg").items() if cache in content], path.name


def test_packages_for_one_python_hold_its_byte_code_which_no_time_and_no_prefix_makes_stale(
    starter: Path,
) -> None:
    """As conda's own packages do; a noarch one is compiled where it is linked. Where a module names the prefix, too."""
    compiled = set()
    for path in archives(starter):
        files = members(path, "pkg")
        codes = {name: content for name, content in files.items() if name.endswith(".pyc")}
        assert all(content[4:8] == b"\1\0\0\0" for content in codes.values()), path.name
        assert not [name for name, content in codes.items() if PLACEHOLDER.encode() in content], path.name
        if codes:
            compiled.add(path.parent.name)
            modules = {
                name
                for name, content in files.items()
                if name.endswith(".py") and PLACEHOLDER.encode() not in content
            }
            made = {re.sub(r"__pycache__/(.*)\.cpython-\d+\.pyc$", r"\1.py", name) for name in codes}
            assert made <= modules and len(made) > 0.9 * len(modules), path.name
    assert compiled == {"linux-64"}


def test_debians_security_fixes_are_in_the_interpreter(starter: Path) -> None:
    (path,) = starter.glob("linux-64/python-3.13.*.conda")
    patches = json.loads(members(path, "info")["info/about.json"])["patches"]
    assert any(name.startswith("CVE-") for name in patches)


def test_the_interpreter_runs_from_another_place(environment: Path) -> None:
    modules = (
        "bz2 ctypes curses decimal dbm.sqlite3 hashlib lzma pyexpat readline sqlite3 ssl uuid venv zlib zoneinfo"
        " flask gunicorn markupsafe numpy"
    )
    program = f"import {', '.join(modules.split())}, sys; print(sys.prefix)"
    assert python(environment, program) == str(environment)


def test_libraries_are_the_environments_own(environment: Path) -> None:
    """But for glibc, which an environment takes from its machine (the package __glibc)."""
    program = (
        "import numpy.linalg, ssl, sqlite3, ctypes, lzma, bz2, readline, curses, uuid, zlib\n"
        "maps = {line.split()[-1] for line in open('/proc/self/maps') if '.so' in line}\n"
        "print('\\n'.join(sorted(maps)))"
    )
    foreign = [
        line for line in python(environment, program).splitlines() if not line.startswith(str(environment))
    ]
    glibc = ("ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1")
    assert [line for line in foreign if Path(line).name not in (*glibc, "libutil.so.1")] == []


def test_certificates_are_found_without_activation(environment: Path) -> None:
    program = (
        "import ssl; context = ssl.create_default_context();"
        "print(ssl.get_default_verify_paths().cafile, len(context.get_ca_certs()) > 100)"
    )
    assert python(environment, program) == f"{environment}/ssl/cacert.pem True"


def test_ssl_cert_file_replaces_the_environments_certificates(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("")
    program = (
        f"import os; os.environ['SSL_CERT_FILE'] = os.environ['SSL_CERT_DIR'] = {str(tmp_path / 'none.pem')!r};"
        "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    )
    assert python(environment, program) == "0"


def test_what_python_knows_of_itself_follows_the_prefix(environment: Path) -> None:
    program = (
        "import sysconfig, json;"
        "print(json.dumps({**sysconfig.get_paths(), **sysconfig.get_config_vars()}, default=str))"
    )
    said = json.loads(python(environment, program))
    for name in ("stdlib", "include", "scripts", "LIBDIR", "BINDIR", "INCLUDEPY"):
        assert said[name].startswith(str(environment)), name
    wrong = {
        name: value
        for name, value in said.items()
        if isinstance(value, str) and ("_placehold" in value or ".partial" in value)
    }
    assert wrong == {}


def test_commands_start_the_environments_interpreter(environment: Path) -> None:
    for command in ("flask", "gunicorn", "f2py", "numpy-config", "pydoc3", "python3-config"):
        argument = "--prefix" if command == "python3-config" else "-h" if command == "f2py" else "--help"
        answer = process.run(
            ["env", "-i", "PATH=/usr/bin:/bin", environment / "bin" / command, argument], check=False
        )
        assert answer.returncode == 0 or command == "pydoc3", f"{command}: {answer.stderr}"
        assert "not found" not in answer.stderr, command
    assert PLACEHOLDER not in (environment / "bin/pydoc3.13").read_text()


def test_an_extension_can_be_compiled_against_it(environment: Path, tmp_path: Path) -> None:
    flags = process.run([environment / "bin/python3-config", "--includes"]).stdout.split()
    source = tmp_path / "tiny.c"
    source.write_text(
        "#include <Python.h>\n"
        'static PyModuleDef tiny = {PyModuleDef_HEAD_INIT, "tiny"};\n'
        "PyMODINIT_FUNC PyInit_tiny(void) { return PyModule_Create(&tiny); }\n"
    )
    process.run(["gcc", "-shared", "-fPIC", *flags, source, "-o", tmp_path / "tiny.so"])
    assert (
        python(environment, f"import sys; sys.path.append({str(tmp_path)!r}); import tiny; print('ok')")
        == "ok"
    )

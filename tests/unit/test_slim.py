"""What each part of slim is: files by their place, test suites by who speaks of them; licence texts never."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from conda_appliance import definition, definition_slim, slim_rules, testsuites
from conda_appliance.definition_slim import CAREFUL, PARTS, Part
from conda_appliance.errors import DefinitionError

SITE = "lib/python3.13/site-packages"
GOOD = """\
name: hello
version: "1"
base: {debian: trixie}
conda: {channels: [conda-forge], environments: {base: {dependencies: [python]}}}
"""


def environment(prefix: Path, files: Mapping[str, str], name: str = "demo") -> Path:
    """An environment of one package with these files."""
    for path, text in files.items():
        (prefix / path).parent.mkdir(parents=True, exist_ok=True)
        (prefix / path).write_text(text)
    paths = [
        {"_path": path, "sha256": hashlib.sha256(text.encode()).hexdigest()} for path, text in files.items()
    ]
    record = {"name": name, "paths_data": {"paths": paths}}
    (prefix / "conda-meta").mkdir(exist_ok=True)
    (prefix / f"conda-meta/{name}-1-0.json").write_text(json.dumps(record))
    return prefix


def suites(prefix: Path, files: Mapping[str, str]) -> set[str]:
    environment(prefix, files)
    return {path.removeprefix(f"{SITE}/") for path in testsuites.unneeded(prefix, files)}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("lib/libz.a", "static-libraries"),
        (f"{SITE}/numpy/random/lib/libnpyrandom.a", "static-libraries"),
        ("lib/libxml2.la", "static-libraries"),
        ("include/zlib.h", "headers"),
        ("include/python3.13/Python.h", "headers"),
        ("lib/pkgconfig/zlib.pc", "headers"),
        ("lib/cmake/zstd/zstdConfig.cmake", "headers"),
        ("share/doc/xz/README", "docs"),
        ("share/info/dir", "docs"),
        ("share/man/man1/xz.1", "man-pages"),
        ("man/man1/old.1", "man-pages"),
        ("share/locale/de/LC_MESSAGES/xz.mo", "locales"),
        ("lib/python3.13/idlelib/run.py", "idle"),
        ("bin/idle3.13", "idle"),
        ("lib/debug/libz.debug", "debug-symbols"),
        ("lib/python3.13/ensurepip/_bundled/pip-25.0-py3-none-any.whl", "ensurepip"),
        ("lib/python3.13/lib-dynload/_testcapi.cpython-313-x86_64-linux-gnu.so", "tests"),
    ],
)
def test_a_file_is_of_the_part_that_its_place_says(tmp_path: Path, path: str, part: Part) -> None:
    environment(tmp_path, {path: ""})
    removed = slim_rules.plan(tmp_path, PARTS).removed
    assert {name: paths for name, paths in removed.items() if paths} == {part: [path]}


@pytest.mark.parametrize(
    "path",
    [
        "include/python3.13/pyconfig.h",  # sysconfig reads it
        "lib/python3.13/config-3.13-x86_64-linux-gnu/Makefile",
        "share/terminfo/x/xterm",
        "share/zoneinfo/Europe/Berlin",
        "lib/libz.so.1",
        "lib/gconv/UTF-16.so",
        f"{SITE}/torch/include/torch.h",  # compilers that live in packages read theirs
        f"{SITE}/babel/locale-data/de.dat",
        f"{SITE}/demo-1.dist-info/RECORD",
        "share/doc/xz/COPYING",
        "share/doc/xz/COPYING.GPLv2",
        "share/doc/libfoo/copyright",
        "share/doc/foo/AUTHORS",
        "share/doc/foo/foo-LICENSE.txt",
        "share/doc/foo/licenses/zlib.txt",
        "share/doc/foo/THIRD_PARTY_NOTICES",
        "share/man/man7/license.7",
        "include/eigen3/LICENSE.MPL2",
        f"{SITE}/demo/tests/data/LICENSE",
        "share/licenses/demo/README",
    ],
)
def test_what_runs_and_what_a_licence_requires_stays(tmp_path: Path, path: str) -> None:
    environment(tmp_path, {path: "", f"{SITE}/demo/tests/test_it.py": ""})
    removed = slim_rules.plan(tmp_path, PARTS).removed
    assert path not in [one for paths in removed.values() for one in paths]


def test_a_test_about_licences_is_no_licence(tmp_path: Path) -> None:
    environment(tmp_path, {f"{SITE}/demo/tests/test_license.py": ""})
    assert slim_rules.plan(tmp_path, ["tests"]).removed == {"tests": [f"{SITE}/demo/tests/test_license.py"]}


def test_byte_code_goes_only_where_its_source_is(tmp_path: Path) -> None:
    environment(
        tmp_path,
        {
            f"{SITE}/a.py": "",
            f"{SITE}/__pycache__/a.cpython-313.pyc": "",
            f"{SITE}/__pycache__/only.cpython-313.pyc": "",
            f"{SITE}/alone.pyc": "",
        },
    )
    assert slim_rules.plan(tmp_path, ["byte-code"]).removed == {
        "byte-code": [f"{SITE}/__pycache__/a.cpython-313.pyc"]
    }


def test_headers_stay_where_a_compiler_uses_them(tmp_path: Path) -> None:
    environment(tmp_path, {"include/zlib.h": "", "lib/libz.a": ""})
    environment(tmp_path, {}, name="gcc_impl_linux-64")
    plan = slim_rules.plan(tmp_path, CAREFUL)
    assert set(plan.kept) == {"headers", "static-libraries"}
    assert plan.kept["headers"] == "gcc_impl_linux-64 compiles with them"
    assert not any(plan.removed.values())


# --- test suites ------------------------------------------------------------------------------------

SUITE = {"demo/__init__.py": "", "demo/tests/__init__.py": "", "demo/tests/test_it.py": "import demo\n"}


def at_site(files: Mapping[str, str]) -> dict[str, str]:
    return {f"{SITE}/{path}": text for path, text in files.items()}


def test_a_suite_that_nothing_speaks_of_may_go(tmp_path: Path) -> None:
    other = {"other/__init__.py": '"""See demo.tests for more."""\n# demo.tests\nimport demo\n'}
    assert suites(tmp_path, at_site(SUITE | other)) == {"demo/tests"}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("other.py", "import demo.tests.helpers\n"),
        ("other.py", "from demo.tests import helpers\n"),
        ("other.py", "def late():\n    from demo import tests\n"),
        ("demo/api.py", "from .tests import helpers\n"),
        ("demo/api.py", "from . import tests\n"),
        ("demo/deep/api.py", "from ..tests.helpers import one\n"),
        ("demo/__init__.py", "from .tests.helpers import one\n"),
        ("other.py", "import importlib\nimportlib.import_module('demo.tests.helpers')\n"),
        ("demo/api.py", "open(os.path.join(here, 'tests', 'data.csv'))\n"),
        ("demo/api.py", "open(here + '/tests/data.csv')\n"),
        ("demo/api.py", "name = f'{__name__}.tests'\n"),
        ("demo-1.dist-info/entry_points.txt", "[console_scripts]\ncheck = demo.tests:main\n"),
        ("other.py", "print 'Python 2'; import demo.tests\n"),  # cannot be parsed: every word counts
    ],
)
def test_a_suite_that_a_module_needs_stays(tmp_path: Path, module: str, text: str) -> None:
    assert suites(tmp_path, at_site(SUITE | {module: text})) == set()


def test_what_a_suite_that_stays_needs_stays_too(tmp_path: Path) -> None:
    files = SUITE | {
        "other.py": "import demo.tests\n",
        "demo/tests/test_it.py": "from more.tests import base\n",
        "more/tests/test_more.py": "",
        "unused/tests/test_unused.py": "import demo.tests, more.tests\n",
    }
    assert suites(tmp_path, at_site(files)) == {"unused/tests"}


def test_a_library_that_is_called_test_is_no_suite(tmp_path: Path) -> None:
    files = {"django/test/__init__.py": "", "django/test/client.py": "", "numpy/testing/test_x.py": ""}
    assert suites(tmp_path, at_site(files)) == set()


def test_pythons_own_suite_stays_where_a_package_uses_its_support(tmp_path: Path) -> None:
    files = {"lib/python3.13/test/test_os.py": "", "lib/python3.13/os.py": ""}
    assert suites(tmp_path / "without", files) == {"lib/python3.13/test"}
    files[f"{SITE}/user.py"] = "from test.support import socket_helper\n"
    assert suites(tmp_path / "with", files) == set()


# --- the definition ---------------------------------------------------------------------------------


def load(folder: Path, slim: str) -> definition.ImageDefinition:
    path = folder / "x.yaml"
    path.write_text(GOOD + (f"slim: {slim}\n" if slim else ""))
    return definition.load_image(path)


def test_true_is_the_careful_choice_and_nothing_is_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "").slim == load(tmp_path, "false").slim == load(tmp_path, "[]").slim == ()
    assert load(tmp_path, "true").slim == CAREFUL
    assert {"byte-code", "ensurepip"}.isdisjoint(CAREFUL)


def test_the_order_of_parts_decides_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "[tests, headers, tests]").slim == load(tmp_path, "[headers, tests]").slim


@pytest.mark.parametrize(
    ("slim", "said"),
    [
        ("[header]", "slim[0]: 'header' is not one of"),
        ("[header]", "perhaps you meant 'headers'"),
        ("everything", "slim is true, or a list of what to leave out: static-libraries, headers,"),
    ],
)
def test_another_word_is_refused_with_what_there_is(tmp_path: Path, slim: str, said: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        load(tmp_path, slim)
    assert said in caught.value.message


def test_slim_needs_no_new_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    digests = {definition.lock_digest(path, load(tmp_path, slim)) for slim in ("", "true", "[docs]")}
    assert len(digests) == 1


def test_every_part_has_a_rule() -> None:
    assert {*slim_rules._RULES, "byte-code"} == set(definition_slim.PARTS)

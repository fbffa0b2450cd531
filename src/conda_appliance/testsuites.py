"""Which test suites in an environment nothing needs: folders of tests that no module which stays speaks of.

``numpy/testing`` is a library, ``django/test`` too, and some libraries import from another's tests. So a folder is a
test suite only if it is named ``tests`` or ``test`` and holds tests, and it goes only if no module outside of such
folders imports it or names it in a string (``importlib``, ``importlib.resources``, a path of data). In doubt it stays.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

#: Where modules lie: Python's own, or those of packages.
_ROOT = re.compile(r"(lib/python3\.\d+t?/)(site-packages/)?")
_NAMED = re.compile(r"tests?")
_HOLDS_TESTS = re.compile(r"(test_[^/]*|[^/]*_test)\.py")
#: A module without this word need not be parsed.
_SPEAKS = re.compile(rb"(?<![A-Za-z0-9])tests?(?![A-Za-z0-9])")
#: A string that may name a module or a path: ``pkg.tests.data``, ``tests/data``, ``.tests``, ``pkg.tests:main``.
_NAME = re.compile(r"[\w./:-]*\btests?\b[\w./:-]*")
#: Only pytest and builds read these.
_NO_LIBRARY = ("conftest.py", "setup.py", "noxfile.py")


def unneeded(prefix: Path, paths: Collection[str]) -> frozenset[str]:
    """The folders of test suites that may go, of the files ``paths`` (from there) in the environment ``prefix``."""
    suites = {folder: _dotted(folder) for folder in _suites(paths)}
    sources = {path: _inside(path, suites) for path in paths if _is_source(path)}
    left = dict(suites)
    todo = [path for path, suite in sources.items() if not suite]
    while todo:
        named = {name for path in todo for name in _names(prefix / path, path)}
        needed = [folder for folder, dotted in left.items() if _speaks_of(named, dotted)]
        for folder in needed:
            del left[folder]
        # What stays may need more.
        todo = [path for path, suite in sources.items() if suite in needed]
    return frozenset(left)


def _suites(paths: Collection[str]) -> set[str]:
    """The outermost folders that are named as test suites and hold tests; none at the top of site-packages."""
    found: dict[str, bool] = {}
    for path in paths:
        match = _ROOT.match(path)
        if not match:
            continue
        parts = path[match.end() :].split("/")
        first = 1 if match[2] else 0
        at = next((n for n, part in enumerate(parts[:-1]) if n >= first and _NAMED.fullmatch(part)), None)
        if at is not None:
            folder = match[0] + "/".join(parts[: at + 1])
            found[folder] = found.get(folder, False) or bool(_HOLDS_TESTS.fullmatch(parts[-1]))
    return {folder for folder, holds in found.items() if holds}


def _is_source(path: str) -> bool:
    name = path.rpartition("/")[2]
    if name == "entry_points.txt":
        return True
    return bool(_ROOT.match(path)) and name.endswith(".py") and name not in _NO_LIBRARY


def _inside(path: str, suites: Collection[str]) -> str:
    """The suite that a file is in, or nothing."""
    parts = path.split("/")
    return next((up for n in range(len(parts)) if (up := "/".join(parts[:n])) in suites), "")


def _dotted(path: str) -> str:
    match = _ROOT.match(path)
    return path[match.end() if match else 0 :].replace("/", ".")


def _speaks_of(named: Collection[str], dotted: str) -> bool:
    return any(name == dotted or name.startswith(f"{dotted}.") for name in named)


def _names(file: Path, path: str) -> Iterator[str]:
    """Every dotted name in a module that may be of a test suite: what it imports, and what its strings say."""
    data = file.read_bytes()
    if not _SPEAKS.search(data):
        return
    package = _dotted(path).rpartition(".")[0].rpartition(".")[0]  # a/b/c.py and a/b/__init__.py are of a.b
    try:
        if not path.endswith(".py"):
            raise SyntaxError
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError):  # of another Python, or no Python: every word counts
        for word in _NAME.findall(data.decode("utf-8", "replace")):
            yield from _of_text(word, package)
        return
    comments = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in comments:
            yield from _of_text(node.value, package) if _NAME.fullmatch(node.value) else ()


def _of_text(text: str, package: str) -> Iterator[str]:
    """What a string may mean: a name from the top, if it has several parts, or one from the module's own package."""
    name = re.sub(r"[./:]+", ".", text).strip(".")
    if "." in name:
        yield name
    yield f"{package}.{name}"

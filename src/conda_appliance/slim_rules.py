"""What of an environment each part of `slim` is: from its files' names, its records and who needs what.

A licence text is never of a part, nor is what says which packages are there (``*.dist-info``, ``conda-meta``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import prefix_check, testsuites
from conda_appliance.definition_slim import PARTS, Part

#: What is named so, or lies in a folder that is, may be what a licence requires to stay with the files.
_LEGAL = re.compile(
    r"(^|[-_./])(licen[cs]es?|copying(v\d)?|copyrights?|notices?|authors?|patents?|unlicense|eula|"
    r"third[-_]?party[-_a-z]*|[al]?gpl)([-_./0-9]|$)",
    re.IGNORECASE,
)
#: … but for what is code: ``test_license.py`` is none.
_CODE = re.compile(r"\.(py|pyc|pyi|so(\.\d+)*|a|la|h|hh|hpp|hxx|inc|mo)$")
_META = re.compile(r"conda-meta/|share/licenses/|lib/python3[^/]*/site-packages/[^/]+\.(dist|egg)-info(/|$)")

#: What is of a part by its path.
_RULES: dict[Part, re.Pattern[str]] = {
    "static-libraries": re.compile(r"(.*/)?lib[^/]*\.l?a"),
    # sysconfig reads pyconfig.h when a program asks for it (sysconfig.get_config_h_filename).
    "headers": re.compile(
        r"include/(?!(.*/)?pyconfig[^/]*\.h$).+|(lib|share)/(pkgconfig|cmake)/.+|share/aclocal/.+"
    ),
    "tests": re.compile(
        r"lib/python3[^/]*/lib-dynload/(_test|_ctypes_test|_xxtestfuzz|xxlimited|xxsubtype)[^/]*\.so"
    ),
    "docs": re.compile(r"share/(doc|gtk-doc|info|help)/.+"),
    "man-pages": re.compile(r"(share/)?man/.+"),
    "locales": re.compile(r"share/locale/.+"),
    "idle": re.compile(r"lib/python3[^/]*/(idlelib|turtledemo)/.+|bin/idle[\d.]*"),
    "debug-symbols": re.compile(r"lib/debug/.+|(.*/)?[^/]+\.debug"),
    "ensurepip": re.compile(r"lib/python3[^/]*/ensurepip/_bundled/[^/]+\.whl"),
}
_BYTE_CODE = re.compile(r"(.*)__pycache__/([^/]+)\.cpython-\d+t?(\.opt-\d)?\.pyc")

#: Packages that compile where they run: there the headers and static libraries are in use.
_COMPILERS = re.compile(
    r"(gcc|gxx|gfortran|g\+\+|clang|clangxx|clang-\d+|c-compiler|cxx-compiler|fortran-compiler|compilers|tinycc|"
    r"ziglang|zig|rust|go|go-cgo|cuda-nvcc|cuda-nvrtc|cling|cppyy(-cling)?|root_base|dpcpp.*)(_.*)?"
)
_FOR_COMPILERS: tuple[Part, ...] = ("static-libraries", "headers")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The files that each part removes, by path from the environment; why a part removes nothing that was asked to."""

    removed: dict[Part, list[str]]
    kept: dict[Part, str]


def plan(prefix: Path, parts: Sequence[Part]) -> Plan:
    """What ``parts`` remove of the environment in the folder ``prefix``."""
    paths, packages = _recorded(prefix)
    removed: dict[Part, list[str]] = {}
    kept: dict[Part, str] = {}
    compilers = sorted(name for name in packages if _COMPILERS.fullmatch(name))
    suites = testsuites.unneeded(prefix, paths) if "tests" in parts else frozenset()
    left = [path for path in paths if not is_kept(path)]
    for part in sorted(parts, key=PARTS.index):
        if part in _FOR_COMPILERS and compilers:
            kept[part] = f"{compilers[0]} compiles with them"
            continue
        gone = set(_of(part, left, suites))
        removed[part] = sorted(gone)
        left = [path for path in left if path not in gone]
    return Plan(removed=removed, kept=kept)


def is_kept(path: str) -> bool:
    """Whether a file stays whatever is asked: a licence's text, or what says which packages are there."""
    return bool(_META.match(path)) or (bool(_LEGAL.search(path)) and not _CODE.search(path))


def _of(part: Part, paths: Sequence[str], suites: Collection[str]) -> Iterator[str]:
    if part == "byte-code":
        there = set(paths)
        for path in paths:
            match = _BYTE_CODE.fullmatch(path)
            if match and f"{match[1]}{match[2]}.py" in there:  # byte code without its source is a module
                yield path
        return
    for path in paths:
        if _RULES[part].fullmatch(path) or (part == "tests" and _in(path, suites)):
            yield path


def _in(path: str, folders: Collection[str]) -> bool:
    parts = path.split("/")
    return any("/".join(parts[:count]) in folders for count in range(2, len(parts)))


def _recorded(prefix: Path) -> tuple[list[str], set[str]]:
    """The files of all packages and wheels in an environment, and these packages' names."""
    paths, names = set(), set()
    for record in prefix_check.records(prefix):
        names.add(record["name"])
        paths |= {
            entry["_path"] for entry in record["paths_data"]["paths"] if entry.get("path_type") != "directory"
        }
    for name, entries in prefix_check.wheels(prefix, paths):
        names.add(name.lower())
        paths |= set(entries)
    return sorted(paths), names

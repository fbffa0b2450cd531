"""The modules of an environment, compiled by its own Python for the path where it will live, and recorded.

The byte code names the final path and is never compared with its source's time (PEP 552's unchecked-hash): a machine's
first start is a fast one, and a read-only environment stays fast.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from conda_appliance import process
from conda_appliance.errors import BuildError
from conda_appliance.layers import Store
from conda_appliance.lock import CondaPackage


def make(
    packages: Sequence[CondaPackage],
    records: Mapping[str, dict[str, Any]],
    *,
    python: CondaPackage | None,
    into: Path,
    prefix: str,
    store: Store | None,
    loader: Sequence[process.Argument],
) -> None:
    """Compile the modules of ``packages``, whose records are given by name, in the environment ``into`` for ``prefix``.

    ``python`` is its interpreter's package, ``loader`` the words that start a program of it where this host is of
    another platform. Files that are no Python (templates, tests of bad syntax) stay uncompiled, as in any environment.
    Modules whose package brought such byte code keep it: it is the same whatever the path, which Python puts in when it
    loads it. The rest follows from the package, the path and the Python, so ``store`` keeps it for the next.
    """
    if python is None or not (into / "bin/python").exists():
        return
    sources = {
        package: [
            entry["_path"]
            for entry in records[package.name]["paths_data"]["paths"]
            if re.match(r"lib/python3\.[^/]+/.*\.py$", entry["_path"])
            and (into / entry["_path"]).is_file()
            and not _is_compiled(into / entry["_path"], python.version)
        ]
        for package in packages
    }
    sources = {package: files for package, files in sources.items() if files}
    parts: dict[CondaPackage, dict[str, str]] = {
        package: {"package": package.sha256, "python": python.sha256, "prefix": prefix, "code": _BYTE_CODE}
        for package in sources
    }
    kept = {
        package: store.find("bytecode", parts[package]) if store is not None else None for package in sources
    }
    run(
        [path for package, files in sources.items() if kept[package] is None for path in files],
        into,
        prefix,
        [*loader, into / "bin/python"],
    )
    for package, files in sources.items():
        layer = kept[package]
        if layer is not None:
            shutil.copytree(layer.path, into, dirs_exist_ok=True, symlinks=True)
        elif store is not None:
            store.get(
                "bytecode",
                parts[package],
                lambda to, _work, files=files: _gather(files, into, to),  # type: ignore[misc]
                subject=package.name,
                quiet=True,
            )


def _is_compiled(module: Path, version: str) -> bool:
    """Whether a module of that Python has byte code that is never compared with it (PEP 552, unchecked-hash)."""
    tag = "".join(version.split(".")[:2])
    try:
        with (module.parent / f"__pycache__/{module.stem}.cpython-{tag}.pyc").open("rb") as file:
            return file.read(8)[4:] == b"\1\0\0\0"
    except OSError:
        return False


#: Changes when byte code is made in another way.
_BYTE_CODE = "compileall unchecked-hash 1"


def run(files: Sequence[str], into: Path, prefix: str, python: Sequence[process.Argument]) -> None:
    """Compile ``files`` (paths from ``into``) side by side: compileall itself takes listed files one by one.

    ``python`` are the words that start an interpreter of the version that they are for.
    """
    if not files:
        return
    # -I -S: no user's settings, and no package's .pth file, run on this host.
    command: list[process.Argument] = [*python, "-I", "-S", "-B"]
    command += ["-m", "compileall", "-q", "-f"]
    command += ["-s", into, "-p", prefix, "--invalidation-mode", "unchecked-hash", "-i", "-"]

    def compile_some(some: Sequence[str]) -> process.Completed:
        return process.run(command, input="".join(f"{into / path}\n" for path in some), check=False)

    workers = min(os.cpu_count() or 1, len(files))  # given none, compileall compiles all of Python's own
    chunks = [files[start::workers] for start in range(workers)]
    for done in process.side_by_side(*[partial(compile_some, chunk) for chunk in chunks]):
        if done.returncode not in (0, 1):
            raise _cannot_compile(prefix, done)
    if not any((into / path).parent.joinpath("__pycache__").is_dir() for path in files):
        raise _cannot_compile(prefix, done)


def _cannot_compile(prefix: str, done: process.Completed) -> BuildError:
    return BuildError(
        f"the Python of the environment for {prefix} cannot compile it (status {done.returncode}):\n"
        + (done.stdout + done.stderr)[-2000:],
        hint="it must be a Python 3.9 or newer of the machine's platform, which runs on this host",
    )


def _gather(sources: Sequence[str], into: Path, to: Path) -> None:
    """Copy the byte code of ``sources`` from ``into`` to the new folder ``to``, under the same names."""
    to.mkdir()
    for folder, some in itertools.groupby(sorted(sources, key=os.path.dirname), os.path.dirname):
        stems = {source.rpartition("/")[2].removesuffix(".py") for source in some}
        caches, target = into / folder / "__pycache__", to / folder / "__pycache__"
        names = [one.name for one in os.scandir(caches)] if caches.is_dir() else []
        for name in names:
            stem, _, rest = name.partition(".cpython-")
            if rest.endswith(".pyc") and stem in stems:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(caches / name, target / name)


def record(into: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """Record every .pyc with the package of its source; renew the digests of those a package brought."""
    entries = {
        entry["_path"]: (record, entry)
        for record in records.values()
        for entry in record["paths_data"]["paths"]
    }
    folders = {name.rpartition("/")[0] for name in entries if name.endswith((".py", ".pyc"))}
    caches = {f"{folder}/__pycache__" for folder in folders if not folder.endswith("__pycache__")}
    for folder in sorted(folders | caches):
        for file in sorted(one.name for one in os.scandir(into / folder)) if (into / folder).is_dir() else ():
            name = f"{folder}/{file}"
            source = f"{folder.rpartition('/')[0]}/{file.rsplit('.', 2)[0]}.py"
            if not file.endswith(".pyc") or (name not in entries and source not in entries):
                continue
            data = (into / name).read_bytes()
            about = {"sha256_in_prefix": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
            if name in entries:
                entries[name][1].update(about)
            else:
                paths = entries[source][0]["paths_data"]["paths"]
                paths.append({"_path": name, "path_type": "pyc_file", **about})

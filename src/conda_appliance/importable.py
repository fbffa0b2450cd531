"""Whether what could be imported in a linked environment still can, asked of its own Python.

Packages' code runs here, so it runs where it can do no harm: `namespace.confined`, as nobody, without a network.
"""

from __future__ import annotations

import configparser
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from conda_appliance import namespace, process
from conda_appliance.errors import BuildError
from conda_appliance.process import Starter

#: On a host of the environment's platform.
_PLAIN = Starter()

#: Opens a browser; prints; are programs.
_NOT_ASKED = frozenset({"antigravity", "this", "__main__", "idlelib", "turtledemo", "test"})
#: How long one import may take, in seconds.
_PATIENCE = 60

#: Each in a process of its own, so that one which crashes or waits says nothing of the others.
_ASK = f"""
import importlib, json, os, signal, sys
said = {{}}
for name in json.load(sys.stdin):
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        signal.alarm({_PATIENCE})
        try:
            importlib.import_module(name)
            text = ""
        except BaseException as error:
            text = f"{{type(error).__name__}}: {{error}}"[:500] or "?"
        os.write(there, text.encode("utf-8", "replace"))
        os._exit(1 if text else 0)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        text = pipe.read().decode("utf-8", "replace")
    status = os.waitpid(child, 0)[1]
    if status:
        said[name] = text or "ended by signal %d" % (status & 127)
print(json.dumps(said))
"""


def modules(folder: Path) -> list[str]:
    """All modules at the top of the environment in ``folder``, and those that its entry points name; sorted."""
    found: set[str] = set()
    for root in (*folder.glob("lib/python3.*"), *folder.glob("lib/python3.*/site-packages")):
        found |= {_top(path) for path in root.iterdir()}
    for path in folder.glob("lib/python3.*/lib-dynload/*.so"):
        found.add(_top(path))
    for path in folder.glob("lib/python3.*/site-packages/*.dist-info/entry_points.txt"):
        found |= set(_entry_points(path))
    return sorted(name for name in found if name and name.partition(".")[0] not in _NOT_ASKED)


def _top(path: Path) -> str:
    """The module that a file or folder is, or nothing."""
    name = path.name.partition(".")[0]
    if not name.isidentifier() or name == "__pycache__":
        return ""
    if path.is_dir():
        return name if (path / "__init__.py").exists() else ""
    return name if re.search(r"\.(py|so)$", path.name) else ""


def _entry_points(path: Path) -> Iterator[str]:
    """The modules that console and GUI scripts run."""
    parser = configparser.ConfigParser(delimiters=("=",), strict=False, interpolation=None)
    parser.read_string(path.read_text("utf-8"))
    for group in ("console_scripts", "gui_scripts"):
        for value in parser[group].values() if parser.has_section(group) else ():
            yield value.partition(":")[0].partition("[")[0].strip()


def failing(
    folder: Path, prefix: str, names: Collection[str], work: Path, starter: Starter = _PLAIN
) -> dict[str, str]:
    """Those of ``names`` that cannot be imported in the environment in ``folder``, which lives at ``prefix``: why.

    ``starter`` is how its Python is started on this host.
    """
    work.mkdir(exist_ok=True)
    home = namespace.place_of(prefix)
    command = namespace.confined(
        work,
        folder,
        prefix,
        [*starter.words, f"{home}/bin/python", "-I", "-B", "-c", _ASK],
        also=starter.files,
    )
    done = process.run(command, input=json.dumps(sorted(names)), check=False)
    try:
        said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise BuildError(
            f"the Python of the environment for {prefix} does not run here (status {done.returncode}):\n"
            + (done.stdout + done.stderr)[-2000:],
            hint="what is left out of it is checked by importing its modules: it must run on this host",
        ) from None
    return said


def lost(
    before: Path,
    after: Path,
    prefix: str,
    work: Path,
    gone: Collection[str] = (),
    starter: Starter = _PLAIN,
) -> dict[str, str]:
    """The modules that can be imported in ``before`` and not in ``after``: why. ``gone`` are not asked for.

    An environment without a Python has none.
    """
    if not (before / "bin/python").exists():
        return {}
    asked = [name for name in modules(before) if name not in gone]
    fails = failing(after, prefix, asked, work, starter)
    if fails:  # as many cannot be imported anywhere, for Windows or without a display: only what could counts
        never = failing(before, prefix, fails, work, starter)
        fails = {name: why for name, why in fails.items() if name not in never}
    return fails

"""Packages' post-link scripts: run where the environment will live, in the tree of the machine that was not booted yet.

A script runs as conda runs it (``conda/core/link.py``: ``run_script``; the variables are in conda-build's "Adding
pre-link, post-link and pre-unlink scripts"): by bash, with PREFIX, PKG_NAME, PKG_VERSION and PKG_BUILDNUM, the
environment's programs first, and what it writes to ``PREFIX/.messages.txt`` is for the user. Unlike there it has no
network, few of root's rights, and nothing but the environment to write to: what it does is in the image, or fails.

Its files are recorded with its package, and those it changed with theirs, so that everything that compares an
environment with its records has one truth, and removing the package removes them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conda_appliance import first_boot, log, namespace, prefix_check, process, resources, trees
from conda_appliance.errors import BuildError
from conda_appliance.lock import CondaPackage, EnvironmentSection

#: How long a script may take, in seconds.
TIMEOUT = 600


def run(
    section: EnvironmentSection,
    *,
    root: Path,
    system: Path,
    base: str,
    epoch: int,
    work: Path,
    progress: Callable[[str], None] = lambda _text: None,
) -> None:
    """Run the scripts of ``section`` in the order of linking; what they do lands in its linked environment.

    ``root`` is the tree that has the environment at its prefix, ``system`` the machine's tree, which is only read,
    ``base`` the prefix of the environment 'base'. ``epoch`` (seconds since 1970) is every time stamp, ``work`` a folder
    for what is only needed meanwhile. Raises BuildError for a script that fails, takes more than `TIMEOUT`, or writes
    anywhere but to its environment; and when the result differs from its own records.
    """
    into = root / section.prefix.lstrip("/")
    for package in section.packages:
        if package.name not in (section.post_link or ()):
            continue
        progress(f"running the post-link script of {package.name}")
        record = json.loads((into / "conda-meta" / _record_name(package)).read_text(encoding="utf-8"))
        place = work / "post-link"
        place.mkdir(parents=True)
        try:
            _run_one(package, record, section.prefix, [root, system], base=base, epoch=epoch, work=place)
            upper = place / "upper"
            _require_inside(package, upper, section.prefix)
            written = upper / section.prefix.lstrip("/")
            if written.is_dir():
                _tell_messages(package, written / first_boot.MESSAGES)
                first_boot.record(into, _record_name(package), *_move(written, into))
        finally:
            resources.remove(place)
    trees.settle(into, epoch)
    if findings := prefix_check.check(into):
        raise BuildError(
            f"after its post-link scripts the environment for {section.prefix} differs from its packages' records: "
            f"{trees.some(findings)}",
            hint="a script must leave conda-meta/ as it is",
        )


def _record_name(package: CondaPackage) -> str:
    return f"{package.name}-{package.version}-{package.build}.json"


def _run_one(
    package: CondaPackage,
    record: Mapping[str, Any],
    prefix: str,
    lower: list[Path],
    *,
    base: str,
    epoch: int,
    work: Path,
) -> None:
    variables = {
        **first_boot.variables(record, prefix, base),
        # The same bytes each time, as far as they can be asked for.
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(epoch),
        "PYTHONHASHSEED": "0",
    }
    mounted, env = namespace.script(work, lower, upper="upper", system=True)
    command: list[process.Argument] = ["-C", prefix]
    command += [f"{name}={value}" for name, value in variables.items()]
    command += ["bash", f"{prefix}/bin/.{package.name}-post-link.sh"]
    done = process.run(
        namespace.entered(mounted, command),
        env=env,
        timeout=TIMEOUT,
        check=False,
        orphaned=signal.SIGKILL,
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()[-12:]
        raise BuildError(
            f"the post-link script of {package.filename} failed (status {done.returncode}):\n"
            + "\n".join(said),
            hint="it has no network, and may write to its environment only; leave the package out, or let its script "
            "run on the machine: conda.post_link: first-boot",
        )


def _require_inside(package: CondaPackage, upper: Path, prefix: str) -> None:
    """Raise BuildError for a script that wrote to the system, where its work would be lost."""
    inside = prefix.lstrip("/")
    outside = [
        f"/{path}"
        for path, _ in trees.walk(upper)
        if path != "." and not path.startswith(f"{inside}/") and not f"{inside}/".startswith(f"{path}/")
    ]
    if outside:
        raise BuildError(
            f"the post-link script of {package.filename} writes outside its environment: {trees.some(outside)}",
            hint="leave the package out, and do what the script does in a playbook role of yours",
        )


def _tell_messages(package: CondaPackage, path: Path) -> None:
    """Show what the script wants its user to know; conda then removes the file too."""
    if path.is_file() and not path.is_symlink():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip():
                log.info(f"{package.name}: {line.rstrip()}")
    path.unlink(missing_ok=True)


def _move(upper: Path, into: Path) -> tuple[set[str], set[str]]:
    """Do to the tree ``into`` what overlayfs noted in ``upper``: returns the files written and the paths gone.

    Nothing is written in place: files of ``into`` may have second names elsewhere. Source: the kernel's
    Documentation/filesystems/overlayfs.rst (a device 0,0 hides a path; an opaque folder what was below it).
    """
    written, gone = set[str](), set[str]()
    for path, about in trees.walk(upper):
        if path == ".":
            continue
        source, target = upper / path, into / path
        if stat.S_ISCHR(about.st_mode) and about.st_rdev == 0:
            gone |= _files_at(target, path)
            resources.remove(target)
        elif stat.S_ISDIR(about.st_mode):
            if target.is_symlink() or not target.is_dir() or _is_opaque(source):
                gone |= _files_at(target, path)
                resources.remove(target)
            target.mkdir(exist_ok=True)
        elif stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode):
            gone |= _files_at(target, path)
            resources.remove(target)
            shutil.copy(source, target, follow_symlinks=False)
            written.add(path)
        else:
            raise BuildError(f"a post-link script made {path}, which is neither a file, a folder nor a link")
    return written, gone - written


def _files_at(path: Path, name: str) -> set[str]:
    if path.is_dir() and not path.is_symlink():
        return {f"{name}/{one}" for one, about in trees.walk(path) if not stat.S_ISDIR(about.st_mode)}
    return {name} if path.is_symlink() or path.exists() else set()


def _is_opaque(folder: Path) -> bool:
    return any(re.fullmatch(r"(trusted|user)\.overlay\.opaque", name) for name in os.listxattr(folder))

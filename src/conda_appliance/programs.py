"""What services run beside their packages: PEX files, zip applications, wheels, git trees, frozen programs.

Each is locked with its SHA-256, looked at before anything is built, and becomes files of the machine like any others:
root's, in ``/opt/appliance/NAME/``. So every builder and every form of the appliance has it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from conda_appliance import git, layers, lazy, resources, sources
from conda_appliance.definition import Files, ImageDefinition
from conda_appliance.definition_services import GitTree, ProgramFile, Service
from conda_appliance.errors import BuildError, HashMismatch, LockError, UsageError
from conda_appliance.lock import Lock, ProgramSection
from conda_appliance.tars import tarfile

if TYPE_CHECKING:
    from elftools.common import exceptions
    from elftools.elf import elffile, gnuversions

    from conda_appliance import pypi, wheel
else:
    exceptions = lazy.module("elftools.common.exceptions")
    elffile = lazy.module("elftools.elf.elffile")
    gnuversions = lazy.module("elftools.elf.gnuversions")
    pypi = lazy.module("conda_appliance.pypi")
    wheel = lazy.module("conda_appliance.wheel")

#: Where programs lie on the machine, each in a folder of its service's name.
PLACE = "/opt/appliance"
#: What stands for the program in a service's command.
MARK = "{program}"
#: What the one file of each kind is called on the machine, after the service.
_SUFFIX = {"pex": ".pex", "zipapp": ".pyz", "frozen": ""}
#: Machines by conda's platforms, as ELF has them (EM_X86_64, EM_AARCH64).
_ELF_MACHINES = {"linux-64": "EM_X86_64", "linux-aarch64": "EM_AARCH64"}


def resolve_wheels(
    image: ImageDefinition, folder: Path, cache: sources.Cache, progress: Callable[[str], None]
) -> dict[str, ProgramSection]:
    """The wheels that services run, as the lock has them: by service. They are installed with their environment's.

    All of them are in ``cache`` afterwards. For the rest see `resolve`.
    """
    return {
        service.name: _lock_file(service, "wheel", service.program.wheel, folder, cache, progress)
        for service in image.services
        if service.program is not None and service.program.wheel is not None
    }


def resolve(
    image: ImageDefinition,
    folder: Path,
    cache: sources.Cache,
    *,
    target: Callable[[str], pypi.Target],
    glibc: str,
    platform: str,
    progress: Callable[[str], None],
) -> dict[str, ProgramSection]:
    """Every other program as the lock has it: by service.

    All of them are in ``cache`` afterwards. ``folder`` is the definition's; ``target`` gives the Python of an
    environment. Raises UsageError for one that cannot run on the machine, HashMismatch for another file than the
    definition names, BuildError when one cannot be had.
    """
    found = {}
    for service in image.services:
        if service.program is None or service.program.kind == "wheel":
            continue
        kind = service.program.kind
        progress(f"locking the {kind} of {service.name}")
        if service.program.git is not None:
            found[service.name] = _lock_git(service.program.git, folder, cache, progress)
            continue
        section = _lock_file(service, kind, getattr(service.program, kind), folder, cache, progress)
        path = cache.verified(section.sha256, section.url)
        if kind == "frozen":
            _require_frozen(f"the frozen program of {service.name}", path, glibc, platform)
        else:
            _require_zip(f"the {kind} of {service.name}", kind, path, target(service.environment))
        found[service.name] = section
    return found


def fetch(
    lock: Lock, folder: Path, cache: sources.Cache, *, offline: bool, progress: Callable[[str], None]
) -> dict[str, Path]:
    """Every program of the lock in the cache, verified: SHA-256 → path.

    Raises HashMismatch naming one that is not the lock's, LockError with ``offline`` when one is missing.
    """
    programs = lock.programs or {}
    downloads = [
        sources.Download(
            name=f"{name}'s {one.kind}", url=_place_of(one.url, folder), sha256=one.sha256, size=one.size
        )
        for name, one in programs.items()
        if one.commit is None
    ]
    sources.fetch(downloads, cache, offline=offline, progress=progress)
    for name, one in programs.items():
        if one.commit is None or cache.has(one.sha256):
            continue
        if offline:
            raise LockError(
                f"--offline, and not in the cache: the repository {one.url} of {name}",
                hint="conda-appliance fetch FILE, once, with a network",
            )
        found = _export(one.url, one.commit, folder, cache, progress)
        if found != one.sha256:
            raise HashMismatch(
                f"the files of {one.url} at {one.commit[:12]}",
                expected=one.sha256,
                found=found,
                hint="conda-appliance lock --upgrade FILE",
            )
    return {one.sha256: cache.verified(one.sha256, f"{name}'s {one.kind}") for name, one in programs.items()}


def place(
    image: ImageDefinition, lock: Lock, files: Mapping[str, Path], store: layers.Store
) -> ImageDefinition:
    """The definition with its programs as ordinary files and commands: what everything after the lock reads.

    ``files`` are the lock's by SHA-256.
    """
    more: list[Files] = []
    services = []
    for service in image.services:
        if service.program is None:
            services.append(service)
            continue
        section = (lock.programs or {})[service.name]
        python = f"{image.prefix_of(service.environment)}/bin/python"
        if section.kind == "wheel":
            script = _script(service, files[section.sha256], section)
            services.append(_settled(service, [script], None))
            continue
        layer = store.get(
            "program",
            {
                "sha256": section.sha256,
                "kind": section.kind,
                "name": service.name,
                "code": layers.code(__file__),
            },
            lambda to, _work, section=section, service=service: _lay(  # type: ignore[misc]
                section, service.name, files[section.sha256], to
            ),
            subject=service.name,
            quiet=True,
        )
        home = f"{PLACE}/{service.name}"
        more.append(Files.model_validate({"from": os.fspath(layer.path), "to": home}))
        single = layer.path / f"{service.name}{_SUFFIX.get(section.kind, '')}"
        if section.kind in ("pex", "zipapp"):
            # The first word is looked up in the environment, wherever an installation has that.
            first = not service.command or service.command.lstrip().startswith(MARK)
            words, starts_in = ["python" if first else python, f"{home}/{single.name}"], None
        elif section.kind == "frozen" and [*layer.path.iterdir()] == [single] and single.is_file():
            words, starts_in = [f"{home}/{single.name}"], None
        else:
            words, starts_in = [home], home
        services.append(_settled(service, words, starts_in))
    if not more and services == list(image.services):
        return image
    return image.model_copy(update={"services": tuple(services), "files": (*image.files, *more)})


def _settled(service: Service, words: list[str], starts_in: str | None) -> Service:
    """A service whose command has its program's ``words`` for `MARK`."""
    command = []
    for word in shlex.split(service.command or MARK):
        if word == MARK:
            command += words
        else:
            command.append(word.replace(MARK, words[-1]))
    return service.model_copy(
        update={
            "program": None,
            "command": shlex.join(command),
            "working_directory": service.working_directory or starts_in,
        }
    )


def _script(service: Service, path: Path, section: ProgramSection) -> str:
    """The console script of a wheel: the one that is called as the service, or its only one."""
    names = wheel.scripts_of(path)
    if service.name in names:
        return service.name
    if len(names) == 1:
        return names[0]
    if service.command and MARK not in service.command:
        return ""  # it says itself what runs
    raise UsageError(
        f"{section.url} has {'no console script' if not names else 'several console scripts: ' + ', '.join(names)}",
        hint=f"say what runs in the command of {service.name}, such as 'python -m MODULE'",
    )


# --- locking ----------------------------------------------------------------------------------------


def _place_of(url: str, folder: Path) -> str:
    """Where a URL or a path from the definition's folder is."""
    return url if "://" in url else str((folder / Path(url).expanduser()).resolve())


def _lock_file(
    service: Service,
    kind: Any,
    file: ProgramFile,
    folder: Path,
    cache: sources.Cache,
    progress: Callable[[str], None],
) -> ProgramSection:
    where = _place_of(file.url, folder)
    sha256 = file.sha256 or resources.sha256_of(Path(where))
    download = sources.Download(name=f"{service.name}'s {kind}", url=where, sha256=sha256, size=0)
    sources.fetch([download], cache, offline=False, progress=progress)
    size = cache.verified(sha256, download.name).stat().st_size
    return ProgramSection(kind=kind, url=file.url, sha256=sha256, size=size)


def _lock_git(
    tree: GitTree, folder: Path, cache: sources.Cache, progress: Callable[[str], None]
) -> ProgramSection:
    sha256 = _export(tree.url, tree.commit, folder, cache, progress)
    size = cache.verified(sha256, tree.url).stat().st_size
    return ProgramSection(kind="git", url=tree.url, sha256=sha256, size=size, commit=tree.commit)


def _export(
    url: str, commit: str, folder: Path, cache: sources.Cache, progress: Callable[[str], None]
) -> str:
    """Bring a commit's files into the cache as a tar; returns its SHA-256."""
    where = _place_of(url, folder) if re.match(r"[./~]", url) else url
    with resources.work_folder(cache.root / "git", f"export-{resources.own_name()}") as work:
        git.export(where, commit, work / "tree.tar", cache=cache.root, progress=progress)
        sha256 = resources.sha256_of(work / "tree.tar")
        cache.blob(sha256).parent.mkdir(parents=True, exist_ok=True)
        (work / "tree.tar").replace(cache.blob(sha256))
    return sha256


def _require_zip(named: str, kind: str, path: Path, target: pypi.Target) -> None:
    """Refuse what could not run on the machine, before the first minute of a build."""
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{named} is no zip file with Python in it", hint="make it with pex, shiv or zipapp")
    with zipfile.ZipFile(path) as archive:
        names = {*archive.namelist()}
        if not names & {"__main__.py", "__main__.pyc"}:
            raise UsageError(f"{named} has no __main__.py: Python cannot run it")
        if kind == "pex":
            if "PEX-INFO" not in names:
                raise UsageError(f"{named} has no PEX-INFO: it is no PEX file", hint="call it a zipapp")
            _require_pex(named, json.loads(archive.read("PEX-INFO")), target)


def _require_pex(named: str, about: Mapping[str, Any], target: pypi.Target) -> None:
    """Source of the format: https://docs.pex-tool.org/ and pex/pex_info.py."""
    constraints = about.get("interpreter_constraints") or []
    specifiers = [SpecifierSet(re.sub(r"^[A-Za-z]*", "", one)) for one in constraints]
    if specifiers and not any(one.contains(target.python) for one in specifiers):
        raise UsageError(
            f"{named} wants Python {' or '.join(constraints)}, and its environment has {target.python}",
            hint="build it for that Python, or let the service run in another environment",
        )
    unfit = [one for one in about.get("distributions") or {} if not pypi.fits(one, target)]
    if unfit:
        raise UsageError(
            f"{named} holds {', '.join(unfit)}, which does not fit a {target.machine} machine with Python "
            f"{target.minor} and glibc {target.glibc}",
            hint="build it for the machine: pex --complete-platform",
        )


def _require_frozen(named: str, path: Path, glibc: str, platform: str) -> None:
    if tarfile.is_tarfile(path):
        return
    try:
        with path.open("rb") as file:
            elf = elffile.ELFFile(file)
            machine = elf["e_machine"]
            needs = [
                name
                for section in elf.iter_sections()
                if isinstance(section, gnuversions.GNUVerNeedSection)
                for _, versions in section.iter_versions()
                for version in versions
                if (name := str(version.name)).startswith("GLIBC_2.")
            ]
    except exceptions.ELFError:
        with path.open("rb") as file:
            if file.read(2) == b"#!":
                return  # a script: what it needs is its own affair
        raise UsageError(f"{named} is no program: neither ELF nor a script, nor a tar of a folder") from None
    if machine != _ELF_MACHINES[platform]:
        raise UsageError(f"{named} is for another machine ({machine}) than {platform}")
    newest = max((tuple(map(int, one[6:].split("."))) for one in needs), default=(0,))
    if newest > tuple(map(int, glibc.split("."))):
        wanted = ".".join(map(str, newest))
        raise UsageError(
            f"{named} needs glibc {wanted}, and the machine has {glibc}",
            hint="freeze it on a system as old as the machine's",
        )


# --- laying down ------------------------------------------------------------------------------------


def _lay(section: ProgramSection, name: str, path: Path, to: Path) -> None:
    """Make the program's folder as it will stand on the machine."""
    to.mkdir(exist_ok=True)
    if section.kind in ("pex", "zipapp") or (section.kind == "frozen" and not tarfile.is_tarfile(path)):
        target = to / f"{name}{_SUFFIX[section.kind]}"
        shutil.copyfile(path, target)
        target.chmod(0o755 if section.kind == "frozen" else 0o644)
    else:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(to, filter="data")
        except (tarfile.TarError, OSError) as error:
            raise BuildError(f"{section.url} cannot be unpacked: {error}") from None
    for one in to.rglob("*"):
        if not one.is_symlink():
            one.chmod(0o755 if one.is_dir() or one.stat().st_mode & 0o100 else 0o644)

"""Solves conda environments for the machine they are for, and links them for their final path; the only rattler.

An environment is linked from outside: its files are written to one folder and carry another path, the one
they will have on the machine, so that nothing there has to install or relocate anything. All that rattler
does runs in a child process: it may crash when the interpreter exits, after its work is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import yaml

import conda_appliance
from conda_appliance import errors, log, prefix_check, process, resources
from conda_appliance.definition import Environment
from conda_appliance.errors import ApplianceError, BuildError, HashMismatch, UsageError
from conda_appliance.lock import CondaPackage

#: Where a channel that is only named is found.
ALIAS = "https://conda.anaconda.org"

#: The Linux version that packages may count on: Debian 11's, the oldest Debian that is still supported.
LINUX = "5.10"


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A channel: ``name`` as the definition spells it, ``url`` where it is (``https://…`` or ``file:///…``)."""

    name: str
    url: str


def channel_url(name: str) -> str:
    """Where a channel is that a definition names: ``conda-forge`` is on anaconda.org, a URL is itself.

    Raises UsageError for ``defaults``, which is several channels, and for a URL with a password or token.
    """
    if name == "defaults":
        raise UsageError(
            "'defaults' stands for several channels of Anaconda, with terms of their own",
            hint="name what you mean: conda-forge, or https://repo.anaconda.com/pkgs/main",
        )
    if "://" not in name:
        return f"{ALIAS}/{name.strip('/')}"
    if re.search(r"://[^/]*@|/t/[^/]+/", name):
        raise UsageError(
            f"the channel URL {re.sub(r'://[^/]*@|(?<=/t/)[^/]+', '…', name)} holds a password or token, "
            "which would land in the lock and the image",
            hint="use a mirror that needs none",
        )
    return name.rstrip("/")


def read_specs(environment: Environment, folder: Path) -> tuple[str, ...]:
    """The match specs of an environment: its ``dependencies``, or those of the environment.yml in ``folder``.

    Raises UsageError naming what the file holds that cannot be honoured: a ``pip:`` section, variables.
    """
    if environment.file is None:
        return environment.dependencies
    path = folder / environment.file
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as an environment.yml: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("dependencies"), list):
        raise UsageError(
            f"{path} is not an environment.yml: it has no list 'dependencies'",
            hint="https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html",
        )
    for item in value["dependencies"]:
        if isinstance(item, dict) and "pip" in item:
            raise UsageError(
                f"{path} has a 'pip' section, and packages from PyPI cannot be locked yet",
                hint="name the conda packages of those projects instead",
            )
        if not isinstance(item, str):
            raise UsageError(f"{path}: the dependency {item!r} is not text", hint="put it in quotes")
    if value.get("variables"):
        raise UsageError(
            f"{path} sets 'variables', which only `conda activate` would read",
            hint="set them as `variables` of the services that need them",
        )
    if value.get("channels"):
        log.info(f"{path}: its 'channels' are not used; the definition's are")
    return tuple(value["dependencies"])


def virtual_packages(glibc: str) -> tuple[tuple[str, str, str], ...]:
    """What a linux-64 machine with this ``glibc`` has, as (name, version, build); nothing of this host."""
    return (
        ("__archspec", "1", "x86_64"),
        ("__glibc", glibc, "0"),
        ("__linux", LINUX, "0"),
        ("__unix", "0", "0"),
    )


def solve(
    specs: Sequence[str], channels: Sequence[Channel], *, glibc: str, platform: str = "linux-64"
) -> tuple[tuple[CondaPackage, ...], tuple[str, ...]]:
    """The packages that satisfy ``specs``, in the order they are linked, and the virtual packages used.

    Channels are in order of priority, strictly: a package comes from the first channel that has its name.
    Raises UsageError when the specs cannot be satisfied (with the solver's explanation) or read, and
    BuildError when a channel cannot be read or a package has no SHA-256 in its channel's index.
    """
    virtual = virtual_packages(glibc)
    found = _in_child(
        "solve",
        {
            "specs": list(specs),
            "channels": [channel.url for channel in channels],
            "platform": platform,
            "virtual": virtual,
            "cache": str(resources.cache_root() / "repodata"),
        },
    )
    if unhashed := [package["url"] for package in found if not package["sha256"]]:
        raise BuildError(
            f"no SHA-256 in the channel's index: {', '.join(unhashed)}",
            hint="index the channel anew, for example with `python -m conda_index FOLDER`",
        )
    packages = tuple(
        CondaPackage(**package, channel=_channel_of(package["url"], channels)) for package in found
    )
    return packages, tuple("=".join(one) for one in virtual)


def link(
    packages: Sequence[CondaPackage],
    archives: Mapping[str, Path],
    *,
    prefix: str,
    into: Path,
    epoch: int,
    work: Path,
    specs: Sequence[str] = (),
) -> None:
    """Link ``packages`` into the new folder ``into`` as an environment that will live at ``prefix``.

    ``archives`` are by SHA-256, which is checked again here. ``epoch`` (seconds since 1970) is every time
    stamp. ``work`` is a folder for what is only needed meanwhile, best on the same file system. ``specs``
    are what was asked for; conda on the machine then knows what its user wanted.

    The same packages give the same tree: modes are 0755 and 0644, records name channels and not this host,
    byte code is compiled and recorded, and nothing is there that no record names.
    Raises HashMismatch naming a package whose bytes are not the lock's; BuildError for packages with
    scripts that want to run when linked, and when the result differs from its own records.
    """
    if into.exists() and any(into.iterdir()):
        raise BuildError(f"{into} is not empty; an environment is linked into a new folder")
    _verify_archives(packages, archives)
    try:
        _install(packages, archives, prefix=prefix, into=into, work=work)
        _refuse_scripts(into)
        _warn_of_clashes(into)
        _normalise(packages, prefix=prefix, into=into, epoch=epoch, specs=specs)
        if findings := prefix_check.check(into):
            more = f" and {len(findings) - 5} more" if len(findings) > 5 else ""
            raise BuildError(
                f"the environment for {prefix} differs from its packages' own records: "
                + "; ".join(findings[:5])
                + more,
                hint="a package holds other files than it lists; rebuild it or leave it out",
            )
    except BaseException:
        resources.remove(into)
        raise


def verify(root: Path, prefix: str) -> list[str]:
    """What is wrong with the environment at ``prefix`` of the file system that stands at ``root``.

    A line for each file that is missing, changed or extra; see `prefix_check`.
    """
    return prefix_check.check(root / prefix.lstrip("/"))


# --- linking ----------------------------------------------------------------------------------------


def _verify_archives(packages: Sequence[CondaPackage], archives: Mapping[str, Path]) -> None:
    # rattler checks no digest of a file it is given, and conda none of a file:// channel.
    for package in packages:
        path = archives.get(package.sha256)
        if path is None:
            raise BuildError(f"{package.filename} was not fetched", hint="conda-appliance fetch FILE")
        found = resources.sha256_of(path)
        if found != package.sha256:
            raise HashMismatch(
                f"{package.filename} ({path})",
                expected=package.sha256,
                found=found,
                hint=f"rm {path}    and run again: it is fetched anew",
            )


def _install(
    packages: Sequence[CondaPackage], archives: Mapping[str, Path], *, prefix: str, into: Path, work: Path
) -> None:
    """Let rattler unpack and link; its package cache is our own and ends with this call.

    So it may use hard links: when the cache is gone, no file of the environment has a second name.
    """
    named = work / "archives"
    given = []
    try:
        for package in packages:
            # rattler tells the format by the file's real name, and the cache names files as it likes.
            path = named / package.subdir / package.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            _hard_link_or_copy(archives[package.sha256], path)
            given.append(str(path))
        _in_child(
            "link",
            {"archives": given, "into": str(into), "prefix": prefix, "cache": str(work / "unpacked")},
        )
    finally:
        resources.remove(named)
        resources.remove(work / "unpacked")


def _hard_link_or_copy(source: Path, to: Path) -> None:
    try:
        os.link(source.resolve(), to)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, to)


def _refuse_scripts(into: Path) -> None:
    """Packages' link scripts would run as root on this host, with a path that is not final: refuse them.

    To leave them out silently would give an environment that is not what its packages promise.
    """
    found = sorted(
        match[1]
        for path in into.glob("bin/.*")
        if (match := re.fullmatch(r"\.(.+)-(?:pre|post)-link\.sh", path.name))
    )
    if found:
        raise BuildError(
            f"these packages want to run a script when they are linked, which is not supported: {', '.join(found)}",
            hint="leave them out, or do what their script does in a playbook role of yours",
        )


def _warn_of_clashes(into: Path) -> None:
    """Say which files more than one package brings: rattler links one and keeps the others aside."""
    aside = into / "__clobbers__"
    for package in sorted(aside.iterdir()) if aside.is_dir() else ():
        paths = sorted(path.relative_to(package).as_posix() for path in _walk(package) if not path.is_dir())
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        log.warn(
            f"{package.name} brings files that another package brings too, and the other's are used: "
            f"{', '.join(paths[:3])}{more}"
        )


def _normalise(
    packages: Sequence[CondaPackage], *, prefix: str, into: Path, epoch: int, specs: Sequence[str]
) -> None:
    """Make the tree say nothing of this host, this moment and rattler's ways."""
    meta = into / "conda-meta"
    records = {package.name: _read_record(meta, package) for package in packages}
    (into / "CACHEDIR.TAG").unlink(missing_ok=True)  # or backup programs would skip the environment
    _compile(into, prefix)
    _record_byte_code(into, records)
    for package in packages:
        _clean_record(records[package.name], package, specs)
        text = json.dumps(records[package.name], indent=2, ensure_ascii=False) + "\n"
        _replace(meta / _record_name(package), text)
    _replace(meta / "history", _history(packages, specs, epoch))
    _settle(into, epoch)


def _record_name(package: CondaPackage) -> str:
    return f"{package.name}-{package.version}-{package.build}.json"


def _read_record(meta: Path, package: CondaPackage) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((meta / _record_name(package)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(f"{package.filename} holds another package than its name and the lock say") from None
    return record


def _clean_record(record: dict[str, Any], package: CondaPackage, specs: Sequence[str]) -> None:
    """Replace what a record says of this host: paths of caches, the URL of a folder."""
    for key in ("extracted_package_dir", "package_tarball_full_path", "link"):
        record.pop(key, None)
    record["fn"] = package.filename
    record["channel"] = _channel_name(package)
    record["url"] = public_url(package)
    record["requested_specs"] = [spec for spec in specs if _spec_name(spec) == package.name]
    record["paths_data"]["paths"].sort(key=lambda entry: entry["_path"])
    record["files"] = [entry["_path"] for entry in record["paths_data"]["paths"]]


def public_url(package: CondaPackage) -> str:
    """A package's URL as a record on the machine may name it.

    A channel that is a folder here does not exist there. conda and rattler want a URL all the same, so it
    reads ``file:///CHANNEL/SUBDIR/FILE``, with the last part of the folder's name alone.
    """
    if re.match(r"https?://", package.url):
        return package.url
    return f"file:///{_channel_name(package)}/{package.subdir}/{package.filename}"


def _channel_name(package: CondaPackage) -> str:
    if re.match(r"https?://", package.url):
        return package.channel
    return Path(package.channel.removeprefix("file://")).name or "local"


def _spec_name(spec: str) -> str:
    """The package that a match spec such as ``conda-forge::numpy >=2`` is about."""
    match = re.match(r"\s*([A-Za-z0-9_.-]+)", spec.rpartition("::")[2])
    return match[1].lower() if match else ""


def _compile(into: Path, prefix: str) -> None:
    """Compile the standard library and site-packages with the environment's own Python.

    The byte code names the final path and is never compared with its source's time (PEP 552's
    unchecked-hash): a machine's first start is a fast one, and a read-only environment stays fast.
    Files that are no Python (templates, tests of bad syntax) stay uncompiled, as in any environment.
    """
    python = into / "bin/python"
    folders = [folder for folder in sorted(into.glob("lib/python3.*")) if not folder.is_symlink()]
    if not python.exists() or not folders:
        return
    # -I -S: no user's settings, and no package's .pth file, run on this host.
    command: list[process.Argument] = [python, "-I", "-S", "-B", "-m", "compileall", "-q", "-f", "-j0"]
    command += ["-s", into, "-p", prefix, "--invalidation-mode", "unchecked-hash", *folders]
    done = process.run(command, check=False)
    if done.returncode not in (0, 1) or not any(folders[0].rglob("*.pyc")):
        raise BuildError(
            f"the Python of the environment for {prefix} cannot compile it (status {done.returncode}):\n"
            + (done.stdout + done.stderr)[-2000:],
            hint="it must be a linux-64 Python 3.9 or newer that runs on this host",
        )


def _record_byte_code(into: Path, records: Mapping[str, dict[str, Any]]) -> None:
    """Record every .pyc with the package of its source; renew the digests of those a package brought."""
    entries = {
        entry["_path"]: (record, entry)
        for record in records.values()
        for entry in record["paths_data"]["paths"]
    }
    for path in sorted(into.rglob("*.pyc")):
        name = path.relative_to(into).as_posix()
        data = path.read_bytes()
        about = {"sha256_in_prefix": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
        if name in entries:
            entries[name][1].update(about)
            continue
        source = f"{path.parent.parent.relative_to(into).as_posix()}/{path.name.rsplit('.', 2)[0]}.py"
        if source in entries:
            record = entries[source][0]
            record["paths_data"]["paths"].append({"_path": name, "path_type": "pyc_file", **about})


def _history(packages: Sequence[CondaPackage], specs: Sequence[str], epoch: int) -> str:
    """conda's own log of an environment, in which it looks up what its user asked for."""
    when = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"==> {when} <==", f"# cmd: conda-appliance {conda_appliance.__version__}"]
    lines += [
        f"+{_channel_name(package)}/{package.subdir}::{package.name}-{package.version}-{package.build}"
        for package in sorted(packages, key=lambda package: package.name)
    ]
    if specs:
        lines.append(f"# update specs: {json.dumps(list(specs))}")
    return "\n".join(lines) + "\n"


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def _settle(folder: Path, epoch: int) -> None:
    """Give everything below ``folder``, and itself, its plain mode and one time."""
    for path in _walk(folder):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below ``folder``, then itself: a folder comes after what it holds."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
        else:
            yield Path(entry.path)
    yield folder


# --- the child process ------------------------------------------------------------------------------


def _in_child(task: str, given: dict[str, Any]) -> Any:
    """Run one of ``_TASKS`` in a process of its own; its answer, or its error raised here."""
    package = str(Path(conda_appliance.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = process.run(
        [sys.executable, "-P", "-m", "conda_appliance.conda", task],
        input=json.dumps(given),
        env={"PYTHONPATH": path},
    )
    result = json.loads(done.stdout.rpartition(_ANSWER)[2])
    if "error" in result:
        kind = getattr(errors, result["error"])
        raise kind(result["message"], hint=result["hint"])
    return result["value"]


#: What stands before the child's answer on its standard output, after whatever rattler may print.
_ANSWER = "\nanswer: "


def _child(task: str) -> NoReturn:
    """The other side of `_in_child`: leaves at once, past the interpreter's exit, where rattler may crash."""
    result: dict[str, Any]
    try:
        result = {"value": asyncio.run(_TASKS[task](json.load(sys.stdin)))}
    except ApplianceError as error:
        result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except BaseException as error:  # a panic in rattler's Rust is no Exception
        message = f"rattler could not {task}: {type(error).__name__}: {error}"
        result = {"error": "BuildError", "message": message, "hint": ""}
    sys.stdout.write(_ANSWER + json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


async def _solve(given: dict[str, Any]) -> list[dict[str, Any]]:
    # Imported here and in `_link` alone: the parent never loads rattler.
    import rattler
    from rattler.exceptions import GatewayError, InvalidMatchSpecError, SolverError
    from rattler.package.build_string import BuildString

    specs = []
    for text in given["specs"]:
        try:
            specs.append(rattler.MatchSpec(text))
        except InvalidMatchSpecError as error:
            raise UsageError(
                f"{text!r} is not a package specification: {error}",
                hint="write for example `numpy`, `python 3.13.*` or `flask >=3,<4`",
            ) from None
    virtual = [
        rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), BuildString(build))
        for name, version, build in given["virtual"]
    ]
    try:
        records = await rattler.solve(
            given["channels"],
            specs,
            platforms=[given["platform"], "noarch"],
            gateway=rattler.Gateway(cache_dir=Path(given["cache"])),
            virtual_packages=virtual,
        )
    except SolverError as error:
        raise UsageError(
            f"no set of packages satisfies {', '.join(given['specs'])}:\n{str(error).strip()}",
            hint=f"channels searched: {', '.join(given['channels'])}",
        ) from None
    except GatewayError as error:
        raise BuildError(
            f"a channel cannot be read: {error}",
            hint="check its name and the network; a folder needs noarch/ and linux-64/ with a repodata.json",
        ) from None
    by_name = {record.name.normalized: record for record in records}
    plain: list[rattler.PackageRecord] = list(records)
    ordered = [by_name[one.name.normalized] for one in rattler.PackageRecord.sort_topologically(plain)]
    return [
        {
            "name": record.name.normalized,
            "version": str(record.version),
            "build": str(record.build),
            "subdir": record.subdir,
            "url": record.url,
            "sha256": record.sha256.hex() if record.sha256 else "",
            "size": record.size or 0,
        }
        for record in ordered
    ]


async def _link(given: dict[str, Any]) -> None:
    import rattler
    from rattler.exceptions import InstallerError

    records = [
        await rattler.RepoDataRecord.from_package_archive(Path(archive)) for archive in given["archives"]
    ]
    try:
        await rattler.install(
            records,
            target_prefix=given["into"],
            alternative_target_prefix=given["prefix"],
            cache_dir=given["cache"],
            platform=rattler.Subdir("linux-64"),
            execute_link_scripts=False,
            show_progress=False,
        )
    except InstallerError as error:
        raise BuildError(f"the packages cannot be linked: {error}") from None


_TASKS = {"solve": _solve, "link": _link}


def _channel_of(url: str, channels: Sequence[Channel]) -> str:
    """The name of the channel a package came from."""
    for channel in channels:
        if url.startswith(channel.url.rstrip("/") + "/"):
            return channel.name
    raise BuildError(f"{url} belongs to none of the channels asked")


if __name__ == "__main__":
    _child(sys.argv[1])

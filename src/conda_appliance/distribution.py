"""Conda distributions: which installer a definition means, and what it lays down when it runs in the machine's system.

The contract is that of constructor (https://conda.github.io/constructor/), which made Miniforge's, Miniconda's and many
companies' own: ``sh NAME.sh -b -p PREFIX`` asks nothing and makes a new environment with conda in it. It compares what
it carries by MD5 and only warns: that is why its SHA-256 is compared before it is run.
"""

from __future__ import annotations

import json
import re
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from conda_appliance import (
    bytecode,
    conda,
    layers,
    linking,
    log,
    namespace,
    prefix_check,
    process,
    resources,
    sources,
    transport,
    trees,
)
from conda_appliance.definition_conda import Distribution
from conda_appliance.errors import BuildError, CommandFailed, HashMismatch, UsageError
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaPackage, InstallerSection

MINIFORGE = "https://github.com/conda-forge/miniforge/releases/download"
#: Says which release is the newest (https://docs.github.com/rest/releases/releases#get-the-latest-release).
MINIFORGE_LATEST = "https://api.github.com/repos/conda-forge/miniforge/releases/latest"
MINICONDA = "https://repo.anaconda.com/miniconda"

#: What an installer leaves beside the environment, all of which can be had again: the unpacked packages, what removes
#: the environment, notes on its own run.
_LEFT = ("pkgs", "_conda", "_conda.exe", ".installer.info", "install.log", ".nonadmin", "_internal")

#: What it finds in its environment.
_VARIABLES = (
    *("HOME=/root", "LANG=C.UTF-8", "TERM=dumb"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    *("CONDA_OFFLINE=true", "CONDA_PLUGINS_AUTO_ACCEPT_TOS=yes"),
)


def locate(
    asked: Distribution,
    folder: Path,
    cache: sources.Cache,
    progress: Callable[[str], None],
    *,
    machine: str = "x86_64",
) -> InstallerSection:
    """The installer that a definition in ``folder`` asks for, in the cache, with its digest. Needs the network.

    ``machine`` is what uname(1) says where it will run.

    The digest of a release is its publisher's: Miniforge's stands beside the file, Miniconda's in a list of all. Raises
    UsageError for a release that there is not, BuildError when nobody answers, HashMismatch for other bytes.
    """
    if asked.installer is not None:
        url, sha256, name, version = asked.installer, asked.sha256 or "", Path(asked.installer).stem, ""
        if "://" not in url:
            path = folder / Path(url).expanduser()
            found = resources.sha256_of(path)
            url_of = path.resolve().as_uri()
            if sha256 and found != sha256:
                raise HashMismatch(
                    str(path),
                    expected=sha256,
                    found=found,
                    hint="correct the definition, or find out who changed it",
                )
            sha256 = found
        else:
            url_of = url
    else:
        assert asked.name is not None
        version, url, sha256 = _RELEASES[asked.name](asked, progress, machine)
        name, url_of = asked.name, url
    progress(f"fetching {url_of.rpartition('/')[2]}")
    sources.fetch(
        [sources.Download(name=Path(url).name, url=url_of, sha256=sha256, size=0)],
        cache,
        offline=False,
        progress=progress,
    )
    size = cache.verified(sha256, Path(url).name).stat().st_size
    return InstallerSection(name=name, version=version, url=url, sha256=sha256, size=size)


def _told(url: str) -> dict[str, Any]:
    """The JSON object at ``url``. Raises BuildError where something else is, such as the page of a proxy."""
    try:
        value = json.loads(transport.read_url(url))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BuildError(
            f"{url} is not what it was", hint="look at it with a browser: a proxy may answer instead"
        )
    return value


def _miniforge(asked: Distribution, progress: Callable[[str], None], machine: str) -> tuple[str, str, str]:
    version = asked.version
    if version is None:
        progress("which Miniforge is the newest?")
        version = str(_told(MINIFORGE_LATEST).get("tag_name") or "")
        if not version:
            raise BuildError(f"{MINIFORGE_LATEST} names no release", hint="name one: version: 25.9.1-0")
    url = f"{(asked.mirror or MINIFORGE).rstrip('/')}/{version}/Miniforge3-{version}-Linux-{machine}.sh"
    text = transport.read_url(f"{url}.sha256").decode("ascii", "replace")
    if (match := re.match(r"([0-9a-f]{64})\b", text)) is None:
        raise BuildError(f"{url}.sha256 is no SHA-256: {text[:60]!r}", hint="look at the mirror")
    return version, url, match[1]


def _miniconda(asked: Distribution, progress: Callable[[str], None], machine: str) -> tuple[str, str, str]:
    base = (asked.mirror or MINICONDA).rstrip("/")
    progress("reading Miniconda's list of releases")
    found = {
        match[1]: about
        for name, about in _told(f"{base}/.files.json").items()
        if (match := re.fullmatch(rf"Miniconda3-(py\d+_\d[\w.-]*)-Linux-{machine}\.sh", name))
        and isinstance(about, dict)
        and {"mtime", "sha256"} <= {*about}
    }
    if not found:
        raise BuildError(f"{base}/.files.json names no Miniconda3 for Linux", hint="look at the mirror")
    version = asked.version or max(found, key=lambda one: float(found[one]["mtime"]))
    if version not in found:
        some = sorted(found, key=lambda one: float(found[one]["mtime"]))[-5:]
        raise UsageError(f"there is no Miniconda {version}", hint=f"the last ones are {', '.join(some)}")
    return version, f"{base}/Miniconda3-{version}-Linux-{machine}.sh", str(found[version]["sha256"])


_RELEASES = {"miniforge": _miniforge, "miniconda": _miniconda}


def tree(
    section: InstallerSection,
    installer: Path,
    *,
    prefix: str,
    system: Callable[[], Path],
    store: Store,
    epoch: int,
    loader: Callable[[], Sequence[process.Argument]] = tuple,
    progress: Callable[[str], None] = lambda _text: None,
) -> Layer:
    """The environment that ``installer`` makes at ``prefix``: from the cache, or made now by running it.

    It runs in the root file system ``system``, which is only read, without a network and with few of root's rights.
    The same installer gives the same tree: byte code is compiled anew, records and times say nothing of the run, what
    can be had again is left out, and each file that no record names stands in the environment's own list
    (`prefix_check.INSTALLED`). ``loader`` gives what `linking.link` calls so.
    Raises BuildError with the installer's words when it fails or leaves no environment.
    """
    parts: layers.Parts = {
        "installer": section.sha256,
        "prefix": prefix,
        "epoch": str(epoch),
        "code": layers.code(
            __file__, *(str(module.__file__) for module in (bytecode, linking, namespace, prefix_check))
        ),
    }

    def make(to: Path, work: Path) -> None:
        progress(f"running {section.filename} in the machine's system, for {prefix}")
        made = _run(section, installer, prefix, system(), work, progress)
        _keep_licences(made)
        for name in _LEFT:
            resources.remove(made / name)
        trees.settle(made, epoch)
        made.rename(to)
        linking.settle_installed(
            packages_of(to),
            into=to,
            prefix=prefix,
            epoch=epoch,
            store=store,
            cmd=f"{section.filename} -b -p {prefix}",
            loader=loader(),
        )
        if findings := prefix_check.check(to, (".condarc",)):
            raise BuildError(
                f"{section.filename} left an environment that differs from its own records: {trees.some(findings)}",
                hint="it is damaged, or does more than constructor's installers do",
            )

    return store.get("distribution", parts, make, subject=section.name, progress=progress)


def packages_of(environment: Path) -> tuple[CondaPackage, ...]:
    """The packages of an environment as a lock names them, by its own records, sorted by name."""
    return tuple(
        CondaPackage(
            name=record["name"],
            version=record["version"],
            build=record["build"],
            subdir=record["subdir"],
            channel=_channel(record),
            url=record["url"],
            sha256=record.get("sha256") or "",
            size=record.get("size") or 0,
        )
        for record in sorted(prefix_check.records(environment), key=lambda one: str(one["name"]))
    )


def _channel(record: Mapping[str, Any]) -> str:
    """A record's channel as people name it: conda-forge's by its name, others by their URL without the platform."""
    url = str(record.get("channel") or record["url"].rpartition("/")[0]).rstrip("/")
    return url.removesuffix(f"/{record['subdir']}").removeprefix(f"{conda.ALIAS}/")


def _run(
    section: InstallerSection,
    installer: Path,
    prefix: str,
    system: Path,
    work: Path,
    progress: Callable[[str], None],
) -> Path:
    """Run the installer over ``system``; the folder in ``work`` with the environment that it made."""
    folder = work / "installer"
    folder.mkdir(parents=True)
    # It reads itself, and refuses to be called by a name that does not end in .sh.
    resources.hard_link_or_copy(installer, folder / "installer.sh")
    mounted, variables = namespace.script(work, [system], upper="upper", payload=folder, system=True)
    said: list[str] = []

    def hear(line: str) -> None:
        if text := line.strip():
            said.append(text)
            progress(f"{section.filename}: {text[:100]}")

    upper = work / "upper"
    try:
        process.run(
            namespace.entered(mounted, [*_VARIABLES, "sh", "/run/payload/installer.sh", "-b", "-p", prefix]),
            env=variables,
            on_line=hear,
            orphaned=signal.SIGKILL,
        )
    except CommandFailed as error:
        last = "\n".join(said[-12:])
        raise BuildError(
            f"{section.filename} failed with status {error.returncode} when it ran for {prefix}:\n{last}",
            hint="it must be an installer for the machine's Linux that constructor made, and one that needs no network",
        ) from None
    made = upper / prefix.lstrip("/")
    if not (made / "conda-meta").is_dir():
        raise BuildError(
            f"{section.filename} said that all went well, and there is no conda environment at {prefix}",
            hint="is it an installer that constructor made?",
        )
    namespace.settle_upper(made)
    above = {prefix.lstrip("/"), *map(str, PurePosixPath(prefix[1:]).parents)}
    other = [
        f"/{path}"
        for path, about in trees.walk(upper)
        if not f"{path}/".startswith(f"{prefix[1:]}/")
        and path not in above
        and not stat.S_ISDIR(about.st_mode)
    ]
    if other:
        log.warn(f"{section.filename} wrote outside {prefix}, which is left out: {trees.some(other)}")
    return made


def _keep_licences(environment: Path) -> None:
    """Keep the licence texts that an installer leaves in its unpacked packages alone."""
    for record in prefix_check.records(environment):
        unpacked = environment / "pkgs" / f"{record['name']}-{record['version']}-{record['build']}"
        linking.keep_licences(unpacked, record["name"], environment)

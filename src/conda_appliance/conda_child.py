"""The only rattler: solves and links, as a process of its own, ``python -m conda_appliance.conda_child TASK``.

rattler may crash when the interpreter exits, after its work is done. What is asked comes as JSON on standard input, and
the answer goes as JSON to standard output. Little is imported here, and more by the tasks that need it, so that a small
change is linked at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from conda_appliance.errors import ApplianceError, BuildError, UsageError

#: What stands before the answer on standard output, after whatever rattler may print.
ANSWER = "\nanswer: "


def _child(task: str) -> NoReturn:
    """Do one of ``_TASKS`` and leave at once, past the interpreter's exit, where rattler may crash."""
    import asyncio  # the module is imported for its names alone, too, and by every build

    result: dict[str, Any]
    try:
        result = {"value": asyncio.run(_TASKS[task](json.load(sys.stdin)))}
    except ApplianceError as error:
        result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except BaseException as error:  # a panic in rattler's Rust is no Exception
        message = f"rattler could not {task}: {type(error).__name__}: {error}"
        result = {"error": "BuildError", "message": message, "hint": ""}
    sys.stdout.write(ANSWER + json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


async def _solve(given: dict[str, Any]) -> list[dict[str, Any]]:
    # Before rattler is there: it reads the variable once.
    _hand_over(given["credentials"])
    # Imported here and in `_link` alone: who starts this process never loads rattler.
    import rattler
    from rattler.exceptions import GatewayError, InvalidMatchSpecError, SolverError
    from rattler.networking import AuthenticationMiddleware, Client, MirrorMiddleware, RetryMiddleware
    from rattler.package.build_string import BuildString

    from conda_appliance import contract, credentials

    specs = []
    for text in given["specs"]:
        try:
            specs.append(rattler.MatchSpec(text))
        except InvalidMatchSpecError as error:
            raise UsageError(
                f"{text!r} is not a package specification: {error}",
                hint="write for example `numpy`, `python 3.13.*` or `flask >=3,<4`",
            ) from None
    mirrors = {url: [mirror] for url, mirror in given["mirrors"].items()}
    # Each acts on what the one before it made of the request: credentials are those of the mirror that is asked.
    client = Client([RetryMiddleware(), MirrorMiddleware(mirrors), AuthenticationMiddleware()])
    gateway = rattler.Gateway(cache_dir=Path(given["cache"]), client=client)

    async def ask(virtual: Iterable[Sequence[str]]) -> list[rattler.RepoDataRecord]:
        return await rattler.solve(
            given["channels"],
            specs,
            platforms=[given["platform"], "noarch"],
            gateway=gateway,
            virtual_packages=[
                rattler.GenericVirtualPackage(
                    rattler.PackageName(name), rattler.Version(version), BuildString(build)
                )
                for name, version, build in virtual
            ],
            constraints=[rattler.MatchSpec(text) for text in given["constraints"]],
        )

    try:
        records = await ask(given["virtual"])
    except SolverError as error:
        # Is it the machine's fault alone? One that has everything tells which packages want more than it promises.
        for better in contract.better(given["virtual"]):
            try:
                found = [_about(record) for record in await ask(better)]
            except SolverError:
                continue
            if unmet := _unmet_of(found, given["virtual"], given["platform"]):
                raise contract.more_than_promised(unmet, given["virtual"]) from None
        raise UsageError(
            f"no set of packages satisfies {', '.join(given['specs'])}:\n{str(error).strip()}",
            hint=f"channels searched: {', '.join(given['channels'])}",
        ) from None
    except GatewayError as error:
        refused = re.search(r"\b(401|403|407)\b", str(error))
        usual = "check its name and the network; a folder needs noarch/ and its platform's folder with a repodata.json"
        raise BuildError(
            f"a channel cannot be read: {error}", hint=credentials.HINT if refused else usual
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


def _hand_over(by_host: dict[str, Any]) -> None:
    """Give rattler these credentials by host, and no others: in a file that is in memory alone (memfd_create(2))."""
    file = os.memfd_create("credentials")
    os.write(file, json.dumps(by_host).encode())
    os.environ["RATTLER_AUTH_FILE"] = f"/proc/self/fd/{file}"
    os.environ["NETRC"] = os.devnull
    os.environ["HOME"] = "/nonexistent"  # where rattler would look for more, which `credentials` has done


async def _link(given: dict[str, Any]) -> None:
    import rattler
    from rattler.exceptions import InstallerError

    records = [
        await rattler.RepoDataRecord.from_package_archive(Path(archive)) for archive in given["archives"]
    ]
    records += [rattler.PrefixRecord.from_path(Path(path)) for path in given["records"]]
    try:
        await rattler.install(
            records,
            target_prefix=given["into"],
            alternative_target_prefix=given["prefix"],
            cache_dir=given["cache"],
            platform=rattler.Subdir(given["platform"]),
            execute_link_scripts=False,
            show_progress=False,
        )
    except InstallerError as error:
        raise BuildError(f"the packages cannot be linked: {error}") from None


async def _read_lock(given: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    import rattler

    path = given["path"]
    try:
        lock = rattler.LockFile.from_path(Path(path))
    except BaseException as error:  # what is no lock may panic in rattler's Rust
        raise UsageError(
            f"{path} cannot be read as a pixi.lock, conda-lock.yml or @EXPLICIT file: {str(error).strip()}"
        ) from None
    environments = dict(lock.environments())
    environment = environments.get(given["environment"])
    if environment is None:
        raise UsageError(
            f"{path} has no environment {given['environment']!r}; it has {', '.join(sorted(environments))}",
            hint="name it by `select`",
        )
    platform = next((one for one in environment.platforms() if str(one) == given["platform"]), None)
    if platform is None:
        has = ", ".join(str(one) for one in environment.platforms()) or "none"
        raise UsageError(
            f"{path} is not for {given['platform']}; its platforms: {has}", hint="lock it for the machine's"
        )
    found: dict[str, list[dict[str, str]]] = {"conda": [], "pypi": []}
    for package in environment.packages(platform) or []:
        try:
            hashes = package.hashes
            known = {"sha256": hashes.sha256, "md5": hashes.md5} if hashes else {}
        except AttributeError:  # rattler 0.28 so says that there are none
            known = {}
        where = str(package.location)
        kind = "pypi" if type(package).__name__.startswith("Pypi") else "conda"
        if kind == "conda" and "://" not in where:
            where = Path(where).resolve().as_uri()
        found[kind].append(
            {
                "url": where,
                **{name: ((value := known.get(name)) and value.hex()) or "" for name in ("sha256", "md5")},
            }
        )
    return found


async def _unmet(given: dict[str, Any]) -> list[list[str]]:
    return _unmet_of(given["packages"], given["virtual"], given["platform"])


def _unmet_of(
    packages: Iterable[Mapping[str, Any]], virtual: Iterable[Sequence[str]], platform: str
) -> list[list[str]]:
    """What the packages need of a machine with these virtual packages that it has not: [package, match spec]."""
    import rattler
    from rattler.package.build_string import BuildString

    has = {
        name: rattler.PackageRecord(
            name=name,
            version=version,
            build=BuildString(build),
            build_number=0,
            subdir=platform,
            arch=None,
            platform=None,
        )
        for name, version, build in virtual
    }
    unmet = []
    for package in sorted(packages, key=lambda one: str(one["name"])):
        for key in ("depends", "constrains"):
            for text in map(str, package.get(key) or ()):
                record = has.get(text.split()[0])
                # What only constrains asks nothing of a machine that has no such thing.
                known = record is not None and rattler.MatchSpec(text).matches(record)
                if text.startswith("__") and not known and (record is not None or key == "depends"):
                    unmet.append([str(package["name"]), text])
    return unmet


def _about(record: Any) -> dict[str, Any]:
    return {"name": record.name.normalized, "depends": record.depends, "constrains": record.constrains}


_TASKS = {"solve": _solve, "link": _link, "read_lock": _read_lock, "unmet": _unmet}


if __name__ == "__main__":
    _child(sys.argv[1])

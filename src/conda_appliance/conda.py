"""Channels, and what is asked of them → the packages: solved for what a machine promises, not for this host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conda_appliance import (
    credentials,
    platforms,
    rattler,
    resources,
    transport,
)
from conda_appliance.contract import Contract, more_than_promised
from conda_appliance.errors import BuildError, UsageError
from conda_appliance.lock import CondaPackage

#: Where a channel that is only named is found.
ALIAS = "https://conda.anaconda.org"


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A channel: ``name`` as the definition spells it, ``url`` where it is (``https://…`` or ``file:///…``).

    ``mirrors`` are URLs that its files are taken from instead.
    """

    name: str
    url: str
    mirrors: tuple[str, ...] = ()


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
    credentials.require_clean(name, "the channel URL")
    return name.rstrip("/")


def mirrors_of(url: str, channels: Sequence[Channel]) -> tuple[str, ...]:
    """Where a channel's file is taken from instead of ``url``; nothing where its channel has no mirrors."""
    for channel in channels:
        home = channel.url.rstrip("/")
        if channel.mirrors and url.startswith(f"{home}/"):
            return tuple(mirror.rstrip("/") + url[len(home) :] for mirror in channel.mirrors)
    return ()


def _answering(channel: Channel, platform: str) -> str:
    """The first mirror of a channel that answers; a single one is taken as it is, and rattler tries it again.

    Raises BuildError telling why none does.
    """
    if len(channel.mirrors) == 1:
        return channel.mirrors[0]
    reasons = []
    for mirror in channel.mirrors:
        # A channel has one of these at least, and most have the first.
        for name in ("noarch/repodata.json", "noarch/repodata.json.zst", f"{platform}/repodata.json"):
            said = transport.answers(f"{mirror}/{name}")
            if not said:
                return mirror
            if "404" not in said:
                break
        reasons.append(f"{mirror}: {said}")
    raise BuildError(
        f"no mirror of the channel {channel.name} answers:\n" + "\n".join(reasons), hint=credentials.HINT
    )


def solve(
    specs: Sequence[str],
    channels: Sequence[Channel],
    *,
    contract: Contract,
    platform: str = platforms.DEFAULT,
    constraints: Sequence[str] = (),
) -> tuple[tuple[CondaPackage, ...], tuple[str, ...]]:
    """The packages that satisfy ``specs``, in the order they are linked, and the virtual packages used.

    Channels are in order of priority, strictly: a package comes from the first channel that has its name.
    ``constraints`` are match specs of packages that may be left out, but if they are needed must be so. Of the machine
    nothing is known but its ``contract``. Raises UsageError when the specs cannot be satisfied (with the packages that
    need more of the machine, if only that is why, or else with the solver's explanation) or read, and
    BuildError when a channel cannot be read or a package has no SHA-256 in its channel's index.
    """
    mirrors = {channel.url: _answering(channel, platform) for channel in channels if channel.mirrors}
    plain = [channel.url for channel in channels if not channel.mirrors]
    found = rattler.in_child(
        "solve",
        {
            "specs": list(specs),
            "constraints": list(constraints),
            "channels": [channel.url for channel in channels],
            "mirrors": mirrors,
            "credentials": credentials.of_hosts([*mirrors.values(), *plain]),
            "platform": platform,
            "virtual": contract.virtual_packages,
            "cache": str(resources.cache_root() / "repodata"),
        },
        network=True,
    )
    if unhashed := [package["url"] for package in found if not package["sha256"]]:
        raise BuildError(
            f"no SHA-256 in the channel's index: {', '.join(unhashed)}",
            hint="index the channel anew, for example with `python -m conda_index FOLDER`",
        )
    packages = tuple(
        CondaPackage(**package, channel=_channel_of(package["url"], channels)) for package in found
    )
    return packages, contract.locked


def read_lock(path: Path, environment: str, platform: str) -> dict[str, list[dict[str, str]]]:
    """What a pixi.lock or conda-lock.yml names for an environment and platform: ``conda`` and ``pypi``, each a list of
    ``url``, ``sha256`` and ``md5``.

    Raises UsageError for what is no such lock, or has no such environment or platform.
    """
    found: dict[str, list[dict[str, str]]] = rattler.in_child(
        "read_lock", {"path": str(path), "environment": environment, "platform": platform}
    )
    return found


def require_virtual(packages: Sequence[Mapping[str, Any]], *, contract: Contract, platform: str) -> None:
    """Raise UsageError naming the packages that need more of the machine than its ``contract`` has, and what.

    Of each package its ``name``, ``depends`` and ``constrains``, as its ``info/index.json`` has them (CEP 30).
    """
    given = {"packages": list(packages), "virtual": contract.virtual_packages, "platform": platform}
    if unmet := rattler.in_child("unmet", given):
        raise more_than_promised(unmet, contract.virtual_packages)


def _channel_of(url: str, channels: Sequence[Channel]) -> str:
    """The name of the channel a package came from."""
    for channel in channels:
        if url.startswith(channel.url.rstrip("/") + "/"):
            return channel.name
    raise BuildError(f"{url} belongs to none of the channels asked")

"""Where a definition's channels are on this host, and their packages in a lock.

Packages of a channel that is a folder (the starter channel too) stand in the lock as ``CHANNEL/SUBDIR/FILE``, so that a
lock names no path of the machine that wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from conda_appliance import conda, lazy, resources, sources
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import LockError, UsageError
from conda_appliance.lock import CondaPackage

if TYPE_CHECKING:
    from conda_appliance import channel
else:
    channel = lazy.module("conda_appliance.channel")

#: The channel that conda-appliance builds itself, from PyPI and Debian alone.
STARTER = "starter"


def channels(
    image: ImageDefinition,
    path: Path,
    cache: sources.Cache,
    progress: Callable[[str], None],
    *,
    refresh: bool = False,
) -> tuple[conda.Channel, ...]:
    """The definition's channels with their URLs; those of recipes are built now if they are not yet.

    ``refresh``: they take what is newest in Debian.
    """
    found = []
    for name in image.conda.channels:
        if name == STARTER:
            # By the file that makes it one: a project's folder of that name may be anything.
            recipes = resources.find("channel/channel.yaml", resources.project(path)).parent
            folder = channel.build(
                recipes, cache.root, image.platform.name, on_progress=progress, refresh=refresh
            )
            found.append(conda.Channel(name=name, url=folder.as_uri()))
        elif is_local(name):
            folder = (path.resolve().parent / Path(name).expanduser()).resolve()
            if (folder / "channel.yaml").is_file():
                folder = channel.build(
                    folder, cache.root, image.platform.name, on_progress=progress, refresh=refresh
                )
            if not list(folder.glob("*/repodata.json*")):
                raise UsageError(
                    f"the channel {name} ({folder}) has no repodata.json in {image.platform.name}/ or noarch/",
                    hint="a channel is a folder as conda-index, rattler-index or conda-build leave it, "
                    "or one of recipes with a channel.yaml",
                )
            found.append(conda.Channel(name=name, url=folder.as_uri()))
        else:
            url = conda.channel_url(name)
            found.append(conda.Channel(name=name, url=url, mirrors=_mirrors(image).get(url, ())))
    return tuple(found)


def _mirrors(image: ImageDefinition) -> dict[str, tuple[str, ...]]:
    """The mirrors of channels, by the channels' URLs."""
    return {
        conda.channel_url(name): tuple(url.rstrip("/") for url in urls)
        for name, urls in image.conda.mirrors.items()
    }


def mirrored(image: ImageDefinition) -> tuple[conda.Channel, ...]:
    """The channels that have mirrors, those that another tool's lock names among them."""
    return tuple(
        conda.Channel(name=url, url=url, mirrors=mirrors) for url, mirrors in _mirrors(image).items()
    )


def is_local(name: str) -> bool:
    """Whether a channel is a folder of this machine."""
    return name == STARTER or name.startswith((".", "/", "~"))


def require_in_folders(packages: Iterable[CondaPackage], places: Mapping[str, str], path: Path) -> None:
    """Raise LockError naming the packages that are in their folder channels no more, or never were on this host."""
    gone = [
        f"{package.channel}/{package.subdir}/{package.filename}"
        for package in packages
        if package.channel in places and not Path(unquote(urlsplit(absolute(package, places)).path)).is_file()
    ]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        raise LockError(
            f"the lock names what its channel has not got here: {', '.join(gone[:3])}{more}. A channel that a host"
            " builds has the Debian packages of its day and the work of its own compiler",
            hint=f"conda-appliance lock --upgrade {path}",
        )


def portable(package: CondaPackage, local: Mapping[str, str]) -> CondaPackage:
    """The package as a lock names it; ``local`` are the channels that are folders: URL → name."""
    for url, name in local.items():
        if package.url.startswith(f"{url.rstrip('/')}/"):
            return package.model_copy(update={"url": f"{name}{package.url[len(url.rstrip('/')) :]}"})
    return package


def absolute(package: CondaPackage, places: Mapping[str, str]) -> str:
    """The URL of a locked package here; ``places`` are the channels that are folders: name → URL."""
    if "://" in package.url or package.channel not in places:
        return package.url
    return f"{places[package.channel].rstrip('/')}/{package.subdir}/{package.filename}"

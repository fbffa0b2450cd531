"""An environment of a pixi workspace (pixi.toml, or pyproject.toml's ``tool.pixi``) → what it asks for.

Source: https://pixi.sh/latest/reference/pixi_manifest/. Tasks and what is about developing are not read; what would
change the environment and cannot be honoured is refused by its name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conda_appliance.errors import UsageError

#: The tables of ``target`` that a platform takes, the most general first.
_TARGETS = {"linux-64": ("unix", "linux", "linux-64"), "linux-aarch64": ("unix", "linux", "linux-aarch64")}
#: Tables that would change an environment in a way that a definition has no word for.
_REFUSED = ("build-dependencies", "host-dependencies", "constraints", "pypi-options")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """``specs`` are match specs, ``pip`` requirements, ``channels`` the workspace's."""

    specs: tuple[str, ...]
    pip: tuple[str, ...]
    channels: tuple[str, ...]


def read(path: Path, environment: str, platform: str) -> Wanted:
    """What an environment of the workspace asks for on a platform.

    Raises UsageError for what is no workspace, has no such environment or platform, or cannot be honoured.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from None
    if path.name == "pyproject.toml":
        value = value.get("tool", {}).get("pixi", {})
    about = value.get("workspace") or value.get("project")
    if not isinstance(about, dict):
        raise UsageError(f"{path} is no pixi workspace: it has no table 'workspace'")
    platforms = about.get("platforms", [])
    if platform not in platforms:
        raise UsageError(
            f"{path} is not for {platform}; its platforms: {', '.join(map(str, platforms)) or 'none'}"
        )
    specs: dict[str, str] = {}
    pip: dict[str, str] = {}
    for shown, feature in _features(path, value, environment):
        for where, table in _tables(path, shown, feature, platform):
            for name, asked in table.get("dependencies", {}).items():
                specs[name] = _spec(path, f"{where}dependencies.{name}", name, asked)
            for name, asked in table.get("pypi-dependencies", {}).items():
                pip[name] = _requirement(path, f"{where}pypi-dependencies.{name}", name, asked)
    if not specs:
        raise UsageError(f"{path}: the environment {environment!r} has no dependencies")
    channels = [one if isinstance(one, str) else str(one.get("channel")) for one in about.get("channels", [])]
    return Wanted(specs=tuple(specs.values()), pip=tuple(pip.values()), channels=tuple(channels))


def _features(
    path: Path, value: Mapping[str, Any], environment: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The features of an environment, the default one first: what it is called in messages, and its table."""
    environments = value.get("environments", {})
    if environment != "default" and environment not in environments:
        raise UsageError(
            f"{path} has no environment {environment!r}; it has {', '.join(['default', *environments])}",
            hint="name it by `select`",
        )
    said = environments.get(environment, [])
    names = said.get("features", []) if isinstance(said, dict) else said
    if not (isinstance(said, dict) and said.get("no-default-feature")):
        yield "", value
    for name in names:
        feature = value.get("feature", {}).get(name)
        if feature is None:
            raise UsageError(
                f"{path}: the environment {environment!r} has a feature {name!r}, which is not there"
            )
        yield f"feature.{name}.", feature


def _tables(
    path: Path, shown: str, feature: Mapping[str, Any], platform: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A feature's own dependencies, and those of its targets that the platform is."""
    targets = [
        (f"{shown}target.{name}.", feature.get("target", {}).get(name, {})) for name in _TARGETS[platform]
    ]
    for where, table in [(shown, feature), *targets]:
        for name in _REFUSED:
            if table.get(name):
                raise UsageError(
                    f"{path}: {where}{name} cannot be honoured", hint="move what it needs to dependencies"
                )
        yield where, table


def _spec(path: Path, where: str, name: str, asked: Any) -> str:
    if isinstance(asked, str):
        return name if asked in ("", "*") else f"{name} {asked}"
    if isinstance(asked, dict) and not {*asked} - {"version", "build", "channel"}:
        channel = f"{asked['channel']}::" if "channel" in asked else ""
        build = f" {asked['build']}" if "build" in asked else ""
        version = asked.get("version", "*")
        return f"{channel}{name}" if version == "*" and not build else f"{channel}{name} {version}{build}"
    raise UsageError(f"{path}: {where} asks for {asked!r}, which is no package of a channel")


def _requirement(path: Path, where: str, name: str, asked: Any) -> str:
    if isinstance(asked, str):
        return name if asked in ("", "*") else f"{name} {asked}"
    if isinstance(asked, dict) and not {*asked} - {"version", "extras"}:
        extras = f"[{','.join(asked['extras'])}]" if asked.get("extras") else ""
        version = asked.get("version", "*")
        return f"{name}{extras}" if version == "*" else f"{name}{extras} {version}"
    raise UsageError(
        f"{path}: {where} asks for {asked!r}, which is no release on an index",
        hint="build it as a wheel, and name that in the environment's `pip`",
    )

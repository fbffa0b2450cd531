"""An environment as its user describes it → what is asked of the channels and of PyPI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import yaml

from conda_appliance import definition_conda, lazy, log
from conda_appliance.definition_conda import Environment
from conda_appliance.errors import UsageError

if TYPE_CHECKING:
    from conda_appliance import workspace
else:
    workspace = lazy.module("conda_appliance.workspace")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """``specs`` are conda's match specs; ``pip`` requirements (PEP 508) and wheels' paths.

    ``constraints`` are match specs of packages that may be left out, ``needs`` what the machine must have at least
    (`contract.require`). ``group`` is what several environments ask for that get the same versions, this among them.
    """

    specs: tuple[str, ...]
    pip: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    group: Asked | None = None


def read(
    environment: Environment, folder: Path, platform: str = "linux-64", *, index: str | None = None
) -> Asked:
    """What an environment asks for: its ``dependencies``, or those of the file in ``folder``; its ``pip``.

    The file is an environment.yml, or a pixi workspace (`workspace.read`), for a ``platform`` of conda's. ``index`` is
    the package index that the definition names.

    Raises UsageError naming what the file holds that cannot be honoured.
    """
    if environment.file is None:
        return Asked(specs=environment.dependencies, pip=environment.pip)
    path = folder / environment.file
    if path.suffix == ".toml":
        wheels = [_project(one) for one in environment.pip if definition_conda.is_wheel(one)]
        found = workspace.read(path, environment.select, platform, wheels=wheels, index=index)
        if found.channels:
            log.info(
                f"{path}: its 'channels' ({', '.join(found.channels)}) are not used; the definition's are"
            )
        return _asked(found, environment.pip)
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as an environment.yml: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("dependencies"), list):
        raise UsageError(
            f"{path} is not an environment.yml: it has no list 'dependencies'",
            hint="https://docs.conda.io/projects/conda/en/stable/user-guide/tasks/manage-environments.html",
        )
    specs: list[str] = []
    pip: list[str] = []
    for item in value["dependencies"]:
        if isinstance(item, dict) and [*item] == ["pip"] and isinstance(item["pip"], list):
            pip += [_text(path, one) for one in item["pip"]]
        else:
            specs.append(_text(path, item))
    if value.get("variables"):
        raise UsageError(
            f"{path} sets 'variables', which only `conda activate` would read",
            hint="set them as `variables` of the services that need them",
        )
    if value.get("channels"):
        log.info(f"{path}: its 'channels' are not used; the definition's are")
    return Asked(specs=tuple(specs), pip=(*pip, *environment.pip))


def _asked(found: workspace.Wanted, pip: tuple[str, ...]) -> Asked:
    return Asked(
        specs=found.specs,
        pip=(*found.pip, *pip),
        constraints=found.constraints,
        needs=found.needs,
        group=_asked(found.group, pip) if found.group is not None else None,
    )


def _project(wheel: str) -> str:
    """The project whose wheel a path names."""
    return PurePosixPath(wheel).name.partition("-")[0]


def _text(path: Path, item: object) -> str:
    if not isinstance(item, str):
        raise UsageError(f"{path}: the dependency {item!r} is not text", hint="put it in quotes")
    return item

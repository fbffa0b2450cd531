"""A pyproject.toml's own words → features of a pixi workspace: what the project requires, its extras, its groups.

Source: https://pixi.sh/latest/python/pyproject_toml/; PEP 621, PEP 735.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from conda_appliance.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Feature:
    """``requirements`` as PEP 508 has them; ``python`` is what ``requires-python`` says, or nothing."""

    requirements: tuple[str, ...]
    python: str = ""


def features(path: Path, value: Mapping[str, Any]) -> dict[str, Feature]:
    """The features of a pyproject.toml that was read as ``value``; the project's own requirements are ``default``.

    Raises UsageError for a requirement that is none, a group or extra that is not there or that includes itself.
    """
    project = value.get("project", {})
    extras = _Tables(
        path,
        "project.optional-dependencies",
        project.get("optional-dependencies", {}),
        str(project.get("name", "")),
    )
    groups = _Tables(
        path, "dependency-groups", value.get("dependency-groups", {}), str(project.get("name", ""))
    )
    found = {
        "default": Feature(
            requirements=tuple(project.get("dependencies", [])),
            python=str(project.get("requires-python", "")),
        )
    }
    for tables in (extras, groups):
        for name in tables.said:
            before = found[name].requirements if name in found else ()
            wanted = [one for item in tables.of(name) for one in extras.without_project(item)]
            found[name] = Feature(requirements=tuple(dict.fromkeys([*before, *wanted])))
    return found


@dataclass(frozen=True)
class _Tables:
    """Lists of requirements by name, which may include one another."""

    path: Path
    where: str
    said: Mapping[str, Any]
    project: str

    def of(self, name: str, above: tuple[str, ...] = ()) -> list[str]:
        """The requirements of a list, with those that it includes."""
        known = {canonicalize_name(one): one for one in self.said}
        key = canonicalize_name(name)
        if key not in known:
            raise UsageError(f"{self.path}: {self.where} has no {name!r}")
        if key in above:
            raise UsageError(f"{self.path}: {self.where}.{name} includes itself")
        found = []
        for item in self.said[known[key]]:
            if isinstance(item, dict) and [*item] == ["include-group"]:
                found += self.of(item["include-group"], (*above, key))
            elif isinstance(item, str):
                found += self.without_project(item, (*above, key))
            else:
                raise UsageError(f"{self.path}: {self.where}.{name} has {item!r}, which is no requirement")
        return found

    def without_project(self, item: str, above: tuple[str, ...] = ()) -> list[str]:
        """A requirement, or what the extras of the project itself mean: ``my_project[test]``."""
        try:
            requirement = Requirement(item)
        except InvalidRequirement as error:
            raise UsageError(
                f"{self.path}: {self.where} has {item!r}, which is no requirement: {error}"
            ) from None
        if (
            canonicalize_name(requirement.name) != canonicalize_name(self.project)
            or self.where == "dependency-groups"
        ):
            return [item]
        return [one for extra in sorted(requirement.extras) for one in self.of(extra, above)]

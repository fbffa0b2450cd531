"""``init``: a new appliance to start from — a commented definition, a playbook role of one's own, a check."""

from __future__ import annotations

import re
from pathlib import Path

from conda_appliance import render
from conda_appliance.errors import UsageError
from conda_appliance.fields import NAME

#: What is written, as template → place in the new folder.
_FILES = {
    "project/definition.yaml.j2": "images/{name}.yaml",
    "project/app.py.j2": "images/{name}/app/{module}.py",
    "project/check.py.j2": "images/{name}/checks/test_{module}.py",
    "project/role.yml.j2": "playbooks/roles/custom/tasks/main.yml",
    "project/gitignore.j2": ".gitignore",
}


def init(folder: Path, name: str) -> list[Path]:
    """Write the files of a new appliance into ``folder``; never over one that is there.

    Raises UsageError for a name that no definition may have, and naming what is in the way, before anything
    is written.
    """
    if not re.fullmatch(NAME, name):
        raise UsageError(f"{name!r} is not a name: lower-case letters, digits and '-', 40 at most")
    module = name.replace("-", "_")
    targets = {
        template: folder / place.format(name=name, module=module) for template, place in _FILES.items()
    }
    in_the_way = [str(path) for path in targets.values() if path.exists()]
    if in_the_way:
        raise UsageError(
            f"already there, and not overwritten: {', '.join(in_the_way)}",
            hint="choose another name or folder",
        )
    for template, path in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render.text(template, name=name, module=module), encoding="utf-8")
    return list(targets.values())

"""ImageDefinition → the JSON Schema for editors and the reference page: from the declaration that validates one."""

from __future__ import annotations

import inspect
import json
from typing import Any

from conda_appliance.definition import ImageDefinition


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an image definition, for editors."""
    made = ImageDefinition.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "conda-appliance image definition",
        **{key: value for key, value in made.items() if key != "title"},
    }


def reference() -> str:
    """The reference page of a definition, in Markdown, from the same declaration that validates one."""
    made = schema()
    parts = ["# Image definition", "", "<!-- made by `conda-appliance schema --markdown` -->", ""]
    parts += _table("ImageDefinition", made)
    for name, part in made["$defs"].items():
        parts += _table(name, part)
    return "\n".join(parts)


def _table(title: str, part: dict[str, Any]) -> list[str]:
    rows = [f"## {title}", "", inspect.cleandoc(part.get("description", "")), ""]
    rows += ["| key | what | default | |", "| --- | --- | --- | --- |"]
    required = part.get("required", ())
    for key, about in part["properties"].items():
        default = "required" if key in required else f"`{json.dumps(about.get('default'))}`"
        if key not in required and "default" not in about:
            default = ""
        what = about.get("description", "").replace("|", "\\|")
        rows.append(f"| `{key}` | {_kind(about)} | {default} | {what} |")
    return [*rows, ""]


def _kind(about: dict[str, Any]) -> str:
    """A JSON Schema type for people: what may stand there."""
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for choice in ("anyOf", "allOf"):
        if choice in about:
            return " or ".join(_kind(one) for one in about[choice] if one.get("type") != "null")
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    if about.get("type") == "array":
        return f"list of {_kind(about['items'])}"
    if about.get("type") == "object" and isinstance(about.get("additionalProperties"), dict):
        return f"by name: {_kind(about['additionalProperties'])}"
    return str(about.get("type", ""))

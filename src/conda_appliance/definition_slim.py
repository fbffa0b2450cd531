"""What a definition may leave out of its environments: the parts, by name, and the careful choice."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema

Part = Literal[
    "static-libraries",
    "headers",
    "tests",
    "docs",
    "man-pages",
    "locales",
    "idle",
    "debug-symbols",
    "ensurepip",
    "byte-code",
]
#: All parts, in the order in which a file that is of two of them is counted.
PARTS: tuple[Part, ...] = get_args(Part)
#: What `slim: true` leaves out: what no program misses that only runs. Without the wheels of ensurepip `python -m venv`
#: makes no pip, and without byte code every start compiles: who wants that says so.
CAREFUL: tuple[Part, ...] = tuple(one for one in PARTS if one not in ("ensurepip", "byte-code"))


def _chosen(given: object) -> object:
    """``true`` is the careful choice, ``false`` nothing; a list is what it says, in one order."""
    if isinstance(given, bool):
        return CAREFUL if given else ()
    if not isinstance(given, list | tuple):
        raise ValueError(f"slim is true, or a list of what to leave out: {', '.join(PARTS)}")
    known = [one for one in PARTS if one in given]
    return (*known, *(one for one in given if one not in PARTS))


_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "boolean"}, {"type": "array", "items": {"enum": list(PARTS), "type": "string"}}]
}

Slim = Annotated[
    tuple[Part, ...],
    BeforeValidator(_chosen),
    WithJsonSchema(_SCHEMA),
    Field(
        description="Leave out of the environments what no program misses that only runs: true for the careful choice, "
        "or a list of parts. Licence texts stay, and what could be imported still can."
    ),
]

"""YAML 1.2 → a model: plain data, nothing evaluated, every mistake of a file at once with its place.

For a misspelt key it says what was perhaps meant.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from conda_appliance.errors import DefinitionError, Problem

#: A definition larger than this is not one, in bytes.
MAX_BYTES = 1 << 20
#: More values than this (aliases counted each time) are not a definition.
MAX_VALUES = 50_000


class Model(BaseModel):
    """What every part of a definition has in common: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2's core schema: true, false, null, integers; all else is text.

    So ``no`` and ``22:30`` stay what was written, and a version 1.10 does not become 1.1.
    """


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)

_KNOWN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "bool", "null", "seq", "map")}

#: Where something stands in a file's value: its keys and indices from the top.
Location = tuple[str | int, ...]
#: Where each part of a file's value stands: its line and column, from 1.
Marks = dict[Location, tuple[int, int]]


def as_yaml(value: Any) -> str:
    """``value`` as YAML that people read, keys in the order of the declaration."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


_M = TypeVar("_M", bound=Model)


def load(path: Path, model: type[_M]) -> _M:
    """A file as its model. Raises DefinitionError with every problem of it."""
    value, marks = parse(path)
    return validated(str(path), value, marks, model)


def validated(shown: str, value: Any, marks: Marks, model: type[_M]) -> _M:
    """A file's value as its model; ``shown`` is what messages call the file.

    Raises DefinitionError with every problem.
    """
    if not isinstance(value, dict):
        raise DefinitionError([problem(shown, marks, (), "a definition is a mapping of keys")])
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors: list[dict[str, Any]] = [dict(one) for one in error.errors()]
        raise DefinitionError(
            [_explain(shown, marks, model, one) for one in errors if not _follows(one, errors)]
        ) from None


def parse(path: Path) -> tuple[Any, Marks]:
    """The file's value, and where each part of it stands (1-based line and column)."""
    shown = str(path)

    def refuse(message: str, line: int = 1, column: int = 1) -> DefinitionError:
        return DefinitionError([Problem(file=shown, line=line, column=column, path="", message=message)])

    try:
        if path.is_dir():
            raise refuse("this is a folder, not a definition")
        if path.stat().st_size > MAX_BYTES:
            raise refuse(f"larger than {MAX_BYTES >> 20} MiB: this is not a definition")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise refuse(f"larger than {MAX_BYTES >> 20} MiB: this is not a definition")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refuse("not UTF-8 text: this is not a definition") from None
    if not text.strip():
        raise refuse("the file is empty; `conda-appliance init` writes an example")
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise refuse(f"not valid YAML: {error.problem or error.context}", *at) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise refuse(f"not valid YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        raise refuse("the file holds no definition, only comments")
    marks: Marks = {}
    budget = [MAX_VALUES]

    def build(node: yaml.Node, at: Location, above: tuple[int, ...]) -> Any:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        marks.setdefault(at, (line, column))
        budget[0] -= 1
        if id(node) in above or len(above) > 50:
            raise refuse("an alias refers to what contains it", line, column)
        if budget[0] < 0:
            raise refuse(f"more than {MAX_VALUES} values: this is not a definition", line, column)
        if node.tag not in _KNOWN_TAGS:
            raise refuse(f"the tag {node.tag!r} has no meaning here", line, column)
        inner = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*at, index), inner) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            made: dict[str, Any] = {}
            for key, item in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise refuse("a key must be plain text", key.start_mark.line + 1)
                name = str(key.value)
                if name in made:
                    raise refuse(
                        f"the key {name!r} stands twice",
                        key.start_mark.line + 1,
                        key.start_mark.column + 1,
                    )
                marks[(*at, name)] = (key.start_mark.line + 1, key.start_mark.column + 1)
                made[name] = build(item, (*at, name), inner)
            return made
        if node.tag == "tag:yaml.org,2002:int":
            return int(node.value) if len(node.value) < 20 else node.value
        if node.tag == "tag:yaml.org,2002:bool":
            return node.value == "true"
        if node.tag == "tag:yaml.org,2002:null":
            return None
        return node.value

    return build(node, (), ()), marks


def problem(file: str, marks: Marks, at: Location, message: str) -> Problem:
    """A mistake at a place of a file, or at the nearest one that is there."""
    nearest = at
    while nearest not in marks and nearest:
        nearest = nearest[:-1]
    line, column = marks.get(nearest, (1, 1))
    return Problem(file=file, line=line, column=column, path=_path_text(at), message=message)


def _path_text(at: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)
    return text.removeprefix(".")


def _follows(error: dict[str, Any], errors: list[dict[str, Any]]) -> bool:
    """Whether ``error`` only follows from another: a list is not too short because its items are wrong."""
    return error["type"] == "too_short" and any(
        other["loc"][: len(error["loc"])] == error["loc"] for other in errors if other is not error
    )


def _explain(file: str, marks: Marks, model: type[Model], error: dict[str, Any]) -> Problem:
    """A pydantic error as a problem in the file's own words."""
    at = tuple(part for part in error["loc"] if part != "[key]")
    kind, message = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        known = _keys_at(model, at[:-1])
        close = difflib.get_close_matches(str(at[-1]), known, n=1)
        message = "unknown key"
        message += f"; perhaps you meant {close[0]!r}" if close else f"; known: {', '.join(known)}"
    elif kind == "missing":
        message = "missing: this key is required"
    elif kind == "too_short":
        message = "needs at least one item"
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    elif kind == "literal_error":
        expected = str(error["ctx"]["expected"])
        message = f"{error['input']!r} is not one of {expected}"
        close = difflib.get_close_matches(str(error["input"]), re.findall(r"'([^']+)'", expected), n=1)
        message += f"; perhaps you meant {close[0]!r}" if close else ""
    elif kind == "string_pattern_mismatch":
        message = f"{error['input']!r} does not match {error['ctx']['pattern']}"
    else:
        message = message.removeprefix("Input should be ").replace("a valid ", "a ")
        message = f"should be {message}, found {_short(error['input'])}"
    return problem(file, marks, at, message)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _keys_at(model: type[BaseModel], at: Location) -> list[str]:
    """The keys that may stand at a place of a definition."""
    current: type[BaseModel] | None = model
    skip = False
    for part in at:
        if skip or isinstance(part, int) or current is None:
            skip = False
            continue
        found = next(
            (info for name, info in current.model_fields.items() if part in (name, info.alias)),
            None,
        )
        current = _model_in(found.annotation) if found else None
        skip = found is not None and get_origin(found.annotation) is dict
    if current is None:
        return []
    return [info.alias or name for name, info in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (model := _model_in(inner)) is not None:
            return model
    return None

"""What single values of a definition may be: names, versions, paths, sizes; each says what is wrong with another."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_size(text: object) -> int:
    """``4GiB`` → bytes. Units: B, KiB, MiB, GiB, TiB; a plain number is bytes."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|B)?", str(text).strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 4GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _absolute(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{path!r} is not an absolute path without '..', like /opt/conda")
    if re.search(r"[\s\x00-\x1f'\"\\$`]", path):
        raise ValueError(f"{path!r} has a space, a quote or a control character in it")
    return str(pure)


def pattern(expression: str, wanted: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(expression, value):
            raise ValueError(f"{value!r} is not {wanted}")
        return value

    return check


#: What may be a name: of an image, a service, an environment.
NAME = r"[a-z][a-z0-9-]{0,39}"

Name = Annotated[
    str,
    AfterValidator(pattern(NAME, "a name: lower-case letters, digits and '-', 40 at most")),
]
Version = Annotated[
    str,
    AfterValidator(pattern(r"[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}", "a version like 1.2.0")),
]
UserName = Annotated[
    str,
    AfterValidator(pattern(r"[a-z_][a-z0-9_-]{0,30}", "a Linux user name like 'admin'")),
]
DebianPackage = Annotated[
    str,
    AfterValidator(pattern(r"[a-z0-9][a-z0-9.+-]+", "a Debian package name")),
]
Sha256 = Annotated[
    str,
    AfterValidator(pattern(r"[0-9a-f]{64}", "a SHA-256: 64 lower-case hexadecimal digits")),
]
Port = Annotated[int, Field(ge=1, le=65535)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([KMGT]iB|B)?$"},
            ],
            "examples": ["4GiB", "512MiB"],
        }
    ),
]

"""YAML → DiscDefinition: what a disc holds, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from conda_appliance import yamlfile
from conda_appliance.fields import AbsolutePath, Name
from conda_appliance.yamlfile import Model


class DiscEntry(Model):
    """A file or tree on a disc."""

    source: Annotated[
        str,
        Field(alias="from", description="What goes there: the name of an input the maker passes."),
    ]
    to: Annotated[AbsolutePath, Field(description="Where it stands on the disc.")]
    mode: Annotated[
        str, Field(pattern=r"^0?[0-7]{3}$", description="Its mode, octal; a tree's folders get x for each r.")
    ] = "0444"
    keep: Annotated[
        bool, Field(description="Modes and owners as the input has them, instead of `mode` and root.")
    ] = False
    optional: Annotated[bool, Field(description="Leave it out when the maker passes no such input.")] = False


class DiscDefinition(Model):
    """What a disc holds (iso/*.yaml)."""

    name: Name
    summary: str = ""
    volume: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,16}$",
            description="The volume label, 16 letters at most (Joliet's limit); cloud-init wants 'cidata'.",
        ),
    ]
    entries: Annotated[tuple[DiscEntry, ...], Field(min_length=1)]
    sums: Annotated[
        AbsolutePath | None, Field(description="Where a SHA256SUMS over all the files stands.")
    ] = None


def load_disc(path: Path) -> DiscDefinition:
    """Read ``iso/NAME.yaml``. Raises DefinitionError with every problem of the file."""
    return yamlfile.load(path, DiscDefinition)

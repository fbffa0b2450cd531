"""What a Debian package says of itself, read from its file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from conda_appliance import lazy

if TYPE_CHECKING:
    from debian import debfile
else:
    debfile = lazy.module("debian.debfile")


@functools.cache  # both the system and its bill of materials ask, and a file of the cache stays as it is
def control(path: Path) -> str:
    """Its control file: a stanza of ``Field: value`` lines, as deb822(5) has them, ending with a newline."""
    with debfile.DebFile(filename=str(path)) as package:
        text = package.control.get_content("control", encoding="utf-8")
    assert isinstance(text, str)  # it was decoded
    return text.strip() + "\n"

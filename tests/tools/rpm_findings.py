"""What rpmlint says of a package, but for what our page about packages lists with its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conda_appliance import process

_PAGE = Path(__file__).parents[2] / "docs/how-to/os-packages.md"


def findings(package: Path, work: Path) -> list[str]:
    """A line for each thing that it finds and that is not listed."""
    rows = [line for line in _PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    tags = [tag for row in rows for tag in re.findall(r"`([a-z-]+)`", row.split("|")[1])]
    assert "no-signature" in tags
    settings = work / "rpmlint.toml"
    settings.write_text(f"Filters = {json.dumps([f' {tag}( |$)' for tag in tags])}\n", encoding="utf-8")
    said = process.run(["rpmlint", "--config", settings, package], check=False).stdout
    assert "1 packages and 0 specfiles checked" in said, said
    return [line for line in said.splitlines() if re.match(r"\S+: [EWI]: ", line)]

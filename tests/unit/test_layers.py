"""The architecture holds: imports point to lower layers only, and each program, network and format has one owner."""

import ast
import re
from pathlib import Path

import conda_appliance

SOURCE = Path(conda_appliance.__file__).parent
LAYERS = {
    match[1].rstrip("/"): int(match[2])
    for match in re.finditer(r"^(\w+/?) +(\d+) ", conda_appliance.__doc__ or "", re.MULTILINE)
}


def module_name(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Our own modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("conda_appliance"):
            parts = node.module.split(".")
            names = parts[1:2] or [alias.name for alias in node.names]
            found.update(name for name in names if not name.startswith("__"))
        elif isinstance(node, ast.Import):
            found.update(
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("conda_appliance.")
            )
    return found


def test_every_module_stands_on_the_map() -> None:
    modules = {
        module_name(path) for path in SOURCE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
    }
    assert modules == set(LAYERS)


def test_imports_point_to_lower_layers_only() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        own = module_name(path)
        if own in ("__init__", "__main__"):
            continue
        for other in imported(path) - {own}:
            if other not in LAYERS or LAYERS[other] >= LAYERS[own]:
                wrong.append(f"{own} ({LAYERS[own]}) imports {other} ({LAYERS.get(other)})")
    assert wrong == []

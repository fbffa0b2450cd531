"""Several definitions at once: what they share is made once, the rest side by side, and one summary ends it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from conda_appliance import build as builds
from conda_appliance import definition, log, process
from conda_appliance.build import Result
from conda_appliance.errors import ApplianceError, UsageError


def build(paths: Sequence[Path], **options: Any) -> list[Result]:
    """Build every definition, as many at a time as there are processors; ``options`` are those of `build.build`.

    A definition that fails does not keep the others from being built: then all failures are told, and the first is
    raised. Raises UsageError when two have the same name.
    """
    names = [definition.load_image(path).name for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"several definitions are named {', '.join(twice)}", hint="their results would be in one folder"
        )
    if len(paths) == 1:
        return [builds.build(paths[0], **options)]
    started = time.monotonic()
    tasks = [partial(_one, path, name, options) for path, name in zip(paths, names, strict=True)]
    outcomes = process.side_by_side(*tasks, workers=os.cpu_count() or 1)
    _summarise(dict(zip(names, outcomes, strict=True)), time.monotonic() - started)
    errors = [one for one in outcomes if isinstance(one, ApplianceError)]
    if errors:
        raise errors[0]
    return [one for one in outcomes if isinstance(one, Result)]


def _one(path: Path, name: str, options: dict[str, Any]) -> Result | ApplianceError:
    try:
        return builds.build(path, label=name, **options)
    except ApplianceError as error:
        log.error(f"{name}: {error.message}")
        return error


def _summarise(outcomes: dict[str, Result | ApplianceError], seconds: float) -> None:
    good = [one for one in outcomes.values() if isinstance(one, Result)]
    made = sum(one.made for one in good)
    log.info(
        f"{len(good)} of {len(outcomes)} images are ready ({made} made, {len(good) - made} unchanged), {seconds:.0f} s:"
    )
    width = max(len(name) for name in outcomes)
    for name, one in outcomes.items():
        told = str(one.folder) if isinstance(one, Result) else f"failed: {one.message.splitlines()[0]}"
        log.info(f"  {name:<{width}}  {told}")

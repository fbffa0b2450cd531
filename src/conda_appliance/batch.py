"""Several definitions at once: what they share is made once, the rest side by side, and one summary ends it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from conda_appliance import build as builds
from conda_appliance import cache, definition, log, process
from conda_appliance.build import Result
from conda_appliance.errors import ApplianceError, UsageError, of_system
from conda_appliance.platforms import PLATFORMS


def build(paths: Sequence[Path], *, platform: str | None = None, **options: Any) -> list[Result]:
    """Build every definition, as many at a time as there are processors; ``options`` are those of `build.build`.

    Of each definition every platform, or ``platform`` alone. One that fails does not keep the others from being built:
    then all failures are told, and the first is raised. Raises UsageError when two have the same name.
    """
    images = [definition.load_image(path) for path in paths]
    names = [image.name for image in images]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"several definitions are named {', '.join(twice)}", hint="their results would be in one folder"
        )
    wanted = {
        f"{image.name}{PLATFORMS[one].mark}": (path, one)
        for path, image in zip(paths, images, strict=True)
        for one in ([image.on(platform).platform.name] if platform else image.platforms)
    }
    if len(wanted) == 1:
        [(path, one)] = wanted.values()
        return [builds.build(path, platform=one, **options)]
    started = time.monotonic()
    # One for all: a layer that several images share is verified once.
    store = cache.layer_store(explain=options.get("explain", False))
    options = {"store": store, **options}
    tasks = [partial(_one, path, one, name, options) for name, (path, one) in wanted.items()]
    outcomes = process.side_by_side(*tasks, workers=os.cpu_count() or 1)
    store.release()
    store.keep_within()
    _summarise(dict(zip(wanted, outcomes, strict=True)), time.monotonic() - started)
    errors = [one for one in outcomes if isinstance(one, ApplianceError)]
    if errors:
        raise errors[0]
    return [one for one in outcomes if isinstance(one, Result)]


def _one(path: Path, platform: str, name: str, options: dict[str, Any]) -> Result | ApplianceError:
    try:
        return builds.build(path, platform=platform, label=name, **options)
    except ApplianceError as error:
        failure = error
    except OSError as error:
        if error.errno == errno.ENOSPC:  # everybody's: all end, and it is told once
            raise
        failure = of_system(error)
    log.error(f"{name}: {failure.message}")
    return failure


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

"""Has rattler do what it does, in a process of its own (`conda_child`): solve, link, read locks."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import conda_appliance
from conda_appliance import conda_child, errors, process, redact
from conda_appliance.network import variables


def in_child(task: str, given: dict[str, Any], *, network: bool = False) -> Any:
    """Have `conda_child` do ``task`` in a process of its own; its answer, or its error raised here.

    ``network``: it asks servers. Secrets go to it by its standard input, which nobody else can read.
    """
    package = str(Path(conda_appliance.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = process.run(
        [sys.executable, "-P", "-m", "conda_appliance.conda_child", task],
        input=json.dumps(given),
        env={"PYTHONPATH": path, **(variables() if network else {})},
        network=network,
    )
    result = json.loads(done.stdout.rpartition(conda_child.ANSWER)[2])
    if "error" in result:
        kind = getattr(errors, result["error"])
        raise kind(redact.text(result["message"]), hint=result["hint"])
    return result["value"]

"""``boot`` and ``ssh``: a machine that a person uses.

A running machine is a folder in the cache, ``machines/NAME/``: its key, its known hosts and
``machine.json``, which says the port and which process owns it. It vanishes with the machine.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from conda_appliance import (
    definition,
    identity,
    log,
    machine,
    platforms,
    process,
    resources,
    results,
    runs,
    seed,
)
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.platforms import PLATFORMS, Platform
from conda_appliance.qemu import Attachment, Firmware

_STATE = "machine.json"


def boot(
    image: str,
    *,
    out: Path,
    firmware: str | None,
    memory: int | None,
    port: int | None,
    attached: str | None = None,
    platform: str | None = None,
) -> None:
    """Boot what ``image`` names on an overlay and hold it until the machine ends or Ctrl-C.

    A disc is in the machine's CD drive unless ``attached`` says otherwise (`qemu.Attachment`). Raises UsageError
    when the port is taken or a machine of that name runs already.
    """
    runs.reap()
    found = results.find(image, out, platform=platform)
    about = PLATFORMS[found.platform]
    parsed = definition.load_image(found.definition).on(found.platform) if found.definition else None
    user = parsed.access.user if parsed else "admin"
    machines = resources.cache_root() / "machines"
    resources.sweep(machines)
    with resources.work_folder(machines, f"{found.name}{about.mark}") as work:
        key = machine.new_key(work)
        disc = seed.write(
            work / "seed.iso",
            host_name=found.name,
            instance_id=f"boot-{uuid.uuid4()}",
            public_keys=[key.with_suffix(".pub").read_text().strip()],
            epoch=identity.epoch(),
        )
        with machine.boot(
            found.disk,
            work=work,
            firmware=cast(Firmware, firmware) if firmware else _firmware(parsed, about),
            platform=about,
            seed=disc,
            memory_mib=(memory or 1 << 30) >> 20,
            ssh_port=port,
            attached=cast(Attachment, attached or ("cd" if found.disk.suffix == ".iso" else "disk")),
            forwards=[service.port for service in parsed.services if service.port] if parsed else [],
        ) as running:
            state = {
                "owner": runs.mark(),
                "port": running.ssh_port,
                "user": user,
                "key": str(key),
                "known_hosts": str(work / "known_hosts"),
                "log": str(running.serial_log),
            }
            (work / _STATE).write_text(json.dumps(state), encoding="utf-8")
            with log.step(f"Boot {found.name} ({running.accelerator})") as step:
                running.wait_for_ssh(user, key, progress=step.update)
            log.info(f"  log in:  conda-appliance ssh {found.name}{_said(about)}")
            log.info(f"           {process.shown(running.ssh_argv(user, key))}")
            for guest, host in running.forwards.items():
                log.info(f"  port {guest}: http://127.0.0.1:{host}/")
            log.info(f"  console: {running.serial_log}")
            log.info("  Ctrl-C ends it; nothing it wrote is kept")
            try:
                running.wait()
            except KeyboardInterrupt:
                with log.step("Shut down"):
                    running.shut_down()


def ssh(name: str, command: Sequence[str], *, platform: str | None = None) -> int:
    """Log in to the machine that ``boot`` holds, of ``platform`` or the usual one; returns ssh's exit status."""
    about = PLATFORMS[platform or platforms.DEFAULT]
    place = resources.cache_root() / "machines" / f"{name}{about.mark}.partial" / _STATE
    try:
        state = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        state = {}
    if not state or not runs.alive(state["owner"]):
        raise UsageError(f"no machine {name!r} is running", hint=f"conda-appliance boot {name}{_said(about)}")
    argv = machine.ssh_argv(
        port=state["port"],
        user=state["user"],
        key=Path(state["key"]),
        known_hosts=Path(state["known_hosts"]),
    )
    return process.interactive([*argv, *command])


def _said(platform: Platform) -> str:
    """The option that names a platform, where it is not the usual one."""
    return "" if platform.name == platforms.DEFAULT else f" --platform {platform.name}"


def _firmware(parsed: ImageDefinition | None, platform: Platform) -> Firmware:
    return parsed.disk.firmware[0] if parsed else cast(Firmware, platform.firmware[0])

"""The Packer builder: boots the base disk under QEMU and runs the playbook in it over SSH.

Packer is driven through packer-py, which starts it and waits for its end; it knows neither streams nor an
environment. So Packer's output is a pipe of ours that is read while it runs, and its environment is ours for that
time. All that Packer starts (its plugins, QEMU, Ansible) inherits a variable that names the build, by which it is
ended when the build is interrupted or hangs.
"""

from __future__ import annotations

import os
import queue
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import packerpy

from conda_appliance import (
    accelerator,
    ansible,
    basedisk,
    buildtree,
    cyclonedx,
    log,
    machine,
    payload,
    process,
    resources,
    runs,
    seed,
)
from conda_appliance.builders.job import DiskImage, Job
from conda_appliance.builders.packer_output import Progress, decode, hopeless, parse_version, plain_console
from conda_appliance.buildtree import BuildTree, Version
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import DISK_FULL, BuildError, ToolMissing
from conda_appliance.log import Step

#: The oldest Packer that reads what is rendered (Debian 12's).
OLDEST: Version = (1, 6, 0)
#: The environment variable that names a build in everything Packer starts.
BUILD = "CONDA_APPLIANCE_BUILD"
#: How long Packer may go on after its QEMU has ended, in seconds; it does not notice by itself.
_GRACE = 15.0
#: Held while this process's environment is a build's.
_ENVIRONMENT = threading.Lock()
#: With less than this free, in bytes, a failure is the full disk's.
_FULL = 64 << 20
#: How many lines of a console explain why a machine never answered.
_CONSOLE_LINES = 30
#: Where `packer plugins install` finds what is rendered into plugins.pkr.hcl.
_PLUGINS = ("github.com/hashicorp/qemu", "github.com/hashicorp/ansible")


# --- what it needs ----------------------------------------------------------------------------------


def tools(image: ImageDefinition) -> tuple[str, ...]:
    """The programs of the host that this builder needs for ``image``; ansible-core comes with this program."""
    own = ("packer", "qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen", "tar")
    return (*basedisk.tools(image), *own)


def version_numbers() -> Version:
    """Packer's version. Raises ToolMissing when Packer is absent, too old, or another program of that name."""
    said = process.run(["packer", "version"], env={"CHECKPOINT_DISABLE": "1"}, check=False)
    found = parse_version(said.stdout)
    if found is None:
        raise ToolMissing(
            f"`packer version` says {(said.stdout or said.stderr).strip()[:200]!r}: that is not HashiCorp's Packer",
            hint="apt-get install packer    (Debian 12), or https://developer.hashicorp.com/packer/install",
        )
    if found < OLDEST:
        raise ToolMissing(
            f"Packer {'.'.join(map(str, found))} is too old: {'.'.join(map(str, OLDEST))} or newer is needed",
            hint="apt-get install packer    (Debian 12), or https://developer.hashicorp.com/packer/install",
        )
    return found


def version() -> str:
    """Packer's version as text, e.g. ``1.6.6``. Raises as `version_numbers` does."""
    return ".".join(map(str, version_numbers()))


def require_plugins() -> None:
    """Raise ToolMissing when this Packer takes QEMU and Ansible from plugins, and they are not installed."""
    # `packer plugins` came with 1.8; 1.7 still has both inside.
    if version_numbers() < (1, 8, 0):
        return
    said = process.run(
        ["packer", "plugins", "installed"], env={"CHECKPOINT_DISABLE": "1"}, check=False
    ).stdout
    missing = [name for name in _PLUGINS if name not in said.replace("\\", "/")]
    if missing:
        commands = " && ".join(f"packer plugins install {name}" for name in missing)
        raise ToolMissing(
            f"this Packer has no plugin for {' and '.join(name.rpartition('/')[2] for name in missing)}",
            hint=f"{commands}    (without a network: unpack HashiCorp's release packer-plugin-… of each and run "
            "packer plugins install --path FILE NAME)",
        )


# --- the build --------------------------------------------------------------------------------------


@dataclass
class _Run:
    """A Packer that runs: what it said, and how it ended (``returncode`` is None until then)."""

    tree: BuildTree
    logs: Path
    step: Step
    progress: Progress = field(default_factory=Progress)
    lines: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    returncode: int | None = None
    #: Why we ended it, if we did.
    verdict: str = ""

    @property
    def console(self) -> Path:
        return self.logs / "console.log"


def render(job: Job, into: Path) -> BuildTree:
    """Make the base disk and the payload disc, and write the files of the build that name them."""
    with log.step("Base disk") as step:
        base = basedisk.make(job.lock, job.image, job.files, store=job.store, progress=step.update)
        step.note("bootstrapped and assembled" if base.made else "unchanged, from the cache")
    with log.step("Payload disc") as step:
        linked = job.linked(step.update)
        load = payload.make(
            job.image,
            job.lock,
            job.files,
            store=job.store,
            epoch=job.epoch,
            project=job.project,
            lock_text=job.lock_text,
            sbom=cyclonedx.write(job.bill(linked.path)),
            inventory=job.inventory(linked),
            progress=step.update,
        )
        step.note(resources.size_text(load.size))
    with log.step("Render the Packer and Ansible files"):
        chosen = accelerator.accelerator()
        tree = buildtree.build_tree(
            job.image,
            job.lock,
            folder=job.folder,
            into=into,
            inputs=buildtree.MachineInputs(
                base_disk=base.path,
                base_sha256=base.sha256,
                payload=load.path,
                payload_sha256=load.sha256,
                acceleration=chosen.name,
                cpus=chosen.processors,
                ansible_playbook=ansible.playbook_program(),
            ),
            packer_version=version_numbers(),
            project=job.project,
            identity=job.identity,
        )
        seed.for_build(tree, epoch=job.epoch, project=job.project)
    return tree


def build(job: Job, tree: BuildTree, *, logs: Path) -> DiskImage:
    """Run ``packer build`` over ``tree``; returns the disk it left. See `run`."""
    with machine.slot(), _ENVIRONMENT, log.step("Build with packer") as step:
        run(tree, logs=logs, step=step, keep_failed=job.keep_failed)
    return DiskImage(path=tree.disk, format="qcow2", inputs=tree.inputs, scratch=tree.disk.parent)


def run(tree: BuildTree, *, logs: Path, step: Step, keep_failed: bool = False) -> None:
    """Run ``packer build`` over ``tree``, which leaves its ``disk``.

    ``logs`` gets packer.log, packer-debug.log, ansible.log and console.log (the machine's serial console). With
    ``keep_failed`` the disk of a failed build stays in the tree.
    Raises BuildError that says which part failed, with what it said and the command to replay it. Whatever ends
    this function, Packer and all it started have ended before.
    """
    require_plugins()
    logs.mkdir(parents=True, exist_ok=True)
    run = _Run(tree=tree, logs=logs, step=step)
    token = uuid.uuid4().hex
    with ansible.scratch() as scratch, _environment(_variables(tree, logs, scratch, token)):
        try:
            _watch(run, "abort" if keep_failed else "cleanup")
        finally:
            runs.end(lambda: [pid for pid, name in runs.carrying(BUILD).items() if name == token])
    tree.pid_file.unlink(missing_ok=True)
    if run.returncode != 0 or run.verdict:
        raise _explain(run)
    if not tree.disk.is_file():
        raise BuildError(
            f"Packer ended well and left no {tree.disk}", hint=f"see what it did: less {logs / 'packer.log'}"
        )


def _watch(run: _Run, on_error: str) -> None:
    """Start Packer, follow what it says until it ends, and end it when its machine cannot answer any more."""
    packer = threading.Thread(target=_packer, args=(run, on_error), daemon=True, name="packer")
    packer.start()
    gone_since: float | None = None
    qemu: int | None = None
    with (run.logs / "packer.log").open("w", encoding="utf-8") as said:
        # The wait is short so that an interrupt and a dead machine are noticed; nothing is slept away.
        while packer.is_alive() or not run.lines.empty():
            try:
                _hear(run, run.lines.get(timeout=0.5), said)
                continue
            except queue.Empty:
                said.flush()
            qemu = _pid(run.tree.pid_file) or qemu
            if run.progress.phase == "waiting for SSH" and (line := hopeless(_console(run))):
                run.verdict = f"the machine gave up while it booted: {line}"
                return
            if qemu is None or Path(f"/proc/{qemu}").exists() or run.progress.phase == "shutting down":
                gone_since = None
                continue
            gone_since = gone_since or time.monotonic()
            if time.monotonic() - gone_since > _GRACE:
                run.verdict = f"QEMU ended while Packer was {run.progress.phase}"
                return
    packer.join()


def _packer(run: _Run, on_error: str) -> None:
    """In a thread of its own: run Packer through packer-py, its output line by line into the queue."""
    reading, writing = os.pipe()

    def listen() -> None:
        with os.fdopen(reading, encoding="utf-8", errors="backslashreplace") as file:
            for line in file:
                run.lines.put(line)

    listener = threading.Thread(target=listen, daemon=True, name="packer's output")
    listener.start()
    try:
        runner = packerpy.PackerExecutable(
            executable_path=process.find("packer"), config={"stdout": writing, "stderr": writing}
        )
        code, _, _ = runner.build(
            str(run.tree.folder),
            force=True,
            color="false",
            on_error=on_error,
            var={"console_log": str(run.console)},
        )
        run.returncode = int(code)
    finally:
        os.close(writing)
        # What Packer left behind may hold the pipe open; what it said is all there by then.
        listener.join(timeout=5)


def _hear(run: _Run, line: str, log: IO[str]) -> None:
    said = decode(line)
    if said is None:
        return
    log.write(f"{said.text}\n")
    for text in run.progress.hear(said):
        run.step.update(text)


def _pid(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _console(run: _Run) -> str:
    """The end of the machine's console as text; empty as long as there is none."""
    try:
        with run.console.open("rb") as file:
            file.seek(max(0, run.console.stat().st_size - (1 << 16)))
            return plain_console(file.read())
    except OSError:
        return ""


# --- where it runs ----------------------------------------------------------------------------------


def _variables(tree: BuildTree, logs: Path, scratch: Path, token: str) -> dict[str, str]:
    """The environment of Packer and of what it starts: all their folders are the build's."""
    return {
        **process.environment(),
        BUILD: token,
        "TMPDIR": str(scratch),
        # No look for a newer version over the network, no colours; the debug log has QEMU's own words.
        "CHECKPOINT_DISABLE": "1",
        "PACKER_CACHE_DIR": str(scratch / "cache"),
        "PACKER_NO_COLOR": "1",
        "PACKER_LOG": "1",
        "PACKER_LOG_PATH": str(logs / "packer-debug.log"),
        **ansible.variables(scratch, logs),
    }


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with ``values`` in it and nothing private, put back when the block ends."""
    before = dict(os.environ)
    private = {name: value for name, value in before.items() if process.is_private(name, value)}
    for name in private:
        del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in {*values, *private} if name in before})


# --- what went wrong --------------------------------------------------------------------------------


def _explain(run: _Run) -> BuildError:
    """Which part failed, what it said, and how to see more of it."""
    progress, logs = run.progress, run.logs
    said = "\n".join(dict.fromkeys(progress.errors)) or f"Packer ended with status {run.returncode}"
    replay = (
        f"run it by hand: {process.shown(['packer', 'build', '-force', '-on-error=ask', run.tree.folder])}"
    )
    free = shutil.disk_usage(run.tree.folder).free
    if free < _FULL:
        return BuildError(
            f"no space is left in {run.tree.folder} ({resources.size_text(free)} free)",
            hint=DISK_FULL,
        )
    if progress.failure:
        where = f"in the task {progress.task!r}" if progress.task else "before its first task"
        return BuildError(
            f"Ansible failed {where}:\n{progress.failure}",
            hint=f"the whole run: less {logs / 'ansible.log'}; {replay}",
        )
    if progress.phase == "waiting for SSH":
        lines = _console(run).rstrip().splitlines()[-_CONSOLE_LINES:]
        shown = (
            "\n".join(lines)
            or "(it wrote nothing: it did not get as far as a boot loader that uses a serial line)"
        )
        return BuildError(
            f"the machine never let us in over SSH: {run.verdict or said}\nThe end of its console:\n{shown}",
            hint=f"all of its console: less {logs / 'console.log'}; {replay}",
        )
    if progress.phase == "starting QEMU":
        words = _qemu_words(logs / "packer-debug.log")
        return BuildError(
            f"QEMU did not start: {words or run.verdict or said}",
            hint=f"its command line is in {logs / 'packer-debug.log'}; {replay}",
        )
    return BuildError(
        f"Packer failed while {progress.phase}: {run.verdict or said}",
        hint=f"what it did: less {logs / 'packer.log'} {logs / 'packer-debug.log'}; {replay}",
    )


def _qemu_words(debug: Path) -> str:
    """What QEMU wrote to its standard error, from Packer's debug log."""
    try:
        lines = debug.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    marker = "Qemu stderr: "
    return "\n".join(line.partition(marker)[2].strip() for line in lines if marker in line)

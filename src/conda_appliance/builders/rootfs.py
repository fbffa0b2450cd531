"""The rootfs builder: runs the playbook in an unpacked root file system, without booting anything.

The system, the linked environments and what the playbook changed are layers, laid over each other by overlayfs in
mounts of their own. Each is made once for all that decides it. What the playbook did stands for other environments
too, as long as it looked at nothing in them that differs (see `reads`); the few files that name a build lie on top.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from conda_appliance import (
    ansible,
    bootstrap,
    disk,
    layers,
    log,
    namespace,
    playbook,
    process,
    resources,
    trees,
)
from conda_appliance import (
    render as rendering,
)
from conda_appliance.builders import rootfs_box
from conda_appliance.builders.job import Boxed, DiskImage, Job
from conda_appliance.builders.packer_output import Progress, Said
from conda_appliance.builders.rootfs_disk import FACTS, LOCK, Parts, split, told
from conda_appliance.builders.rootfs_plain import plain
from conda_appliance.buildtree import BuildTree
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError, CommandFailed
from conda_appliance.layer import Layer


def tools(image: ImageDefinition) -> tuple[str, ...]:
    """The programs of the host that this builder needs for ``image``; ansible-core comes with this program."""
    own = ("mksquashfs",) if image.disk.layout == "split" else ()
    return (*bootstrap.tools(), *disk.tools(), "chroot", "qemu-img", "tar", *own)


def version() -> str:
    """ansible-core's version: it does the work here."""
    return metadata.version("ansible-core")


def _by_hand(job: Job) -> str:
    """How to do by hand what this builder does."""
    return rendering.text(
        "rootfs/README.md.j2", project=job.project, name=job.image.name, version=job.image.version
    )


def render(job: Job, into: Path) -> BuildTree:
    """Write the playbook, its variables and the definition's files."""
    into.mkdir(parents=True)
    playbook.tree(
        job.image, job.lock, folder=job.folder, into=into, project=job.project, identity=job.identity
    )
    (into / "README.md").write_text(_by_hand(job), encoding="utf-8")
    return BuildTree(folder=into, name=job.image.name)


def build(job: Job, tree: BuildTree, *, logs: Path) -> DiskImage:
    """Make the layers that are not there yet, and the disk from them.

    ``logs`` gets ansible.log. Raises BuildError that says which task failed, with what it said.
    """
    parts = prepare(job, tree, logs=logs)
    is_split = job.image.disk.layout == "split"
    with log.step("Write the disk") as step:
        made = split(parts, step) if is_split else plain(parts, step)

    def box(step: log.Step) -> DiskImage:
        more = replace(parts, above=rootfs_box.user(parts, step))
        return split(more, step, like=made) if is_split else plain(more, step)

    key = layers.digest_of([made.key, rootfs_box.decides(parts)])
    return replace(made, boxed=Boxed(key=key, make=box))


def prepare(job: Job, tree: BuildTree, *, logs: Path) -> Parts:
    """Make the layers that are not there yet, from which a disk is made. Raises as `build` does."""
    assert job.lock.debian is not None
    logs.mkdir(parents=True, exist_ok=True)
    with log.step("System and environments") as step:
        system, linked = _lower(job, step)
        grub = bootstrap.boot_loader(job.lock.debian, job.files, store=job.store, progress=step.update)
        step.note(told(system=system, environment=linked))
    with log.step("Run the playbook") as step:
        provisioned = _provisioned(job, tree, system, linked, logs, step)
        step.note(told(playbook=provisioned))
    return Parts(
        job=job,
        tree=tree,
        grub=grub,
        system=system,
        linked=linked,
        provisioned=provisioned,
        files_apart=not reads(job, linked).files,
    )


# --- layers -----------------------------------------------------------------------------------------


def _lower(job: Job, step: log.Step) -> tuple[Layer, Layer]:
    """The system and the environments: neither needs the other, so they are made side by side."""
    section = job.lock.debian
    assert section is not None
    said: dict[str, str] = {}

    def tell(name: str, text: str) -> None:
        said[name] = text
        step.update("; ".join(said.values()))

    system, linked = process.side_by_side(
        lambda: bootstrap.system(
            section,
            job.image.base,
            job.files,
            store=job.store,
            progress=lambda text: tell("system", text),
            without=job.image.slim,
        ),
        lambda: job.linked(lambda text: tell("environment", text)),
    )
    return system, linked


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What the playbook sees of a definition's parts: as long as this is the same, it does the same.

    ``environments`` is what it asks of them; ``files`` whether it names the machine and then lays down the definition's
    files (else both are laid over what it did).
    """

    environments: Mapping[str, str]
    files: bool


#: Where files may be laid down after the playbook instead of by it: no shipped role looks or writes there.
_APART = ("/opt/", "/srv/", "/usr/local/")


def reads(job: Job, linked: Layer) -> Reads:
    """What the playbook of ``job`` sees of the environments ``linked`` and of the definition's files.

    The shipped roles look whether an environment is there, run its activation scripts, and look for the services'
    programs (playbooks/roles/conda/files/unpack.sh, app/files/install.sh). Whoever adds roles, or copies files into
    an environment, may look at anything.
    """
    image = job.image
    prefixes = {name: image.prefix_of(name) for name in image.conda.environments}
    targets = [f"{item.to}/" for item in image.files]
    programs = {
        service.name: _program(service.command, prefixes[service.environment]) for service in image.services
    }
    own = job.project != resources.shipped() and (job.project / "playbooks").is_dir()
    scripts = any(
        (linked.path / prefix[1:] / "etc/conda/activate.d").exists() for prefix in prefixes.values()
    )
    inside = any(
        to.startswith(f"{prefix}/") or f"{prefix}/".startswith(to)
        for to in targets
        for prefix in prefixes.values()
    )
    if own or image.roles or scripts or inside:
        return Reads(environments={"everything": linked.sha256}, files=True)
    found = {}
    for name, prefix in prefixes.items():
        for path in ("conda-meta", ".condarc"):
            found[f"{name}: {path}"] = str((linked.path / prefix[1:] / path).exists())
    for service, program in programs.items():
        place = linked.path / program[1:]
        found[f"{service}: {program}"] = str(place.is_file() and os.access(place, os.X_OK))
    apart = all(to.startswith(_APART) for to in targets)
    theirs = any(
        program.startswith(to) or f"{program}/" == to for program in programs.values() for to in targets
    )
    return Reads(environments=found, files=not apart or theirs)


def _program(command: str, prefix: str) -> str:
    """The path of a service's program, as the playbook looks it up."""
    first = shlex.split(command)[0]
    return first if first.startswith("/") else f"{prefix}/bin/{first}"


def _provisioned(
    job: Job, tree: BuildTree, system: Layer, linked: Layer, logs: Path, step: log.Step
) -> Layer:
    """What the playbook changes, as the upper folder of an overlay."""
    seen = reads(job, linked)
    said = trees.listing(tree.folder, times=False)
    said.pop(f"playbook/{playbook.FACTS}")  # the disk gets its own, as all that names the build
    settings = playbook.settings(
        job.image, job.lock, folder=job.folder, project=job.project, named=seen.files
    )
    said[f"playbook/{playbook.VARIABLES}"] = layers.digest_of([settings])
    parts: layers.Parts = {
        "system": system.sha256,
        "environments": seen.environments,
        "playbook": {path: about for path, about in said.items() if path.startswith("playbook/")},
        "files": {path: about for path, about in said.items() if seen.files and path.startswith("files/")},
        "epoch": str(job.epoch),
        "code": layers.code(__file__, str(namespace.__file__)),
        "tools": {"ansible-core": version()},
    }

    def make(to: Path, work: Path) -> None:
        run = work / "run"
        shutil.copytree(tree.folder / "playbook", run / "playbook")
        (run / "playbook" / playbook.VARIABLES).write_text(settings, encoding="utf-8")
        if seen.files:
            shutil.copytree(tree.folder / "files", run / "files", symlinks=True)
        else:
            (run / "files").mkdir()
        _run_playbook(job, run / "playbook", [linked.path, system.path], work, logs, step)
        (work / "upper").rename(to)
        for path in (FACTS, LOCK):  # of this build alone; the disk gets its own
            (to / path).unlink(missing_ok=True)
        namespace.settle_upper(to)
        trees.set_times(to, job.epoch)

    return job.store.get("provisioned", parts, make, subject=job.image.name, progress=step.update)


def _run_playbook(
    job: Job, playbook: Path, lower: list[Path], work: Path, logs: Path, step: log.Step
) -> None:
    """Run ``playbook/site.yml`` in the root file system that ``lower`` make up; ``work/upper`` gets what it writes.

    Raises BuildError that names the task and what it said.
    """
    shown = work / "payload"
    shown.mkdir()
    (shown / "appliance.lock").write_text(job.lock_text, encoding="utf-8")
    mounted, variables = namespace.script(work, lower, upper="upper", payload=shown, system=True)
    # A file, because on the command line a path with a comma is two hosts, and one with a colon has a port.
    inventory = work / "inventory.yml"
    host = {"ansible_connection": "rootfs", "ansible_host": str(work / "root")}
    inventory.write_text(
        rendering.ansible_variables({"all": {"hosts": {"appliance": host}}}), encoding="utf-8"
    )
    command: list[process.Argument] = [ansible.playbook_program(), "-i", inventory, playbook / "site.yml"]
    progress = Progress(phase="running Ansible")

    def on_line(line: str) -> None:
        for text in progress.hear(Said(kind="message", text=line, escaped=line)):
            step.update(text)

    with ansible.scratch() as scratch:
        env = {
            **ansible.variables(scratch, logs),
            **variables,
            "ANSIBLE_CONFIG": str(playbook / "ansible.cfg"),
            "TMPDIR": str(scratch),
            "SOURCE_DATE_EPOCH": str(job.epoch),
            "TZ": "UTC",
        }
        try:
            process.run(
                namespace.isolated(mounted, command),
                env=env,
                on_line=on_line,
                log=logs / "playbook.log",
                orphaned=signal.SIGKILL,
            )
        except CommandFailed as error:
            raise _explain(error, progress, logs, work) from None


def _explain(error: CommandFailed, progress: Progress, logs: Path, work: Path) -> BuildError:
    """Which task failed and what it said; or that the mounts could not be made."""
    if progress.failure:
        where = f"in the task {progress.task!r}" if progress.task else "before its first task"
        return BuildError(
            f"Ansible failed {where}:\n{progress.failure}", hint=f"the whole run: less {logs / 'ansible.log'}"
        )
    said = error.output.strip().splitlines()[-5:]
    if any(line.startswith("mount:") for line in said):
        return BuildError(
            "the root file system cannot be mounted here:\n" + "\n".join(said),
            hint="overlayfs needs the cache on a file system such as ext4, xfs, btrfs or tmpfs, and the right to "
            f"mount: set CONDA_APPLIANCE_CACHE to another folder (now {work.parents[2]}), or run as root",
        )
    return BuildError(
        "the playbook could not be run:\n" + "\n".join(said), hint=f"less {logs / 'ansible.log'}"
    )

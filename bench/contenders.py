"""Who takes part: ours in its variants, and the peers, each a folder of ``peers/`` with its configuration.

A peer's folder has ``peer.yaml`` (what it is, how its output differs from ours), ``build`` (makes the image from what
`inputs` put there; run in the toolbox) and ``reset`` (forgets everything but downloaded packages).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

import contents
from conda_appliance import process, resources
from inputs import HERE, Inputs, Variant, Workspace, stamp_text

METER = HERE / "meter.py"
_PATH = "/opt/peers/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Seconds after which a run is given up.
LIMIT = 1800.0


class Failed(Exception):
    """A run did not end well; the message ends with its last words."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One measured run: the meter's figures, and the image's bytes (as a file; on disk, where holes take nothing)."""

    figures: dict[str, object]
    size: int
    allocated: int


class Contender(Protocol):
    """Makes machines."""

    name: str

    def version(self) -> str:
        """What it calls itself, version included."""

    def about(self) -> dict[str, object]:
        """``output``, ``lacks`` and ``notes`` for the report."""

    def reset(self) -> None:
        """Forget everything but downloaded packages."""

    def build(self, inputs: Inputs) -> Outcome:
        """Make one machine, measured. Raises Failed."""


def metered(
    command: Sequence[str],
    *,
    at: Path,
    name: str,
    root: Path | None = None,
    binds: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> dict[str, object]:
    """Run ``command`` under the meter in a mount namespace of its own; ``at`` is where logs go. Raises Failed."""
    at.mkdir(parents=True, exist_ok=True)
    figures, log = at / f"{name}.json", at / f"{name}.log"
    for path in (figures, log):
        path.unlink(missing_ok=True)
    words = ["unshare", "--mount", "--propagation", "private", sys.executable, str(METER)]
    words += ["--json", str(figures), "--log", str(log), "--own", str(at.parent), "--limit", str(LIMIT)]
    if root is not None:
        words += ["--root", str(root), *(f"--bind={bind}" for bind in binds)]
    given = environment or {}
    if root is not None:
        command = ["env", "-i", *(f"{name}={value}" for name, value in given.items()), *command]
        given = {}
    process.run([*words, "--", *command], env=given, check=False)
    if not figures.exists():
        raise Failed(f"{name} could not be measured; see {log}")
    read: dict[str, object] = json.loads(figures.read_text())
    if read["status"] is None:
        raise Failed(f"{name} was given up after {LIMIT:.0f} s:\n" + _tail(log))
    if read["status"] != 0:
        raise Failed(f"{name} ended with status {read['status']}:\n" + _tail(log))
    return read


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def sizes(images: Sequence[Path]) -> tuple[int, int]:
    """Bytes of files: as they are listed, and as they are on disk."""
    stats = [path.stat() for path in images]
    return sum(one.st_size for one in stats), sum(one.st_blocks * 512 for one in stats)


def verify(image: Path, inputs: Inputs, workspace: Workspace) -> None:
    """Raise Failed unless ``image`` has the environment and the application that were asked for."""
    stamp, application = contents.read(image, workspace.root / "state/contents")
    if stamp != stamp_text(inputs.environment):
        raise Failed(f"{image.name} has not got environment {inputs.environment}, but {stamp!r}")
    if not application.endswith(f"# application {inputs.application}\n"):
        raise Failed(f"{image.name} has not got application {inputs.application}, but …{application[-40:]!r}")


@dataclass(kw_only=True)
class Ours:
    """conda-appliance with the ``rootfs`` builder, in one layout."""

    name: str
    workspace: Workspace
    variant: Variant
    description: str
    out: Path = field(init=False)
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out = self.workspace.root / "state" / self.name / "out"
        self.cache = self.workspace.root / "ours/cache"

    def version(self) -> str:
        """As ``conda-appliance --version`` says it."""
        return process.run([sys.executable, "-m", "conda_appliance", "--version"]).stdout.strip()

    def about(self) -> dict[str, object]:
        """What it makes."""
        return {"output": self.description, "lacks": [], "notes": []}

    def reset(self) -> None:
        """Keep what was downloaded, and the channel, which is packages too; remove every layer and result."""
        kept = ("blobs", "channel", "accelerator.json")
        self.workspace.put_away(self.out, *(one for one in self.cache.iterdir() if one.name not in kept))

    def build(self, inputs: Inputs) -> Outcome:
        """Make one machine from a definition written for it."""
        self.workspace.put(inputs)
        path = self.workspace.write_definition(self._own(inputs), self.variant)
        outcome = self.build_all([path])
        verify(self.images(path.stem)[0], inputs, self.workspace)
        return outcome

    def _own(self, inputs: Inputs) -> Inputs:
        """The variants share a cache: their machines have names of their own."""
        return Inputs(
            name=f"{inputs.name}-{self.name}",
            environment=inputs.environment,
            application=inputs.application,
        )

    def build_all(self, definitions: Sequence[Path]) -> Outcome:
        """Make several machines with one command."""
        command = [sys.executable, "-m", "conda_appliance", "build", *map(str, definitions)]
        command += ["--builder", "rootfs", "--no-check", "--offline", "--out", str(self.out)]
        figures = metered(
            command,
            at=self.workspace.root / "logs",
            name=self.name,
            environment={"CONDA_APPLIANCE_CACHE": str(self.cache)},
        )
        self._forget_older(definitions)
        return Outcome(
            figures=figures, **dict(zip(("size", "allocated"), self._sizes(definitions), strict=True))
        )

    def _forget_older(self, definitions: Sequence[Path]) -> None:
        """Results stay until somebody removes them, and here that is nobody else."""
        for path in definitions:
            latest = (self.out / path.stem / "latest").resolve()
            for folder in (self.out / path.stem).iterdir():
                if folder.is_dir() and not folder.is_symlink() and folder != latest:
                    resources.remove(folder)

    def _sizes(self, definitions: Sequence[Path]) -> tuple[int, int]:
        return sizes([image for path in definitions for image in self.images(path.stem)])

    def images(self, stem: str) -> list[Path]:
        """The disk images of the newest result with this name."""
        folder = (self.out / stem / "latest").resolve()
        return [path for form in self.variant.formats for path in folder.glob(f"*.{form}")]


@dataclass(kw_only=True)
class Peer:
    """Another tool, in the toolbox."""

    name: str
    workspace: Workspace
    toolbox: Path
    mirror: str
    _afresh: bool = field(default=False, init=False)

    @property
    def _home(self) -> Path:
        return HERE / "peers" / self.name

    @property
    def _state(self) -> Path:
        return self.workspace.root / "state" / self.name

    def about(self) -> dict[str, object]:
        """``peer.yaml``."""
        read: dict[str, object] = yaml.safe_load((self._home / "peer.yaml").read_text(encoding="utf-8"))
        return read

    def version(self) -> str:
        """What its own ``--version`` says."""
        ask = str(self.about()["version"])
        said = process.run(["chroot", self.toolbox, "env", f"PATH={_PATH}", "sh", "-c", ask]).stdout
        match = re.search(r"\d[\w.+:~-]*", said)
        return match[0] if match else said.strip()

    def reset(self) -> None:
        """Run its ``reset``; its results go too. Its environment is linked anew for the next image."""
        self._afresh = True
        self._run("reset", Inputs(name="bench", environment=0, application=0))

    def build(self, inputs: Inputs) -> Outcome:
        """Link the environment that is asked for, where it is another one, and run its ``build``."""
        self.workspace.put(inputs)
        figures = self._linked(inputs, {}, afresh=True) if self._afresh else {}
        figures = self._linked(inputs, figures, afresh=False)
        self._afresh = False
        figures = _sum(figures, self._run("build", inputs))
        images = sorted((self._state / "out").glob(f"{inputs.name}.*"))
        images = [path for path in images if path.suffix in (".raw", ".qcow2", ".iso", ".img")]
        if not images:
            raise Failed(f"{self.name} ended well and left no image")
        verify(images[0], inputs, self.workspace)
        size, allocated = sizes(images)
        return Outcome(figures=figures, size=size, allocated=allocated)

    def _linked(self, inputs: Inputs, before: dict[str, Any], *, afresh: bool) -> dict[str, Any]:
        """Bring the environment up to date; what that took is added to ``before``, unless it was paid already."""
        command = self.workspace.linking(inputs, afresh=afresh)
        if command is None:
            return before
        figures = metered(command, at=self.workspace.root / "logs", name=f"{self.name}-link")
        return before or figures

    def _run(self, script: str, inputs: Inputs) -> dict[str, object]:
        (self._state / "out").mkdir(parents=True, exist_ok=True)
        variables = {
            "PATH": f"{_shims()}:{_PATH}",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "NAME": inputs.name,
            "MIRROR": self.mirror,
            "PACKAGES": " ".join((HERE / "peers/packages").read_text().split()),
        }
        return metered(
            ["sh", "-eu", f"/bench/config/{script}"],
            at=self.workspace.root / "logs",
            name=f"{self.name}-{script}",
            root=self.toolbox,
            binds=[
                f"{self._home}:/bench/config",
                f"{self._state}:/bench/state",
                f"{self.workspace.root}/inputs:/bench/inputs",
                f"{HERE}/shims:/bench/shims",
            ],
            environment=variables,
        )


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What two programs took that ran one after the other; memory is the larger one's."""
    if not one:
        return other
    added = ("wall_s", "cpu_s", "user_s", "system_s", "kernel_s", "written", "cancelled", "flush_s")
    return {
        **other,
        **{name: round(one[name] + other[name], 3) for name in added},
        "memory": max(one["memory"], other["memory"]),
        "left": [*one["left"], *other["left"]],
        "link_cpu_s": one["cpu_s"],
    }


def _shims() -> str:
    """Stand-ins on a peer's PATH, for what this machine lacks; each says what it stands for."""
    folders = ["/bench/shims"]
    # /dev/mapper/control says nothing: dmsetup makes it in any case.
    if "device-mapper" not in Path("/proc/misc").read_text():
        folders.insert(0, "/bench/shims/without-device-mapper")
    if not Path("/run/systemd/system").is_dir():
        folders.insert(0, "/bench/shims/without-systemd")
    if not Path("/run/udev/control").exists():
        folders.insert(0, "/bench/shims/without-udev")
    return ":".join(folders)


def peer_names() -> list[str]:
    """Every folder of ``peers/`` that has a ``build``."""
    return sorted(path.parent.name for path in (HERE / "peers").glob("*/build"))


def skipped() -> dict[str, dict[str, Any]]:
    """Peers that were thought of and do not take part; their ``peer.yaml`` says why."""
    found = {
        path.parent.name: yaml.safe_load(path.read_text()) for path in (HERE / "peers").glob("*/peer.yaml")
    }
    return {name: about for name, about in sorted(found.items()) if "skipped" in about}


def package_sets() -> list[str]:
    """What the archive must have, a set for each peer: the machine's packages, with and without some."""
    common = (HERE / "peers/packages").read_text().split()
    sets = []
    for name in peer_names():
        about = yaml.safe_load((HERE / "peers" / name / "peer.yaml").read_text(encoding="utf-8"))
        left_out = str(about.get("leaves_out", "")).split()
        kept = [one for one in common if one not in left_out]
        sets.append(" ".join(["apt", *kept, *str(about.get("packages", "")).split()]))
    return sets

"""The record of a benchmark: machine, contenders, samples; a JSON file that is complete after every sample."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conda_appliance import process
from contenders import Contender, Outcome, skipped
from inputs import Workspace

#: Programs of the host whose version decides figures, and how each says it.
TOOLS = {
    "mmdebstrap": ["mmdebstrap", "--version"],
    "mke2fs": ["mke2fs", "-V"],
    "qemu-img": ["qemu-img", "--version"],
}


@dataclass(kw_only=True)
class Record:
    """What was measured so far; ``path`` is rewritten by each change."""

    path: Path
    machine: dict[str, Any]
    environment: dict[str, int]
    scenarios: dict[str, str]
    contenders: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        path: Path,
        contenders: Iterable[Contender],
        workspace: Workspace,
        scenarios: Mapping[str, str],
        measured: Iterable[str],
    ) -> Record:
        """A record of this machine; samples in ``path`` stay, except of ``measured``, as PEER/SCENARIO."""
        known = cls.read(path) if path.exists() else None
        again = set(measured)
        record = cls(
            path=path,
            machine=machine(workspace.root),
            environment=census(workspace.tree),
            scenarios=dict(scenarios),
            contenders=known.contenders if known else {},
            samples=[one for one in known.samples if _key(one) not in again] if known else [],
        )
        for one in contenders:
            record.contenders[one.name] = {**one.about(), "version": one.version()}
        record.contenders.update(skipped())
        record.write()
        return record

    @classmethod
    def read(cls, path: Path) -> Record:
        """A record as `write` left it."""
        return cls(path=path, **json.loads(path.read_text(encoding="utf-8")))

    def write(self) -> None:
        """Write the file in one step."""
        value = {name: one for name, one in vars(self).items() if name != "path"}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def add(self, scenario: str, pair: str, contender: str, outcome: Outcome) -> None:
        """Keep one sample. ``pair``: samples of one pair were measured one directly after the other."""
        sample = {"scenario": scenario, "pair": pair, "contender": contender, **outcome.figures}
        self.samples.append({**sample, "size": outcome.size, "allocated": outcome.allocated})
        self.write()
        print(
            f"{scenario:12} {pair:16} {contender:18} {outcome.figures['wall_s']:8} s wall "
            f"{outcome.figures['cpu_s']:8} s cpu {outcome.size / 1e6:8.0f} MB",
            flush=True,
        )

    def fail(self, contender: str, reason: str) -> None:
        """Say why a contender has no (more) samples."""
        self.contenders[contender]["failed"] = reason
        self.write()
        print(f"{contender} failed: {reason}", flush=True)

    @property
    def failures(self) -> list[str]:
        """Contenders that did not finish."""
        return [name for name, about in self.contenders.items() if "failed" in about]


def _key(sample: Mapping[str, Any]) -> str:
    peer = sample["pair"].rpartition("-")[0]
    return f"{peer}/{sample['scenario']}"


def machine(folder: Path) -> dict[str, Any]:
    """The machine, as far as it decides figures; ``folder`` is where the work is done."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    system = platform.freedesktop_os_release()
    kind = process.run(["findmnt", "-no", "FSTYPE", "--target", folder]).stdout.strip()
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": int(memory[1]) * 1024 if memory else 0,
        "kernel": platform.release().partition("-")[0],
        "system": system.get("PRETTY_NAME", ""),
        "file_system": kind,
        "python": platform.python_version(),
        "tools": {name: _version(words) for name, words in TOOLS.items()},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _version(words: list[str]) -> str:
    said = process.run(words, check=False)
    match = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return match[0] if match else "unknown"


def census(tree: Path) -> dict[str, int]:
    """Files and bytes below a folder."""
    stats = [Path(at, name).lstat() for at, _, names in os.walk(tree) for name in names]
    return {"files": len(stats), "bytes": sum(one.st_size for one in stats)}

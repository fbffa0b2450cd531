"""What every machine of the benchmark is made of: an environment, an application, and the definitions of ours.

Ours links the environment from the packages that it locked. Peers get it as a folder, which rattler, the same linker,
brings up to date within their time: all of it, byte code too, where they begin with nothing, and else what changed.
Number N of an environment differs from the others in one small package, number N of the application in one line.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conda_appliance import (
    definition,
    fetching,
    linking,
    lock,
    package,
    platforms,
    resolve,
    resources,
    sources,
)

HERE = Path(__file__).resolve().parent
#: The time of every file in the environment: 2020-01-01.
EPOCH = package.EPOCH
#: The package that makes one environment differ from another.
STAMP = "bench-stamp"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One machine to make: its name, which environment and which application."""

    name: str
    environment: int
    application: int


#: Seconds for which ext4 passes by the inode of a removed file that is on the disk (RECENTCY_MIN in fs/ext4/ialloc.c).
_RECENTLY = 60


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How ours makes the machine: the definition's ``disk`` and ``formats`` beside what bench.yaml says."""

    disk: Mapping[str, Any]
    formats: tuple[str, ...] = ("qcow2",)


class Workspace:
    """Everything a run reads, below ``root``; made by `prepare`, changed by `put`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.project = self.root / "ours"
        self.images = self.project / "images"
        self.tree = self.root / "inputs/environment"
        self.archives = self.root / "inputs/archives"
        self.application = self.root / "inputs/application"

    def put_away(self, *paths: Path) -> None:
        """Move ``paths`` aside, for `tidy` to remove; `shims/put-away` says why."""
        away = self.root / "state/away"
        away.mkdir(parents=True, exist_ok=True)
        for path in paths:
            if path.exists():
                path.rename(away / str(time.time_ns()))

    def tidy(self, *, wait: bool = True) -> None:
        """Remove what was put away; with ``wait``, before more is measured, until ext4 no longer minds it."""
        away = [path for path in (self.root / "state/away", *self.root.glob("state/*/away")) if path.exists()]
        for path in away:
            resources.remove(path)
        if away and wait:
            self.rest()

    def rest(self) -> None:
        """Wait until what was made is on the disk and what was removed costs nobody anything any more."""
        os.sync()
        time.sleep(_RECENTLY + 1)

    def next_number(self) -> int:
        """A number that no run in this workspace has had: what was made once may be in somebody's cache."""
        path = self.root / "number"
        number = int(path.read_text()) + 1 if path.exists() else 100
        path.write_text(f"{number}\n")
        return number

    @property
    def base(self) -> Path:
        """The definition that all others are derived from; its lock stands beside it."""
        return self.images / "bench.yaml"

    def prepare(self, cache: sources.Cache) -> None:
        """Lock bench.yaml, fetch what it names, link the environment. What is there already is kept."""
        self.images.mkdir(parents=True, exist_ok=True)
        self._write_channel()
        stamps = self.images / "stamps"
        _write_stamp(stamps, 0, cache)
        if not (stamps / "noarch/repodata.json").is_file():
            package.write_repodata(stamps)
        self._write_application(0)
        text = yaml.safe_load((HERE / "images/bench.yaml").read_text(encoding="utf-8"))
        text["files"] = [{"from": "app/", "to": "/opt/bench"}]
        text["conda"]["channels"].append("./stamps")
        text["conda"]["environments"]["base"]["dependencies"].append(f"{STAMP} ==0")
        self.base.write_text(yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
        image = definition.load_image(self.base)
        path = lock.path_for(self.base)
        if not path.exists() or lock.read(path).digest != definition.lock_digest(self.base, image):
            lock.write(resolve.resolve(image, self.base, cache, print), path)
        locked = lock.read(path)
        files = fetching.fetch(locked, image, self.base, cache, offline=False, progress=print).files
        if not self.archives.exists():
            resources.remove(self.tree)
            self._link(locked, files)
            self._name_archives(locked, files)

    def _write_channel(self) -> None:
        """The benchmark's channel: its own recipes, and Python's as the shipped one has it."""
        channel = self.project / "channel"
        channel.mkdir(exist_ok=True)
        for path in (HERE / "channel/channel.yaml", HERE.parent / "channel/python"):
            if not (channel / path.name).is_symlink():
                (channel / path.name).symlink_to(path)

    def _link(self, locked: lock.Lock, files: Mapping[str, Path]) -> None:
        section = locked.conda.environments["base"]
        scratch = self.root / "link"
        linking.link(
            section.packages,
            files,
            prefix=section.prefix,
            into=self.tree / section.prefix.lstrip("/"),
            epoch=EPOCH,
            work=scratch,
            specs=section.specs,
        )
        resources.remove(scratch)

    def _name_archives(self, locked: lock.Lock, files: Mapping[str, Path]) -> None:
        """The packages under their own names, by which rattler knows what they are."""
        with resources.work_folder(self.root, "archives") as work:
            for one in locked.conda.environments["base"].packages:
                if one.name != STAMP:
                    (work / one.subdir).mkdir(exist_ok=True)
                    shutil.copyfile(files[one.sha256], work / one.subdir / one.filename)
            work.rename(self.archives)
            work.mkdir()

    def linking(self, inputs: Inputs, *, afresh: bool) -> list[str] | None:
        """The command that gives the peers this environment, or None where they have it.

        With ``afresh`` it links all of it, into a folder that nobody reads, and compiles the modules that came without
        byte code: the tree itself, which the peers' images get, is the same files.
        """
        stamp = self.tree / f"opt/conda/share/{STAMP}"
        if not afresh and stamp.read_text() == stamp_text(inputs.environment):
            return None
        changed = self.images / f"stamps/linux-64/{STAMP}-{inputs.environment}-0.conda"
        cache = sources.Cache(self.project / "cache")
        _write_stamp(self.images / "stamps", inputs.environment, cache)
        into, unpacked = self.tree / "opt/conda", self.root / "inputs/unpacked"
        archives, records = [changed], sorted((into / "conda-meta").glob("*.json"))
        if afresh:
            into, archives, records = (
                self.root / "inputs/afresh",
                [*sorted(self.archives.glob("*/*")), changed],
                [],
            )
            self.put_away(into, unpacked)
        given = self.root / "inputs/linking.json"
        given.write_text(
            json.dumps(
                {
                    "archives": list(map(str, archives)),
                    # What stays is known by its records, as ours has it: no archive of it is read.
                    "records": [str(path) for path in records if not path.name.startswith(f"{STAMP}-")],
                    "into": str(into),
                    "prefix": "/opt/conda",
                    "cache": str(unpacked),
                    "platform": platforms.DEFAULT,
                }
            )
        )
        words = [sys.executable, "-P", "-m", "conda_appliance.conda_child", "link"]
        script = f'"$@" <{shlex.quote(str(given))}'
        if afresh:
            modules = self.root / "inputs/modules"
            modules.write_text("".join(f"{path}\n" for path in self._uncompiled()))
            # Python's own way, on all processors. Status 123: a file that is no Python (a test of bad syntax, say).
            python = f"xargs -P {os.cpu_count()} -n 500 bin/python -I -S -m compileall -q >/dev/null"
            script += f' && cd "$0" && {{ {python} <{shlex.quote(str(modules))} || [ $? = 123 ]; }}'
        return ["sh", "-c", script, str(into), *words]

    def _uncompiled(self) -> list[str]:
        """The modules whose packages brought no byte code, as paths in the environment: those that ours compiled."""
        records = sorted((self.tree / "opt/conda/conda-meta").glob("*.json"))
        paths = [path for one in records for path in json.loads(one.read_text())["paths_data"]["paths"]]
        compiled = [one["_path"] for one in paths if one["path_type"] == "pyc_file"]
        return [path.replace("__pycache__/", "").partition(".cpython-")[0] + ".py" for path in compiled]

    def put(self, inputs: Inputs) -> None:
        """Give everybody this application."""
        self._write_application(inputs.application)

    def _write_application(self, number: int) -> None:
        """The application for peers, with its unit enabled, and for ours, whose definition has the service."""
        source = (HERE / "images/bench/app/bench.py").read_text(encoding="utf-8")
        text = f"{source}# application {number}\n"
        for folder in (self.application / "opt/bench", self.images / "app"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "bench.py").write_text(text, encoding="utf-8")
        units = self.application / "etc/systemd/system"
        (units / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / "peers/bench.service", units / "bench.service")
        enabled = units / "multi-user.target.wants/bench.service"
        if not enabled.is_symlink():
            enabled.symlink_to("../bench.service")

    def write_definition(self, inputs: Inputs, variant: Variant, *, app: str = "app/") -> Path:
        """A definition of ours and its lock, without asking apt or a channel; returns the definition's path."""
        text = yaml.safe_load(self.base.read_text(encoding="utf-8"))
        text["name"] = inputs.name
        text["builder"] = "rootfs"
        text["disk"] = {**text["disk"], **variant.disk}
        text["formats"] = list(variant.formats)
        text["files"] = [{"from": app, "to": "/opt/bench"}]
        specs = text["conda"]["environments"]["base"]["dependencies"]
        specs[-1] = f"{STAMP} =={inputs.environment}"
        path = self.images / f"{inputs.name}.yaml"
        if path == self.base:
            path = self.images / f"{inputs.name}-1.yaml"
        path.write_text(yaml.safe_dump(text, sort_keys=False), encoding="utf-8")
        self._write_lock(path, inputs)
        return path

    def _write_lock(self, path: Path, inputs: Inputs) -> None:
        """The base's lock with another stamp: what `conda-appliance lock` would write, without its seconds."""
        locked = lock.read(lock.path_for(self.base))
        section = locked.conda.environments["base"]
        cache = sources.Cache(self.project / "cache")
        archive = _write_stamp(self.images / "stamps", inputs.environment, cache)
        packages = tuple(
            one.model_copy(
                update={
                    "version": str(inputs.environment),
                    "url": one.url.replace(f"{STAMP}-0-0.conda", archive.name),
                    "sha256": resources.sha256_of(archive),
                    "size": archive.stat().st_size,
                }
            )
            if one.name == STAMP
            else one
            for one in section.packages
        )
        specs = (*section.specs[:-1], f"{STAMP} =={inputs.environment}")
        changed = section.model_copy(update={"packages": packages, "specs": specs})
        made = locked.model_copy(
            update={
                "name": inputs.name,
                "digest": definition.lock_digest(path, definition.load_image(path)),
                "conda": locked.conda.model_copy(update={"environments": {"base": changed}}),
            }
        )
        lock.write(made, lock.path_for(path))


def stamp_text(number: int) -> str:
    """What the file of `STAMP` says."""
    return f"environment {number}\n"


def _write_stamp(channel: Path, number: int, cache: sources.Cache) -> Path:
    """One version of a tiny package, in a channel's folder and fetched already, so that a lock may name it offline."""
    archive = channel / f"linux-64/{STAMP}-{number}-0.conda"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with resources.work_folder(channel, "stamp") as scratch:
            (scratch / "share").mkdir()
            (scratch / f"share/{STAMP}").write_text(stamp_text(number))
            one = package.Package(
                name=STAMP,
                version=str(number),
                build="0",
                depends=(),
                license="BSD-3-Clause",
                root=scratch,
                licenses={"LICENSE": (HERE.parent / "LICENSE").read_bytes()},
            )
            package.write_package(one, archive.parent)
    blob = cache.blob(resources.sha256_of(archive))
    if not blob.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(archive, blob)
    return archive

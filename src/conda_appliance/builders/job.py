"""What a builder is given and what it leaves: the same for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from conda_appliance import bill, inventory, log, payload, playbook, resources
from conda_appliance.bill import Bill
from conda_appliance.definition import ImageDefinition
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import Lock
from conda_appliance.sparse import Piece


@dataclass(frozen=True, kw_only=True)
class Job:
    """One image to build.

    ``folder`` is the definition's; ``files`` are the lock's, verified, by SHA-256; ``epoch`` (seconds since 1970) is
    every time stamp; ``identity`` is the build's id; ``project`` may have playbooks and templates of its own.
    """

    image: ImageDefinition
    lock: Lock
    folder: Path
    project: Path
    files: Mapping[str, Path]
    store: Store
    epoch: int
    identity: str
    keep_failed: bool = False
    _linked: list[Layer] = field(default_factory=list, init=False, compare=False, repr=False)
    _bills: dict[Path, Bill] = field(default_factory=dict, init=False, compare=False, repr=False)

    def linked(self, progress: Callable[[str], None]) -> Layer:
        """The image's environments (`payload.of_image`), verified at the first call."""
        if not self._linked:
            made = payload.of_image(
                self.image, self.lock, self.files, store=self.store, epoch=self.epoch, progress=progress
            )
            self._linked.append(made)
        return self._linked[0]

    def bill(self, linked: Path) -> Bill:
        """What the machine is made of; ``linked`` are its environments as a tree."""
        if linked not in self._bills:
            self._bills[linked] = bill.make(
                self.image,
                self.lock,
                self.files,
                linked,
                folder=self.folder,
                store=self.store,
                epoch=self.epoch,
            )
        return self._bills[linked]

    def inventory(self, linked: Layer, files: Path | None = None) -> str:
        """What `appliance-verify` compares the machine with; ``files`` are the definition's, as they are laid down."""
        if files is not None:
            return inventory.text(self.image, linked, files)
        with resources.work_folder(
            self.store.root / "work", f"{self.image.name}-{self.identity}-files"
        ) as work:
            playbook.lay_files(self.image, self.folder, work / "files")
            return inventory.text(self.image, linked, work / "files")

    @cached_property
    def lock_text(self) -> str:
        """The lock as text: long enough to be written once."""
        return self.lock.text


@dataclass(frozen=True, kw_only=True)
class Boxed:
    """A disk that is yet to be made, from the same layers as another and Vagrant's user; ``key`` names its content."""

    key: str
    make: Callable[[log.Step], DiskImage]


@dataclass(frozen=True, kw_only=True)
class DiskImage:
    """A disk that a builder left: ``format`` as qemu-img says it. It may have another disk as its backing file.

    ``key`` names its content where the builder gives the same bytes each time. ``inputs`` are the SHA-256 of what it
    was made from. ``inserts`` are yet to be written into it, and ``around`` is the digest of what is there already.
    One in memory (``memory`` is its descriptor) or in a folder of its own (``scratch``) goes with `release`; any other
    is a layer of the cache. ``boxed`` is the disk of a Vagrant box, where the builder can make one.
    """

    path: Path
    format: str
    inputs: Mapping[str, str]
    key: str = ""
    inserts: tuple[Piece, ...] = ()
    around: str = ""
    scratch: Path | None = None
    memory: int | None = None
    boxed: Boxed | None = None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What makes up a raw disk (`sparse.opened`)."""
        return (Piece(source=self.path, at=0), *self.inserts)

    def release(self) -> None:
        """Let go of the disk: it is exported."""
        if self.scratch is not None:
            resources.remove(self.scratch)
        if self.memory is not None:
            os.close(self.memory)

"""The services of a definition, and the programs that they may run beside their environment's packages."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from conda_appliance.fields import (
    AbsolutePath,
    Name,
    Port,
    Sha256,
    pattern,
)
from conda_appliance.yamlfile import Model


class ProgramFile(Model):
    """A program in one file."""

    url: Annotated[
        str,
        Field(
            pattern=r"^(https?://[^\s@]+|[^\s:]+)$",
            description="Where it is: https://…, or a path from this file.",
        ),
    ]
    sha256: Annotated[
        Sha256 | None,
        Field(description="Its SHA-256; a download without one is refused, a path is locked as it is."),
    ] = None

    @model_validator(mode="after")
    def _verified(self) -> Self:
        if "://" in self.url and self.sha256 is None:
            raise ValueError(f"{self.url} needs its sha256: nothing unverified is downloaded")
        return self


class GitTree(Model):
    """The files of a git repository at a commit."""

    url: Annotated[
        str,
        Field(
            pattern=r"^((https?|ssh|git|file)://\S+|[\w.-]+@[\w.-]+:\S+|[./~][^\s:]*)$",
            description="Where git finds it: https://…, ssh://…, user@host:path, or a path from this file.",
        ),
    ]
    commit: Annotated[
        str,
        AfterValidator(
            pattern(
                r"[0-9a-f]{40}([0-9a-f]{24})?",
                "a full commit, which never moves; `git ls-remote URL NAME` tells the one of a branch or tag",
            )
        ),
        Field(description="The full hash: a branch or tag may move."),
    ]

    @model_validator(mode="after")
    def _no_secret(self) -> Self:
        if re.search(r"://[^/@]*:[^/@]*@", self.url):
            raise ValueError(
                "the URL holds a password, which would land in the lock: use git's credential helpers"
            )
        return self


class Program(Model):
    """What a service runs that is no package of its environment; one of these. It lies in /opt/appliance/NAME/."""

    pex: Annotated[ProgramFile | None, Field(description="A PEX file, run by the environment's Python.")] = (
        None
    )
    zipapp: Annotated[
        ProgramFile | None,
        Field(description="A zip application (zipapp, shiv), run by the environment's Python."),
    ] = None
    wheel: Annotated[
        ProgramFile | None,
        Field(
            description="A wheel, installed into the environment with what it requires; its console script runs."
        ),
    ] = None
    git: Annotated[GitTree | None, Field(description="A git repository at a commit.")] = None
    frozen: Annotated[
        ProgramFile | None,
        Field(description="A program with its own Python (PyInstaller …): a file, or a tar of a folder."),
    ] = None

    @property
    def kind(self) -> str:
        """Which one it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        kinds = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        return self


class Service(Model):
    """A systemd service of the machine, run by an unprivileged user of its own, sandboxed."""

    name: Name
    program: Annotated[
        Program | None, Field(description="What it runs, where that is no package of its environment.")
    ] = None
    command: Annotated[
        str,
        Field(
            description="Its first word is looked up in the environment's bin/. With a `program`, {program} stands for "
            "it: what runs it, or the folder of one that is several files; alone it is the default."
        ),
    ] = ""
    environment: Annotated[Name, Field(description="The conda environment it runs in.")] = "base"
    port: Annotated[Port | None, Field(description="The TCP port it listens on; checked.")] = None
    path: Annotated[
        str,
        Field(pattern=r"^/\S*$", description="What a GET must answer below 400, if it has a port."),
    ] = "/"
    working_directory: Annotated[AbsolutePath | None, Field(description="Where it starts.")] = None
    variables: Annotated[
        dict[str, str],
        Field(description="Environment variables; no secrets, they land in the image."),
    ] = {}  # noqa: RUF012 (pydantic copies it; ruff sees no BaseModel here)

    @model_validator(mode="after")
    def _commanded(self) -> Self:
        if self.program is None and not self.command.strip():
            raise ValueError(f"the service {self.name!r} needs a command, or a program")
        if self.program is None and "{program}" in self.command:
            raise ValueError("{program} stands for the service's `program`, and it has none")
        if self.program is not None and self.program.kind == "git" and not self.command:
            raise ValueError("a git repository needs a command, such as 'python {program}/server.py'")
        return self

    @model_validator(mode="after")
    def _one_line(self) -> Self:
        for text in (self.command, *self.variables.values()):
            if re.search(r"[\x00-\x1f]", text):
                raise ValueError("a command or variable holds a line break or control character")
        for name in self.variables:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
        return self

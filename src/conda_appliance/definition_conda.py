"""The conda side of a definition: environments, channels, and whose channels need a word about their licence."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from conda_appliance import credentials
from conda_appliance.errors import UsageError
from conda_appliance.fields import (
    AbsolutePath,
    Name,
    Version,
)
from conda_appliance.yamlfile import Model


class Environment(Model):
    """A conda environment, by a file or by its dependencies."""

    file: Annotated[
        str | None,
        Field(
            description="An environment.yml, or a pixi workspace (pixi.toml, pyproject.toml), as a path from this file."
        ),
    ] = None
    dependencies: Annotated[tuple[str, ...], Field(description="Match specs, such as 'python 3.13.*'.")] = ()
    pip: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(
            description="What the channels have not, from PyPI: requirements such as 'bottle >=0.13', or wheels as "
            "paths from this file. Only wheels, each locked by its SHA-256, installed after the conda packages."
        ),
    ] = ()

    lock: Annotated[
        str | None,
        Field(
            description="Another tool's lock, taken as it is, as a path from the definition's folder: a pixi.lock, a "
            "conda-lock.yml, or an @EXPLICIT file."
        ),
    ] = None
    select: Annotated[str, Field(description="Which environment of a pixi.lock or workspace.")] = "default"

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [bool(one) for one in (self.file, self.dependencies, self.lock)]
        if sum(given) != 1:
            raise ValueError("give one of 'file', 'dependencies' and 'lock'")
        if self.select != "default" and self.lock is None and not (self.file or "").endswith(".toml"):
            raise ValueError("'select' chooses an environment of a pixi workspace or lock")
        if self.lock and self.pip:
            raise ValueError("'pip' would change what the 'lock' settled: lock it there")
        return self


#: Why what is Anaconda's needs a word (https://www.anaconda.com/legal/terms/terms-of-service and its FAQ).
ANACONDA_TERMS = (
    "this is Anaconda's, whose terms ask organisations of more than 200 people for a paid licence, and anybody who "
    "hands its packages on, as an image does. Use conda-forge, or, if you have the licence that your use needs, say so "
    "with conda.accept: [anaconda-tos]"
)


def is_anacondas(channel: str) -> bool:
    """Whether a channel, by its name or a URL in it, is under Anaconda's terms of service."""
    names = "defaults|main|free|r|pro|msys2|anaconda"
    return bool(
        re.fullmatch(names, channel)
        or re.match(r"https?://repo\.(anaconda\.com|continuum\.io)(/|$)", channel)
        or re.match(rf"https?://conda\.anaconda\.org/({names})(/|$)", channel)
    )


def _named(channel: str) -> str:
    """A channel of anaconda.org by its name, whether it was named or its URL was given."""
    return channel.removeprefix("https://conda.anaconda.org/").rstrip("/")


class Conda(Model):
    """The conda side of the machine."""

    prefix: Annotated[
        AbsolutePath,
        Field(description="Where the environment 'base' lives; others live in PREFIX/envs/NAME."),
    ] = "/opt/conda"
    distribution: Annotated[
        Literal["none"],
        Field(description="none: the environment is linked from the channels' packages."),
    ] = "none"
    channels: Annotated[
        tuple[str, ...],
        Field(
            min_length=1,
            description="In order of priority: names (conda-forge), URLs, folders from this file, "
            "or 'starter', the channel that conda-appliance builds from PyPI and Debian.",
        ),
    ]
    mirrors: Annotated[
        dict[str, Annotated[tuple[str, ...], Field(min_length=1)]],
        Field(
            default_factory=dict,
            description="Where a channel's files are taken from instead, the first that answers: by the URL (or name) "
            "of a channel, URLs. The lock keeps the channel's own URLs. Credentials stand elsewhere (how-to/channels).",
        ),
    ]
    frozen: Annotated[
        bool,
        Field(
            description="Machine images: conda and pip leave the environments as they are (CEP 22, PEP 668); new ones "
            "go to /var/lib/conda."
        ),
    ] = False
    accept: Annotated[
        tuple[Literal["anaconda-tos"], ...],
        Field(description="anaconda-tos: you may use Anaconda's channels, and hand on what is in them."),
    ] = ()
    pip_index: Annotated[
        str | None,
        Field(
            pattern=r"^https?://\S+$",
            description="The package index that `pip` is locked from (PEP 503); else uv's settings, PyPI without any.",
        ),
    ] = None
    environments: Annotated[
        dict[Name, Environment],
        Field(min_length=1, description="By name; 'base' is PREFIX itself."),
    ]
    glibc: Annotated[
        Version | None,
        Field(description="The target's glibc, where the base does not tell it (a cloud image)."),
    ] = None

    @model_validator(mode="after")
    def _without_secrets(self) -> Self:
        mirrors = [url for key, urls in self.mirrors.items() for url in (key, *urls)]
        for url in (*self.channels, *mirrors, *([self.pip_index] if self.pip_index else [])):
            try:
                credentials.require_clean(url, "the URL")
            except UsageError as error:
                raise ValueError(f"{error.message}: {error.hint}") from None
        for urls in self.mirrors.values():
            for url in urls:
                if not re.match(r"https?://[^/\s]+", url):
                    raise ValueError(f"the mirror {url!r} is no URL, like https://mirror.example/conda-forge")
        named = {_named(channel) for channel in self.channels}
        unused = [key for key in self.mirrors if _named(key) not in named]
        if unused and not any(one.lock for one in self.environments.values()):
            raise ValueError(
                f"mirrors of {', '.join(unused)}, which is none of the channels; write it as 'channels' does"
            )
        return self

    @model_validator(mode="after")
    def _licensed(self) -> Self:
        theirs = [channel for channel in self.channels if is_anacondas(channel)]
        if theirs and "anaconda-tos" not in self.accept:
            raise ValueError(f"{', '.join(theirs)}: {ANACONDA_TERMS}")
        return self


def is_wheel(item: str) -> bool:
    """Whether an item of ``pip`` is a wheel's path rather than a requirement."""
    return item.endswith(".whl") and "://" not in item

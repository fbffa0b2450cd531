"""The conda side of a definition: environments, channels, and whose channels need a word about their licence."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from conda_appliance import credentials
from conda_appliance.errors import UsageError
from conda_appliance.fields import (
    AbsolutePath,
    Name,
    Sha256,
    Version,
)
from conda_appliance.yamlfile import Model


class Distribution(Model):
    """A conda distribution that its own installer lays down: Miniforge, Miniconda, or any that constructor made."""

    name: Annotated[
        Literal["miniforge", "miniconda"] | None,
        Field(description="Whose installer it is; or give `installer`."),
    ] = None
    version: Annotated[
        Version | None,
        Field(
            description="The release, such as 25.9.1-0 or py313_25.9.1-1; without it `lock` takes the newest."
        ),
    ] = None
    mirror: Annotated[
        str | None,
        Field(
            pattern=r"^https?://[^\s@]+$",
            description="Where the releases are, laid out as at their origin: github.com/conda-forge/miniforge/"
            "releases/download, repo.anaconda.com/miniconda.",
        ),
    ] = None
    installer: Annotated[
        str | None,
        Field(description="An installer that constructor made (NAME.sh): a URL, or a path from this file."),
    ] = None
    sha256: Annotated[
        Sha256 | None, Field(description="The installer's digest; one that comes from a URL needs it.")
    ] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.name is None) == (self.installer is None):
            raise ValueError("give one of 'name' (miniforge, miniconda) and 'installer'")
        if self.installer is None:
            if self.sha256 is not None:
                raise ValueError("'sha256' goes with 'installer'; a release's digest is its publisher's")
            if self.mirror is not None and self.version is None:
                raise ValueError("a mirror does not tell which release is the newest: give the 'version'")
            return self
        if self.version is not None or self.mirror is not None:
            raise ValueError("'version' and 'mirror' go with 'name'")
        if not self.installer.endswith(".sh"):
            raise ValueError(f"{self.installer} is no installer for Linux: those are named NAME.sh")
        if "://" in self.installer and self.sha256 is None:
            raise ValueError("an installer from the network runs as root in the machine: give its 'sha256'")
        return self

    @property
    def is_anacondas(self) -> bool:
        """Whether what it lays down is under Anaconda's terms of service."""
        return self.name == "miniconda" or (self.installer is not None and is_anacondas(self.installer))


class Environment(Model):
    """A conda environment, by a file, by its dependencies, by another tool's lock, or as an installer lays it down."""

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
    distribution: Annotated[
        Distribution | None,
        Field(description="A distribution's own installer makes it; `conda.distribution` says so of 'base'."),
    ] = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [bool(one) for one in (self.file, self.dependencies, self.lock, self.distribution)]
        if sum(given) != 1:
            raise ValueError("give one of 'file', 'dependencies', 'lock' and 'distribution'")
        if self.distribution and self.pip:
            raise ValueError("'pip' would change what the installer lays down: make an environment beside it")
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


def _texts(value: bool | int | str | tuple[str, ...]) -> tuple[str, ...]:
    """The texts in a value of ``settings``."""
    if isinstance(value, tuple):
        return value
    return (value,) if isinstance(value, str) else ()


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
        Literal["none", "miniforge", "miniconda"] | Distribution,
        Field(
            description="What 'base' is. none: linked from the channels' packages, as `environments` asks. Else what "
            "an installer lays down, with conda itself in it: miniforge, miniconda, or a Distribution."
        ),
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
    post_link: Annotated[
        Literal["refuse", "build", "first-boot"],
        Field(
            description="Packages with a post-link script. refuse: locking names them and fails; build: the scripts "
            "run in the machine's tree when it is built, without a network (a Debian base); first-boot: a unit runs "
            "them once on the machine, before its services."
        ),
    ] = "refuse"
    environments: Annotated[
        dict[Name, Environment],
        Field(default_factory=dict, min_length=1, description="By name; 'base' is PREFIX itself."),
    ]

    settings: Annotated[
        dict[str, bool | int | str | tuple[str, ...]],
        Field(
            description="Machine images: more for the machine's .condarc, such as channel_alias, channels (as the "
            "machine reaches them), allowlist_channels.",
            default_factory=dict,
        ),
    ]

    @model_validator(mode="before")
    @classmethod
    def _base_of_distribution(cls, given: Any) -> Any:
        """``distribution: miniforge`` is short for an environment 'base' that it makes."""
        if not isinstance(given, dict) or given.get("distribution", "none") in (None, "none"):
            return given
        environments = given.get("environments") or {}
        if not isinstance(environments, dict):
            return given
        one = given["distribution"]
        one = {"name": one} if isinstance(one, str) else one
        if "base" in environments:
            if environments["base"] == {"distribution": one}:
                return given
            raise ValueError("'distribution' makes the environment 'base': give yours another name")
        return {**given, "environments": {"base": {"distribution": one}, **environments}}

    @model_validator(mode="after")
    def _without_secrets(self) -> Self:
        mirrors = [url for key, urls in self.mirrors.items() for url in (key, *urls)]
        made = [one.distribution for one in self.environments.values() if one.distribution is not None]
        theirs = [url for one in made for url in (one.installer, one.mirror) if url]
        said = [text for value in self.settings.values() for text in _texts(value)]
        for url in (*self.channels, *mirrors, *([self.pip_index] if self.pip_index else []), *theirs, *said):
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
        if not self.environments:
            raise ValueError("give 'environments', or a 'distribution'")
        for key in ("channels", "default_channels"):
            if not isinstance(self.settings.get(key, ()), tuple):
                raise ValueError(f"settings.{key} is a list")
        asked = [
            text for key in ("channels", "default_channels") for text in _texts(self.settings.get(key, ()))
        ]
        theirs = [channel for channel in (*self.channels, *asked) if is_anacondas(channel)]
        theirs += [
            f"environments.{name}"
            for name, one in self.environments.items()
            if one.distribution is not None and one.distribution.is_anacondas
        ]
        if theirs and "anaconda-tos" not in self.accept:
            raise ValueError(f"{', '.join(theirs)}: {ANACONDA_TERMS}")
        return self


def is_wheel(item: str) -> bool:
    """Whether an item of ``pip`` is a wheel's path rather than a requirement."""
    return item.endswith(".whl") and "://" not in item

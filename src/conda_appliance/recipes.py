"""The recipes of a channel that is built here: what ``channel.yaml`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import yaml
from packaging.licenses import canonicalize_license_expression
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from conda_appliance.errors import UsageError

Spdx = Annotated[str, AfterValidator(canonicalize_license_expression)]
Minor = Annotated[str, Field(pattern=r"^3\.\d+$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Library(_Part):
    """A library: the shared objects of ``debs``. The first ``.deb`` gives the version, all of them licence texts."""

    debs: Annotated[tuple[str, ...], Field(min_length=1)]
    license: Spdx
    depends: tuple[str, ...] = ()


class Libraries(_Part):
    """The libraries and the suite they come from; ``glibc`` is what their symbols need."""

    suite: str
    glibc: str
    packages: dict[str, Library]


class Python(_Part):
    """The interpreter: a source package of a suite, compiled against the libraries' headers.

    ``patches`` are name patterns: which of Debian's patches are applied to the original source.
    """

    suite: str
    source: Annotated[str, Field(pattern=r"^python3\.\d+$")]
    patches: tuple[str, ...] = ()
    headers: tuple[str, ...]
    license: Spdx
    depends: tuple[str, ...]


class Certificates(_Part):
    """The certificate authorities: the wheel that carries them."""

    wheel: str
    license: Spdx


class Pin(_Part):
    """A wheel of PyPI by version and SHA-256; ``license`` and ``depends`` where its metadata does not say them."""

    version: str
    sha256: Digest
    license: Spdx | None = None
    depends: tuple[str, ...] = ()


class Wheel(_Part):
    """A `Pin`, or one for each platform: ``sha256`` then has a digest by platform, of wheels that were compiled."""

    version: str
    sha256: Digest | dict[str, Digest]
    license: Spdx | None = None
    depends: tuple[str, ...] = ()

    def on(self, platform: str) -> Pin | None:
        """What is pinned for a platform of conda's; None where nothing is."""
        digest = self.sha256.get(platform) if isinstance(self.sha256, dict) else self.sha256
        if digest is None:
            return None
        return Pin(version=self.version, sha256=digest, license=self.license, depends=self.depends)


class Recipes(_Part):
    """What ``channel.yaml`` says. Without a recipe for Python, ``python_version`` says which the wheels are for."""

    libraries: Libraries | None = None
    python: Python | None = None
    python_version: Minor | None = None
    certificates: Certificates | None = None
    wheels: dict[str, Wheel] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.python and not self.libraries:
            raise ValueError("'python' is compiled against 'libraries', and there are none")
        if self.python and self.python_version:
            raise ValueError("'python' already says the version; leave 'python_version' out")
        if self.wheels and not self.minor:
            raise ValueError("'wheels' need a 'python', or a 'python_version' such as '3.13'")
        if self.certificates and self.certificates.wheel not in self.wheels:
            raise ValueError(f"certificates.wheel: {self.certificates.wheel!r} is none of 'wheels'")
        return self

    @property
    def minor(self) -> str:
        """The Python that compiled wheels are for, such as ``3.13``."""
        return self.python.source.removeprefix("python") if self.python else self.python_version or ""


def read(folder: Path) -> Recipes:
    """Read ``channel.yaml``. Raises UsageError saying what is wrong in it."""
    path = folder / "channel.yaml"
    try:
        return Recipes.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise UsageError("\n".join(lines)) from None

"""An environment of a pixi workspace (pixi.toml, or pyproject.toml's ``tool.pixi``) → what it asks for.

Source: https://pixi.sh/latest/reference/pixi_manifest/ and python/pyproject_toml/. Tasks and what is about developing
are not read; what would change the environment and cannot be honoured is refused by its name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from conda_appliance import contract, log, workspace_python
from conda_appliance.errors import UsageError

#: The tables of ``target`` that a platform takes, the most general first.
_TARGETS = {"linux-64": ("unix", "linux", "linux-64"), "linux-aarch64": ("unix", "linux", "linux-aarch64")}
#: The tables of conda packages: outside of packages that pixi builds, all of them are installed, and a later one of
#: these wins where two name a package.
_DEPENDENCIES = ("dependencies", "host-dependencies", "build-dependencies")
#: What of a feature, its targets, or the workspace's own table is read here or says nothing of an environment.
_KNOWN = (
    *_DEPENDENCIES,
    *("constraints", "pypi-dependencies", "pypi-options", "activation", "tasks", "target"),
    *("platforms", "channels", "channel-priority", "solve-strategy", "system-requirements"),
)
_KNOWN_ROOT = ("$schema", "workspace", "project", "package", "environments", "feature")
#: What a feature or workspace may say in one way only, and what else would mean.
_ONLY = {
    "channel-priority": ("strict", "the definition's channels are asked strictly in their order"),
    "solve-strategy": ("highest", "the newest packages are taken"),
}
#: Keys of a platform or of system-requirements: what they are of a machine's `contract.Contract`.
_PROMISES = {
    "cuda": "cuda",
    "glibc": "glibc",
    "libc": "glibc",
    "linux": "kernel",
    "archspec": "arch_level",
}
#: … and what they say of other systems.
_ELSEWHERE = ("macos", "osx", "windows", "win")
#: Keys of a package that a match spec has too, and what it calls them.
_MATCHED = {
    "build-number": "build_number",
    "file-name": "fn",
    "license": "license",
    "md5": "md5",
    "sha256": "sha256",
    "subdir": "subdir",
}
#: The index that is asked unless one is named.
_PYPI = "https://pypi.org/simple"


#: What makes a match spec or requirement: where it stands, whose it is, what is asked → its text, or nothing.
_Make = Callable[[str, str, Any], str]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """``specs`` are match specs, ``constraints`` those of packages that may be left out; ``pip`` requirements.

    ``needs`` is what the machine must have at least, by the fields of `contract.Contract`; ``channels`` are the
    workspace's, the first asked first. ``group``: what all environments of its solve group ask for together.
    """

    specs: tuple[str, ...]
    pip: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    group: Wanted | None = None


def read(
    path: Path, environment: str, platform: str, *, wheels: Sequence[str] = (), index: str | None = None
) -> Wanted:
    """What an environment of the workspace asks for on a platform.

    ``wheels`` are the projects whose wheels are given beside it: they go before what the workspace says of those.
    ``index`` is the package index that is asked; PyPI without it. Raises UsageError for what is no workspace, has no
    such environment or platform, or cannot be honoured.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from None
    python = {}
    if path.name == "pyproject.toml":
        python = workspace_python.features(path, value)
        value = value.get("tool", {}).get("pixi", {})
    about = value.get("workspace") or value.get("project")
    if not isinstance(about, dict):
        raise UsageError(f"{path} is no pixi workspace: it has no table 'workspace'")
    found = _Workspace(
        path=path,
        value=value,
        about=about,
        python=python,
        platform=platform,
        wheels=frozenset(map(canonicalize_name, wheels)),
        index=(index or _PYPI).rstrip("/"),
    )
    return found.environment(environment)


@dataclass(frozen=True, kw_only=True)
class _Workspace:
    path: Path
    value: Mapping[str, Any]
    about: Mapping[str, Any]
    python: Mapping[str, workspace_python.Feature]
    platform: str
    wheels: frozenset[str]
    index: str

    def environment(self, name: str) -> Wanted:
        environments = self.value.get("environments", {})
        if name != "default" and name not in environments:
            has = ", ".join(dict.fromkeys(["default", *environments]))
            raise UsageError(
                f"{self.path} has no environment {name!r}; it has {has}", hint="name it by `select`"
            )
        self._require_known(self._features(name))
        wanted = self._asked([name], self._spec, self._requirement)
        if not wanted.specs:
            raise UsageError(f"{self.path}: the environment {name!r} has no dependencies")
        if any(
            table.get("activation")
            for _, feature in self._features(name)
            for _, table in self._tables(feature)
        ):
            log.warn(
                f"{self.path}: nothing on a machine activates an environment, so its 'activation' is left out: set "
                "what a service needs as its `variables`"
            )
        together = self._together(name, wanted.needs)
        if len(together) > 1:
            return replace(
                wanted,
                group=self._asked(
                    together, self._passing_over(self._spec), self._passing_over(self._requirement)
                ),
            )
        return wanted

    def _together(self, name: str, needs: Mapping[str, str]) -> list[str]:
        """The environments of a solve group that a machine for ``name``, with these needs, could have too."""
        environments = self.value.get("environments", {})
        group = _group(environments.get(name))
        found = []
        for other, said in environments.items():
            if group is None or _group(said) != group or not self._platforms(other):
                continue
            theirs = self._asked(
                [other],
                self._passing_over(self._spec, tell=False),
                self._passing_over(self._requirement, tell=False),
            ).needs
            beyond = [
                key
                for key in ("cuda", "arch_level")
                if key in theirs and contract.is_more(theirs[key], needs.get(key))
            ]
            if other == name or not beyond:
                found.append(other)
            else:
                log.warn(
                    f"{self.path}: {other!r} needs more of the machine than {name!r}, and is not solved with it"
                )
        return found

    def _passing_over(self, make: _Make, *, tell: bool = True) -> _Make:
        """For the other environments of a solve group: what cannot be honoured is left out there, and told."""

        def made(where: str, name: str, asked: Any) -> str:
            try:
                return make(where, name, asked)
            except UsageError as error:
                if tell:
                    log.warn(f"{error.message}; the solve group is solved without it")
                return ""

        return made

    def _asked(self, names: Sequence[str], spec: _Make, requirement: _Make) -> Wanted:
        """What these environments ask for together."""
        specs, pip, constraints = list[str](), list[str](), list[str]()
        needs: dict[str, str] = {}
        for name in names:
            self._need(needs, self._chosen(name))
            for where, feature in self._features(name):
                conda, limits, python = dict[str, str](), dict[str, str](), dict[str, str]()
                for place, table in self._tables(feature):
                    at = f"{where}{place}"
                    for kind in _DEPENDENCIES:
                        for package, asked in table.get(kind, {}).items():
                            conda[package.lower()] = spec(f"{at}{kind}.{package}", package, asked)
                    for package, asked in table.get("constraints", {}).items():
                        limits[package.lower()] = spec(f"{at}constraints.{package}", package, asked)
                    for project, asked in table.get("pypi-dependencies", {}).items():
                        key = canonicalize_name(project)
                        python[key] = requirement(f"{at}pypi-dependencies.{project}", project, asked)
                    self._need(needs, table.get("system-requirements", {}), f"{at}system-requirements.")
                own = self.python.get(where.removeprefix("feature.").rstrip(".") or "default")
                if own is not None:
                    if own.python and "python" not in conda:
                        conda["python"] = f"python {own.python}"
                    pip += own.requirements
                specs += filter(None, conda.values())
                constraints += filter(None, limits.values())
                pip += filter(None, python.values())
        return Wanted(
            specs=tuple(dict.fromkeys(specs)),
            pip=tuple(dict.fromkeys(pip)),
            constraints=tuple(dict.fromkeys(constraints)),
            needs=needs,
            channels=self._channels(names[0]),
        )

    # --- features -----------------------------------------------------------------------------------

    def _features(self, environment: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The features of an environment, the default one last: what it is called in messages, and its table."""
        said = self.value.get("environments", {}).get(environment, [])
        names = said.get("features", []) if isinstance(said, dict) else said
        for name in names:
            feature = self.value.get("feature", {}).get(name)
            if feature is None and name not in self.python:
                raise UsageError(
                    f"{self.path}: the environment {environment!r} has a feature {name!r}, which is not there"
                )
            yield f"feature.{name}.", feature or {}
        if not (isinstance(said, dict) and said.get("no-default-feature")):
            yield "", self.value

    def _tables(self, feature: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """A feature's own tables, and those of its targets that the platform is: each goes before those above it."""
        yield "", feature
        for name in _TARGETS[self.platform]:
            yield f"target.{name}.", feature.get("target", {}).get(name, {})

    def _require_known(self, features: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Raise UsageError for what the workspace or these features say and cannot be honoured."""
        if self.about.get("exclude-newer"):
            raise self._refusal(
                "workspace.exclude-newer",
                "packages are not chosen by their age",
                "lock by pixi, and name its pixi.lock",
            )
        self._require_only("workspace.", self.about)
        self._require_options("workspace.", self.about)
        for where, feature in features:
            for place, table in self._tables(feature):
                for key in table:
                    if key not in _KNOWN and not (table is self.value and key in _KNOWN_ROOT):
                        raise self._refusal(
                            f"{where}{place}{key}", "it is not known here", "leave it out, or lock by pixi"
                        )
                self._require_only(f"{where}{place}", table)
                self._require_options(f"{where}{place}", table)

    def _require_only(self, where: str, table: Mapping[str, Any]) -> None:
        for key, (word, why) in _ONLY.items():
            if table.get(key, word) != word:
                raise self._refusal(f"{where}{key}", why, f"leave it out, which is {word!r}")

    def _require_options(self, where: str, table: Mapping[str, Any]) -> None:
        """What is about building projects says nothing here: only wheels are taken."""
        options = table.get("pypi-options", {})
        at = f"{where}pypi-options."
        for key in ("extra-index-urls", "find-links"):
            if options.get(key):
                raise self._refusal(
                    f"{at}{key}",
                    "one index is asked",
                    "name what they have by its wheel in the environment's `pip`",
                )
        if str(options.get("index-url", self.index)).rstrip("/") != self.index:
            raise self._refusal(
                f"{at}index-url",
                f"the definition's index is {self.index}",
                "name this one as conda.pip_index",
            )
        if options.get("no-binary"):
            raise self._refusal(
                f"{at}no-binary",
                "only wheels are taken",
                "build those projects as wheels, and name them in `pip`",
            )
        if options.get("dependency-overrides"):
            raise self._refusal(
                f"{at}dependency-overrides",
                "what projects require is not overridden",
                "lock by pixi, and name its pixi.lock",
            )
        if options.get("prerelease-mode", "if-necessary-or-explicit") != "if-necessary-or-explicit":
            raise self._refusal(
                f"{at}prerelease-mode",
                "pre-releases are taken where they are named or nothing else is there",
                "name them",
            )

    def _refusal(self, where: str, why: str, hint: str) -> UsageError:
        return UsageError(f"{self.path}: {where} cannot be honoured: {why}", hint=hint)

    # --- machines and channels ----------------------------------------------------------------------

    def _declared(self) -> list[tuple[str, str, Mapping[str, str]]]:
        """The workspace's platforms: name, conda's platform, and what is declared of its machines."""
        found: list[tuple[str, str, Mapping[str, str]]] = []
        for one in self.about.get("platforms", []):
            if isinstance(one, str):
                found.append((one, one, {}))
                continue
            platform = str(one.get("platform") or one.get("name"))
            declared = {key: value for key, value in one.items() if key not in ("name", "platform")}
            found.append((str(one.get("name") or platform), platform, declared))
        return found

    def _platforms(self, environment: str) -> list[tuple[str, Mapping[str, str]]]:
        """The workspace's platforms that the environment and all its features are for, of those that are this one."""
        named = [
            table["platforms"]
            for where, table in self._features(environment)
            if where and table.get("platforms")
        ]
        return [
            (name, declared)
            for name, platform, declared in self._declared()
            if platform == self.platform and all({name, platform} & {*names} for names in named)
        ]

    def _chosen(self, environment: str) -> Mapping[str, str]:
        """What is declared of the machines of this platform, for an environment."""
        found = self._platforms(environment)
        if not found:
            platforms = ", ".join(name for name, _, _ in self._declared()) or "none"
            raise UsageError(
                f"{self.path}: the environment {environment!r} is not for {self.platform}; the workspace's platforms: "
                f"{platforms}"
            )
        plain = [one for one in found if not one[1]] or found
        if len(plain) > 1:
            raise UsageError(
                f"{self.path}: the environment {environment!r} is for several machines of {self.platform}: "
                f"{', '.join(name for name, _ in plain)}",
                hint="select an environment with a feature that names one of them in its `platforms`",
            )
        return plain[0][1]

    def _need(
        self, needs: dict[str, str], said: Mapping[str, Any], where: str = "workspace.platforms: "
    ) -> None:
        """Add to ``needs`` what is said of machines; the highest wins."""
        for key, value in said.items():
            word = key.removeprefix("__")
            if word in _ELSEWHERE:
                continue
            promise = _PROMISES.get(word)
            version = value.get("version") or value.get("driver") if isinstance(value, dict) else value
            other = isinstance(value, dict) and value.get("family", "glibc") != "glibc"
            if promise is None or version is None or other:
                raise self._refusal(
                    f"{where}{key}",
                    "a machine promises a glibc, a kernel, a level of x86-64 and CUDA",
                    "leave it out",
                )
            text = str(version)
            if promise == "arch_level":
                levels = {build: level for level, build in contract.ARCHSPEC.items()}
                if text not in levels:
                    raise self._refusal(
                        f"{where}{key} = {text!r}",
                        "machines have levels of x86-64",
                        f"one of {', '.join(levels)}",
                    )
                text = levels[text]
            if contract.is_more(text, needs.get(promise)):
                needs[promise] = text

    def _channels(self, environment: str) -> tuple[str, ...]:
        """The channels of an environment by their priority, which is 0 unless it is said."""
        ranks: dict[str, int] = {}
        for where, table in self._features(environment):
            own = table.get("channels") if where else None
            for one in own or self.about.get("channels", []):
                name, rank = (
                    (one, 0)
                    if isinstance(one, str)
                    else (str(one.get("channel")), int(one.get("priority", 0)))
                )
                ranks.setdefault(name, rank)
        return tuple(sorted(ranks, key=lambda name: -ranks[name]))

    # --- packages -----------------------------------------------------------------------------------

    def _spec(self, where: str, name: str, asked: Any) -> str:
        """A conda package as a match spec."""
        said = asked if isinstance(asked, dict) else {"version": asked}
        if {"path", "git"} & {*said}:
            raise self._refusal(
                where,
                "pixi would build it from source",
                "build it into a channel (docs/how-to/own-channel.md)",
            )
        if "url" in said:
            raise self._refusal(
                where, "a package is taken from a channel", "put the file into a channel, or lock by pixi"
            )
        if unknown := {*said} - {"version", "build", "channel", *_MATCHED}:
            raise self._refusal(where, f"{', '.join(sorted(unknown))} is not known here", "leave it out")
        version, build = str(said.get("version") or "*"), said.get("build")
        words = (
            [name]
            if version == "*" and build is None
            else [name, version, *([build] if build is not None else [])]
        )
        more = ",".join(f"{_MATCHED[key]}={str(said[key])!r}" for key in _MATCHED if key in said)
        channel = f"{said['channel']}::" if "channel" in said else ""
        return f"{channel}{' '.join(words)}{f'[{more}]' if more else ''}"

    def _requirement(self, where: str, name: str, asked: Any) -> str:
        """A project of the package index as a requirement (PEP 508); nothing for one whose wheel is given."""
        said = asked if isinstance(asked, dict) else {"version": asked}
        wheel = "build it as a wheel, and name that in the environment's `pip`: pip: [dist/NAME.whl]"
        extras = said.get("extras", [])
        if canonicalize_name(name) in self.wheels:
            if extras:
                raise self._refusal(
                    where, "the wheel that is given comes without extras", "name what they need in `pip`"
                )
            return ""
        if {"path", "git"} & {*said}:
            raise self._refusal(where, "pixi would build it from source", wheel)
        if "url" in said:
            raise self._refusal(
                where,
                "what is locked comes from the index or is given",
                wheel.replace("build it as a wheel", "fetch it"),
            )
        if str(said.get("index", self.index)).rstrip("/") != self.index:
            raise self._refusal(
                where, f"the definition's index is {self.index}", wheel.replace("build it as", "fetch it as")
            )
        if unknown := {*said} - {"version", "extras", "index", "env-markers"}:
            raise self._refusal(where, f"{', '.join(sorted(unknown))} is not known here", "leave it out")
        version = str(said.get("version") or "*")
        full = f"{name}[{','.join(extras)}]" if extras else name
        marker = f"; {said['env-markers']}" if said.get("env-markers") else ""
        return f"{full}{'' if version == '*' else f' {version}'}{marker}"


def _group(said: Any) -> str | None:
    """The solve group of an environment as the workspace says it."""
    return said.get("solve-group") if isinstance(said, dict) else None

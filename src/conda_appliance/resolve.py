"""A definition → its lock, and a lock → verified files in the cache.

Packages of a channel that is a folder (the starter channel too) stand in the lock as
``CHANNEL/SUBDIR/FILE``, so that a lock names no path of the machine that wrote it.
"""

from __future__ import annotations

import platform as host
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

import conda_appliance
from conda_appliance import (
    bootstrap,
    conda,
    contract,
    credentials,
    definition,
    definition_conda,
    distribution,
    emulation,
    layers,
    lazy,
    lockfiles,
    namespace,
    package,
    platforms,
    programs,
    resources,
    sources,
    trees,
)
from conda_appliance import environments as environment_files
from conda_appliance import suite as suite_packages
from conda_appliance.apt import Apt
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import LockError, UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import (
    CondaPackage,
    CondaSection,
    DebianSection,
    EnvironmentSection,
    File,
    ImageSection,
    Lock,
    Wheel,
)

if TYPE_CHECKING:
    from conda_appliance import channel, pypi
else:
    channel = lazy.module("conda_appliance.channel")
    pypi = lazy.module("conda_appliance.pypi")

#: The channel that conda-appliance builds itself, from PyPI and Debian alone.
STARTER = "starter"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Every file a build reads, verified: SHA-256 → path."""

    files: Mapping[str, Path]


def channels(
    image: ImageDefinition,
    path: Path,
    cache: sources.Cache,
    progress: Callable[[str], None],
    *,
    refresh: bool = False,
) -> tuple[conda.Channel, ...]:
    """The definition's channels with their URLs; those of recipes are built now if they are not yet.

    ``refresh``: they take what is newest in Debian.
    """
    found = []
    for name in image.conda.channels:
        if name == STARTER:
            # By the file that makes it one: a project's folder of that name may be anything.
            recipes = resources.find("channel/channel.yaml", project(path)).parent
            folder = channel.build(
                recipes, cache.root, image.platform.name, on_progress=progress, refresh=refresh
            )
            found.append(conda.Channel(name=name, url=folder.as_uri()))
        elif is_local(name):
            folder = (path.resolve().parent / Path(name).expanduser()).resolve()
            if (folder / "channel.yaml").is_file():
                folder = channel.build(
                    folder, cache.root, image.platform.name, on_progress=progress, refresh=refresh
                )
            if not list(folder.glob("*/repodata.json*")):
                raise UsageError(
                    f"the channel {name} ({folder}) has no repodata.json in {image.platform.name}/ or noarch/",
                    hint="a channel is a folder as conda-index, rattler-index or conda-build leave it, "
                    "or one of recipes with a channel.yaml",
                )
            found.append(conda.Channel(name=name, url=folder.as_uri()))
        else:
            url = conda.channel_url(name)
            found.append(conda.Channel(name=name, url=url, mirrors=_mirrors(image).get(url, ())))
    return tuple(found)


def _mirrors(image: ImageDefinition) -> dict[str, tuple[str, ...]]:
    """The mirrors of channels, by the channels' URLs."""
    return {
        conda.channel_url(name): tuple(url.rstrip("/") for url in urls)
        for name, urls in image.conda.mirrors.items()
    }


def _mirrored(image: ImageDefinition) -> tuple[conda.Channel, ...]:
    """The channels that have mirrors, those that another tool's lock names among them."""
    return tuple(
        conda.Channel(name=url, url=url, mirrors=mirrors) for url, mirrors in _mirrors(image).items()
    )


def is_local(name: str) -> bool:
    """Whether a channel is a folder of this machine."""
    return name == STARTER or name.startswith((".", "/", "~"))


def project(path: Path) -> Path:
    """The folder whose ``templates/``, ``playbooks/`` and so on go before the shipped ones.

    A definition in ``images/`` belongs to the folder above it, any other to its own.
    """
    folder = path.resolve().parent
    return folder.parent if folder.name == "images" else folder


def resolve(
    image: ImageDefinition,
    path: Path,
    cache: sources.Cache,
    progress: Callable[[str], None],
    *,
    platform: str | None = None,
    refresh: bool = False,
    system: DebianSection | None = None,
    earlier: Lock | None = None,
    update: frozenset[str] = frozenset(),
) -> Lock:
    """Ask apt and the channels what the definition means today on a platform, or its first. Needs the network.

    ``refresh``: the starter channel is asked for newer packages too. ``system``: the Debian to keep. ``earlier``: the
    environments' packages stay as that lock has them, but those named in ``update`` and what is new. Raises UsageError
    when they cannot.
    """
    digest = definition.lock_digest(path, image)
    image = image.on(platform)
    platform = image.platform.name
    debian, base_image = None, None
    if image.conda.pip_index:
        pypi.require_askable(image.conda.pip_index)
    if image.base.debian is not None:
        progress(f"Debian {image.base.debian}: reading the signed index")
        debian = system or debian_section(image, cache, progress)
    elif image.base.image is not None:
        url = image.base.image.url
        if "://" not in url:
            url = (path.resolve().parent / Path(url).expanduser()).resolve().as_uri()
        base_image = ImageSection(url=url, sha256=image.base.image.sha256)
    promised = contract_of(image, debian)
    places = channels(image, path, cache, progress, refresh=refresh)
    local = {place.url: place.name for place in places if is_local(place.name)}
    folder = path.resolve().parent
    run = _Run(image=image, folder=folder, places=places, contract=promised, cache=cache, progress=progress)
    ran = programs.resolve_wheels(image, folder, cache, progress)
    environments = {}
    for name, environment in image.conda.environments.items():
        own = {
            ran[service.name].url: cache.verified(ran[service.name].sha256, service.name)
            for service in image.services
            if service.environment == name and service.name in ran
        }
        progress(f"solving the environment {name}")
        if environment.distribution is not None:
            section = run.laid(name, own, debian)
        elif environment.lock is None:
            section = run.solved(name, own, _pins(earlier, name, update))
        else:
            section = run.taken(name, own)
        if section.installer is None:  # whose scripts it has run itself
            section = run.scripted(name, section)
        packages = tuple(_portable(package, local) for package in section.packages)
        environments[name] = section.model_copy(update={"packages": packages})
    ran |= programs.resolve(
        image,
        folder,
        cache,
        target=lambda name: pypi.target(environments[name].packages, promised.glibc, platform),
        glibc=promised.glibc,
        platform=platform,
        progress=progress,
    )
    return Lock(
        name=image.name,
        digest=digest,
        base=definition.base_digest(image),
        tools={
            "conda-appliance": conda_appliance.__version__,
            "py-rattler": metadata.version("py-rattler"),
            "python": host.python_version(),
        },
        debian=debian,
        image=base_image,
        conda=CondaSection(
            platform=platform,
            virtual_packages=promised.locked,
            post_link=_where(image) if any(one.post_link for one in environments.values()) else None,
            environments=environments,
        ),
        programs=ran or None,
    )


def _where(image: ImageDefinition) -> Literal["build", "first-boot"] | None:
    """Where post-link scripts run, as a lock has it."""
    return None if image.conda.post_link == "refuse" else image.conda.post_link


def contract_of(image: ImageDefinition, debian: DebianSection | None) -> Contract:
    """What the machine promises to its packages: what the definition states, else what its Debian has, else the least.

    Raises UsageError for a definition that states more than its Debian has.
    """
    told: dict[str, str | None] = {}
    if debian is not None:
        kernel = contract.kernel_of(package.name for package in debian.packages)
        told = {"glibc": debian.glibc, "kernel": kernel}
    stated = image.target.model_dump()
    if image.platform.name != platforms.DEFAULT:  # whose levels `target` names
        stated["arch_level"] = contract.LEVELS[image.platform.name][0]
    return contract.settle(stated=stated, base=told, named=str(image.base.debian))


@dataclass(frozen=True, kw_only=True)
class _Pins:
    """What stays as it is: match specs, and requirements."""

    conda: tuple[str, ...] = ()
    pip: tuple[str, ...] = ()


def _pins(earlier: Lock | None, environment: str, update: frozenset[str]) -> _Pins:
    section = earlier.conda.environments.get(environment) if earlier is not None else None
    if section is None or section.installer is not None:
        return _Pins()
    return _exactly(
        [one for one in section.packages if one.name not in update],
        [one for one in section.wheels or () if one.name not in update],
    )


def _exactly(packages: Iterable[CondaPackage], wheels: Iterable[Wheel]) -> _Pins:
    """What keeps packages as they are."""
    return _Pins(
        conda=tuple(f"{one.name} =={one.version} {one.build}" for one in packages),
        pip=tuple(f"{one.name}=={one.version}" for one in wheels),
    )


def names_of(lock: Lock) -> set[str]:
    """The packages of a lock's environments that can be moved one by one."""
    sections = lock.conda.environments.values()
    wheels = {one.name for section in sections for one in section.wheels or ()}
    return wheels | {one.name for section in sections for one in section.packages}


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What every environment of a definition is resolved with."""

    image: ImageDefinition
    folder: Path
    places: Sequence[conda.Channel]
    contract: Contract
    cache: sources.Cache
    progress: Callable[[str], None]

    @property
    def platform(self) -> str:
        """The platform of the machine, by conda's name."""
        return self.image.platform.name

    def solved(self, name: str, own: Mapping[str, Path], pins: _Pins) -> EnvironmentSection:
        """An environment that asks for packages: what the channels and PyPI have for it today.

        ``own`` are wheels that its services run.
        """
        index = self.image.conda.pip_index
        asked = environment_files.read(
            self.image.conda.environments[name], self.folder, self.platform, index=index
        )
        contract.require(self.contract, asked.needs, f"the environment {name}")
        if asked.group is not None:
            packages, wheels = self._solve(asked.group, own, pins)
            pins = _exactly(packages, wheels or ())
        packages, wheels = self._solve(asked, own, pins)
        return self._section(name, asked.specs, packages, wheels)

    def _solve(
        self, asked: environment_files.Asked, own: Mapping[str, Path], pins: _Pins
    ) -> tuple[tuple[CondaPackage, ...], tuple[Wheel, ...] | None]:
        packages, _ = conda.solve(
            asked.specs,
            self.places,
            contract=self.contract,
            platform=self.platform,
            constraints=(*pins.conda, *asked.constraints),
        )
        theirs = {
            item: self.folder / Path(item).expanduser()
            for item in asked.pip
            if definition_conda.is_wheel(item)
        }
        requirements = [item for item in asked.pip if item not in theirs]
        wheels = None
        if asked.pip or own:
            wheels = pypi.resolve(
                requirements,
                packages,
                pypi.target(packages, self.contract.glibc, self.platform),
                own={**own, **theirs},
                cache=self.cache,
                index=self.image.conda.pip_index,
                constraints=pins.pip,
                progress=self.progress,
            )
        return packages, wheels

    def laid(self, name: str, own: Mapping[str, Path], debian: DebianSection | None) -> EnvironmentSection:
        """An environment that a distribution's installer makes: it runs now, to know what it leaves."""
        asked = self.image.conda.environments[name].distribution
        assert asked is not None
        assert debian is not None
        if own:
            raise UsageError(
                f"{', '.join(own)} would change what an installer laid down",
                hint="let the service run in an environment of its own",
            )
        namespace.require_root()
        emulation.require(self.image.platform)
        installer = distribution.locate(
            asked, self.folder, self.cache, self.progress, machine=self.image.platform.machine
        )
        sources.fetch(_debs(debian), self.cache, offline=False, progress=self.progress)
        files = {one.sha256: self.cache.verified(one.sha256, one.filename) for one in debian.packages}
        store = Store(self.cache.root / layers.FOLDER)
        made = distribution.tree(
            installer,
            self.cache.verified(installer.sha256, installer.filename),
            prefix=self.image.prefix_of(name),
            system=lambda: (
                bootstrap.system(
                    debian,
                    self.image.base,
                    files,
                    store=store,
                    progress=self.progress,
                    without=self.image.slim,
                ).path
            ),
            store=store,
            epoch=bootstrap.EPOCH,
            loader=lambda: emulation.starter(self.platform, debian, files, store).words,
            progress=self.progress,
        )
        section = self._section(name, (), distribution.packages_of(made.path), None)
        store.release()
        return section.model_copy(update={"installer": installer})

    def taken(self, name: str, own: Mapping[str, Path]) -> EnvironmentSection:
        """An environment that another tool locked, as it locked it."""
        environment = self.image.conda.environments[name]
        path = self.folder / (environment.lock or "")
        if own:
            raise UsageError(
                f"{', '.join(own)} would change what {path} settled",
                hint="let the service run in an environment of its own",
            )
        locked = lockfiles.read(path, environment.select, self.platform)
        for one in (*locked.packages, *locked.wheels):
            credentials.require_clean(one.url, f"{path}: the URL")
        theirs = [one.filename for one in locked.packages if definition_conda.is_anacondas(one.url)]
        if theirs and "anaconda-tos" not in self.image.conda.accept:
            raise UsageError(f"{path} names {trees.some(theirs)}: {definition_conda.ANACONDA_TERMS}")
        packages, roots = lockfiles.take(
            locked,
            self.places,
            contract=self.contract,
            mirrored=_mirrored(self.image),
            platform=self.platform,
            cache=self.cache,
            progress=self.progress,
        )
        wheels = None
        if locked.wheels:
            target = pypi.target(packages, self.contract.glibc, self.platform)
            wheels = lockfiles.wheels(locked, target, cache=self.cache, progress=self.progress)
        return self._section(name, roots, packages, wheels)

    def scripted(self, name: str, section: EnvironmentSection) -> EnvironmentSection:
        """The environment with the names of its packages that run a script when they are linked.

        Only the archives tell, so all of them are fetched. Raises UsageError for what the definition refuses.
        """
        wanted = [
            sources.Download(
                name=one.filename,
                url=one.url,
                sha256=one.sha256,
                size=one.size,
                mirrors=conda.mirrors_of(one.url, _mirrored(self.image)),
            )
            for one in section.packages
        ]
        sources.fetch(wanted, self.cache, offline=False, progress=self.progress)
        found = {
            one.name: package.link_scripts(self.cache.verified(one.sha256, one.filename), one.filename)
            for one in section.packages
        }
        if before := [one for one, kinds in found.items() if "pre-link" in kinds]:
            raise UsageError(
                f"environment {name}: {trees.some(before)} would run a script before being linked (pre-link), which "
                "conda itself calls dangerous and this program never does",
                hint="leave the package out, or take a build of it without one",
            )
        after = tuple(one for one, kinds in found.items() if "post-link" in kinds)
        if after and self.image.conda.post_link == "refuse":
            raise UsageError(
                f"environment {name}: these packages run a script when they are linked (post-link): {', '.join(after)}",
                hint="leave them out, or say where their scripts run: conda.post_link: build, or first-boot",
            )
        return section.model_copy(update={"post_link": after}) if after else section

    def _section(
        self,
        name: str,
        specs: tuple[str, ...],
        packages: tuple[CondaPackage, ...],
        wheels: tuple[Wheel, ...] | None,
    ) -> EnvironmentSection:
        prefix = self.image.prefix_of(name)
        return EnvironmentSection(prefix=prefix, specs=specs, packages=packages, wheels=wheels)


def debian_section(
    image: ImageDefinition, cache: sources.Cache, progress: Callable[[str], None] = lambda _text: None
) -> DebianSection:
    """Every package of the machine, as the suite's signed index names them today."""
    suite, platform = image.base.debian, image.platform
    assert suite is not None
    with resources.work_folder(cache.root / "apt", f"{suite}-{platform.debian}", wait=progress) as state:
        apt = Apt(suite, state=state, mirror=image.base.mirror, architecture=platform.debian)
        apt.update()
        packages = suite_packages.packages_of(apt.resolve(bootstrap.packages(image.base, platform.debian)))
        loaders = bootstrap.LOADERS.get(platform.name)
        boot = suite_packages.packages_of(apt.download_only(loaders)) if loaders else None
    return DebianSection(
        suite=suite,
        architecture=platform.debian,
        glibc=suite_packages.glibc_of(packages),
        packages=packages,
        boot=boot,
    )


def move_debian(
    section: DebianSection,
    image: ImageDefinition,
    names: Sequence[str],
    cache: sources.Cache,
    progress: Callable[[str], None],
) -> tuple[DebianSection, list[suite_packages.Held]]:
    """The machine's packages with ``names`` moved, as `suite.move` does; all of them are fetched first."""
    wanted = _debs(section)
    sources.fetch(wanted, cache, offline=False, progress=progress)
    files = {one.sha256: cache.verified(one.sha256, one.name) for one in wanted}
    with resources.work_folder(cache.root / "apt", f"{section.suite}-moves", wait=progress) as work:
        return suite_packages.move(section, image.base, names, files, work=work, progress=progress)


def fetch(
    lock: Lock,
    image: ImageDefinition,
    path: Path,
    cache: sources.Cache,
    *,
    offline: bool,
    progress: Callable[[str], None],
) -> Inputs:
    """Bring every file of the lock into the cache and verify it, whether it was there or not.

    Raises HashMismatch naming the first file whose bytes are not the lock's; LockError with
    ``offline`` when something is missing.
    """
    debian = _debs(lock.debian) if lock.debian is not None else ()
    if lock.image is not None:
        debian = (sources.Download(name="base image", url=lock.image.url, sha256=lock.image.sha256, size=0),)
    solved = [one for one in lock.conda.environments.values() if one.installer is None]
    packages = {p.sha256: p for e in solved for p in e.packages}
    installers = [e.installer for e in lock.conda.environments.values() if e.installer is not None]
    missing_local = [p for p in packages.values() if "://" not in p.url and not cache.has(p.sha256)]
    places = {}
    if missing_local:
        if offline:
            names = ", ".join(p.filename for p in missing_local[:5])
            raise LockError(f"--offline, and not in the cache: {names}", hint=f"conda-appliance fetch {path}")
        places = {place.name: place.url for place in channels(image, path, cache, progress)}
        _require_in_folders(missing_local, places, path)
    mirrored = _mirrored(image)
    conda_files = tuple(
        sources.Download(
            name=p.filename,
            url=_absolute(p, places),
            sha256=p.sha256,
            size=p.size,
            mirrors=conda.mirrors_of(p.url, mirrored),
        )
        for p in packages.values()
    )
    folder = path.resolve().parent
    wheels = {one.sha256: one for e in lock.conda.environments.values() for one in e.wheels or ()}
    others: list[File] = [*wheels.values(), *installers]
    pip_files = tuple(
        sources.Download(
            name=one.filename,
            url=one.url if "://" in one.url else str(folder / Path(one.url).expanduser()),
            sha256=one.sha256,
            size=one.size,
        )
        for one in others
    )
    wanted = (*debian, *conda_files, *pip_files)
    sources.fetch(wanted, cache, offline=offline, progress=progress)
    files = {one.sha256: cache.verified(one.sha256, one.name) for one in wanted}
    return Inputs(files=files | programs.fetch(lock, folder, cache, offline=offline, progress=progress))


def export(
    lock: Lock,
    image: ImageDefinition,
    path: Path,
    cache: sources.Cache,
    *,
    form: str,
    environment: str,
    progress: Callable[[str], None],
) -> str:
    """An environment of the lock as another tool's (`lockfiles.write`). Raises UsageError for one that is not there."""
    section = lock.conda.environments.get(environment)
    if section is None:
        raise UsageError(
            f"the lock has no environment {environment!r}; it has {', '.join(lock.conda.environments)}",
            hint="name one by --environment",
        )
    if section.installer is not None:
        raise UsageError(
            f"{section.installer.filename} makes the environment {environment!r}: no other tool's lock says that",
            hint="name another by --environment",
        )
    files = fetch(lock, image, path, cache, offline=False, progress=progress).files
    places = {}
    if any("://" not in one.url for one in section.packages):
        places = {place.name: place.url for place in channels(image, path, cache, progress)}
    return lockfiles.write(form, section, files, platform=lock.conda.platform, places=places)


def _debs(section: DebianSection) -> tuple[sources.Download, ...]:
    return tuple(
        sources.Download(name=p.filename, url=p.url, sha256=p.sha256, size=p.size) for p in section.every
    )


def _require_in_folders(packages: Iterable[CondaPackage], places: Mapping[str, str], path: Path) -> None:
    """Raise LockError naming the packages that are in their folder channels no more, or never were on this host."""
    gone = [
        f"{package.channel}/{package.subdir}/{package.filename}"
        for package in packages
        if package.channel in places
        and not Path(unquote(urlsplit(_absolute(package, places)).path)).is_file()
    ]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        raise LockError(
            f"the lock names what its channel has not got here: {', '.join(gone[:3])}{more}. A channel that a host"
            " builds has the Debian packages of its day and the work of its own compiler",
            hint=f"conda-appliance lock --upgrade {path}",
        )


def _portable(package: CondaPackage, local: Mapping[str, str]) -> CondaPackage:
    for url, name in local.items():
        if package.url.startswith(f"{url.rstrip('/')}/"):
            return package.model_copy(update={"url": f"{name}{package.url[len(url.rstrip('/')) :]}"})
    return package


def _absolute(package: CondaPackage, places: Mapping[str, str]) -> str:
    if "://" in package.url or package.channel not in places:
        return package.url
    return f"{places[package.channel].rstrip('/')}/{package.subdir}/{package.filename}"

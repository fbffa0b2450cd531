"""A definition → its lock: what apt, the channels and PyPI say today of what it asks for."""

from __future__ import annotations

import platform as host
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    places,
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
from conda_appliance.errors import UsageError
from conda_appliance.layers import Store
from conda_appliance.lock import (
    CondaPackage,
    CondaSection,
    DebianSection,
    EnvironmentSection,
    ImageSection,
    Lock,
    Wheel,
)

if TYPE_CHECKING:
    from conda_appliance import pypi
else:
    pypi = lazy.module("conda_appliance.pypi")


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
    there = places.channels(image, path, cache, progress, refresh=refresh)
    local = {place.url: place.name for place in there if places.is_local(place.name)}
    folder = path.resolve().parent
    run = _Run(image=image, folder=folder, places=there, contract=promised, cache=cache, progress=progress)
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
        packages = tuple(places.portable(package, local) for package in section.packages)
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
        sources.fetch(suite_packages.downloads(debian), self.cache, offline=False, progress=self.progress)
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
            mirrored=places.mirrored(self.image),
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
                mirrors=conda.mirrors_of(one.url, places.mirrored(self.image)),
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
    wanted = suite_packages.downloads(section)
    sources.fetch(wanted, cache, offline=False, progress=progress)
    files = {one.sha256: cache.verified(one.sha256, one.name) for one in wanted}
    with resources.work_folder(cache.root / "apt", f"{section.suite}-moves", wait=progress) as work:
        return suite_packages.move(section, image.base, names, files, work=work, progress=progress)

"""YAML → ImageDefinition: one declaration gives validator, JSON Schema and reference page."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from conda_appliance import formats as table
from conda_appliance import yamlfile
from conda_appliance.definition_conda import Conda, is_wheel
from conda_appliance.definition_forms import Container, Disc, Disk, Installer, Ova, Package
from conda_appliance.definition_services import Service
from conda_appliance.definition_slim import Slim
from conda_appliance.definition_target import Target
from conda_appliance.errors import DefinitionError, Problem, UsageError
from conda_appliance.fields import (
    AbsolutePath,
    DebianPackage,
    Name,
    Sha256,
    UserName,
    Version,
    pattern,
)
from conda_appliance.platforms import DEFAULT, PLATFORMS, Platform
from conda_appliance.yamlfile import Model


class CloudImage(Model):
    """A distribution's cloud image (with cloud-init) as the base."""

    url: Annotated[str, Field(description="Where it is: https://…, file:///…, or a path from this file.")]
    sha256: Annotated[Sha256, Field(description="Its SHA-256; a base without one is refused.")]

    @model_validator(mode="after")
    def _known_scheme(self) -> Self:
        if "://" in self.url and not re.match(r"(https?|file)://", self.url):
            raise ValueError(f"{self.url!r}: only https, http and file URLs, or a path")
        return self


class Base(Model):
    """What the machine starts from: a Debian suite, or any distribution's cloud image."""

    debian: Annotated[
        Literal["trixie", "bookworm"] | None,
        Field(description="Bootstrap this Debian suite: trixie (13) or bookworm (12)."),
    ] = None
    image: Annotated[CloudImage | None, Field(description="Start from a cloud image instead.")] = None
    mirror: Annotated[
        str | None,
        Field(
            description="The Debian mirror to lock from; without it, the host's own for Debian.",
            pattern=r"^(https?|file)://[^\s]+$",
        ),
    ] = None
    packages: Annotated[
        tuple[DebianPackage, ...],
        Field(description="Debian packages beside those that every appliance has."),
    ] = ()
    kernel: Annotated[
        Literal["cloud", "generic"],
        Field(
            description="Debian's kernel for virtual machines (cloud), or the one for any machine (generic), with the "
            "drivers of real hardware: USB, its disks and network cards. A Debian base only.",
        ),
    ] = "cloud"
    boot: Annotated[
        Literal["fast", "full"],
        Field(
            description="fast: services start beside cloud-init and the network, and a Debian base leaves out what "
            "an appliance lacks; full: all that Debian starts, and services wait for network and seed.",
        ),
    ] = "fast"

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.debian is None) == (self.image is None):
            raise ValueError("give either 'debian' or 'image'")
        if self.image is not None and (self.packages or self.mirror or self.kernel != "cloud"):
            raise ValueError("'packages', 'mirror' and 'kernel' belong to a 'debian' base, not to an image")
        return self


class Files(Model):
    """A file or folder of yours, copied onto the machine."""

    source: Annotated[
        str, Field(alias="from", min_length=1, description="A path from the definition's folder.")
    ]
    to: Annotated[AbsolutePath, Field(description="Where it lands on the machine.")]
    mode: Annotated[
        str | None,
        Field(pattern=r"^0?[0-7]{3}$", description="Files' mode, e.g. '0644'; else as they are."),
    ] = None


class Access(Model):
    """Who may log in. There are no passwords: SSH keys only."""

    user: Annotated[UserName, Field(description="The administrator (sudo without password).")] = "admin"
    keys: Annotated[
        tuple[str, ...],
        Field(description="Public keys: files (~ and paths from this file) or 'ssh-ed25519 …' lines."),
    ] = ()

    @model_validator(mode="after")
    def _not_root(self) -> Self:
        if self.user == "root":
            raise ValueError("user: root does not log in; name an administrator")
        return self


class Verify(Model):
    """How the machine checks its own files: `appliance-verify` on it."""

    timer: Annotated[
        Literal["hourly", "daily", "weekly"] | None,
        Field(
            description="Run it so often, beside what the machine does; findings are in the journal, and fail "
            "appliance-verify.service. Without it, it runs when somebody starts it."
        ),
    ] = None
    ignore: Annotated[
        tuple[AbsolutePath, ...],
        Field(
            description="Files and folders that change on the machine, or that a role of yours changes: not looked at."
        ),
    ] = ()


if TYPE_CHECKING:
    Form = str
    PlatformName = str
else:
    Form = Literal[table.BUILT]
    PlatformName = Literal[tuple(PLATFORMS)]


class ImageDefinition(Model):
    """What a machine is."""

    name: Annotated[Name, Field(description="Names the image, its artifacts and its host.")]
    version: Annotated[Version, Field(description="Yours; quoted or not, 1.10 stays 1.10.")]
    summary: Annotated[str, Field(max_length=200, description="One line about it.")] = ""
    platforms: Annotated[
        tuple[PlatformName, ...],
        Field(
            min_length=1,
            description="What it is made for: one lock answers for all, and a build makes an image of each. "
            "linux-aarch64 is made by builder: rootfs, on any host.",
        ),
    ] = (DEFAULT,)
    base: Base
    target: Target = Target()
    conda: Conda
    slim: Slim = ()
    services: tuple[Service, ...] = ()
    files: tuple[Files, ...] = ()
    roles: Annotated[
        tuple[
            Annotated[str, AfterValidator(pattern(r"[a-z][a-z0-9_]{0,39}", "the name of an Ansible role"))],
            ...,
        ],
        Field(
            description="Ansible roles of yours, from playbooks/roles/, run after the shipped ones but sealing."
        ),
    ] = ()
    disk: Disk = Disk()
    disc: Disc = Disc()
    access: Access = Access()
    installer: Installer = Installer()
    verify: Verify = Verify()
    builder: Annotated[
        Literal["packer", "rootfs"],
        Field(
            description="packer: boots the base under QEMU, provisions over SSH. rootfs: runs the same playbook in an "
            "unpacked Debian, in seconds, with the same bytes each time."
        ),
    ] = "packer"
    formats: Annotated[
        tuple[Form, ...],
        Field(min_length=1, description="What to make; `conda-appliance formats` tells of each."),
    ] = ("qcow2",)
    ova: Ova = Ova()
    container: Container = Container()
    package: Package = Package()
    checks: Annotated[
        tuple[str, ...], Field(description="Your own testinfra files or folders, from this file.")
    ] = ()

    def prefix_of(self, environment: str) -> str:
        """Where an environment lives on the machine: ``base`` at the prefix, others in its ``envs/``."""
        prefix = self.conda.prefix
        return prefix if environment == "base" else f"{prefix}/envs/{environment}"

    @property
    def platform(self) -> Platform:
        """The platform, of a definition that is for one (`on`); else its first."""
        return PLATFORMS[self.platforms[0]]

    def on(self, platform: str | None) -> ImageDefinition:
        """What it says of one of its platforms; none is the first. Raises UsageError for a platform that it has not.

        What that platform has not (a BIOS, levels of another's processors) is left out.
        """
        wanted = self.platforms[0] if platform is None else platform
        if wanted not in self.platforms:
            raise UsageError(
                f"{self.name} is for {', '.join(self.platforms)}, not for {wanted}",
                hint=f"add it to the definition: platforms: [{', '.join([*self.platforms, wanted])}]",
            )
        has = PLATFORMS[wanted].firmware
        firmware = tuple(one for one in self.disk.firmware if one in has)
        level = self.target.arch_level if wanted == DEFAULT else Target().arch_level
        return self.model_copy(
            update={
                "platforms": (wanted,),
                "disk": self.disk.model_copy(update={"firmware": firmware}),
                "target": self.target.model_copy(update={"arch_level": level}),
            }
        )

    @model_validator(mode="after")
    def _across_platforms(self) -> Self:
        twice = {one for one in self.platforms if self.platforms.count(one) > 1}
        if twice:
            raise ValueError(f"platforms names {', '.join(sorted(twice))} twice")
        others = [one for one in self.platforms if one != DEFAULT]
        if not others:
            return self
        if self.builder != "rootfs":
            raise ValueError(
                f"builder: packer boots and provisions machines of {DEFAULT} alone, and platforms has "
                f"{others[0]}: take builder: rootfs"
            )
        if self.base.image is not None:
            raise ValueError("a cloud image is of one platform, which its builder can boot: linux-64")
        if "uefi" not in self.disk.firmware:
            raise ValueError(f"a machine of {others[0]} has no BIOS: add uefi to disk.firmware")
        if DEFAULT not in self.platforms:
            if "bios" in self.disk.firmware and "firmware" in self.disk.model_fields_set:
                raise ValueError(f"a machine of {others[0]} has no BIOS: disk.firmware: [uefi]")
            if self.target.arch_level != Target().arch_level:
                raise ValueError(f"target.arch_level {self.target.arch_level} is no level of {others[0]}")
        if foreign := [form for form in self.formats if table.BY_NAME[form].x86]:
            raise ValueError(
                f"the format {foreign[0]} describes an x86-64 machine, and platforms has {others[0]}: leave it out, "
                "or make that platform by another definition"
            )
        for name, environment in self.conda.environments.items():
            asked = environment.distribution
            if asked is not None and asked.installer is not None and len(self.platforms) > 1:
                raise ValueError(
                    f"the installer of environment {name!r} is for one platform, and the definition for "
                    f"{len(self.platforms)}: take a distribution by its name, or a definition for each"
                )
        if self.container.base != "system" and len(self.platforms) > 1:
            raise ValueError(
                "container.base is an image of one platform: take 'system', or a definition for each"
            )
        return self

    @model_validator(mode="after")
    def _across(self) -> Self:
        ports: dict[int, str] = {22: "sshd"}
        names: set[str] = set()
        for service in self.services:
            if service.environment not in self.conda.environments:
                known = ", ".join(self.conda.environments)
                raise ValueError(
                    f"service {service.name!r} runs in environment {service.environment!r}, "
                    f"which is not defined (there is: {known})"
                )
            if service.name in names:
                raise ValueError(f"two services are named {service.name!r}")
            names.add(service.name)
            if service.port is not None:
                if service.port in ports:
                    raise ValueError(
                        f"port {service.port} of service {service.name!r} is {ports[service.port]}'s"
                    )
                ports[service.port] = service.name
        for name, environment in self.conda.environments.items():
            if environment.distribution is not None and self.base.debian is None:
                raise ValueError(
                    f"the installer of environment {name!r} runs in the machine's own system, which is known before "
                    "the build for a 'debian' base only"
                )
        twice = {form for form in self.formats if self.formats.count(form) > 1}
        if twice:
            raise ValueError(f"formats names {', '.join(sorted(twice))} twice")
        if boxes := table.of_family("box", self.formats):
            self._boxable(boxes[0])
        if "gce" in self.formats and self.disk.size % (1 << 30):
            raise ValueError("the format gce needs a disk.size of whole GiB: Google takes no other")
        packaged = [form for form in ("deb", "rpm") if form in self.formats]
        if packaged and self.package.maintainer is None:
            raise ValueError(
                f"the format {' or '.join(packaged)} says who answers for it: package: "
                "{maintainer: Your Name <you@example.com>}"
            )
        if packaged and not re.fullmatch(r"[0-9][0-9A-Za-z.+~]*", self.version):
            raise ValueError(
                f"the version {self.version!r} cannot be that of a {' or '.join(packaged)}: it must begin with a digit "
                "and have only digits, letters, '.', '+' and '~'"
            )
        if self.container.service is not None and self.container.service not in names:
            raise ValueError(f"container.service {self.container.service!r} is none of the services")
        contained = {"oci", "docker-archive"} & {*self.formats}
        if contained and self.container.base == "system" and self.base.debian is None:
            raise ValueError(
                "a container on the machine's own system needs a Debian base, or a container.base"
            )
        if self.disk.layout == "split" and self.builder != "rootfs":
            raise ValueError(
                "disk.layout: split is what builder: rootfs makes; packer's disk has one file system"
            )
        if self.conda.post_link == "build" and self.base.debian is None:
            raise ValueError(
                "conda.post_link: build runs scripts in the machine's tree, and a cloud image has none before it boots"
            )
        if self.conda.post_link == "first-boot":
            self._bootable()
        if self.builder == "rootfs" and self.base.debian is None:
            raise ValueError(
                "builder: rootfs needs a Debian base; a cloud image must boot, which packer does"
            )
        return self

    def _bootable(self) -> None:
        machines = {*table.of_family("disk", self.formats), *table.of_family("box", self.formats)}
        if others := [form for form in self.formats if form not in machines]:
            raise ValueError(
                f"conda.post_link: first-boot needs a machine that boots, and the format {others[0]} is none: "
                "take conda.post_link: build"
            )
        if self.disk.layout == "split" or self.conda.frozen:
            raise ValueError(
                "conda.post_link: first-boot writes to the environments, which disk.layout: split and conda.frozen "
                "keep as they were built: take conda.post_link: build"
            )

    def _boxable(self, form: str) -> None:
        if self.builder != "rootfs":
            raise ValueError(
                f"the format {form} needs builder: rootfs, which makes a box's disk, with Vagrant's user on it, beside "
                "the machine's own; packer makes one disk"
            )
        if "vagrant" in {self.access.user, *(service.name for service in self.services)}:
            raise ValueError(f"the format {form} brings a user named vagrant: name another user or service")
        if not re.fullmatch(r"[0-9]+(\.[0-9A-Za-z]+)*(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?", self.version):
            raise ValueError(
                f"Vagrant, and so the format {form}, knows no version {self.version!r}; one like 1.2.0 or 1.2.0-rc1"
            )


def load_image(path: Path) -> ImageDefinition:
    """Read ``images/NAME.yaml``. Raises DefinitionError with every problem of the file."""
    definition = yamlfile.load(path, ImageDefinition)
    problems = _missing_files(path, definition)
    if problems:
        raise DefinitionError(problems)
    return definition


def with_builder(path: Path, image: ImageDefinition, builder: str) -> ImageDefinition:
    """The definition with another builder. Raises UsageError when it cannot be built so."""
    try:
        return ImageDefinition.model_validate({**image.model_dump(by_alias=True), "builder": builder})
    except ValidationError as error:
        raise UsageError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def base_digest(definition: ImageDefinition) -> str:
    """The digest of the base alone: while it is the same, a new lock keeps the system's packages as they are.

    Of a platform that the lock has not yet, there are none.
    """
    base = definition.base.model_dump(mode="json", exclude={"boot"})
    return hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()


def lock_digest(path: Path, definition: ImageDefinition) -> str:
    """The digest of everything in a definition that a lock answers: the base and the conda section.

    A changed summary, service or file needs no new lock; a changed package, channel or environment file does.
    """
    folder = path.resolve().parent
    files = {
        name: (folder / named).read_text(encoding="utf-8")
        for name, environment in definition.conda.environments.items()
        if (named := environment.file or environment.lock) is not None
    }
    # What is younger than the locks that are about is left out while it is as it always was.
    young = {"kernel"} if definition.base.kernel == "cloud" else set()
    conda = definition.conda.model_dump(mode="json")
    del conda["frozen"], conda["accept"], conda["settings"], conda["mirrors"]  # not what the lock answers
    conda["glibc"] = definition.target.glibc  # where it stood when the first locks were written
    if conda["post_link"] == "refuse":
        del conda["post_link"]
    if conda["pip_index"] is None:
        del conda["pip_index"]
    for environment in conda["environments"].values():
        for key, usual in (("pip", []), ("lock", None), ("select", "default"), ("distribution", None)):
            if environment[key] == usual:
                del environment[key]
    asked = {
        "base": definition.base.model_dump(mode="json", exclude={"boot", *young}),
        "conda": conda,
        "files": files,
    }
    if definition.platforms != (DEFAULT,):
        asked["platforms"] = {one: {} for one in definition.platforms}
    if said := definition.target.model_dump(mode="json", exclude={"glibc"}, exclude_defaults=True):
        asked["target"] = said
    programs = {
        service.name: {"environment": service.environment, **service.program.model_dump(mode="json")}
        for service in definition.services
        if service.program is not None
    }
    if programs:
        asked["programs"] = programs
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _missing_files(path: Path, definition: ImageDefinition) -> list[Problem]:
    """Files that a definition names must be there before the first expensive minute."""
    _, marks = yamlfile.parse(path)
    folder = path.resolve().parent
    named: list[tuple[yamlfile.Location, str]] = [
        *(
            (("conda", "environments", name, key), named)
            for name, environment in definition.conda.environments.items()
            for key, named in (("file", environment.file), ("lock", environment.lock))
            if named is not None
        ),
        *((("files", index, "from"), item.source) for index, item in enumerate(definition.files)),
        *((("checks", index), item) for index, item in enumerate(definition.checks)),
        *(
            (("access", "keys", index), key)
            for index, key in enumerate(definition.access.keys)
            if not is_public_key(key)
        ),
        *(
            (("conda", "channels", index), channel)
            for index, channel in enumerate(definition.conda.channels)
            if channel.startswith((".", "/", "~"))
        ),
    ]
    for name, environment in definition.conda.environments.items():
        named += [
            (("conda", "environments", name, "pip", index), item)
            for index, item in enumerate(environment.pip)
            if is_wheel(item)
        ]
        if (one := environment.distribution) and one.installer and "://" not in one.installer:
            named.append((("conda", "environments", name, "distribution", "installer"), one.installer))
    for index, service in enumerate(definition.services):
        if service.program is not None:
            kind = service.program.kind
            url = getattr(service.program, kind).url
            if "://" not in url and not re.match(r"[\w.-]+@[\w.-]+:", url):
                named.append((("services", index, "program", kind, "url"), url))
    if definition.container.base != "system":
        named.append((("container", "base"), definition.container.base))
    if definition.base.image is not None and "://" not in definition.base.image.url:
        named.append((("base", "image", "url"), definition.base.image.url))
    missing = [
        yamlfile.problem(str(path), marks, at, f"{name} is not there (looked in {folder})")
        for at, name in named
        if not (folder / Path(name).expanduser()).exists()
    ]
    idle = [
        yamlfile.problem(
            str(path), marks, ("checks", index), f"pytest would run nothing of {name}: {_NO_TESTS}"
        )
        for index, name in enumerate(definition.checks)
        if (there := folder / Path(name).expanduser()).exists() and not _has_tests(there)
    ]
    return missing + idle


_NO_TESTS = "a check stands in a file named test_*.py"


def _has_tests(path: Path) -> bool:
    names = [path.name] if path.is_file() else [one.name for one in path.rglob("*.py")]
    return any(re.fullmatch(r"test_.*\.py|.*_test\.py", name) for name in names)


def is_public_key(text: str) -> bool:
    """Whether ``text`` is an OpenSSH public key line rather than the path of one."""
    return bool(re.match(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+", text))

"""YAML → ImageDefinition: one declaration gives the parser, the validator, the JSON Schema and the reference page.

Definitions are plain YAML 1.2: no templating, nothing evaluated. Every error of a file is told at once
with its place and, for a misspelt key, what was perhaps meant.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from conda_appliance import formats as table
from conda_appliance.errors import DefinitionError, Problem, UsageError

#: A definition larger than this is not one, in bytes.
MAX_BYTES = 1 << 20
#: More values than this (aliases counted each time) are not a definition.
MAX_VALUES = 50_000

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_size(text: object) -> int:
    """``4GiB`` → bytes. Units: B, KiB, MiB, GiB, TiB; a plain number is bytes."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]iB|B)?", str(text).strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 4GiB or 512MiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def _absolute(path: str) -> str:
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"{path!r} is not an absolute path without '..', like /opt/conda")
    if re.search(r"[\s\x00-\x1f'\"\\$`]", path):
        raise ValueError(f"{path!r} has a space, a quote or a control character in it")
    return str(pure)


def _pattern(pattern: str, wanted: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not {wanted}")
        return value

    return check


#: What may be a name: of an image, a service, an environment.
NAME = r"[a-z][a-z0-9-]{0,39}"

Name = Annotated[
    str,
    AfterValidator(_pattern(NAME, "a name: lower-case letters, digits and '-', 40 at most")),
]
Version = Annotated[
    str,
    AfterValidator(_pattern(r"[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}", "a version like 1.2.0")),
]
UserName = Annotated[
    str,
    AfterValidator(_pattern(r"[a-z_][a-z0-9_-]{0,30}", "a Linux user name like 'admin'")),
]
DebianPackage = Annotated[
    str,
    AfterValidator(_pattern(r"[a-z0-9][a-z0-9.+-]+", "a Debian package name")),
]
Sha256 = Annotated[
    str,
    AfterValidator(_pattern(r"[0-9a-f]{64}", "a SHA-256: 64 lower-case hexadecimal digits")),
]
Port = Annotated[int, Field(ge=1, le=65535)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*([KMGT]iB|B)?$"},
            ],
            "examples": ["4GiB", "512MiB"],
        }
    ),
]


class Model(BaseModel):
    """What every part of a definition has in common: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


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


class Environment(Model):
    """A conda environment, by a file or by its dependencies."""

    file: Annotated[
        str | None, Field(description="An environment.yml, as a path from the definition's folder.")
    ] = None
    dependencies: Annotated[tuple[str, ...], Field(description="Match specs, such as 'python 3.13.*'.")] = ()

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.file is None) == (not self.dependencies):
            raise ValueError("give either 'file' or 'dependencies'")
        return self


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
    environments: Annotated[
        dict[Name, Environment],
        Field(min_length=1, description="By name; 'base' is PREFIX itself."),
    ]
    glibc: Annotated[
        Version | None,
        Field(description="The target's glibc, where the base does not tell it (a cloud image)."),
    ] = None


class Service(Model):
    """A systemd service of the machine, run by an unprivileged user of its own, sandboxed."""

    name: Name
    command: Annotated[
        str,
        Field(min_length=1, description="Its first word is looked up in the environment's bin/."),
    ]
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
    ] = {}

    @model_validator(mode="after")
    def _one_line(self) -> Self:
        for text in (self.command, *self.variables.values()):
            if re.search(r"[\x00-\x1f]", text):
                raise ValueError("a command or variable holds a line break or control character")
        for name in self.variables:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
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


class Disk(Model):
    """The machine's disk."""

    size: Annotated[Size, Field(description="Its size, e.g. 4GiB.")] = 4 << 30
    firmware: Annotated[
        tuple[Literal["bios", "uefi"], ...],
        Field(min_length=1, description="What it boots on; a check boots the first one named."),
    ] = ("bios", "uefi")
    layout: Annotated[
        Literal["plain", "split"],
        Field(
            description="plain: one root file system. split: the environments in a read-only partition of their own, "
            "mounted at the prefix, beside an empty one for an update (builder: rootfs)."
        ),
    ] = "plain"
    compression: Annotated[
        Literal["zstd", "zlib", "none"],
        Field(
            description="qcow2: zstd makes the smallest file; zlib one for QEMU before 5.1; none the fastest build."
        ),
    ] = "zstd"
    slot: Annotated[
        Size, Field(description="split: the size of each of the two partitions for environments.")
    ] = 1 << 30

    @model_validator(mode="after")
    def _sane(self) -> Self:
        if not (1 << 30) <= self.size <= (16 << 40):
            raise ValueError("size must lie between 1GiB and 16TiB")
        if self.size % (1 << 20):
            raise ValueError("size must be a whole number of MiB")
        if self.slot % (1 << 20) or self.slot < 1 << 24:
            raise ValueError("slot must be a whole number of MiB, 16 at least")
        if self.layout == "split" and self.size < 2 * self.slot + (1 << 30):
            raise ValueError("size must leave 1GiB for the system beside two times slot")
        return self


class InstallerDisk(Model):
    """The disk that the installer disc may overwrite: all that is said here must be so."""

    model: Annotated[str, Field(description="As the kernel has it: /sys/block/NAME/device/model.")] = ""
    serial: Annotated[str, Field(description="Its serial number, as the installer shows it.")] = ""
    path: Annotated[
        str, Field(pattern=r"^(|/dev/[a-z0-9]+)$", description="Such as /dev/nvme0n1; names may change.")
    ] = ""
    size: Annotated[Size | None, Field(description="Its size, within two in a hundred, e.g. 466GiB.")] = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not (self.model or self.serial or self.path or self.size):
            raise ValueError("name the disk by its model, serial, path or size")
        return self


class Installer(Model):
    """What the installer disc does without asking (`conda-appliance disc IMAGE installer`)."""

    unattended: Annotated[
        bool,
        Field(description="Install without a question: on 'disk', else on the machine's only empty disk."),
    ] = False
    disk: Annotated[
        InstallerDisk | None,
        Field(description="The disk to install to; it may hold data, which is lost."),
    ] = None


class Ova(Model):
    """The machine that the form ova describes."""

    controller: Annotated[
        Literal["sata", "nvme", "scsi"],
        Field(description="What its disk hangs on. sata: VMware and VirtualBox; nvme, scsi: VMware."),
    ] = "sata"
    nic: Annotated[
        Literal["vmxnet3", "virtio", "e1000"],
        Field(
            description="Its network adapter. vmxnet3: VMware; virtio: VirtualBox; e1000: both, base.kernel generic."
        ),
    ] = "vmxnet3"
    cpus: Annotated[int, Field(ge=1, le=128, description="Its processors.")] = 2
    memory: Annotated[Size, Field(description="Its memory, in whole MiB.")] = 1 << 30

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.memory % (1 << 20) or self.memory < 256 << 20:
            raise ValueError("memory must be a whole number of MiB, 256 at least")
        return self


class Container(Model):
    """The container image that the forms oci and docker-archive make."""

    base: Annotated[
        str,
        Field(
            min_length=1,
            description="'system': the machine's Debian without its kernel; or a path from this file to an OCI image "
            "layout, a folder or a tar.",
        ),
    ] = "system"
    service: Annotated[Name | None, Field(description="The service that it runs; without it, the first.")] = (
        None
    )


class Package(Model):
    """What the forms deb and rpm say of themselves."""

    maintainer: Annotated[
        str | None,
        Field(
            pattern=r"^[^<>\n]+ <[^<>@\s]+@[^<>\s]+>$",
            description="Who answers for it: Name <mail address>. Both forms need it.",
        ),
    ] = None
    license: Annotated[
        str, Field(pattern=r"^[^\n]+$", description="Of the appliance itself; its packages have their own.")
    ] = "Proprietary"


class Disc(Model):
    """What `conda-appliance disc` makes of it."""

    userspace: Annotated[
        Literal["squashfs", "erofs", "iso9660"],
        Field(
            description="How the environments lie on a disc that they run from: packed in one file (squashfs is read "
            "least of; erofs), or as plain files that any system can read (three times as large, more seeking)."
        ),
    ] = "squashfs"


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


if TYPE_CHECKING:
    Form = str
else:
    Form = Literal[table.BUILT]


class ImageDefinition(Model):
    """What a machine is."""

    name: Annotated[Name, Field(description="Names the image, its artifacts and its host.")]
    version: Annotated[Version, Field(description="Yours; quoted or not, 1.10 stays 1.10.")]
    summary: Annotated[str, Field(max_length=200, description="One line about it.")] = ""
    base: Base
    conda: Conda
    services: tuple[Service, ...] = ()
    files: tuple[Files, ...] = ()
    roles: Annotated[
        tuple[
            Annotated[str, AfterValidator(_pattern(r"[a-z][a-z0-9_]{0,39}", "the name of an Ansible role"))],
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
        if self.builder == "rootfs" and self.base.debian is None:
            raise ValueError(
                "builder: rootfs needs a Debian base; a cloud image must boot, which packer does"
            )
        return self

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


class DiscEntry(Model):
    """A file or tree on a disc."""

    source: Annotated[
        str,
        Field(alias="from", description="What goes there: the name of an input the maker passes."),
    ]
    to: Annotated[AbsolutePath, Field(description="Where it stands on the disc.")]
    mode: Annotated[
        str, Field(pattern=r"^0?[0-7]{3}$", description="Its mode, octal; a tree's folders get x for each r.")
    ] = "0444"
    keep: Annotated[
        bool, Field(description="Modes and owners as the input has them, instead of `mode` and root.")
    ] = False
    optional: Annotated[bool, Field(description="Leave it out when the maker passes no such input.")] = False


class DiscDefinition(Model):
    """What a disc holds (iso/*.yaml)."""

    name: Name
    summary: str = ""
    volume: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,16}$",
            description="The volume label, 16 letters at most (Joliet's limit); cloud-init wants 'cidata'.",
        ),
    ]
    entries: Annotated[tuple[DiscEntry, ...], Field(min_length=1)]
    sums: Annotated[
        AbsolutePath | None, Field(description="Where a SHA256SUMS over all the files stands.")
    ] = None


# --- loading --------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2's core schema: true, false, null, integers; all else is text.

    So ``no`` and ``22:30`` stay what was written, and a version 1.10 does not become 1.1.
    """


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)

_KNOWN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "bool", "null", "seq", "map")}

_Location = tuple[str | int, ...]
#: Where each part of a file's value stands: its line and column, from 1.
Marks = dict[_Location, tuple[int, int]]


def load_image(path: Path) -> ImageDefinition:
    """Read ``images/NAME.yaml``. Raises DefinitionError with every problem of the file."""
    definition = _load(path, ImageDefinition)
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


def load_disc(path: Path) -> DiscDefinition:
    """Read ``iso/NAME.yaml``. Raises DefinitionError with every problem of the file."""
    return _load(path, DiscDefinition)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an image definition, for editors."""
    made = ImageDefinition.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "conda-appliance image definition",
        **{key: value for key, value in made.items() if key != "title"},
    }


def reference() -> str:
    """The reference page of a definition, in Markdown, from the same declaration that validates one."""
    made = schema()
    parts = ["# Image definition", "", "<!-- made by `conda-appliance schema --markdown` -->", ""]
    parts += _table("ImageDefinition", made)
    for name, part in made["$defs"].items():
        parts += _table(name, part)
    return "\n".join(parts)


def _table(title: str, part: dict[str, Any]) -> list[str]:
    rows = [f"## {title}", "", inspect.cleandoc(part.get("description", "")), ""]
    rows += ["| key | what | default | |", "| --- | --- | --- | --- |"]
    required = part.get("required", ())
    for key, about in part["properties"].items():
        default = "required" if key in required else f"`{json.dumps(about.get('default'))}`"
        if key not in required and "default" not in about:
            default = ""
        what = about.get("description", "").replace("|", "\\|")
        rows.append(f"| `{key}` | {_kind(about)} | {default} | {what} |")
    return [*rows, ""]


def _kind(about: dict[str, Any]) -> str:
    """A JSON Schema type for people: what may stand there."""
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for choice in ("anyOf", "allOf"):
        if choice in about:
            return " or ".join(_kind(one) for one in about[choice] if one.get("type") != "null")
    if "enum" in about:
        return ", ".join(f"`{value}`" for value in about["enum"])
    if "const" in about:
        return f"`{about['const']}`"
    if about.get("type") == "array":
        return f"list of {_kind(about['items'])}"
    if about.get("type") == "object" and isinstance(about.get("additionalProperties"), dict):
        return f"by name: {_kind(about['additionalProperties'])}"
    return str(about.get("type", ""))


def as_yaml(value: Any) -> str:
    """``value`` as YAML that people read, keys in the order of the declaration."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))


def lock_digest(path: Path, definition: ImageDefinition) -> str:
    """The digest of everything in a definition that a lock answers: the base and the conda section.

    A changed summary, service or file needs no new lock; a changed package, channel or environment file does.
    """
    folder = path.resolve().parent
    files = {
        name: (folder / environment.file).read_text(encoding="utf-8")
        for name, environment in definition.conda.environments.items()
        if environment.file is not None
    }
    # What is younger than the locks that are about is left out while it is as it always was.
    young = {"kernel"} if definition.base.kernel == "cloud" else set()
    asked = {
        "base": definition.base.model_dump(mode="json", exclude={"boot", *young}),
        "conda": definition.conda.model_dump(mode="json"),
        "files": files,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


_M = TypeVar("_M", bound=Model)


def _load(path: Path, model: type[_M]) -> _M:
    value, marks = parse(path)
    return validated(str(path), value, marks, model)


def validated(shown: str, value: Any, marks: Marks, model: type[_M]) -> _M:
    """A file's value as its model; ``shown`` is what messages call the file.

    Raises DefinitionError with every problem.
    """
    if not isinstance(value, dict):
        raise DefinitionError([_problem(shown, marks, (), "a definition is a mapping of keys")])
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors: list[dict[str, Any]] = [dict(one) for one in error.errors()]
        raise DefinitionError(
            [_explain(shown, marks, model, one) for one in errors if not _follows(one, errors)]
        ) from None


def parse(path: Path) -> tuple[Any, Marks]:
    """The file's value, and where each part of it stands (1-based line and column)."""
    shown = str(path)

    def refuse(message: str, line: int = 1, column: int = 1) -> DefinitionError:
        return DefinitionError([Problem(file=shown, line=line, column=column, path="", message=message)])

    try:
        if path.is_dir():
            raise refuse("this is a folder, not a definition")
        if path.stat().st_size > MAX_BYTES:
            raise refuse(f"larger than {MAX_BYTES >> 20} MiB: this is not a definition")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise refuse(f"larger than {MAX_BYTES >> 20} MiB: this is not a definition")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refuse("not UTF-8 text: this is not a definition") from None
    if not text.strip():
        raise refuse("the file is empty; `conda-appliance init` writes an example")
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise refuse(f"not valid YAML: {error.problem or error.context}", *at) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise refuse(f"not valid YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        raise refuse("the file holds no definition, only comments")
    marks: Marks = {}
    budget = [MAX_VALUES]

    def build(node: yaml.Node, at: _Location, above: tuple[int, ...]) -> Any:
        line, column = node.start_mark.line + 1, node.start_mark.column + 1
        marks.setdefault(at, (line, column))
        budget[0] -= 1
        if id(node) in above or len(above) > 50:
            raise refuse("an alias refers to what contains it", line, column)
        if budget[0] < 0:
            raise refuse(f"more than {MAX_VALUES} values: this is not a definition", line, column)
        if node.tag not in _KNOWN_TAGS:
            raise refuse(f"the tag {node.tag!r} has no meaning here", line, column)
        inner = (*above, id(node))
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*at, index), inner) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            made: dict[str, Any] = {}
            for key, item in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise refuse("a key must be plain text", key.start_mark.line + 1)
                name = str(key.value)
                if name in made:
                    raise refuse(
                        f"the key {name!r} stands twice",
                        key.start_mark.line + 1,
                        key.start_mark.column + 1,
                    )
                marks[(*at, name)] = (key.start_mark.line + 1, key.start_mark.column + 1)
                made[name] = build(item, (*at, name), inner)
            return made
        if node.tag == "tag:yaml.org,2002:int":
            return int(node.value) if len(node.value) < 20 else node.value
        if node.tag == "tag:yaml.org,2002:bool":
            return node.value == "true"
        if node.tag == "tag:yaml.org,2002:null":
            return None
        return node.value

    return build(node, (), ()), marks


def _problem(file: str, marks: Marks, at: _Location, message: str) -> Problem:
    nearest = at
    while nearest not in marks and nearest:
        nearest = nearest[:-1]
    line, column = marks.get(nearest, (1, 1))
    return Problem(file=file, line=line, column=column, path=_path_text(at), message=message)


def _path_text(at: _Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at)
    return text.removeprefix(".")


def _follows(error: dict[str, Any], errors: list[dict[str, Any]]) -> bool:
    """Whether ``error`` only follows from another: a list is not too short because its items are wrong."""
    return error["type"] == "too_short" and any(
        other["loc"][: len(error["loc"])] == error["loc"] for other in errors if other is not error
    )


def _explain(file: str, marks: Marks, model: type[Model], error: dict[str, Any]) -> Problem:
    """A pydantic error as a problem in the file's own words."""
    at = tuple(part for part in error["loc"] if part != "[key]")
    kind, message = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        known = _keys_at(model, at[:-1])
        close = difflib.get_close_matches(str(at[-1]), known, n=1)
        message = "unknown key"
        message += f"; perhaps you meant {close[0]!r}" if close else f"; known: {', '.join(known)}"
    elif kind == "missing":
        message = "missing: this key is required"
    elif kind == "too_short":
        message = "needs at least one item"
    elif kind == "value_error":
        message = message.removeprefix("Value error, ")
    elif kind == "literal_error":
        expected = str(error["ctx"]["expected"])
        message = f"{error['input']!r} is not one of {expected}"
        close = difflib.get_close_matches(str(error["input"]), re.findall(r"'([^']+)'", expected), n=1)
        message += f"; perhaps you meant {close[0]!r}" if close else ""
    elif kind == "string_pattern_mismatch":
        message = f"{error['input']!r} does not match {error['ctx']['pattern']}"
    else:
        message = message.removeprefix("Input should be ").replace("a valid ", "a ")
        message = f"should be {message}, found {_short(error['input'])}"
    return _problem(file, marks, at, message)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _keys_at(model: type[BaseModel], at: _Location) -> list[str]:
    """The keys that may stand at a place of a definition."""
    current: type[BaseModel] | None = model
    skip = False
    for part in at:
        if skip or isinstance(part, int) or current is None:
            skip = False
            continue
        found = next(
            (info for name, info in current.model_fields.items() if part in (name, info.alias)),
            None,
        )
        current = _model_in(found.annotation) if found else None
        skip = found is not None and get_origin(found.annotation) is dict
    if current is None:
        return []
    return [info.alias or name for name, info in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (model := _model_in(inner)) is not None:
            return model
    return None


def _missing_files(path: Path, definition: ImageDefinition) -> list[Problem]:
    """Files that a definition names must be there before the first expensive minute."""
    _, marks = parse(path)
    folder = path.resolve().parent
    named: list[tuple[_Location, str]] = [
        *(
            (("conda", "environments", name, "file"), environment.file)
            for name, environment in definition.conda.environments.items()
            if environment.file is not None
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
    if definition.container.base != "system":
        named.append((("container", "base"), definition.container.base))
    if definition.base.image is not None and "://" not in definition.base.image.url:
        named.append((("base", "image", "url"), definition.base.image.url))
    return [
        _problem(str(path), marks, at, f"{name} is not there (looked in {folder})")
        for at, name in named
        if not (folder / Path(name).expanduser()).exists()
    ]


def is_public_key(text: str) -> bool:
    """Whether ``text`` is an OpenSSH public key line rather than the path of one."""
    return bool(re.match(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/=]+", text))

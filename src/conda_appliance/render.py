"""The only Jinja: templates → text, and a definition with its lock → the files that Packer and Ansible read.

A value of a definition never ends the string it stands in: each language has a filter (`hcl`, `yaml`, `shell`), and
what Ansible reads is marked ``!unsafe``, so that braces in it stay braces.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml

import conda_appliance
from conda_appliance import first_boot, process, resources
from conda_appliance.definition import Files, ImageDefinition, is_public_key
from conda_appliance.definition_services import Service
from conda_appliance.errors import UsageError
from conda_appliance.lock import Lock

#: Packer's version as numbers, e.g. ``(1, 11, 2)``.
Version = tuple[int, int, int]

#: The clock of what is written into an image: 2020-01-01, in seconds since 1970.
EPOCH = 1577836800

#: From here on Packer knows ``required_plugins``; before, it rejects the block and needs none.
PLUGINS_SINCE: Version = (1, 7, 0)

#: What of a build tree differs from host to host or from run to run, or is only there once it has run.
_OF_THIS_HOST = (
    "machine.auto.pkrvars.hcl",
    "seed.iso",
    "console.log",
    "qemu.pid",
    "playbook/files.tar",
)
#: The file in ``playbook/`` with what names a build; all others beside it follow from the definition alone.
FACTS = "appliance.json"
#: The file in the playbook that has what the roles read.
VARIABLES = "vars.yml"
_FOLDERS_OF_THIS_RUN = ("ssh", "seed", "disk")

#: What a machine's owner, or its seed, sets for every service (systemd.exec(5), EnvironmentFile=).
SETTINGS = "/etc/conda-appliance/settings.env"

#: The playbook's templates of services, for installations too.
_APP = "playbooks/roles/app/templates"

#: What stands in the units of a payload disc for the paths of the machine where it is installed.
_PREFIX, _STORE = "@CONDA_APPLIANCE_PREFIX@", "@CONDA_APPLIANCE_STORE@"


# --- text -------------------------------------------------------------------------------------------


def text(template: str, *, project: Path | None = None, **values: object) -> str:
    """Render ``templates/TEMPLATE``. A value that the template names and nobody gives is an error, never empty."""
    return _rendered(f"templates/{template}", project, values)


def _rendered(template: str, project: Path | None, values: Mapping[str, object]) -> str:
    """A template by its path among the project's own data and the shipped."""
    folders = [root for root in (project, resources.shipped()) if root is not None]
    environment = jinja2.Environment(  # noqa: S701 — what is written is HCL, YAML and shell, each with its own quoting
        loader=jinja2.FileSystemLoader([str(folder) for folder in folders]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(hcl=hcl, yaml=yaml_string, shell=shlex.quote)
    return environment.get_template(template).render(**values)


def hcl(value: object) -> str:
    """``value`` as an HCL2 string literal: ``${`` and ``%{`` start nothing in it.

    Escapes: https://github.com/hashicorp/hcl/blob/main/hclsyntax/spec.md#template-expressions
    """
    named = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    quoted = "".join(
        named.get(char) or (f"\\u{ord(char):04x}" if ord(char) < 0x20 else char) for char in str(value)
    )
    return '"' + quoted.replace("${", "$${").replace("%{", "%%{") + '"'


def yaml_string(value: object) -> str:
    """``value`` as a YAML string: a JSON string, with what YAML does not take as it is escaped too."""
    quoted = json.dumps(str(value), ensure_ascii=False)
    return re.sub(
        "[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", quoted
    )


def systemd_word(value: str) -> str:
    """``value`` as one word of a unit file: no specifier (%), no variable ($), no end of the quotes.

    Source: systemd.service(5), "Command lines", and systemd.syntax(7), "Quoting".
    """
    return '"' + _systemd_text(value).replace("$", "$$") + '"'


def systemd_variable(name: str, value: str) -> str:
    """One assignment for ``Environment=``, where $ means nothing (systemd.exec(5))."""
    return '"' + _systemd_text(f"{name}={value}") + '"'


def _systemd_text(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def systemd_unit(path: str, kind: str) -> str:
    """The unit of a path, a mount or a device: systemd.unit(5), "String Escaping for Inclusion in Unit Names"."""
    plain = path.strip("/")
    name = "".join(
        "-"
        if char == "/"
        else char
        if re.match(r"[A-Za-z0-9:_]", char) or (char == "." and at)
        else f"\\x{ord(char):02x}"
        for at, char in enumerate(plain)
    )
    return f"{name}.{kind}"


class _Unsafe(str):
    """A string that Ansible takes as it is, never as a template: ``!unsafe`` in YAML.

    https://docs.ansible.com/ansible/latest/playbook_guide/playbooks_advanced_syntax.html
    """

    __slots__ = ()


class _AnsibleDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_AnsibleDumper.add_representer(
    _Unsafe, lambda dumper, value: dumper.represent_scalar("!unsafe", str(value), style='"')
)


def ansible_variables(values: Mapping[str, Any]) -> str:
    """``values`` as the text of a variables file, where every string but the keys is ``!unsafe``."""
    return yaml.dump(_marked(values), Dumper=_AnsibleDumper, sort_keys=False, width=4096, allow_unicode=True)


def _marked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _marked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    return _Unsafe(value) if isinstance(value, str) else value


# --- a machine's first boot -------------------------------------------------------------------------


def seed_files(
    *,
    host_name: str,
    instance_id: str,
    public_keys: Sequence[str],
    root_login: bool = False,
    settings: Mapping[str, str] | None = None,
    services: Sequence[str] = (),
    network: Mapping[str, object] | None = None,
    project: Path | None = None,
) -> dict[str, str]:
    """The files of a NoCloud seed by name. ``root_login`` is for builds: the keys are root's and nobody else's.

    ``settings`` are variables for the ``services``; ``network`` has ``address``, ``gateway``, ``dns`` and ``mac``.
    """
    template = "build-user-data" if root_login else "user-data"
    values: dict[str, object] = {
        "host_name": host_name,
        "instance_id": instance_id,
        "public_keys": list(public_keys),
        "settings": "".join(f"{environment_line(name, value)}\n" for name, value in (settings or {}).items()),
        "settings_file": SETTINGS,
        "services": [f"{name}.service" for name in services],
    }
    more = {}
    if network is not None:
        more["network-config"] = _rendered(
            "templates/cloud-init/network-config.j2", project, {"network": network}
        )
    return {
        **more,
        "meta-data": text("cloud-init/meta-data.j2", project=project, **values),
        "user-data": text(f"cloud-init/{template}.j2", project=project, **values),
    }


def public_keys(definition: ImageDefinition, folder: Path) -> list[str]:
    """The public keys that a definition admits, one line each; key files are read from ``folder``.

    Raises UsageError for a file that holds none, and for a private key.
    """
    lines = []
    for key in definition.access.keys:
        if is_public_key(key):
            lines.append(" ".join(key.split()))
            continue
        path = folder / Path(key).expanduser()
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"access.keys: {path} cannot be read: {error}") from None
        found = [" ".join(line.split()) for line in content.splitlines() if is_public_key(line)]
        if not found:
            raise UsageError(
                f"access.keys: {path} holds no public key",
                hint="name the .pub file: ssh-keygen -t ed25519 makes a pair",
            )
        lines += found
    return list(dict.fromkeys(lines))


def environment_line(name: str, value: str) -> str:
    """``NAME="VALUE"`` as systemd.exec(5) reads it from an EnvironmentFile: nothing in it ends the quotes."""
    quoted = re.sub(r'(["\\`$])', r"\\\1", value)
    return f'{name}="{quoted}"'


# --- a build ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MachineInputs:
    """What of a build belongs to this host.

    ``base_disk`` is qcow2; ``acceleration`` is "kvm" or "tcg"; ``memory_mib`` in MiB.
    """

    base_disk: Path
    base_sha256: str
    payload: Path
    payload_sha256: str = ""
    acceleration: str
    ansible_playbook: Path
    qemu: str = "qemu-system-x86_64"
    cpus: int = 1
    memory_mib: int = 2048


@dataclass(frozen=True, kw_only=True)
class BuildTree:
    """The files of a build in ``folder``: `packer build -force .` there makes ``disk``.

    ``inputs`` are the SHA-256 of what they name by name. ``public_key`` is empty where no machine is logged in to.
    """

    folder: Path
    name: str
    public_key: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def disk(self) -> Path:
        """Where Packer leaves the image: a qcow2 overlay on the base disk."""
        return self.folder / "disk" / f"{self.name}.qcow2"

    @property
    def seed(self) -> Path:
        """The seed disc, made from the files in ``seed/``."""
        return self.folder / "seed.iso"

    @property
    def archive(self) -> Path:
        """The definition's files as Ansible packs them while it runs."""
        return self.folder / "playbook" / "files.tar"

    @property
    def pid_file(self) -> Path:
        """Where the build's QEMU writes its process id; it removes the file when it ends."""
        return self.folder / "qemu.pid"

    def seed_sources(self) -> dict[str, Path]:
        """The files of the seed disc, by their name on it."""
        return {path.name: path for path in sorted((self.folder / "seed").iterdir())}

    def digest(self) -> str:
        """The SHA-256 of all files that are the same on every host, with their names and whether they run."""
        found = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if relative.parts[0] in _FOLDERS_OF_THIS_RUN or str(relative) in _OF_THIS_HOST:
                continue
            if path.is_symlink():
                found.update(f"link {relative} {path.readlink()}\n".encode())
            elif path.is_file():
                mode = path.stat().st_mode & 0o777
                found.update(f"file {relative} {mode:o} {resources.sha256_of(path)}\n".encode())
        return found.hexdigest()


def build_tree(
    definition: ImageDefinition,
    lock: Lock,
    *,
    folder: Path,
    into: Path,
    inputs: MachineInputs,
    packer_version: Version,
    project: Path | None = None,
    identity: str = "",
) -> BuildTree:
    """Write everything that a build of ``definition`` runs as ordinary files into the new folder ``into``.

    ``folder`` is the definition's; ``identity`` is the build's id, which the machine can tell of itself. The seed
    disc is not among the files: `seed.for_build` makes it from ``seed/``.
    Raises UsageError for what cannot be rendered: a file or role that is not there, a path Packer cannot name.
    """
    into.mkdir(parents=True)
    key = _make_key(into / "ssh" / "id_ed25519", f"build of {definition.name}")
    named = {"base": inputs.base_sha256, "payload": inputs.payload_sha256}
    tree = BuildTree(folder=into, name=definition.name, public_key=key, inputs=named)
    _write_packer(definition, inputs, packer_version, into, project)
    playbook_tree(definition, lock, folder=folder, into=into, project=project, identity=identity)
    sources = seed_files(
        host_name=definition.name,
        instance_id=f"build-{hashlib.sha256(key.encode()).hexdigest()[:12]}",
        public_keys=[key],
        root_login=True,
        project=project,
    )
    for name, content in sources.items():
        _write(into / "seed" / name, content)
    return tree


def playbook_tree(
    definition: ImageDefinition,
    lock: Lock,
    *,
    folder: Path,
    into: Path,
    project: Path | None = None,
    identity: str = "",
) -> None:
    """Write what happens in the machine, whatever it is built by: ``playbook/``, and the definition's ``files/``.

    For the arguments and errors see `build_tree`.
    """
    _write_playbook(definition, lock, folder, into / "playbook", project, identity)
    lay_files(definition, folder, into / "files")


def lay_files(definition: ImageDefinition, folder: Path, into: Path) -> None:
    """Lay the definition's files below ``into`` as they will stand on the machine, with the modes they will have.

    Raises UsageError for one that is not in ``folder``, the definition's.
    """
    into.mkdir(exist_ok=True)
    for item in definition.files:
        _copy_files(item, folder, into)


def _write_packer(
    definition: ImageDefinition, inputs: MachineInputs, version: Version, into: Path, project: Path | None
) -> None:
    for path in (inputs.base_disk, inputs.payload, inputs.ansible_playbook, into):
        _require_speakable(path)
    kvm = inputs.acceleration == "kvm"
    values: dict[str, object] = {
        "name": definition.name,
        "version": definition.version,
        "disk_name": f"{definition.name}.qcow2",
        "disk_mib": definition.disk.size >> 20,
        "packer": ".".join(map(str, version)),
        "needs_init": version >= PLUGINS_SINCE,
        "base_disk": inputs.base_disk.resolve(),
        "base_sha256": inputs.base_sha256,
        "payload": inputs.payload.resolve(),
        "acceleration": "kvm" if kvm else "tcg,thread=multi",
        # Without acceleration: 5-level page tables and nested virtualisation only cost an emulated kernel time.
        "cpu": "host" if kvm else "max,-svm,-la57",
        "cpus": inputs.cpus,
        "memory_mib": inputs.memory_mib,
        "qemu": inputs.qemu,
        # Not resolved: beside a virtual environment's program stands its interpreter.
        "ansible_playbook": inputs.ansible_playbook.absolute(),
    }
    names = ["machine.pkr.hcl", "machine.auto.pkrvars.hcl", "README.md"]
    if version >= PLUGINS_SINCE:
        names.append("plugins.pkr.hcl")
    for name in names:
        _write(into / name, text(f"packer/{name}.j2", project=project, **values))


def _require_speakable(path: Path) -> None:
    """Packer expands ``{{ }}`` in every setting, and nothing switches that off."""
    if "{{" in str(path) or any(ord(char) < 0x20 for char in str(path)):
        raise UsageError(
            f"Packer cannot name the path {str(path)!r}: it has '{{{{' or a control character in it",
            hint="use another folder (--out, CONDA_APPLIANCE_CACHE)",
        )


def _write_playbook(
    definition: ImageDefinition, lock: Lock, folder: Path, into: Path, project: Path | None, identity: str
) -> None:
    """The shipped playbook, the project's own ``playbooks/`` laid over it, and the variables."""
    for root in dict.fromkeys((resources.shipped(), project)):
        if root is not None and (root / "playbooks").is_dir():
            shutil.copytree(
                root / "playbooks", into, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
    for role in definition.roles:
        if not (into / "roles" / role / "tasks").is_dir():
            raise UsageError(
                f"roles: there is no role {role!r} (looked for playbooks/roles/{role}/tasks in {project})",
                hint=f"write playbooks/roles/{role}/tasks/main.yml, or take {role!r} out of the definition",
            )
    _write(into / FACTS, appliance_facts(definition, lock, identity))
    _write(into / "ansible.cfg", text("ansible/ansible.cfg.j2", project=project))
    _write(into / VARIABLES, playbook_settings(definition, lock, folder=folder, project=project))


def playbook_settings(
    definition: ImageDefinition, lock: Lock, *, folder: Path, project: Path | None, named: bool = True
) -> str:
    """`playbook_variables` as the file that the playbook reads them from; the arguments are those of `build_tree`."""
    variables = playbook_variables(definition, lock, folder, project=project, named=named)
    return text(
        "ansible/vars.yml.j2",
        project=project,
        name=definition.name if named else "a machine",
        variables=ansible_variables(variables),
    )


def _stdlib(lock: Lock, environment: str) -> str:
    """Where an environment's Python has its standard library, from its prefix; nothing where it has none."""
    section = lock.conda.environments.get(environment)
    python = next((one for one in section.packages if one.name == "python"), None) if section else None
    return f"lib/python{'.'.join(python.version.split('.')[:2])}" if python else ""


def playbook_variables(
    definition: ImageDefinition, lock: Lock, folder: Path, *, project: Path | None = None, named: bool = True
) -> dict[str, Any]:
    """What the roles read: the definition, with every unit's words quoted for systemd.

    Without ``named`` they have nothing of what names the machine: that comes from elsewhere.
    """
    about = {"name": definition.name, "version": definition.version, "summary": definition.summary}
    names = machine_names(definition, project) if named else {}
    prefixes = {name: definition.prefix_of(name) for name in definition.conda.environments}
    return {
        "appliance": {
            **(about if named else dict.fromkeys(about, "")),
            "boot": definition.base.boot,
            "files": [{"path": f"/{path}", "content": content} for path, content in names.items()],
        },
        "conda": {
            "prefix": definition.conda.prefix,
            "environments": [
                {"name": name, "prefix": path, "stdlib": _stdlib(lock, name)}
                for name, path in prefixes.items()
            ],
            "read_only": definition.disk.layout == "split",
            "frozen": definition.conda.frozen,
            "channels": machine_channels(definition),
            "settings": definition.conda.settings,
            **_first_boot(definition, lock),
        },
        "services": [_service(service, prefixes[service.environment]) for service in definition.services],
        "access": {"user": definition.access.user, "keys": public_keys(definition, folder)},
        "own_roles": list(definition.roles),
        "verify": {"timer": definition.verify.timer or ""},
        # The day that files of accounts name, whenever the image is made.
        "epoch": EPOCH,
    }


def machine_names(definition: ImageDefinition, project: Path | None = None) -> dict[str, str]:
    """The files that name a machine (path from its root → text), in which it differs from others of its kind.

    The playbook writes them where nothing else makes the machine; the rootfs builder writes them over what the playbook
    did, so that it need not run again for another name.
    """
    about = {"name": definition.name, "version": definition.version, "summary": definition.summary}
    return {
        "etc/hostname": f"{definition.name}\n",
        # On every console, after Debian's own; agetty(8) fills in the address, and shows it anew when it changes.
        "etc/issue.d/conda-appliance.issue": text(
            "boot/issue.j2", project=project, user=definition.access.user, **about
        ),
    }


def machine_channels(definition: ImageDefinition) -> list[str]:
    """The channels that conda on the machine asks: those of its settings, or the definition's that it can reach."""
    own = definition.conda.settings.get("channels")
    if isinstance(own, tuple):
        return [*own]
    return [channel for channel in definition.conda.channels if _is_remote(channel)]


def _first_boot(definition: ImageDefinition, lock: Lock) -> dict[str, Any]:
    """What the machine runs on its first boot, where there is anything."""
    if lock.conda.post_link != "first-boot":
        return {}
    return {
        "post_link": [
            {"prefix": definition.prefix_of(name), "packages": list(section.post_link)}
            for name, section in lock.conda.environments.items()
            if section.post_link
        ],
        "post_link_program": Path(first_boot.__file__).read_text(encoding="utf-8"),
    }


def _is_remote(channel: str) -> bool:
    """Whether a machine can reach a channel: not the folders of the host, and not what was built there."""
    return channel != "starter" and not channel.startswith((".", "/", "~", "file:"))


def appliance_facts(definition: ImageDefinition, lock: Lock, identity: str) -> str:
    """What a machine says of itself in /etc/conda-appliance/appliance.json: the one file that names its build."""
    facts = {
        "name": definition.name,
        "version": definition.version,
        "summary": definition.summary,
        "conda-appliance": conda_appliance.__version__,
        "build": identity,
        "lock": lock.digest,
        "environments": {
            name: {"prefix": definition.prefix_of(name)} for name in definition.conda.environments
        },
        "services": {
            service.name: {"port": service.port, "environment": service.environment}
            for service in definition.services
        },
        "user": definition.access.user,
    }
    return json.dumps(facts, indent=2) + "\n"


def _service(service: Service, prefix: str) -> dict[str, Any]:
    try:
        words = shlex.split(service.command)
    except ValueError as error:
        raise UsageError(f"services: the command of {service.name!r} cannot be read: {error}") from None
    if not words:
        raise UsageError(f"services: the command of {service.name!r} is empty")
    program = words[0] if words[0].startswith(("/", _STORE)) else f"{prefix}/bin/{words[0]}"
    return {
        "name": service.name,
        "environment": service.environment,
        "prefix": prefix,
        "program": program,
        "exec_start": " ".join(systemd_word(word) for word in [program, *words[1:]]),
        "environment_file": f"/etc/conda-appliance/environments/{service.environment}.env",
        "settings_file": SETTINGS,
        "working_directory": service.working_directory or "",
        "variables": [systemd_variable(name, value) for name, value in service.variables.items()],
        "low_port": service.port is not None and service.port < 1024,
    }


# --- a payload disc ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PayloadUnit:
    """A service for an installation: its units for the system's and a user's manager, and its command for a shell."""

    name: str
    port: int | None
    command: str
    system: str
    user: str


def payload_units(definition: ImageDefinition, *, project: Path | None = None) -> list[PayloadUnit]:
    """The services as ``install.sh`` installs them: with marks where it puts the paths of its machine.

    The system's units are those of a machine image. Raises UsageError for a definition that says such a mark itself.
    """
    if "@CONDA_APPLIANCE_" in definition.model_dump_json():
        raise UsageError(
            "the definition says @CONDA_APPLIANCE_…@, which installations use as a mark of their own"
        )
    appliance = {"name": definition.name, "boot": definition.base.boot}
    made = []
    for service in definition.services:
        inside = definition.prefix_of(service.environment).removeprefix(definition.conda.prefix)
        system = _service(service, _PREFIX + inside)
        system["environment_file"] = f"{_STORE}/current/environments/{service.environment}.env"
        own = _service(_in_store(service, definition), _PREFIX + inside)
        own["environment_file"] = system["environment_file"]
        own["settings_file"] = f"{_STORE}/settings.env"
        machine = {"appliance": appliance, "service": system}
        made.append(
            PayloadUnit(
                name=service.name,
                port=service.port,
                command=_by_hand(service, own["program"], definition),
                system=_rendered(f"{_APP}/service.j2", project, machine),
                user=text("payload/user-service.j2", project=project, appliance=appliance, service=own),
            )
        )
    return made


def disc_units(
    definition: ImageDefinition, *, environments: str, project: Path | None = None
) -> dict[str, str]:
    """The services' units for a machine that runs them from a disc, by name: those of a machine image.

    ``environments`` is the folder of that machine with what activation sets.
    """
    made = {}
    for service in definition.services:
        values = _service(service, definition.prefix_of(service.environment))
        values["environment_file"] = f"{environments}/{service.environment}.env"
        machine = {
            "appliance": {"name": definition.name, "boot": definition.base.boot},
            "service": values,
        }
        made[service.name] = _rendered(f"{_APP}/service.j2", project, machine)
    return made


def payload_users(definition: ImageDefinition, *, project: Path | None = None) -> str:
    """The services' users, as sysusers.d(5) has it."""
    return _rendered(f"{_APP}/sysusers.conf.j2", project, {"services": definition.services})


def _in_store(service: Service, definition: ImageDefinition) -> Service:
    """The service where the definition's files are not at their places but in the installation's own folder."""

    def there(path: str) -> str:
        inside = any(path == item.to or path.startswith(f"{item.to}/") for item in definition.files)
        return f"{_STORE}/current/root{path}" if inside else path

    command = shlex.join([there(word) for word in shlex.split(service.command)])
    folder = there(service.working_directory) if service.working_directory else None
    return service.model_copy(update={"command": command, "working_directory": folder})


def _by_hand(service: Service, program: str, definition: ImageDefinition) -> str:
    moved = _in_store(service, definition)
    command = shlex.join([program, *shlex.split(moved.command)[1:]])
    return f"cd {moved.working_directory} && {command}" if moved.working_directory else command


def _copy_files(item: Files, folder: Path, root: Path) -> None:
    """Lay an entry of ``files`` where it will stand, with the modes it will have."""
    source = folder / Path(item.source).expanduser()
    target = root / PurePosixPath(item.to).relative_to("/")
    if source.is_dir():
        shutil.copytree(
            source, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    else:
        raise UsageError(f"files: {source} is neither a file nor a folder")
    for path in [*root.rglob("*"), root]:
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(0o755)
        elif path.is_relative_to(target):
            given = int(item.mode, 8) if item.mode else path.stat().st_mode & 0o755
            path.chmod(given)


def _make_key(path: Path, comment: str) -> str:
    """A key pair for one build; returns the public line."""
    path.parent.mkdir(mode=0o700)
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
    return path.with_suffix(".pub").read_text(encoding="utf-8").strip()


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    path.chmod(0o644)

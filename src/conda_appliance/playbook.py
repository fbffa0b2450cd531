"""A definition with its lock → what happens in the machine, whatever it is built by: playbook, variables, files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import conda_appliance
from conda_appliance import first_boot, resources, units
from conda_appliance.definition import Files, ImageDefinition, is_public_key
from conda_appliance.errors import UsageError
from conda_appliance.lock import Lock
from conda_appliance.render import EPOCH, ansible_variables, text, write

#: The file in ``playbook/`` with what names a build; all others beside it follow from the definition alone.
FACTS = "appliance.json"
#: The file in the playbook that has what the roles read.
VARIABLES = "vars.yml"


def tree(
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
    write(into / FACTS, appliance_facts(definition, lock, identity))
    write(into / "ansible.cfg", text("ansible/ansible.cfg.j2", project=project))
    write(into / VARIABLES, settings(definition, lock, folder=folder, project=project))


def settings(
    definition: ImageDefinition, lock: Lock, *, folder: Path, project: Path | None, named: bool = True
) -> str:
    """`variables` as the file that the playbook reads them from; the arguments are those of `build_tree`."""
    found = variables(definition, lock, folder, project=project, named=named)
    return text(
        "ansible/vars.yml.j2",
        project=project,
        name=definition.name if named else "a machine",
        variables=ansible_variables(found),
    )


def variables(
    definition: ImageDefinition, lock: Lock, folder: Path, *, project: Path | None = None, named: bool = True
) -> dict[str, Any]:
    """What the roles read: the definition, with every unit's words quoted for systemd.

    Without ``named`` nothing in them names the machine: that comes from elsewhere, and a role that asks for it fails.
    """
    about = {"name": definition.name, "version": definition.version, "summary": definition.summary}
    names = machine_names(definition, project) if named else {}
    prefixes = {name: definition.prefix_of(name) for name in definition.conda.environments}
    return {
        "appliance": {
            **(about if named else {}),
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
        "services": [
            units.service_values(service, prefixes[service.environment]) for service in definition.services
        ],
        "access": {"user": definition.access.user, "keys": public_keys(definition, folder)},
        "own_roles": list(definition.roles),
        "verify": {"timer": definition.verify.timer or ""},
        # The day that files of accounts name, whenever the image is made.
        "epoch": EPOCH,
    }


def _stdlib(lock: Lock, environment: str) -> str:
    """Where an environment's Python has its standard library, from its prefix; nothing where it has none."""
    section = lock.conda.environments.get(environment)
    python = next((one for one in section.packages if one.name == "python"), None) if section else None
    return f"lib/python{'.'.join(python.version.split('.')[:2])}" if python else ""


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


def _is_remote(channel: str) -> bool:
    """Whether a machine can reach a channel: not the folders of the host, and not what was built there."""
    return channel != "starter" and not channel.startswith((".", "/", "~", "file:"))


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

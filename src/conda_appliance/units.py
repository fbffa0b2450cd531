"""A definition's services → their units, with every word quoted for systemd: of a machine, a disc, an installation."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conda_appliance.definition import ImageDefinition
from conda_appliance.definition_services import Service
from conda_appliance.errors import UsageError
from conda_appliance.render import SETTINGS, rendered, systemd_variable, systemd_word, text

#: The playbook's templates of services, for installations too.
_APP = "playbooks/roles/app/templates"

#: What stands in the units of a payload disc for the paths of the machine where it is installed.
_PREFIX, _STORE = "@CONDA_APPLIANCE_PREFIX@", "@CONDA_APPLIANCE_STORE@"


def service_values(service: Service, prefix: str) -> dict[str, Any]:
    """What a unit's template says of a service of the environment at ``prefix``. Raises UsageError for no command."""
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
        system = service_values(service, _PREFIX + inside)
        system["environment_file"] = f"{_STORE}/current/environments/{service.environment}.env"
        own = service_values(_in_store(service, definition), _PREFIX + inside)
        own["environment_file"] = system["environment_file"]
        own["settings_file"] = f"{_STORE}/settings.env"
        machine = {"appliance": appliance, "service": system}
        made.append(
            PayloadUnit(
                name=service.name,
                port=service.port,
                command=_by_hand(service, own["program"], definition),
                system=rendered(f"{_APP}/service.j2", project, machine),
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
        values = service_values(service, definition.prefix_of(service.environment))
        values["environment_file"] = f"{environments}/{service.environment}.env"
        machine = {
            "appliance": {"name": definition.name, "boot": definition.base.boot},
            "service": values,
        }
        made[service.name] = rendered(f"{_APP}/service.j2", project, machine)
    return made


def payload_users(definition: ImageDefinition, *, project: Path | None = None) -> str:
    """The services' users, as sysusers.d(5) has it."""
    return rendered(f"{_APP}/sysusers.conf.j2", project, {"services": definition.services})


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

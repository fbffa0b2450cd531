"""The only Jinja: templates → text, and values as the words of what reads them.

A value of a definition never ends the string it stands in: each language has a filter (`hcl`, `yaml`, `shell`), and
what Ansible reads is marked ``!unsafe``, so that braces in it stay braces.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from conda_appliance import resources

#: The clock of what is written into an image: 2020-01-01, in seconds since 1970.
EPOCH = 1577836800

#: What a machine's owner, or its seed, sets for every service (systemd.exec(5), EnvironmentFile=).
SETTINGS = "/etc/conda-appliance/settings.env"


def text(template: str, *, project: Path | None = None, **values: object) -> str:
    """Render ``templates/TEMPLATE``. A value that the template names and nobody gives is an error, never empty."""
    return rendered(f"templates/{template}", project, values)


def rendered(template: str, project: Path | None, values: Mapping[str, object]) -> str:
    """A template by its path among the project's own data and the shipped, be it one of a role's."""
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
        more["network-config"] = rendered(
            "templates/cloud-init/network-config.j2", project, {"network": network}
        )
    return {
        **more,
        "meta-data": text("cloud-init/meta-data.j2", project=project, **values),
        "user-data": text(f"cloud-init/{template}.j2", project=project, **values),
    }


def environment_line(name: str, value: str) -> str:
    """``NAME="VALUE"`` as systemd.exec(5) reads it from an EnvironmentFile: nothing in it ends the quotes."""
    quoted = re.sub(r'(["\\`$])', r"\\\1", value)
    return f'{name}="{quoted}"'


def write(path: Path, content: str) -> None:
    """Write a file that anybody may read, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    path.chmod(0o644)

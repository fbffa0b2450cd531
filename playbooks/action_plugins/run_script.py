"""Runs a shell script in the machine, without a start of Python there.

Under emulation Python and Ansible's modules take ten seconds before they do anything, a shell takes none. ::

    - name: Say hello
      run_script:
        script: "{{ lookup('ansible.builtin.file', 'hello.sh') }}"
      environment:
        NAME: World

The task has changed something if the script prints a line ``changed: …``, and failed if it ends with another status
than 0. What it returns is named as by ansible.builtin.shell. In check mode it is skipped.
"""

import re
from typing import Any

from ansible.module_utils.common.text.converters import to_bytes
from ansible.plugins.action import ActionBase

#: By standard input, since a word of a command line may have 128 KiB; read to its end first, since what the script
#: starts may read its standard input.
_RUN = """/bin/sh -c 'eval "$(cat)"'"""


class ActionModule(ActionBase):
    """The task's action."""

    _VALID_ARGS = frozenset(("script",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run ``script`` as root, with the task's environment."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "skipped": True, "changed": False, "msg": "not run in check mode"}
        script = self._task.args["script"]
        command = f"{self._compute_environment_string()} {_RUN}".strip()
        result |= self._low_level_execute_command(command, in_data=to_bytes(script))
        result["changed"] = re.search(r"^changed: ", result["stdout"], re.MULTILINE) is not None
        if result["rc"] != 0:
            result |= {"failed": True, "msg": "non-zero return code"}
        return result

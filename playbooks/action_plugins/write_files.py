"""Writes several small text files in one round trip, without a start of Python in the machine (see run_script.py).

Each file is written in one step (a new file is renamed over the old), owned by root, and only if it differs. Folders
that are missing are made with mode 0755. ::

    - name: Say hello
      write_files:
        files:
          - path: /etc/motd
            content: "{{ lookup('ansible.builtin.template', 'motd.j2') }}"
            mode: "0644"    # the default
"""

import re
import shlex
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

_SCRIPT = r"""
set -eu
umask 022
new=
trap 'rm -f "$new"' EXIT
put() { # put PATH MODE TEXT
    if [ -f "$1" ] && [ ! -L "$1" ] && [ "$(stat -c %a:%u:%g "$1")" = "$2:0:0" ] && printf %s "$3" | cmp -s - "$1"; then
        return 0
    fi
    printf 'changed: %s\n' "$1"
    if [ -n "$only_say" ]; then
        return 0
    fi
    mkdir -p "$(dirname "$1")"
    new=$(mktemp "$(dirname "$1")/.XXXXXXXXXX")
    printf %s "$3" >"$new"
    chown 0:0 "$new"
    chmod "$2" "$new"
    mv -fT "$new" "$1"
    new=
}
"""


class ActionModule(ActionBase):
    """The task's action."""

    _VALID_ARGS = frozenset(("files",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write ``files``, a list of ``path``, ``content`` and ``mode``; ``written`` names those that differed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        texts, script = {}, f"only_say={'yes' if self._task.check_mode else ''}\n{_SCRIPT}"
        for file in self._task.args["files"]:
            if not {"path", "content"} <= set(file) <= {"path", "content", "mode"} or file["path"][:1] != "/":
                raise AnsibleActionFail(f"a file has an absolute path, content and perhaps mode, not {file}")
            mode = file.get("mode", "0644")
            if not isinstance(mode, str) or not re.fullmatch("0?[0-7]{3,4}", mode):
                raise AnsibleActionFail(
                    f'the mode of {file["path"]} is octal and in quotes, such as "0644", not {mode}'
                )
            texts[file["path"]] = file["content"]
            words = file["path"], f"{int(mode, 8):o}", file["content"]
            script += f"put {shlex.join(words)}\n"
        task = self._task.copy()
        task.args, task.check_mode = {"script": script}, False
        run_script = self._shared_loader_obj.action_loader.get(
            "run_script",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        result |= run_script.run(task_vars=task_vars)
        said = result["stdout_lines"]
        written = [line.removeprefix("changed: ") for line in said if line.startswith("changed: ")]
        result["written"] = written
        result["diff"] = [{"after_header": path, "after": texts[path], "before": ""} for path in written]
        return result

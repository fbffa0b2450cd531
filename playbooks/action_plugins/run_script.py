"""Runs a shell script in the machine, without a start of Python there.

Under emulation Python and Ansible's modules take ten seconds before they do anything, a shell takes none. ::

    - name: Say hello
      run_script:
        script: "{{ lookup('ansible.builtin.file', 'hello.sh') }}"
      environment:
        NAME: World

With ``folder``, a folder of this host, the script finds a tar of what is in it, all of it root's, at the path ARCHIVE.

The task has changed something if the script prints a line ``changed: …``, and failed if it ends with another status
than 0. What it returns is named as by ansible.builtin.shell. In check mode it is skipped.
"""

import re
import tarfile
import tempfile
from typing import Any

from ansible import constants
from ansible.module_utils.common.text.converters import to_bytes
from ansible.plugins.action import ActionBase

#: By standard input, since a word of a command line may have 128 KiB; read to its end first, since what the script
#: starts may read its standard input.
_RUN = """/bin/sh -c 'eval "$(cat)"'"""


class ActionModule(ActionBase):
    """The task's action."""

    _VALID_ARGS = frozenset(("script", "folder"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run ``script`` as root, with the task's environment."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "skipped": True, "changed": False, "msg": "not run in check mode"}
        words = [self._compute_environment_string(), _RUN]
        if folder := self._task.args.get("folder"):
            words.insert(1, self._connection._shell.env_prefix(ARCHIVE=self._sent(folder)))
        script = to_bytes(self._task.args["script"])
        result |= self._low_level_execute_command(" ".join(filter(None, words)), in_data=script)
        result["changed"] = re.search(r"^changed: ", result["stdout"], re.MULTILINE) is not None
        if result["rc"] != 0:
            result |= {"failed": True, "msg": "non-zero return code"}
        return result

    def _sent(self, folder: str) -> str:
        """Send a folder as a tar; its path there, which goes when the task ends (`cleanup` of the base)."""
        path: str = self._connection._shell.join_path(self._make_tmp_path(), "files.tar")
        with tempfile.NamedTemporaryFile(dir=constants.DEFAULT_LOCAL_TMP, suffix=".tar") as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(folder, arcname=".", filter=_roots)
            file.flush()
            self._transfer_file(file.name, path)
        return path


def _roots(one: tarfile.TarInfo) -> tarfile.TarInfo:
    one.uid = one.gid = 0
    one.uname = one.gname = ""
    one.mtime = int(one.mtime)
    return one

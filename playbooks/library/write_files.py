#!/usr/bin/python3
"""Writes several small text files in one round trip. Under emulation each task costs seconds, whatever it does."""

DOCUMENTATION = """
module: write_files
short_description: Write several small text files at once
description:
  - Each file is written in one step (a new file is renamed over the old), owned by root, and only if it differs.
  - Folders that are missing are made with mode 0755.
options:
  files:
    description: What to write.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Where, as an absolute path., type: path, required: true}
      content: {description: The text., type: str, required: true}
      mode: {description: Its mode in octal., type: str, default: "0644"}
"""

EXAMPLES = """
- name: Say hello
  write_files:
    files:
      - path: /etc/motd
        content: "{{ lookup('ansible.builtin.template', 'motd.j2') }}"
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule


def differs(path: str, content: bytes, mode: int) -> bool:
    """Whether a file is not there, or other than it should be."""
    try:
        found = os.lstat(path)
        with open(path, "rb") as file:
            same = file.read() == content
    except FileNotFoundError:
        return True
    return (
        not same
        or os.path.islink(path)
        or (found.st_mode & 0o7777, found.st_uid, found.st_gid) != (mode, 0, 0)
    )


def write(path: str, content: bytes, mode: int) -> None:
    """Write a file in one step."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chown(temporary, 0, 0)
        os.chmod(temporary, mode)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            }
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    written, diff = [], []
    for item in module.params["files"]:
        path, content, mode = item["path"], item["content"].encode(), int(item["mode"], 8)
        if differs(path, content, mode):
            written.append(path)
            diff.append({"after_header": path, "after": item["content"], "before": ""})
            if not module.check_mode:
                write(path, content, mode)
    module.exit_json(changed=bool(written), written=written, diff=diff)


if __name__ == "__main__":
    main()

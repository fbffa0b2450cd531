"""Works in the root file system at a folder of this host: what ``builder: rootfs`` runs the playbook through.

By hand, in mounts of your own (``unshare --mount``) and with /proc, /dev and /run in the folder::

    ansible-playbook -c rootfs -i FOLDER, site.yml
"""

DOCUMENTATION = """
name: rootfs
short_description: Work in an unpacked root file system
description:
  - Runs commands with chroot(8) in a folder of this host, and copies files there.
  - It is ansible-core's own C(local) connection with another root. The plugin of community.general does the same;
    ansible-core comes without it, and the collection is a thousand times the size of this file.
author: conda-appliance
options:
  root:
    description: The folder, as an absolute path.
    default: inventory_hostname
    vars:
      - name: inventory_hostname
      - name: ansible_host
"""

import os
import shlex
import shutil
from typing import Any

from ansible.plugins.connection.local import Connection as LocalConnection


class Connection(LocalConnection):
    """A root file system as if it were a host."""

    transport = "rootfs"
    has_pipelining = True

    #: What a login over SSH finds, whoever runs the playbook on this host.
    environment = (
        "HOME=/root",
        "LANG=C.UTF-8",
        "LOGNAME=root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL=/bin/sh",
        "TZ=UTC",
        "USER=root",
    )

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        """Run a shell command there. Everybody is root already."""
        # Users' PATHs often lack the sbin folders.
        chroot = (
            shutil.which("chroot", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin") or "chroot"
        )
        words = [
            chroot,
            self.get_option("root"),
            "/usr/bin/env",
            "-i",
            *self.environment,
            "/bin/sh",
            "-c",
            cmd,
        ]
        inside = shlex.join(words)
        result: tuple[int, bytes, bytes] = super().exec_command(inside, in_data=in_data, sudoable=False)
        return result

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file of this host there."""
        shutil.copyfile(in_path, self._inside(out_path))

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file from there to this host."""
        shutil.copyfile(self._inside(in_path), out_path)

    def _inside(self, path: str) -> Any:
        return os.path.join(self.get_option("root"), path.lstrip("/"))

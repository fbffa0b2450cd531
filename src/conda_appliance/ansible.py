"""How Ansible is started: its program, and an environment in which nothing of the user's own settings takes part."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conda_appliance import resources, runs
from conda_appliance.errors import ToolMissing

#: Folders with Packer's and Ansible's sockets, whose paths may have 107 bytes: TMPDIR is often longer than this.
_SHORT = 40


#: What the folders' names begin with, before the mark of who made them.
_PREFIX = "conda-appliance-"


def playbook_program() -> Path:
    """The ``ansible-playbook`` that came with this program, beside its interpreter; else the one on PATH."""
    beside = Path(sys.executable).with_name("ansible-playbook")
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("ansible-playbook")
    if found is None:
        raise ToolMissing(
            f"ansible-playbook is neither beside {sys.executable} nor on PATH",
            hint=f"{sys.executable} -m pip install ansible-core",
        )
    return Path(found)


def variables(scratch: Path, logs: Path) -> dict[str, str]:
    """The environment variables for Ansible: all its folders are in ``scratch``, its log in ``logs``."""
    return {
        "ANSIBLE_HOME": str(scratch / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(scratch / "ansible/tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(scratch / "cp"),
        "ANSIBLE_LOG_PATH": str(logs / "ansible.log"),
        "ANSIBLE_NOCOLOR": "1",
        # What `packer_output` reads, whatever the user's own settings are.
        "ANSIBLE_STDOUT_CALLBACK": "default",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_DISPLAY_FAILED_STDERR": "0",
    }


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for sockets and temporary files, with a short path; what killed runs left of theirs goes first."""
    sweep()
    mark = runs.mark().replace(":", "-")
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{mark}-", dir=_parent()))
    try:
        yield folder
    finally:
        resources.remove(folder)


def sweep() -> list[Path]:
    """Remove the folders (`scratch`) that killed runs left; returns them."""
    removed = []
    for left in _parent().glob(f"{_PREFIX}*"):
        owner = left.name.removeprefix(_PREFIX).rpartition("-")[0].replace("-", ":")
        if left.is_dir() and left.stat().st_uid == os.getuid() and not runs.alive(owner):
            resources.remove(left)
            removed.append(left)
    return removed


def _parent() -> Path:
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > _SHORT:
        parent = Path("/tmp")  # noqa: S108 — the folders made in it are new and ours alone (mkdtemp)
    return parent

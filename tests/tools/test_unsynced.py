"""A program whose files need not survive a loss of power does not wait for the disk."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conda_appliance import unsynced

#: Asks the kernel to write a file that is not open, and tells what it said: os.fsync would raise.
_ASK = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.fsync(99), ctypes.get_errno())"
_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_ASK!r}], check=True)"


def _said(*words: str) -> str:
    return subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("program", [_ASK, _CHILD], ids=["itself", "what it starts"])
def test_the_kernel_says_that_all_is_written_and_does_nothing(program: str) -> None:
    if _said("-c", "from conda_appliance import unsynced; print(unsynced.suppress())") == "False":
        pytest.fail("this kernel installs no filters: the tests want one that does")
    assert _said("-c", program) == "-1 9", "EBADF: without the filter, it looks"
    assert _said("-IS", str(unsynced.__file__), sys.executable, "-c", program) == "0 0"


def test_the_programs_status_is_handed_on() -> None:
    done = subprocess.run([sys.executable, "-IS", str(unsynced.__file__), "sh", "-c", "exit 7"], check=False)
    assert done.returncode == 7

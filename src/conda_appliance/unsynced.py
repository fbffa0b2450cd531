"""Starts a program whose files, and those of all that it starts, are not written to the disk before its next step.

dpkg and others call fsync(2) thousands of times, so that a machine that loses its power finds each package whole. What
is made anew after that need not be: the kernel answers for them that all is written. A program by itself, of the
standard library only: ``python unsynced.py COMMAND…``. Source of the trick: systemd-nspawn(1), ``--suppress-sync``.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

#: prctl(2) and seccomp(2): the two numbers that install a filter; its answers; where it finds a call's number and
#: architecture; its instructions (linux/bpf_common.h): load a word, compare it, return.
_SET_SECCOMP, _FILTER = 22, 2
_ALLOW, _DONE = 0x7FFF0000, 0x00050000  # the second: an error whose number is 0
_NUMBER, _ARCHITECTURE = 0, 4
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06

#: By machine: its number for seccomp (linux/audit.h), and those of fsync, fdatasync, sync, syncfs, sync_file_range and
#: msync.
_CALLS = {
    "x86_64": (0xC000003E, (74, 75, 162, 306, 277, 26)),
    "aarch64": (0xC00000B7, (82, 83, 81, 267, 84, 227)),
}


def _filter(architecture: int, calls: tuple[int, ...]) -> bytes:
    """A program for the kernel's packet filter: each instruction is code, jump if true, jump if false, value."""
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 0, len(calls) + 1, architecture), (_LOAD, 0, 0, _NUMBER)]
    steps += [(_EQUAL, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DONE)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def suppress() -> bool:
    """Have the kernel do nothing where this process, or what it starts, asks for its files to be written now.

    False where it will not: it knows no filters, or we are not root in our user namespace.
    """
    known = _CALLS.get(platform.machine())
    if known is None:
        return False
    program = _filter(*known)
    steps = ctypes.create_string_buffer(program, len(program))
    given = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(steps)))
    return bool(ctypes.CDLL(None).prctl(_SET_SECCOMP, _FILTER, given, 0, 0) == 0)


if __name__ == "__main__":
    suppress()  # without, it takes longer and does the same
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 (this is what it is for)

"""The only place that starts a program: it inherits the mark of our run (`runs`), and none outlives us."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from conda_appliance import redact, runs
from conda_appliance.errors import DISK_FULL, CommandFailed, ToolMissing

#: Which Debian package brings a program, for the hint of `ToolMissing`.
PACKAGES = {
    "apt-get": "apt",
    "apt-ftparchive": "apt-utils",
    "busybox": "busybox-static",
    "dpkg-deb": "dpkg",
    "dpkg-source": "dpkg-dev",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "aarch64-linux-gnu-strip": "binutils-aarch64-linux-gnu",
    "gcc": "build-essential",
    "grub-mkimage": "grub-common",
    "make": "make",
    "mcopy": "mtools",
    "mmd": "mtools",
    "patch": "patch",
    "patchelf": "patchelf",
    "strip": "binutils",
    "xz": "xz-utils",
    "mke2fs": "e2fsprogs",
    "mkfs.erofs": "erofs-utils",
    "mksquashfs": "squashfs-tools",
    "mkfs.vfat": "dosfstools",
    "mmdebstrap": "mmdebstrap",
    "mount": "mount",
    "newgidmap": "uidmap",
    "newuidmap": "uidmap",
    "packer": "packer",
    "rpmbuild": "rpm",
    "qemu-img": "qemu-utils",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tar": "tar",
    "unshare": "util-linux",
    "xorriso": "xorriso",
    "zstd": "zstd",
}

#: Variables that say who we are to a server, or where that stands; `credentials` reads them, and no program gets them.
_PRIVATE = re.compile(r"CONDA_APPLIANCE_AUTH|RATTLER_AUTH_FILE")
#: Further ones that programs read which ask servers; those alone get them.
_FOR_NETWORK = re.compile(r"NETRC|(UV|PIP|TWINE)_.*(PASSWORD|USERNAME|TOKEN)|ANACONDA_.*TOKEN|CONDA_TOKEN")

#: For QEMU's user mode, by which the kernel starts programs of 64-bit Arm elsewhere (`emulation`): pointers are signed
#: by a quick hash of its own. Debian's programs sign one in most functions, and by the architecture's cipher a perl or
#: Python takes two or three times as long to start.
_EMULATED = {} if os.uname().machine == "aarch64" else {"QEMU_CPU": "max,pauth-impdef=on"}

#: The line in which a program says that a disk is full: strerror(ENOSPC), and apt's and GNU tar's own words.
_FULL = re.compile(
    r"^.*(?:No space left on device|enough free space|Wrote only \d+ of \d+ bytes).*$", re.MULTILINE
)

_T = TypeVar("_T")

Argument = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A program that ended: its streams as text (decoded as UTF-8, undecodable bytes escaped)."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Starter:
    """How a program of an environment is started on this host: the ``words`` before its own, and the files they need.

    Without both, as any program.
    """

    words: tuple[Argument, ...] = ()
    files: Path | None = None


def shown(argv: Sequence[Argument]) -> str:
    """``argv`` as a shell line that can be pasted, without secrets."""
    return redact.text(shlex.join([os.fspath(word) for word in argv]))


def find(tool: str) -> str:
    """The path of ``tool`` on PATH (or in the sbin folders, which users' PATHs often lack).

    Raises ToolMissing with the command that installs it.
    """
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which(tool, path=os.pathsep.join([path, "/usr/local/sbin", "/usr/sbin", "/sbin"]))
    if found:
        return found
    package = PACKAGES.get(tool, tool)
    raise ToolMissing(
        f"{tool} is not installed, and this step needs it",
        hint=f"apt-get install {package}",
    )


def require(*tools: str) -> None:
    """Raise ToolMissing naming every one of ``tools`` that the host lacks, and the command that installs them."""
    missing = []
    for tool in dict.fromkeys(tools):
        try:
            find(tool)
        except ToolMissing:
            missing.append(tool)
    if missing:
        packages = " ".join(sorted({PACKAGES.get(tool, tool) for tool in missing}))
        raise ToolMissing(
            f"not installed on this host, and needed: {', '.join(missing)}",
            hint=f"apt-get install {packages}",
        )


def environment(extra: Mapping[str, str] | None = None, *, network: bool = False) -> dict[str, str]:
    """The environment of a program we start: ours, a fixed locale, the run's mark, how to emulate, and ``extra``.

    What says who we are to a server is left out, and a proxy with a password too, but for a program that asks servers
    itself (``network``).
    """
    ours = {name: value for name, value in os.environ.items() if not is_private(name, value, network=network)}
    return {**_EMULATED, **ours, "LC_ALL": "C.UTF-8", runs.MARK: runs.mark(), **(extra or {})}


def is_private(name: str, value: str, *, network: bool = False) -> bool:
    """Whether a variable is kept from a program, which asks servers itself (``network``) or not."""
    if _PRIVATE.fullmatch(name):
        return True
    return not network and (_FOR_NETWORK.fullmatch(name) is not None or redact.holds_secret(value))


def run(
    argv: Sequence[Argument],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    timeout: float | None = None,
    log: Path | None = None,
    check: bool = True,
    on_line: Callable[[str], None] | None = None,
    orphaned: signal.Signals = signal.SIGTERM,
    hint: str = "",
    network: bool = False,
) -> Completed:
    """Run a program to its end.

    ``env`` is added to our own; ``network`` says that it asks servers (`environment`). ``timeout`` in seconds, after
    which its whole group is killed. ``log`` is a file that both streams are appended to. ``on_line`` sees each line of
    standard output and error as it comes (they are then merged into ``stdout``). ``orphaned`` is the signal it gets
    when this process dies.

    Raises ToolMissing when the program is not there; CommandFailed when it ends with a non-zero
    status (unless ``check`` is false) or runs out of time.
    """
    command = [find(os.fspath(argv[0])), *(os.fspath(word) for word in argv[1:])]
    started = time.monotonic()
    merged = on_line is not None
    with _started(
        command,
        cwd=cwd,
        env=environment(env, network=network),
        stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        orphaned=orphaned,
    ) as child:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _kill_group(child)

        timer = threading.Timer(timeout or 0, expire)
        if timeout is not None:
            timer.daemon = True
            timer.start()
        try:
            if on_line is not None:
                out, err = _read_lines(child, on_line), ""
            else:
                raw_out, raw_err = child.communicate(input.encode() if input is not None else None)
                out, err = _text(raw_out), _text(raw_err)
            child.wait()
        finally:
            timer.cancel()
    seconds = time.monotonic() - started
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"$ {shown(command)}\n{redact.text(out + err)}")
    if expired.is_set():
        raise CommandFailed(
            f"{Path(command[0]).name} did not end within {timeout:.0f} s: {shown(command)}",
            hint=hint,
            returncode=-1,
            output=out + err,
        )
    if check and child.returncode != 0:
        raise _failed(command, child.returncode, out + err, hint)
    return Completed(
        argv=tuple(command), returncode=child.returncode, stdout=out, stderr=err, seconds=seconds
    )


def run_to(
    argv: Sequence[Argument],
    file: IO[bytes],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program whose standard output, as bytes, is ``file``'s; returns what it said on its standard error.

    ``cwd`` and ``env`` are as `run` has them. Raises as `run` does.
    """
    command = [find(os.fspath(argv[0])), *(os.fspath(word) for word in argv[1:])]
    with _started(
        command,
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.PIPE,
    ) as child:
        _, raw = child.communicate()
    if child.returncode != 0:
        raise _failed(command, child.returncode, _text(raw))
    return _text(raw)


def _failed(command: Sequence[str], status: int, output: str, hint: str = "") -> CommandFailed:
    """How a program failed, with its last words; a full disk is told in one line, whoever finds it."""
    name, output = Path(command[0]).name, redact.text(output)
    if full := _FULL.search(output):
        message, hint = f"the disk is full, as {name} found: {full[0].strip()}", DISK_FULL
    else:
        tail = "\n".join(output.strip().splitlines()[-12:])
        message = f"{name} failed with status {status}: {shown(command)}" + (f"\n{tail}" if tail else "")
    return CommandFailed(message, hint=hint, returncode=status, output=output)


def interactive(argv: Sequence[Argument]) -> int:
    """Run a program on the user's own terminal and return its exit status."""
    command = [find(os.fspath(argv[0])), *(os.fspath(word) for word in argv[1:])]
    return subprocess.call(command, env=environment())


@contextmanager
def background(
    argv: Sequence[Argument],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs while the block does; its streams go to ``log``; it never outlives the block."""
    command = [find(os.fspath(argv[0])), *(os.fspath(word) for word in argv[1:])]
    with (
        log.open("ab") as file,
        _started(
            command,
            cwd=cwd,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        ) as child,
    ):
        yield child


def cpu_seconds(pid: int) -> float:
    """The processor time that a running process has used, in seconds (proc(5): user and system)."""
    after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _started(
    command: list[str],
    *,
    cwd: Path | None,
    env: dict[str, str],
    stdin: int,
    stdout: int | IO[bytes],
    stderr: int,
    orphaned: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start ``command`` in a session of its own, so that its whole group can be ended with it."""
    groups = _groups.get()
    if any(group.ended for group in groups):
        raise CommandFailed(
            f"not started, because what runs beside it failed: {shown(command)}", returncode=-1, output=""
        )
    child = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=lambda: _die_with_parent(orphaned),
    )
    for group in groups:
        group.pids.add(child.pid)
    try:
        yield child
    finally:
        for group in groups:
            group.pids.discard(child.pid)
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                _kill_group(child)
                child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent(number: signal.Signals) -> None:
    """In the child: be sent a signal when the thread that started us dies (prctl(2) PR_SET_PDEATHSIG)."""
    _libc.prctl(1, number)


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _read_lines(child: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> str:
    assert child.stdout is not None
    lines = []
    for raw in child.stdout:
        line = _text(raw)
        lines.append(line)
        on_line(line.rstrip("\n"))
    return "".join(lines)


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", errors="backslashreplace")


@dataclass
class _Group:
    """The process ids of what runs within one `side_by_side`; nothing more is started once it has ``ended``."""

    pids: set[int] = field(default_factory=set)
    ended: bool = False


#: Each `side_by_side` that is under way in this thread, the innermost last.
_groups: ContextVar[tuple[_Group, ...]] = ContextVar("groups", default=())


def side_by_side(*tasks: Callable[[], _T], workers: int = 0) -> list[_T]:
    """Run ``tasks`` in threads, ``workers`` at a time (0: all), and return their answers in order.

    The first that fails, or an interrupt, ends the programs of all others; its error is raised.
    """
    group = _Group()

    def run_one(task: Callable[[], _T]) -> _T:
        _groups.set((*_groups.get(), group))
        return task()

    with ThreadPoolExecutor(workers or len(tasks), thread_name_prefix="task") as pool:
        futures = [pool.submit(copy_context().run, run_one, task) for task in tasks]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            group.ended = True
            pool.shutdown(wait=False, cancel_futures=True)
            for pid in list(group.pids):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGTERM)
            raise
    return [future.result() for future in futures]

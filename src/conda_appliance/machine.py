"""A booted machine: QEMU on a throw-away overlay, its console in a file, SSH on a port of 127.0.0.1.

``boot`` starts it and ends it; what it leaves lies in the work folder, which is the caller's. The image
itself is never written to. This is the only module that speaks SSH (paramiko).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from conda_appliance import lazy, platforms, process, qemu
from conda_appliance.accelerator import Accelerator
from conda_appliance.accelerator import accelerator as accelerator  # also ours to others
from conda_appliance.errors import BuildError, CommandFailed, UsageError
from conda_appliance.platforms import PLATFORMS, Platform
from conda_appliance.process import Completed
from conda_appliance.qemu import Firmware, Forward

if TYPE_CHECKING:
    import paramiko
else:
    paramiko = lazy.module("paramiko")

#: How long a machine may take from power-on to SSH, in seconds, where the processor runs it (KVM);
#: `Accelerator.patience` times as long under emulation.
BOOT_TIMEOUT = 180.0

#: How long a machine may take to power off, in seconds, under KVM.
POWER_OFF_TIMEOUT = 30.0

# Paramiko reports each refused connection on its logger, which Python prints when nobody listens. While a
# machine boots they are expected; what matters is raised.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@cache
def slot() -> threading.Semaphore:
    """What is held (``with slot():``) while a machine runs that is not a person's own.

    Builds that run side by side have as many machines at a time as the host has processors for.
    """
    return threading.Semaphore(max(1, (os.cpu_count() or 1) // accelerator().processors))


def tools(platform: Platform = PLATFORMS[platforms.DEFAULT]) -> list[str]:
    """The host's programs that a machine needs."""
    return [platform.qemu, "qemu-img", "ssh-keygen"]


def require(firmware: Firmware, platform: Platform) -> None:
    """Raise ToolMissing where the host has no ``firmware`` for machines of ``platform``."""
    if firmware == "uefi":
        qemu.ovmf(platform)


def new_key(folder: Path, comment: str = "conda-appliance") -> Path:
    """A new Ed25519 key without a passphrase, for one machine's life: ``folder/key``, and ``key.pub`` beside it."""
    private = folder / "key"
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", private])
    return private


def ssh_argv(*, port: int, user: str, key: Path, known_hosts: Path) -> list[str]:
    """The OpenSSH command that logs in to a machine; none of the user's own SSH settings take part."""
    options = {
        "IdentitiesOnly": "yes",
        # A value with spaces needs quotes of ssh's own, and % begins a token there.
        "UserKnownHostsFile": '"' + os.fspath(known_hosts.resolve()).replace("%", "%%") + '"',
        "GlobalKnownHostsFile": "/dev/null",
        # A new machine's host key cannot be known: the first is taken, later ones must be the same.
        "StrictHostKeyChecking": "accept-new",
        "LogLevel": "ERROR",
    }
    argv = ["ssh", "-F", "none", "-p", str(port), "-i", os.fspath(key)]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    return [*argv, f"{user}@127.0.0.1"]


@dataclass(kw_only=True)
class Machine:
    """A running machine, made by `boot`.

    ``ssh_port`` is the port of 127.0.0.1 that leads to its SSH; ``forwards`` says the same of its other ports:
    guest's → host's. ``started`` is when it was powered on, on Python's monotonic clock.
    """

    work: Path
    ssh_port: int
    forwards: dict[int, int]
    accelerator: Accelerator
    started: float
    _qemu: subprocess.Popen[bytes]
    _control: qemu.Control
    _ssh: paramiko.SSHClient | None = field(default=None)

    @property
    def serial_log(self) -> Path:
        """The log of the guest's serial console."""
        return self.work / qemu.CONSOLE

    @property
    def known_hosts(self) -> Path:
        """Where this machine's host keys are noted when it is first reached."""
        return self.work / "known_hosts"

    @property
    def patience(self) -> float:
        """How much longer than under KVM to wait for it."""
        return self.accelerator.patience

    @property
    def running(self) -> bool:
        """Whether QEMU runs."""
        return self._qemu.poll() is None

    def cpu_seconds(self) -> float:
        """The processor time that QEMU has used: the machine's own, whatever else the host did meanwhile."""
        return process.cpu_seconds(self._qemu.pid)

    def wait_for_ssh(
        self,
        user: str,
        key: Path,
        *,
        timeout: float | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> float:
        """Wait until ``user`` is logged in with ``key``; returns the seconds since power-on.

        ``progress`` gets the console's last line now and then. Raises BuildError with the end of the console
        when QEMU dies, the guest's kernel panics or ``timeout`` seconds (else `BOOT_TIMEOUT`, stretched under
        emulation) are over.
        """
        limit = timeout if timeout is not None else BOOT_TIMEOUT * self.accelerator.patience
        deadline = time.monotonic() + limit
        stage = "nothing answered on its SSH port"
        while True:
            self._require_running("before it answered over SSH")
            if qemu.panicked(self.serial_log):
                raise self._failure("the machine's kernel stopped (a panic) before it answered over SSH")
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._failure(
                    f"the machine could not be reached over SSH within {limit:.0f} s: {stage}"
                )
            if progress is not None:
                progress((qemu.tail(self.serial_log, 1) or ["power on"])[-1].strip())
            try:
                self._ssh = self._log_in(user, key, min(left, 20.0))
            except paramiko.AuthenticationException as error:
                # Seen while cloud-init is about to install the key. Not too often: sshd shuts out who fails much.
                stage = f"its SSH server refuses the key for user {user} ({error})"
                time.sleep(min(left, 5.0))
            except paramiko.BadHostKeyException:
                raise self._failure("the machine changed its SSH host key while it booted") from None
            except (OSError, EOFError, paramiko.SSHException) as error:
                stage = f"{stage.partition(' (')[0]} ({str(error) or type(error).__name__})"
                time.sleep(min(left, 0.25))
            else:
                return time.monotonic() - self.started

    def run(self, command: str, *, input: str = "", timeout: float = 120.0, check: bool = True) -> Completed:
        """Run a shell command on the machine as the user who is logged in.

        Raises CommandFailed when it ends with a status other than 0 (unless ``check`` is false) or does not
        end within ``timeout`` seconds; BuildError when the machine is gone.
        """
        assert self._ssh is not None, "wait_for_ssh first"
        self._require_running("before it was asked to")
        started = time.monotonic()
        try:
            status, out, err = _execute(self._ssh, command, input.encode(), timeout)
        except TimeoutError:
            raise CommandFailed(
                f"on the machine, {command!r} did not end within {timeout:.0f} s",
                hint=f"the machine's console: {self.serial_log}",
                returncode=-1,
                output="",
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            self._require_running(f"during {command!r}")
            raise self._failure(f"the connection to the machine broke during {command!r}: {error}") from None
        if check and status != 0:
            last = "\n".join((out + err).strip().splitlines()[-12:])
            raise CommandFailed(
                f"on the machine, {command!r} failed with status {status}" + (f"\n{last}" if last else ""),
                returncode=status,
                output=out + err,
            )
        seconds = time.monotonic() - started
        return Completed(argv=(command,), returncode=status, stdout=out, stderr=err, seconds=seconds)

    def ssh_argv(self, user: str, key: Path) -> list[str]:
        """The OpenSSH command that logs in to this machine."""
        return ssh_argv(port=self.ssh_port, user=user, key=key, known_hosts=self.known_hosts)

    def shut_down(self, *, timeout: float | None = None) -> bool:
        """Press the power button and wait; whether the machine powered itself off within ``timeout`` seconds.

        If it did not, QEMU is ended all the same.
        """
        limit = timeout if timeout is not None else POWER_OFF_TIMEOUT * self.accelerator.patience
        self._hang_up()
        with suppress(OSError, BuildError):
            self._control.execute("system_powerdown")
        try:
            self._qemu.wait(timeout=limit)
            return True
        except subprocess.TimeoutExpired:
            with suppress(OSError, BuildError):
                self._control.execute("quit")
            with suppress(subprocess.TimeoutExpired):
                self._qemu.wait(timeout=10)
            return False

    def eject(self, drive: int = 0, *, timeout: float = 60.0) -> None:
        """Press the button of a CD drive and take the disc out; a guest that has it mounted is asked first.

        Raises BuildError when the guest has not opened the drive within ``timeout`` seconds.
        """
        with suppress(BuildError):  # locked: QEMU has passed the wish on
            self._control.execute("eject", {"id": f"cd{drive}"})
        deadline = time.monotonic() + timeout
        while not self._is_open(drive):
            if time.monotonic() > deadline:
                raise self._failure(f"the guest did not open its CD drive within {timeout:.0f} s")
            time.sleep(0.2)
        self._control.execute("blockdev-remove-medium", {"id": f"cd{drive}"})

    def _is_open(self, drive: int) -> bool:
        found = self._control.execute("query-block")
        return any(one.get("qdev") == f"cd{drive}" and one.get("tray_open") for one in found)

    def insert(self, disc: Path, drive: int = 0) -> None:
        """Put a disc into a CD drive that is empty."""
        about = {"filename": os.fspath(disc.resolve()), "format": "raw", "read-only-mode": "read-only"}
        self._control.execute("blockdev-change-medium", {"id": f"cd{drive}", **about})

    def unplug(self, drive: int = 0) -> None:
        """Take a CD drive away with the disc in it, as a stick is pulled: the guest is told afterwards."""
        self._control.execute("device_del", {"id": f"cd{drive}"})

    def plug(self, disc: Path, drive: int = 0) -> None:
        """Plug a CD drive in again that was taken away, with a disc in it."""
        name = f"plugged-{time.monotonic_ns()}"
        file = {"driver": "file", "filename": os.fspath(disc.resolve()), "read-only": True}
        self._control.execute(
            "blockdev-add", {"driver": "raw", "node-name": name, "read-only": True, "file": file}
        )
        self._control.execute(
            "device_add", {"driver": "scsi-cd", "id": f"cd{drive}", "bus": "scsi.0", "drive": name}
        )

    def wait(self) -> int:
        """Wait until the machine is powered off from within; QEMU's exit status."""
        return self._qemu.wait()

    def _log_in(self, user: str, key: Path, timeout: float) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        self.known_hosts.touch(mode=0o600)
        client.load_host_keys(os.fspath(self.known_hosts))
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect(
                "127.0.0.1",
                port=self.ssh_port,
                username=user,
                key_filename=os.fspath(key),
                timeout=timeout,
                banner_timeout=timeout,
                auth_timeout=max(timeout, 30.0),
                allow_agent=False,
                look_for_keys=False,
            )
        except BaseException:
            client.close()
            raise
        transport = client.get_transport()
        assert transport is not None
        transport.set_keepalive(30)
        return client

    def _require_running(self, when: str) -> None:
        status = self._qemu.poll()
        if status is None:
            return
        if status == 0:
            raise self._failure(f"the machine powered off {when}")
        end = f"was killed (signal {-status})" if status < 0 else f"ended with status {status}"
        said = "\n".join(qemu.tail(self.work / qemu.LOG, 5))
        raise self._failure(f"QEMU {end} {when}" + (f"\n{said}" if said else ""))

    def _failure(self, message: str) -> BuildError:
        """A BuildError that shows the end of the console."""
        lines = qemu.tail(self.serial_log)
        shown = "\n".join(f"  | {line}" for line in lines) or (
            "  | (nothing: the firmware found nothing to start, or the guest does not use the serial port)"
        )
        return BuildError(
            f"{message}\nThe last lines of its console:\n{shown}",
            hint=f"the whole console: {self.serial_log}",
        )

    def _hang_up(self) -> None:
        if self._ssh is not None:
            self._ssh.close()
            self._ssh = None


@contextmanager
def boot(
    image: Path,
    *,
    work: Path,
    firmware: Firmware = "bios",
    seed: Path | None = None,
    discs: Sequence[Path] = (),
    memory_mib: int = 1024,
    ssh_port: int | None = None,
    forwards: Sequence[int] = (),
    accelerated_by: Accelerator | None = None,
    name: str = "appliance",
    arrived: qemu.Arrived | None = None,
    attached: qemu.Attachment = "disk",
    platform: Platform = PLATFORMS[platforms.DEFAULT],
) -> Iterator[Machine]:
    """A machine that runs while the block does, from an overlay of ``image`` (qcow2 or raw) in ``work``.

    ``seed`` is a cloud-init NoCloud disc; ``discs`` lie in CD drives (`Machine.eject`). ``ssh_port`` is the port of
    127.0.0.1 that leads to the guest's SSH; without it, and for the guest's ports in ``forwards``, the kernel picks
    free ones (see `Machine`). ``arrived`` gets what the console and the firmware say, when they say it (see
    `qemu.watch`). An ``image`` that is a disc may be ``attached`` as a CD or a stick.

    Raises ToolMissing without QEMU or OVMF, UsageError when a port is in use, BuildError when QEMU does not
    start.
    """
    accelerated_by = accelerated_by or accelerator(platform)
    code = qemu.prepare(image, work, firmware, platform)
    argv = qemu.arguments(
        name=name,
        accelerator=accelerated_by,
        firmware=firmware,
        memory_mib=memory_mib,
        cpus=accelerated_by.processors,
        forwards=[Forward(guest=22, host=ssh_port or 0), *(Forward(guest=port) for port in forwards)],
        seed=seed,
        discs=discs,
        code=code,
        watched=arrived is not None,
        attached=attached,
        platform=platform,
    )
    started = time.monotonic()
    with (
        qemu.watch(work, arrived) if arrived else nullcontext(),
        process.background(argv, log=work / qemu.LOG, cwd=work) as child,
    ):
        control = qemu.connect(work, lambda: child.poll() is None)
        if control is None:
            raise _start_failure(work, argv, child.wait())
        ports = qemu.forwarded(control.monitor("info usernet"))
        machine = Machine(
            work=work,
            ssh_port=ports.pop(22),
            forwards=ports,
            accelerator=accelerated_by,
            started=started,
            _qemu=child,
            _control=control,
        )
        control.execute("cont")
        try:
            yield machine
        finally:
            machine._hang_up()
            control.close()


def _start_failure(work: Path, argv: Sequence[str], status: int) -> BuildError | UsageError:
    """Why QEMU ended before its machine was there."""
    said = "\n".join(qemu.tail(work / qemu.LOG, 8))
    refused = re.search(r"Could not set up host forwarding rule 'tcp:127\.0\.0\.1:(\d+)-", said)
    if refused:
        return _port_failure(int(refused[1]))
    return BuildError(
        f"QEMU did not start (status {status}): {process.shown(argv)}\n{said}",
        hint=f"run it by hand in {work} to look closer",
    )


def _port_failure(port: int) -> UsageError:
    """Why a port of 127.0.0.1 cannot be had."""
    with socket.socket() as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("127.0.0.1", port))
            reason = "could not be taken"
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "is in use by another program" if taken else f"cannot be taken: {error.strerror}"
    return UsageError(
        f"port {port} of 127.0.0.1 {reason}",
        hint=f"see who has it: ss -tlnp 'sport = :{port}'    or name another port, or none to get a free one",
    )


def _execute(client: paramiko.SSHClient, command: str, given: bytes, timeout: float) -> tuple[int, str, str]:
    """Run ``command`` on a channel of its own. Raises TimeoutError."""
    transport = client.get_transport()
    if transport is None:
        raise EOFError("not connected")
    with transport.open_session(timeout=30) as channel:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            channel.close()

        timer = threading.Timer(timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            channel.exec_command(command)
            errors: list[bytes] = []
            # Both streams are read at once: a program that fills one of them must not stand still.
            reader = threading.Thread(
                target=lambda: errors.append(channel.makefile_stderr("rb").read()), daemon=True
            )
            reader.start()
            if given:
                channel.sendall(given)
            channel.shutdown_write()
            out = channel.makefile("rb").read()
            reader.join()
            status = channel.recv_exit_status()
        except OSError:
            if not expired.is_set():
                raise
            raise TimeoutError from None
        finally:
            timer.cancel()
    if expired.is_set():
        raise TimeoutError
    return status, _text(out), _text(b"".join(errors))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="backslashreplace")

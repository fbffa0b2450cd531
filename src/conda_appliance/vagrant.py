"""A machine that ``vagrant up`` started, whatever its provider: a way in, by what ``vagrant ssh-config`` says."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import process
from conda_appliance.errors import BuildError, CommandFailed, UsageError
from conda_appliance.process import Completed

#: How long ssh may take to log in, in seconds, where the processor runs the machine.
_LOGIN_TIMEOUT = 30.0


@dataclass(frozen=True, kw_only=True)
class Vagrant:
    """A running machine of Vagrant's, made by `reach`.

    ``ssh_port`` is the port of 127.0.0.1 that leads to its SSH; ``forwards`` says the same of its other ports:
    machine's → host's. ``user`` logs in, with the private key ``key``.
    """

    name: str
    user: str
    key: Path
    config: Path
    ssh_port: int
    forwards: dict[int, int]
    patience: float

    def run(self, command: str, *, check: bool = True) -> Completed:
        """Run a shell command on it. Raises CommandFailed as `process.run` does."""
        return process.run(["ssh", "-F", self.config, self.name, command], check=check)


@contextmanager
def reach(name: str, ports: Sequence[int], *, work: Path, patience: float) -> Iterator[Vagrant]:
    """The machine ``name`` of the Vagrantfile in the current folder, or its only one where that is empty.

    While the block runs, ports of 127.0.0.1 lead to its SSH and its ``ports``; ``work`` is scratch, ``patience``
    stretches every wait. Raises UsageError when it does not run, BuildError when it cannot be reached.
    """
    config = work / "vagrant_ssh_config"
    text = _ssh_config(name)
    config.write_text(text, encoding="utf-8")
    settings = read(text)
    numbers = _free(1 + len(ports))
    argv: list[process.Argument] = ["ssh", "-F", config, "-N", "-o", "ExitOnForwardFailure=yes"]
    argv += ["-o", "BatchMode=yes"]
    for number, port in zip(numbers, [22, *ports], strict=True):
        argv += ["-L", f"127.0.0.1:{number}:127.0.0.1:{port}"]
    log = work / "tunnel.log"
    with process.background([*argv, settings["Host"]], log=log) as tunnel:
        deadline = time.monotonic() + _LOGIN_TIMEOUT * patience
        while not _open(numbers[0]):
            if tunnel.poll() is not None or time.monotonic() > deadline:
                raise BuildError(
                    f"the machine {settings['Host']!r} cannot be reached over SSH:\n{log.read_text()}",
                    hint=f"vagrant ssh {settings['Host']}",
                )
            time.sleep(0.2)
        yield Vagrant(
            name=settings["Host"],
            user=settings["User"],
            key=Path(settings["IdentityFile"]),
            config=config,
            ssh_port=numbers[0],
            forwards=dict(zip(ports, numbers[1:], strict=True)),
            patience=patience,
        )


def public_key(private: Path) -> str:
    """The public key of a private one."""
    return process.run(["ssh-keygen", "-y", "-f", private]).stdout.strip()


def _ssh_config(name: str) -> str:
    try:
        return process.run(["vagrant", "ssh-config", *([name] if name else [])]).stdout
    except CommandFailed as error:
        said = error.output.strip().splitlines()
        raise UsageError(
            "Vagrant knows no way in:\n" + "\n".join(said[-6:]),
            hint=f"in the folder of the Vagrantfile: vagrant up{f' {name}' if name else ''}",
        ) from None


def read(text: str) -> dict[str, str]:
    """The settings of the only host in the text of an ssh_config(5); of several values the first, as ssh has it.

    Raises UsageError for several hosts, and for what says too little.
    """
    found: dict[str, str] = {}
    hosts = []
    for line in text.splitlines():
        if match := re.fullmatch(r'\s*(\w+)\s+"?(.*?)"?\s*', line):
            found.setdefault(match[1], match[2])
            hosts += [match[2]] if match[1] == "Host" else []
    if len(hosts) > 1:
        raise UsageError(
            f"several machines run here: {', '.join(hosts)}", hint=f"name one: --vagrant {hosts[0]}"
        )
    if missing := {"Host", "User", "IdentityFile"} - {*found}:
        raise UsageError(f"`vagrant ssh-config` names no {', no '.join(sorted(missing))}")
    return found


def _free(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

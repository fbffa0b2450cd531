"""How a machine starts: from power-on to its service's first answer, phase by phase.

Two clocks tell it. The host's monotonic clock, zero at power-on, dates what arrives on the serial console and the
service's answer; the guest's, zero when its kernel sets it, dates what kernel and systemd note of themselves.
``Asked.zero`` is where the second stands on the first. What cannot be told apart is one phase, and its source says so.
"""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What our GRUB writes on the console (templates/boot/grub.cfg.j2): it runs, and it hands over to the kernel.
LOADER_RUNS = "Loading the kernel"
LOADER_ENDS = "Starting the kernel"

#: The last words of a firmware: SeaBIOS's on its debug port, OVMF's on the console.
_FIRMWARE_ENDS = re.compile(r"Booting from 0000:7c00|BdsDxe: starting Boot")

#: Between two questions to a service that does not answer yet, in seconds: how exact its time is.
ASK_EVERY = 0.25
#: How long one question may stand unanswered, in seconds, while others are asked.
_PATIENCE = 10.0

#: Asked on the machine in one go, as root, once its boot is over: a login costs an emulated machine a second.
QUESTIONS = {
    "manager": "systemctl show -p UserspaceTimestampMonotonic,FinishTimestampMonotonic",
    "kernel": "dmesg | grep -m 1 'Run /.* as init process'",
    "time": "systemd-analyze time",
    "blame": "systemd-analyze blame --no-pager",
    "chain": "systemd-analyze critical-chain --no-pager {unit}",
    "ssh": "systemctl show -p ActiveEnterTimestampMonotonic ssh.service sshd.service",
}


# --- what is seen from outside ----------------------------------------------------------------------


class Transcript:
    """What arrived from a machine, line by line, each with the seconds after power-on when its text began to arrive."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str]] = []
        self._rest = b""
        self._since: float | None = None

    def feed(self, seconds: float, data: bytes) -> None:
        """Take what arrived at ``seconds``."""
        *whole, rest = (self._rest + data).split(b"\n")
        for line in whole:
            self.lines.append((seconds if self._since is None else self._since, plain(line)))
            self._since = None
        self._rest = rest
        # Some end a line with "\n\r", and some move the cursor long before they write: only text counts.
        if self._since is None and plain(rest):
            self._since = seconds

    def first(self, pattern: str | re.Pattern[str]) -> float | None:
        """When the first line with ``pattern`` arrived; none did: None."""
        last = [] if self._since is None else [(self._since, plain(self._rest))]
        return next((at for at, text in [*self.lines, *last] if re.search(pattern, text)), None)

    def text(self) -> str:
        """Everything, for the report."""
        return "".join(f"{at:9.3f}  {line}\n" for at, line in self.lines)


_CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-_c]|[\x00-\x08\x0a-\x1f\x7f]")


def plain(line: bytes) -> str:
    """The text of a line, without colours and cursor movements."""
    return _CONTROLS.sub("", line.decode("utf-8", errors="replace")).rstrip()


class Asker:
    """Asks a service over HTTP, again and again from power-on, until it answers below 400.

    Each question has a connection of its own, and does not wait for the one before: what the machine's network
    swallowed while it was not up is repeated seconds later by its sender, and would come too late.
    """

    def __init__(self, port: int, path: str, started: float) -> None:
        self.answered: float | None = None
        self._port, self._path, self._started = port, path, started
        self._done = threading.Event()
        threading.Thread(target=self._ask_on, daemon=True).start()

    def wait(self, timeout: float) -> float | None:
        """The seconds from power-on to the first answer; None when there was none within ``timeout``."""
        self._done.wait(timeout)
        self._done.set()
        return self.answered

    def _ask_on(self) -> None:
        while not self._done.is_set():
            question = threading.Thread(target=self._ask, daemon=True)
            question.start()
            question.join(ASK_EVERY)
            self._done.wait(ASK_EVERY if not question.is_alive() else 0)

    def _ask(self) -> None:
        request = f"GET {self._path} HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE) as one:
            one.sendall(request.encode())
            answer = one.makefile("rb").readline(200)
            now = time.monotonic() - self._started
            if re.match(rb"HTTP/1\.[01] [123]\d\d ", answer) and not self._done.is_set():
                self.answered = now
                self._done.set()


# --- what the machine says of itself ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The machine's own figures, in seconds of its kernel's clock; None where it does not tell.

    ``zero`` is when that clock was zero, in seconds after power-on; ``uncertain`` by how much that may be wrong.
    ``units`` are the slowest units with their seconds, ``chain`` what the service waited for (systemd's words).
    """

    zero: float
    uncertain: float
    init: float | None
    systemd: float | None
    finished: float | None
    ssh: float | None
    time: str
    units: tuple[tuple[str, float], ...]
    chain: str


def script(unit: str) -> str:
    """The shell script that asks `QUESTIONS`; ``unit`` is the service's, whose critical chain is told."""
    return "\n".join(
        f"echo '=== {name}'; {command.format(unit=unit)} 2>/dev/null" for name, command in QUESTIONS.items()
    )


def read_answers(uptime: str, text: str, *, sent: float, received: float) -> Asked:
    """What the machine answered to ``cat /proc/uptime`` and to `script`.

    ``sent`` and ``received``, in seconds after power-on, are when the first was asked and answered: somewhere
    between the two it was true.
    """
    parts: dict[str, str] = {}
    for part in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        name, _, said = part.partition("\n")
        parts[name.strip()] = said
    manager = properties(parts.get("manager", ""))
    ssh = [value for value in timestamps(parts.get("ssh", ""), "ActiveEnterTimestampMonotonic") if value]
    init = re.search(r"\[\s*(\d+\.\d+)\]", parts.get("kernel", ""))
    return Asked(
        zero=(sent + received) / 2 - float(uptime.split()[0]),
        uncertain=(received - sent) / 2,
        init=float(init[1]) if init else None,
        systemd=manager.get("UserspaceTimestampMonotonic"),
        finished=manager.get("FinishTimestampMonotonic"),
        ssh=min(ssh, default=None),
        time=parts.get("time", "").strip(),
        units=tuple(blame(parts.get("blame", ""))),
        chain=parts.get("chain", "").strip(),
    )


def timestamps(text: str, name: str) -> list[float]:
    """All values of the property ``name`` in ``systemctl show``'s words, microseconds there, in seconds."""
    return [int(value) / 1e6 for value in re.findall(rf"^{name}=(\d+)$", text, re.MULTILINE)]


def properties(text: str) -> dict[str, float]:
    """The timestamps that ``systemctl show`` tells, in seconds; those that have not happened are left out."""
    found = re.findall(r"^(\w+TimestampMonotonic)=(\d+)$", text, re.MULTILINE)
    return {name: int(value) / 1e6 for name, value in found if int(value)}


_UNITS = {"y": 31557600.0, "month": 2629800.0, "w": 604800.0, "d": 86400.0, "h": 3600.0, "min": 60.0}
_UNITS |= {"s": 1.0, "ms": 1e-3, "us": 1e-6, "μs": 1e-6, "µs": 1e-6}


def span(text: str) -> float:
    """A time span as systemd writes one, ``1min 2.345s``, in seconds. Raises ValueError for anything else."""
    seconds = 0.0
    for word in text.split():
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zμµ]+)", word)
        if not match or match[2] not in _UNITS:
            raise ValueError(f"{text!r} is not a time span of systemd's")
        seconds += float(match[1]) * _UNITS[match[2]]
    return round(seconds, 6)


def blame(text: str) -> list[tuple[str, float]]:
    """``systemd-analyze blame``: units and seconds, slowest first, without devices (they only wait for others)."""
    found = []
    for line in text.splitlines():
        took, _, unit = line.strip().rpartition(" ")
        if took and not unit.endswith(".device"):
            with suppress(ValueError):
                found.append((unit, span(took)))
    return found


# --- the phases -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of the boot: when it ended, after power-on, how long it took, and how that is known."""

    name: str
    seconds: float
    ends: float
    known_from: str


def phases(firmware: Transcript, console: Transcript, asked: Asked) -> tuple[Phase, ...]:
    """The phases from power-on until systemd has started everything, each from the best source there is."""
    ends: list[tuple[str, float, str]] = []
    handed = firmware.first(_FIRMWARE_ENDS) or console.first(_FIRMWARE_ENDS)
    kernel = console.first(re.escape(LOADER_ENDS))
    begins = "the loader's last line on the console"
    if kernel is None:
        kernel = asked.zero
        begins = "the kernel's clock begins: unpacking the kernel is in it"
    if handed is not None:
        ends.append(("firmware", handed, "the firmware's last line"))
        ends.append(("loader", kernel, begins))
    elif (runs := console.first(re.escape(LOADER_RUNS))) is not None:
        ends.append(("firmware", runs, "the loader's first line on the console: loading itself is in it"))
        ends.append(("loader", kernel, begins))
    else:
        ends.append(("firmware, loader", kernel, f"not told apart; {begins}"))
    if asked.init is not None:
        ends.append(("kernel", asked.zero + asked.init, "the kernel's log: Run /init"))
        name = "initramfs"
    else:
        name = "kernel, initramfs"
    if asked.systemd is not None:
        known = "systemd: its own start"
        ends.append((name, asked.zero + asked.systemd, known if asked.init else f"not told apart; {known}"))
        if asked.finished is not None:
            ends.append(("userspace", asked.zero + asked.finished, "systemd: startup finished"))
    made, before = [], 0.0
    for name, end, known in ends:
        made.append(Phase(name=name, seconds=round(end - before, 2), ends=round(end, 2), known_from=known))
        before = end
    return tuple(made)


@dataclass(frozen=True, kw_only=True)
class BootTime:
    """How an image started, once. ``answered``: from power-on to the first answer of ``service``, None if it has none.

    ``cpu``: the seconds of processor time that the machine had used by then, which other work on the host does not
    stretch as it does the others.
    """

    image: str
    firmware: str
    accelerator: str
    cpus: int
    service: str | None
    answered: float | None
    cpu: float | None
    phases: tuple[Phase, ...]
    asked: Asked

    @property
    def ssh(self) -> float | None:
        """When the SSH server ran, in seconds after power-on."""
        return None if self.asked.ssh is None else round(self.asked.zero + self.asked.ssh, 2)

    def text(self, units: int = 10) -> str:
        """A table, then the slowest units."""
        head = f"{self.image}, {self.firmware}, {self.cpus} processors, {self.accelerator}"
        lines = [head, f"{'phase':18} {'took':>7} {'ends at':>8}   known from"]
        lines += [
            f"{one.name:18} {one.seconds:7.2f} {one.ends:8.2f}   {one.known_from}" for one in self.phases
        ]
        if self.ssh is not None:
            lines.append(f"{'SSH server runs':18} {'':7} {self.ssh:8.2f}   systemd")
        if self.answered is not None:
            start = next((one.ends for one in self.phases if "initramfs" in one.name), None)
            took = f"{self.answered - start:7.2f}" if start is not None else f"{'':7}"
            known = f"the first good answer of {self.service}, counted from systemd's start"
            lines.append(f"{'service answers':18} {took} {self.answered:8.2f}   {known}")
        lines.append(f"(seconds; the guest's clock against ours is known to ±{self.asked.uncertain:.2f})")
        if self.cpu is not None:
            lines.append(f"processor time until the answer: {self.cpu:.1f} s")
        lines += ["", "slowest units (they run side by side):"]
        lines += [f"{seconds:8.2f}  {unit}" for unit, seconds in self.asked.units[:units]]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        value = dataclasses.asdict(self)
        value["ssh"] = self.ssh
        value["asked"]["units"] = [{"unit": unit, "seconds": took} for unit, took in self.asked.units]
        return value

    def write(self, folder: Path, transcripts: Mapping[str, Transcript]) -> None:
        """Write ``boot-time.json``, ``boot-time.txt`` and each transcript with its times."""
        (folder / "boot-time.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        text = "\n".join([self.text(units=40), "", self.asked.time, "", self.asked.chain, ""])
        (folder / "boot-time.txt").write_text(text, encoding="utf-8")
        for name, transcript in transcripts.items():
            (folder / f"{name}-times.txt").write_text(transcript.text(), encoding="utf-8")

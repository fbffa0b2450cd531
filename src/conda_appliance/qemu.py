"""How QEMU is spoken to: its command line for a machine of ours, its firmware, and QMP, its control protocol."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from conda_appliance import platforms, process
from conda_appliance.accelerator import Accelerator
from conda_appliance.errors import BuildError, ToolMissing, UsageError
from conda_appliance.platforms import PLATFORMS, Platform

Firmware = Literal["bios", "uefi"]

#: How a machine has its image: as its disk, or as a disc that it starts from.
Attachment = Literal["disk", "cd", "usb"]
_DEVICES: Mapping[Attachment, tuple[str, ...]] = {
    "disk": ("-device", "virtio-blk-pci,drive=disk,bootindex=1"),
    "cd": ("-device", "ahci,id=sata", "-device", "ide-cd,bus=sata.0,drive=disk,bootindex=1"),
    "usb": ("-device", "qemu-xhci,id=usb", "-device", "usb-storage,bus=usb.0,drive=disk,bootindex=1"),
}

#: Where distributions keep OVMF, the UEFI firmware for QEMU: (code, variables), Debian's first.
OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)
#: … and AAVMF, the same for 64-bit Arm, in files as large as the machine's flash.
AAVMF = (
    ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
    ("/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "/usr/share/edk2/aarch64/vars-template-pflash.raw"),
)
#: UEFI's firmware by machine, with the package that has it.
_FIRMWARE = {"x86_64": (OVMF, "OVMF", "ovmf"), "aarch64": (AAVMF, "AAVMF", "qemu-efi-aarch64")}
#: QEMU's machine by its processor, without what an appliance has no use for.
_MACHINES = {
    "x86_64": "q35,sata=off,smbus=off,usb=off,vmport=off",
    "aarch64": "virt",
}

#: The files of a running machine, named from its work folder (QEMU is started there).
OVERLAY = "overlay.qcow2"
VARIABLES = "uefi-variables.fd"
CONSOLE = "console.log"
#: What Linux says when it has stopped for good (kernel/panic.c).
PANIC = "Kernel panic - not syncing"
#: What a machine that is watched says, as it says it: named pipes, see `watch`.
TAPS = ("console", "firmware")

#: Called with the pipe's name, the seconds since power-on, and what came.
Arrived = Callable[[str, float, bytes], None]
CONTROL = "qmp.sock"
LOG = "qemu.log"


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A TCP port of the guest on 127.0.0.1 of the host; ``host`` 0 lets the kernel pick a free one."""

    guest: int
    host: int = 0


def ovmf(platform: Platform = PLATFORMS[platforms.DEFAULT]) -> tuple[Path, Path]:
    """OVMF's code and its empty variables, or what another platform has for it. Raises ToolMissing without."""
    places, name, package = _FIRMWARE[platform.machine]
    for code, variables in places:
        if Path(code).is_file() and Path(variables).is_file():
            return Path(code), Path(variables)
    raise ToolMissing(
        f"there is no UEFI firmware for QEMU ({name}), and this machine boots with it",
        hint=f"apt-get install {package}",
    )


#: Where a disk's format has its magic number, in bytes from the start or, negative, from the end.
_MAGIC = (
    ("qcow2", 0, b"QFI\xfb"),
    ("vmdk", 0, b"KDMV"),
    ("vhdx", 0, b"vhdxfile"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vpc", -512, b"conectix"),
)


def disk_format(image: Path) -> str:
    """The format of a disk as QEMU names it, by its magic number; without one it is ``raw``."""
    with image.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for name, at, magic in _MAGIC:
            file.seek(max(0, size + at) if at < 0 else at)
            if file.read(len(magic)) == magic:
                return name
    return "raw"


def make_overlay(image: Path, folder: Path) -> None:
    """An empty qcow2 on top of ``image``: the machine writes there, and ``image`` stays as it is."""
    below = ["-F", disk_format(image), "-b", os.fspath(image.resolve())]
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, os.fspath(folder / OVERLAY)])


def arguments(
    *,
    name: str,
    accelerator: Accelerator,
    firmware: Firmware,
    memory_mib: int,
    cpus: int,
    forwards: Sequence[Forward],
    seed: Path | None = None,
    discs: Sequence[Path] = (),
    code: Path | None = None,
    watched: bool = False,
    attached: Attachment = "disk",
    platform: Platform = PLATFORMS[platforms.DEFAULT],
) -> list[str]:
    """QEMU's command line for a machine of ``platform`` whose files lie in the current folder.

    No default devices: each one costs the guest's udev time, which is what a boot under emulation spends most
    on. ``discs`` lie in CD drives, ``cd0`` and so on. ``code`` is OVMF's, with ``firmware="uefi"``. No window, no VNC;
    ports on 127.0.0.1 only. Its processor stands still until the monitor is told ``cont``: a guest may be off again
    before anyone could ask for its ports. With ``watched``, the console goes to a pipe too, and so does what SeaBIOS
    says on its debug port (see `watch`).
    """
    argv = [platform.qemu, "-name", quoted(name), "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-machine", _MACHINES[platform.machine], *accelerator.arguments]
    argv += ["-smp", str(cpus), "-m", str(memory_mib), "-rtc", "base=utc", "-boot", "menu=off", "-S"]
    if firmware == "uefi":
        assert code is not None
        argv += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={quoted(os.fspath(code))}"]
        argv += ["-drive", f"if=pflash,unit=1,format=raw,file={VARIABLES}"]
    # What an overlay holds is thrown away: no need to wait until the host's disk has it.
    argv += ["-drive", f"if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file={OVERLAY}"]
    argv += _DEVICES[attached]
    if seed is not None:
        place = quoted(os.fspath(seed.resolve()))
        argv += ["-drive", f"if=none,id=seed,format=raw,readonly=on,file={place}"]
        argv += ["-device", "virtio-blk-pci,drive=seed"]
    if discs:
        argv += ["-device", "virtio-scsi-pci,id=scsi"]
    for number, disc in enumerate(discs):
        place = quoted(os.fspath(disc.resolve()))
        argv += ["-drive", f"if=none,id=disc{number},format=raw,media=cdrom,readonly=on,file={place}"]
        argv += ["-device", f"scsi-cd,id=cd{number},bus=scsi.0,drive=disc{number}"]
    rules = "".join(f",hostfwd=tcp:127.0.0.1:{one.host}-:{one.guest}" for one in forwards)
    argv += ["-netdev", f"user,id=net{rules}", "-device", "virtio-net-pci,netdev=net,romfile="]
    argv += ["-device", "virtio-rng-pci"]
    console = (
        f"pipe,id=console,path=console,logfile={CONSOLE}" if watched else f"file,id=console,path={CONSOLE}"
    )
    argv += ["-chardev", console, "-serial", "chardev:console"]
    if watched and "bios" in platform.firmware:
        argv += [
            "-chardev",
            "pipe,id=firmware,path=firmware",
            "-device",
            "isa-debugcon,iobase=0x402,chardev=firmware",
        ]
    argv += [
        "-chardev",
        f"socket,id=control,path={CONTROL},server=on,wait=off",
        "-mon",
        "chardev=control,mode=control",
    ]
    return argv


def quoted(value: str) -> str:
    """``value`` inside a QEMU option, where a comma ends a value and two are one."""
    return value.replace(",", ",,")


def prepare(
    image: Path, folder: Path, firmware: Firmware, platform: Platform = PLATFORMS[platforms.DEFAULT]
) -> Path | None:
    """Make the files of a machine in ``folder``; returns OVMF's code where the machine needs it.

    Raises UsageError for a firmware that no such machine has.
    """
    if firmware not in platform.firmware:
        raise UsageError(f"a machine of {platform.name} has no BIOS", hint="--firmware uefi, or none")
    make_overlay(image, folder)
    if firmware == "bios":
        return None
    code, variables = ovmf(platform)
    shutil.copyfile(variables, folder / VARIABLES)
    return code


@contextmanager
def watch(folder: Path, arrived: Arrived) -> Iterator[None]:
    """Make the pipes of a machine that is started ``watched``, now, and pass on what comes when it comes.

    ``arrived`` is called from a thread for each pipe, until the machine has gone.
    """
    began = time.monotonic()

    def read(name: str, end: int) -> None:
        while data := os.read(end, 65536):
            arrived(name, time.monotonic() - began, data)
        os.close(end)

    writers, readers = [], []
    for name in TAPS:
        for way in ("in", "out"):  # QEMU opens both; nothing is ever said to it
            os.mkfifo(folder / f"{name}.{way}", 0o600)
        path = folder / f"{name}.out"
        end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        # A pipe that nobody has open to write is at its end: ours is open until the machine has gone.
        writers.append(os.open(path, os.O_WRONLY))
        os.set_blocking(end, True)
        readers.append(threading.Thread(target=read, args=(name, end), daemon=True))
        readers[-1].start()
    try:
        yield
    finally:
        for one in writers:
            os.close(one)
        for thread in readers:
            thread.join()


def forwarded(usernet: str) -> dict[int, int]:
    """Guest port → host port, from the text of the monitor's ``info usernet``."""
    found = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", usernet)
    return {int(guest): int(host) for host, guest in found}


class Control:
    """A QMP connection (docs/interop/qmp-spec in QEMU's source): a JSON object a line, answers in order."""

    def __init__(self, folder: Path, *, deadline: float = 20.0) -> None:
        """Connect to the machine whose files lie in ``folder``; raises OSError until QEMU listens there."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(deadline)
        # A socket's path has 108 bytes at most; one through the folder's descriptor is always short.
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._socket.connect(f"/proc/self/fd/{at}/{CONTROL}")
            self._lines = self._socket.makefile("rb")
            self._read()  # the greeting: QEMU is up, its network and its ports too
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(at)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run a QMP command and return its answer. Raises BuildError when QEMU refuses, OSError when it died."""
        request = {"execute": command, "arguments": dict(arguments or {})}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._read()
            if "error" in answer:
                raise BuildError(f"QEMU refused {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def monitor(self, line: str) -> str:
        """Run a command of the human monitor, such as ``info usernet``."""
        return str(self.execute("human-monitor-command", {"command-line": line}))

    def close(self) -> None:
        """Hang up; the machine runs on."""
        with suppress(OSError):
            self._lines.close()
            self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise ConnectionResetError("QEMU closed its control connection")
        answer: dict[str, Any] = json.loads(line)
        return answer


def connect(folder: Path, alive: Callable[[], bool], *, patience: float = 20.0) -> Control | None:
    """The control connection of a QEMU just started; none when it died first (``alive()`` is then false)."""
    deadline = time.monotonic() + patience
    while alive():
        try:
            return Control(folder)
        except OSError:
            if time.monotonic() > deadline:
                raise BuildError(
                    f"QEMU runs, but has not answered on {folder / CONTROL} within {patience:.0f} s",
                    hint=f"see {folder / LOG}",
                ) from None
            time.sleep(0.01)
    return None


#: ANSI escape sequences and other control characters, which firmware and systemd write to a console.
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_c]|[\x00-\x08\x0b-\x1f\x7f]"
)


def plain(text: str) -> str:
    """What a console said, without colours and cursor movements, in lines that end as text's do."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def panicked(log: Path) -> bool:
    """Whether the guest's kernel has stopped for good, by its console's log."""
    return any(PANIC in line for line in tail(log, 100))


def tail(log: Path, lines: int = 30) -> list[str]:
    """The last lines of a console's log that have something on them, without colours and cursor movements."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            raw = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    text = plain(raw)
    return [line.rstrip()[:240] for line in text.splitlines() if line.strip()][-lines:]

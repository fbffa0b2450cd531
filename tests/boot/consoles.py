"""A machine with nothing of ours in it, and a person before it: QEMU, whose serial console is read and typed on."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from conda_appliance import accelerator, qemu

#: How a machine has the disc.
MEDIA = {"cd": "ide-cd,bus=sata.0", "usb": "usb-storage,bus=usb.0"}
#: The disks that it may have.
DISKS = {
    "virtio": "virtio-blk-pci,serial={serial}",
    "nvme": "nvme,serial={serial}",
    "sata": "ide-hd,bus=sata.{number},serial={serial}",
    "usb": "usb-storage,bus=usb.0,serial={serial}",
}
DOWN = "\x1b[B"


def disk(
    kind: str, path: Path, serial: str, number: int = 1, *, more: str = "", blkdebug: Path | None = None
) -> list[str]:
    """QEMU's words for a raw disk. ``blkdebug``: a file of errors to make (QEMU's docs/devel/testing/blkdebug.rst)."""
    file = f"file={path}"
    if blkdebug:
        file = f"file.driver=blkdebug,file.config={blkdebug},file.image.filename={path}"
    device = DISKS[kind].format(serial=serial, number=number)
    drive = f"if=none,id=disk{number},format=raw,cache=unsafe,{file}{more}"
    return ["-drive", drive, "-device", f"{device},drive=disk{number},bootindex={number}"]


class Console:
    """The serial console of a running machine; ``ports`` says which port of 127.0.0.1 leads to its port 8000."""

    def __init__(self, work: Path, line: socket.socket, child: subprocess.Popen[bytes]) -> None:
        self._line, self._child, self.text, self._read_to = line, child, "", 0
        self._log = work / "console.log"
        self.started = time.monotonic()
        control = qemu.connect(work, lambda: child.poll() is None)
        assert control is not None, "QEMU ended"
        self.control = control
        self.ports = qemu.forwarded(self.control.monitor("info usernet"))

    def wait_for(self, pattern: str, seconds: float = 400) -> str:
        """Read until ``pattern`` comes after what was waited for before, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text[self._read_to :])):
            left = deadline - time.monotonic()
            assert qemu.PANIC not in self.text, f"the kernel stopped before {pattern!r}:\n{self.text[-4000:]}"
            assert left > 0, f"no {pattern!r} within {seconds:.0f} s:\n{self.text[-4000:]}"
            self._line.settimeout(left)
            try:
                data = self._line.recv(65536)
            except TimeoutError:
                continue
            assert data, f"the machine ended before {pattern!r}:\n{self.text[-4000:]}"
            self.text = qemu.plain(self.text + data.decode(errors="replace"))
            self._log.write_text(self.text)
        self._read_to += found.end()
        return found[0]

    def type(self, text: str) -> None:
        """Type a line and press Enter."""
        self._line.sendall(f"{text}\r".encode())

    def shut_down(self, seconds: float = 300) -> None:
        """Press the power button, and wait until the machine is off."""
        self.control.execute("system_powerdown")
        self._child.wait(seconds)

    def cut_power(self) -> None:
        """Pull the plug."""
        self._child.kill()
        self._child.wait()


@contextmanager
def power_on(
    work: Path,
    medium: Path,
    *,
    how: str = "cd",
    firmware: str = "bios",
    disks: Sequence[str] = (),
) -> Iterator[Console]:
    """A machine that runs while the block does. Its disks (`disk`) start before the medium, if one can."""
    work.mkdir(exist_ok=True)
    (work / "console").unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(work / "console"))
    listening.listen(1)
    chosen = accelerator.accelerator()
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-vga", "std", "-m", "1024"]
    argv += ["-machine", "q35,sata=off,usb=off", "-smp", str(chosen.processors), *chosen.arguments]
    argv += ["-device", "ahci,id=sata", "-device", "qemu-xhci,id=usb"]
    if firmware == "uefi":
        code, variables = qemu.ovmf()
        (work / "variables").write_bytes(variables.read_bytes())
        argv += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
        argv += ["-drive", f"if=pflash,unit=1,format=raw,file={work}/variables"]
    argv += [
        "-drive",
        f"if=none,id=medium,format=raw,file={medium}" + (",readonly=on" if how == "cd" else ""),
    ]
    argv += ["-device", f"{MEDIA[how]},drive=medium,bootindex=9"]
    argv += ["-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:8000"]
    argv += ["-device", "virtio-net-pci,netdev=net,romfile="]
    argv += [*disks, "-chardev", f"socket,id=console,path={work}/console", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=control,path={work}/{qemu.CONTROL},server=on,wait=off"]
    argv += ["-mon", "chardev=control,mode=control"]
    with listening, subprocess.Popen(argv, stdin=subprocess.DEVNULL) as child:
        try:
            listening.settimeout(30)
            line, _ = listening.accept()
            with line:
                yield Console(work, line, child)
        finally:
            child.kill()

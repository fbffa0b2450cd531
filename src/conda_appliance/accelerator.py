"""Whether KVM really runs a guest here: probed, not assumed.

``/dev/kvm`` may open, and even create a machine, and yet be of no use: nested virtualization switched off, a
kernel that emulates the guest's instructions one by one, a container that lets the device through and nothing
more. So a boot sector is started under it which does what a real kernel does first: it asks for the
processor's features, takes timer interrupts, enters long mode with paging, touches memory with SSE3
instructions and counts to a thousand million. Where the processor runs it, that takes well under a second.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from conda_appliance import platforms, process, resources
from conda_appliance.errors import UsageError
from conda_appliance.platforms import PLATFORMS, Platform

#: The environment variable that names the accelerator, ``kvm`` or ``tcg``, instead of the probe.
VARIABLE = "CONDA_APPLIANCE_ACCEL"

#: How long the test guest may take, in seconds: ten times what a processor needs that runs it directly.
DEADLINE = 5.0

DEVICE = Path("/dev/kvm")

#: QEMU's processor for each accelerator. Under emulation ``svm`` makes guests load kvm_amd and ``la57`` makes
#: every memory access walk a fifth level of page tables.
CPU = {"kvm": "host", "tcg": "max,-svm,-la57"}
#: … and the emulated processor of another platform, by its machine. Pointers are signed by a quick hash of QEMU's own
#: instead of the cipher that the architecture names (QEMU's docs/system/arm/cpu-features.rst).
CPU_OF = {"aarch64": "max,pauth-impdef=on"}


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """How QEMU runs guests here: ``kvm`` (by the processor) or ``tcg`` (in software), and why.

    ``machine`` is the guest's, as uname(1) says it.
    """

    name: Literal["kvm", "tcg"]
    reason: str
    machine: str = "x86_64"

    @property
    def arguments(self) -> list[str]:
        """What QEMU is told: ``-accel … -cpu …``."""
        accel = "kvm" if self.name == "kvm" else "tcg,thread=multi"
        cpu = CPU_OF.get(self.machine, CPU["tcg"]) if self.name == "tcg" else CPU["kvm"]
        return ["-accel", accel, "-cpu", cpu]

    @property
    def processors(self) -> int:
        """How many processors a guest gets: with KVM two where the host has them, one under emulation.

        Linux rewrites its own code while it runs, with a breakpoint in place of an instruction until every
        processor has seen the new one. QEMU's emulated processors can meet that breakpoint after it was taken
        back, and the guest's kernel stops with ``Oops: int3``: rarely on a quiet host, often on a busy one
        (https://bugzilla.redhat.com/show_bug.cgi?id=2216496; in Debian's QEMU 7.2 too). A second processor saves
        a fifth of a boot, and two machines side by side boot sooner with one each.
        """
        return min(2, os.cpu_count() or 1) if self.name == "kvm" else 1

    @property
    def patience(self) -> float:
        """How much longer than with KVM a wait may last: emulation on a busy host is that slow."""
        return 1.0 if self.name == "kvm" else 5.0

    def __str__(self) -> str:
        kind = "KVM" if self.name == "kvm" else "software emulation (TCG)"
        return f"{kind}: {self.reason}"


def accelerator(platform: Platform = PLATFORMS[platforms.DEFAULT]) -> Accelerator:
    """The accelerator to use here for machines of ``platform``; the probe's answer is kept until host or QEMU changes.

    What is not this host's own platform is emulated. ``CONDA_APPLIANCE_ACCEL=kvm|tcg`` decides instead of the probe.
    Raises UsageError when it says neither, ToolMissing without QEMU.
    """
    if platform.name != platforms.DEFAULT:
        return Accelerator(name="tcg", reason=f"the machine is {platform.machine}", machine=platform.machine)
    asked = os.environ.get(VARIABLE)
    if asked:
        if asked not in ("kvm", "tcg"):
            raise UsageError(f"{VARIABLE}={asked!r} is no accelerator", hint=f"{VARIABLE}=kvm or =tcg")
        return Accelerator(name="kvm" if asked == "kvm" else "tcg", reason=f"{VARIABLE} says so")
    unusable = _unusable()
    if unusable:
        return Accelerator(name="tcg", reason=unusable)
    key = _key()
    kept = resources.cache_root() / "accelerator.json"
    try:
        value = json.loads(kept.read_text())
        if value["key"] == key:
            return Accelerator(name=value["name"], reason=value["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never probed, or the file is of no use: probe
    found = probe()
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"key": key, **asdict(found)}))
    temporary.replace(kept)
    return found


def probe() -> Accelerator:
    """Run the test guest under KVM, and say whether it came to its end."""
    with tempfile.TemporaryDirectory(prefix="conda-appliance-kvm-") as folder:
        work = Path(folder)
        status, seconds, said = run_test_guest(["-accel", "kvm", "-cpu", CPU["kvm"]], work)
    if status == PASSED:
        return Accelerator(name="kvm", reason=f"a 64-bit test guest ran to its end in {seconds:.1f} s")
    if status is None:
        why = f"a test guest did not end within {DEADLINE:.0f} s"
    elif status in FAILED:
        why = FAILED[status]
    else:
        end = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        why = f"QEMU {end} when it ran a test guest"
    return Accelerator(name="tcg", reason=f"KVM does not work here: {why}{said}")


def run_test_guest(
    accelerated_by: list[str], work: Path, *, deadline: float = DEADLINE
) -> tuple[int | None, float, str]:
    """Start the boot sector; its QEMU's exit status (none: it did not end), the seconds, what QEMU said."""
    disk, log = work / "probe.img", work / "probe.log"
    disk.write_bytes(boot_sector())
    argv: list[process.Argument] = ["qemu-system-x86_64", "-machine", "pc", *accelerated_by, "-m", "64"]
    argv += ["-nodefaults", "-display", "none", "-no-reboot", "-boot", "menu=off"]
    argv += ["-drive", "file=probe.img,format=raw,if=ide"]
    argv += ["-device", f"isa-debug-exit,iobase={_PORT:#x},iosize=1"]
    started = time.monotonic()
    with process.background(argv, log=log, cwd=work) as qemu:
        while (status := qemu.poll()) is None and time.monotonic() - started < deadline:
            if b"KVM internal error" in log.read_bytes():
                break  # the guest stands still for good
            time.sleep(0.02)
    said = [line for line in log.read_text(errors="replace").splitlines() if line and "warning" not in line]
    first = said[0].removeprefix("qemu-system-x86_64: ").removeprefix("error: ") if said else ""
    return status, time.monotonic() - started, f" (QEMU: {first})" if first else ""


def _unusable() -> str:
    """Why KVM cannot even be tried, or nothing."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return f"there is no {DEVICE}"
    except PermissionError:
        return f"{DEVICE} may not be opened (to change that: adduser {_user()} kvm, and log in again)"
    except OSError as error:
        return f"{DEVICE} cannot be opened: {error.strerror}"
    return ""


def _user() -> str:
    return os.environ.get("USER", "YOU")


def _key() -> str:
    """What the probe's answer holds for: this boot of the host, and this QEMU."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    version = process.run(["qemu-system-x86_64", "--version"]).stdout.splitlines()[0]
    return f"{boot} {version}"


# --- the test guest -------------------------------------------------------------------------------

#: The I/O port of QEMU's isa-debug-exit device: writing N to it ends QEMU with status 2N+1.
_PORT = 0x501

#: QEMU's exit status when the guest came to its end.
PASSED = 2 * 1 + 1

#: The guest's other answers, by QEMU's exit status.
FAILED = {
    2 * 2 + 1: "its processor lacks SSE3",
    2 * 3 + 1: "its processor lacks the 64-bit mode",
}

#: A boot sector: loaded at 0x7c00 and entered in real mode with interrupts served by the BIOS.
#: (To check it: objdump -D -b binary -m i8086 --adjust-vma=0x7c00, and -m i386:x86-64 from 0x7cb2 on.)
_LISTING = """
7c00  fa                   cli
7c01  31 c0                xor   ax, ax
7c03  8e d8                mov   ds, ax
7c05  8e c0                mov   es, ax
7c07  8e d0                mov   ss, ax
7c09  bc 00 7c             mov   sp, 0x7c00
# 1. What the processor says it can do: SSE3 (leaf 1, ecx bit 0), long mode (leaf 0x80000001, edx bit 29).
7c0c  66 b8 01 00 00 00    mov   eax, 1
7c12  0f a2                cpuid
7c14  b3 02                mov   bl, 2              ; the answer if it lacks SSE3
7c16  f6 c1 01             test  cl, 1
7c19  0f 84 8c 00          jz    out
7c1d  66 b8 01 00 00 80    mov   eax, 0x80000001
7c23  0f a2                cpuid
7c25  b3 03                mov   bl, 3              ; the answer if it lacks long mode
7c27  66 0f ba e2 1d       bt    edx, 29
7c2c  73 7b                jnc   out
7c2e  b3 04                mov   bl, 4
# 2. Interrupts: sleep through three ticks of the BIOS's 18.2 Hz clock (its counter is at 0x46c).
7c30  fb                   sti
7c31  b9 03 00             mov   cx, 3
7c34  a1 6c 04       tick: mov   ax, [0x46c]
7c37  f4             wait: hlt
7c38  3b 06 6c 04          cmp   ax, [0x46c]
7c3c  74 f9                je    wait
7c3e  e2 f4                loop  tick
7c40  fa                   cli
# 3. Page tables at 0x1000, 0x2000 and 0x3000: the first GiB onto itself in pages of 2 MiB.
7c41  fc                   cld
7c42  bf 00 10             mov   di, 0x1000
7c45  66 31 c0             xor   eax, eax
7c48  b9 00 0c             mov   cx, 0xc00
7c4b  66 f3 ab             rep   stosd
7c4e  c7 06 00 10 03 20    mov   word [0x1000], 0x2003
7c54  c7 06 00 20 03 30    mov   word [0x2000], 0x3003
7c5a  bf 00 30             mov   di, 0x3000
7c5d  66 b8 83 00 00 00    mov   eax, 0x83
7c63  b9 00 02             mov   cx, 512
7c66  66 89 05       fill: mov   [di], eax
7c69  83 c7 08             add   di, 8
7c6c  66 05 00 00 20 00    add   eax, 0x200000
7c72  e2 f2                loop  fill
# 4. Into long mode: cr3, PAE and SSE in cr4, EFER.LME, a flat code segment, paging and protection in cr0.
7c74  66 b8 00 10 00 00    mov   eax, 0x1000
7c7a  0f 22 d8             mov   cr3, eax
7c7d  66 b8 20 06 00 00    mov   eax, 0x620
7c83  0f 22 e0             mov   cr4, eax
7c86  66 b9 80 00 00 c0    mov   ecx, 0xc0000080
7c8c  0f 32                rdmsr
7c8e  66 0d 00 01 00 00    or    eax, 0x100
7c94  0f 30                wrmsr
7c96  0f 01 16 f3 7c       lgdt  [0x7cf3]
7c9b  66 b8 11 00 00 80    mov   eax, 0x80000011
7ca1  0f 22 c0             mov   cr0, eax
7ca4  ea b2 7c 08 00       jmp   8:0x7cb2
7ca9  ba 01 05        out: mov   dx, 0x501
7cac  88 d8                mov   al, bl
7cae  ee                   out   dx, al
7caf  f4                   hlt
7cb0  eb fd                jmp   0x7caf
# 5. In 64 bits: touch each page from 1 to 33 MiB with SSE3.
7cb2  bf 00 00 10 00       mov   edi, 0x100000
7cb7  48 89 3f      touch: mov   [rdi], rdi
7cba  f3 0f 7e 07          movq  xmm0, [rdi]
7cbe  f2 0f 7c c0          haddps xmm0, xmm0
7cc2  81 c7 00 10 00 00    add   edi, 0x1000
7cc8  81 ff 00 00 10 02    cmp   edi, 0x2100000
7cce  75 e7                jne   touch
# 6. Count down from a thousand million: 0.3 s for a processor, about 4 s for an emulator.
7cd0  b9 00 ca 9a 3b       mov   ecx, 1000000000
7cd5  ff c9         count: dec   ecx
7cd7  75 fc                jnz   count
7cd9  66 ba 01 05          mov   dx, 0x501
7cdd  b0 01                mov   al, 1              ; the answer: all of it ran
7cdf  ee                   out   dx, al
7ce0  f4                   hlt
7ce1  eb fd                jmp   0x7ce0
# The segments (none, 64-bit code), and where they stand.
7ce3  00 00 00 00 00 00 00 00
7ceb  00 00 00 00 00 9a 20 00
7cf3  0f 00 e3 7c 00 00
"""


def boot_sector() -> bytes:
    """The 512 bytes of the test guest, from the listing above: address, two spaces, bytes, mnemonic."""
    code = b""
    for line in _LISTING.strip().splitlines():
        if line.startswith("#"):
            continue
        assert int(line[:4], 16) == 0x7C00 + len(code), line
        words = []
        for word in line[6:].split():
            if len(word) != 2 or not set(word) <= set("0123456789abcdef"):
                break
            words.append(word)
        code += bytes.fromhex("".join(words))
    return code.ljust(510, b"\0") + b"\x55\xaa"

"""Whether this host runs programs of another platform: by QEMU's user mode, which the kernel starts for them.

Probed, not assumed: a program of that platform is run in an empty root file system, as a build will run them. There the
kernel finds no emulator but one that it holds open itself (the flag F of a registration with binfmt_misc).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from conda_appliance import layers, namespace, process, resources
from conda_appliance.errors import BuildError, ToolMissing
from conda_appliance.layers import Store
from conda_appliance.lock import DebianSection
from conda_appliance.platforms import PLATFORMS, Platform
from conda_appliance.process import Starter

#: What the probe ends with when it ran.
_RAN = 42
#: Each platform's ELF machine, and a program for it: exit(42), by the kernel's call numbers.
_PROGRAMS = {
    # mov $60, %eax; mov $42, %edi; syscall
    "linux-64": (62, bytes.fromhex("b83c000000 bf2a000000 0f05")),
    # mov x8, #93; mov x0, #42; svc #0
    "linux-aarch64": (183, struct.pack("<3I", 0xD2800BA8, 0xD2800540, 0xD4000001)),
}


def require(platform: Platform) -> None:
    """Raise ToolMissing, saying what to do, unless programs of ``platform`` run here in any root file system."""
    if platform.native:
        return
    folders = resources.cache_root() / "emulation"
    with resources.work_folder(folders, platform.name, wait=lambda _text: None) as folder:
        place = folder / "probe"
        place.write_bytes(program(platform))
        place.chmod(0o755)
        inside = namespace.isolated('cd "$1"; exec chroot . /probe', [folder])
        if process.run(inside, check=False).returncode == _RAN:
            return
        runs = process.run(["sh", "-c", '"$1"', "sh", place], check=False).returncode == _RAN
    conf = f"/usr/lib/binfmt.d/qemu-{platform.machine}.conf"
    why = (
        "its emulator is found outside of their root file systems alone (its registration lacks the flag F)"
        if runs
        else "no emulator is registered for them (binfmt_misc)"
    )
    raise ToolMissing(
        f"this host does not run programs of {platform.name}, which the system of such a machine is made by: {why}",
        hint="apt-get install qemu-user-static    and where nothing registers it, as in a container: "
        f"mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; cat {conf} >/proc/sys/fs/binfmt_misc/register",
    )


def own_loader(tree: Path, *more: Path) -> tuple[process.Argument, ...]:
    """The words that start a program of a root file system on this host: its own loader and libraries; or none.

    So the host's libraries play no part, whatever platform it is of. ``more`` are trees with further libraries.
    """
    for one in PLATFORMS.values():
        loader = tree / one.loader
        if loader.exists():
            places = [path.resolve() / "usr/lib" / one.triplet for path in (tree, *more)]
            return (loader.resolve(), "--library-path", ":".join(map(str, places)))
    return ()


def starter(platform: str, system: DebianSection | None, files: Mapping[str, Path], store: Store) -> Starter:
    """How a program of an environment for ``platform`` is started before its machine's ``system`` is there.

    On a host of that platform as any; else by `own_loader` with the machine's own C library, from its package.
    ``files`` are the verified ones by SHA-256.
    """
    if PLATFORMS[platform].native:
        return Starter()
    libc = next((one for one in system.packages if one.name == "libc6"), None) if system else None
    if libc is None:
        raise BuildError(
            f"programs of {platform} run here with the C library of the machine, and its lock names none",
            hint="take a Debian base",
        )

    def make(to: Path, work: Path) -> None:
        unpack([files[libc.sha256]], to, work)

    parts: layers.Parts = {"package": libc.sha256, "code": layers.code(__file__)}
    tree = store.get("libc", parts, make, subject=libc.name, quiet=True).path
    return Starter(words=own_loader(tree), files=tree.resolve())


def unpack(debs: Iterable[Path], to: Path, work: Path) -> None:
    """Unpack ``debs`` into the new folder ``to``, with all of /lib in /usr/lib, as Debian has it (usrmerge)."""
    (to / "usr/lib").mkdir(parents=True)
    (to / "lib").symlink_to("usr/lib")
    work.mkdir(exist_ok=True)
    archive = work / "data.tar"
    for deb in debs:
        with archive.open("wb") as file:
            process.run_to(["dpkg-deb", "--fsys-tarfile", deb], file)
        process.run(["tar", "-x", "--keep-directory-symlink", "-f", archive, "-C", to])
        archive.unlink()


def program(platform: Platform) -> bytes:
    """The probe: an ELF file with one segment, its header and ``exit(42)`` (elf(5))."""
    machine, code = _PROGRAMS[platform.name]
    base, head = 0x400000, 64 + 56
    size = head + len(code)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return header + segment + code

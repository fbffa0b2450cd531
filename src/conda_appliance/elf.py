"""What an ELF file says of its debug symbols and how it is loaded (elf(5)); 64 bits, little-endian as our machines."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOAD = 1


def has_debug_symbols(path: Path) -> bool:
    """Whether ``path`` is an ELF file with sections of debug symbols: what `strip --strip-debug` takes from it."""
    data = _read(path)
    if data is None:
        return False
    try:
        _, _, _, _, _, _, start, _, _, _, _, size, count, names = _HEADER.unpack_from(data)
        sections = [_SECTION.unpack_from(data, start + number * size) for number in range(count)]
        if not sections:
            return False
        table = sections[names][4]
        found = (data[table + one[0] :][:9] for one in sections)
        return any(name.startswith((b".debug_", b".zdebug_")) for name in found)
    except (struct.error, IndexError):
        return False


def loads_the_same(one: Path, other: Path) -> bool:
    """Whether two ELF files are mapped to the same addresses, from places in the file that can be mapped there.

    patchelf lays out files in ways that strip has broken (https://github.com/NixOS/patchelf/issues/10): the loader then
    says "ELF load command address/offset not properly aligned".
    """
    before, after = _loaded(one), _loaded(other)
    mapped = all((address - offset) % max(align, 1) == 0 for _, offset, address, _, _, align in after)
    return mapped and [(*it[:1], *it[2:]) for it in before] == [(*it[:1], *it[2:]) for it in after]


def _loaded(path: Path) -> list[tuple[int, int, int, int, int, int]]:
    """(flags, offset, address, size in the file, in memory, alignment) of each part that is loaded."""
    data = _read(path) or b""
    try:
        _, _, _, _, _, start, _, _, _, size, count, *_ = _HEADER.unpack_from(data)
        found = [_SEGMENT.unpack_from(data, start + number * size) for number in range(count)]
    except struct.error:
        return []
    return [
        (flags, offset, address, in_file, in_memory, align)
        for kind, flags, offset, address, _, in_file, in_memory, align in found
        if kind == _LOAD
    ]


def _read(path: Path) -> bytes | None:
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return None
        file.seek(0)
        return file.read()

"""What a machine promises to its packages: C library, kernel, processor, CUDA driver.

To solvers it is a set of virtual packages (CEP 30), and so it stands in the lock; a check holds the booted
machine to it.

Sources: https://conda.org/learn/ceps/cep-0030/; the x86-64 psABI, 1.0, table 3.1 (the levels); the kernel's
``arch/x86/include/asm/cpufeatures.h`` and ``arch/arm64/kernel/cpuinfo.c`` (the names of flags in ``/proc/cpuinfo``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from conda_appliance.errors import UsageError

#: The C library of a base that does not say it: Debian 12's, the oldest that is still supported here.
GLIBC = "2.36"
#: The kernel of a base that does not say it: Debian 11's, the oldest Debian that is still supported.
KERNEL = "5.10"
#: The level of a processor that nothing is said of: every x86-64 has it.
LEVEL = "x86-64-v1"

#: Levels of processors, a platform's the lowest first: by their name, what archspec calls them, as the build of
#: ``__archspec``.
ARCHSPEC = {
    "x86-64-v1": "x86_64",
    "x86-64-v2": "x86_64_v2",
    "x86-64-v3": "x86_64_v3",
    "x86-64-v4": "x86_64_v4",
    "aarch64": "aarch64",
}

#: The levels of each platform.
LEVELS = {
    "linux-64": ("x86-64-v1", "x86-64-v2", "x86-64-v3", "x86-64-v4"),
    "linux-aarch64": ("aarch64",),
}

#: What each level adds to the one before, by the kernel's names: lzcnt is ``abm``; OSXSAVE shows as ``xsave``.
_FLAGS = {
    "x86-64-v1": "cmov cx8 fpu fxsr mmx sse sse2",
    "x86-64-v2": "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "x86-64-v3": "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
    "aarch64": "asimd fp",
}


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What packages may count on, at least: versions such as ``2.41``, ``6.12.57`` and, for CUDA, ``12.4``."""

    glibc: str = GLIBC
    kernel: str = KERNEL
    arch_level: str = LEVEL
    cuda: str | None = None

    @property
    def virtual_packages(self) -> tuple[tuple[str, str, str], ...]:
        """It as (name, version, build), sorted; nothing of this host."""
        cuda = (("__cuda", self.cuda, "0"),) if self.cuda is not None else ()
        return (
            ("__archspec", "1", ARCHSPEC[self.arch_level]),
            *cuda,
            ("__glibc", self.glibc, "0"),
            ("__linux", self.kernel, "0"),
            ("__unix", "0", "0"),
        )

    @property
    def locked(self) -> tuple[str, ...]:
        """It as a lock has it: ``__glibc=2.41=0`` and so on."""
        return tuple("=".join(one) for one in self.virtual_packages)

    @property
    def cpu_flags(self) -> frozenset[str]:
        """The flags (on Arm: Features) that ``/proc/cpuinfo`` shows of every processor of this level."""
        levels = _levels_with(self.arch_level)
        wanted = levels[: levels.index(self.arch_level) + 1]
        return frozenset(flag for level in wanted for flag in _FLAGS[level].split())


def _levels_with(level: str) -> tuple[str, ...]:
    """All levels of the platform that has this one."""
    return next(levels for levels in LEVELS.values() if level in levels)


def of(locked: Iterable[str]) -> Contract:
    """The contract in a lock's virtual packages."""
    said = {name: (version, build) for name, version, build in (one.split("=") for one in locked)}
    levels = {build: level for level, build in ARCHSPEC.items()}
    _, archspec = said.get("__archspec", ("1", ARCHSPEC[LEVEL]))
    return Contract(
        glibc=said.get("__glibc", (GLIBC, "0"))[0],
        kernel=said.get("__linux", (KERNEL, "0"))[0],
        arch_level=levels[archspec],
        cuda=said["__cuda"][0] if "__cuda" in said else None,
    )


def settle(
    *,
    stated: Mapping[str, str | None],
    base: Mapping[str, str | None],
    named: str,
) -> Contract:
    """The contract of a definition that states some of it, and whose base ``named`` so tells some of it.

    Both by the fields of `Contract`. What the definition states may be less than what the base has, for environments
    that also go to older machines. Raises UsageError where it is more.
    """
    for field, told in base.items():
        asked = stated.get(field)
        if asked is not None and told is not None and key(asked) > key(told):
            raise UsageError(
                f"target.{field} is {asked}, and the base {named} has {told}",
                hint=f"leave target.{field} out, state {told} or less, or take a newer base",
            )
    settled = {field: value for field, value in {**base, **_given(stated)}.items() if value is not None}
    return Contract(**settled)


def _given(stated: Mapping[str, str | None]) -> dict[str, str]:
    return {field: value for field, value in stated.items() if value is not None}


def is_more(one: str, other: str | None) -> bool:
    """Whether a version, or a level of x86-64, is higher than another; any is than none."""
    return other is None or key(one.removeprefix("x86-64-v")) > key(other.removeprefix("x86-64-v"))


def require(promised: Contract, needs: Mapping[str, str], named: str) -> None:
    """Raise UsageError where what ``named`` needs, by the fields of `Contract`, is more than the machine has."""
    for field, needed in needs.items():
        has = getattr(promised, field)
        if is_more(needed, has):
            raise UsageError(
                f"{named} needs {field} {needed} of its machine, which has {has or 'none'}",
                hint=f"promise it by target.{field}, if the machine really has it, or take a newer base",
            )


def more_than_promised(unmet: Sequence[Sequence[str]], virtual: Iterable[Sequence[str]]) -> UsageError:
    """The error that says which packages need what of the machine (pairs of both), and what of that is promised."""
    has = {name: f"{version} {build}" if build != "0" else version for name, version, build in virtual}
    needs = "; ".join(f"{name} needs {text}" for name, text in unmet[:5])
    more = f"; and {len(unmet) - 5} more" if len(unmet) > 5 else ""
    named = sorted({text.split()[0] for _, text in unmet})
    machine = ", ".join(f"{name} {has[name]}" if name in has else f"no {name}" for name in named)
    return UsageError(
        f"{needs}{more}, and the machine has {machine}",
        hint="leave the package out or ask for another build of it; or promise more by target.glibc, kernel, "
        "arch_level or cuda, up to what the base really has",
    )


def better(virtual: Sequence[Sequence[str]]) -> list[list[tuple[str, str, str]]]:
    """Machines that have all that a package may ask for, the least first: a higher level and CUDA come last."""
    known = {name: build for name, _, build in virtual}
    newest = [("__glibc", "999", "0"), ("__linux", "999", "0"), ("__unix", "0", "0")]
    names = {build: level for level, build in ARCHSPEC.items()}
    levels = [ARCHSPEC[level] for level in _levels_with(names[known["__archspec"]])]
    return [
        [("__archspec", "1", level), *newest, *([("__cuda", "999", "0")] if cuda else [])]
        for cuda in ([True] if "__cuda" in known else [False, True])
        for level in levels[levels.index(known["__archspec"]) :]
    ]


def kernel_of(packages: Iterable[str]) -> str | None:
    """The Linux version that ``uname -r`` starts with, from the names of a Debian's packages; None without a kernel.

    ``linux-image-6.1.0-41-cloud-amd64`` → ``6.1.0``: the package's version (6.1.158) is newer than what the machine
    tells, and what conda reads there. Of several kernels the oldest, as any may be started.
    """
    found = [match[1] for name in packages if (match := re.match(r"linux-image-(\d+(?:\.\d+)+)", name))]
    return min(found, key=key, default=None)


def key(version: str) -> tuple[int, ...]:
    """What versions are compared by: the numbers that one starts with, so that 6.1.0-41-amd64 is 6.1.0, and 6.1 too."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)

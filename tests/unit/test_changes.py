"""What changed between two locks reads like a changelog."""

from __future__ import annotations

from typing import Any

from conda_appliance import changes
from conda_appliance.lock import (
    CondaPackage,
    CondaSection,
    DebianPackage,
    DebianSection,
    EnvironmentSection,
    Lock,
    ProgramSection,
    Wheel,
)


def conda(name: str, version: str, *, sha: str = "a", size: int = 1024) -> CondaPackage:
    url = f"https://x/noarch/{name}-{version}-0.conda"
    return CondaPackage(
        name=name,
        version=version,
        build="0",
        subdir="noarch",
        channel="x",
        url=url,
        sha256=sha * 64,
        size=size,
    )


def lock(
    *packages: CondaPackage, libc: str = "2.41-1", wheels: tuple[Wheel, ...] | None = None, **more: Any
) -> Lock:
    deb = DebianPackage(name="libc6", version=libc, architecture="amd64", url="u", sha256=libc, size=10)
    section = EnvironmentSection(prefix="/opt/conda", specs=(), packages=packages, wheels=wheels)
    return Lock(
        name="box",
        digest="0" * 64,
        tools={},
        debian=DebianSection(suite="trixie", glibc="2.41", packages=(deb,)),
        conda=CondaSection(virtual_packages=(), environments={"base": section}),
        **more,
    )


def test_each_part_tells_what_came_went_and_moved() -> None:
    before = lock(conda("numpy", "1.0"), conda("gone", "1"))
    bottle = Wheel(name="bottle", version="0.13", url="https://x/bottle.whl", sha256="b" * 64, size=100)
    program = ProgramSection(kind="git", url="./repo", sha256="c" * 64, size=5, commit="d" * 40)
    after = lock(conda("numpy", "2.0", size=3072), libc="2.41-2", wheels=(bottle,), programs={"app": program})
    assert changes.text(changes.between(before, after)) == (
        "System\n"
        "  libc6 2.41-1 → 2.41-2\n"
        "\n"
        "Environment base (+1.0 KiB)\n"
        "  gone 1 0 removed  -1.0 KiB\n"
        "  numpy 1.0 0 → 2.0 0  +2.0 KiB\n"
        "\n"
        "Environment base: PyPI (+100 B)\n"
        "  bottle 0.13 added  +100 B\n"
        "\n"
        "Programs (+5 B)\n"
        "  app dddddddddddd added  +5 B\n"
    )


def test_the_same_version_of_other_bytes_is_told_too() -> None:
    found = changes.between(lock(conda("numpy", "1.0")), lock(conda("numpy", "1.0", sha="b")))
    assert changes.text(found, markdown=True) == (
        "## Environment base\n\n- `numpy` 1.0 0 aaaaaaaaaaaa → 1.0 0 bbbbbbbbbbbb\n"
    )
    assert changes.as_dict(found)[0]["changes"][0]["kind"] == "updated"


def test_the_same_lock_changed_nothing() -> None:
    assert changes.text(changes.between(lock(conda("a", "1")), lock(conda("a", "1")))) == "nothing changed\n"


def test_files_are_told_by_path() -> None:
    found = changes.of_files({"etc/a": "file 1", "etc/b": "file 2"}, {"etc/a": "file 3", "etc/c": "file 4"})
    assert [(one.name, one.kind) for one in found.changes] == [
        ("etc/a", "updated"),
        ("etc/b", "removed"),
        ("etc/c", "added"),
    ]

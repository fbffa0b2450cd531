"""What of an image goes on the installer disc: what is not empty, without what makes a disk bootable."""

from __future__ import annotations

from pathlib import Path

import pytest

from conda_appliance import installer_disc
from conda_appliance.definition import ImageDefinition, load_image

MIB = 1 << 20


def sparse(path: Path, size: int, *written: tuple[int, int]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for start, length in written:
            file.seek(start)
            file.write(b"x" * length)
    return path


def runs(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return list(installer_disc.runs(file, path.stat().st_size))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([], []),
        ([(0, 8192)], []),  # the first MiB is written last, by itself
        ([(511 * MIB, 4096)], []),  # the last MiB is a copy of the partition table
        ([(5 * MIB + 4096, 10)], [(5, 1)]),
        ([(5 * MIB, 10), (6 * MIB + 100_000, 10)], [(5, 2)]),
        ([(5 * MIB, 10), (5 * MIB + 500_000, 10), (9 * MIB, 10)], [(5, 1), (9, 1)]),
        ([(MIB // 2, MIB)], [(1, 1)]),
        ([(3 * MIB, 130 * MIB)], [(3, 64), (67, 64), (131, 2)]),
    ],
)
def test_runs_are_whole_mib_and_short_enough_to_tell_how_far_it_is(
    tmp_path: Path, written: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    path = sparse(tmp_path / "disk", 512 * MIB, *written)
    assert runs(path) == [(start * MIB, length * MIB) for start, length in expected]


def test_settings_are_words_of_a_shell_whatever_the_definition_says() -> None:
    hello = load_image(Path(__file__).parents[2] / "images/hello.yaml")
    given = {"unattended": True, "disk": {"model": "O'Neill $(reboot) 2\"", "size": "466GiB"}}
    wanted = ImageDefinition.model_validate({**hello.model_dump(by_alias=True), "installer": given})
    text = installer_disc._settings(wanted, {"size": 5}, "/var/log/x.log")
    assert "unattended=yes\n" in text
    assert "want_model='O'\"'\"'Neill $(reboot) 2\"'\n" in text
    assert f"want_size={466 << 30}\n" in text
    assert "want_serial=''\n" in text
    assert "size=5\n" in text

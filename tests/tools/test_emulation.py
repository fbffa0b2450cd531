"""Programs of another platform run here, or what is missing is said before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conda_appliance import emulation
from conda_appliance.errors import ToolMissing
from conda_appliance.platforms import PLATFORMS

OTHERS = [one for one in PLATFORMS.values() if not one.native]


@pytest.mark.parametrize("platform", OTHERS, ids=lambda one: one.name)
def test_the_probe_runs_in_an_empty_root_file_system(platform) -> None:  # type: ignore[no-untyped-def]
    emulation.require(platform)


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        (("unshare",), "its registration lacks the flag F"),
        (("unshare", "sh"), "no emulator is registered for them"),
    ],
)
def test_a_host_that_runs_none_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: tuple[str, ...], said: str
) -> None:
    """As the kernel answers there: a program that it cannot start ends with 126."""
    for name in lacking:
        (tmp_path / name).write_text("#!/bin/dash\nexit 126\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for platform in OTHERS:
        with pytest.raises(ToolMissing, match=said) as caught:
            emulation.require(platform)
        assert "apt-get install qemu-user-static" in caught.value.hint
        assert f"qemu-{platform.machine}.conf" in caught.value.hint
        assert caught.value.exit_code == 4

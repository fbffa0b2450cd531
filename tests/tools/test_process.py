"""Programs are started in one place, say why they failed, and never outlive the run that started them."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from conda_appliance import process, runs
from conda_appliance.errors import CommandFailed, ToolMissing


def wait_until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_failure_says_the_command_its_status_and_its_words() -> None:
    with pytest.raises(CommandFailed) as caught:
        process.run(["sh", "-c", "echo 'no such thing' >&2; exit 7"])
    assert "status 7" in caught.value.message
    assert "no such thing" in caught.value.message
    assert caught.value.returncode == 7


def test_a_missing_program_names_the_package_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(process.PACKAGES, "no-such-program", "such-package")
    with pytest.raises(ToolMissing) as caught:
        process.require("sh", "no-such-program")
    assert caught.value.exit_code == 4
    assert caught.value.hint == "apt-get install such-package"


def test_lines_come_as_they_are_written() -> None:
    seen: list[str] = []
    done = process.run(["sh", "-c", "echo one; echo two >&2"], on_line=seen.append)
    assert seen == ["one", "two"]
    assert done.stdout == "one\ntwo\n"


def test_a_program_that_does_not_end_is_ended_with_its_children() -> None:
    with pytest.raises(CommandFailed, match="did not end within 1 s"):
        process.run(["sh", "-c", "sleep 987 & wait"], timeout=1)
    assert not [pid for pid in runs.marked() if b"sleep\x00987" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_background_program_ends_with_its_block(tmp_path: Path) -> None:
    with process.background(["sleep", "1000"], log=tmp_path / "log") as child:
        assert is_running(child.pid)
    assert not is_running(child.pid)


def test_what_a_killed_run_left_is_ended_by_the_next(tmp_path: Path) -> None:
    # A run that starts a program which leaves its group and ignores SIGTERM, as a daemon would; then kill -9.
    script = textwrap.dedent(
        """
        import os, sys, time
        from conda_appliance import runs
        os.environ[runs.MARK] = runs.mark()
        import subprocess
        child = subprocess.Popen(["setsid", "sh", "-c", "trap '' TERM; echo $$ > pid; while :; do sleep 1; done"])
        time.sleep(1000)
        """
    )
    run = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    daemon = int((tmp_path / "pid").read_text())
    assert runs.reap(patience=0.2) == []  # its owner lives
    assert is_running(daemon)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert is_running(daemon)
    assert daemon in runs.reap(patience=0.5)
    wait_until(lambda: not is_running(daemon))


def test_a_run_in_another_container_is_not_ours_to_end() -> None:
    ours = runs.mark()
    foreign = ours.rpartition(":")[0] + ":1"
    child = subprocess.Popen(["sleep", "1000"], env={**os.environ, runs.MARK: foreign})
    try:
        assert runs.alive(foreign)
        assert child.pid not in runs.reap(patience=0.2)
        assert is_running(child.pid)
    finally:
        child.kill()
        child.wait()


def test_a_task_that_fails_ends_the_programs_of_its_siblings_and_of_nobody_else(tmp_path: Path) -> None:
    elsewhere = threading.Thread(target=lambda: outcomes.append(process.run(["sleep", "1.5"]).returncode))
    outcomes: list[int] = []
    elsewhere.start()
    begun = threading.Event()

    def fails() -> None:
        assert begun.wait(timeout=20)
        process.run(["false"])

    def waits() -> None:
        process.run(["sh", "-c", "echo begun; exec sleep 600"], on_line=lambda _line: begun.set())

    with pytest.raises(CommandFailed, match="false failed"):
        process.side_by_side(fails, waits)
    elsewhere.join(timeout=60)
    assert outcomes == [0], "a program that another thread started goes on"
    assert process.side_by_side(lambda: 1, lambda: 2) == [1, 2]


def test_a_build_that_needs_no_network_loads_no_library_for_it() -> None:
    """They take longer to load than a small build takes in all."""
    large = {
        "paramiko.client",
        "requests.api",
        "pytest",
        "rattler",
        "rich",
        "conda_appliance.builders.packer",
    }
    code = f"import sys, conda_appliance.cli_image; print(*{large} & set(sys.modules))"
    assert process.run([sys.executable, "-c", code]).stdout.split() == []


@pytest.mark.parametrize(
    "said",
    [
        "tar: root: Cannot write: No space left on device",
        "tar: ./usr/lib/libm.so.6: Wrote only 1024 of 10240 bytes",
        "E: You don't have enough free space in /x.",
    ],
)
def test_a_full_disk_is_said_in_one_line_with_what_to_do(said: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        process.run(["sh", "-c", f'echo "before"; echo "{said}" >&2; echo "after" >&2; exit 2'])
    assert caught.value.message == f"the disk is full, as sh found: {said}"
    assert "free space" in caught.value.hint


def test_threads_may_be_the_first_to_use_such_a_library_at_once() -> None:
    """As downloads do."""
    code = (
        "import threading; from conda_appliance import transport\n"
        "told = []\n"
        "threads = [threading.Thread(target=lambda: told.append(transport.requests.Session())) for _ in range(16)]\n"
        "[one.start() for one in threads]; [one.join() for one in threads]\n"
        "print(len(told))"
    )
    assert process.run([sys.executable, "-c", code]).stdout.split() == ["16"]

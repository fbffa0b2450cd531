"""A lock is read back as it was written, and a wrong one is refused with the command that mends it."""

from pathlib import Path

import pytest

from conda_appliance import lock
from conda_appliance.errors import LockError

LOCK = lock.Lock(
    name="hello",
    digest="d" * 64,
    tools={"conda-appliance": "0.1.0"},
    debian=lock.DebianSection(
        suite="trixie",
        glibc="2.41",
        packages=(
            lock.DebianPackage(
                name="dash",
                version="1:0.5.12-12",
                architecture="amd64",
                url="http://deb.debian.org/debian/pool/main/d/dash/dash_0.5.12-12_amd64.deb",
                sha256="a" * 64,
                size=98000,
            ),
        ),
    ),
    conda=lock.CondaSection(
        virtual_packages=("__glibc=2.41=0",),
        environments={
            "base": lock.EnvironmentSection(prefix="/opt/conda", specs=("python",), packages=()),
        },
    ),
)


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "hello.lock"
    lock.write(LOCK, path)
    assert lock.read(path) == LOCK
    assert lock.read(path).text == path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_debs_name_keeps_its_epoch() -> None:
    assert LOCK.debian is not None
    assert LOCK.debian.packages[0].filename == "dash_1%3a0.5.12-12_amd64.deb"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "lock version None|is not a lock"),
        (b"version: 9\n", "lock version 9"),
        (b"version: 1\nname: x\n", "is not a lock: "),
        (b"\xff\xfe", "cannot be read as a lock"),
        (b"a: [", "cannot be read as a lock"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[[]," * 100_000, "nested too deeply"),
        (b"{a: " * 100_000, "nested too deeply"),
        (b"- " * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_lock_is_refused_with_what_mends_it(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "hello.lock"
    path.write_bytes(content)
    with pytest.raises(LockError, match=said) as caught:
        lock.read(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint == f"conda-appliance lock {tmp_path}/hello.yaml"


def test_a_missing_lock_and_a_stale_one_name_the_command(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="there is no lock"):
        lock.read(tmp_path / "hello.lock")
    with pytest.raises(LockError, match="stale") as caught:
        lock.require_fresh(LOCK, "e" * 64, Path("images/hello.yaml"))
    assert caught.value.hint == "conda-appliance lock images/hello.yaml"
    lock.require_fresh(LOCK, "d" * 64, Path("images/hello.yaml"))

"""The main job: one definition becomes a machine image that boots, and whose checks pass over SSH."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.request
import uuid
from pathlib import Path

import paramiko
import pytest
from tests.boot.conftest import ROOT, cli, programs_of, start, wait_until

from conda_appliance import identity, machine, seed


def test_a_result_holds_all_that_belongs_to_it(hello: Path, out: Path) -> None:
    written = json.loads((hello / "manifest.json").read_text())
    assert written["name"] == "hello"
    assert written["check"]["failed"] == 0
    assert written["check"]["passed"] > 10
    assert (out / "hello/latest").resolve() == hello
    assert (
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=hello, check=False).returncode
        == 0
    )
    for name in (
        "hello.lock",
        "build/machine.pkr.hcl",
        "build/playbook/vars.yml",
        "logs/packer.log",
        "logs/console.log",
    ):
        assert (hello / name).stat().st_size > 0
    assert list((hello / "report").glob("*.xml"))
    assert not [path for path in (out / "hello").iterdir() if "partial" in path.name or path.name == "failed"]


def test_the_image_is_compressed_and_stands_alone(hello: Path) -> None:
    about = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output=json", hello / "hello.qcow2"], capture_output=True, check=True
        ).stdout
    )
    assert about["format"] == "qcow2"
    assert about["virtual-size"] == 4 << 30
    assert "backing-filename" not in about
    assert (hello / "hello.qcow2").stat().st_size < 600 << 20


def test_nothing_changed_means_nothing_done(hello: Path, out: Path) -> None:
    before = (hello / "hello.qcow2").stat()
    done = cli("build", "--lock", "--builder", "packer", "images/hello.yaml", "--out", out)
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert done.stdout.strip() == str(hello)
    assert (hello / "hello.qcow2").stat().st_mtime_ns == before.st_mtime_ns


def test_packer_accepts_the_kept_files_by_hand(hello: Path) -> None:
    done = subprocess.run(
        ["packer", "validate", "."], cwd=hello / "build", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_machines_of_one_image_are_two_machines(hello: Path, out: Path, tmp_path: Path) -> None:
    """One as a user boots it (BIOS, `boot`, `ssh`), one on UEFI: each its own identity, neither takes a password."""
    log = tmp_path / "boot.log"
    first = start("boot", "hello", "--out", out, log=log)
    try:
        work = tmp_path / "second"
        work.mkdir()
        key = machine.new_key(work)
        public = key.with_suffix(".pub").read_text().strip()
        disc = seed.write(
            work / "seed.iso",
            host_name="second",
            instance_id=str(uuid.uuid4()),
            public_keys=[public],
            epoch=identity.epoch(),
        )
        with machine.boot(
            hello / "hello.qcow2", work=work, firmware="uefi", seed=disc, forwards=[8000]
        ) as second:
            second.wait_for_ssh("admin", key)
            second_id = second.run("cat /etc/machine-id").stdout.strip()
            second_key = host_key(second.ssh_port)
            assert second.run("hostname").stdout.strip() == "second"
            assert second.run("test -d /sys/firmware/efi", check=False).returncode == 0
            refuses_passwords(second.ssh_port)
        wait_until(lambda: "Ctrl-C ends it" in log.read_text(), 900, f"`boot` is ready: {log.read_text()}")
        said = log.read_text()
        url = next(word for word in said.split() if word.startswith("http://127.0.0.1:"))
        wait_until(lambda: "hello from an appliance" in get(url), 200, "the service answers")
        asked = cli("ssh", "hello", "--", "cat", "/etc/machine-id")
        assert asked.returncode == 0, asked.stderr
        first_port = int(said.split("-p ")[1].split()[0])
        assert asked.stdout.strip() != second_id
        assert len(second_id) == 32
        assert host_key(first_port) != second_key
        refuses_passwords(first_port)
        first.send_signal(signal.SIGINT)
        first.wait(timeout=120)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 0, log.read_text()
    assert programs_of(first.pid) == []
    assert cli("ssh", "hello").returncode == 2


def get(url: str) -> str:
    """What a GET answers; empty as long as nothing does."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def host_key(port: int) -> bytes:
    """The machine's SSH host key, as anybody can see it."""
    with paramiko.Transport(("127.0.0.1", port)) as transport:
        transport.start_client(timeout=60)
        return transport.get_remote_server_key().asbytes()


def refuses_passwords(port: int) -> None:
    """No account takes a password; the machine does not even offer to."""
    for user in ("admin", "root"):  # more failures in a row, and OpenSSH 10 makes this address wait
        with paramiko.Transport(("127.0.0.1", port)) as transport:
            transport.start_client(timeout=60)
            with pytest.raises(paramiko.BadAuthenticationType) as caught:
                transport.auth_password(user, user)
            assert caught.value.allowed_types == ["publickey"]


def copy_of_hello(folder: Path) -> Path:
    """images/hello.yaml with all that it names and its lock, in a folder of its own."""
    own = folder / "images"
    shutil.copytree(ROOT / "images", own)
    return own


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_build_that_is_ended_leaves_nothing_and_the_last_result_stands(
    hello: Path, out: Path, tmp_path: Path, number: signal.Signals
) -> None:
    own = copy_of_hello(tmp_path)
    text = (own / "hello.yaml").read_text().replace("version: 1.0.0", f"version: 1.0.{int(number)}")
    (own / "hello.yaml").write_text(text)
    log = tmp_path / "build.log"
    run = start("build", "--builder", "packer", own / "hello.yaml", "--out", out, log=log)
    try:
        wait_until(
            lambda: any("/qemu.pid" in words for words in programs_of(run.pid)) or run.poll() is not None,
            120,
            f"the build starts QEMU: {log.read_text()}",
        )
        assert run.poll() is None, log.read_text()
        run.send_signal(number)
        run.wait(timeout=60)
        if number == signal.SIGTERM:
            assert run.returncode == 130
            assert "kept for you" in log.read_text()
        else:
            assert cli("clean", "--leftovers", "--out", out).returncode == 0
    finally:
        run.kill()
        run.wait()
    assert programs_of(run.pid) == []
    assert not [path.name for path in (out / "hello").iterdir() if "partial" in path.name]
    assert (out / "hello/latest").resolve() == hello
    assert (
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=hello, check=False).returncode
        == 0
    )

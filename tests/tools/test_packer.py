"""The Packer builder around a stand-in for QEMU: each way to fail has its own words, and nothing is left running."""

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from conda_appliance import ansible, buildtree, definition, process, resources, runs, seed
from conda_appliance.builders import packer
from conda_appliance.errors import BuildError, ToolMissing
from conda_appliance.lock import CondaSection, Lock
from conda_appliance.log import Step

FAKE_QEMU = Path(__file__).with_name("fake_qemu")
HELLO = resources.shipped() / "images/hello.yaml"
LOCK = Lock(name="hello", digest="0" * 64, tools={}, conda=CondaSection(virtual_packages=(), environments={}))


@pytest.fixture
def tree(tmp_path: Path) -> buildtree.BuildTree:
    """Hello's build tree over an empty disk, with the stand-in for QEMU; it waits five seconds for SSH."""
    return make_tree(tmp_path)


def make_tree(folder: Path) -> buildtree.BuildTree:
    base, payload = folder / "base.qcow2", folder / "payload, with a comma.iso"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "1G"])
    payload.write_bytes(bytes(2048))
    made = buildtree.build_tree(
        definition.load_image(HELLO),
        LOCK,
        folder=HELLO.parent,
        into=folder / "build",
        inputs=buildtree.MachineInputs(
            base_disk=base,
            base_sha256=resources.sha256_of(base),
            payload=payload,
            acceleration="tcg",
            ansible_playbook=ansible.playbook_program(),
            qemu=str(FAKE_QEMU),
        ),
        packer_version=packer.version_numbers(),
    )
    seed.for_build(made, epoch=1_577_836_800)
    (made.folder / "zz.auto.pkrvars.hcl").write_text('ssh_timeout = "5s"\n')
    return made


@pytest.fixture
def qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Say how the stand-in behaves; returns where its arguments will stand, one a line."""

    def behave(how: str) -> Path:
        monkeypatch.setenv("FAKE_QEMU", how)
        monkeypatch.setenv("FAKE_QEMU_ARGUMENTS", str(tmp_path / "arguments"))
        return tmp_path / "arguments"

    return behave


def left_running() -> list[int]:
    """Every program that builds of these tests started: all inherit the stand-in's variable."""
    return list(runs.carrying("FAKE_QEMU_ARGUMENTS"))


def left_in_tmp() -> list[Path]:
    mark = runs.mark().replace(":", "-")
    return list(Path("/tmp").glob(f"conda-appliance-{mark}-*"))


def failure(tree: buildtree.BuildTree, tmp_path: Path) -> BuildError:
    with pytest.raises(BuildError) as raised:
        packer.run(tree, logs=tmp_path / "logs", step=Step("build"))
    assert left_running() == []
    assert left_in_tmp() == []
    return raised.value


def test_packer_accepts_what_is_rendered(tree):
    process.run(["packer", "validate", tree.folder], env={"CHECKPOINT_DISABLE": "1"})


def test_qemu_gets_the_disks_and_a_port_of_this_host_alone(tree, qemu, tmp_path):
    arguments = qemu("dies")
    failure(tree, tmp_path)
    words = arguments.read_text().splitlines()
    forwards = [word for word in words if "hostfwd=" in word]
    assert len(forwards) == 1
    assert "hostfwd=tcp:127.0.0.1:" in forwards[0]
    drives = [words[at + 1] for at, word in enumerate(words) if word == "-drive"]
    assert [drive.rpartition("/")[2] for drive in drives] == [
        "hello.qcow2",
        "seed.iso",
        "payload,, with a comma.iso",
    ]
    assert "tcg,thread=multi" in words


def test_qemu_that_does_not_start(tree, qemu, tmp_path):
    qemu("refuses")
    error = failure(tree, tmp_path)
    assert "QEMU did not start" in error.message
    assert "failed to initialize kvm: Permission denied" in error.message


def test_a_machine_that_never_answers_shows_its_console(tree, qemu, tmp_path):
    qemu("silent")
    error = failure(tree, tmp_path)
    assert "never let us in over SSH: Timeout waiting for SSH" in error.message
    assert error.message.endswith("GRUB loading.\nLinux version 6.12")
    assert "packer build -force -on-error=ask" in error.hint
    assert (tmp_path / "logs/console.log").is_file()
    assert "Waiting for SSH" in (tmp_path / "logs/packer.log").read_text()


def test_a_kernel_panic_is_not_waited_out(tree, qemu, tmp_path):
    qemu("panics")
    (tree.folder / "zz.auto.pkrvars.hcl").write_text('ssh_timeout = "20m"\n')
    error = failure(tree, tmp_path)
    assert "Kernel panic - not syncing: VFS" in error.message


def test_qemu_that_dies_is_noticed(tree, qemu, tmp_path):
    qemu("dies")
    (tree.folder / "zz.auto.pkrvars.hcl").write_text('ssh_timeout = "20m"\n')
    error = failure(tree, tmp_path)
    assert "QEMU ended while Packer was waiting for SSH" in error.message


def test_a_template_that_packer_rejects(tree, qemu, tmp_path):
    qemu("silent")
    template = tree.folder / "machine.pkr.hcl"
    template.write_text(template.read_text().replace("disable_vnc ", "no_such_setting "))
    error = failure(tree, tmp_path)
    assert "Packer failed while starting Packer" in error.message
    assert "no_such_setting" in error.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_packer_and_its_qemu(tree, qemu, tmp_path, number):
    qemu("silent")
    (tree.folder / "zz.auto.pkrvars.hcl").write_text('ssh_timeout = "20m"\n')

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    waiter = threading.Thread(target=when_running, args=(tree, lambda: os.kill(os.getpid(), number)))
    waiter.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            packer.run(tree, logs=tmp_path / "logs", step=Step("build"))
    finally:
        signal.signal(number, before)
        waiter.join()
    assert left_running() == []
    assert left_in_tmp() == []


def when_running(tree: buildtree.BuildTree, act) -> None:
    """Call ``act`` once the stand-in for QEMU runs."""
    deadline = time.monotonic() + 60
    while not tree.pid_file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    act()


def test_what_a_killed_build_left_is_ended_by_the_next_run(qemu, tmp_path):
    qemu("silent")
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_packer as t\n"
        "tree = t.make_tree(Path(sys.argv[1]))\n"
        "(tree.folder / 'zz.auto.pkrvars.hcl').write_text('ssh_timeout = \"20m\"\\n')\n"
        "t.packer.run(tree, logs=Path(sys.argv[1]) / 'logs', step=t.Step('build'))\n"
    )
    argv = [sys.executable, "-c", script, tmp_path, Path(__file__).parent]
    with process.background(argv, log=tmp_path / "log", env={runs.MARK: ""}) as child:
        pid_file = tmp_path / "build/qemu.pid"
        deadline = time.monotonic() + 60
        while not pid_file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        child.kill()
        child.wait()
        orphan = int(pid_file.read_text())
        assert Path(f"/proc/{orphan}").exists()
        runs.reap()
        assert not Path(f"/proc/{orphan}").exists()
    assert left_running() == []


def test_ansible_reads_the_playbook(tree):
    process.run(
        [ansible.playbook_program(), "--syntax-check", "-i", "localhost,", tree.folder / "playbook/site.yml"],
        env={"ANSIBLE_CONFIG": str(tree.folder / "playbook/ansible.cfg")},
    )


def test_the_scripts_of_the_roles_are_sound():
    scripts = sorted((resources.shipped() / "playbooks").rglob("*.sh"))
    assert scripts
    for script in scripts:
        process.run(["sh", "-n", script])
        if shutil.which("shellcheck"):
            process.run(["shellcheck", "--shell=sh", script])


@pytest.fixture
def other_packer(tmp_path, monkeypatch):
    """Put a program named packer first on PATH that answers as given."""

    def install(version: str, plugins: str = "") -> None:
        program = tmp_path / "bin/packer"
        program.parent.mkdir()
        program.write_text(
            f"#!/bin/sh\ncase $1 in version) echo '{version}';; plugins) echo '{plugins}';; esac\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return install


PLUGINS = "/root/.config/packer/plugins/github.com/hashicorp"


def test_a_newer_packer_without_its_plugins_says_how_to_get_them(other_packer):
    other_packer("Packer v1.11.2", f"{PLUGINS}/ansible/packer-plugin-ansible_v1.1.3_x5.0_linux_amd64")
    with pytest.raises(ToolMissing, match=r"no plugin for qemu$") as raised:
        packer.require_plugins()
    assert raised.value.hint.startswith("packer plugins install github.com/hashicorp/qemu ")


def test_a_newer_packer_with_its_plugins_is_ready(other_packer):
    names = [f"{PLUGINS}/{name}/packer-plugin-{name}_v1.1.0_x5.0_linux_amd64" for name in ("qemu", "ansible")]
    other_packer("Packer v1.11.2", "\n".join(names))
    packer.require_plugins()
    assert packer.version() == "1.11.2"


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("Packer v1.4.5", "Packer 1.4.5 is too old"),
        ("/var/cache/cracklib/cracklib_dict: 1", "not HashiCorp's Packer"),
    ],
)
def test_a_packer_that_cannot_be_used(other_packer, says, message):
    other_packer(says)
    with pytest.raises(ToolMissing, match=message):
        packer.version()

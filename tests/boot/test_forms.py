"""Other forms of a disk start as they are: each on the controller and the network adapter that its hypervisor has."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import run_container
from tests.boot.conftest import ROOT, cli, wait_until

from conda_appliance import accelerator, definition, export, formats, process, qemu

#: Each form, what its disk hangs on, and its network adapter: of those that QEMU has too.
MACHINES = {
    "vmdk": (["ahci,id=bus", "ide-hd,bus=bus.0,drive=disk"], "vmxnet3"),
    "vhd": (["pvscsi,id=bus", "scsi-hd,bus=bus.0,drive=disk"], "vmxnet3"),
    "vhdx": (["nvme,serial=disk,drive=disk"], "virtio-net-pci"),
    "vdi": (["ahci,id=bus", "ide-hd,bus=bus.0,drive=disk"], "virtio-net-pci"),
}


def answer(image: Path, form: str, work: Path, *, like: str = "") -> bytes:
    """What the service of a machine says that starts from an overlay of ``image``, on the machine of form ``like``."""
    work.mkdir()
    driver = formats.BY_NAME[form].qemu
    below = ["-F", driver, "-b", image]
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, work / qemu.OVERLAY])
    devices, adapter = MACHINES[like or form]
    found = accelerator.accelerator()
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", *found.arguments]
    argv += ["-m", "1024", "-drive", f"if=none,id=disk,format=qcow2,cache=unsafe,file={qemu.OVERLAY}"]
    argv += [word for device in devices for word in ("-device", device)]
    argv += [
        "-netdev",
        "user,id=net,hostfwd=tcp:127.0.0.1:0-:8000",
        "-device",
        f"{adapter},netdev=net,romfile=",
    ]
    argv += ["-chardev", f"file,id=console,path={qemu.CONSOLE}", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=control,path={qemu.CONTROL},server=on,wait=off"]
    argv += ["-mon", "chardev=control,mode=control"]
    said: list[bytes] = []
    with process.background(argv, log=work / qemu.LOG, cwd=work) as child:
        control = qemu.connect(work, lambda: child.poll() is None)
        assert control is not None, (work / qemu.LOG).read_text()
        port = qemu.forwarded(control.monitor("info usernet"))[8000]

        def answers() -> bool:
            assert child.poll() is None, (work / qemu.LOG).read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
                    said.append(response.read())
            except (OSError, urllib.error.URLError):
                return False
            return True

        wait_until(answers, 180 * found.patience, f"{form}: the service's answer", log=work / qemu.CONSOLE)
        control.close()
    return said[0]


@pytest.fixture(scope="module")
def said(hello_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the service of each form of the disk says."""
    tmp_path = tmp_path_factory.mktemp("forms")
    image = definition.load_image(ROOT / "images/hello.yaml")
    exporter = export.Exporter(
        image=image,
        disk=hello_rootfs / "hello.qcow2",
        format="qcow2",
        identity="test",
        epoch=0,
        project=None,
        work=tmp_path / "work",
    )
    made, _ = exporter.every([*MACHINES], tmp_path)
    answers = process.side_by_side(
        *(
            partial(answer, one.path, one.record.format, tmp_path / f"run-{one.record.format}")
            for one in made
        ),
        workers=max(2, (os.cpu_count() or 1) // 2),
    )
    return dict(zip(MACHINES, answers, strict=True))


def test_each_form_starts_and_its_service_says_the_same(said: dict[str, bytes]) -> None:
    assert b"hello" in said["vmdk"] and len({*said.values()}) == 1, said


def test_forms_without_a_disk_are_built_without_one_and_say_the_same(
    said: dict[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "images", tmp_path / "images")
    path = tmp_path / "images/hello.yaml"
    path.write_text(path.read_text().replace("formats: [qcow2]", "formats: [tar, sh, oci]"))
    done = cli("build", "--lock", path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "Write the disk" not in done.stderr and "Boot" not in done.stderr
    folder = Path(done.stdout.strip())
    again = cli("build", "--lock", path, "--out", tmp_path / "out")
    assert "nothing to do" in again.stderr
    bundle = run_container.unpacked(f"oci-archive:{folder}/hello-1.0.0.oci.tar", tmp_path)
    with run_container.running(bundle, tmp_path) as container:
        assert run_container.answer("http://127.0.0.1:8000/", container) == said["vmdk"]
    process.run(["sh", folder / "hello-1.0.0-Linux-x86_64.sh", "-b", "-p", tmp_path / "installed"])
    moved = process.run(
        [tmp_path / "installed/bin/python", "-c", "import numpy; print(numpy.__file__)"]
    ).stdout
    assert moved.startswith(f"{tmp_path}/installed/lib/")

"""One definition in every form: each opened by a program of its users, and run where it can be; all say the same."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import rpm_findings
import run_container
from debian_made import System
from tests.boot.conftest import ROOT, cli, wait_until
from tests.boot.forms_seen import Seen
from tests.conftest import Folders

from conda_appliance import (
    accelerator,
    bootstrap,
    definition,
    formats,
    layers,
    lock,
    manifest,
    process,
    qemu,
    resources,
    sources,
)

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


def forget_forms() -> None:
    """Remove from the cache what builds keep of forms, but the disk and what is made before it."""
    for kind in ("blocks", "survey", "container", "vagrant"):
        resources.remove(resources.cache_root() / layers.FOLDER / kind)


def seconds_of_forms(result: Path) -> float:
    """What a build took to make its forms."""
    return sum(
        seconds for title, seconds in manifest.read(result).steps.items() if title.startswith("Export")
    )


@pytest.fixture(scope="module")
def forms(hello_rootfs: Path, folders: Folders, seen: Seen) -> dict[str, Path]:
    """images/hello.yaml in every form that a build makes, and its payload disc: each one's file, by form."""
    folder = folders.mktemp("forms")
    shutil.copytree(ROOT / "images", folder / "images")
    path = folder / "images/hello.yaml"
    text = path.read_text().replace("formats: [qcow2]", f"formats: [{', '.join(formats.BUILT)}]")
    path.write_text(text + "package: {maintainer: Me <me@example.com>}\n")
    if seen.wanted:
        forget_forms()
    done = cli("build", "--lock", "--no-check", path, "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    result = Path(done.stdout.strip())
    written = manifest.read(result)
    for record in written.artifacts:
        seen.made(record)
    seen.together = seconds_of_forms(result)
    for form in formats.BUILT if seen.wanted else ():
        forget_forms()
        alone = folder / f"images/{form}.yaml"
        alone.write_text(path.read_text().replace(", ".join(formats.BUILT), form))
        shutil.copy(folder / "images/hello.lock", alone.with_suffix(".lock"))
        done = cli("build", "--no-check", alone, "--out", folder / "alone" / form)
        assert done.returncode == 0, done.stderr
        seen.alone(form, seconds_of_forms(Path(done.stdout.strip())))
        resources.remove(folder / "alone" / form)
    disc = cli("disc", path, "payload", "--out", folder / "out")
    assert disc.returncode == 0, disc.stderr
    payload = Path(disc.stdout.strip())
    seen.disc("payload-iso", payload)
    again = cli("build", "--lock", "--no-check", path, "--out", folder / "out")
    assert "nothing to do" in again.stderr
    return {**{one.format: result / one.file for one in written.artifacts}, "payload-iso": payload}


@pytest.fixture(scope="module")
def booted(forms: dict[str, Path], folders: Folders, seen: Seen) -> dict[str, bytes]:
    """What the service of each form says that QEMU boots."""
    folder = folders.mktemp("machines")
    answers = process.side_by_side(
        *(partial(answer, forms[form], form, folder / form) for form in MACHINES),
        workers=max(2, (os.cpu_count() or 1) // 2),
    )
    for form, said in zip(MACHINES, answers, strict=True):
        controller, adapter = MACHINES[form][0][0].partition(",")[0], MACHINES[form][1]
        seen.ran(form, f"QEMU: {controller}, {adapter}", said)
    return dict(zip(MACHINES, answers, strict=True))


def test_each_form_of_the_disk_starts_and_its_service_says_the_same(booted: dict[str, bytes]) -> None:
    assert b"hello" in booted["vmdk"] and len({*booted.values()}) == 1, booted


def test_each_form_is_opened_by_a_program_that_is_not_ours(
    forms: dict[str, Path], tmp_path: Path, seen: Seen
) -> None:
    """By one that its users have; where it holds a disk, that is the qcow2's, sector by sector."""
    for form, path in forms.items():
        work = tmp_path / form
        work.mkdir()
        for how in OPENERS[form](path, forms["qcow2"], work):
            seen.opened(form, how)
        shutil.rmtree(work)
    assert {*OPENERS} == {*forms}


def test_the_environments_in_each_form_are_what_the_lock_gives(forms: dict[str, Path]) -> None:
    """Every artifact is opened and compared, file by file; the tools' tests change some."""
    for image in ("hello", forms["payload-iso"]):
        done = cli("verify", image, "--files", cwd=forms["qcow2"].parents[3])
        assert done.returncode == 0, done.stderr


def same_disk(driver: str) -> Opener:
    def compare(path: Path, qcow2: Path, _work: Path) -> list[str]:
        process.run(["qemu-img", "compare", "-f", driver, "-F", "qcow2", path, qcow2])
        return ["qemu-img compare: the qcow2's disk"]

    return compare


def checked(path: Path, qcow2: Path, _work: Path) -> list[str]:
    process.run(["qemu-img", "check", "-q", path])
    return ["qemu-img check"]


def zstandard(path: Path, qcow2: Path, work: Path) -> list[str]:
    process.run(["zstd", "-q", "-d", "--sparse", path, "-o", work / "disk.raw"])
    return ["zstd", *same_disk("raw")(work / "disk.raw", qcow2, work)]


def in_a_tar(pattern: str, driver: str, *, libarchive: bool = False) -> Opener:
    def unpack(path: Path, qcow2: Path, work: Path) -> list[str]:
        tar = ["bsdtar"] if libarchive else ["tar", "--sparse"]
        process.run([*tar, "-x", "-f", path, "-C", work])
        (disk,) = work.glob(pattern)
        if driver == "any":  # a box's disk has Vagrant's user on it: another one
            process.run(["qemu-img", "check", "-q", disk])
            return [tar[0], "qemu-img check"]
        return [tar[0], *same_disk(driver)(disk, qcow2, work)]

    return unpack


def by(*argv: str, shown: str = "") -> Opener:
    def read(path: Path, _qcow2: Path, _work: Path) -> list[str]:
        words = [word.replace("FILE", str(path)) for word in argv]
        done = process.run(words)
        assert done.stdout + done.stderr
        return [shown or argv[0]]

    return read


def criticized(path: Path, qcow2: Path, work: Path) -> list[str]:
    assert rpm_findings.findings(path, work) == []
    return [*by("rpm", "-qpl", "--nosignature", "FILE", shown="rpm -qp")(path, qcow2, work), "rpmlint"]


Opener = Callable[[Path, Path, Path], list[str]]
OPENERS: dict[str, Opener] = {
    "qcow2": checked,
    "raw": same_disk("raw"),
    "raw.zst": zstandard,
    "vmdk": same_disk("vmdk"),
    "ova": in_a_tar("*.vmdk", "vmdk", libarchive=True),
    "vhd": same_disk("vpc"),
    "vhdx": same_disk("vhdx"),
    "vdi": same_disk("vdi"),
    "gce": in_a_tar("disk.raw", "raw"),
    "box-libvirt": in_a_tar("box.img", "any"),
    "box-virtualbox": in_a_tar("*.vmdk", "any"),
    "box-qemu": in_a_tar("box.img", "any"),
    "tar": by("tar", "--zstd", "-tf", "FILE"),
    "sh": by("sh", "-c", "sh FILE -h || [ $? = 2 ]", shown="its own -h"),
    "oci": by("skopeo", "inspect", "oci-archive:FILE", shown="skopeo inspect"),
    "docker-archive": by("skopeo", "inspect", "docker-archive:FILE", shown="skopeo inspect"),
    "deb": by("dpkg-deb", "--contents", "FILE"),
    "rpm": criticized,
    "payload-iso": by("xorriso", "-indev", "FILE", "-find", shown="xorriso"),
}


@pytest.mark.parametrize("form", ["oci", "docker-archive"])
def test_a_container_says_the_same(
    form: str, forms: dict[str, Path], booted: dict[str, bytes], tmp_path: Path, seen: Seen
) -> None:
    transport = "oci-archive" if form == "oci" else form
    bundle = run_container.unpacked(f"{transport}:{forms[form]}", tmp_path)
    with run_container.running(bundle, tmp_path) as container:
        said = run_container.answer("http://127.0.0.1:8000/", container)
    seen.ran(form, "umoci, runc", said)
    assert said == booted["vmdk"]


#: How each form without a disk is installed in a Debian, whose root is the folder ``root`` …
INSTALLED = {
    "deb": ("dpkg --install", "chroot root dpkg --force-depends --install /run/payload/{file}"),
    "rpm": (
        "rpm --root --nodeps",
        'rpm --root "$PWD/root" --dbpath /var/lib/rpm --nodeps --install root/run/payload/{file}',
    ),
    "tar": (
        "tar, conda-unpack",
        "mkdir root/srv/env; tar -x --zstd -f root/run/payload/{file} -C root/srv/env; "
        "chroot root /srv/env/bin/conda-unpack",
    ),
    "sh": ("sh -b -p", "chroot root sh /run/payload/{file} -b -p /srv/env"),
    "payload-iso": ("install.sh", "chroot root sh /run/payload/disc/install.sh --yes"),
}
#: … and its service run, in a network of its own.
RUN = """
ip link set lo up
chroot {who} root sh -euc 'cd {folder}; exec env PYTHONPATH=. {command}' >&2 &
chroot root {python} -c 'import time, urllib.request as u
for _ in range(600):
    try:
        print(u.urlopen("http://127.0.0.1:8000/").read().decode(), end="")
        break
    except OSError:
        time.sleep(0.2)
'
kill $!
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) and mounts need root's rights")
@pytest.mark.parametrize("form", INSTALLED)
def test_what_is_installed_in_a_debian_says_the_same(
    form: str,
    forms: dict[str, Path],
    booted: dict[str, bytes],
    hello_rootfs: Path,
    tmp_path: Path,
    seen: Seen,
) -> None:
    """What brings its units runs as they say; of a bare environment its user knows the command."""
    given = tmp_path / "given"
    shutil.copytree(ROOT / "images/hello/app", given / "app")
    if form == "payload-iso":
        process.run(["xorriso", "-osirrox", "on", "-indev", forms[form], "-extract", "/", given / "disc"])
    else:
        shutil.copy(forms[form], given)
    system = System(debian_of(hello_rootfs), given, tmp_path)
    how, install = INSTALLED[form]
    system.run(install.format(file=forms[form].name))
    unit = system.run(
        "chroot root sh -c 'cat /etc/systemd/system/hello.service /usr/lib/systemd/system/hello.service "
        "2>/dev/null || true'"
    )
    if unit:
        command, folder, python = _says(unit, "ExecStart"), _says(unit, "WorkingDirectory"), "/opt/conda"
        who = f"--userspec={_says(unit, 'User')}"
    else:
        python, folder, who = "/srv/env", "/run/payload/app", "--userspec=nobody"
        command = "/srv/env/bin/gunicorn --bind 0.0.0.0:8000 hello:app"
    script = RUN.format(who=who, folder=folder, command=command, python=f"{python}/bin/python")
    said = system.run(f"exec unshare --net sh -euc {shlex.quote(script)}").encode()
    seen.ran(form, f"{how} in Debian 13", said)
    assert said == booted["vmdk"]


def _says(unit: str, key: str) -> str:
    """What a unit has for a key; a command's words stand in double quotes there."""
    (value,) = re.findall(rf"^{key}=(.+)$", unit, re.MULTILINE)
    return value.replace('"', "")


def debian_of(result: Path) -> Path:
    """The root of the Debian that a result was made from, as the cache has it."""
    image = definition.load_image(ROOT / "images/hello.yaml")
    section = lock.read(result / "hello.lock").debian
    assert section is not None
    cache = sources.Cache(resources.cache_root())
    files = {one.sha256: cache.verified(one.sha256, one.name) for one in section.packages}
    store = layers.Store(cache.root / layers.FOLDER)
    return bootstrap.system(section, image.base, files, store=store, progress=lambda _: None).path

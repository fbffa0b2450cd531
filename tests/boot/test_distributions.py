"""A machine whose base environment a distribution's installer laid down, with an environment of packages beside it.

That one has a package whose post-link script runs on the machine's first boot; its service serves what the script made.

Miniforge and Miniconda cannot be reached where tests run. The installer is our form `sh`, which takes constructor's
words: what it stands in for is who wrote the installer. That conda itself works afterwards is not seen here.
"""

from __future__ import annotations

from pathlib import Path

import packages
import pytest
from packages import File, Package
from tests.boot.conftest import cli
from tests.conftest import Folders

from conda_appliance import lock, manifest

INSTALLER = """\
name: standin
version: 1.0.0
base: {debian: trixie}
conda:
  prefix: /opt/standin
  channels: [starter]
  environments: {base: {dependencies: [python 3.13.*, flask]}}
builder: rootfs
formats: [sh]
"""

MACHINE = """\
name: laid
version: 1.0.0
base: {debian: trixie}
conda:
  channels: [starter, ./mine]
  distribution: {installer: ./standin.sh}
  environments:
    app: {dependencies: [python 3.13.*, numpy, greeter]}
  post_link: first-boot
  settings: {channels: ["https://conda.example.com/main"], channel_priority: strict}
services:
  - name: greet
    environment: app
    command: python -m http.server 8000 --directory /opt/conda/envs/app/share/greeter
    port: 8000
    path: /greeting
builder: rootfs
formats: [qcow2]
access: {user: admin}
checks: [test_laid.py]
"""
#: A container has no first boot: the same environments without the script.
CONTAINER = (
    MACHINE.replace("name: laid", "name: boxed")
    .replace(", greeter]", "]")
    .replace("  post_link: first-boot\n", "")
    .replace("formats: [qcow2]", "formats: [oci]")
)

#: It writes down who it is and what it may do, and changes a file of its own package.
SCRIPT = """\
set -eu
mkdir -p "$PREFIX/share/greeter"
cd "$PREFIX/share/greeter"
{
    echo "$PKG_NAME of $PREFIX on $(hostname)"
    grep -E '^(CapEff|NoNewPrivs)' /proc/self/status
    sed -n 's/^ *\\([a-z0-9]*\\):.*/network \\1/p' /proc/net/dev
    for path in /etc/mine /usr/mine /opt/mine /dev/vda; do (: >>"$path") 2>/dev/null && echo "wrote $path"; done
} >>greeting || true
echo changed >>"$PREFIX/etc/greeter.conf"
"""
GREETER = Package(
    name="greeter",
    files={
        "bin/.greeter-post-link.sh": File(content=SCRIPT, executable=True),
        "etc/greeter.conf": File(content="as shipped\n"),
    },
)

CHECK = """\
import json

import yaml

from conda_appliance.guest import run_python

HOME = "/opt/conda/envs/app"
UNIT = "conda-appliance-post-link.service"


def shown(host, unit, name):
    return host.check_output(f"systemctl show --value -p {name} {unit}")


def test_a_post_link_script_ran_once_with_few_rights_and_no_network(host):
    said = host.file(f"{HOME}/share/greeter/greeting").content_string.splitlines()
    name = host.check_output("hostname")
    # Of root's rights those over files: CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID.
    assert said == [f"greeter of {HOME} on {name}", "CapEff:\\t000000000000001b", "NoNewPrivs:\\t1", "network lo"]
    assert host.file(f"{HOME}/etc/greeter.conf").content_string == "as shipped\\nchanged\\n"


def test_its_service_was_started_when_it_had_ended(host):
    ended = int(shown(host, UNIT, "ExecMainExitTimestampMonotonic"))
    assert 0 < ended <= int(shown(host, "greet.service", "ExecMainStartTimestampMonotonic"))


def test_what_it_did_is_recorded_with_its_package(host):
    (path,) = host.check_output(f"ls {HOME}/conda-meta/greeter-*.json").splitlines()
    files = json.loads(host.file(path).content_string)["files"]
    assert files == ["bin/.greeter-post-link.sh", "etc/greeter.conf", "share/greeter/greeting"]


def test_it_does_not_run_again(host):
    with host.sudo():
        # As the next boot does: its service is started anew, too. The second command waits for that.
        host.check_output(f"systemctl restart {UNIT} && systemctl start greet.service")
    assert shown(host, UNIT, "ConditionResult") == "no"
    assert shown(host, "greet.service", "ActiveState") == "active"
    assert host.file(f"{HOME}/etc/greeter.conf").content_string.count("changed") == 1


def test_both_environments_run(host):
    ask = "import flask, sys; print(sys.prefix)"
    assert run_python(host, ask, python="/opt/conda/bin/python").stdout == "/opt/conda\\n"
    ask = "import numpy, sys; print(sys.prefix)"
    said = run_python(host, ask, python="/opt/conda/envs/app/bin/python").stdout
    assert said == "/opt/conda/envs/app\\n"


def test_the_settings_are_the_definitions(host):
    settings = yaml.safe_load(host.file("/opt/conda/.condarc").content_string)
    assert settings["channels"] == ["https://conda.example.com/main"]
    assert settings["channel_priority"] == "strict"
    assert settings["default_channels"] == [] and settings["auto_update_conda"] is False
"""


@pytest.fixture(scope="module")
def built(folders: Folders) -> Path:
    folder = folders.mktemp("distributions")
    (folder / "standin.yaml").write_text(INSTALLER)
    done = cli("build", "--lock", folder / "standin.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    (made,) = Path(done.stdout.strip()).glob("*.sh")
    made.rename(folder / "standin.sh")
    GREETER.write(folder / "mine")
    packages.index(folder / "mine")
    (folder / "laid.yaml").write_text(MACHINE)
    (folder / "test_laid.py").write_text(CHECK)
    done = cli("build", "--lock", folder / "laid.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_the_machine_boots_and_passes_its_checks(built: Path) -> None:
    written = lock.read(built / "laid.lock")
    base = written.conda.environments["base"]
    assert base.installer is not None
    assert {"python", "flask"} <= {one.name for one in base.packages}
    assert manifest.read(built).packages["conda:base"] == len(base.packages)


def test_every_form_has_what_the_installer_laid_down(built: Path) -> None:
    folder = built.parents[2]
    (folder / "boxed.yaml").write_text(CONTAINER)
    done = cli("build", "--lock", folder / "boxed.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    for name in ("laid", "boxed"):
        done = cli("verify", "--files", folder / f"{name}.yaml", "--out", folder / "out")
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_lock_named_is_built_whatever_lies_there_now(built: Path) -> None:
    folder = built.parents[2]
    installer = folder / "standin.sh"
    before = installer.read_bytes()
    installer.write_bytes(before + b"\n")
    try:
        done = cli("build", folder / "laid.yaml", "--out", folder / "elsewhere", "--no-check")
    finally:
        installer.write_bytes(before)
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.strip()) / "laid.qcow2"
    assert made.read_bytes() == (built / "laid.qcow2").read_bytes()

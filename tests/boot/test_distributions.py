"""A machine whose base environment a distribution's installer laid down, with an environment of packages beside it.

Miniforge and Miniconda cannot be reached where tests run. The installer is our form `sh`, which takes constructor's
words: what it stands in for is who wrote the installer. That conda itself works afterwards is not seen here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.boot.conftest import cli

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
  channels: [starter]
  distribution: {installer: ./standin.sh}
  environments:
    app: {dependencies: [python 3.13.*, numpy]}
  settings: {channels: ["https://conda.example.com/main"], channel_priority: strict}
builder: rootfs
formats: [qcow2, oci]
access: {user: admin}
checks: [test_laid.py]
"""

CHECK = """\
import yaml

from conda_appliance.guest import run_python


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
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributions")
    (folder / "standin.yaml").write_text(INSTALLER)
    done = cli("build", "--lock", folder / "standin.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stderr
    (made,) = Path(done.stdout.strip()).glob("*.sh")
    made.rename(folder / "standin.sh")
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
    done = cli("verify", "--files", folder / "laid.yaml", "--out", folder / "out")
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

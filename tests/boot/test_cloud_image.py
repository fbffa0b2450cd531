"""A distribution's cloud image serves as the base: here one that another path made, with nothing of ours in it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

from tests.boot.conftest import ROOT, cli

DEFINITION = """\
name: guest
version: 1.0.0
base: {{image: {{url: cloud.qcow2, sha256: {sha256}}}}}
conda:
  prefix: /srv/python
  channels: [starter]
  environments:
    base: {{dependencies: [python 3.13.*, gunicorn, flask]}}
    tools: {{dependencies: [python, click]}}
services:
  - {{name: web, command: "gunicorn --bind 0.0.0.0:8080 app:app", working_directory: /srv/web, port: 8080}}
files: [{{from: app.py, to: /srv/web/app.py}}]
disk: {{size: 3GiB, firmware: [bios]}}
roles: [mine]
access: {{user: keeper}}
checks: [test_own.py]
"""
APP = """\
from flask import Flask

app = Flask(__name__)


@app.get("/")
def ok():
    return "ok"
"""
ROLE = """\
- name: Say that a role of the project's own ran
  ansible.builtin.copy: {dest: /etc/mine.conf, content: "mine\\n", mode: "0644"}
"""
OWN = """\
def test_the_projects_own_role_ran(host):
    assert host.file("/etc/mine.conf").content_string == "mine\\n"


def test_it_is_still_the_distributions_machine(host):
    assert host.file("/etc/os-release").contains("bookworm")
    assert host.file("/etc/network/interfaces").exists


def test_the_root_file_system_took_the_larger_disk(host):
    blocks, size = host.check_output("stat --file-system --format='%b %S' /").split()
    assert int(blocks) * int(size) > 2 << 30
"""


def test_a_cloud_image_becomes_an_appliance(tmp_path: Path) -> None:
    image = tmp_path / "cloud.qcow2"
    subprocess.run([ROOT / "tests/boot/make_cloud_image.sh", image], check=True)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    path = tmp_path / "guest.yaml"
    path.write_text(DEFINITION.format(sha256=digest))
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "test_own.py").write_text(OWN)
    role = tmp_path / "playbooks/roles/mine/tasks/main.yml"
    role.parent.mkdir(parents=True)
    role.write_text(ROLE)
    done = cli("build", "--lock", path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    written = json.loads((Path(done.stdout.strip()) / "manifest.json").read_text())
    assert written["check"]["failed"] == 0
    assert written["packages"].keys() == {"conda:base", "conda:tools"}


def test_an_image_that_is_not_the_named_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cloud.qcow2").write_bytes(b"QFI\xfb and something else")
    path = tmp_path / "guest.yaml"
    path.write_text(DEFINITION.format(sha256="0" * 64).replace("roles: [mine]\n", ""))
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "test_own.py").write_text(OWN)
    assert cli("lock", path).returncode == 0
    done = cli("build", path, "--out", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert "base image" in done.stderr

"""A machine whose services are no packages: each kind of program, made by its own tool, started by systemd.

It is a Debian 12; the other boot tests' machines are Debian 13.
"""

from __future__ import annotations

import shutil
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import wheels_made
from tests.boot.conftest import cli
from tests.conftest import Folders

from conda_appliance import manifest, process, resources

#: What all of them are: it says its name, and which Python runs it.
SERVER = """\
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


def run():
    name, port = sys.argv[1], int(sys.argv[2])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{name} {sys.version_info.minor} {LIBRARY}".encode())

    HTTPServer(("0.0.0.0", port), Handler).serve_forever()
"""
MAIN = "from server import run\n\nrun()\n"
DEFINITION = """\
name: programs
version: 1.0.0
base: {debian: bookworm}
conda:
  channels: [starter]
  frozen: true
  environments:
    base: {dependencies: [python 3.13.*], pip: [bottle ==0.13.*]}
services:
  - {name: pexed, port: 8001, program: {pex: {url: made/app.pex}}, command: "{program} pexed 8001"}
  - {name: zipped, port: 8002, program: {zipapp: {url: made/app.pyz}}, command: "{program} zipped 8002"}
  - name: wheeled
    port: 8003
    program: {wheel: {url: made/served-1.0-py3-none-any.whl}}
    command: "{program} wheeled 8003"
  - name: cloned
    port: 8004
    program: {git: {url: ./made/repo, commit: COMMIT}}
    command: python main.py cloned 8004
  - {name: frozen, port: 8005, program: {frozen: {url: made/app}}, command: "{program} frozen 8005"}
access: {user: admin}
verify: {timer: daily}
slim: true
builder: rootfs
checks: [test_programs_here.py]
"""
CHECK = """\
import pytest

from conda_appliance.guest import run_python

GET = "import sys, urllib.request as u; print(u.urlopen('http://127.0.0.1:' + sys.argv[1]).read().decode())"


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (8001, "pexed 13 bottle"), (8002, "zipped 13 none"), (8003, "wheeled 13 bottle"),
        (8004, "cloned 13 none"), (8005, "frozen HOST none"),
    ],
)
def test_each_says_who_it_is_and_what_runs_it(host, port, said):
    assert run_python(host, GET, str(port)).stdout.strip() == said


def test_it_is_the_debian_that_was_asked_for(host):
    assert host.check_output(". /etc/os-release; echo $VERSION_CODENAME") == "bookworm"


def test_they_are_roots_and_nobody_elses(host):
    assert host.check_output("find /opt/appliance ! -user root -o -perm /022 ! -type l") == ""


def test_pythons_own_tools_know_the_wheels(host):
    ask = "from importlib.metadata import version as v; print(v('bottle'), v('served'))"
    listed = run_python(host, ask, python="/opt/conda/bin/python").stdout
    assert listed.split()[1] == "1.0"


def test_what_slim_leaves_out_is_not_missed(host):
    assert host.check_output("LC_ALL=C.UTF-8 locale charmap") == "UTF-8"
    gone = "/usr/share/i18n/locales/de_DE /usr/share/i18n/charmaps/UTF-8.gz /opt/conda/lib/python3.13/test"
    assert host.check_output(f"for path in {gone}; do ls -d $path 2>/dev/null || true; done") == ""
    assert int(host.check_output("ls /usr/share/doc/*/copyright | wc -l")) > 100
"""


@pytest.fixture(scope="module")
def project(folders: Folders) -> Path:
    """A project with a program of each kind, as its makers make them."""
    folder = folders.mktemp("programs")
    made, source, alone = folder / "made", folder / "source", folder / "alone"
    for path, library in ((source, "bottle"), (alone, "none")):
        path.mkdir()
        first = (
            f"import {library}\n\nLIBRARY = {library}.__name__\n"
            if library != "none"
            else 'LIBRARY = "none"\n'
        )
        (path / "server.py").write_text(first + SERVER)
        (path / "main.py").write_text(MAIN)
    made.mkdir()
    tool = [sys.executable, "-m"]
    process.run([*tool, "pex", "bottle==0.13.*", "-D", source, "-m", "server:run", "-o", made / "app.pex"])
    process.run([*tool, "zipapp", alone, "-m", "server:run", "-o", made / "app.pyz"])
    server = (source / "server.py").read_text()
    wheels_made.wheel(
        made, "served", modules={"served.py": server}, requires=["bottle"], scripts=["served = served:run"]
    )
    freeze = [*tool, "PyInstaller", "--onefile", "--log-level", "ERROR", "--name", "app", "--distpath", made]
    process.run([*freeze, "--workpath", folder / "work", "--specpath", folder, alone / "main.py"])
    shutil.copytree(alone, made / "repo")
    git = ["git", "-C", made / "repo", "-c", "user.name=me", "-c", "user.email=me@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        process.run([*git, *words])
    commit = process.run([*git, "rev-parse", "HEAD"]).stdout.strip()
    (folder / "programs.yaml").write_text(DEFINITION.replace("COMMIT", commit))
    (folder / "test_programs_here.py").write_text(CHECK.replace("HOST", str(sys.version_info.minor)))
    return folder


def test_programs_of_every_kind_answer_on_a_booted_machine(project: Path) -> None:
    done = cli("build", "--lock", project / "programs.yaml", "--out", project / "out")
    assert done.returncode == 0, done.stderr
    result = Path(done.stdout.strip())
    written = manifest.read(result)
    assert written.packages["pip:base"] == 2
    assert written.slim["base"].saved > 0
    report = ElementTree.parse(result / "report/junit.xml")
    names = [one.get("name", "") for one in report.iter("testcase")]
    assert sum(name.startswith("test_each_says_who_it_is") for name in names) == 5
    shutil.rmtree(project / "made")  # everything is in the lock and the cache now
    (project / "made").mkdir()
    for name in ("app.pex", "app.pyz", "served-1.0-py3-none-any.whl", "app", "repo"):
        (project / "made" / name).touch()
    again = cli("build", project / "programs.yaml", "--out", project / "again", "--offline", "--no-check")
    assert again.returncode == 0, again.stderr
    sums = [resources.sha256_of(folder / "programs.qcow2") for folder in (result, Path(again.stdout.strip()))]
    assert sums[0] == sums[1]

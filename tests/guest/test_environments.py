"""The conda environments: intact file by file, and what was asked for can be imported."""

import json
from pathlib import Path

import pytest
import yaml

from conda_appliance.guest import run_python

#: Runs on the machine, in the environment: imports what the records of the named packages install.
IMPORTS = r"""
import importlib, json, pathlib, re, sys, traceback

prefix, failed = pathlib.Path(sys.prefix), {}
for name in sys.argv[1:]:
    records = [json.loads(path.read_text()) for path in prefix.glob(f"conda-meta/{name}-*.json")]
    record = next((one for one in records if one["name"] == name), None)
    if record is None:
        failed[name] = "it is not installed"
        continue
    packages, modules = set(), set()
    for file in record["files"]:
        inside = re.match(r"lib/python3[^/]*/site-packages/(.+)", file)
        parts = inside[1].split("/") if inside else []
        if not parts or not parts[0].split(".")[0].isidentifier():
            continue
        if parts[-1] == "__init__.py":
            packages.add(tuple(parts[:-1]))
        elif len(parts) == 1 and re.search(r"\.(py|so)$", file):
            modules.add((parts[0].split(".")[0],))
    # The uppermost packages: of google/cloud/x and google/cloud/x/y, the first.
    tops = {one for one in packages if not any(one[:n] in packages for n in range(1, len(one)))}
    for module in sorted(tops | modules):
        if module[0].startswith("_") or module[0] in ("test", "tests"):
            continue
        try:
            importlib.import_module(".".join(module))
        except BaseException as error:
            failed[name] = "".join(traceback.format_exception_only(type(error), error)).strip()
print(json.dumps(failed))
"""


#: What the image adds to an environment: its settings, and that nobody changes it.
_ALLOWED = (
    "--allow",
    ".condarc",
    "--allow",
    "conda-meta/frozen",
    "--allow",
    "lib/python3*/EXTERNALLY-MANAGED",
)

#: Runs on the machine: installs nothing, but asks pip's own question (PEP 668) and writes byte code nowhere.
FROZEN = """
import json, pathlib, sys, sysconfig
meta = pathlib.Path(sys.prefix, "conda-meta/frozen")
print(json.loads(meta.read_text())["message"])
print(pathlib.Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").read_text())
"""


def test_every_file_is_what_its_record_says(host, appliance, environment):
    if host.file("/usr/bin/appliance-verify").exists:
        pytest.skip("the machine verifies itself, against more than the records: test_verify.py")
    script = Path(appliance.prefix_check).read_text()
    with host.sudo():
        result = run_python(host, script, environment.prefix, *_ALLOWED, python=environment.python)
    assert result.rc == 0, result.stdout + result.stderr


def test_post_link_scripts_ran_on_the_first_boot(host, appliance):
    if not appliance.first_boot:
        pytest.skip("no package asks for that")
    assert host.file("/var/lib/conda-appliance-post-link/done").exists, host.check_output(
        "systemctl status conda-appliance-post-link.service || true"
    )


def test_python_runs_and_lives_in_its_prefix(host, environment):
    if not environment.has_python:
        pytest.skip("this environment has no Python")
    found = host.check_output(
        f"{environment.python} -c 'import sys, ssl, sqlite3, ctypes; print(sys.prefix)'"
    )
    assert found == environment.prefix


def test_the_requested_packages_import(host, environment):
    if not environment.has_python:
        pytest.skip("this environment has no Python")
    result = run_python(host, IMPORTS, *environment.requested, python=environment.python)
    assert result.rc == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {}


def test_only_root_may_change_it(host, environment):
    assert host.run(f"test -w {environment.prefix}/conda-meta").rc != 0
    loose = host.check_output(
        f"find {environment.prefix} -maxdepth 2 ! -type l \\( -perm /022 -o ! -user root \\) -printf '%p %u %m\\n'"
    )
    assert loose == ""


def test_a_login_shell_finds_the_base_environment(host, appliance):
    if "base" not in [environment.name for environment in appliance.environments]:
        pytest.skip("there is no environment 'base'")
    path = host.check_output("bash -lc 'echo $PATH'").split(":")
    assert f"{appliance.prefix}/bin" in path


def test_conda_would_use_the_definitions_channels(host, appliance):
    settings = yaml.safe_load(host.file(f"{appliance.prefix}/.condarc").content_string)
    named = [channel for channel in settings["channels"] if channel != "nodefaults"]
    assert named == list(appliance.channels)


def test_environments_in_a_partition_of_their_own_are_read_only(host, appliance):
    if not appliance.read_only:
        pytest.skip("this machine has one root file system")
    mounted = host.mount_point(appliance.prefix)
    assert mounted.exists and mounted.filesystem == "squashfs"
    assert "ro" in mounted.options
    with host.sudo():
        assert host.run(f"touch {appliance.prefix}/conda-meta/new").rc != 0
    settings = yaml.safe_load(host.file(f"{appliance.prefix}/.condarc").content_string)
    for folder in (*settings["envs_dirs"], *settings["pkgs_dirs"]):
        assert host.file(folder).is_directory
        with host.sudo():
            assert host.run(f"test -w {folder}").rc == 0


def test_a_frozen_environment_says_so_and_runs_where_nothing_can_be_written(host, appliance, environment):
    if not appliance.frozen or not environment.has_python:
        pytest.skip("this environment may be changed")
    result = run_python(host, FROZEN, python=environment.python)
    assert "this appliance" in result.stdout and "[externally-managed]" in result.stdout, result.stderr
    with host.sudo():
        lone = host.run(
            "systemd-run --quiet --pipe --wait -p DynamicUser=yes -p ProtectSystem=strict -p ProtectHome=yes "
            f"-p Environment=HOME=/nonexistent {environment.python} -c 'import ssl; print(ssl.OPENSSL_VERSION)'"
        )
    assert lone.stdout.startswith("OpenSSL"), lone.stderr
    settings = yaml.safe_load(host.file(f"{appliance.prefix}/.condarc").content_string)
    assert settings["envs_dirs"] == ["/var/lib/conda/envs"] and host.file("/var/lib/conda/envs").is_directory

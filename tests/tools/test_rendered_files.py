"""What is rendered, read by the programs it is for: Packer, Ansible, ssh-keygen; and compared with tests/golden.

After a wanted change: UPDATE_GOLDEN=1 pytest tests/tools/test_rendered_files.py, and look at the diff.
"""

import base64
import os
import re
import stat
from pathlib import Path

import pytest
import yaml

from conda_appliance import ansible, buildtree, playbook, process, render, resources
from conda_appliance.builders import packer
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.lock import CondaSection, Lock

GOLDEN = Path(__file__).parents[1] / "golden"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZq me"
LOCK = Lock(name="box", digest="0" * 64, tools={}, conda=CondaSection(virtual_packages=(), environments={}))


def definition(**changed):
    plain = {
        "name": "box",
        "version": "1.10",
        "base": {"debian": "trixie"},
        "conda": {"channels": ["conda-forge"], "environments": {"base": {"dependencies": ["python"]}}},
        "services": [
            {
                "name": "web",
                "command": "serve --port 8000",
                "port": 8000,
                "working_directory": "/opt/web",
                "variables": {"TITLE": "a web"},
            }
        ],
        "access": {"keys": [KEY]},
    }
    return ImageDefinition.model_validate(plain | changed)


def tree(image, folder: Path, *, version=(1, 6, 6), into="build", **inputs) -> buildtree.BuildTree:
    given = {
        "base_disk": Path("/cache/base.qcow2"),
        "base_sha256": "1" * 64,
        "payload": Path("/cache/payload.iso"),
        "acceleration": "tcg",
        "ansible_playbook": Path("/venv/bin/ansible-playbook"),
        "cpus": 2,
    }
    return buildtree.build_tree(
        image,
        LOCK,
        folder=folder,
        into=folder / into,
        inputs=buildtree.MachineInputs(**(given | inputs)),
        packer_version=version,
        project=folder,
    )


@pytest.mark.parametrize("version", [(1, 6, 6), (1, 11, 2)])
def test_the_rendered_files_are_the_expected_ones(tmp_path, version):
    made = tree(definition(), tmp_path, version=version)
    # The key is new each time; what stands in its place is golden.
    found = {
        str(path.relative_to(made.folder)): re.sub(
            r"AAAA\S+ build of box|build-[0-9a-f]{12}", "(new)", path.read_text()
        )
        for path in sorted(made.folder.rglob("*"))
        if path.is_file()
        and path.parent.name != "ssh"
        and not {"roles", "action_plugins", "connection_plugins"} & {*path.parts}
    }
    golden = GOLDEN / f"packer-{'.'.join(map(str, version))}"
    if os.environ.get("UPDATE_GOLDEN"):
        resources.remove(golden)
        for name, text in found.items():
            (golden / name).parent.mkdir(parents=True, exist_ok=True)
            (golden / name).write_text(text)
    expected = {
        str(path.relative_to(golden)): path.read_text()
        for path in sorted(golden.rglob("*"))
        if path.is_file()
    }
    assert found == expected


@pytest.mark.parametrize("version", [(1, 6, 6), (1, 11, 2)])
def test_packer_accepts_it(tmp_path, version):
    base = tmp_path / "base.qcow2"
    base.touch()
    made = tree(
        definition(), tmp_path, version=version, base_disk=base, ansible_playbook=ansible.playbook_program()
    )
    if packer.version_numbers() < buildtree.PLUGINS_SINCE <= version:
        # The one file that an old Packer cannot read; the others are the same for every version.
        (made.folder / "plugins.pkr.hcl").unlink()
    process.run(["packer", "validate", made.folder], env={"CHECKPOINT_DISABLE": "1"})


NASTY = (
    "a\"b'c\\d ${path.root} %{if true} {{ lookup('pipe', 'touch ESCAPED') }} $(touch ESCAPED) # end\n\té😀"
)


def test_packer_reads_a_quoted_value_as_itself(tmp_path):
    encoded = base64.b64encode(NASTY.encode()).decode()
    (tmp_path / "quoted.pkr.hcl").write_text(
        f'variable "quoted" {{\n  type = string\n  default = {render.hcl(NASTY)}\n'
        f'  validation {{\n    condition = var.quoted == base64decode("{encoded}")\n'
        '    error_message = "The value changed on its way."\n  }\n}\n'
        'source "null" "none" {\n  communicator = "none"\n}\nbuild {\n  sources = ["source.null.none"]\n}\n'
    )
    process.run(["packer", "validate", tmp_path], env={"CHECKPOINT_DISABLE": "1"})


def play(folder: Path, tasks: list, made: buildtree.BuildTree, **variables) -> None:
    """Run tasks on this host with the rendered variables, as the roles of ``app`` do."""
    playbook = made.folder / "playbook/test.yml"
    playbook.write_text(
        yaml.safe_dump(
            [
                {
                    "hosts": "all",
                    "connection": "local",
                    "gather_facts": False,
                    "vars_files": ["vars.yml"],
                    "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}", **variables},
                    "tasks": tasks,
                }
            ]
        )
    )
    process.run(
        [ansible.playbook_program(), "-i", "localhost,", playbook],
        cwd=folder,
        env={"ANSIBLE_HOME": str(folder)},
    )


def test_ansible_takes_a_definitions_text_as_it_is(tmp_path):
    service = {"name": "web", "command": f"serve '{NASTY.split(chr(10))[0].replace(chr(39), '')}'"}
    made = tree(definition(summary=NASTY, services=[service]), tmp_path)
    units = "{{ lookup('ansible.builtin.template', 'roles/app/templates/units.json.j2') | from_json }}"
    tasks = [
        {"ansible.builtin.copy": {"dest": str(tmp_path / "summary"), "content": "{{ appliance.summary }}"}},
        {"ansible.builtin.set_fact": {"units": units}},
        {
            "ansible.builtin.copy": {
                "dest": str(tmp_path / "unit"),
                "content": "{{ units[0].content }}",
            }
        },
    ]
    (made.folder / "playbook/service.j2").symlink_to("roles/app/templates/service.j2")
    (made.folder / "playbook/sysusers.conf.j2").symlink_to("roles/app/templates/sysusers.conf.j2")
    play(tmp_path, tasks, made)
    assert (tmp_path / "summary").read_text() == NASTY
    unit = (tmp_path / "unit").read_text()
    assert [line for line in unit.splitlines() if line.startswith("ExecStart=")] == [
        f"ExecStart={made_exec(service['command'])}"
    ]
    assert list(tmp_path.rglob("ESCAPED")) == []


def made_exec(command: str) -> str:
    service = definition(services=[{"name": "web", "command": command}])
    return playbook.variables(service, LOCK, Path())["services"][0]["exec_start"]


@pytest.mark.skipif(os.geteuid() != 0, reason="write_files gives what it writes to root")
def test_files_are_written_once_with_their_modes(tmp_path):
    made = tree(definition(), tmp_path)
    target = tmp_path / "etc/deep/secret"
    write = {"write_files": {"files": [{"path": str(target), "content": "x\n", "mode": "0440"}]}}
    tasks = [
        {**write, "register": "first"},
        {**write, "register": "second"},
        {"ansible.builtin.assert": {"that": ["first is changed", "second is not changed"]}},
    ]
    play(tmp_path, tasks, made)
    assert target.read_text() == "x\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o440
    assert [path.name for path in target.parent.iterdir()] == ["secret"]


@pytest.mark.skipif(os.geteuid() != 0, reason="write_files gives what it writes to root")
def test_files_have_their_text_to_the_byte_and_are_nothing_else(tmp_path):
    made = tree(definition(), tmp_path)
    texts = {
        "quotes": 'it\'s "$HOME" `id` \\n %s\n',
        "empty": "",
        "no end of line": "é",
        "-n": "-n",
        "long": "x" * 300_000,
    }
    for name in ("quotes", "empty"):
        (tmp_path / name).symlink_to("/dev/null")
    (tmp_path / "long").mkdir()
    (tmp_path / "long/-n").write_text("-n")
    (tmp_path / "long/-n").chmod(0o600)
    files = [{"path": str(tmp_path / "long" / name), "content": text} for name, text in texts.items()]
    files += [{"path": str(tmp_path / name), "content": texts[name]} for name in ("quotes", "empty")]
    tasks = [
        {"write_files": {"files": files}, "check_mode": True, "register": "said"},
        {"ansible.builtin.assert": {"that": ["said.written | length == 7"]}},
        {"ansible.builtin.stat": {"path": str(tmp_path / "long/quotes")}, "register": "found"},
        {"ansible.builtin.assert": {"that": ["not found.stat.exists"]}},
        {"write_files": {"files": files}, "register": "first"},
        {"write_files": {"files": files}, "register": "second"},
        {"ansible.builtin.assert": {"that": ["first.written == said.written", "second.written == []"]}},
    ]
    play(tmp_path, tasks, made)
    for one in files:
        assert Path(one["path"]).read_bytes() == one["content"].encode()
        assert stat.S_IMODE(Path(one["path"]).lstat().st_mode) == 0o644
        assert not Path(one["path"]).is_symlink()


def test_a_mode_that_yaml_took_for_a_number_is_refused(tmp_path):
    made = tree(definition(), tmp_path)
    files = [{"path": str(tmp_path / "x"), "content": "", "mode": 0o644}]
    tasks = [
        {"write_files": {"files": files}, "register": "told", "ignore_errors": True},
        {"ansible.builtin.assert": {"that": ["told is failed and 'in quotes' in told.msg"]}},
    ]
    play(tmp_path, tasks, made)
    assert not (tmp_path / "x").exists()


def test_a_script_runs_with_its_values_and_says_what_it_changed(tmp_path):
    made = tree(definition(), tmp_path)
    script = f'set -eu\n# {"x" * 200_000}\ncat\n[ -z "$MORE" ] || printf \'%s\\n\' "$MORE"\nexit $STATUS\n'

    def task(status: int, more: str, name: str) -> dict[str, object]:
        environment = {"MORE": more, "STATUS": str(status)}
        return {"run_script": {"script": script}, "environment": environment, "register": name}

    tasks = [
        task(0, "", "quiet"),
        task(0, "it's:\nchanged: /etc/motd", "loud"),
        {**task(3, "out of order", "failed"), "ignore_errors": True},
        {**task(0, "changed: x", "skipped"), "check_mode": True},
        {
            "ansible.builtin.assert": {
                "that": [
                    "quiet is not changed and quiet.stdout == ''",
                    "loud is changed and loud.stdout_lines == [\"it's:\", 'changed: /etc/motd']",
                    "failed is failed and failed.rc == 3 and failed.stdout == 'out of order\\n'",
                    "skipped is skipped and skipped is not changed",
                ]
            }
        },
    ]
    play(tmp_path, tasks, made)


@pytest.mark.skipif(os.geteuid() != 0, reason="tar gives files to root")
def test_a_script_finds_a_folder_as_a_tar_that_goes_with_the_task(tmp_path):
    made = tree(definition(), tmp_path)
    sent = tmp_path / "a folder"
    (sent / "opt").mkdir(parents=True)
    (sent / "opt/run").write_text("#!/bin/sh\n")
    (sent / "opt/run").chmod(0o750)
    (sent / "opt/link").symlink_to("run")
    os.chown(sent / "opt/run", 1000, 1000)
    os.utime(sent / "opt/run", (1_700_000_000.5, 1_700_000_000.5))
    listed = f'tar -tv --numeric-owner --full-time -f "$ARCHIVE"; echo "$ARCHIVE" >{tmp_path}/place'
    tasks = [
        {
            "run_script": {"script": listed, "folder": str(sent)},
            "register": "found",
            "environment": {"TZ": "UTC"},
        },
        {"ansible.builtin.copy": {"dest": str(tmp_path / "listed"), "content": "{{ found.stdout }}"}},
    ]
    play(tmp_path, tasks, made)
    lines = [line.split() for line in (tmp_path / "listed").read_text().splitlines()]
    assert [line[-1] for line in lines] == ["./", "./opt/", "run", "./opt/run"]
    assert {line[1] for line in lines} == {"0/0"}
    assert lines[3][0] == "-rwxr-x---"
    assert lines[3][3:5] == ["2023-11-14", "22:13:20"]
    assert not Path((tmp_path / "place").read_text().strip()).exists()


def test_the_definitions_files_stand_where_they_will(tmp_path):
    app = tmp_path / "app"
    (app / "__pycache__").mkdir(parents=True)
    (app / "__pycache__/x.pyc").touch()
    (app / "run").write_text("#!/bin/sh\n")
    (app / "run").chmod(0o775)
    (app / "link").symlink_to("run")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o644)
    files = [{"from": "app/", "to": "/opt/web"}, {"from": "secret", "to": "/etc/web/key", "mode": "0640"}]
    made = tree(definition(files=files), tmp_path)
    root = made.folder / "files"
    modes = {
        str(path.relative_to(root)): "link" if path.is_symlink() else f"{stat.S_IMODE(path.stat().st_mode):o}"
        for path in root.rglob("*")
    }
    assert modes == {
        "opt": "755",
        "opt/web": "755",
        "opt/web/run": "755",
        "opt/web/link": "link",
        "etc": "755",
        "etc/web": "755",
        "etc/web/key": "640",
    }


def test_the_key_of_a_build_is_its_own_and_private(tmp_path):
    first, second = tree(definition(), tmp_path, into="one"), tree(definition(), tmp_path, into="two")
    key = first.folder / "ssh/id_ed25519"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert process.run(["ssh-keygen", "-y", "-f", key]).stdout.split()[:2] == first.public_key.split()[:2]
    assert first.public_key != second.public_key


def test_the_digest_is_of_what_every_host_has_alike(tmp_path):
    here = tree(definition(), tmp_path, into="one")
    elsewhere = tree(
        definition(), tmp_path, into="two", payload=Path("/other.iso"), acceleration="kvm", memory_mib=4096
    )
    changed = tree(definition(summary="another"), tmp_path, into="three")
    assert here.digest() == elsewhere.digest()
    assert here.digest() != changed.digest()


def test_a_role_of_the_project_joins_the_playbook(tmp_path):
    role = tmp_path / "playbooks/roles/custom/tasks/main.yml"
    role.parent.mkdir(parents=True)
    role.write_text("- ansible.builtin.debug: {msg: hello}\n")
    made = tree(definition(roles=["custom"]), tmp_path)
    assert (made.folder / "playbook/roles/custom/tasks/main.yml").is_file()
    assert (made.folder / "playbook/roles/seal/tasks/main.yml").is_file()


def test_a_role_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match="there is no role 'custom'"):
        tree(definition(roles=["custom"]), tmp_path)


def test_a_path_that_packer_would_expand_is_refused(tmp_path):
    with pytest.raises(UsageError, match="Packer cannot name the path"):
        tree(definition(), tmp_path, payload=Path("/cache/{{x}}/payload.iso"))

"""Rendering: a value of a definition is that value wherever it lands, and never a piece of another language."""

import json

import jinja2
import pytest
import yaml

from conda_appliance import playbook, render, trees
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.lock import CondaSection, Lock

NASTY = (
    "a\"b'c\\d ${path.root} %{if true} {{ lookup('pipe', 'id') }} $(id) `id` %n # end\nuser: root\t\x07é😀"
)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZq"
LOCK = Lock(name="box", digest="0" * 64, tools={}, conda=CondaSection(virtual_packages=(), environments={}))


def definition(**changed):
    plain = {
        "name": "box",
        "version": "1.10",
        "base": {"debian": "trixie"},
        "conda": {"channels": ["conda-forge"], "environments": {"base": {"dependencies": ["python"]}}},
    }
    return ImageDefinition.model_validate(plain | changed)


def variables(tmp_path, **changed):
    return playbook.variables(definition(**changed), LOCK, tmp_path)


def test_hcl_strings_are_literal():
    assert render.hcl("a ${b} %{c} $${d}") == '"a $${b} %%{c} $$${d}"'
    assert render.hcl('say "hi"\n\\') == '"say \\"hi\\"\\n\\\\"'
    assert render.hcl("\x07é😀") == '"\\u0007é😀"'


def test_yaml_strings_are_literal():
    assert yaml.safe_load(f"key: {render.yaml_string(NASTY)}") == {"key": NASTY}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", '"plain"'),
        ("100%", '"100%%"'),
        ("$HOME", '"$$HOME"'),
        ('a "b" \\c', '"a \\"b\\" \\\\c"'),
        ("a;b", '"a;b"'),
    ],
)
def test_words_of_a_unit_mean_themselves(value, written):
    assert render.systemd_word(value) == written


def test_a_units_variable_keeps_its_dollar():
    assert render.systemd_variable("PRICE", '5$ "each" 50%') == '"PRICE=5$ \\"each\\" 50%%"'


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/opt/conda", "opt-conda.mount"),
        ("/run/appliances/my-app", r"run-appliances-my\x2dapp.mount"),
        ("/opt/.hidden/v1.2", r"opt-.hidden-v1.2.mount"),
        ("/.hidden", r"\x2ehidden.mount"),
    ],
)
def test_a_mount_unit_is_named_as_systemd_names_it(path, unit):
    assert render.systemd_unit(path, "mount") == unit


def test_every_string_for_ansible_is_unsafe():
    written = render.ansible_variables({"a": {"b": [NASTY, 1, True, None]}, "c": ()})
    events = [event for event in yaml.parse(written) if isinstance(event, yaml.ScalarEvent)]
    strings = {event.value: event.tag for event in events if event.value in (NASTY, "a", "b", "c")}
    assert strings == {"a": None, "b": None, "c": None, NASTY: "!unsafe"}


def test_a_template_with_an_unknown_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="host_name"):
        render.text("cloud-init/meta-data.j2", instance_id="i-1")


def test_a_seed_names_the_keys_of_the_default_user():
    files = render.seed_files(host_name="box", instance_id=NASTY, public_keys=[KEY, f"{KEY} {NASTY}"])
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": NASTY, "local-hostname": "box"}
    assert files["user-data"].startswith("#cloud-config\n")
    read = yaml.safe_load(files["user-data"])
    assert read["ssh_authorized_keys"] == [KEY, f"{KEY} {NASTY}"]
    assert read["ssh_pwauth"] is False
    assert "users" not in read


def test_a_builds_seed_lets_root_in_and_makes_no_user():
    files = render.seed_files(host_name="box", instance_id="i", public_keys=[KEY], root_login=True)
    read = yaml.safe_load(files["user-data"])
    assert read["disable_root"] is False
    assert [user["name"] for user in read["users"]] == ["root"]
    assert read["users"][0]["ssh_authorized_keys"] == [KEY]
    assert "ssh_authorized_keys" not in read


def test_a_command_is_split_and_found_in_its_environment(tmp_path):
    environments = {"base": {"dependencies": ["python"]}, "web": {"dependencies": ["python"]}}
    service = {
        "name": "web",
        "command": "serve --title 'Hello $USER 100%'",
        "environment": "web",
        "variables": {"MESSAGE": 'say "hi"'},
        "port": 80,
    }
    made = variables(
        tmp_path,
        services=[service],
        conda={"channels": ["conda-forge"], "environments": environments, "prefix": "/opt/c"},
    )["services"][0]
    assert made["program"] == "/opt/c/envs/web/bin/serve"
    assert made["exec_start"] == '"/opt/c/envs/web/bin/serve" "--title" "Hello $$USER 100%%"'
    assert made["variables"] == ['"MESSAGE=say \\"hi\\""']
    assert made["low_port"] is True


def test_a_command_with_an_open_quote_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the command of 'web' cannot be read: No closing quotation"):
        variables(tmp_path, services=[{"name": "web", "command": "serve 'x"}])


def test_channels_of_the_host_do_not_reach_the_machine(tmp_path):
    channels = [
        "starter",
        "./channel",
        "/srv/c",
        "~/c",
        "file:///srv/c",
        "conda-forge",
        "https://conda.example/x",
    ]
    conda = {"channels": channels, "environments": {"base": {"dependencies": ["python"]}}}
    assert variables(tmp_path, conda=conda)["conda"]["channels"] == ["conda-forge", "https://conda.example/x"]


def test_a_machine_tells_what_it_is():
    facts = json.loads(playbook.appliance_facts(definition(summary=NASTY), LOCK, "c0ffee"))
    assert facts["name"] == "box"
    assert facts["version"] == "1.10"
    assert facts["summary"] == NASTY
    assert facts["environments"] == {"base": {"prefix": "/opt/conda"}}
    assert (facts["build"], facts["lock"]) == ("c0ffee", LOCK.digest)


def test_only_its_facts_name_a_build(tmp_path):
    for name, locked in (("one", LOCK), ("other", LOCK.model_copy(update={"digest": "1" * 64}))):
        playbook.tree(definition(), locked, folder=tmp_path, into=tmp_path / name, identity=name)
    one, other = (trees.listing(tmp_path / name, times=False) for name in ("one", "other"))
    assert {path for path in one if one[path] != other[path]} == {f"playbook/{playbook.FACTS}"}
    assert one.keys() == other.keys()


def test_public_keys_come_from_files_and_lines(tmp_path):
    (tmp_path / "team.pub").write_text(f"# the team\n\n{KEY} one\n{KEY}  two\n")
    access = {"keys": ["team.pub", f"{KEY} three", f"{KEY} one"]}
    keys = playbook.public_keys(definition(access=access), tmp_path)
    assert keys == [f"{KEY} one", f"{KEY} two", f"{KEY} three"]


def test_a_key_cannot_bring_a_second_line(tmp_path):
    keys = playbook.public_keys(definition(access={"keys": [f"{KEY} me\nssh-rsa AAAA intruder"]}), tmp_path)
    assert keys == [f"{KEY} me ssh-rsa AAAA intruder"]


def test_a_private_key_is_refused(tmp_path):
    (tmp_path / "id").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n")
    with pytest.raises(UsageError, match="holds no public key"):
        playbook.public_keys(definition(access={"keys": ["id"]}), tmp_path)

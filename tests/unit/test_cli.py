"""What the command line answers without building anything: exit codes, one clear message, stdout for results."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path

import pytest

from conda_appliance import ansible, cli, definition, lock, runs, schema

ROOT = Path(__file__).parents[2]
VERBS = [
    "init",
    "validate",
    "show",
    "schema",
    "lock",
    "fetch",
    "render",
    "build",
    "boot",
    "ssh",
    "check",
    "disc",
    "clean",
]


def run(*words: str) -> int:
    try:
        return cli.main(words)
    except SystemExit as ended:  # argparse's own way out
        return int(ended.code or 0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_each_verb_is_known_by_the_module_that_is_loaded_for_it() -> None:
    for module, verbs in cli.VERBS.items():
        choices = argparse.ArgumentParser().add_subparsers()
        importlib.import_module(f"conda_appliance.{module}").add(choices)
        assert tuple(choices.choices) == verbs, module


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    said = capsys.readouterr().out
    assert "exit codes:" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", ["payload", "seed", "ls", "verify", "write"])
def test_every_kind_of_disc_explains_itself_with_an_example(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("disc", kind, "--help") == 0
    said = capsys.readouterr().out
    assert "conda-appliance disc" in said and "example" in said and "exit codes:" in said


def test_a_disc_is_asked_for_by_its_image_then_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["disc", "nowhere", "payload"], ["disc", "payload", "nowhere"]):
        assert run(*words) == 2
        assert "nothing is built for 'nowhere'" in capsys.readouterr().err.replace("\n", " ")
    assert run("disc", "nowhere", "--help") == 2
    assert "payload" in capsys.readouterr().err, "what may stand there is told"


def test_what_is_no_disc_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.iso").write_text("no disc")
    for words in (["disc", "ls", "x.iso"], ["disc", "verify", "x.iso"], ["disc", "ls", "gone.iso"]):
        assert run(*words) == 1
        said = capsys.readouterr()
        assert "cannot be read as a disc" in said.err and said.out == ""
    assert run("disc", "write", "x.iso", "/dev/not-there") == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [[], ["nope"], ["build"], ["boot", "x", "--port", "99999"], ["check", "x", "--memory", "1GB"]]
)
def test_wrong_usage_is_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert capsys.readouterr().out == ""


def test_validate_tells_every_mistake_of_every_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("nme: x\n")
    (tmp_path / "b.yaml").write_text("")
    assert run("validate", "a.yaml", "b.yaml", str(ROOT / "images/hello.yaml")) == 2
    said = capsys.readouterr()
    assert "a.yaml:1:1: nme: unknown key; perhaps you meant 'name'" in said.out
    assert "b.yaml:1:1: the file is empty" in said.out
    assert "hello.yaml: valid" in said.err
    assert run("validate", "--json", "a.yaml") == 2
    assert {one["path"] for one in json.loads(capsys.readouterr().out)} >= {"nme", "name"}


def test_show_tells_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "--json", str(ROOT / "images/hello.yaml")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["access"]["user"] == "admin"
    assert shown["files"][0]["from"] == "hello/app/"


def test_schema_and_reference_come_from_one_declaration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out) == schema.schema()
    assert run("schema", "--markdown") == 0
    reference = capsys.readouterr().out
    for name in definition.ImageDefinition.model_fields:
        assert f"| `{name}` |" in reference


def test_the_reference_pages_are_up_to_date() -> None:
    docs = ROOT / "docs/reference"
    assert (docs / "definition.md").read_text() == schema.reference(), "make docs"
    assert json.loads((docs / "definition.schema.json").read_text()) == schema.schema(), "make docs"


@pytest.mark.parametrize("verb", ["build", "fetch", "render"])
def test_no_lock_is_exit_3_with_the_command(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("init", "myapp")
    capsys.readouterr()
    assert run(verb, "images/myapp.yaml") == 3
    said = capsys.readouterr().err
    assert "there is no lock images/myapp.lock" in said
    assert "conda-appliance lock images/myapp.yaml" in said


def test_a_stale_lock_is_exit_3_with_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("init", "myapp")
    empty = lock.CondaSection(virtual_packages=(), environments={})
    lock.write(lock.Lock(name="myapp", digest="0" * 64, tools={}, conda=empty), Path("images/myapp.lock"))
    capsys.readouterr()
    assert run("build", "images/myapp.yaml") == 3
    said = capsys.readouterr().err
    assert "stale" in said
    assert "conda-appliance lock images/myapp.yaml" in said


def test_a_missing_host_tool_is_exit_4_with_its_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init", "myapp")
    path = Path("images/myapp.yaml")
    digest = definition.lock_digest(path, definition.load_image(path))
    empty = lock.CondaSection(virtual_packages=(), environments={})
    lock.write(lock.Lock(name="myapp", digest=digest, tools={}, conda=empty), Path("images/myapp.lock"))
    monkeypatch.setattr("shutil.which", lambda *_a, **_k: None)
    capsys.readouterr()
    assert run("build", str(path)) == 4
    said = capsys.readouterr().err
    assert "mmdebstrap" in said
    assert "apt-get install" in said
    assert "qemu-system-x86" in said


def test_init_writes_a_valid_appliance_and_never_over_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "my-app") == 0
    written = capsys.readouterr().out.split()
    assert "images/my-app.yaml" in written
    assert run("validate", "images/my-app.yaml") == 0
    assert Path("images/my-app/app/my_app.py").is_file()
    Path("images/my-app.yaml").write_text("mine")
    assert run("init", "my-app") == 2
    assert Path("images/my-app.yaml").read_text() == "mine"
    assert "not overwritten" in capsys.readouterr().err


def test_init_refuses_a_name_that_no_definition_may_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("init", "../Evil") == 2
    assert "is not a name" in capsys.readouterr().err
    assert list(Path().iterdir()) == [] or not list(Path().rglob("*.yaml"))


def test_nothing_built_is_said_with_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("boot", "check"):
        assert run(verb, "hello") == 2
        said = capsys.readouterr().err
        assert "nothing is built for 'hello'" in said
        assert "conda-appliance build" in said
    assert run("ssh", "hello") == 2


def test_clean_takes_leftovers_and_caches_and_leaves_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ansible, "_parent", lambda: tmp_path)
    pid, start, namespace = runs.mark().split(":")
    left, used = (tmp_path / f"conda-appliance-{pid}-{at}-{namespace}-x" for at in (int(start) + 1, start))
    left.mkdir()
    used.mkdir()
    result = tmp_path / "out/hello/abc"
    result.mkdir(parents=True)
    (result / "hello.qcow2").write_text("x")
    (tmp_path / "out/hello/latest").symlink_to("abc")
    (tmp_path / "out/hello/.def.partial").mkdir()
    (tmp_path / "out/hello/.def.partial.lock").touch()
    (tmp_path / "out/mine").mkdir()
    (tmp_path / "cache/blobs").mkdir(parents=True)
    assert run("clean", "--leftovers") == 0
    assert used.is_dir() and not left.exists(), "a killed run's; one that runs keeps its own"
    assert sorted(path.name for path in (tmp_path / "out/hello").iterdir()) == ["abc", "latest"]
    assert (tmp_path / "cache/blobs").is_dir()
    assert run("clean") == 0
    assert list((tmp_path / "cache").iterdir()) == []
    assert (result / "hello.qcow2").is_file()
    assert run("clean", "--results") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("shell", "files"), [("bash", "_shtab_compgen_files"), ("zsh", "_files"), ("tcsh", "/f/")]
)
def test_shells_complete(shell: str, files: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--print-completion", shell) == 0
    script = capsys.readouterr().out
    assert "validate" in script
    assert files in script


def test_a_shell_without_completion_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--print-completion", "cmd") == 2
    assert "no completion for cmd, but for bash" in capsys.readouterr().err

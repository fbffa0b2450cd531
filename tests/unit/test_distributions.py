"""What a definition may say of Miniforge, Miniconda and other installers."""

from __future__ import annotations

from pathlib import Path

import pytest

from conda_appliance import definition, playbook
from conda_appliance.errors import DefinitionError

HEAD = "name: hello\nversion: 1.0\nbase: {debian: trixie}\nconda:\n  channels: [conda-forge]\n"


def load(tmp_path: Path, conda: str, head: str = HEAD) -> definition.ImageDefinition:
    path = tmp_path / "x.yaml"
    path.write_text(head + "".join(f"  {line}\n" for line in conda.splitlines()))
    return definition.load_image(path)


def refused(tmp_path: Path, conda: str, head: str = HEAD) -> str:
    with pytest.raises(DefinitionError) as caught:
        load(tmp_path, conda, head)
    return str(caught.value)


def test_a_distribution_is_the_environment_base(tmp_path: Path) -> None:
    made = load(tmp_path, "distribution: miniforge")
    base = made.conda.environments["base"].distribution
    assert base is not None and base.name == "miniforge" and base.version is None


def test_other_environments_live_beside_it(tmp_path: Path) -> None:
    made = load(
        tmp_path,
        "distribution: {name: miniforge, version: 25.9.1-0}\nenvironments:\n  app: {dependencies: [python]}",
    )
    assert [*made.conda.environments] == ["base", "app"]
    assert made.prefix_of("app") == "/opt/conda/envs/app"


def test_it_may_be_an_environment_of_any_name(tmp_path: Path) -> None:
    made = load(tmp_path, "environments:\n  tools: {distribution: {name: miniforge}}")
    assert made.conda.environments["tools"].distribution is not None


@pytest.mark.parametrize(
    ("conda", "why"),
    [
        (
            "distribution: miniforge\nenvironments:\n  base: {dependencies: [python]}",
            "makes the environment 'base'",
        ),
        ("distribution: miniconda", "ask organisations of more than 200 people"),
        (
            f"distribution: {{installer: https://repo.anaconda.com/miniconda/M.sh, sha256: {'0' * 64}}}",
            "ask organisations of more than 200 people",
        ),
        ("distribution: {installer: https://example.com/M.sh}", "give its 'sha256'"),
        ("distribution: {installer: https://example.com/M.exe}", "no installer for Linux"),
        ("distribution: {name: miniforge, sha256: " + "0" * 64 + "}", "'sha256' goes with 'installer'"),
        ("distribution: {name: miniforge, mirror: 'https://x/y'}", "give the 'version'"),
        ("distribution: {version: 1.0}", "give one of 'name'"),
        ("environments:\n  base: {distribution: {name: miniforge}, pip: [flask]}", "'pip' would change"),
        ("distribution: none", "give 'environments', or a 'distribution'"),
        (
            "distribution: {name: miniforge, version: 1.0, mirror: 'https://x/t/abc-def/y'}",
            "holds a password or token",
        ),
        (
            f"distribution: {{installer: 'https://me:secret@x/M.sh', sha256: {'0' * 64}}}",
            "holds a password or token",
        ),
        (
            "distribution: miniforge\nsettings: {channel_alias: 'https://me:secret@x'}",
            "holds a password or token",
        ),
        ("distribution: miniforge\nsettings: {channels: conda-forge}", "settings.channels is a list"),
        (
            "distribution: miniforge\nsettings: {channels: [defaults]}",
            "ask organisations of more than 200 people",
        ),
        ("distribution: {installer: ./gone.sh}", "gone.sh"),
    ],
)
def test_what_cannot_be_is_refused_at_once(tmp_path: Path, conda: str, why: str) -> None:
    assert why in refused(tmp_path, conda)


def test_miniconda_takes_a_word_about_its_licence(tmp_path: Path) -> None:
    made = load(tmp_path, "distribution: miniconda\naccept: [anaconda-tos]")
    assert made.conda.environments["base"].distribution is not None


def test_it_needs_a_system_that_is_known_before_the_build(tmp_path: Path) -> None:
    head = HEAD.replace("{debian: trixie}", f"{{image: {{url: 'https://x/y.img', sha256: {'0' * 64}}}}}")
    assert "for a 'debian' base only" in refused(tmp_path, "distribution: miniforge", head)


def test_a_definition_without_one_asks_for_the_lock_that_it_always_did(tmp_path: Path) -> None:
    made = load(tmp_path, "environments:\n  base: {dependencies: [python]}")
    before = definition.lock_digest(tmp_path / "x.yaml", made)
    assert before == "b4a5dbae3d7d450a21a5af80a87937d5fc67e7741e772346ec25f15c2bfae904"
    other = load(
        tmp_path, "environments:\n  base: {dependencies: [python]}\nsettings: {channel_priority: strict}"
    )
    assert definition.lock_digest(tmp_path / "x.yaml", other) == before


def test_the_machines_settings_may_name_other_channels(tmp_path: Path) -> None:
    plain = "environments:\n  base: {dependencies: [python]}\n"
    assert playbook.machine_channels(load(tmp_path, plain)) == ["conda-forge"]
    made = load(
        tmp_path, plain + "settings: {channels: ['https://conda.example.com/main'], always_yes: true}"
    )
    assert playbook.machine_channels(made) == ["https://conda.example.com/main"]
    assert made.conda.settings["always_yes"] is True

"""What an environment of a pixi workspace asks for: files as projects have them, by pixi's own documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from conda_appliance import contract, environments, workspace
from conda_appliance.contract import Contract
from conda_appliance.definition_conda import Environment
from conda_appliance.errors import UsageError

#: A service with a GPU variant, tests and docs beside it.
PIXI = """\
[workspace]
name = "forecast"
version = "2.1.0"
authors = ["Somebody <somebody@example.org>"]
channels = ["conda-forge", {channel = "https://x/internal", priority = 1}]
platforms = ["linux-64", "osx-arm64"]
channel-priority = "strict"
requires-pixi = ">=0.40"

[tasks]
start = "python main.py"
test = {cmd = "pytest", env = {A = "1"}}

[dependencies]
python = "3.13.*"
numpy = {version = ">=2", build = "py313*", channel = "conda-forge"}
anything = "*"

[build-dependencies]
cmake = ">=3.26"
[host-dependencies]
zlib = "*"

[constraints]
openssl = ">=3.0"

[pypi-dependencies]
bottle = ">=0.13"
requests = {version = "*", extras = ["socks"]}
colorama = {version = "*", env-markers = "sys_platform == 'win32'"}

[pypi-options]
no-build-isolation = ["detectron2"]
index-url = "https://pypi.org/simple/"

[target.unix.dependencies]
shell = "1.*"
[target.linux.dependencies]
systemd = "*"
shell = "2.*"
[target.linux-64.dependencies]
systemd = ">=250"
[target.linux-64.constraints]
openssl = ">=3.0.7"
[target.osx-arm64.dependencies]
metal = "*"

[feature.gpu]
platforms = ["linux-64"]
channels = ["nvidia", {channel = "pytorch", priority = -1}]
system-requirements = {cuda = "12.1", libc = {family = "glibc", version = "2.28"}}
[feature.gpu.dependencies]
cuda = "12.*"
numpy = ">=2.1"
[feature.gpu.target.linux-64.dependencies]
nccl = "*"

[feature.mac]
platforms = ["osx-arm64"]

[feature.test.dependencies]
pytest = ">=8"
[feature.test.pypi-dependencies]
pytest-md = "*"

[environments]
gpu = ["gpu"]
lone = {features = ["gpu"], no-default-feature = true}
mac = ["mac"]
prod = {features = [], solve-group = "prod"}
test-prod = {features = ["test"], solve-group = "prod"}
mac-prod = {features = ["mac"], solve-group = "prod"}
"""


def read(
    tmp_path: Path,
    text: str = PIXI,
    *,
    select: str = "default",
    name: str = "pixi.toml",
    wheels: tuple[str, ...] = (),
    index: str | None = None,
) -> workspace.Wanted:
    (tmp_path / name).write_text(text)
    return workspace.read(tmp_path / name, select, "linux-64", wheels=wheels, index=index)


def with_(more: str, text: str = PIXI) -> str:
    """The workspace with tables or keys more; ``more`` names the table whose keys it adds."""
    table, _, keys = more.partition("\n")
    return (
        text.replace(f"{table}\n", f"{table}\n{keys}\n", 1) if f"{table}\n" in text else f"{text}\n{more}\n"
    )


# --- features, targets, machines --------------------------------------------------------------------


def test_the_default_environment_has_the_default_feature(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert found.specs == (
        "python 3.13.*",
        "conda-forge::numpy >=2 py313*",
        "anything",
        "zlib",
        "cmake >=3.26",
        "shell 2.*",
        "systemd >=250",
    )
    assert found.pip == ("bottle >=0.13", "requests[socks]", "colorama; sys_platform == 'win32'")
    assert found.constraints == ("openssl >=3.0.7",)
    assert found.channels == ("https://x/internal", "conda-forge")
    assert (found.needs, found.group) == ({}, None)


def test_what_several_features_ask_of_a_package_holds_together(tmp_path: Path) -> None:
    found = read(tmp_path, select="gpu")
    assert {"numpy >=2.1", "conda-forge::numpy >=2 py313*", "nccl", "python 3.13.*"} <= {*found.specs}
    assert read(tmp_path, select="lone").specs == ("cuda 12.*", "numpy >=2.1", "nccl")


def test_a_features_channels_go_before_the_workspaces_unless_their_priority_says_else(tmp_path: Path) -> None:
    found = read(tmp_path, select="gpu").channels
    assert found == ("https://x/internal", "nvidia", "conda-forge", "pytorch")


def test_what_a_feature_needs_of_the_machine_is_held_to_its_contract(tmp_path: Path) -> None:
    needs = read(tmp_path, select="gpu").needs
    assert needs == {"cuda": "12.1", "glibc": "2.28"}
    contract.require(Contract(glibc="2.36", cuda="12.4"), needs, "gpu")
    with pytest.raises(UsageError, match=r"gpu needs cuda 12\.1 of its machine, which has none"):
        contract.require(Contract(), needs, "gpu")
    with pytest.raises(UsageError, match=r"gpu needs glibc 2\.28 of its machine, which has 2\.17"):
        contract.require(Contract(glibc="2.17", cuda="12.4"), needs, "gpu")


PLATFORMS = """\
[workspace]
channels = ["conda-forge"]
platforms = [
  "linux-64",
  { name = "gpu-machine", platform = "linux-64", cuda = "12.0", glibc = "2.39", archspec = "x86_64_v3" },
  { name = "older", platform = "linux-64", __glibc = "2.17", linux = "3.10" },
  { platform = "osx-arm64", macos = "13.0" },
]
[dependencies]
python = "*"
[feature.gpu]
platforms = ["gpu-machine", "osx-arm64"]
[feature.old]
platforms = ["older"]
[feature.few]
platforms = ["older", "gpu-machine"]
[environments]
gpu = ["gpu"]
old = ["old"]
none = ["gpu", "old"]
few = ["few"]
"""


def test_a_machine_may_be_declared_with_its_platform(tmp_path: Path) -> None:
    """As pixi writes it now, in place of system-requirements."""
    found = {select: read(tmp_path, PLATFORMS, select=select).needs for select in ("default", "gpu", "old")}
    assert found == {
        "default": {},
        "gpu": {"cuda": "12.0", "glibc": "2.39", "arch_level": "x86-64-v3"},
        "old": {"glibc": "2.17", "kernel": "3.10"},
    }
    with pytest.raises(UsageError, match="'none' is not for linux-64"):
        read(tmp_path, PLATFORMS, select="none")
    with pytest.raises(UsageError, match="'few' is for several machines of linux-64: gpu-machine, older"):
        read(tmp_path, PLATFORMS, select="few")


def test_of_what_several_say_of_the_machine_the_highest_is_needed(tmp_path: Path) -> None:
    text = with_('[system-requirements]\ncuda = "9.10"\nlinux = "5.10"\narchspec = "x86_64_v2"\nmacos = "13"')
    assert read(tmp_path, text, select="gpu").needs["cuda"] == "12.1"
    assert read(tmp_path, text).needs == {"cuda": "9.10", "kernel": "5.10", "arch_level": "x86-64-v2"}


def test_environments_of_one_solve_group_ask_together(tmp_path: Path) -> None:
    prod, tested = (read(tmp_path, select=name) for name in ("prod", "test-prod"))
    assert prod.group == tested.group is not None, "but for those of other platforms"
    assert "pytest >=8" not in prod.specs and "pytest >=8" in prod.group.specs
    assert {*tested.specs} == {*prod.group.specs} and "pytest-md" in prod.group.pip


def test_what_only_others_of_a_solve_group_ask_for_is_passed_over_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = with_("[feature.test.pypi-dependencies]\nmine = {path = '.', editable = true}").replace(
        'gpu = ["gpu"]', 'gpu = {features = ["gpu"], solve-group = "prod"}'
    )
    prod = read(tmp_path, text, select="prod")
    assert prod.group is not None and "pytest >=8" in prod.group.specs
    assert "nccl" not in prod.group.specs, "whose machine has CUDA"
    said = capsys.readouterr().err
    assert "pypi-dependencies.mine cannot be honoured" in said and "solved without it" in said
    assert "'gpu' needs more of the machine than 'prod'" in said
    gpu = read(tmp_path, text, select="gpu")
    assert gpu.group is not None and {"nccl", "pytest >=8"} <= {*gpu.group.specs}
    with pytest.raises(UsageError, match=r"pypi-dependencies\.mine .* from source"):
        read(tmp_path, text, select="test-prod")


def test_what_features_of_other_environments_say_is_no_matter(tmp_path: Path) -> None:
    text = with_("[feature.gpu.pypi-options]\nextra-index-urls = ['https://x']")
    assert read(tmp_path, text) == read(tmp_path)
    with pytest.raises(UsageError, match=r"feature\.gpu\.pypi-options\.extra-index-urls"):
        read(tmp_path, text, select="gpu")


# --- packages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "spec"),
    [
        ('"~=1.2.3"', "x ~=1.2.3"),
        ('">=1.2.3|<1.0.0"', "x >=1.2.3|<1.0.0"),
        ("{}", "x"),
        ('{ channel = "pytorch" }', "pytorch::x"),
        ('{ version = "3.11.0", build-number = ">=1" }', "x 3.11.0[build_number='>=1']"),
        ('{ build = "cuda*" }', "x * cuda*"),
        ('{ version = "2.*", license = "BSD-3-Clause", subdir = "noarch" }', None),
        ('{ file-name = "x-1-0.conda", sha256 = "aa" }', "x[fn='x-1-0.conda',sha256='aa']"),
    ],
)
def test_a_package_is_what_its_match_spec_says(tmp_path: Path, said: str, spec: str | None) -> None:
    found = read(tmp_path, with_(f"[dependencies]\nx = {said}")).specs
    assert (spec or "x 2.*[license='BSD-3-Clause',subdir='noarch']") in found


PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "My_Project"
version = "1.0"
requires-python = ">=3.11,<3.14"
dependencies = ["flask>=3", "colorama; sys_platform == 'win32'", "numpy"]
[project.optional-dependencies]
test = ["pytest"]
all = ["rich", "my-project[test]"]

[dependency-groups]
docs = ["sphinx"]
dev = ["ruff", {include-group = "Docs"}]

[tool.pixi.workspace]
channels = ["conda-forge"]
platforms = ["linux-64"]

[tool.pixi.pypi-dependencies]
my_project = { path = ".", editable = true }

[tool.pixi.dependencies]
numpy = "*"

[tool.pixi.feature.test.dependencies]
xvfb = "*"

[tool.pixi.environments]
default = {solve-group = "default"}
test = {features = ["test"], solve-group = "default"}
all = ["all"]
dev = {features = ["dev"], no-default-feature = true}
tools = ["test", "dev"]
"""


def project(tmp_path: Path, text: str = PYPROJECT, *, select: str = "default") -> workspace.Wanted:
    return read(tmp_path, text, name="pyproject.toml", select=select, wheels=("my_project",))


def test_a_pyproject_says_what_its_project_requires(tmp_path: Path) -> None:
    found = project(tmp_path)
    assert found.specs == ("numpy", "python >=3.11,<3.14")
    assert found.pip == ("flask>=3", "colorama; sys_platform == 'win32'", "numpy")
    pinned = PYPROJECT.replace('numpy = "*"', 'numpy = "*"\npython = "3.12.*"')
    assert project(tmp_path, pinned).specs == ("numpy", "python 3.12.*")


def test_its_extras_and_groups_are_features(tmp_path: Path) -> None:
    tested = project(tmp_path, select="test")
    assert "xvfb" in tested.specs and "pytest" in tested.pip and tested.group is not None
    assert {"rich", "pytest", "flask>=3"} <= {*project(tmp_path, select="all").pip}
    assert {"pytest", "ruff", "sphinx"} <= {*project(tmp_path, select="tools").pip}
    with pytest.raises(UsageError, match="'dev' has no dependencies"):
        project(tmp_path, select="dev")


def test_all_of_pixis_tables_may_stand_in_a_pyproject(tmp_path: Path) -> None:
    text = PIXI.replace("[", "[tool.pixi.", 1).replace("\n[", "\n[tool.pixi.")
    assert read(tmp_path, text, name="pyproject.toml") == read(tmp_path)
    old = text.replace("[tool.pixi.workspace]", "[tool.pixi.project]")
    assert read(tmp_path, old, name="pyproject.toml") == read(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('include-group = "Docs"', 'include-group = "none"', "dependency-groups has no 'none'"),
        ('include-group = "Docs"', 'include-group = "dev"', "dependency-groups.dev includes itself"),
        ('["pytest"]', '["my_project[all]"]', "includes itself"),
        ('["pytest"]', '["my_project[none]"]', "optional-dependencies has no 'none'"),
        ('["pytest"]', '["not a requirement"]', "'not a requirement', which is no requirement"),
        ('["sphinx"]', "[1]", "dependency-groups.docs has 1"),
    ],
)
def test_what_a_pyproject_says_wrongly_is_named(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        project(tmp_path, PYPROJECT.replace(before, after))


def test_a_project_from_its_own_folder_is_taken_as_the_wheel_that_is_given(tmp_path: Path) -> None:
    """What `pixi init` writes into every pyproject.toml."""
    with pytest.raises(UsageError, match=r"pypi-dependencies\.my_project .* from source") as caught:
        read(tmp_path, PYPROJECT, name="pyproject.toml")
    assert "pip: [dist/NAME.whl]" in caught.value.hint
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    wheel = "dist/my_project-1.0-py3-none-any.whl"
    asked = environments.read(Environment(file="pyproject.toml", pip=(wheel,)), tmp_path)
    assert asked.pip == ("flask>=3", "colorama; sys_platform == 'win32'", "numpy", wheel)
    assert asked.group is not None and wheel in asked.group.pip


def test_an_index_is_taken_where_it_is_the_definitions(tmp_path: Path) -> None:
    own = "https://pypi.example.com/simple"
    text = (
        PIXI.replace("https://pypi.org/simple/", own)
        + f'[feature.test.pypi-dependencies.x]\nindex = "{own}/"\n'
    )
    assert "x" in read(tmp_path, text, select="test-prod", index=own).pip
    with pytest.raises(
        UsageError, match=r"pypi-options\.index-url .* definition's index is https://pypi\.org"
    ):
        read(tmp_path, text)


def test_what_activation_would_do_is_said_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PIXI + '[feature.gpu.activation]\nscripts = ["setup.sh"]\n[feature.gpu.activation.env]\nA = "1"\n'
    read(tmp_path, text)
    assert capsys.readouterr().err == ""
    read(tmp_path, text, select="gpu")
    assert "nothing on a machine activates an environment" in capsys.readouterr().err


# --- refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "select", "message"),
    [
        ("[package]\n", "default", "is no pixi workspace"),
        ("[workspace\n", "default", "cannot be read as TOML"),
        (PIXI.replace('"linux-64", ', ""), "default", "platforms: osx-arm64"),
        (PIXI, "mac", "'mac' is not for linux-64"),
        (PIXI, "none", "has no environment 'none'; it has default, gpu, lone, mac, prod"),
        (
            PIXI.replace('gpu = ["gpu"]', 'gpu = ["missing"]'),
            "gpu",
            "a feature 'missing', which is not there",
        ),
        (PIXI.replace('"12.*"', "{path = '.'}"), "gpu", r"feature\.gpu\.dependencies\.cuda .* from source"),
        (
            with_("[build-dependencies]\nx = {git = 'https://x'}"),
            "default",
            r"build-dependencies\.x .* source",
        ),
        (
            with_("[dependencies]\nx = {url = 'https://x/x-1-0.conda'}"),
            "default",
            r"dependencies\.x .* channel",
        ),
        (
            with_("[dependencies]\nx = {workspace = true}"),
            "default",
            r"dependencies\.x .* workspace is not known",
        ),
        (with_("[pypi-dependencies]\nx = {git = 'https://x'}"), "default", r"pypi-dependencies\.x .* source"),
        (
            with_("[pypi-dependencies]\nx = {url = 'https://x/x.whl'}"),
            "default",
            r"pypi-dependencies\.x .* locked",
        ),
        (
            with_("[pypi-dependencies]\nx = {index = 'https://x'}"),
            "default",
            r"pypi-dependencies\.x .* index is",
        ),
        (
            with_("[pypi-options]\nextra-index-urls = ['https://x']"),
            "default",
            r"pypi-options\.extra-index-urls",
        ),
        (with_("[pypi-options]\nfind-links = [{path = 'l'}]"), "default", r"pypi-options\.find-links"),
        (with_("[pypi-options]\nno-binary = true"), "default", r"pypi-options\.no-binary"),
        (with_("[pypi-options]\nprerelease-mode = 'allow'"), "default", r"pypi-options\.prerelease-mode"),
        (
            with_("[pypi-options.dependency-overrides]\nx = '1'"),
            "default",
            r"pypi-options\.dependency-overrides",
        ),
        (with_("[feature.test]\nsolve-strategy = 'lowest'"), "test-prod", r"feature\.test\.solve-strategy"),
        (PIXI.replace('"strict"', '"disabled"'), "default", r"workspace\.channel-priority .* strictly"),
        (with_("[workspace]\nexclude-newer = '7d'"), "default", r"workspace\.exclude-newer"),
        (with_("[exclude-newer]\nx = '0d'"), "default", "exclude-newer .* is not known here"),
        (with_("[dev]\nx = {path = '.'}"), "default", "dev cannot be honoured"),
        (with_("[system-requirements]\nlibc = {family = 'musl', version = '1.2'}"), "default", r"\.libc"),
        (with_("[system-requirements]\narchspec = 'skylake'"), "default", "archspec = 'skylake'"),
        (with_("[system-requirements]\nvulkan = '1'"), "default", r"system-requirements\.vulkan"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    tmp_path: Path, text: str, select: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text, select=select)

"""What a definition may say, and how each mistake in one is told."""

import os
from pathlib import Path

import jsonschema
import pytest
import yaml

from conda_appliance import definition, definition_conda, definition_disc, schema, yamlfile
from conda_appliance.errors import DefinitionError, UsageError

GOOD = """\
name: hello
version: 1.10
base: {debian: trixie}
conda:
  channels: [conda-forge]
  environments:
    base: {dependencies: [python]}
"""


def load(tmp_path: Path, text: str | bytes) -> definition.ImageDefinition:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return definition.load_image(path)


def problems(tmp_path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        load(tmp_path, text)
    assert caught.value.exit_code == 2
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_defaults_fill_what_is_not_said(tmp_path: Path) -> None:
    made = load(tmp_path, GOOD)
    assert made.conda.prefix == "/opt/conda"
    assert made.disk.size == 4 * 1024**3
    assert made.formats == ("qcow2",)


def test_a_version_is_text_however_it_is_written(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).version == "1.10"
    assert load(tmp_path, GOOD.replace("1.10", "2")).version == "2"


def test_yaml_1_2_words_stay_words(tmp_path: Path) -> None:
    made = load(tmp_path, GOOD + "summary: no\n")
    assert made.summary == "no"


def test_every_shipped_definition_is_valid() -> None:
    root = Path(__file__).parents[2]
    images = list((root / "images").glob("*.yaml"))
    assert images
    for path in images:
        definition.load_image(path)
    for path in (root / "iso").glob("*.yaml"):
        definition_disc.load_disc(path)


def test_all_errors_come_at_once_with_place_and_suggestion(tmp_path: Path) -> None:
    text = GOOD.replace("channels:", "chanels:") + (
        "disk: {size: 4GB}\nservices:\n  - {name: web, command: x, port: 99999}\nacess: {user: admin}\n"
    )
    assert problems(tmp_path, text) == [
        "x.yaml:4:1: conda.channels: missing: this key is required",
        "x.yaml:5:3: conda.chanels: unknown key; perhaps you meant 'channels'",
        "x.yaml:8:8: disk.size: '4GB' is not a size; write for example 4GiB or 512MiB",
        "x.yaml:10:29: services[0].port: should be less than or equal to 65535, found 99999",
        "x.yaml:11:1: acess: unknown key; perhaps you meant 'access'",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("name: Hello World", "name: 'Hello World' is not a name"),
        ("name: '../../etc'", "name: '../../etc' is not a name"),
        ("base: {}", "base: give either 'debian' or 'image'"),
        ("base: {debian: buster}", "base.debian: 'buster' is not one of 'trixie' or 'bookworm'"),
        ("base: {debian: trixi}", "perhaps you meant 'trixie'"),
        ("base: {image: {url: 'https://x/y.qcow2'}}", "base.image.sha256: missing"),
        ("base: {image: {url: 'ftp://x/y', sha256: %s}}" % ("0" * 64), "only https, http and file URLs"),
        ("base: {image: {url: 'https://x/y', sha256: abc}}", "is not a SHA-256"),
        ("base: {debian: trixie, packages: ['curl; rm -rf /']}", "is not a Debian package name"),
        ("base: {debian: trixie, kernel: cluod}", "perhaps you meant 'cloud'"),
        (
            "base: {image: {url: 'https://x/y', sha256: %s}, kernel: generic}" % ("0" * 64),
            "'packages', 'mirror' and 'kernel' belong to a 'debian' base",
        ),
        ("installer: {disk: {}}", "installer.disk: name the disk by its model, serial, path or size"),
        ("installer: {disk: {path: /dev/disk/by-id/x}}", "installer.disk.path"),
        ("disk: {size: 10MiB}", "size must lie between 1GiB and 16TiB"),
        ("disk: {firmware: [coreboot]}", "'coreboot' is not one of 'bios' or 'uefi'"),
        ("access: {user: root}", "root does not log in"),
        ("access: {user: 'a b'}", "is not a Linux user name"),
        ("access: {keys: [nowhere.pub]}", "access.keys[0]: nowhere.pub is not there"),
        ("files: [{from: nowhere, to: /x}]", "files[0].from: nowhere is not there"),
        ("files: [{from: x.yaml, to: relative}]", "is not an absolute path"),
        ("files: [{from: x.yaml, to: /a/../etc}]", "is not an absolute path without '..'"),
        ("services: [{name: a, command: x, environment: other}]", "which is not defined (there is: base)"),
        ("services: [{name: a, command: x, port: 22}]", "port 22 of service 'a' is sshd's"),
        (
            "services: [{name: a, command: x, port: 80}, {name: b, command: x, port: 80}]",
            "port 80 of service 'b' is a's",
        ),
        ("services: [{name: a, command: x}, {name: a, command: y}]", "two services are named 'a'"),
        ('services: [{name: a, command: "x\\nExecStart=/bin/evil"}]', "holds a line break"),
        ("builder: magic", "'magic' is not one of 'packer' or 'rootfs'"),
        ("formats: [qcow]", "perhaps you meant 'qcow2'"),
        ("disc: {userspace: squash}", "perhaps you meant 'squashfs'"),
        ("checks: [nowhere/]", "checks[0]: nowhere/ is not there"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: str, said: str) -> None:
    key = change.partition(":")[0]
    kept = [line for line in GOOD.splitlines() if not line.startswith(f"{key}:")]
    told = problems(tmp_path, "\n".join([*kept, change, ""]))
    assert len(told) == 1
    assert said in told[0]
    assert "Traceback" not in told[0]


def test_a_cloud_image_must_boot_so_only_packer_builds_from_it(tmp_path: Path) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith("base:")]
    cloud = "\n".join([*lines, f"base: {{image: {{url: cloud.qcow2, sha256: {'0' * 64}}}}}", ""])
    (tmp_path / "cloud.qcow2").touch()
    (told,) = problems(tmp_path, cloud + "builder: rootfs\n")
    assert "builder: rootfs needs a Debian base; a cloud image must boot, which packer does" in told
    path = tmp_path / "cloud.yaml"
    path.write_text(cloud)
    image = definition.load_image(path)
    assert image.builder == "packer"
    with pytest.raises(UsageError, match=r"cloud\.yaml: builder: rootfs needs a Debian base"):
        definition.with_builder(path, image, "rootfs")


def test_another_builder_changes_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    image = definition.load_image(path)
    asked = definition.with_builder(path, image, "rootfs")
    assert asked.builder == "rootfs"
    assert asked.model_copy(update={"builder": image.builder}) == image


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"  \n", "the file is empty"),
        (b"# nothing\n", "only comments"),
        (b"\x7fELF\x00\xff\xfe\x80", "not UTF-8 text"),
        (b"a: \x00", "not valid YAML"),
        (b"a: [1, 2", "not valid YAML"),
        (b"- a\n- b\n", "a definition is a mapping"),
        (b"just words", "a definition is a mapping"),
        (b"a: 1\na: 2\n", "the key 'a' stands twice"),
        (b"a: &a\n  b: *a\n", "an alias refers to what contains it"),
        (b"a: !!python/object/apply:os.system ['true']\n", "has no meaning here"),
        (b"? [a, b]\n: c\n", "a key must be plain text"),
        (b"---\na: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: " + b"[" * 5000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_definition_is_refused_in_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    told = problems(tmp_path, content)
    assert len(told) == 1
    assert told[0].startswith("x.yaml:")
    assert said in told[0]


def test_a_laughing_billion_is_refused(tmp_path: Path) -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "values: this is not a definition" in problems(tmp_path, "\n".join(lines))[0]


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 100 << 20)
    with pytest.raises(DefinitionError, match="larger than 1 MiB"):
        definition.load_image(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="No such file"):
        definition.load_image(tmp_path / "none.yaml")
    with pytest.raises(DefinitionError, match="a folder, not a definition"):
        definition.load_image(tmp_path)


def test_the_json_schema_agrees_with_the_validator(tmp_path: Path) -> None:
    made = schema.schema()
    jsonschema.Draft202012Validator.check_schema(made)
    hello = yaml.load((Path(__file__).parents[2] / "images/hello.yaml").read_text(), yamlfile._Loader)
    jsonschema.validate({**hello, "version": "1.0.0"}, made)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**hello, "version": "1.0.0", "surprise": 1}, made)


def test_a_lock_answers_the_base_and_the_conda_section_only(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"

    def digest(text: str) -> str:
        path.write_text(text)
        return definition.lock_digest(path, definition.load_image(path))

    first = digest(GOOD)
    assert digest(GOOD + "summary: other words\n") == first
    assert digest(GOOD.replace("debian: trixie", "debian: trixie, kernel: cloud")) == first
    assert digest(GOOD.replace("debian: trixie", "debian: trixie, kernel: generic")) != first
    assert digest(GOOD.replace("[python]", "[python, numpy]")) != first
    assert digest(GOOD.replace("trixie", "bookworm")) != first


def test_a_changed_environment_file_makes_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD.replace("{dependencies: [python]}", "{file: environment.yml}"))
    environment = tmp_path / "environment.yml"
    environment.write_text("dependencies: [python]\n")
    first = definition.lock_digest(path, definition.load_image(path))
    environment.write_text("dependencies: [python, flask]\n")
    assert definition.lock_digest(path, definition.load_image(path)) != first


def test_checks_that_pytest_would_not_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def test_it(host): pass\n")
    (tmp_path / "folder").mkdir()
    path = tmp_path / "x.yaml"
    path.write_text(GOOD + "checks: [mine.py, folder]\n")
    with pytest.raises(DefinitionError) as caught:
        definition.load_image(path)
    assert [one.path for one in caught.value.problems] == ["checks[0]", "checks[1]"]
    assert "a check stands in a file named test_*.py" in str(caught.value)


@pytest.mark.parametrize(
    "channel",
    [
        "defaults",
        "main",
        "anaconda",
        "https://repo.anaconda.com/pkgs/main",
        "https://conda.anaconda.org/anaconda",
    ],
)
def test_anacondas_channels_need_a_word_about_their_licence(tmp_path: Path, channel: str) -> None:
    path = tmp_path / "x.yaml"
    text = GOOD.replace("channels: [conda-forge]", f"channels: ['{channel}']")
    assert text != GOOD
    path.write_text(text)
    with pytest.raises(
        DefinitionError, match=r"whose terms ask organisations of more than 200 people"
    ) as caught:
        definition.load_image(path)
    assert channel in str(caught.value) and "Use conda-forge" in str(caught.value)
    path.write_text(text.replace("channels:", "accept: [anaconda-tos]\n  channels:"))
    assert definition.load_image(path).conda.accept == ("anaconda-tos",)


def test_other_channels_do_not() -> None:
    assert not definition_conda.is_anacondas("conda-forge") and not definition_conda.is_anacondas(
        "https://x/pkgs/main"
    )


def test_a_lock_does_not_answer_what_is_only_said_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"

    def digest(text: str) -> str:
        path.write_text(text)
        return definition.lock_digest(path, definition.load_image(path))

    assert digest(GOOD.replace("channels:", "frozen: true\n  channels:")) == digest(GOOD)


def test_a_target_is_stated_by_its_numbers(tmp_path: Path) -> None:
    made = load(tmp_path, GOOD + "target: {glibc: 2.40, kernel: 6.10, arch_level: x86-64-v3, cuda: 12.10}\n")
    assert made.target.model_dump() == {
        "glibc": "2.40",
        "kernel": "6.10",
        "arch_level": "x86-64-v3",
        "cuda": "12.10",
    }


@pytest.mark.parametrize(
    "stated", ["glibc: '2'", "glibc: latest", "kernel: 6.1.0-41-amd64", "arch_level: haswell", "cuda: cu124"]
)
def test_a_target_that_is_no_number_is_refused(tmp_path: Path, stated: str) -> None:
    (problem,) = problems(tmp_path, GOOD + f"target: {{{stated}}}\n")
    assert f"target.{stated.split(':')[0]}" in problem


def test_a_lock_answers_the_target_and_old_locks_stay_valid(tmp_path: Path) -> None:
    def digest(more: str = "") -> str:
        return definition.lock_digest(tmp_path / "x.yaml", load(tmp_path, GOOD + more))

    asked = ["glibc: 2.28", "kernel: 5.10", "arch_level: x86-64-v2", "cuda: 12.4"]
    digests = {digest(), *(digest(f"target: {{{one}}}\n") for one in asked)}
    assert len(digests) == 5
    assert digest("target: {arch_level: x86-64-v1}\n") == digest()
    assert digest() == "b4a5dbae3d7d450a21a5af80a87937d5fc67e7741e772346ec25f15c2bfae904"


def test_a_machine_may_check_its_own_files_from_time_to_time(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).verify.timer is None
    made = load(tmp_path, GOOD + "verify: {timer: daily, ignore: [/opt/app/data]}\n")
    assert (made.verify.timer, made.verify.ignore) == ("daily", ("/opt/app/data",))
    (wrong,) = problems(tmp_path, GOOD + "verify: {timer: nightly}\n")
    assert "verify.timer" in wrong and "'daily'" in wrong
    (wrong,) = problems(tmp_path, GOOD + "verify: {ignore: [data]}\n")
    assert "verify.ignore" in wrong and "data" in wrong


def test_scripts_are_refused_unless_it_is_said_where_they_run(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).conda.post_link == "refuse"
    build = GOOD.replace("conda:\n", "conda:\n  post_link: build\n")
    assert load(tmp_path, build).conda.post_link == "build"
    image = "{image: {url: 'https://x.org/a.qcow2', sha256: " + "0" * 64 + "}}"
    (problem,) = problems(tmp_path, build.replace("{debian: trixie}", image))
    assert "a cloud image has none before it boots" in problem


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("formats: [qcow2, oci]\n", "the format oci is none"),
        ("builder: rootfs\ndisk: {layout: split, size: 8GiB}\n", "disk.layout: split and conda.frozen keep"),
    ],
)
def test_scripts_wait_for_a_first_boot_only_where_there_is_one(
    tmp_path: Path, more: str, message: str
) -> None:
    text = GOOD.replace("conda:\n", "conda:\n  post_link: first-boot\n")
    assert load(tmp_path, text + "formats: [qcow2, vmdk]\n").conda.post_link == "first-boot"
    (problem,) = problems(tmp_path, text + more)
    assert message in problem and "take conda.post_link: build" in problem

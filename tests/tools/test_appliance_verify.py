"""appliance-verify on a machine: sound after a build, and each thing that happened to its files is told by its path.

It runs in a root of its own, with a linked environment, the definition's files, and packages that dpkg installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import packages
import pytest
import small_machine
from small_machine import Machine
from tests.conftest import Folders

from conda_appliance import conda, first_boot, inventory, payload, process, resources
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

PROGRAM = resources.shipped() / "playbooks/roles/verify/files/appliance-verify"
EPOCH = 1_700_000_000
#: What it uses beside what any small machine has.
PROGRAMS = ("awk", "cmp", "dpkg", "find", "grep", "mktemp", "mv", "sed", "xargs")
#: What a role wrote, and no package.
SETTING = "/etc/systemd/system/app.service"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="looks at owners as root, in a root of its own")


def definition(**more: object) -> ImageDefinition:
    return ImageDefinition.model_validate(
        {
            "name": "demo",
            "version": "1.2",
            "base": {"debian": "trixie"},
            "conda": {
                "channels": ["./small"],
                "environments": {
                    "base": {"dependencies": ["pure"]},
                    "second": {"dependencies": ["prefixed"]},
                },
            },
            **more,
        }
    )


class Built:
    """The trees that a build puts together, made once."""

    def __init__(self, folder: Path) -> None:
        channel = packages.small_channel(folder / "channels/small")
        sections = {}
        for name, (spec, prefix) in {
            "base": ("pure", "/opt/conda"),
            "second": ("prefixed", "/opt/conda/envs/second"),
        }.items():
            found, virtual = conda.solve(
                [spec], [conda.Channel(name="./small", url=channel.as_uri())], contract=Contract(glibc="2.41")
            )
            sections[name] = EnvironmentSection(prefix=prefix, specs=(spec,), packages=found)
        lock = Lock(
            name="demo",
            digest="0" * 64,
            tools={},
            conda=CondaSection(virtual_packages=virtual, environments=sections),
        )
        archives = {
            one.sha256: Path(one.url.removeprefix("file://"))
            for section in sections.values()
            for one in section.packages
        }
        self.linked = payload.environment(lock, archives, store=Store(folder / "layers"), epoch=EPOCH)
        self.files = folder / "files"
        (self.files / "opt/app/sub dir").mkdir(parents=True)
        (self.files / "opt/app/run.sh").write_text("#!/bin/sh\n")
        (self.files / "opt/app/run.sh").chmod(0o755)
        (self.files / "opt/app/sub dir/ä\tb\nc").write_text("an awkward name\n")
        (self.files / "opt/app/latest").symlink_to("sub dir//")
        (self.files / "opt/conda/etc/app").mkdir(parents=True)
        (self.files / "opt/conda/etc/app/settings").write_text("in the environment\n")
        self.system = small_machine.make(folder / "system", systemd=False)
        (self.system / "tmp").chmod(0o1777)
        for name in PROGRAMS:
            small_machine.copy(self.system, process.find(name), f"/usr/bin/{name}")
        small_machine.copy(self.system, os.fspath(PROGRAM), "/usr/bin/appliance-verify")
        (self.system / SETTING[1:]).parent.mkdir(parents=True)
        (self.system / SETTING[1:]).write_text("[Service]\n")
        _dpkg_package(self.system)

    def onto(self, root: Path, image: ImageDefinition) -> Path:
        """A machine's root file system, as a builder leaves it."""
        for tree in (self.system, self.linked.path, self.files):
            process.run(["cp", "-a", f"{tree}/.", root])
        place = root / inventory.PLACE
        place.parent.mkdir(parents=True)
        place.write_text(inventory.text(image, self.linked, self.files), encoding="utf-8")
        # What roles add to an environment, and what a running machine keeps in one.
        (root / "opt/conda/.condarc").write_text("channels: []\n")
        (root / "opt/conda/conda-meta/frozen").write_text("{}\n")
        return root


def _dpkg_package(root: Path) -> None:
    """A package as dpkg knows it: a program, documentation that was left out, and a setting that the build changed."""
    contents = {
        "/usr/bin/hello": "#!/bin/sh\n",
        "/usr/share/doc/hello/copyright": "left out",
        "/etc/hello.conf": "of the package\n",
        "/etc/hello.more": "of the package\n",
    }
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    sums = {path: hashlib.md5(text.encode()).hexdigest() for path, text in contents.items()}
    settings = [path for path in contents if path.startswith("/etc")]
    (root / "var/lib/dpkg/status").write_text(
        "Package: hello\nStatus: install ok installed\nMaintainer: Nobody <nobody@example.org>\n"
        "Architecture: all\nVersion: 1\nDescription: says hello\nConffiles:\n"
        + "".join(f" {path} {sums[path]}\n" for path in settings)
    )
    (info / "hello.list").write_text("".join(f"{path}\n" for path in contents))
    (info / "hello.md5sums").write_text(
        "".join(f"{digest}  {path[1:]}\n" for path, digest in sums.items() if path not in settings)
    )
    for path, text in contents.items():
        if "/doc/" not in path:
            Path(f"{root}{path}").parent.mkdir(parents=True, exist_ok=True)
            Path(f"{root}{path}").write_text(text)
    (root / "etc/hello.conf").write_text("of the appliance\n")


@pytest.fixture(scope="module")
def built(folders: Folders) -> Built:
    return Built(folders.mktemp("built"))


@pytest.fixture
def machine(built: Built, tmp_path: Path) -> Iterator[Machine]:
    """A machine at the end of its build."""
    (tmp_path / "root").mkdir()
    (tmp_path / "disc").mkdir()
    made = Machine(root=built.onto(tmp_path / "root", definition()), disc=tmp_path / "disc")
    assert record(made) == [
        "changed: /usr/share/conda-appliance/system",
        "changed: /usr/share/conda-appliance/settings",
    ]
    yield made
    shutil.rmtree(tmp_path / "root")


def record(machine: Machine) -> list[str]:
    """What the end of the playbook does; what it says that it changed."""
    words = ("appliance-verify", "--record", "/usr/bin/appliance-verify", SETTING)
    return machine.run(*words).stdout.splitlines()


def verify(machine: Machine, *words: str, user: int = 0) -> tuple[int, list[str]]:
    done = machine.run("appliance-verify", *words, user=user, check=False)
    assert done.stderr == "" or "unread: only root" in done.stderr
    return done.returncode, done.stdout.splitlines()


def findings(machine: Machine, *words: str, user: int = 0) -> list[str]:
    """What it finds; that it says so with its exit code too."""
    code, lines = verify(machine, "--quiet", *words, user=user)
    assert code == (1 if lines else 0)
    return lines[:-1]  # the last one sums up


# --- sound ------------------------------------------------------------------------------------------


def test_a_machine_is_sound_when_it_is_built(machine: Machine) -> None:
    code, lines = verify(machine)
    assert code == 0, lines
    (summary,) = lines
    assert summary.startswith("demo 1.2: ") and summary.endswith(
        " files, 2 environments, system checked: all as built"
    )
    assert verify(machine, "--quiet") == (0, [])


def test_what_people_and_conda_keep_in_an_environment_is_no_finding(machine: Machine) -> None:
    inside = machine.root / "opt/conda"
    (inside / "conda-meta/history").write_text("==> a command <==\n")
    (inside / ".condarc").write_text("channels: [mine]\n")
    (inside / "conda-meta/frozen").unlink()
    (inside / "envs/theirs/bin").mkdir(parents=True)
    (inside / "envs/theirs/bin/tool").write_text("theirs\n")
    (inside / "envs/.conda_envs_dir_test").touch()
    (inside / "pkgs").mkdir()
    (inside / "pkgs/urls.txt").touch()
    assert findings(machine) == []


def test_a_setting_that_the_playbook_made_and_the_program_itself_are_checked(machine: Machine) -> None:
    (machine.root / SETTING[1:]).write_text("[Service]\nUser=root\n")
    with (machine.root / "usr/bin/appliance-verify").open("a") as file:
        file.write("# more\n")
    assert findings(machine) == [
        "changed /etc/systemd/system/app.service (content)",
        "changed /usr/bin/appliance-verify (content)",
    ]
    (machine.root / SETTING[1:]).unlink()
    assert "missing /etc/systemd/system/app.service" in findings(machine)


def test_what_comes_and_goes_in_var_is_no_finding(machine: Machine) -> None:
    with (machine.root / "var/lib/dpkg/info/hello.md5sums").open("a") as sums:
        sums.write("0" * 32 + "  var/cache/hello/index\n")
    with (machine.root / "var/lib/dpkg/info/hello.list").open("a") as names:
        names.write("/var/cache/hello/index\n")
    told = machine.run("dpkg", "--verify", check=False).stdout
    assert "/var/cache/hello/index" in told, "dpkg would tell it"
    assert findings(machine) == []


def test_nothing_is_written_while_it_checks(machine: Machine) -> None:
    before = machine.listing()
    verify(machine)
    verify(machine, "--json")
    assert machine.listing() == before


def test_the_records_are_the_same_bytes_each_time(machine: Machine, built: Built) -> None:
    records = machine.root / "usr/share/conda-appliance"
    before = {path.name: path.read_bytes() for path in records.iterdir()}
    assert set(before) == {"system", "settings"} and all(before.values())
    shutil.rmtree(records)
    record(machine)
    assert {path.name: path.read_bytes() for path in records.iterdir()} == before
    assert record(machine) == []
    text = inventory.text(definition(), built.linked, built.files)
    assert text == (machine.root / inventory.PLACE).read_text()


# --- an environment ---------------------------------------------------------------------------------


def test_each_thing_that_happened_to_an_environment_is_told_by_path(machine: Machine) -> None:
    inside = machine.root / "opt/conda"
    second = inside / "envs/second"
    site = next(inside.glob("lib/python3*/site-packages"))
    name = f"/{site.relative_to(machine.root)}"
    compiled = next(site.glob("pure/__pycache__/main.*.pyc"))
    with (second / "etc/prefixed.conf").open("r+b") as file:
        file.write(b"H")
    with compiled.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    (inside / "lib/libuser.so").unlink()
    (site / "pure/more.py").write_text("import os\n")
    (inside / "share/dangling").unlink()
    (inside / "share/dangling").symlink_to("elsewhere")
    (inside / "bin/prefixed").chmod(0o777)
    os.chown(inside / "etc/prefixed.conf", 1000, 0)
    (inside / "share/link-to-conf").unlink()
    (inside / "share/link-to-conf").write_text("now a file\n")
    was = next(
        line.rpartition(" ")[2]
        for line in (machine.root / inventory.PLACE).read_text().splitlines()
        if line.startswith("/opt/conda/share/link-to-conf//")
    )
    assert was == "../etc/prefixed.conf"
    assert findings(machine) == sorted(
        [
            "changed /opt/conda/bin/prefixed (mode 777, was 755)",
            "changed /opt/conda/envs/second/etc/prefixed.conf (content)",
            "changed /opt/conda/etc/prefixed.conf (owner 1000:0, was 0:0)",
            "missing /opt/conda/lib/libuser.so",
            f"changed {name}/pure/__pycache__/{compiled.name} (content)",
            f"extra {name}/pure/more.py",
            "changed /opt/conda/share/dangling (now a link to elsewhere, was to nowhere)",
            "changed /opt/conda/share/link-to-conf (now a file, was a link)",
        ],
        key=lambda line: line.split(" ", 1)[1],
    )


def test_the_last_line_counts(machine: Machine) -> None:
    (machine.root / "opt/conda/lib/libuser.so").unlink()
    (machine.root / "opt/conda/lib/one").touch()
    (machine.root / "opt/conda/lib/two").touch()
    assert verify(machine)[1][-1].endswith(": 1 missing, 2 extra")


def test_an_environment_that_is_gone_is_missing_file_by_file(machine: Machine) -> None:
    shutil.rmtree(machine.root / "opt/conda/envs/second")
    found = findings(machine)
    assert "missing /opt/conda/envs/second/etc/prefixed.conf" in found
    assert all(line.startswith("missing /opt/conda/envs/second") for line in found)


def test_names_with_anything_in_them_are_one_line_each(machine: Machine) -> None:
    for name in ("two\nlines", "a\ttab", 'quo"te\\', "b//c".replace("//", " // "), "-rf", "ü"):
        (machine.root / "opt/conda/share" / name.replace("/", "_")).write_text("x")
    assert findings(machine) == [
        "extra /opt/conda/share/-rf",
        r"extra /opt/conda/share/a\ttab",
        "extra /opt/conda/share/b __ c",
        'extra /opt/conda/share/quo"te\\',
        r"extra /opt/conda/share/two\nlines",
        "extra /opt/conda/share/ü",
    ]
    told = json.loads(machine.run("appliance-verify", "--json", check=False).stdout)
    assert [one["path"].rpartition("/")[2] for one in told["findings"]] == [
        *("-rf", "a\ttab", "b __ c", 'quo"te\\', "two\nlines", "ü")
    ]


# --- the appliance's own files, and the system ------------------------------------------------------


def test_the_definitions_files_are_checked_and_may_have_others_beside_them(machine: Machine) -> None:
    app = machine.root / "opt/app"
    (app / "data.db").write_text("made by the service\n")
    assert findings(machine) == []
    (app / "run.sh").write_text("#!/bin/sh\nexit 1\n")
    (app / "sub dir/ä\tb\nc").unlink()
    (app / "latest").unlink()
    (app / "latest").symlink_to("sub dir/")
    (machine.root / "opt/conda/etc/app/settings").write_text("other\n")
    assert findings(machine) == [
        "changed /opt/app/latest (now a link to sub dir/, was to sub dir//)",
        "changed /opt/app/run.sh (content)",
        r"missing /opt/app/sub dir/ä\tb\nc",
        "changed /opt/conda/etc/app/settings (content)",
    ]


def test_the_systems_files_are_checked_but_for_what_the_build_left_out_or_changed(machine: Machine) -> None:
    (machine.root / "etc/hello.conf").write_text("of an intruder\n")
    (machine.root / "etc/hello.more").write_text("of an intruder\n")
    (machine.root / "usr/bin/hello").unlink()
    assert findings(machine) == [
        "changed /etc/hello.conf (content)",
        "changed /etc/hello.more (content)",
        "missing /usr/bin/hello",
    ]
    assert findings(machine, "--no-system") == []


def test_a_system_without_dpkg_is_checked_but_for_its_packages_and_says_so(machine: Machine) -> None:
    shutil.rmtree(machine.root / "var/lib/dpkg")
    code, (summary,) = verify(machine)
    assert code == 0 and summary.endswith("system not checked (no dpkg here): all as built")


def test_what_the_definition_says_to_ignore_is_not_looked_at(built: Built, tmp_path: Path) -> None:
    image = definition(
        verify={
            "ignore": ["/opt/app/run.sh", "/opt/conda/share", "/opt/conda/envs/second", "/etc/hello.more"]
        }
    )
    (tmp_path / "root").mkdir()
    (tmp_path / "disc").mkdir()
    machine = Machine(root=built.onto(tmp_path / "root", image), disc=tmp_path / "disc")
    record(machine)
    (machine.root / "opt/app/run.sh").unlink()
    (machine.root / "opt/conda/share/new").touch()
    (machine.root / "opt/conda/envs/second/etc/prefixed.conf").unlink()
    (machine.root / "opt/conda/envs/second/new").touch()
    (machine.root / "etc/hello.more").unlink()
    assert findings(machine) == []
    (machine.root / "opt/conda/shared").touch()
    assert findings(machine) == ["extra /opt/conda/shared"]


# --- what post-link scripts did on the first boot ---------------------------------------------------


def script_runs(machine: Machine, work: Path, script: Callable[[Path], None]) -> None:
    """Do ``script`` to the environment 'second' as the script of its package, recorded as on a first boot."""
    prefix, before, listed = machine.root / "opt/conda/envs/second", work / "before", work / "inventory"
    first_boot.main(["begin", str(prefix), str(prefix), "prefixed", str(before)])
    script(prefix)
    first_boot.main(["end", str(prefix), "prefixed", str(before), str(listed)])
    before.unlink()
    place = machine.root / "var/lib/conda-appliance-post-link/inventory"
    place.parent.mkdir(exist_ok=True)
    place.write_text(listed.read_text().replace(str(machine.root), ""))


def first_script(prefix: Path) -> None:
    (prefix / "etc/prefixed.conf").write_text("of this machine\n")
    (prefix / "share/dangling").unlink()
    (prefix / "share/made/empty").mkdir(parents=True)
    (prefix / "share/made/a\tb\nc").write_text("awkward\n")
    (prefix / "share/made/link").symlink_to("a//b")
    (prefix / "share/soon-gone").touch()


def second_script(prefix: Path) -> None:
    (prefix / "share/soon-gone").unlink()
    (prefix / "share/dangling").symlink_to("elsewhere")


def test_what_scripts_did_on_the_first_boot_is_as_it_should_be(machine: Machine, tmp_path: Path) -> None:
    script_runs(machine, tmp_path, first_script)
    assert findings(machine) == []
    script_runs(machine, tmp_path, second_script)
    assert findings(machine) == []


def test_what_changed_since_they_ran_is_told_and_so_is_what_they_took_away(
    machine: Machine, tmp_path: Path
) -> None:
    script_runs(machine, tmp_path, first_script)
    second = machine.root / "opt/conda/envs/second"
    (second / "etc/prefixed.conf").write_text("of somebody else\n")
    (second / "share/made/a\tb\nc").unlink()
    (second / "share/made/new").touch()
    (second / "share/dangling").symlink_to("nowhere")
    assert findings(machine) == [
        "changed /opt/conda/envs/second/etc/prefixed.conf (content)",
        "extra /opt/conda/envs/second/share/dangling",
        "missing /opt/conda/envs/second/share/made/a\\tb\\nc",
        "extra /opt/conda/envs/second/share/made/new",
    ]


def test_what_scripts_did_where_nothing_is_looked_at_is_not_looked_at(built: Built, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "disc").mkdir()
    image = definition(verify={"ignore": ["/opt/conda/envs/second/share"]})
    machine = Machine(root=built.onto(tmp_path / "root", image), disc=tmp_path / "disc")
    record(machine)
    script_runs(machine, tmp_path, first_script)
    shutil.rmtree(machine.root / "opt/conda/envs/second/share")
    assert findings(machine) == []


# --- how it is asked --------------------------------------------------------------------------------


def test_json_has_the_same_findings(machine: Machine) -> None:
    told = json.loads(machine.run("appliance-verify", "--json").stdout)
    assert told["sound"] is True and told["findings"] == [] and told["environments"] == 2
    (machine.root / "opt/conda/lib/libuser.so").write_bytes(b"\0elf!")
    done = machine.run("appliance-verify", "--json", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["findings"] == [
        {"kind": "changed", "path": "/opt/conda/lib/libuser.so", "what": "content"}
    ]


def test_who_may_not_read_a_file_is_told_so_and_root_is_not(machine: Machine) -> None:
    inside = machine.root / "opt/conda"
    (inside / "share").chmod(0o700)
    (machine.root / "opt/app/run.sh").chmod(0o700)
    code, lines = verify(machine, "--no-system", user=1000)
    assert code == 2
    assert lines[:-1] == ["unread /opt/app/run.sh", "unread /opt/conda/share"]
    assert findings(machine, "--no-system") == [
        "changed /opt/app/run.sh (mode 700, was 755)",
        "changed /opt/conda/share (mode 700, was 755)",
    ]


def test_who_may_not_look_into_an_environment_is_not_told_that_it_is_gone(machine: Machine) -> None:
    for folder in ("opt/conda", "opt"):
        (machine.root / folder).chmod(0o700)
        code, lines = verify(machine, "--no-system", user=1000)
        assert (code, lines[:-1]) == (2, [f"unread /{folder}"])
        assert findings(machine) == []


def test_a_disk_that_is_mounted_elsewhere_is_checked_with_the_programs_of_this_host(machine: Machine) -> None:
    command = ["sh", PROGRAM, "--quiet", "--root", f"{machine.root}/"]
    assert process.run(command).stdout == ""
    (machine.root / "opt/conda/lib/libuser.so").unlink()
    (machine.root / "opt/app/run.sh").unlink()
    (machine.root / "usr/bin/hello").write_text("")
    done = process.run(command, check=False)
    assert (done.returncode, done.stdout.splitlines()[:-1]) == (
        1,
        [
            "missing /opt/app/run.sh",
            "missing /opt/conda/lib/libuser.so",
            "changed /usr/bin/hello (content)",
        ],
    )


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda root: (root / inventory.PLACE).unlink(), "/etc/conda-appliance/inventory cannot be read"),
        (
            lambda root: os.truncate(root / inventory.PLACE, 400),
            "/etc/conda-appliance/inventory is cut short",
        ),
        (
            lambda root: (root / "usr/share/conda-appliance/system").unlink(),
            "appliance-verify --no-system",
        ),
        (
            lambda root: (root / "usr/share/conda-appliance/settings").unlink(),
            "/usr/share/conda-appliance/settings cannot be read",
        ),
        (lambda root: (root / "usr/bin/awk").unlink(), "there is no program awk"),
        (
            lambda root: (root / "var/lib/dpkg/status").write_text("Nonsense\n"),
            "dpkg cannot check the system",
        ),
    ],
    ids=["no inventory", "half an inventory", "no record", "no settings", "no awk", "no database"],
)
def test_what_cannot_be_checked_is_not_sound(machine: Machine, break_it, said: str) -> None:
    break_it(machine.root)
    done = machine.run("appliance-verify", check=False)
    assert done.returncode == 2
    assert said in done.stderr


def test_an_option_that_it_does_not_have_is_refused(machine: Machine) -> None:
    done = machine.run("appliance-verify", "--fix", check=False)
    assert done.returncode == 2 and "no option --fix" in done.stderr
    assert "Exit code" in machine.run("appliance-verify", "--help").stdout


def test_shellcheck_has_nothing_to_say() -> None:
    process.run(["shellcheck", PROGRAM])
    process.run(["shellcheck", "--shell=sh", PROGRAM.parent / "record.sh"])

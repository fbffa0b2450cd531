"""What an unpacked root file system is mounted by, and what a host lacks to do it without root's rights."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from types import SimpleNamespace

import pytest

from conda_appliance import namespace, process
from conda_appliance.errors import ToolMissing

# --- without root's rights --------------------------------------------------------------------------


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A host's /etc that gives ``me`` subordinate ids."""
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("other:100000:65536\nme:165536:65536\n")
    return tmp_path


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A host with these programs, whose kernel lets users make namespaces or does not."""

    def has(*programs: str, kernel: bool = True) -> list[list[str]]:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in programs:
            (folder / name).touch(mode=0o755)
        asked: list[list[str]] = []

        def find(tool: str) -> str:
            if not (folder / tool).exists():
                raise ToolMissing(tool)
            return str(folder / tool)

        def run(argv: list[str], **_: object) -> process.Completed:
            asked.append(argv)
            return process.Completed(
                argv=tuple(argv), returncode=0 if kernel else 1, stdout="", stderr="", seconds=0
            )

        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(pwd, "getpwuid", lambda _: SimpleNamespace(pw_name="me"))
        monkeypatch.setattr(process, "find", find)
        monkeypatch.setattr(process, "run", run)
        return asked

    return has


ALL = ("unshare", "newuidmap", "newgidmap")


def lacks(etc: Path) -> ToolMissing:
    with pytest.raises(ToolMissing) as caught:
        namespace.require_root(etc)
    assert "or run this command with sudo" in caught.value.hint
    assert caught.value.exit_code == 4
    return caught.value


def test_a_host_that_has_all_of_it_is_asked_whether_it_works(host, etc: Path) -> None:
    asked = host(*ALL)
    namespace.require_root(etc)
    assert asked == [["unshare", "--user", "--map-auto", "--map-root-user", "true"]]


def test_root_needs_none_of_it(host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = host()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    namespace.require_root(tmp_path / "no such folder")
    assert asked == []


def test_a_program_that_cannot_become_root_goes_on_as_it_is(host, monkeypatch: pytest.MonkeyPatch) -> None:
    host()
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it started itself anew"))
    namespace.become_root(["build"])


def test_a_program_that_can_starts_itself_anew_with_the_same_words(
    host, etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(*ALL)
    started: list[list[str]] = []
    monkeypatch.setattr(namespace, "require_root", lambda: None)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append([program, *words]))
    namespace.become_root(["build", "--force", "x.yaml"])
    ((program, *words),) = started
    assert program == words[0] and program.endswith("/unshare")
    assert {"--user", "--map-auto", "--map-root-user"} <= {*words}
    assert words[-4:] == ["conda_appliance", "build", "--force", "x.yaml"]


def test_a_user_may_be_named_by_number(host, etc: Path) -> None:
    host(*ALL)
    for name in ("subuid", "subgid"):
        (etc / name).write_text(f"{os.getuid()}:100000:65536\n")
    namespace.require_root(etc)


def test_missing_programs_are_named_with_their_package(host, etc: Path) -> None:
    asked = host("unshare")
    error = lacks(etc)
    assert "not installed on this host, and needed: newuidmap, newgidmap" in error.message
    assert "apt-get install uidmap" in error.hint
    assert asked == [], "no need to try"


@pytest.mark.parametrize("name", ["subuid", "subgid"])
def test_missing_subordinate_ids_are_named_with_the_command_that_gives_them(
    host, etc: Path, name: str
) -> None:
    host(*ALL)
    (etc / name).write_text("other:100000:65536\nmemory:165536:65536\n")
    error = lacks(etc)
    assert f"{etc / name} gives me no subordinate ids" in error.message
    assert f"usermod --add-{name}s 100000-165535 me" in error.hint
    assert error.hint.count("usermod") == 1


def test_a_kernel_that_forbids_it_is_named_with_its_settings(host, etc: Path) -> None:
    host(*ALL, kernel=False)
    error = lacks(etc)
    assert "this kernel lets users make no user namespace" in error.message
    assert "kernel.unprivileged_userns_clone=1" in error.hint
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in error.hint


def test_everything_that_is_missing_is_told_at_once(host, tmp_path: Path) -> None:
    host()
    error = lacks(tmp_path / "no such folder")
    for words in ("unshare, newuidmap, newgidmap", "subuid gives me", "subgid gives me"):
        assert words in error.message
    assert error.hint.startswith("as root: apt-get install ")
    assert error.hint.count(" && ") == 2


# --- the mounts -------------------------------------------------------------------------------------


def folders(tmp_path: Path, *names: str) -> list[Path]:
    for name in names:
        (tmp_path / name).mkdir()
    return [tmp_path / name for name in names]


def test_the_layers_are_named_so_that_overlayfs_takes_no_part_of_a_path_for_its_own(tmp_path: Path) -> None:
    top, below = folders(tmp_path, "top: a, b=c", "below\\x")
    (work,) = folders(tmp_path, "work: a, b")
    _, variables = namespace.script(work, [top, below], upper="upper")
    assert variables["LOWER"] == "lower/0:lower/1", "the uppermost first"
    assert [(work / name).resolve() for name in variables["LOWER"].split(":")] == [top, below]
    assert variables["WORK"] == str(work)
    assert (work / "upper").is_dir()


def test_what_is_only_read_needs_no_upper_folder(tmp_path: Path) -> None:
    work, one, other = folders(tmp_path, "work", "one", "other")
    text, variables = namespace.script(work, [one, other])
    assert variables["UPPER"] == ""
    assert "ro,lowerdir=" in text
    assert not (work / "upper").exists()


def test_one_layer_alone_lies_over_an_empty_one(tmp_path: Path) -> None:
    work, one = folders(tmp_path, "work", "one")
    _, variables = namespace.script(work, [one])
    names = variables["LOWER"].split(":")
    assert (work / names[0]).resolve() == one
    assert len(names) == 2 and list((work / names[1]).iterdir()) == []


def test_a_work_folder_can_be_used_again(tmp_path: Path) -> None:
    work, one, other = folders(tmp_path, "work", "one", "other")
    namespace.script(work, [one, other], upper="upper")
    namespace.script(work, [other, one], upper="upper")
    assert (work / "lower/0").resolve() == other


def test_the_root_folder_of_what_is_mounted_is_open_to_all(tmp_path: Path) -> None:
    work, one = folders(tmp_path, "work", "one")
    before = os.umask(0o077)
    try:
        namespace.script(work, [one], upper="upper")
    finally:
        os.umask(before)
    assert (work / "upper").stat().st_mode & 0o777 == 0o755


def test_a_payload_and_what_programs_expect_are_only_there_when_asked_for(tmp_path: Path) -> None:
    work, one, payload = folders(tmp_path, "work", "one", "payload")
    plain, _ = namespace.script(work, [one], upper="upper")
    assert "root/proc" not in plain
    full, variables = namespace.script(work, [one], upper="upper", payload=payload, system=True)
    for place in ("root/proc", "root/run", "root/tmp", "root/dev"):
        assert place in full
    assert "/sys" not in full.replace("/systemd", "")
    assert variables["PAYLOAD"] == str(payload)


def test_a_program_has_namespaces_of_its_own_and_is_killed_with_them() -> None:
    words = [str(word) for word in namespace.isolated("true", ["ls", "-l"])]
    assert words[0] == "unshare"
    assert {"--mount", "--pid", "--fork", "--kill-child=SIGKILL"} <= {*words}
    assert words[-5:] == ["-c", "true", "sh", "ls", "-l"]
    assert "--net" not in words
    assert "--net" in namespace.isolated("true", ["ls"], network=False)


# --- what overlayfs leaves --------------------------------------------------------------------------


def test_an_upper_folder_keeps_nothing_that_says_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/file").touch()
    (tmp_path / "etc/link").symlink_to("file")
    for path in (tmp_path, tmp_path / "etc", tmp_path / "etc/file"):
        for name in ("origin", "impure", "uuid", "nlink"):
            os.setxattr(path, f"user.overlay.{name}", b"y")
    os.setxattr(tmp_path / "etc", "user.overlay.opaque", b"y")
    os.setxattr(tmp_path / "etc/file", "user.mine", b"y")
    os.setxattr(tmp_path / "etc/file", "user.overlay.originality", b"y")
    namespace.settle_upper(tmp_path)
    assert os.listxattr(tmp_path) == []
    assert os.listxattr(tmp_path / "etc") == ["user.overlay.opaque"], "it still hides what lies below"
    assert sorted(os.listxattr(tmp_path / "etc/file")) == ["user.mine", "user.overlay.originality"]

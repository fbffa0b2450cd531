"""What is added to a file system that holds some of the trees that lie over each other."""

import os
from pathlib import Path

import pytest

from conda_appliance import ext4script, overlay
from conda_appliance import trees as listed
from conda_appliance.overlay import Additions, CannotAdd, Contents

EPOCH = 1_577_836_800


def tree(root: Path, **content: str) -> Path:
    """A folder with these files; the names' double underscores are slashes, and ``->`` begins a link's target."""
    root.mkdir()
    for name, text in content.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("->"):
            path.symlink_to(text[2:])
        else:
            path.write_text(text)
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
    return root


def additions(trees: list[Path], held: frozenset[int]) -> Additions:
    """What is to be added is the same, whether the trees are looked into now or were before."""
    before = {one: (listed.listing(one), listed.all_of(one)) for one in trees}
    known = {one: Contents.of(found, said) for one, (said, found) in before.items()}
    try:
        found = overlay.additions(trees, held)
    except CannotAdd as error:
        with pytest.raises(CannotAdd, match=str(error)):
            overlay.additions(trees, held, known)
        raise
    assert overlay.additions(trees, held, known) == found
    return found


def paths(trees: list[Path], *held: int) -> list[str]:
    return [one.path for one in additions(trees, frozenset(held)).paths]


def commands(trees: list[Path], *held: int, work: Path) -> list[str]:
    text = ext4script.text(trees, additions(trees, frozenset(held)), epoch=EPOCH, work=work)
    return text.splitlines()[1:]


@pytest.fixture(autouse=True)
def owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root owns what tests make, whoever runs them."""
    real = ext4script._facts
    monkeypatch.setattr(ext4script, "_facts", lambda about: {**real(about), "uid": 0, "gid": 0})


def test_what_no_held_tree_has_is_added_folders_before_what_they_hold(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", opt__conda__bin__python="", opt__conda__LICENSE="")
    below = tree(tmp_path / "below", etc__passwd="")
    assert paths([above, below], 1) == [
        "opt",
        "opt/conda",
        "opt/conda/LICENSE",
        "opt/conda/bin",
        "opt/conda/bin/python",
    ]


def test_one_folder_may_be_asked_for_whatever_else_there_is(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", opt__conda__bin__python="", opt__condar="", etc__motd="")
    os.mkfifo(above / "etc/no-file")
    below = tree(tmp_path / "below", opt__conda__bin__pip="", opt__other="")
    found = overlay.additions([above, below], frozenset(), only="/opt/conda")
    assert [(one.path, one.tree) for one in found.paths] == [
        ("opt", 0),
        ("opt/conda", 0),
        ("opt/conda/bin", 0),
        ("opt/conda/bin/pip", 1),
        ("opt/conda/bin/python", 0),
    ]


def test_what_a_held_tree_above_has_wins(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", opt__conda__settings="of the machine")
    middle = tree(tmp_path / "middle", opt__conda__settings="of the package", opt__conda__more="")
    below = tree(tmp_path / "below", etc__passwd="")
    assert paths([above, middle, below], 0, 2) == ["opt/conda/more"]


def test_a_file_that_takes_the_place_of_another_is_written_after_that_is_gone(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", etc__motd="new")
    below = tree(tmp_path / "below", etc__motd="old")
    assert commands([above, below], 1, work=tmp_path / "work") == [
        'rm "/etc/motd"',
        'cd "/"',
        'cd "/etc"',
        'write "0/etc/motd" "motd"',
    ]


def test_a_folder_that_is_there_gets_the_facts_of_the_uppermost(tmp_path: Path) -> None:
    above, below = tree(tmp_path / "above", srv__data=""), tree(tmp_path / "below", srv__old="")
    (above / "srv").chmod(0o700)
    os.utime(below / "srv", (EPOCH - 5, EPOCH - 5))
    assert commands([above, below], 1, work=tmp_path / "work") == [
        'cd "/"',
        'sif "/srv" mode 040700',
        f'sif "/srv" mtime @{EPOCH}',
        'cd "/srv"',
        'write "0/srv/data" "data"',
    ]


def test_links_times_and_second_names_are_said(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", one="1", to="->one two", tool="2")
    os.link(above / "one", above / "other")
    os.utime(above / "tool", (EPOCH - 60, EPOCH - 60))
    below = tree(tmp_path / "below", etc__passwd="")
    assert commands([above, below], 1, work=tmp_path / "work") == [
        'cd "/"',
        'write "0/one" "one"',
        'sif "/one" links_count 2',
        'ln "/one" "other"',
        'symlink "to" "one two"',
        'write "0/tool" "tool"',
        f'sif "/tool" mtime @{EPOCH - 60}',
    ]


def test_names_with_quotes_and_spaces_stay_names(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", **{'a "name" <12>': ""})
    below = tree(tmp_path / "below", etc__passwd="")
    assert commands([above, below], 1, work=tmp_path / "work")[1] == (
        'write "0/a ""name"" <12>" "a ""name"" <12>"'
    )


def test_a_name_that_no_line_can_hold_cannot_be_added(tmp_path: Path) -> None:
    above, below = tree(tmp_path / "above", **{"a\nb": ""}), tree(tmp_path / "below", etc__passwd="")
    with pytest.raises(CannotAdd):
        commands([above, below], 1, work=tmp_path / "work")


def test_what_replaces_a_folder_or_is_replaced_by_one_comes_after_that_is_gone(tmp_path: Path) -> None:
    folder, file = (
        tree(tmp_path / "folder", opt__x__a__b="", opt__x__c=""),
        tree(tmp_path / "file", opt__x=""),
    )
    assert commands([file, folder], 1, work=tmp_path / "one") == [
        'rm "/opt/x/a/b"',
        'rmdir "/opt/x/a"',
        'rm "/opt/x/c"',
        'rmdir "/opt/x"',
        'cd "/"',
        'cd "/opt"',
        'write "0/opt/x" "x"',
    ]
    assert commands([folder, file], 1, work=tmp_path / "two")[:5] == [
        'rm "/opt/x"',
        'cd "/"',
        'cd "/opt"',
        'mkdir "x"',
        'cd "/opt/x"',
    ]


def test_a_folder_that_hides_another_keeps_its_name_and_not_what_was_in_it(tmp_path: Path) -> None:
    above, file = tree(tmp_path / "above", opt__x__new=""), tree(tmp_path / "file", opt__x="")
    below = tree(tmp_path / "below", opt__x__old__more="")
    assert commands([above, file, below], 2, work=tmp_path / "work") == [
        'rm "/opt/x/old/more"',
        'rmdir "/opt/x/old"',
        'cd "/"',
        'cd "/opt"',
        'cd "/opt/x"',
        'write "0/opt/x/new" "new"',
    ]


def test_a_file_between_two_held_folders_hides_the_lower_one_and_cannot_be_added(tmp_path: Path) -> None:
    """The file system holds both of them already, one in the other."""
    above, file = tree(tmp_path / "above", opt__x__a=""), tree(tmp_path / "file", opt__x="")
    below = tree(tmp_path / "below", opt__x__b="")
    with pytest.raises(CannotAdd, match="opt/x"):
        additions([above, file, below], frozenset({0, 2}))


def test_pipes_cannot_be_added(tmp_path: Path) -> None:
    above, below = tree(tmp_path / "above", opt__x=""), tree(tmp_path / "below", etc__passwd="")
    os.mkfifo(above / "opt/pipe")
    with pytest.raises(CannotAdd, match="opt/pipe"):
        additions([above, below], frozenset({1}))


def test_what_has_extended_attributes_cannot_be_added(tmp_path: Path) -> None:
    above, below = tree(tmp_path / "above", opt__x="user.a=b"), tree(tmp_path / "below", etc__passwd="")
    (above / "opt/link").symlink_to("somewhere=else")
    assert paths([above, below], 1) == ["opt", "opt/link", "opt/x"]
    os.setxattr(above / "opt/x", "user.made", b"by hand")
    with pytest.raises(CannotAdd, match="opt/x"):
        additions([above, below], frozenset({1}))


def test_what_a_held_tree_deleted_stays_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """overlayfs says so by a device 0,0, which only root can make: here a pipe stands for it."""
    monkeypatch.setattr(overlay, "_is_hidden", lambda about: os.path.stat.S_ISFIFO(about.st_mode))
    above = tree(tmp_path / "above", opt__conda__other="")
    os.mkfifo(above / "opt/conda/gone")
    middle = tree(tmp_path / "middle", opt__conda__gone="", opt__conda__stays="")
    below = tree(tmp_path / "below", etc__passwd="")
    assert paths([above, middle, below], 0, 2) == ["opt/conda/stays"]
    found = additions([above, middle], frozenset({1}))
    assert [(one.path, one.folder) for one in found.removed] == [("opt/conda/gone", False)]
    assert "opt/conda/gone" not in [one.path for one in found.paths]


def test_chosen_files_come_first_with_their_folders(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", opt__conda__bin__python="", opt__conda__LICENSE="", opt__more__file="")
    found = additions([above, tree(tmp_path / "below", etc__passwd="")], frozenset([1]))
    first, rest = overlay.parted(found, lambda one: one.path == "opt/conda/bin/python")
    assert [one.path for one in first.paths] == ["opt", "opt/conda", "opt/conda/bin", "opt/conda/bin/python"]
    assert [one.path for one in rest.paths] == ["opt/more", "opt/conda/LICENSE", "opt/more/file"]


def test_what_takes_the_place_of_something_does_not_come_first(tmp_path: Path) -> None:
    above = tree(tmp_path / "above", a__file="", b="", c__d__file="", other="")
    below = tree(tmp_path / "below", a__file="", b__file="", c__d="")
    first, rest = overlay.parted(additions([above, below], frozenset([1])), lambda _one: True)
    assert [one.path for one in first.paths] == ["other"]
    assert not first.removed
    assert [one.path for one in rest.removed] == ["b/file", "b", "a/file", "c/d"]
    assert [one.path for one in rest.paths] == ["a", "b", "c", "a/file", "c/d", "c/d/file"]


@pytest.mark.parametrize(("chosen", "first"), [(("a", "b"), ["a", "b"]), (("a",), []), (("b",), [])])
def test_a_file_of_two_names_comes_first_if_both_are_chosen(
    tmp_path: Path, chosen: tuple[str, ...], first: list[str]
) -> None:
    above = tree(tmp_path / "above", a="text", c="")
    (above / "b").hardlink_to(above / "a")
    found = additions([above, tree(tmp_path / "below", etc__passwd="")], frozenset([1]))
    one, other = overlay.parted(found, lambda one: one.path in chosen)
    assert [added.path for added in one.paths] == first
    assert [added.path for added in other.paths] == [path for path in "abc" if path not in first]

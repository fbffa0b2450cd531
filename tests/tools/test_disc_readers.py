"""One disc that holds all that is awkward at once, read by each program that may meet it.

This host's kernel may know no ISO 9660: the one of a machine reads the disc in tests/boot/test_discs.py.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path

import awkward
import pytest
from awkward import Awkward
from tests.conftest import Folders

from conda_appliance import disc, process
from conda_appliance.errors import BuildError


@pytest.fixture(scope="module")
def made(folders: Folders) -> Awkward:
    return awkward.disc(folders.mktemp("awkward"))


def test_ours(made: Awkward) -> None:
    """The listing, and every byte of the large file by its SHA-256."""
    found = {one.path: one for one in disc.contents(made.image).entries}
    assert {path for path in found if path.startswith("/tree/")} == {f"/tree/{path}" for path in made.paths()}
    assert found["/large"].size == awkward.LARGE
    for path, about in made.paths().items():
        one = found[f"/tree/{path}"]
        assert stat.filemode(one.mode)[0] == stat.filemode(about.st_mode)[0], path
        if stat.S_ISREG(about.st_mode):
            assert one.size == about.st_size, path
        if not stat.S_ISLNK(about.st_mode):
            assert stat.S_IMODE(one.mode) == stat.S_IMODE(about.st_mode), path
    assert {path: found[f"/tree/{path}"].target for path in made.links()} == made.links()
    assert disc.verify(made.image) == 2


def test_xorriso(made: Awkward, tmp_path: Path) -> None:
    """Everything with modes and owners; the large file at its start, its end, and where its second extent begins."""
    process.run(
        ["xorriso", "-osirrox", "on", "-indev", f"stdio:{made.image}", "-extract", "/tree", tmp_path / "tree"]
    )
    assert awkward.listing(tmp_path / "tree") == made.listing()
    reported = process.run(
        ["xorriso", "-indev", f"stdio:{made.image}", "-find", "/large", "-exec", "report_sections"]
    ).stdout
    sections = re.findall(r"File data lba:\s+\d+ ,\s+(\d+) ,\s+\d+ ,\s+(\d+) , '/large'", reported)
    assert [int(size) for _, size in sections] == [awkward.EXTENT, awkward.LARGE - awkward.EXTENT]
    with made.image.open("rb") as file:
        for (block, _), first in zip(sections, (b"start", b"edge"), strict=True):
            file.seek(int(block) * 2048)
            assert file.read(len(first)) == first


def test_isoinfo(made: Awkward) -> None:
    """The names, those of deep folders where they were moved to; one extent for a file's three names."""
    names = process.run(["isoinfo", "-R", "-f", "-i", made.image]).stdout.splitlines()
    assert {Path(name).name for name in names} - {"rr_moved"} == {
        *(Path(path).name for path in made.paths()),
        *("tree", "large", "SHA256SUMS"),
    }
    assert len([name for name in names if name.endswith("/leaf")]) == 2
    inside = next(name for name in names if name.endswith("/inside"))
    assert process.run(["isoinfo", "-R", "-i", made.image, "-x", inside]).stdout == "inside"
    listed = process.run(["isoinfo", "-R", "-l", "-i", made.image]).stdout
    assert len(set(re.findall(r"\[ *(\d+) 00\]  (?:one|two|three) ", listed))) == 1
    assert re.search(r"^-rw-r----- +3 +6 +7 .* one $", listed, re.MULTILINE)


def test_bsdtar(made: Awkward, tmp_path: Path) -> None:
    process.run(["bsdtar", "-x", "-p", "--same-owner", "-f", made.image, "-C", tmp_path, "tree"])
    assert awkward.listing(tmp_path / "tree") == made.listing()
    assert (tmp_path / "tree/one").samefile(tmp_path / "tree/deep/three")
    assert str(awkward.LARGE) in process.run(["bsdtar", "-t", "-v", "-f", made.image, "large"]).stdout


def test_7z(made: Awkward, tmp_path: Path) -> None:
    """It reads Joliet, as Windows does: names are cut, and there are no symbolic links."""
    process.run(["7z", "x", f"-o{tmp_path}", "-xr!large", made.image])
    found = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    files = [path for path, about in made.paths().items() if stat.S_ISREG(about.st_mode)]
    assert sorted(path.read_bytes() for path in found) == sorted(
        (made.tree / path).read_bytes() for path in files
    )
    assert f" {awkward.LARGE} " in process.run(["7z", "l", made.image]).stdout


def test_what_not_all_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / ("n" * 254)).write_text("Linux would show a part of the name")
    with pytest.raises(BuildError, match="the name has 254 bytes"):
        disc.write(awkward.DEFINITION, {"tree": tmp_path / "tree"}, tmp_path / "o.iso", epoch=1)
    (tmp_path / "tree/far").symlink_to("/".join(["x" * 100] * 11))
    with pytest.raises(BuildError, match="tree/far cannot be put on a disc: what it links to has 1110 bytes"):
        disc.write(awkward.DEFINITION, {"tree": tmp_path / "tree"}, tmp_path / "o.iso", epoch=1)

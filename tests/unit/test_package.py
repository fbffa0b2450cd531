"""Conda packages are written as conda's tools expect them, and the same way every time."""

import hashlib
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from conda_package_streaming import package_streaming

from conda_appliance.errors import BuildError
from conda_appliance.package import EPOCH, PLACEHOLDER, Package, read_index, write_package, write_repodata


@pytest.fixture
def package(tmp_path: Path) -> Package:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "lib").mkdir()
    (root / "bin/tool").write_text(f"#!{PLACEHOLDER}/bin/python\n")
    (root / "bin/tool").chmod(0o700)
    (root / "lib/a.so.1").write_bytes(b"\x7fELF\0" + PLACEHOLDER.encode() + b"\0")
    (root / "lib/a.so").symlink_to("a.so.1")
    (root / "lib/plain").write_text("no prefix\n")
    return Package(
        name="tool",
        version="1.0",
        build="h0_0",
        depends=("a >=1",),
        license="MIT",
        root=root,
        licenses={"LICENSE": b"text"},
        placeholder=PLACEHOLDER,
        about={"patches": ["CVE-1"]},
    )


def members(path: Path, component: str) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    found = {}
    with path.open("rb") as file:
        for archive, member in package_streaming.stream_conda_component(str(path), file, component):
            content = archive.extractfile(member) if member.isreg() else None
            found[member.name] = (member, content.read() if content else b"")
    return found


def test_the_same_package_is_the_same_bytes(package: Package, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        os.utime(package.root / "lib/plain", (len(written), len(written)))
        written.append(write_package(package, tmp_path / name).read_bytes())
    assert written[0] == written[1]
    with zipfile.ZipFile(tmp_path / "one/tool-1.0-h0_0.conda") as archive:
        assert {member.date_time for member in archive.infolist()} == {(2020, 1, 1, 0, 0, 0)}
        assert archive.namelist()[0] == "metadata.json", "readers look there first"


def test_files_are_roots_with_plain_modes_and_one_time(package: Package, tmp_path: Path) -> None:
    files = members(write_package(package, tmp_path), "pkg")
    assert {name: oct(member.mode) for name, (member, _) in files.items() if member.isreg()} == {
        "bin/tool": "0o755",
        "lib/a.so.1": "0o644",
        "lib/plain": "0o644",
    }
    assert {(m.uid, m.uname, m.mtime) for m, _ in files.values()} == {(0, "root", EPOCH)}


def test_paths_tell_hashes_and_where_the_prefix_stands(package: Package, tmp_path: Path) -> None:
    path = write_package(package, tmp_path)
    entries = {one["_path"]: one for one in json.loads(members(path, "info")["info/paths.json"][1])["paths"]}
    for name, (member, content) in members(path, "pkg").items():
        if member.isreg():
            assert entries[name]["sha256"] == hashlib.sha256(content).hexdigest()
            assert entries[name]["size_in_bytes"] == len(content)
    assert entries["lib/a.so"]["path_type"] == "softlink"
    modes = {name: entry.get("file_mode") for name, entry in entries.items()}
    assert modes == {"bin/tool": "text", "lib/a.so": None, "lib/a.so.1": "binary", "lib/plain": None}
    assert len(PLACEHOLDER) == 255


def test_what_a_package_is_and_was_made_of_stands_in_it(package: Package, tmp_path: Path) -> None:
    info = members(write_package(package, tmp_path), "info")
    assert info["info/licenses/LICENSE"][1] == b"text"
    assert json.loads(info["info/about.json"][1])["patches"] == ["CVE-1"]
    index = json.loads(info["info/index.json"][1])
    assert (index["name"], index["subdir"], index["depends"]) == ("tool", "linux-64", ["a >=1"])


def test_a_package_without_a_licence_text_is_refused(package: Package, tmp_path: Path) -> None:
    bare = Package(**{**package.__dict__, "licenses": {}})
    with pytest.raises(BuildError, match=r"licence text .* tool 1\.0"):
        write_package(bare, tmp_path)


def test_repodata_names_each_archive_by_its_hash(package: Package, tmp_path: Path) -> None:
    (tmp_path / "linux-64").mkdir()
    path = write_package(package, tmp_path / "linux-64")
    write_repodata(tmp_path)
    record = json.loads((tmp_path / "linux-64/repodata.json").read_text())["packages.conda"][path.name]
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["size"] == path.stat().st_size
    assert record.items() >= read_index(path).items()
    assert json.loads((tmp_path / "noarch/repodata.json").read_text())["packages.conda"] == {}

"""apt resolves a whole machine from Debian's signed index, and trusts nothing that is not signed."""

from pathlib import Path

import pytest
from tests.conftest import Folders

from conda_appliance.apt import Apt, RemoteFile
from conda_appliance.errors import BuildError, UsageError


@pytest.fixture(scope="module")
def trixie(folders: Folders) -> Apt:
    apt = Apt("trixie", state=folders.mktemp("apt"), sources=True)
    apt.update()
    return apt


def names(files: list[RemoteFile]) -> set[str]:
    return {file.name.partition("_")[0] for file in files}


def test_a_machine_is_its_packages_and_all_they_need(trixie: Apt) -> None:
    machine = trixie.resolve(["openssh-server"])
    assert {"dpkg", "libc6", "openssh-server", "openssh-client", "libcrypt1"} <= names(machine)
    assert "xauth" not in names(machine), "recommendations are left out"
    assert all(len(file.sha256) == 64 and file.size > 0 and "/pool/" in file.url for file in machine)


def test_the_source_of_the_interpreter_has_its_original_tarball_and_debians_patches(trixie: Apt) -> None:
    files = [file.name for file in trixie.source("python3.13")]
    assert any(name.endswith(".orig.tar.xz") for name in files), files
    assert any(name.endswith(".debian.tar.xz") for name in files), files


def test_a_package_that_does_not_exist_is_named(trixie: Apt) -> None:
    with pytest.raises(UsageError, match="no-such-package-here"):
        trixie.resolve(["no-such-package-here"])


def test_security_updates_come_with_a_named_mirror_too(tmp_path: Path) -> None:
    apt = Apt("bookworm", state=tmp_path, mirror="http://deb.debian.org/debian")
    apt.update()
    assert any("debian-security" in file.url for file in apt.resolve(["linux-image-cloud-amd64", "openssl"]))


def test_an_unsigned_archive_is_refused(tmp_path: Path) -> None:
    release = tmp_path / "debian/dists/trixie/Release"
    release.parent.mkdir(parents=True)
    release.write_text("Suite: trixie\nCodename: trixie\nComponents: main\nArchitectures: amd64\nSHA256:\n")
    apt = Apt("trixie", state=tmp_path / "state", mirror=(tmp_path / "debian").as_uri())
    with pytest.raises(BuildError, match="not signed"):
        apt.update()


def test_a_mirror_without_the_suite_is_an_error_and_not_an_empty_machine(tmp_path: Path) -> None:
    (tmp_path / "debian").mkdir()
    apt = Apt("trixie", state=tmp_path / "state", mirror=(tmp_path / "debian").as_uri())
    with pytest.raises(BuildError, match="trixie"):
        apt.update()

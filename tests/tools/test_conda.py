"""Environments are solved for the machine and linked for their final path, from outside."""

import json
import os
import py_compile
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from py_compile import PycInvalidationMode

import packages
import pytest
import rattler
from packages import File, Package
from tests.conftest import Folders

from conda_appliance import conda, linking, prefix_check
from conda_appliance.contract import Contract
from conda_appliance.errors import BuildError, HashMismatch, UsageError
from conda_appliance.lock import CondaPackage

EPOCH = 1_700_000_000
PREFIX = "/opt/conda"
SPECS = ["pure", "python"]


@pytest.fixture(scope="module")
def channel(folders: Folders) -> Path:
    return packages.small_channel(folders.mktemp("channels") / "small")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_APPLIANCE_CACHE", str(tmp_path / "cache"))


def solve(channel: Path, *specs: str, glibc: str = "2.41") -> tuple[CondaPackage, ...]:
    return conda.solve(
        specs, [conda.Channel(name="./small", url=channel.as_uri())], contract=Contract(glibc=glibc)
    )[0]


def archives(found: tuple[CondaPackage, ...]) -> dict[str, Path]:
    return {package.sha256: Path(package.url.removeprefix("file://")) for package in found}


def link(found: tuple[CondaPackage, ...], root: Path, prefix: str = PREFIX) -> Path:
    """Link for ``prefix`` below ``root``, and return where it stands here."""
    into = root / prefix.lstrip("/")
    linking.link(
        found, archives(found), prefix=prefix, into=into, epoch=EPOCH, work=root / "work", specs=SPECS
    )
    return into


@pytest.fixture(scope="module")
def linked(channel: Path, folders: Folders) -> Iterator[Path]:
    folder = folders.mktemp("linked")
    os.environ["CONDA_APPLIANCE_CACHE"] = str(folder / "cache")
    yield link(solve(channel, *SPECS), folder / "root")
    del os.environ["CONDA_APPLIANCE_CACHE"]


def records(prefix: Path) -> dict[str, dict[str, object]]:
    return {record["name"]: record for record in prefix_check.records(prefix)}


# --- solving ----------------------------------------------------------------------------------------


def test_packages_come_in_the_order_they_are_linked(channel: Path) -> None:
    names = [package.name for package in solve(channel, "pure")]
    assert sorted(names) == ["libc-user", "prefixed", "pure", "python"]
    assert names.index("libc-user") < names.index("python") < names.index("pure")


def test_a_package_is_locked_by_its_bytes(channel: Path) -> None:
    (package,) = solve(channel, "prefixed")
    assert (package.channel, package.subdir, package.filename) == (
        "./small",
        "linux-64",
        "prefixed-1.0-0.tar.bz2",
    )
    assert package.sha256 == conda.resources.sha256_of(channel / "linux-64" / package.filename)
    assert package.size == (channel / "linux-64" / package.filename).stat().st_size


def test_the_machines_glibc_decides_not_the_hosts(channel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_OVERRIDE_GLIBC", "9.99")
    with pytest.raises(UsageError, match=r"__glibc >=2\.17"):
        solve(channel, "libc-user", glibc="2.12")


@pytest.fixture(scope="module")
def demanding(folders: Folders) -> Path:
    """A channel of packages that ask something of the machine."""
    folder = folders.mktemp("channels") / "demanding"
    Package(name="new-libc", depends=["__glibc >=2.99"]).write(folder)
    Package(name="new-linux", depends=["__linux >=6.6"]).write(folder)
    Package(name="vectors", depends=["__archspec 1 x86_64_v3"], build="v3").write(folder)
    Package(name="vectors", depends=["__archspec 1 x86_64"], build="v1").write(folder)
    Package(name="only-v3", depends=["vectors * v3"]).write(folder)
    Package(name="torch", depends=["__cuda >=12"]).write(folder)
    Package(name="user-of-torch", depends=["torch"]).write(folder)
    Package(name="old-driver", constrains=["__cuda <12"]).write(folder)
    packages.index(folder)
    return folder


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("new-libc", r"^new-libc needs __glibc >=2\.99, and the machine has __glibc 2\.41$"),
        ("new-linux", r"^new-linux needs __linux >=6\.6, and the machine has __linux 6\.1$"),
        ("only-v3", r"^vectors needs __archspec ==1 x86_64_v3, and the machine has __archspec 1 x86_64$"),
        ("user-of-torch", r"^torch needs __cuda >=12, and the machine has no __cuda$"),
    ],
)
def test_a_package_that_asks_more_than_is_promised_is_named(demanding: Path, spec: str, message: str) -> None:
    promised = Contract(glibc="2.41", kernel="6.1")
    with pytest.raises(UsageError, match=message) as caught:
        conda.solve([spec], [conda.Channel(name="./d", url=demanding.as_uri())], contract=promised)
    assert "target.glibc" in caught.value.hint


@pytest.mark.parametrize(
    ("spec", "promised"),
    [
        ("new-libc", Contract(glibc="2.99")),
        ("new-linux", Contract(kernel="6.12.57")),
        ("only-v3", Contract(arch_level="x86-64-v3")),
        ("user-of-torch", Contract(cuda="12.4")),
        ("old-driver", Contract()),
        ("old-driver", Contract(cuda="11.8")),
    ],
)
def test_what_is_promised_can_be_had(demanding: Path, spec: str, promised: Contract) -> None:
    place = conda.Channel(name="./d", url=demanding.as_uri())
    found, virtual = conda.solve([spec], [place], contract=promised)
    assert found[-1].name == spec
    assert virtual == promised.locked


def test_what_another_tool_locked_is_held_to_the_same() -> None:
    locked = [
        {"name": "torch", "depends": ["python", "__cuda >=12", "__linux"]},
        {"name": "old-driver", "depends": [], "constrains": ["__cuda <12"]},
    ]
    with pytest.raises(UsageError, match=r"^torch needs __cuda >=12, and the machine has no __cuda$"):
        conda.require_virtual(locked, contract=Contract(), platform="linux-64")
    with pytest.raises(UsageError, match=r"^old-driver needs __cuda <12, and the machine has __cuda 12\.4$"):
        conda.require_virtual(locked, contract=Contract(cuda="12.4"), platform="linux-64")
    conda.require_virtual(locked[:1], contract=Contract(cuda="12.4"), platform="linux-64")


def test_a_driver_that_is_too_new_is_named_too(demanding: Path) -> None:
    place = conda.Channel(name="./d", url=demanding.as_uri())
    with pytest.raises(UsageError, match="__cuda"):
        conda.solve(["old-driver"], [place], contract=Contract(cuda="12.4"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere-to-be-found", "nowhere-to-be-found"),
        ("python 2.7.*", r"python 2\.7\.\*"),
        ("python >=!!3", "not a package spec"),
    ],
)
def test_what_cannot_be_had_is_said(channel: Path, spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        solve(channel, spec)
    assert caught.value.hint


def test_a_folder_that_is_no_channel_is_said(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="a channel cannot be read"):
        solve(tmp_path, "python")


def test_a_package_without_sha256_is_refused_by_name(channel: Path, tmp_path: Path) -> None:
    for subdir in ("noarch", "linux-64"):
        data = json.loads((channel / subdir / "repodata.json").read_text())
        for group in ("packages", "packages.conda"):
            for record in data[group].values():
                record.pop("sha256")
        (tmp_path / "old" / subdir).mkdir(parents=True)
        (tmp_path / "old" / subdir / "repodata.json").write_text(json.dumps(data))
    with pytest.raises(BuildError, match=r"no SHA-256 in the channel's index: .*prefixed-1\.0-0\.tar\.bz2"):
        solve(tmp_path / "old", "prefixed")


def test_a_channel_that_comes_first_wins(channel: Path, tmp_path: Path) -> None:
    Package(name="prefixed", version="0.1").write(tmp_path / "mine")
    packages.index(tmp_path / "mine")
    places = [
        conda.Channel(name="mine", url=(tmp_path / "mine").as_uri()),
        conda.Channel(name="small", url=channel.as_uri()),
    ]
    (package,), virtual = conda.solve(["prefixed"], places, contract=Contract(glibc="2.41"))
    assert (package.channel, package.version) == ("mine", "0.1")
    assert "__glibc=2.41=0" in virtual


def test_a_channel_that_changed_is_read_anew(tmp_path: Path) -> None:
    Package(name="growing", version="1").write(tmp_path / "channel")
    packages.index(tmp_path / "channel")
    assert [package.version for package in solve(tmp_path / "channel", "growing")] == ["1"]
    Package(name="growing", version="2").write(tmp_path / "channel")
    packages.index(tmp_path / "channel")
    assert [package.version for package in solve(tmp_path / "channel", "growing")] == ["2"]


# --- linking ----------------------------------------------------------------------------------------


def test_files_carry_the_final_path(linked: Path) -> None:
    assert (linked / "bin/prefixed").read_text() == "#!/opt/conda/bin/python\nprint('/opt/conda')\n"
    assert (linked / "etc/prefixed.conf").read_text() == "home = /opt/conda/share\n"
    binary = (linked / "lib/prefixed.bin").read_bytes()
    assert binary.startswith(b"\0\1/opt/conda/share\0") and len(binary) == len(packages.PLACEHOLDER) + 10
    assert (linked / "bin/pure-tool").read_text().startswith("#!/opt/conda/bin/python3")


def test_nothing_names_the_build_host(linked: Path, channel: Path) -> None:
    strangers = [str(linked.parents[2]).encode(), str(channel.parent).encode()]
    for path in linked.rglob("*"):
        data = (
            str(path.readlink()).encode()
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else b""
        )
        assert not any(stranger in data for stranger in strangers), path


def test_modes_and_times_are_plain(linked: Path) -> None:
    for path in (linked, *linked.rglob("*")):
        about = path.lstat()
        assert about.st_mtime == EPOCH, path
        if not path.is_symlink():
            assert stat.S_IMODE(about.st_mode) in (0o644, 0o755), path
            assert path.is_dir() or about.st_nlink == 1, path
    assert os.access(linked / "bin/pure-tool", os.X_OK)


def test_byte_code_is_there_names_the_final_path_and_is_recorded(linked: Path) -> None:
    tag = sys.implementation.cache_tag
    site = next(linked.glob("lib/python3.*/site-packages"))
    compiled = site / f"pure/__pycache__/main.{tag}.pyc"
    assert f"/opt/conda/{(site / 'pure/main.py').relative_to(linked)}".encode() in compiled.read_bytes()
    assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "PEP 552: hash-based, unchecked"
    assert str(compiled.relative_to(linked)) in records(linked)["pure"]["files"]  # type: ignore[operator]
    assert not list(site.glob(f"pure/__pycache__/template.{tag}.pyc")), "a template is no Python"
    assert list(site.parent.glob("__pycache__/this_is_stdlib.*.pyc"))


def test_byte_code_that_a_package_brought_stays_if_no_time_can_make_it_stale(tmp_path: Path) -> None:
    channel = packages.small_channel(tmp_path / "channel")
    minor, tag = f"{sys.version_info[0]}.{sys.version_info[1]}", sys.implementation.cache_tag
    site, source = f"lib/python{minor}/site-packages", tmp_path / "module.py"
    source.write_text("ANSWER = 42\n")
    files = {}
    for name, mode in (
        ("kept", PycInvalidationMode.UNCHECKED_HASH),
        ("checked", PycInvalidationMode.CHECKED_HASH),
        ("timed", PycInvalidationMode.TIMESTAMP),
    ):
        made = py_compile.compile(
            str(source),
            str(tmp_path / f"{name}.pyc"),
            "where it was",
            doraise=True,
            invalidation_mode=mode,
        )
        files[f"{site}/{name}.py"] = packages.File(content="ANSWER = 42\n")
        files[f"{site}/__pycache__/{name}.{tag}.pyc"] = packages.File(content=Path(made).read_bytes())
    packages.Package(name="compiled", depends=[f"python {minor}.*"], files=files).write(channel)
    packages.index(channel)
    into = link(solve(channel, "compiled"), tmp_path / "root")
    for name in ("kept", "checked", "timed"):
        data = (into / f"{site}/__pycache__/{name}.{tag}.pyc").read_bytes()
        assert data[4:8] == b"\1\0\0\0"
        assert (b"where it was" in data) == (name == "kept")
    assert linking.verify(into.parents[1], PREFIX) == []


def test_the_environment_is_what_its_records_say(linked: Path) -> None:
    assert linking.verify(linked.parents[1], PREFIX) == []


def test_records_are_readable_by_conda_tools(linked: Path) -> None:
    for path in (linked / "conda-meta").glob("*.json"):
        record = rattler.PrefixRecord.from_path(path)
        assert record.channel == "small"
        assert record.url == f"file:///small/{record.subdir}/{record.file_name}"
    assert records(linked)["pure"]["requested_specs"] == ["pure"]
    history = (linked / "conda-meta/history").read_text()
    assert "+small/noarch::pure-1.0-0" in history and '# update specs: ["pure", "python"]' in history


def test_linked_twice_is_the_same_tree(linked: Path, channel: Path, tmp_path: Path) -> None:
    again = link(solve(channel, *SPECS), tmp_path / "again")
    done = subprocess.run(["diff", "-r", "--no-dereference", linked, again], capture_output=True, text=True)
    assert done.stdout == ""
    listing = [["find", ".", "-printf", "%p %m %T@ %l\\n"]] * 2
    first, second = (
        subprocess.check_output(c, cwd=at) for c, at in zip(listing, (linked, again), strict=True)
    )
    assert sorted(first.splitlines()) == sorted(second.splitlines())


def test_a_flipped_byte_in_a_package_is_caught_by_name(channel: Path, tmp_path: Path) -> None:
    found = solve(channel, "pure")
    files = archives(found)
    package = next(one for one in found if one.name == "prefixed")
    data = bytearray(files[package.sha256].read_bytes())
    data[len(data) // 2] ^= 1
    files[package.sha256] = tmp_path / "flipped"
    files[package.sha256].write_bytes(data)
    with pytest.raises(HashMismatch, match=r"prefixed-1\.0-0\.tar\.bz2") as caught:
        linking.link(found, files, prefix=PREFIX, into=tmp_path / "into", epoch=EPOCH, work=tmp_path / "work")
    assert caught.value.expected == package.sha256
    assert not (tmp_path / "into").exists()


def test_archives_may_have_any_name(channel: Path, tmp_path: Path) -> None:
    found = solve(channel, "pure")
    blobs = {}
    for digest, path in archives(found).items():
        blobs[digest] = tmp_path / digest
        blobs[digest].write_bytes(path.read_bytes())
    linking.link(found, blobs, prefix=PREFIX, into=tmp_path / "into", epoch=EPOCH, work=tmp_path / "work")
    assert prefix_check.check(tmp_path / "into") == []
    assert list((tmp_path / "work").iterdir()) == [], "what was needed meanwhile is gone"


def test_a_script_that_wants_to_run_is_refused_by_name(tmp_path: Path) -> None:
    script = {"bin/.eager-post-link.sh": File(content=f"touch {tmp_path}/ran\n", executable=True)}
    Package(name="eager", files=script).write(tmp_path / "channel")
    packages.index(tmp_path / "channel")
    with pytest.raises(BuildError, match=r"want to run a script.*: eager"):
        link(solve(tmp_path / "channel", "eager"), tmp_path / "root")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "root/opt/conda").exists(), "no half-made environment stays"


def test_a_package_that_lies_about_its_files_is_refused(tmp_path: Path) -> None:
    honest = Package(name="liar", files={"lib/a": File(content="as recorded")})
    path = honest.write(tmp_path / "channel")
    real = Package._info
    lying = Package(name="liar", files={"lib/a": File(content="as shipped!")})
    try:
        Package._info = lambda self: real(honest)  # type: ignore[method-assign]
        lying.write(tmp_path / "channel")
    finally:
        Package._info = real  # type: ignore[method-assign]
    packages.index(tmp_path / "channel")
    with pytest.raises(BuildError, match=r"changed: lib/a \(liar\)"):
        link(solve(tmp_path / "channel", "liar"), tmp_path / "root")
    assert path.exists()


def test_a_broken_archive_is_told_by_rattler_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "broken-1.0-0.conda"
    path.write_bytes(b"PK\3\4 not a package")
    package = CondaPackage(
        name="broken",
        version="1.0",
        build="0",
        subdir="noarch",
        channel="c",
        url=path.as_uri(),
        sha256=conda.resources.sha256_of(path),
        size=20,
    )
    with pytest.raises(BuildError, match="rattler could not link"):
        link((package,), tmp_path / "root")
    assert not (tmp_path / "root/opt/conda").exists()


def test_an_environment_inside_another(linked: Path, channel: Path, tmp_path: Path) -> None:
    base = link(solve(channel, "pure"), tmp_path)
    inner = link(solve(channel, "prefixed"), tmp_path, f"{PREFIX}/envs/second")
    assert (inner / "etc/prefixed.conf").read_text() == "home = /opt/conda/envs/second/share\n"
    assert prefix_check.check(base) == prefix_check.check(inner) == []


def test_a_file_of_two_packages_is_settled_the_same_way_each_time_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        Package(name=name, files={"lib/shared": File(content=name)}).write(tmp_path / "channel")
    packages.index(tmp_path / "channel")
    found = solve(tmp_path / "channel", "one", "two")
    prefixes = [link(found, tmp_path / str(turn)) for turn in range(3)]
    assert {(prefix / "lib/shared").read_text() for prefix in prefixes} == {"one"}
    assert prefix_check.check(prefixes[0]) == []
    assert "two brings files that another package brings too" in capsys.readouterr().err

"""Container images, read by skopeo, unpacked by umoci and run by runc."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import packages
import pytest
import run_container
import small_machine
from packages import PLACEHOLDER, File, Package
from tests.conftest import Folders

from conda_appliance import conda, containers, payload, process
from conda_appliance.contract import Contract
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import BuildError, UsageError
from conda_appliance.installation import Shipment
from conda_appliance.layers import Store
from conda_appliance.lock import CondaSection, EnvironmentSection, Lock

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and chroot(2) need root's rights")

EPOCH = 1_700_000_000
CREATED = "2023-11-14T22:13:20Z"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Maker:
    """Images of a small appliance on a base of its own: a root with a shell, coreutils and this host's Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.channel = packages.small_channel(folder / "channel")
        real = Path(sys.executable).resolve()
        starter = File(content=f'#!/bin/sh\nexec {real} "$@"\n', executable=True)
        python = packages.python()
        named = {name: starter if "bin/python3" in name else file for name, file in python.files.items()}
        replace(python, files=named).write(self.channel)
        Package(name="newer", files={"etc/newer": File(content=f"{PLACEHOLDER}\n")}).write(self.channel)
        packages.index(self.channel)
        (folder / "app").mkdir()
        (folder / "app/index.html").write_text("hello from a container\n")
        root = small_machine.make(folder / "root", systemd=False)
        library = Path(sys.base_prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copytree(
            library,
            Path(f"{root}{library}"),
            dirs_exist_ok=True,
            symlinks=True,
            ignore=shutil.ignore_patterns("test", "site-packages", "__pycache__", "idlelib", "config-*"),
        )
        for module in ("binascii", "zlib"):  # Debian's Python has them built in
            for extension in (library / "lib-dynload").glob(f"{module}.*.so"):
                small_machine.copy(root, str(extension), str(extension))
        process.run(["umoci", "init", "--layout", folder / "base"])
        process.run(["umoci", "new", "--image", f"{folder}/base:1"])
        process.run(["umoci", "insert", "--image", f"{folder}/base:1", root, "/"])
        process.run(["umoci", "config", "--image", f"{folder}/base:1", "--config.env", "FROM_BASE=yes"])

    def shipment(self, *specs: str, **container: Any) -> Shipment:
        channel = conda.Channel(name="./small", url=self.channel.as_uri())
        found, virtual = conda.solve(specs, [channel], contract=Contract(glibc="2.41"))
        environments = {"base": EnvironmentSection(prefix="/opt/demo", specs=specs, packages=found)}
        section = CondaSection(virtual_packages=virtual, environments=environments)
        locked = Lock(name="demo", digest="0" * 64, tools={}, conda=section)
        archives = {one.sha256: Path(one.url.removeprefix("file://")) for one in found}
        store = Store(self.folder / "layers")
        return Shipment(
            image=ImageDefinition.model_validate(
                {
                    "name": "demo",
                    "version": "1.0+x",
                    "summary": "A demonstration",
                    "base": {"debian": "trixie"},
                    "conda": {
                        "prefix": "/opt/demo",
                        "channels": ["./small"],
                        "environments": {"base": {"dependencies": [*specs]}},
                    },
                    "services": [
                        {
                            "name": "web",
                            "command": f"python -m http.server {self.port}",
                            "port": self.port,
                            "working_directory": "/srv/app",
                            "variables": {"TITLE": "a web"},
                        }
                    ],
                    "files": [{"from": "app/", "to": "/srv/app"}],
                    "container": {"base": "base", **container},
                }
            ),
            lock=locked,
            linked=payload.environment(locked, archives, store=store, epoch=EPOCH, subject="demo"),
            archives=archives,
            folder=self.folder,
            project=None,
            store=store,
            epoch=EPOCH,
        )

    def write(self, name: str, *specs: str, docker: bool = False) -> Path:
        work = self.folder / f"work-{name}"
        work.mkdir()
        make = containers.docker if docker else containers.oci
        make(self.shipment(*specs), self.folder / name, work)
        return self.folder / name


@pytest.fixture(scope="module")
def maker(folders: Folders) -> Maker:
    return Maker(folders.mktemp("containers"))


@pytest.fixture(scope="module")
def image(maker: Maker) -> Path:
    return maker.write("demo.oci.tar", "pure")


@pytest.fixture(scope="module")
def docker_image(maker: Maker) -> Path:
    return maker.write("demo.docker.tar", "pure", docker=True)


def inspected(archive: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(process.run(["skopeo", "inspect", *words, archive]).stdout)
    return found


def test_skopeo_reads_what_the_definition_says(image: Path, docker_image: Path, maker: Maker) -> None:
    for archive in (f"oci-archive:{image}", f"docker-archive:{docker_image}"):
        labels = inspected(archive)["Labels"]
        assert labels == {
            "org.opencontainers.image.title": "demo",
            "org.opencontainers.image.version": "1.0+x",
            "org.opencontainers.image.description": "A demonstration",
            "org.opencontainers.image.created": CREATED,
        }
        config = inspected(archive, "--config")
        assert config["created"] == CREATED
        run = config["config"]
        assert run["User"] == "10001:10001"
        assert run["Entrypoint"] == ["/opt/demo/bin/python", "-m", "http.server", str(maker.port)]
        assert run["WorkingDir"] == "/srv/app" and run["ExposedPorts"] == {f"{maker.port}/tcp": {}}
        assert {"FROM_BASE=yes", "TITLE=a web", "CONDA_PREFIX=/opt/demo", "HOME=/var/lib/web"} <= {
            *run["Env"]
        }
        assert len(config["history"]) - sum(one.get("empty_layer", False) for one in config["history"]) == 3


def test_docker_gets_a_health_check_and_a_tag(docker_image: Path, maker: Maker) -> None:
    with tarfile.open(docker_image) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(tar.extractfile(manifest["Config"]))  # type: ignore[arg-type]
    assert manifest["RepoTags"] == ["demo:1.0-x"], "a tag has no +"
    health = config["config"]["Healthcheck"]
    assert health["Test"][:2] == ["CMD", "/opt/demo/bin/python"]
    assert health["Test"][-1] == f"http://127.0.0.1:{maker.port}/"


def test_both_archives_hold_the_same_image(image: Path, docker_image: Path, tmp_path: Path) -> None:
    for archive, name in ((f"oci-archive:{image}", "one"), (f"docker-archive:{docker_image}", "two")):
        process.run(["skopeo", "--insecure-policy", "copy", "-q", archive, f"oci:{tmp_path}/{name}:1"])
    configs = [inspected(f"oci:{tmp_path}/{name}:1", "--config") for name in ("one", "two")]
    assert configs[0]["rootfs"] == configs[1]["rootfs"]


def test_it_runs_as_nobody_special_and_its_service_answers(image: Path, maker: Maker, tmp_path: Path) -> None:
    bundle = run_container.unpacked(f"oci-archive:{image}", tmp_path)
    with run_container.running(bundle, tmp_path) as container:
        said = run_container.answer(f"http://127.0.0.1:{maker.port}/", container)
        assert said == b"hello from a container\n"
        assert container.run("/bin/id", "-u").stdout == "10001\n"
        assert container.run("/bin/mkdir", "/var/lib/web/own").returncode == 0, "a folder of its own"
        assert container.run("/bin/mkdir", "/srv/app/other").returncode != 0
        with tarfile.open(image) as tar:
            index = json.load(tar.extractfile("index.json"))  # type: ignore[arg-type]
            digest = index["manifests"][0]["digest"].partition(":")[2]
            manifest = json.load(tar.extractfile(f"blobs/sha256/{digest}"))  # type: ignore[arg-type]
            digest = manifest["config"]["digest"].partition(":")[2]
            config = json.load(tar.extractfile(f"blobs/sha256/{digest}"))  # type: ignore[arg-type]
        healthy = container.run(*config["config"]["Healthcheck"]["Test"][1:])
        assert healthy.returncode == 0, healthy.stderr


def blobs(image: Path) -> list[str]:
    layers: list[str] = inspected(f"oci-archive:{image}")["Layers"]
    return layers


def test_a_changed_environment_moves_its_layer_alone(image: Path, maker: Maker) -> None:
    changed = maker.write("changed.oci.tar", "pure", "newer")
    before, after = blobs(image), blobs(changed)
    assert len(before) == 3
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_the_same_inputs_give_the_same_bytes(image: Path, docker_image: Path, maker: Maker) -> None:
    for path in (maker.folder / "app").iterdir():
        os.utime(path, (1, 1))
    shutil.rmtree(maker.folder / "layers/container")
    assert maker.write("again.oci.tar", "pure").read_bytes() == image.read_bytes()
    assert maker.write("again.docker.tar", "pure", docker=True).read_bytes() == docker_image.read_bytes()


def test_a_base_may_be_a_tar(image: Path, maker: Maker, tmp_path: Path) -> None:
    process.run(
        ["tar", "-c", "-f", tmp_path / "base.tar", "-C", maker.folder / "base", "--transform=s,^./,,", "."]
    )
    work = tmp_path / "work"
    work.mkdir()
    containers.oci(maker.shipment("pure", base=str(tmp_path / "base.tar")), tmp_path / "made.tar", work)
    assert blobs(tmp_path / "made.tar") == blobs(image)


def test_what_is_no_base_is_said_so(maker: Maker, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no layout")
    for wrong in (tmp_path / "text", tmp_path):
        with pytest.raises(UsageError, match="cannot be read as an OCI image layout"):
            containers.parts(maker.shipment("pure", base=str(wrong)))
    damaged = tmp_path / "damaged"
    shutil.copytree(maker.folder / "base", damaged)
    largest = max((damaged / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(BuildError, match="is damaged"):
        containers.oci(maker.shipment("pure", base=str(damaged)), tmp_path / "made.tar", work)

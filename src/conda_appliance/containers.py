"""A definition's environments and one of its services → a container image, in layers.

The system (without kernel and boot loader) or an image of yours is the base; the environments are a layer, and the
definition's files are one. Each is made once and kept by what decides it, so a changed environment moves one layer.
Sources: the OCI image specification 1.0 (https://github.com/opencontainers/image-spec: image-layout.md, manifest.md,
config.md, layer.md) and, for ``docker load``, Docker's image specification 1.2.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from conda_appliance import bootstrap, layers, payload, playbook, process, resources, trees
from conda_appliance.definition import ImageDefinition
from conda_appliance.definition_services import Service
from conda_appliance.errors import BuildError, UsageError
from conda_appliance.installation import Shipment

#: The user that a service runs as: no user of a Debian system has this number.
USER = 10001

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

#: What a container has from its host, or never starts.
_MACHINE_ONLY = (
    *("boot/*", "dev/*", "proc/*", "run/*", "sys/*", "tmp/*"),
    *("vmlinuz*", "initrd.img*", "usr/lib/modules", "usr/lib/grub", "usr/lib/firmware", "etc/fstab"),
)

#: The service is asked as its check on a machine asks it: a GET below 400.
_HEALTH = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A layer: the gzipped tar ``path`` with its SHA-256, the SHA-256 of the tar (its diff id), and what made it."""

    path: Path
    sha256: str
    diff: str
    about: str

    @property
    def descriptor(self) -> dict[str, Any]:
        """It as a manifest names it."""
        return {"mediaType": _LAYER, "digest": f"sha256:{self.sha256}", "size": self.path.stat().st_size}


def tools(image: ImageDefinition) -> tuple[str, ...]:
    """The programs of the host that a container image of this definition needs."""
    return ("tar", "pigz", *(bootstrap.tools() if image.container.base == "system" else ()))


def parts(shipment: Shipment) -> dict[str, object]:
    """What decides the bytes of a container image."""
    image, folder = shipment.image, shipment.folder
    base = image.container.base
    own = None if base == "system" else _read_base(folder / base)
    return {
        "definition": image.model_dump(mode="json", include={"name", "version", "summary", "container"}),
        "services": [one.model_dump(mode="json") for one in image.services],
        "files": [_digest_of_tree(folder / Path(item.source).expanduser()) for item in image.files],
        "places": [item.model_dump(mode="json") for item in image.files],
        "environment": shipment.linked.sha256,
        "system": shipment.lock.debian.model_dump(mode="json")
        if shipment.lock.debian and own is None
        else "",
        "base": own.manifest if own else "",
        "epoch": shipment.epoch,
        "code": layers.code(__file__, payload.__file__, bootstrap.__file__),
    }


def _digest_of_tree(path: Path) -> str:
    """The digest of a file or a tree: names, modes and contents."""
    return trees.digest(trees.dump(trees.listing(path, times=False)))


def oci(shipment: Shipment, to: Path, work: Path) -> None:
    """Write an OCI image layout as the tar ``to``; ``work`` is for what is only needed meanwhile."""
    blobs = _layers(shipment, work)
    config = _json(_config(shipment, blobs))
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": _digest(config), "size": len(config)},
            "layers": [blob.descriptor for blob in blobs],
        }
    )
    index = _json(
        {
            "schemaVersion": 2,
            "manifests": [
                {
                    "mediaType": _MANIFEST,
                    "digest": _digest(manifest),
                    "size": len(manifest),
                    "annotations": {"org.opencontainers.image.ref.name": shipment.image.version},
                    "platform": {"architecture": shipment.image.platform.debian, "os": "linux"},
                }
            ],
        }
    )
    with _Archive(to, shipment.epoch) as archive:
        archive.add("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        archive.add("index.json", index)
        for content in (manifest, config):
            archive.add(f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", content)
        for blob in {blob.sha256: blob for blob in blobs}.values():
            archive.add_file(f"blobs/sha256/{blob.sha256}", blob.path)


def docker(shipment: Shipment, to: Path, work: Path) -> None:
    """Write what ``docker load`` reads as the tar ``to``: its layers are not compressed there."""
    blobs = _layers(shipment, work)
    config = _json(_config(shipment, blobs))
    name = hashlib.sha256(config).hexdigest()
    tag = f"{shipment.image.name}:{_tag(shipment.image.version)}"
    manifest = [
        {"Config": f"{name}.json", "RepoTags": [tag], "Layers": [f"{blob.diff}/layer.tar" for blob in blobs]}
    ]
    with _Archive(to, shipment.epoch) as archive:
        archive.add("manifest.json", _json(manifest))
        archive.add(f"{name}.json", config)
        for blob in {blob.diff: blob for blob in blobs}.values():
            plain = work / "layer.tar"
            with plain.open("wb") as file:
                process.run_to(["pigz", "-d", "-c", blob.path], file)
            archive.add_file(f"{blob.diff}/layer.tar", plain)
            plain.unlink()


def _tag(version: str) -> str:
    """A version as a tag, which has no + and no ~."""
    return version.replace("+", "-").replace("~", "-")


# --- layers -------------------------------------------------------------------------------------------


def _layers(shipment: Shipment, work: Path) -> list[Blob]:
    """The base's layers, the lowest first, then the environments and the files."""
    image = shipment.image
    below = (
        [_system(shipment)]
        if image.container.base == "system"
        else _read_base(shipment.folder / image.container.base).blobs(work / "base")
    )
    return [*below, _environments(shipment), _files(shipment, work)]


def _system(shipment: Shipment) -> Blob:
    section = shipment.lock.debian
    assert section is not None
    system = bootstrap.system(
        section,
        shipment.image.base,
        shipment.archives,
        store=shipment.store,
        progress=lambda _text: None,
        without=shipment.image.slim,
    )
    return _kept(
        shipment,
        f"{section.suite}, without kernel",
        {"system": system.sha256, "without": " ".join(_MACHINE_ONLY)},
        lambda tar: _write_tar(system.path, tar, shipment.epoch, without=_MACHINE_ONLY),
    )


def _environments(shipment: Shipment) -> Blob:
    prefix = shipment.image.conda.prefix

    def write(tar: Path) -> None:
        with tar.open("wb") as file:
            file.writelines(payload.Tar(shipment.linked.path, [prefix], shipment.epoch).chunks())

    return _kept(shipment, "the conda environments", {"environment": shipment.linked.sha256}, write)


def _kept(shipment: Shipment, about: str, decided: Mapping[str, str], write: Any) -> Blob:
    """A layer from the cache, or made now and kept there."""

    def make(to: Path, work: Path) -> None:
        to.mkdir()
        _pack(work / "layer.tar", write, to)

    found = shipment.store.get(
        "container",
        {
            **decided,
            "epoch": str(shipment.epoch),
            "code": layers.code(__file__, payload.__file__),
        },
        make,
        quiet=True,
    )
    return _blob(found.path, about)


def _pack(tar: Path, write: Any, to: Path) -> None:
    """Write a tar, and it gzipped with its diff id beside it into the folder ``to``."""
    write(tar)
    (to / "diff").write_text(resources.sha256_of(tar), encoding="ascii")
    with (to / "layer.tar.gz").open("wb") as file:
        process.run_to(["pigz", "-n", "-4", "-c", "-p", str(max(2, os.cpu_count() or 1)), tar], file)
    tar.unlink()


def _blob(folder: Path, about: str) -> Blob:
    path = folder / "layer.tar.gz"
    diff = (folder / "diff").read_text(encoding="ascii")
    return Blob(path=path, sha256=resources.sha256_of(path), diff=diff, about=about)


def _files(shipment: Shipment, work: Path) -> Blob:
    """The definition's files, and the service's user with a folder of its own."""
    image = shipment.image
    root, to = work / "files", work / "files.layer"
    playbook.lay_files(image, shipment.folder, root)
    service = _service(image)
    home = root / f"var/lib/{service.name if service else image.name}"
    home.mkdir(parents=True)
    if image.container.base == "system" and service is not None:
        section = shipment.lock.debian
        assert section is not None
        system = bootstrap.system(
            section,
            image.base,
            shipment.archives,
            store=shipment.store,
            progress=lambda _text: None,
            without=image.slim,
        )
        _add_user(system.path, root, service.name)
    to.mkdir()
    _pack(work / "files.tar", lambda tar: _write_tar(root, tar, shipment.epoch, theirs=home), to)
    resources.remove(root)
    return _blob(to, "files and user")


def _add_user(system: Path, root: Path, name: str) -> None:
    """The system's list of users with one more: programs ask it who they are."""
    (root / "etc").mkdir(exist_ok=True)
    for file, line in (
        ("passwd", f"{name}:x:{USER}:{USER}:Service {name}:/var/lib/{name}:/usr/sbin/nologin"),
        ("group", f"{name}:x:{USER}:"),
    ):
        lines = (system / "etc" / file).read_text(encoding="utf-8").splitlines()
        kept = [one for one in lines if not one.startswith(f"{name}:")]
        (root / "etc" / file).write_text("".join(f"{one}\n" for one in [*kept, line]), encoding="utf-8")
        (root / "etc" / file).chmod(0o644)


def _write_tar(
    root: Path, to: Path, epoch: int, *, without: Sequence[str] = (), theirs: Path | None = None
) -> None:
    """A tree as a layer: owners and attributes as they are, names sorted, every time ``epoch``.

    ``theirs`` is a folder that belongs to the container's user.
    """
    if theirs is not None:
        os.chown(theirs, USER, USER)
    names = sorted(path.name for path in root.iterdir())
    process.run(
        [
            *("tar", "--create", "--file", to, "--directory", root, "--format=posix", "--sort=name"),
            "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
            *(f"--mtime=@{epoch}", "--numeric-owner", "--xattrs", "--xattrs-include=*"),
            *("--anchored", "--no-wildcards-match-slash", "--wildcards"),
            *(f"--exclude={one}" for one in without),
            *("--", *names),
        ]
    )


# --- what the container does --------------------------------------------------------------------------


def _service(image: ImageDefinition) -> Service | None:
    """The service that the container runs: the named one, or the first."""
    wanted = image.container.service
    found = [one for one in image.services if wanted in (None, one.name)]
    return found[0] if found else None


def _config(shipment: Shipment, blobs: Sequence[Blob]) -> dict[str, Any]:
    """The image's configuration, with what the base's says of its own layers and variables."""
    image = shipment.image
    base = image.container.base
    below = {} if base == "system" else _read_base(shipment.folder / base).config
    created = datetime.fromtimestamp(shipment.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    inherited = below.get("history", [])
    own = blobs if base == "system" else blobs[-2:]
    return {
        "created": created,
        "architecture": image.platform.debian,
        "os": "linux",
        "config": {
            **_runs(
                shipment, dict(one.partition("=")[::2] for one in below.get("config", {}).get("Env", []))
            ),
            "User": f"{USER}:{USER}",
            "Labels": {
                **(below.get("config", {}).get("Labels") or {}),
                "org.opencontainers.image.title": image.name,
                "org.opencontainers.image.version": image.version,
                "org.opencontainers.image.description": image.summary or image.name,
                "org.opencontainers.image.created": created,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{blob.diff}" for blob in blobs]},
        "history": [
            *inherited,
            *({"created": created, "created_by": f"conda-appliance: {blob.about}"} for blob in own),
        ],
    }


def _runs(shipment: Shipment, below: Mapping[str, str]) -> dict[str, Any]:
    """Entry point, variables, port and health check, as the service's unit on a machine has them."""
    image, service = shipment.image, _service(shipment.image)
    prefix = image.prefix_of(service.environment if service else "base")
    path = below.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    variables = {
        **below,
        "PATH": f"{prefix}/bin:{path}",
        "CONDA_PREFIX": prefix,
        "PYTHONUNBUFFERED": "1",
        "HOME": f"/var/lib/{service.name if service else image.name}",
        **(service.variables if service else {}),
    }
    found: dict[str, Any] = {
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "WorkingDir": (service.working_directory if service else None) or variables["HOME"],
        "StopSignal": "SIGTERM",
    }
    if service is None:
        return {**found, "Cmd": [f"{prefix}/bin/python"]}
    words = shlex.split(service.command)
    program = words[0] if words[0].startswith("/") else f"{prefix}/bin/{words[0]}"
    found["Entrypoint"] = [*_activated(shipment, prefix), program, *words[1:]]
    if service.port is not None:
        found["ExposedPorts"] = {f"{service.port}/tcp": {}}
        if (shipment.linked.path / prefix[1:] / "bin/python").exists():
            seconds = 1_000_000_000
            address = f"http://127.0.0.1:{service.port}{service.path}"
            found["Healthcheck"] = {
                "Test": ["CMD", f"{prefix}/bin/python", "-c", _HEALTH, address],
                "Interval": 30 * seconds,
                "Timeout": 10 * seconds,
                "StartPeriod": 60 * seconds,
                "Retries": 3,
            }
    return found


def _activated(shipment: Shipment, prefix: str) -> list[str]:
    """What runs the environment's activation scripts first, where it has any."""
    if not (shipment.linked.path / prefix[1:] / "etc/conda/activate.d").is_dir():
        return []
    script = f'for one in {shlex.quote(prefix)}/etc/conda/activate.d/*.sh; do . "$one"; done; exec "$@"'
    return ["/bin/bash", "-c", script, "bash"]


# --- a base of yours ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Base:
    """An image of somebody else's, in an OCI layout at ``path``: a folder, or a tar of one."""

    path: Path
    manifest: str
    config: dict[str, Any]
    layers: tuple[tuple[str, str], ...]

    def blobs(self, to: Path) -> list[Blob]:
        """Its layers, copied into the new folder ``to``. Raises BuildError for one that is not what it is named."""
        to.mkdir()
        made = []
        for number, (digest, diff) in enumerate(self.layers):
            path = to / str(number)
            with _open(self.path, f"blobs/sha256/{digest}") as source, path.open("wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
            if resources.sha256_of(path) != digest:
                raise BuildError(f"{self.path}: the layer {digest} is damaged", hint="copy the image anew")
            made.append(Blob(path=path, sha256=digest, diff=diff, about="base"))
        return made


def _read_base(path: Path) -> _Base:
    """Read an OCI layout. Raises UsageError for anything else, and for layers that are not gzipped tars."""
    try:
        with _open(path, "index.json") as file:
            listed = json.load(file)["manifests"]
        if len(listed) != 1:
            raise UsageError(
                f"container.base: {path} holds {len(listed)} images",
                hint="skopeo copy the one that is meant: skopeo copy docker://NAME:TAG oci:FOLDER:TAG",
            )
        digest = listed[0]["digest"].removeprefix("sha256:")
        with _open(path, f"blobs/sha256/{digest}") as file:
            manifest = json.load(file)
        with _open(path, f"blobs/sha256/{manifest['config']['digest'].removeprefix('sha256:')}") as file:
            config = json.load(file)
        digests = [one["digest"].removeprefix("sha256:") for one in manifest["layers"]]
        kinds = {one["mediaType"] for one in manifest["layers"]}
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise UsageError(
            f"container.base: {path} cannot be read as an OCI image layout: {error}",
            hint="skopeo copy docker://NAME:TAG oci:FOLDER:TAG",
        ) from None
    if kinds - {_LAYER}:
        raise UsageError(
            f"container.base: {path} has layers of the kind {', '.join(sorted(kinds - {_LAYER}))}",
            hint="skopeo copy --dest-compress-format gzip … oci:FOLDER:TAG",
        )
    diffs = [one.removeprefix("sha256:") for one in config["rootfs"]["diff_ids"]]
    return _Base(path=path, manifest=digest, config=config, layers=tuple(zip(digests, diffs, strict=True)))


def _open(layout: Path, name: str) -> IO[bytes]:
    """A file of an OCI layout. Raises OSError or KeyError when it is not there."""
    if layout.is_dir():
        return (layout / name).open("rb")
    with tarfile.open(layout) as tar:
        file = tar.extractfile(name)
        if file is None:
            raise KeyError(name)
        return io.BytesIO(file.read())


# --- the archive --------------------------------------------------------------------------------------


class _Archive:
    """A tar that is written member by member; all of it is root's and of one time."""

    def __init__(self, to: Path, epoch: int) -> None:
        self._to, self._epoch, self._folders = to, epoch, set[str]()

    def __enter__(self) -> _Archive:
        self._tar = tarfile.open(self._to, "w", format=tarfile.GNU_FORMAT)
        return self

    def __exit__(self, *_error: object) -> None:
        self._tar.close()

    def add(self, name: str, content: bytes) -> None:
        """Add a small file."""
        self._tar.addfile(self._member(name, len(content)), io.BytesIO(content))

    def add_file(self, name: str, path: Path) -> None:
        """Add a file of the file system."""
        with path.open("rb") as file:
            self._tar.addfile(self._member(name, path.stat().st_size), file)

    def _member(self, name: str, size: int) -> tarfile.TarInfo:
        for folder in _above(name):
            if folder not in self._folders:
                self._folders.add(folder)
                made = tarfile.TarInfo(folder)
                made.type, made.mode, made.mtime = tarfile.DIRTYPE, 0o755, self._epoch
                self._tar.addfile(made)
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, 0o644, self._epoch
        return info


def _above(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    return ("/".join(parts[: number + 1]) for number in range(len(parts)))


def _json(value: Any) -> bytes:
    """As canonical as a digest wants it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"

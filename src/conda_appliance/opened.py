"""An artifact of any form → the environments in it, file by file, to be compared with what its lock gives.

What a form is packed in is taken off by the tools that its users have; nothing that stands in an artifact is run.
Owners, modes, links and contents are compared, times are not.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from conda_appliance import compare, formats, platforms, process, resources, trees
from conda_appliance.errors import BuildError
from conda_appliance.tars import tarfile

#: What a machine image adds to the environments: settings, and that nobody changes them.
_OF_IMAGES = (".condarc", "conda-meta/frozen", "lib/python3*/EXTERNALLY-MANAGED")
#: What else a form adds on purpose, by name; anything more is told.
_ADDED = {
    "userspace-iso": ("conda-meta/frozen", "lib/python3*/EXTERNALLY-MANAGED"),
    **dict.fromkeys(
        ("tar", "sh"),
        (
            *("bin", "bin/activate", "bin/deactivate", "bin/conda-unpack", "share", "share/conda-unpack"),
            *(
                f"share/conda-unpack/{name}"
                for name in ("about", "paths", "relocations", "relocate.sh", "bytecode.py")
            ),
        ),
    ),
}

#: The programs of the host that open each form, beside those of `compare`.
TOOLS = {
    "raw.zst": ("zstd",),
    "ova": ("tar",),
    "gce": ("tar", "pigz"),
    "tar": ("tar", "zstd"),
    "sh": ("tar", "gzip"),
    "deb": ("dpkg-deb",),
    "rpm": ("rpm2archive", "tar", "gzip"),
    "payload-iso": ("xorriso", "tar"),
    "userspace-iso": ("xorriso", "unsquashfs", "fsck.erofs"),
    "live-iso": ("xorriso", "unsquashfs"),
    "installer-iso": ("xorriso", "zstd"),
}


def form_of(path: Path, *, name: str, version: str, platform: str = platforms.DEFAULT) -> str | None:
    """The form that a file is by its name, of an appliance's name, version and platform; None where it is none."""
    for form in formats.BY_NAME:
        if formats.file_name(form, name=name, version=version, platform=platform) == path.name:
            return form
    return None


def differences(form: str, path: Path, expected: Path, *, prefix: str, work: Path) -> list[str]:
    """How the environments in an artifact differ from the tree ``expected``: lines as of `trees.differences`.

    ``prefix`` is where they live; ``work`` an empty folder for what is only needed meanwhile. Raises BuildError for
    what cannot be opened, ToolMissing naming what opens the form.
    """
    process.require(*TOOLS.get(form, ()), *(compare.tools() if form in _DISKS else ()))
    found = (
        _DISKS[form](path, prefix, work)
        if form in _DISKS
        else trees.listing(_TREES[form](path, prefix, work), times=False)
    )
    wanted = trees.listing(expected, times=False)
    added = _ADDED.get(form, _OF_IMAGES if form in _DISKS or form == "live-iso" else ())
    for name in [one for one in found if (one not in wanted or one == ".condarc") and _matches(one, added)]:
        del found[name]
        wanted.pop(name, None)  # an installer's settings, which the machine's own replace
    found["."] = wanted["."]  # the folder itself is the machine's
    return trees.differences(wanted, found)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


# --- disks ------------------------------------------------------------------------------------------


def _disk(path: Path, prefix: str, work: Path) -> dict[str, str]:
    """What the root file system of a disk has at the prefix."""
    looked = work / "look"
    looked.mkdir()
    inside = prefix.strip("/")
    listed = compare.tree_of(path, looked, times=False)
    if inside not in listed:
        raise BuildError(
            f"{path.name} has no {prefix} in its root file system",
            hint="a disk with disk.layout: split cannot be opened here",
        )
    found = {
        name.removeprefix(f"{inside}/"): about
        for name, about in listed.items()
        if name.startswith(f"{inside}/")
    }
    return {".": listed[inside], **found}


def _unpacked_disk(pattern: str) -> Callable[[Path, str, Path], dict[str, str]]:
    def look(path: Path, prefix: str, work: Path) -> dict[str, str]:
        process.run(["tar", "--sparse", "-x", "-f", path, "-C", work])
        (disk,) = work.glob(pattern)
        return _disk(disk, prefix, work)

    return look


def _zstd_disk(path: Path, prefix: str, work: Path) -> dict[str, str]:
    process.run(["zstd", "-q", "-d", "--sparse", path, "-o", work / "disk.raw"])
    return _disk(work / "disk.raw", prefix, work)


def _installer_disc(path: Path, prefix: str, work: Path) -> dict[str, str]:
    """The image that the disc writes: its first MiB, and then what its map says where it stands."""
    _extract(path, "/appliance", work / "disc")
    process.run(["zstd", "-q", "-d", work / "disc/disk.zst", "-o", work / "rest"])
    places = [
        tuple(map(int, line.split())) for line in (work / "disc/disk.map").read_text().splitlines() if line
    ]
    match = re.search(r"^size=['\"]?(\d+)", (work / "disc/installer.conf").read_text(), re.MULTILINE)
    if match is None:
        raise BuildError(f"{path.name} does not say how large its image is")
    size = int(match[1])
    with (work / "disk.raw").open("wb") as disk, (work / "rest").open("rb") as rest:
        disk.write((work / "disc/disk.first").read_bytes())
        for start, length, *_ in places:
            disk.seek(start)
            shutil.copyfileobj(_Some(rest, length), disk)
        disk.truncate(size)
    return _disk(work / "disk.raw", prefix, work)


class _Some:
    """The next ``left`` bytes of a file, to be read."""

    def __init__(self, file: object, left: int) -> None:
        self._file, self._left = file, left

    def read(self, count: int = -1) -> bytes:
        """As a file's."""
        wanted = self._left if count < 0 else min(count, self._left)
        data: bytes = self._file.read(wanted)  # type: ignore[attr-defined]
        self._left -= len(data)
        return data


# --- trees ------------------------------------------------------------------------------------------


def _tar(path: Path, _prefix: str, work: Path) -> Path:
    (work / "tree").mkdir()
    process.run(["tar", "--zstd", "-x", "-p", "-f", path, "-C", work / "tree"])
    return work / "tree"


def _installer(path: Path, _prefix: str, work: Path) -> Path:
    """The tar behind the script, which says where it begins; the script itself does not run."""
    with path.open("rb") as file:
        match = re.search(rb"^header=0*(\d+)", file.read(1 << 16), re.MULTILINE)
    if match is None:
        raise BuildError(f"{path.name} is no installer: it does not say where its tar begins")
    (work / "tree").mkdir()
    unpack = 'tail -c "+$1" "$2" | gzip -d | tar -x -p -f - -C "$3"'
    process.run(["sh", "-euc", unpack, "sh", str(int(match[1]) + 1), path, work / "tree"])
    return work / "tree"


def _container(path: Path, prefix: str, work: Path) -> Path:
    """The layers one over the other, as far as they are at the prefix (OCI image layout, or docker save's)."""
    outer, tree = work / "image", work / "tree"
    outer.mkdir()
    process.run(["tar", "-x", "-f", path, "-C", outer])
    if (outer / "manifest.json").is_file():
        layers = [outer / name for name in json.loads((outer / "manifest.json").read_text())[0]["Layers"]]
    else:
        index = json.loads((outer / "index.json").read_text())
        manifest = json.loads(_blob(outer, index["manifests"][0]["digest"]).read_text())
        layers = [_blob(outer, one["digest"]) for one in manifest["layers"]]
    inside = prefix.strip("/")
    tree.mkdir()
    for layer in layers:
        with tarfile.open(layer) as archive:
            for member in archive:
                name = PurePosixPath(member.name.removeprefix("./"))
                if not name.is_relative_to(inside):
                    continue
                _require_within(tree, name.parent, path)
                if name.name == ".wh..wh..opq":
                    resources.remove(tree / name.parent)
                    continue
                if name.name.startswith(".wh."):
                    resources.remove(tree / name.with_name(name.name.removeprefix(".wh.")))
                    continue
                if member.islnk():
                    _require_within(tree, PurePosixPath(member.linkname), path)
                if not member.isdir() or (tree / name).is_symlink():
                    resources.remove(tree / name)  # what lies there is replaced, never written through
                archive.extract(member, tree, numeric_owner=True, filter="fully_trusted")
    return tree / inside


def _require_within(tree: Path, name: PurePosixPath, artifact: Path) -> None:
    """Raise BuildError for a name in a layer that a link, or ``..``, leads out of ``tree``: it is written by root."""
    if not (tree / name).resolve().is_relative_to(tree.resolve()):
        raise BuildError(
            f"{artifact.name} has {name}, which leads out of it", hint="somebody made it to do harm"
        )


def _blob(folder: Path, digest: str) -> Path:
    algorithm, _, value = digest.partition(":")
    if not re.fullmatch(r"[a-z0-9]+", algorithm) or not re.fullmatch(r"[0-9a-f]+", value):
        raise BuildError(f"{digest!r} is no digest")
    return folder / "blobs" / algorithm / value


def _deb(path: Path, prefix: str, work: Path) -> Path:
    process.run(["dpkg-deb", "--extract", path, work / "tree"])
    return work / "tree" / prefix.strip("/")


def _rpm(path: Path, prefix: str, work: Path) -> Path:
    (work / "tree").mkdir()
    unpack = 'rpm2archive - <"$1" | gzip -d | tar -x -p -f - -C "$2"'
    process.run(["sh", "-euc", unpack, "sh", path, work / "tree"])
    return work / "tree" / prefix.strip("/")


def _payload_disc(path: Path, prefix: str, work: Path) -> Path:
    _extract(path, "/environment.tar", work / "environment.tar")
    (work / "tree").mkdir()
    process.run(["tar", "-x", "-p", "--numeric-owner", "-f", work / "environment.tar", "-C", work / "tree"])
    return work / "tree" / prefix.strip("/")


def _userspace_disc(path: Path, _prefix: str, work: Path) -> Path:
    disc = work / "disc"
    _extract(path, "/", disc)
    packed = disc / "environment.img"
    if not packed.exists():
        return disc / "environment"
    with packed.open("rb") as file:
        squashed = file.read(4) == b"hsqs"
    if squashed:
        process.run(["unsquashfs", "-no-progress", "-quiet", "-dest", work / "tree", packed])
    else:
        process.run(["fsck.erofs", f"--extract={work / 'tree'}", packed])
    return work / "tree"


def _live_disc(path: Path, prefix: str, work: Path) -> Path:
    _extract(path, "/appliance/root.squashfs", work / "root.squashfs")
    inside = prefix.strip("/")
    process.run(
        ["unsquashfs", "-no-progress", "-quiet", "-dest", work / "tree", work / "root.squashfs", inside]
    )
    return work / "tree" / inside


def _extract(disc: Path, inside: str, to: Path) -> None:
    process.run(["xorriso", "-osirrox", "on", "-indev", disc, "-extract", inside, to])


_TREES: Mapping[str, Callable[[Path, str, Path], Path]] = {
    "tar": _tar,
    "sh": _installer,
    "oci": _container,
    "docker-archive": _container,
    "deb": _deb,
    "rpm": _rpm,
    "payload-iso": _payload_disc,
    "userspace-iso": _userspace_disc,
    "live-iso": _live_disc,
}
_DISKS: Mapping[str, Callable[[Path, str, Path], dict[str, str]]] = {
    **dict.fromkeys(("qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi"), _disk),
    "raw.zst": _zstd_disk,
    "ova": _unpacked_disk("*.vmdk"),
    "gce": _unpacked_disk("disk.raw"),
    "box-libvirt": _unpacked_disk("box.img"),
    "box-qemu": _unpacked_disk("box.img"),
    "box-virtualbox": _unpacked_disk("*.vmdk"),
    "installer-iso": _installer_disc,
}

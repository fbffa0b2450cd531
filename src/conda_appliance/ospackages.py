"""Linked environments, files and services → a Debian package and an RPM, by the distributions' own tools.

Everything is in the package; its scripts make the services' users and start them, and do nothing else. Sources: Debian
Policy 4 (chapters 5 and 6), https://rpm-software-management.github.io/rpm/manual/spec.html.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import signal
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conda_appliance import (
    contract,
    layers,
    namespace,
    playbook,
    process,
    relocation,
    render,
    resources,
    trees,
    units,
)
from conda_appliance.errors import UsageError
from conda_appliance.installation import Shipment

#: Folders that a system has before any package of ours: an RPM must not own them.
_SYSTEM = frozenset(
    f"/{path}"
    for path in (
        *("", "etc", "opt", "srv", "usr", "usr/bin", "usr/lib", "usr/lib/systemd", "usr/lib/systemd/system"),
        *(
            "usr/lib/systemd/system/multi-user.target.wants",
            "usr/lib/sysusers.d",
            "usr/local",
            "usr/local/bin",
        ),
        *("usr/share", "usr/share/doc", "var", "var/lib", "usr/sbin", "usr/local/lib", "usr/local/share"),
    )
)
#: What lintian says of an appliance's package, and why it stays so.
OVERRIDDEN = {
    "dir-or-file-in-opt": "a prefix of its own is where a conda environment belongs, and what the definition says",
    "dir-or-file-in-srv": "the definition says where its files stand",
    "embedded-library": "an environment brings its own libraries: they are what was locked and tested",
    "library-not-linked-against-libc": "conda's packages are installed as their builders made them",
    "maintainer-script-calls-systemctl": "a link in the package enables the services; what is left is to restart them",
    "package-contains-timestamped-gzip": "every byte is what conda's records name",
    "package-installs-python-pycache-dir": "byte code of the environment's own Python, which no trigger compiles",
    "python3-script-but-no-python3-dep": "the environment brings its own Python",
    "script-not-executable": "files have the modes of their packages",
    "shared-library-is-executable": "files have the modes of their packages",
    "shared-library-lacks-prerequisites": "extension modules find their symbols in the interpreter that loads them",
    "shell-script-fails-syntax-check": "the packages' own templates of scripts, which nobody runs as they are",
    "unstripped-binary-or-object": "every byte is what conda's records name",
    "unusual-interpreter": "scripts start the environment's own interpreter",
}

_UNITS, _WANTED = "usr/lib/systemd/system", "usr/lib/systemd/system/multi-user.target.wants"


def parts(shipment: Shipment) -> dict[str, object]:
    """What decides the bytes of a package."""
    image, folder = shipment.image, shipment.folder
    templates = resources.find("templates/packages", shipment.project)
    return {
        "definition": image.model_dump(
            mode="json", include={"name", "version", "summary", "services", "files", "package", "base"}
        ),
        "files": [
            trees.digest(trees.dump(trees.listing(folder / Path(item.source).expanduser(), times=False)))
            for item in image.files
        ],
        "units": [unit.system for unit in units.payload_units(image, project=shipment.project)],
        "users": units.payload_users(image, project=shipment.project),
        "templates": [path.read_text(encoding="utf-8") for path in sorted(templates.iterdir())],
        "platform": image.platform.name,
        "environment": shipment.linked.sha256,
        "glibc": contract.of(shipment.lock.conda.virtual_packages).glibc,
        "epoch": shipment.epoch,
        "code": layers.code(__file__, render.__file__, units.__file__, relocation.__file__),
    }


def deb(shipment: Shipment, to: Path, work: Path) -> None:
    """Write the Debian package ``to``; ``work`` is for what is only needed meanwhile."""
    made = _Staged.make(shipment, work / "tree")
    root, values = made.own, made.values
    doc = root / f"usr/share/doc/{values['name']}"
    changes = f"{values['name']} ({values['version']}) unstable; urgency=low\n\n  * As its lock says.\n\n"
    date = process.run(["date", "-u", "-R", "-d", f"@{shipment.epoch}"]).stdout.strip()
    changes += f" -- {values['maintainer']}  {date}\n"
    (doc / "changelog.gz").write_bytes(gzip.compress(changes.encode(), mtime=0))
    overrides = root / f"usr/share/lintian/overrides/{values['name']}"
    overrides.parent.mkdir(parents=True)
    _write(overrides, "overrides", shipment, {**values, "overridden": OVERRIDDEN})
    control = root / "DEBIAN"
    control.mkdir()
    files = [path for path, about in made.paths() if stat.S_ISREG(about.st_mode)]
    sums = "".join(f"{_md5(made.place(path))}  {path}\n" for path in files if not path.startswith("DEBIAN/"))
    (control / "md5sums").write_text(sums, encoding="utf-8", errors="surrogateescape")
    settings = [f"/{path}\n" for path in files if path.startswith("etc/")]
    if settings:
        (control / "conffiles").write_text("".join(settings), encoding="utf-8")
    _write(control / "control", "control", shipment, values)
    for script in ("postinst", "prerm", "postrm") if values["services"] else ():
        _write(control / script, script, shipment, values)
        (control / script).chmod(0o755)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())):
        folder.chmod(folder.stat().st_mode | 0o055)
    made.run(
        lambda whole: ["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", whole, to.absolute()],
        work,
        {"SOURCE_DATE_EPOCH": str(shipment.epoch), "TZ": "UTC", "TMPDIR": str(work)},
    )
    _clear(work)


def rpm(shipment: Shipment, to: Path, work: Path) -> None:
    """Write the RPM ``to``; ``work`` is for what is only needed meanwhile."""
    made = _Staged.make(shipment, work / "tree")
    listed = work / "files"
    listed.write_text(_file_list(made.paths()), encoding="utf-8", errors="surrogateescape")
    spec = work / "package.spec"
    day = datetime.fromtimestamp(shipment.epoch, UTC).strftime("%a %b %d %Y")
    _write(spec, "package.spec", shipment, {**made.values, "listed": listed, "day": day})
    places = {
        "_topdir": work / "rpm",
        "_dbpath": work / "db",
        "_tmppath": work,
        "_rpmdir": work,
        "_rpmfilename": "package.rpm",
    }
    command: list[process.Argument] = ["rpmbuild", "-bb", "--noclean", "--quiet"]
    command += ["--target", f"{shipment.image.platform.machine}-linux"]
    for name, place in places.items():
        command += ["--define", f"{name} {place}"]
    made.run(
        lambda whole: [*command, "--buildroot", whole, spec],
        work,
        {"SOURCE_DATE_EPOCH": str(shipment.epoch), "TZ": "UTC", "HOME": str(work)},
    )
    (work / "package.rpm").rename(to)
    _clear(work)


@dataclass(frozen=True, kw_only=True)
class _Staged:
    """The files of a package, as they will stand on a machine: its ``own`` and the environments below them.

    ``values`` are for its templates.
    """

    own: Path
    below: Path
    values: dict[str, Any]

    @classmethod
    def make(cls, shipment: Shipment, root: Path) -> _Staged:
        image = shipment.image
        prefix = image.conda.prefix
        root.mkdir()
        playbook.lay_files(image, shipment.folder, root)
        if (root / prefix[1:]).exists():
            raise UsageError(
                f"files: one of them lies in {prefix}, which a package cannot lay over its environments"
            )
        below = shipment.linked.path
        services = units.payload_units(image, project=shipment.project)
        if services:
            (root / _WANTED).mkdir(parents=True)
            for unit in services:
                _text(root / _UNITS / f"{unit.name}.service", _placed(unit.system, image.name, prefix))
                (root / _WANTED / f"{unit.name}.service").symlink_to(f"../{unit.name}.service")
            users = root / f"usr/lib/sysusers.d/{image.name}.conf"
            users.parent.mkdir(parents=True)
            _text(users, units.payload_users(image, project=shipment.project))
        sections = shipment.lock.conda.environments.values()
        values = {
            "name": image.name,
            "version": image.version,
            # Neither distribution wants an article before it.
            "summary": re.sub(r"^(?:An?|The) ", "", " ".join((image.summary or image.name).split())),
            "prefix": prefix,
            "maintainer": image.package.maintainer,
            "license": image.package.license,
            "year": datetime.fromtimestamp(shipment.epoch, UTC).year,
            "services": [unit.name for unit in services],
            "architecture": image.platform.debian,
            "glibc": contract.of(shipment.lock.conda.virtual_packages).glibc,
            "kilobytes": -(
                -sum(about.st_size for _, about in (*trees.walk(root), *trees.walk(below))) // 1024
            ),
            "packages": sorted({f"{one.name} {one.version}" for part in sections for one in part.packages}),
        }
        doc = root / f"usr/share/doc/{image.name}"
        doc.mkdir(parents=True)
        _write(doc / "copyright", "copyright", shipment, values)
        return cls(own=root, below=below, values=values)

    def paths(self) -> trees.Paths:
        """Every path of the package, sorted, with its lstat."""
        return sorted((dict(trees.walk(self.below)) | dict(trees.walk(self.own))).items())

    def place(self, path: str) -> Path:
        """Where one of them is."""
        own = self.own / path
        return own if own.is_symlink() or own.exists() else self.below / path

    def run(
        self, command: Callable[[Path], Sequence[process.Argument]], work: Path, settings: Mapping[str, str]
    ) -> None:
        """Run the ``command`` for a folder that has all of it: mounted, or where that cannot be, copied."""
        whole = work.absolute() / "root"
        if namespace.can_mount():
            mounted, variables = namespace.script(work, [self.own, self.below])
            process.run(
                namespace.isolated(mounted, command(whole)),
                env={**settings, **variables},
                orphaned=signal.SIGKILL,
            )
        else:
            for tree in (self.below, self.own):
                process.run(["cp", "-aT", "--no-preserve=ownership", tree, whole])
            process.run(command(whole), env=settings)


def _placed(unit: str, name: str, prefix: str) -> str:
    """A unit with the paths of a package where an installation has marks."""
    placed = unit.replace("@CONDA_APPLIANCE_PREFIX@", prefix)
    return placed.replace("@CONDA_APPLIANCE_STORE@/current/environments", "/etc/conda-appliance/environments")


def _file_list(paths: trees.Paths) -> str:
    """The files of an RPM: its own folders by name, settings as such."""
    lines = []
    for path, about in paths:
        place = "/" if path == "." else f"/{path}"
        quoted = '"' + place.replace("%", "%%").replace('"', '\\"') + '"'
        if stat.S_ISDIR(about.st_mode):
            if place not in _SYSTEM:
                lines.append(f"%dir %attr({stat.S_IMODE(about.st_mode):o}, root, root) {quoted}\n")
        elif stat.S_ISLNK(about.st_mode):
            lines.append(f"{quoted}\n")
        else:
            kind = "%config(noreplace) " if place.startswith("/etc/") else ""
            lines.append(f"{kind}%attr({stat.S_IMODE(about.st_mode):o}, root, root) {quoted}\n")
    return "".join(lines)


def _write(path: Path, template: str, shipment: Shipment, values: Mapping[str, object]) -> None:
    _text(path, render.text(f"packages/{template}.j2", project=shipment.project, **values))


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)


def _clear(work: Path) -> None:
    for path in work.iterdir():
        resources.remove(path)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

"""What an appliance is made of → one bill of materials, which `cyclonedx`, `spdx` and the licence report write.

Debian's packages, conda's, PyPI's wheels, the programs and the files of the definition: each with its purl, its
licence, its SHA-256 and where it came from, as the lock has them and as the packages themselves say. Nothing in it
depends on the clock or on this host, so the same lock gives the same bill.

Sources: https://github.com/package-url/purl-spec (purl), https://spdx.github.io/spdx-spec/v2.3/ (licence expressions),
https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/ (copyright files).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packageurl import PackageURL
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from conda_appliance import (
    bootstrap,
    debs,
    layers,
    lazy,
    linking,
    prefix_check,
    process,
    resources,
    trees,
)
from conda_appliance.definition import ImageDefinition
from conda_appliance.layer import Layer
from conda_appliance.layers import Store
from conda_appliance.lock import CondaPackage, DebianPackage, DebianSection, Lock, Wheel

if TYPE_CHECKING:
    from conda_appliance import pypi
else:
    pypi = lazy.module("conda_appliance.pypi")

#: Where the bill stands in a machine image, as CycloneDX.
PLACE = "etc/conda-appliance/sbom.cdx.json"
#: Debian's short names of licences, and SPDX's for the same (those that are the same in both are not here).
_DEBIAN = {
    "apache-2": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause",
    "bsd-4-clause-uc": "BSD-4-Clause-UC",
    "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "expat": "MIT",
    "gfdl-1.3": "GFDL-1.3-only",
    "gfdl-1.3+": "GFDL-1.3-or-later",
    "gpl-1": "GPL-1.0-only",
    "gpl-1+": "GPL-1.0-or-later",
    "gpl-2": "GPL-2.0-only",
    "gpl-2+": "GPL-2.0-or-later",
    "gpl-3": "GPL-3.0-only",
    "gpl-3+": "GPL-3.0-or-later",
    "isc": "ISC",
    "lgpl-2": "LGPL-2.0-only",
    "lgpl-2+": "LGPL-2.0-or-later",
    "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-2.1+": "LGPL-2.1-or-later",
    "lgpl-3": "LGPL-3.0-only",
    "lgpl-3+": "LGPL-3.0-or-later",
    "mpl-1.1": "MPL-1.1",
    "mpl-2.0": "MPL-2.0",
    "zlib": "Zlib",
}


@dataclass(frozen=True, kw_only=True)
class Component:
    """One thing that an appliance has.

    ``kind`` is "deb", "conda", "pypi", "program" or "file"; ``licences`` are SPDX expressions, or names where there is
    no such expression; ``texts`` are where the licence texts stand on the machine; ``part`` is "system" or an
    environment's name.
    """

    kind: str
    name: str
    version: str
    part: str
    sha256: str = ""
    purl: str = ""
    url: str = ""
    supplier: str = ""
    licences: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def ref(self) -> str:
        """What names it in a bill: the same for the same thing at the same place."""
        text = f"{self.kind}:{self.part}:{self.name}:{self.version}"
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class Bill:
    """All that an appliance has; ``whole`` is False where the base is an image whose packages nobody locked."""

    name: str
    version: str
    summary: str
    lock: str
    epoch: int
    whole: bool
    components: tuple[Component, ...] = field(repr=False)

    def digest(self) -> str:
        """A UUID's 32 hexadecimal digits that are the same for the same bill."""
        text = json.dumps(
            [self.name, self.version, self.lock, [vars(one) for one in self.components]], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def make(
    image: ImageDefinition,
    lock: Lock,
    files: Mapping[str, Path],
    linked: Path,
    *,
    folder: Path,
    store: Store,
    epoch: int,
) -> Bill:
    """The bill of a definition and its lock.

    ``files`` are the lock's by SHA-256; ``linked`` the environments as a tree whose root is the machine's; ``folder``
    is the definition's; ``store`` keeps what was read from Debian's packages, and perhaps has them unpacked.
    """
    found: list[Component] = []
    if lock.debian is not None:
        debian = lock.debian

        def system() -> Layer | None:
            return bootstrap.there(debian, image.base, store=store, without=image.slim)

        said = _debian_facts(debian, files, store, system)
        found += [_of_debian(one, lock.debian.suite, said[one.name]) for one in lock.debian.packages]
        for one in lock.debian.boot or ():
            found.append(_of_debian(one, lock.debian.suite, said[one.name], part="boot loader"))
    for name, section in sorted(lock.conda.environments.items()):
        prefix = linked / section.prefix.lstrip("/")
        records = {record["name"]: record for record in prefix_check.records(prefix)}
        for package in section.packages:
            found.append(_of_conda(package, records[package.name], name, section.prefix))
        for wheel in section.wheels or ():
            found.append(_of_wheel(wheel, files[wheel.sha256], name, prefix, section.prefix))
    for name, program in sorted((lock.programs or {}).items()):
        if program.kind != "wheel":
            found.append(
                Component(
                    kind="program",
                    name=name,
                    version=program.commit or image.version,
                    part="system",
                    sha256=program.sha256,
                    url=program.url if "://" in program.url else "",
                )
            )
    found += _of_files(image, folder)
    return Bill(
        name=image.name,
        version=image.version,
        summary=image.summary,
        lock=lock.digest,
        epoch=epoch,
        whole=lock.debian is not None,
        components=tuple(sorted(found, key=lambda one: (one.kind, one.part, one.name, one.version))),
    )


@functools.cache
def expression(text: str) -> str:
    """``text`` as an SPDX expression, or nothing where it is none."""
    try:
        return canonicalize_license_expression(text)
    except (InvalidLicenseExpression, ValueError):
        return ""


# --- Debian -----------------------------------------------------------------------------------------


def _of_debian(
    package: DebianPackage, suite: str, said: Mapping[str, Any], part: str = "system"
) -> Component:
    qualifiers = {"arch": package.architecture, "distro": suite}
    if said["source"]:
        qualifiers["upstream"] = said["source"]
    purl = PackageURL("deb", "debian", package.name, package.version, qualifiers)
    return Component(
        kind="deb",
        name=package.name,
        version=package.version,
        part=part,
        sha256=package.sha256,
        purl=purl.to_string(),
        url=package.url,
        supplier=said["maintainer"],
        licences=tuple(said["licences"]),
        texts=(f"/usr/share/doc/{package.name}/copyright",) if said["text"] and part == "system" else (),
    )


def _debian_facts(
    section: DebianSection,
    files: Mapping[str, Path],
    store: Store,
    system: Callable[[], Layer | None],
) -> dict[str, dict[str, Any]]:
    """What .debs say of themselves, read once for the same set of them; ``system`` has them unpacked, or None."""

    def make(to: Path, work: Path) -> None:
        unpacked = system()
        rest = section.every if unpacked is None else section.boot or ()
        _unpack_copyrights(rest, files, work)
        said = {
            one.name: _facts(
                one,
                debs.control(files[one.sha256]),
                work if unpacked is None or one in rest else unpacked.path,
            )
            for one in section.every
        }
        to.write_text(json.dumps(said, sort_keys=True), encoding="utf-8")

    parts: layers.Parts = {
        "packages": layers.digest_of(sorted(one.sha256 for one in section.every)),
        "code": layers.code(__file__),
    }
    layer = store.get("debian-facts", parts, make, name="facts.json", quiet=True)
    found: dict[str, dict[str, Any]] = json.loads(layer.path.read_text())
    return found


#: The copyright file of one .deb, below the folder $2.
_COPYRIGHT = """
dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --wildcards './usr/share/doc/*' 2>/dev/null || true
"""


def _unpack_copyrights(packages: Sequence[DebianPackage], files: Mapping[str, Path], to: Path) -> None:
    """Unpack the documentation of .debs into the folder ``to``: their copyright files are in it."""
    to.mkdir(exist_ok=True)
    argv = ["sh", "-euc", _COPYRIGHT, "sh"]
    process.side_by_side(
        *(partial(process.run, [*argv, files[one.sha256], to]) for one in packages), workers=4
    )


def _facts(package: DebianPackage, control: str, root: Path) -> dict[str, Any]:
    """What a package says by its control file, and by its copyright file below ``root``."""
    fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line and line[0] != " ")
    path = root / "usr/share/doc" / package.name / "copyright"
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    return {
        "maintainer": fields.get("Maintainer", ""),
        "source": fields.get("Source", "").partition(" ")[0],
        "licences": licences_of_copyright(text),
        "text": bool(text),
    }


def licences_of_copyright(text: str) -> list[str]:
    """The licences that a Debian copyright file names, as SPDX has them where it does, sorted.

    Of a file in no machine-readable format, those of /usr/share/common-licenses that it refers to.
    """
    if not re.match(r"Format(-Specification)?:", text):
        names = re.findall(r"/usr/share/common-licenses/([A-Za-z0-9.-]+[A-Za-z0-9])", text)
    else:
        names = re.findall(r"^License:[ \t]*(\S[^\n]*)", text, re.MULTILINE)
    found = set()
    for name in names:
        for one in re.split(
            r"\s+(?:and|or)\s+|,\s*(?:and|or)?\s*|\s*\|\s*", name.strip(), flags=re.IGNORECASE
        ):
            if one := one.strip(" ,;()"):
                found.add(_DEBIAN.get(one.lower()) or expression(one) or one)
    return sorted(found)


# --- conda, PyPI, files -----------------------------------------------------------------------------


def _of_conda(package: CondaPackage, record: Mapping[str, Any], part: str, prefix: str) -> Component:
    said = str(record.get("license") or "")
    url = linking.public_url(package)
    qualifiers = {
        "build": package.build,
        "channel": record["channel"],
        "subdir": package.subdir,
        "type": "conda" if package.filename.endswith(".conda") else "tar.bz2",
    }
    return Component(
        kind="conda",
        name=package.name,
        version=package.version,
        part=part,
        sha256=package.sha256,
        purl=PackageURL("conda", None, package.name, package.version, qualifiers).to_string(),
        url=url if url.startswith("http") else "",
        supplier=f"channel {record['channel']}",
        licences=(expression(said) or said,) if said else (),
        texts=tuple(
            f"{prefix}/{path}"
            for path in record["files"]
            if path.startswith(f"{linking.LICENCES}/{package.name}/")
        ),
    )


def _of_wheel(wheel: Wheel, path: Path, part: str, tree: Path, prefix: str) -> Component:
    about = pypi.metadata_of(path, wheel.filename)
    said = about.get("License-Expression") or about.get("License") or ""
    classified = [
        one.rpartition(" :: ")[2] for one in about.get_all("Classifier", []) if one.startswith("License ::")
    ]
    licence = expression(said) if len(said) < 100 else ""
    named = next((entries for name, entries in prefix_check.wheels(tree) if _same(name, wheel.name)), {})
    return Component(
        kind="pypi",
        name=wheel.name,
        version=wheel.version,
        part=part,
        sha256=wheel.sha256,
        purl=PackageURL("pypi", None, wheel.name, wheel.version).to_string(),
        url=wheel.url if "://" in wheel.url else "",
        supplier=about.get("Author") or about.get("Author-email") or about.get("Maintainer-email") or "",
        licences=(licence,)
        if licence
        else tuple(classified) or ((said.strip(),) if 0 < len(said) < 100 else ()),
        texts=tuple(
            f"{prefix}/{one}"
            for one in sorted(named)
            if re.search(r"\.dist-info/.*(LICEN[CS]E|COPYING|NOTICE)", one, re.IGNORECASE)
        ),
    )


def _same(one: str, other: str) -> bool:
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()


def _of_files(image: ImageDefinition, folder: Path) -> Iterator[Component]:
    """Each file of the definition's own, by its place on the machine."""
    for item in image.files:
        source = folder / Path(item.source).expanduser()
        if source.is_file():
            yield _file(source, item.to, image.version)
            continue
        for path, _ in trees.walk(source):
            inside = source / path
            if inside.is_file() and not inside.is_symlink() and "__pycache__" not in inside.parts:
                yield _file(inside, f"{item.to}/{path}", image.version)


def _file(path: Path, to: str, version: str) -> Component:
    return Component(kind="file", name=to, version=version, part="system", sha256=resources.sha256_of(path))

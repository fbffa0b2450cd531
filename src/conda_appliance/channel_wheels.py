"""Recipes of wheels, pinned by SHA-256: what PyPI has → conda packages; and what one of them carries."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from conda_appliance import process, resources, wheel
from conda_appliance.channel_job import FORMAT, Job, Workshop, digest
from conda_appliance.package import Package
from conda_appliance.recipes import Pin

#: The glibc of each tag that pip is asked for: no wheel may need a newer one than the oldest suite here has.
_MANYLINUX = (5, 12, 17, *range(24, 37))


def jobs(shop: Workshop) -> Iterator[Job]:
    """One for each wheel of the recipes, and the certificates that one of them carries."""
    files = _wheels(shop)
    for name, pin in shop.pins.items():
        key = digest(pin.model_dump(), shop.recipes.minor, FORMAT)

        def make(at: Path, path: Path = files[name], pin: Pin = pin, build: str = key[:7]) -> Package:
            return wheel.convert(
                path,
                at / "root",
                minor=shop.recipes.minor,
                build=build,
                license=pin.license,
                depends=pin.depends,
                platform=shop.platform,
            )

        yield Job(name=name, key=key, make=make)
    if shop.recipes.certificates is not None:
        pin = shop.pins[shop.recipes.certificates.wheel]
        path = files[shop.recipes.certificates.wheel]
        parts = ["certificates", shop.recipes.certificates.model_dump(), pin.model_dump(), FORMAT]
        key = digest(*parts, *([shop.platform.name] if shop.platform.mark else []))
        yield Job(
            name="ca-certificates",
            key=key,
            make=lambda at: _certificates(shop, at, path, pin.version, key[:7]),
        )


def _wheels(shop: Workshop) -> dict[str, Path]:
    """All pinned wheels, fetched by pip, which honours the user's index and proxy and checks each hash."""
    wheels = shop.pins
    missing = {name: pin for name, pin in wheels.items() if not shop.store.has(pin.sha256)}
    if missing:
        shop.progress(f"fetching {len(missing)} wheels")
        pins = shop.work / "requirements.txt"
        pins.write_text(
            "".join(f"{name}=={pin.version} --hash=sha256:{pin.sha256}\n" for name, pin in missing.items()),
            encoding="utf-8",
        )
        to = shop.work / "wheels"
        _pip_download(shop, pins, to)
        for path in sorted(to.glob("*.whl")):
            target = shop.store.blob(resources.sha256_of(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    return {
        name: shop.store.verified(pin.sha256, f"{name}-{pin.version}.whl") for name, pin in wheels.items()
    }


def _pip_download(shop: Workshop, pins: Path, to: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    options += ["--only-binary=:all:", f"--python-version={shop.recipes.minor}"]
    options += [f"--platform=manylinux_2_{number}_{shop.platform.machine}" for number in _MANYLINUX]
    options += [f"--platform=manylinux2014_{shop.platform.machine}"]
    process.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", to, "--requirement", pins],
        hint="wheels come from PyPI, or from the mirror that pip's index-url names",
    )


def _certificates(shop: Workshop, at: Path, path: Path, version: str, build: str) -> Package:
    assert shop.recipes.certificates is not None
    root = at / "root"
    (root / "ssl").mkdir(parents=True)
    with zipfile.ZipFile(path) as archive:
        (root / "ssl/cacert.pem").write_bytes(archive.read("certifi/cacert.pem"))
        licenses = {
            Path(name).name: archive.read(name)
            for name in archive.namelist()
            if ".dist-info/" in name and Path(name).name.startswith("LICEN")
        }
    (root / "ssl/cert.pem").symlink_to("cacert.pem")
    return Package(
        name="ca-certificates",
        version=version,
        build=f"h{build}_0",
        depends=(),
        license=shop.recipes.certificates.license,
        root=root,
        licenses=licenses,
        summary="Mozilla's certificate authorities, in ssl/cacert.pem",
        platform=shop.platform.name,
    )

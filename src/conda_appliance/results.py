"""``out/NAME/``: finished builds by id, ``latest``, what a failure left, and how a result takes its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conda_appliance import definition, formats, lock, log, manifest, platforms, resources
from conda_appliance.errors import ApplianceError, CheckFailed, UsageError
from conda_appliance.export import Artifact
from conda_appliance.lock import Lock


@dataclass(frozen=True, kw_only=True)
class Found:
    """A disk that a person named, its platform, and the definition it was built from if that is known."""

    name: str
    disk: Path
    definition: Path | None
    platform: str = platforms.DEFAULT


#: The link to the latest result, of a definition's first platform; others' say which (`latest`).
LATEST = "latest"


def latest(platform: str) -> str:
    """The name of the link to the latest result of a platform that is not its definition's first."""
    return f"{LATEST}-{platform}"


def find(image: str, out: Path, *, to_boot: bool = True, platform: str | None = None) -> Found:
    """What ``image`` means: a definition's file, a name under ``out``, a build's folder, or a disk file.

    Of results by a name it is the one of ``platform``, else of the definition's first. Raises UsageError when nothing
    is built, or nothing that boots; unless ``to_boot`` is false: any artifact stands for its result then.
    """
    path = Path(image)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        name = definition.load_image(path).on(platform).name
        folder = _latest(out / name, platform)
        disk = _disk_of(folder, image, to_boot=to_boot)
        return Found(name=name, disk=disk, definition=path, platform=manifest.read(folder).platform)
    if path.is_file():
        return Found(
            name=path.stem,
            disk=path.resolve(),
            definition=None,
            platform=platform or _platform_of(path) or platforms.DEFAULT,
        )
    folder = path if (path / manifest.NAME).is_file() else _latest(out / image, platform)
    disk = _disk_of(folder, image, to_boot=to_boot)
    written = manifest.read(folder)
    beside = Path("images") / f"{written.name}.yaml"
    return Found(
        name=written.name,
        disk=disk,
        definition=beside if beside.is_file() else None,
        platform=written.platform,
    )


def _latest(home: Path, platform: str | None) -> Path:
    """The folder of the latest result in ``home``, of a platform or the first.

    Raises UsageError where the only one is another platform's.
    """
    if platform is None:
        return home / LATEST
    if (home / latest(platform) / manifest.NAME).is_file():
        return home / latest(platform)
    found = home / LATEST
    if (found / manifest.NAME).is_file() and (has := manifest.read(found).platform) != platform:
        raise UsageError(
            f"what is built in {home} is for {has}, not for {platform}",
            hint=f"conda-appliance build --platform {platform} FILE",
        )
    return found


def _platform_of(disk: Path) -> str | None:
    """The platform of a disk that lies in its result's folder."""
    folder = disk.resolve().parent
    return manifest.read(folder).platform if (folder / manifest.NAME).is_file() else None


def definition_of(image: str) -> Path:
    """The definition that ``image`` means: its file, or images/NAME.yaml. Raises UsageError when there is none."""
    path = Path(image)
    if not (path.is_file() and path.suffix in (".yaml", ".yml")):
        path = Path("images") / f"{image}.yaml"
    if not path.is_file():
        raise UsageError(
            f"no definition is known for {image}", hint="name the definition, such as images/NAME.yaml"
        )
    return path


def artifact(home: Path, source: str) -> Artifact | None:
    """A sound artifact of an earlier result in ``home`` that was made from ``source`` (`export.source_of`)."""
    for record in sorted(home.glob(f"*/{manifest.NAME}")):
        try:
            written = manifest.read(record.parent)
        except ApplianceError:
            continue
        for one in written.artifacts:
            if one.source == source and not manifest.damaged(record.parent, written):
                return Artifact(path=record.parent / one.file, record=one)
    return None


def _disk_of(folder: Path, asked: str, *, to_boot: bool) -> Path:
    if not (folder / manifest.NAME).is_file():
        raise UsageError(
            f"nothing is built for {asked!r} (looked in {folder})",
            hint="conda-appliance build FILE, or see --out",
        )
    written = manifest.read(folder)
    found = bootable(folder, written)
    if found is None and not to_boot:
        found = folder / written.artifacts[0].file
    if found is None:
        raise UsageError(
            f"{folder} holds {', '.join(one.file for one in written.artifacts)}, and none of it boots here",
            hint="add qcow2 to the definition's formats",
        )
    return found.resolve()


def bootable(folder: Path, written: manifest.Manifest) -> Path | None:
    """The first artifact of a result that QEMU boots."""
    for one in written.artifacts:
        if formats.BY_NAME[one.format].qemu:
            return folder / one.file
    return None


def homes(out: Path) -> list[Path]:
    """The folders of ``out`` that hold a definition's results, and nothing that is not ours."""
    return [
        home
        for home in sorted(out.glob("*/"))
        if any((home / name).exists() for name in ("latest", "failed")) or list(home.glob(".*.partial.lock"))
    ]


@contextmanager
def partial(home: Path, identity: str, keep_failed: bool) -> Iterator[Path]:
    """The build's work folder. When the build fails its logs and rendered files go to ``failed/``."""
    for path in resources.sweep(home):
        log.warn(f"removed what an earlier, killed build left: {path}")
    with resources.work_folder(home, f".{identity}") as work:
        try:
            yield work
        except BaseException as error:
            kept = _keep(work, home / "failed", whole=keep_failed or isinstance(error, CheckFailed))
            if kept and isinstance(error, ApplianceError):
                # What the message names in the work folder stands in failed/ now.
                error.message = error.message.replace(str(work), str(home / "failed"))
                error.hint = error.hint.replace(str(work), str(home / "failed"))
                error.hint = "\n        ".join(
                    filter(None, [error.hint, f"kept for you: {home / 'failed'} ({', '.join(kept)})"])
                )
            elif kept:
                log.info(f"kept for you: {home / 'failed'} ({', '.join(kept)})")
            raise


def _keep(work: Path, failed: Path, *, whole: bool) -> list[str]:
    """Move what explains a failure out of the work folder; returns the names of what was kept."""
    if not work.is_dir():  # what failed came after the result had taken its place
        return []
    wanted = [path for path in sorted(work.iterdir()) if whole or path.name in ("logs", "build", "report")]
    if not wanted:
        return []
    resources.remove(failed)
    failed.mkdir()
    for path in wanted:
        path.rename(failed / path.name)
        if path.name == "build" and not whole:
            resources.remove(failed / "build" / "disk")
    return [path.name for path in wanted]


def publish(work: Path, final: Path, *, link: str = LATEST) -> None:
    """Put the finished work folder in its place, then move ``latest``, or the ``link`` of another platform."""
    aside = final.parent / f".{final.name}.replaced"
    resources.remove(aside)
    if final.exists():
        final.rename(aside)
    work.rename(final)
    resources.remove(aside)
    point_latest(final, link)


def point_latest(final: Path, link: str = LATEST) -> None:
    """Let the ``link`` beside a result point to it."""
    temporary = final.parent / f".{link}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(final.name)
    temporary.replace(final.parent / link)


def source(image: str, out: Path, platform: str | None = None) -> tuple[Path, Lock | None]:
    """The definition that a person named, and the lock of the result if that is what was named, of a ``platform``."""
    path = Path(image)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return path, None
    found = find(image, out, to_boot=False, platform=platform)
    if found.definition is None:
        raise UsageError(
            f"no definition is known for {image}",
            hint="name the definition itself: images/NAME.yaml",
        )
    return found.definition, lock.read(found.disk.parent / f"{found.name}.lock")

"""``disc``: discs made from a definition and its lock, read, verified, and written to a stick.

Each kind is a function that writes its discs into a folder and returns their paths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from conda_appliance import (
    bootstrap,
    build,
    cache,
    definition,
    device,
    disc,
    emulation,
    formats,
    identity,
    installer_disc,
    live_disc,
    lock,
    locking,
    log,
    machines,
    manifest,
    namespace,
    payload_disc,
    process,
    programs,
    resources,
    results,
    seed,
    userspace_disc,
)
from conda_appliance.builders import rootfs
from conda_appliance.definition import ImageDefinition
from conda_appliance.errors import UsageError
from conda_appliance.lock import Lock
from conda_appliance.payload import require_finished
from conda_appliance.platforms import DEFAULT


def payload(
    image: str,
    *,
    out: Path,
    to: Path | None,
    offline: bool,
    channel: bool,
    platform: str | None = None,
) -> Path:
    """Write the payload disc of ``image`` into ``to`` (default: ``OUT/NAME/discs``), and return its path.

    Raises LockError for a stale lock, and as `payload_disc.make` does. An earlier disc stays until this one is whole.
    """
    make = partial(payload_disc.make, channel=channel)
    return _of_environments("payload", image, make, out, to, offline, platform)


def userspace(image: str, *, out: Path, to: Path | None, offline: bool, platform: str | None = None) -> Path:
    """Write the disc that the environments of ``image`` run from, and return its path.

    Where, and what it raises: as `payload`.
    """
    return _of_environments("userspace", image, userspace_disc.make, out, to, offline, platform)


def _of_environments(
    kind: str,
    image: str,
    make: Callable[..., Path],
    out: Path,
    to: Path | None,
    offline: bool,
    platform: str | None,
) -> Path:
    """The disc of one kind that ``make`` writes from a definition, its lock and the locked packages."""
    path, parsed, locked = _read(image, out, platform)
    emulation.require(parsed.platform)
    # The scripts of packages run in the system, and so does what is another platform's.
    if locked.conda.post_link is None and parsed.platform.native:
        locked = locked.model_copy(update={"debian": None, "image": None})
    inputs = locking.fetch(path, offline=offline, locked=locked)
    folder = _folder(parsed.name, out, to)
    target = folder / _file_name(kind, parsed)
    with resources.work_folder(folder, f".{kind}") as work, log.step(f"Write {target.name}") as step:
        store = cache.layer_store()
        made = make(
            programs.place(parsed, locked, inputs.files, store),
            locked,
            inputs.files,
            target,
            folder=path.resolve().parent,
            project=resources.project(path),
            store=store,
            epoch=identity.epoch(),
            work=work,
            progress=step.update,
        )
        step.note(f"{resources.size_text(made.stat().st_size)}, SHA-256 {resources.sha256_of(made)}")
    return made


def live(image: str, *, out: Path, to: Path | None, offline: bool) -> Path:
    """Write the live disc of ``image`` into ``to`` (default: ``OUT/NAME/discs``), and return its path.

    The machine is made as the rootfs builder makes it, whatever the definition's builder. Raises LockError for a stale
    lock, UsageError for a base that is no Debian, and as the builder and `live_disc.make` do. An earlier disc stays
    until this one is whole.
    """
    path, read, locked = _read(image, out, None)
    parsed = definition.with_builder(path, read, "rootfs")
    _require_bootable(path, parsed, (*rootfs.tools(parsed), *live_disc.tools()))
    require_finished(locked, "a live disc, which forgets everything when it is shut down,")
    inputs = locking.fetch(path, offline=offline, locked=locked)
    folder = _folder(parsed.name, out, to)
    target = folder / _file_name("live", parsed)
    with resources.work_folder(folder, ".live") as work:
        store = cache.layer_store()
        job = build.job_for(parsed, locked, path, identity.identify(parsed, locked, path), store, inputs)
        tree = rootfs.render(job, work / "build")
        parts = rootfs.prepare(job, tree, logs=work / "logs")
        (work / "disc").mkdir()
        with log.step(f"Write {target.name}") as step:
            made = live_disc.make(parts, target, work=work / "disc", progress=step.update)
            step.note(f"{resources.size_text(made.stat().st_size)}, SHA-256 {resources.sha256_of(made)}")
    store.release()
    return made


def installer(image: str, *, out: Path, to: Path | None, offline: bool) -> Path:
    """Write the disc that installs ``image`` into ``to`` (default: ``OUT/NAME/discs``), and return its path.

    A definition is built and checked first, unless that is done; a result is taken as it is. Raises as `build.build`,
    UsageError for a base that is no Debian, and as `installer_disc.make` does. An earlier disc stays until this one is
    whole.
    """
    path, locked = results.source(image, out)
    parsed = definition.load_image(path).on(locked.platform if locked else None)
    _require_bootable(path, parsed, (*bootstrap.tools(), *installer_disc.tools()))
    if locked is None:
        result = build.build(path, out=out, offline=offline).folder
    else:
        result = results.find(image, out).disk.parent
    written = manifest.read(result)
    locked = lock.read(result / f"{parsed.name}.lock")
    inputs = locking.fetch(path, offline=offline, locked=locked)
    assert locked.debian is not None
    folder = _folder(parsed.name, out, to)
    target = folder / _file_name("installer", parsed)
    with resources.work_folder(folder, ".installer") as work, log.step(f"Write {target.name}") as step:
        store = cache.layer_store()
        system = bootstrap.system(
            locked.debian, parsed.base, inputs.files, store=store, progress=step.update, without=parsed.slim
        )
        golden = next((one for one in written.artifacts if one.format in ("qcow2", "raw")), None)
        if golden is None:
            raise UsageError(
                f"{result} has no disk that the installer can carry",
                hint="add qcow2 to the definition's formats",
            )
        made = installer_disc.make(
            installer_disc.Image(
                disk=result / golden.file, sha256=golden.sha256, definition=parsed, lock=locked.text
            ),
            system,
            target,
            store=store,
            epoch=identity.epoch(),
            project=resources.project(path),
            work=work,
            progress=step.update,
        )
        step.note(f"{resources.size_text(made.stat().st_size)}, SHA-256 {resources.sha256_of(made)}")
    store.release()
    return made


def _require_bootable(path: Path, parsed: ImageDefinition, tools: tuple[str, ...]) -> None:
    """Raise unless a disc that starts a machine can be made; warn of a kernel that finds no stick."""
    if parsed.platform.name != DEFAULT:
        raise UsageError(
            f"{path}: a disc that starts a machine is made for x86-64 alone, and this is for {parsed.platform.name}",
            hint="its disk image starts a machine by UEFI; and: conda-appliance disc IMAGE payload",
        )
    if parsed.base.debian is None:
        raise UsageError(
            f"{path}: a disc that starts a machine needs the kernel of a Debian base, and this base is a cloud image",
            hint="conda-appliance disc IMAGE payload    installs the environments on a machine that runs Linux",
        )
    if parsed.base.kernel == "cloud":
        log.warn(
            f"{path} has Debian's kernel for virtual machines: the disc starts those, but no machine from a USB stick. "
            "`base: {kernel: generic}` is for real hardware"
        )
    namespace.require_root()
    process.require(*tools)


def seeds(image: str, batch: Path, *, out: Path, to: Path | None) -> list[Path]:
    """Write a seed disc for each machine of ``batch`` into ``to`` (default: ``OUT/NAME/discs``); returns their paths.

    Raises DefinitionError with every problem of the batch before anything is written.
    """
    path, _ = results.source(image, out)
    parsed = definition.load_image(path)
    wanted = machines.load(batch)
    for one in wanted:
        if not one.keys and not parsed.access.keys:
            log.warn(f"{one.hostname}: neither it nor {path} has a key, so nobody will be able to log in")
    folder = _folder(parsed.name, out, to)
    with log.step(f"Write {len(wanted)} seed discs to {folder}"):
        return [
            seed.for_machine(
                folder / f"seed-{one.hostname}.iso",
                one,
                services=[service.name for service in parsed.services],
                epoch=identity.epoch(),
                project=resources.project(path),
            )
            for one in wanted
        ]


def verify(path: Path) -> int:
    """Read every file of a disc and compare it with its SHA256SUMS; returns how many there are. See `disc.verify`."""
    with log.step(f"Verify {path}") as step:
        count = disc.verify(path)
        step.note(f"{count} files as its SHA256SUMS says")
    return count


def write(
    path: Path, to: Path, *, erase: str | None, ask: Callable[[str], str] | None, data: bool = False
) -> None:
    """Write a disc to a device and read it back, after somebody has named the device once more.

    That is ``erase``, or what ``ask`` answers to a question; without both it is refused. Raises UsageError for a device
    that must not be written to (`device.examine`), HashMismatch for a disc that is damaged, BuildError when the
    device fails. With ``data``, what the device has behind a live disc becomes the partition in which that keeps what
    is written.
    """
    target = device.examine(to, path)
    if data:
        process.require("mke2fs")
        if not any(one.path == "/appliance/root.squashfs" for one in disc.contents(path).entries):
            raise UsageError(f"{path} is no live disc, and only that keeps data")
    verify(path)
    if erase is None and ask is not None:
        log.warn(f"everything on {to} ({target.about}) will be lost")
        erase = ask(f"type {to} to go on: ").strip()
    if erase != str(to):
        raise UsageError(
            f"nothing was written to {to} ({target.about})"
            + (f": you named {erase}" if erase else ": nobody said that it may be erased"),
            hint=f"conda-appliance disc write {path} {to} --erase {to}",
        )
    device.examine(to, path)  # whoever asked may have waited long
    with log.step(f"Write {path.name} to {to}") as step:
        device.write(path, target, step.update)
        step.note(f"{resources.size_text(path.stat().st_size)}, read back and the same")
        if data:
            step.update("making the partition for data")
            length = device.add_data(path, target, live_disc.DATA)
            step.note(f"{resources.size_text(length)} behind it for data")


def _read(image: str, out: Path, platform: str | None) -> tuple[Path, ImageDefinition, Lock]:
    """The definition that a person named, what it says of a platform, and that one's lock: the result's, or its own."""
    path, locked = results.source(image, out, platform)
    parsed = definition.load_image(path).on(locked.platform if locked else platform)
    return path, parsed, locked or lock.read(lock.path_for(path), parsed.platform.name)


def _file_name(kind: str, parsed: ImageDefinition) -> str:
    return formats.file_name(
        f"{kind}-iso", name=parsed.name, version=parsed.version, platform=parsed.platform.name
    )


def _folder(name: str, out: Path, to: Path | None) -> Path:
    folder = to or out / name / "discs"
    folder.mkdir(parents=True, exist_ok=True)
    for path in resources.sweep(folder):
        log.warn(f"removed what an earlier, killed run left: {path}")
    return folder

"""Downloads into a cache that is addressed by SHA-256 and verified at every use, from wherever a file is to be had."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

from conda_appliance import resources, runs, transport
from conda_appliance.errors import ApplianceError, BuildError, HashMismatch, LockError
from conda_appliance.transport import Gone, Line, Stopped

#: Files fetched side by side.
WORKERS = 8
#: Debian's archive of every package it ever had. ``CONDA_APPLIANCE_SNAPSHOT`` may name a mirror of it.
SNAPSHOT = "https://snapshot.debian.org"
#: Where a message would list more than this, it counts the rest.
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file to have: ``url`` is http(s), file or a plain path; ``size`` in bytes, 0 where it is not known.

    ``mirrors`` are where it is taken from instead, in this order.
    """

    name: str
    url: str
    sha256: str
    size: int
    mirrors: tuple[str, ...] = ()


class Cache:
    """Files by their SHA-256: ``blobs/ab/abcd…``. Nothing in it is used unverified."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, sha256: str) -> Path:
        """Where a file with this SHA-256 stands, or would."""
        return self.root / "blobs" / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether such a file is there; `verified` tells whether it is sound."""
        return self.blob(sha256).is_file()

    def verified(self, sha256: str, name: str) -> Path:
        """The file, after its bytes were hashed, or were hashed before and the file system says they are the same.

        Raises HashMismatch naming ``name`` when they are not what the hash says; the bad file is set
        aside, so that the next fetch brings it anew. Raises LockError when there is no such file.
        """
        path = self.blob(sha256)
        try:
            seen = _seen(path)
            if _read(path.with_suffix(_SEEN)) == seen:
                return path
            found = resources.sha256_of(path)
        except FileNotFoundError:
            raise LockError(f"{name} is not in the cache", hint="conda-appliance fetch FILE") from None
        if found != sha256:
            aside = path.with_suffix(".corrupt")
            path.replace(aside)
            raise HashMismatch(
                f"{name} in the cache",
                expected=sha256,
                found=found,
                hint=f"it was set aside as {aside}; run the same command again to fetch it anew",
            )
        resources.write(path.with_suffix(_SEEN), seen)
        return path


#: Beside a file that was hashed: what the file system said of it then.
_SEEN = ".seen"


def _seen(path: Path) -> str:
    """What changes when a file is written, replaced or renamed, whatever its time is set to (`trees.seen`)."""
    about = path.stat()
    return f"{about.st_dev} {about.st_ino} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


def fetch(
    downloads: Sequence[Download], cache: Cache, *, offline: bool, progress: Callable[[str], None]
) -> None:
    """Bring every missing file into the cache, verified while it is written.

    A file that failed does not keep the others from arriving: all failures are told at once, as LockError when
    bytes were not the lock's (HashMismatch if that was the only failure), else as BuildError. Raises LockError
    with ``offline`` when something is missing. What a stopped run had of a file already is kept and gone on with.
    """
    missing = list({one.sha256: one for one in downloads if not cache.has(one.sha256)}.values())
    if offline and missing:
        raise LockError(
            f"--offline, and {len(missing)} files are not in the cache: "
            + _some((one.name for one in missing), ", "),
            hint="conda-appliance fetch FILE, once, with a network",
        )
    run = _Run(files=missing, cache=cache, progress=progress)
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="fetch")
    try:
        outcomes = [
            future.result() for future in as_completed([pool.submit(run.one, one) for one in missing])
        ]
    finally:
        run.line.stopped.set()
        pool.shutdown(cancel_futures=True)
    errors = [error for error in outcomes if error is not None]
    if errors:
        raise _together(errors)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A file that somebody else's lock names: with a SHA-256, or with an MD5 alone."""

    name: str
    url: str
    sha256: str
    md5: str
    mirrors: tuple[str, ...] = ()


def identify(
    files: Sequence[Named], cache: Cache, *, progress: Callable[[str], None] = lambda _text: None
) -> list[str]:
    """Bring files into the cache by the digest that is known of them; returns the SHA-256 of each.

    One with an MD5 alone is fetched and compared with it, and from then on known by its SHA-256. Raises as `fetch`.
    """
    known = [one for one in files if one.sha256]
    downloads = [
        Download(name=one.name, url=one.url, sha256=one.sha256, size=0, mirrors=one.mirrors) for one in known
    ]
    fetch(downloads, cache, offline=False, progress=progress)
    return [one.sha256 or _by_md5(one, cache, progress) for one in files]


def _by_md5(one: Named, cache: Cache, progress: Callable[[str], None]) -> str:
    note = cache.root / "md5" / one.md5  # which SHA-256 such a file had
    if note.is_file() and cache.has(sha256 := note.read_text("ascii")):
        return sha256
    with resources.work_folder(cache.root / "md5", f".{one.md5}", wait=progress) as work:
        part = work / "part"
        download = Download(name=one.name, url=one.url, sha256="", size=0, mirrors=one.mirrors)
        try:
            sha256 = _from_first(download, part, _Run(files=[download], cache=cache, progress=progress))
        except Gone:
            raise BuildError(f"{one.url} is not there (404)", hint="check the lock that names it") from None
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != one.md5:
            raise HashMismatch(
                f"{one.name} from {one.url} (by MD5)", expected=one.md5, found=found, hint="lock it again"
            )
        target = cache.blob(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
    resources.write(note, sha256)
    return sha256


_UPGRADE = "conda-appliance lock --upgrade FILE"


@dataclass(kw_only=True)
class _Run:
    """One call of `fetch`: what its threads share."""

    files: Sequence[Download]
    cache: Cache
    progress: Callable[[str], None]
    line: Line = field(default_factory=Line)
    _got: dict[str, int] = field(default_factory=dict)
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def one(self, one: Download) -> ApplianceError | None:
        """Bring one file; returns what kept it from arriving."""
        try:
            _fetch_one(one, self)
        except ApplianceError as error:
            return error
        except Stopped:
            return None
        return None

    def download(self, url: str, one: Download, part: Path) -> str:
        """`transport.download` of a file from ``url``, which is told to whoever watches."""
        return transport.download(url, part, self.line, partial(self.tell, one))

    def tell(self, one: Download, got: int, *, done: bool = False) -> None:
        """Say that ``got`` bytes of a file are there."""
        if self.line.stopped.is_set():
            raise Stopped
        with self._lock:
            self._got[one.sha256] = got
            self._done += done
            total = sum(file.size for file in self.files)
            of = f" of {resources.size_text(total)}" if total else ""
            have = resources.size_text(sum(self._got.values()))
            self.progress(f"{self._done}/{len(self.files)} files, {have}{of}")


#: One for each file that is fetched: several images of one process may want the same.
_FETCHED: dict[Path, threading.Lock] = {}


def _fetch_one(one: Download, run: _Run) -> None:
    target = run.cache.blob(one.sha256)
    with _FETCHED.setdefault(target, threading.Lock()):
        if not target.is_file():
            _fetch_whole(one, target, run)
    run.tell(one, target.stat().st_size, done=True)


def _fetch_whole(one: Download, target: Path, run: _Run) -> None:
    """Bring a file to ``target``, which appears when it is whole and verified."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    resumed = part.exists()
    found = _any_source(one, part, run)
    if found != one.sha256 and resumed:
        # What the stopped run left may be what is wrong.
        part.unlink(missing_ok=True)
        found = _any_source(one, part, run)
    if found != one.sha256:
        part.unlink(missing_ok=True)
        raise HashMismatch(
            f"{one.name} from {one.url}",
            expected=one.sha256,
            found=found,
            hint=f"if its server changed it on purpose: {_UPGRADE}",
        )
    part.replace(target)


def _part(target: Path) -> Path:
    """Where this process writes a file until it is whole; what a dead process had of it is taken over."""
    part = target.with_name(f"{target.name}.{runs.mark().replace(':', '-')}.part")
    for old in target.parent.glob(f"{target.name}.*.part"):
        if old != part and not runs.alive(old.name.split(".")[1].replace("-", ":")):
            old.replace(part)
    return part


def _any_source(one: Download, part: Path, run: _Run) -> str:
    """Bring ``one`` from its URL or a mirror, or a .deb that left its mirror from the archive; returns the SHA-256."""
    try:
        return _from_first(one, part, run)
    except Gone:
        package = unquote(one.name).removesuffix(".deb").split("_")
        if not one.name.endswith(".deb") or len(package) != 3:
            raise BuildError(f"{one.url} is not there (404)", hint=f"check the URL, or: {_UPGRADE}") from None
    part.unlink(missing_ok=True)
    try:
        return _from_snapshot(one, package, part, run)
    except (BuildError, Gone) as error:
        archive = os.environ.get("CONDA_APPLIANCE_SNAPSHOT", SNAPSHOT)
        reason = (
            f"could not give it either: {error}"
            if isinstance(error, BuildError)
            else "does not have it either"
        )
        raise BuildError(
            f"{one.name} has left the mirror ({one.url}: 404), and {archive} {reason}", hint=_UPGRADE
        ) from None


def _from_first(one: Download, part: Path, run: _Run) -> str:
    """Bring ``one`` from the first of its mirrors that gives it, or from its URL where it has none; the SHA-256.

    Raises Gone when none has it, BuildError telling what each says when one could not be asked.
    """
    if not one.mirrors:
        return run.download(one.url, one, part)
    said, gone, found = [], True, ""
    for url in one.mirrors:
        try:
            found = run.download(url, one, part)
        except Gone:
            said.append(BuildError(f"{url} is not there (404)"))
            continue
        except BuildError as error:
            said.append(error)
            gone = False
            continue
        if found == one.sha256 or not one.sha256:
            return found
        part.unlink(missing_ok=True)
    if found:
        return found  # every mirror that has it has other bytes: the caller tells the mismatch
    if gone:
        raise Gone
    raise BuildError(
        f"no mirror gives {one.name}:\n" + "\n".join(error.message for error in said),
        hint="; ".join(dict.fromkeys(error.hint for error in said if error.hint)),
    )


def _from_snapshot(one: Download, package: Sequence[str], part: Path, run: _Run) -> str:
    """Bring a package from snapshot.debian.org, which names files by their SHA-1; returns the SHA-256.

    Source: https://salsa.debian.org/snapshot-team/snapshot/raw/master/API. Raises Gone when the archive does
    not have it, BuildError when it cannot be reached.
    """
    base = os.environ.get("CONDA_APPLIANCE_SNAPSHOT", SNAPSHOT).rstrip("/")
    name, version, architecture = package
    url = f"{base}/mr/binary/{quote(name)}/{quote(version)}/binfiles"
    answer = transport.read_json(url, run.line)
    try:
        hashes = [file["hash"] for file in answer["result"] if file["architecture"] == architecture]
    except (KeyError, TypeError):
        raise BuildError(f"{url} does not answer as snapshot.debian.org does") from None
    found = ""
    for number in hashes:
        found = run.download(f"{base}/file/{quote(number)}", one, part)
        if found == one.sha256:
            return found
        part.unlink()
    if not found:
        raise Gone
    return found  # other bytes under the same name: the caller tells the mismatch


def _together(errors: Sequence[ApplianceError]) -> ApplianceError:
    """One error that tells them all."""
    if len(errors) == 1:
        return errors[0]
    kind = LockError if any(isinstance(error, LockError) for error in errors) else BuildError
    ordered = sorted(errors, key=lambda error: not isinstance(error, LockError))
    return kind(
        f"{len(errors)} files could not be had:\n" + _some((error.message for error in ordered), "\n"),
        hint="; ".join(dict.fromkeys(error.hint for error in ordered if error.hint)),
    )


def _some(words: Iterable[str], between: str) -> str:
    """The first of ``words``, and how many more there are."""
    every = list(words)
    more = [f"… and {len(every) - _SHOWN} more"] if len(every) > _SHOWN else []
    return between.join([*every[:_SHOWN], *more])

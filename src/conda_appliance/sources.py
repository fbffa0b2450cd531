"""The only network: downloads into a cache that is addressed by SHA-256 and verified at every use.

Proxies come from the environment (``http_proxy``, ``https_proxy``, ``no_proxy``), the certificates that https is
checked with from `network`, and who we are to a host from `credentials`.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from conda_appliance import credentials, lazy, network, process, redact, resources
from conda_appliance.errors import ApplianceError, BuildError, HashMismatch, LockError

if TYPE_CHECKING:
    import requests
else:
    requests = lazy.module("requests")

#: Files fetched side by side.
WORKERS = 8
#: Tries of one file when a server answers 5xx, 429 or drops the connection.
TRIES = 4
#: Seconds before the second try; each further pause is twice as long.
PAUSE = 0.5
#: The longest that a server may have us wait before the next try (``Retry-After``), in seconds.
LONGEST_PAUSE = 60.0
#: Seconds without a byte after which a connection counts as dropped.
TIMEOUT = 30
#: Debian's archive of every package it ever had. ``CONDA_APPLIANCE_SNAPSHOT`` may name a mirror of it.
SNAPSHOT = "https://snapshot.debian.org"
#: Where a message would list more than this, it counts the rest.
_SHOWN = 12

_CHUNK = 1 << 18


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
        run.stopped.set()
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
        except _Gone:
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


def read_url(url: str) -> bytes:
    """The whole answer of a small http(s) request. Raises BuildError when there is none."""
    try:
        with _session() as session, session.get(url, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            return answer.content
    except requests.RequestException as error:
        raise BuildError(f"{url}: {_reason(error)}", hint=_NETWORK) from None


_NETWORK = "check the network and the proxy settings (http_proxy, https_proxy, no_proxy)"
_UPGRADE = "conda-appliance lock --upgrade FILE"


class _Gone(Exception):
    """A server says that the file is not there (any more)."""


class _Stopped(Exception):
    """The run ends: somebody interrupted it, or the disk is full."""


@dataclass(kw_only=True)
class _Run:
    """One call of `fetch`: what its threads share."""

    files: Sequence[Download]
    cache: Cache
    progress: Callable[[str], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    #: Hosts that did not answer at all: no other file waits for them through all its tries.
    silent: dict[str, str] = field(default_factory=dict)
    _got: dict[str, int] = field(default_factory=dict)
    _done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _local: threading.local = field(default_factory=threading.local)

    @property
    def session(self) -> requests.Session:
        """A thread's own session, which keeps its connection from file to file."""
        if not hasattr(self._local, "session"):
            self._local.session = _session()
        session: requests.Session = self._local.session
        return session

    def one(self, one: Download) -> ApplianceError | None:
        """Bring one file; returns what kept it from arriving."""
        try:
            _fetch_one(one, self)
        except ApplianceError as error:
            return error
        except _Stopped:
            return None
        return None

    def tell(self, one: Download, got: int, *, done: bool = False) -> None:
        """Say that ``got`` bytes of a file are there."""
        if self.stopped.is_set():
            raise _Stopped
        with self._lock:
            self._got[one.sha256] = got
            self._done += done
            total = sum(file.size for file in self.files)
            of = f" of {resources.size_text(total)}" if total else ""
            have = resources.size_text(sum(self._got.values()))
            self.progress(f"{self._done}/{len(self.files)} files, {have}{of}")


def _session() -> requests.Session:
    session = requests.Session()
    network.check_proxies()
    trusted = network.certificates()
    session.verify = str(trusted) if trusted else True
    session.auth = _authorize
    session.rebuild_auth = _never_to_another  # type: ignore[method-assign]
    session.headers["Accept-Encoding"] = (
        "identity"  # the bytes that were hashed, not a server's packing of them
    )
    return session


def _authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Put what the host of a request is to be given into it."""
    credential = credentials.find(request.url or "")
    if credential is not None:
        request.url = credential.sent(request.url or "")
        if credential.header:
            request.headers["Authorization"] = credential.header
    return request


def _never_to_another(request: requests.PreparedRequest, answer: requests.Response) -> None:
    """A redirect to another host, port or scheme is followed without what the first was given."""
    before, after = urlsplit(answer.request.url or ""), urlsplit(request.url or "")
    if (before.scheme, before.netloc) != (after.scheme, after.netloc):
        request.headers.pop("Authorization", None)
    request.headers.pop("Proxy-Authorization", None)


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
    part = target.with_name(f"{target.name}.{process.mark().replace(':', '-')}.part")
    for old in target.parent.glob(f"{target.name}.*.part"):
        if old != part and not process.alive(old.name.split(".")[1].replace("-", ":")):
            old.replace(part)
    return part


def _any_source(one: Download, part: Path, run: _Run) -> str:
    """Bring ``one`` from its URL or a mirror, or a .deb that left its mirror from the archive; returns the SHA-256."""
    try:
        return _from_first(one, part, run)
    except _Gone:
        package = unquote(one.name).removesuffix(".deb").split("_")
        if not one.name.endswith(".deb") or len(package) != 3:
            raise BuildError(f"{one.url} is not there (404)", hint=f"check the URL, or: {_UPGRADE}") from None
    part.unlink(missing_ok=True)
    try:
        return _from_snapshot(one, package, part, run)
    except (BuildError, _Gone) as error:
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

    Raises _Gone when none has it, BuildError telling what each says when one could not be asked.
    """
    if not one.mirrors:
        return _download(one.url, one, part, run)
    said, gone, found = [], True, ""
    for url in one.mirrors:
        try:
            found = _download(url, one, part, run)
        except _Gone:
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
        raise _Gone
    raise BuildError(
        f"no mirror gives {one.name}:\n" + "\n".join(error.message for error in said),
        hint="; ".join(dict.fromkeys(error.hint for error in said if error.hint)),
    )


def answers(url: str) -> str:
    """Ask a server for the head of ``url``; returns why it does not give it, nothing where it does."""
    try:
        with _session() as session, session.get(url, timeout=TIMEOUT, stream=True) as answer:
            answer.raise_for_status()
    except requests.RequestException as error:
        return redact.text(_reason(error))
    return ""


def _from_snapshot(one: Download, package: Sequence[str], part: Path, run: _Run) -> str:
    """Bring a package from snapshot.debian.org, which names files by their SHA-1; returns the SHA-256.

    Source: https://salsa.debian.org/snapshot-team/snapshot/raw/master/API. Raises _Gone when the archive does
    not have it, BuildError when it cannot be reached.
    """
    base = os.environ.get("CONDA_APPLIANCE_SNAPSHOT", SNAPSHOT).rstrip("/")
    name, version, architecture = package
    url = f"{base}/mr/binary/{quote(name)}/{quote(version)}/binfiles"
    try:
        with run.session.get(url, timeout=TIMEOUT) as answer:
            if answer.status_code == 404:
                raise _Gone
            answer.raise_for_status()
            hashes = [
                file["hash"] for file in answer.json()["result"] if file["architecture"] == architecture
            ]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise BuildError(_reason(error)) from None
    found = ""
    for number in hashes:
        found = _download(f"{base}/file/{quote(number)}", one, part, run)
        if found == one.sha256:
            return found
        part.unlink()
    if not found:
        raise _Gone
    return found  # other bytes under the same name: the caller tells the mismatch


def _download(url: str, one: Download, part: Path, run: _Run) -> str:
    """Write ``url`` to ``part``, going on where an earlier try stopped; returns the SHA-256 of the whole."""
    address = urlsplit(url)
    if address.scheme in ("", "file"):
        return _copy(Path(unquote(address.path)) if address.scheme else Path(url), one, part, run)
    pause = PAUSE
    for attempt in range(1, TRIES + 1):
        if run.stopped.is_set():
            raise _Stopped
        if address.netloc in run.silent:
            raise BuildError(f"{url}: {run.silent[address.netloc]}", hint=_NETWORK)
        try:
            return _stream(url, one, part, run)
        except requests.HTTPError as error:
            status, silent = error.response.status_code, False
            if status in (404, 410):
                raise _Gone from None
            reason = f"the server answers {status} {error.response.reason}"
            if status < 500 and status not in (408, 429):
                hint = credentials.HINT if status in (401, 403, 407) else ""
                raise BuildError(f"{url}: {reason}", hint=hint) from None
            pause = max(pause, _asked_pause(error.response))
        except (requests.ConnectionError, requests.Timeout) as error:
            reason, silent = _reason(error), not part.exists()
        except requests.exceptions.ChunkedEncodingError as error:
            reason, silent = _reason(error), False
        except requests.RequestException as error:  # a URL or a proxy setting that cannot be used at all
            raise BuildError(f"{url}: {_reason(error)}", hint=_NETWORK) from None
        if attempt < TRIES:
            run.stopped.wait(pause)
            pause *= 2
    if silent:
        run.silent[address.netloc] = reason
    raise BuildError(f"{url}: {reason} ({TRIES} tries)", hint=_NETWORK)


def _asked_pause(answer: requests.Response) -> float:
    """For how many seconds a server asks us to wait (RFC 9110, 10.2.3; its dates are not read)."""
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_PAUSE) if asked.isdigit() else 0.0


def _stream(url: str, one: Download, part: Path, run: _Run) -> str:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with run.session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is no shorter than the whole: it is not a beginning of it
            part.unlink()
            raise requests.ConnectionError("the partial file did not fit the server's")
        answer.raise_for_status()
        announced = answer.headers.get("Content-Range", "")
        resumed = answer.status_code == 206 and announced.startswith(f"bytes {have}-")
        if answer.status_code == 206 and not resumed:
            part.unlink()
            raise requests.ConnectionError(f"the server sent another range than asked for: {announced!r}")
        return _write(answer.iter_content(_CHUNK), one, part, run, after=have if resumed else 0)


def _copy(path: Path, one: Download, part: Path, run: _Run) -> str:
    try:
        with path.open("rb") as file:
            return _write(iter(lambda: file.read(_CHUNK), b""), one, part, run, after=0)
    except FileNotFoundError:
        raise _Gone from None
    except (PermissionError, IsADirectoryError) as error:
        raise BuildError(f"{one.name}: {path}: {error.strerror}") from None


def _write(chunks: Iterable[bytes], one: Download, part: Path, run: _Run, *, after: int) -> str:
    """Append ``chunks`` to the first ``after`` bytes of ``part``; returns the SHA-256 of it all."""
    digest = hashlib.sha256()
    with part.open("r+b" if after else "wb") as file:
        for chunk in _first(file.read, after):
            digest.update(chunk)
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            run.tell(one, file.tell())
    return digest.hexdigest()


def _first(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    while count > 0 and (chunk := read(min(count, _CHUNK))):
        count -= len(chunk)
        yield chunk


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


def _reason(error: BaseException) -> str:
    """What went wrong, without the layers of wrapping that requests and urllib3 show."""
    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} {error.response.reason}"
    inner: object = error
    while isinstance(inner, BaseException):
        deeper = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    text = redact.text(str(inner))
    return text.rpartition(">: ")[2] or type(error).__name__

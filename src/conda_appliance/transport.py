"""The only network: bytes from one place, http(s) or a folder, tried again and gone on with where they stopped.

Proxies come from the environment (``http_proxy``, ``https_proxy``, ``no_proxy``), the certificates that https is
checked with from `network`, and who we are to a host from `credentials`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from conda_appliance import credentials, lazy, network, redact
from conda_appliance.errors import BuildError

if TYPE_CHECKING:
    import requests
else:
    requests = lazy.module("requests")

#: Tries of one file when a server answers 5xx, 429 or drops the connection.
TRIES = 4
#: Seconds before the second try; each further pause is twice as long.
PAUSE = 0.5
#: The longest that a server may have us wait before the next try (``Retry-After``), in seconds.
LONGEST_PAUSE = 60.0
#: Seconds without a byte after which a connection counts as dropped.
TIMEOUT = 30

_CHUNK = 1 << 18
_NETWORK = "check the network and the proxy settings (http_proxy, https_proxy, no_proxy)"


class Gone(Exception):
    """A server says that the file is not there (any more)."""


class Stopped(Exception):
    """The run ends: somebody interrupted it, or the disk is full."""


@dataclass(kw_only=True)
class Line:
    """What the threads of one run share of the network."""

    stopped: threading.Event = field(default_factory=threading.Event)
    #: Hosts that did not answer at all: no other file waits for them through all its tries.
    silent: dict[str, str] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)

    @property
    def session(self) -> requests.Session:
        """A thread's own session, which keeps its connection from file to file."""
        if not hasattr(self._local, "session"):
            self._local.session = _session()
        session: requests.Session = self._local.session
        return session


def download(url: str, part: Path, line: Line, tell: Callable[[int], None]) -> str:
    """Write ``url`` to ``part``, going on where an earlier try stopped; returns the SHA-256 of the whole.

    ``url`` is http(s), file or a plain path. ``tell`` is given the bytes that are there. Raises Gone where it is not
    there, Stopped when ``line`` was stopped, and BuildError.
    """
    address = urlsplit(url)
    if address.scheme in ("", "file"):
        return _copy(Path(unquote(address.path)) if address.scheme else Path(url), part, tell)
    pause = PAUSE
    for attempt in range(1, TRIES + 1):
        if line.stopped.is_set():
            raise Stopped
        if address.netloc in line.silent:
            raise BuildError(f"{url}: {line.silent[address.netloc]}", hint=_NETWORK)
        try:
            return _stream(url, part, line, tell)
        except requests.HTTPError as error:
            status, silent = error.response.status_code, False
            if status in (404, 410):
                raise Gone from None
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
            line.stopped.wait(pause)
            pause *= 2
    if silent:
        line.silent[address.netloc] = reason
    raise BuildError(f"{url}: {reason} ({TRIES} tries)", hint=_NETWORK)


def _asked_pause(answer: requests.Response) -> float:
    """For how many seconds a server asks us to wait (RFC 9110, 10.2.3; its dates are not read)."""
    asked = answer.headers.get("Retry-After", "")
    return min(float(asked), LONGEST_PAUSE) if asked.isdigit() else 0.0


def _stream(url: str, part: Path, line: Line, tell: Callable[[int], None]) -> str:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with line.session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is no shorter than the whole: it is not a beginning of it
            part.unlink()
            raise requests.ConnectionError("the partial file did not fit the server's")
        answer.raise_for_status()
        announced = answer.headers.get("Content-Range", "")
        resumed = answer.status_code == 206 and announced.startswith(f"bytes {have}-")
        if answer.status_code == 206 and not resumed:
            part.unlink()
            raise requests.ConnectionError(f"the server sent another range than asked for: {announced!r}")
        return _write(answer.iter_content(_CHUNK), part, tell, after=have if resumed else 0)


def _copy(path: Path, part: Path, tell: Callable[[int], None]) -> str:
    try:
        with path.open("rb") as file:
            return _write(iter(lambda: file.read(_CHUNK), b""), part, tell, after=0)
    except FileNotFoundError:
        raise Gone from None
    except (PermissionError, IsADirectoryError) as error:
        raise BuildError(f"{path}: {error.strerror}") from None


def _write(chunks: Iterable[bytes], part: Path, tell: Callable[[int], None], *, after: int) -> str:
    """Append ``chunks`` to the first ``after`` bytes of ``part``; returns the SHA-256 of it all."""
    digest = hashlib.sha256()
    with part.open("r+b" if after else "wb") as file:
        for chunk in _first(file.read, after):
            digest.update(chunk)
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            tell(file.tell())
    return digest.hexdigest()


def _first(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    while count > 0 and (chunk := read(min(count, _CHUNK))):
        count -= len(chunk)
        yield chunk


def read_url(url: str) -> bytes:
    """The whole answer of a small http(s) request. Raises BuildError when there is none."""
    try:
        with _session() as session, session.get(url, timeout=TIMEOUT) as answer:
            answer.raise_for_status()
            return answer.content
    except requests.RequestException as error:
        raise BuildError(f"{url}: {_reason(error)}", hint=_NETWORK) from None


def read_json(url: str, line: Line) -> Any:
    """The value that a server answers. Raises Gone where it has none, BuildError where it cannot be had."""
    try:
        with line.session.get(url, timeout=TIMEOUT) as answer:
            if answer.status_code == 404:
                raise Gone
            answer.raise_for_status()
            return answer.json()
    except (requests.RequestException, ValueError) as error:
        raise BuildError(_reason(error)) from None


def answers(url: str) -> str:
    """Ask a server for the head of ``url``; returns why it does not give it, nothing where it does."""
    try:
        with _session() as session, session.get(url, timeout=TIMEOUT, stream=True) as answer:
            answer.raise_for_status()
    except requests.RequestException as error:
        return redact.text(_reason(error))
    return ""


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

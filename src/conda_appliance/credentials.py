"""Who we are to a server: credentials by host, from where conda's tools keep them; never from a definition.

The places, first come first: the variable ``CONDA_APPLIANCE_AUTH`` (the JSON itself, for CI), the file that
``RATTLER_AUTH_FILE`` names, the keyring (its service ``rattler``, if Python's ``keyring`` is installed),
``~/.rattler/credentials.json``, and ``.netrc`` (``NETRC`` names another). The JSON is rattler's and pixi's
(https://pixi.sh/latest/deployment/authentication/): host → ``{"BasicHTTP": {"username": …, "password": …}}``,
``{"BearerToken": …}`` or ``{"CondaToken": …}``; ``*.example.org`` stands for every host below it.

They go to hosts over https, and over plain http to this host alone. Every secret that is read here is told to
`redact`, and none is in a `Credential`'s repr.
"""

from __future__ import annotations

import base64
import functools
import importlib
import json
import netrc
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from conda_appliance import log, redact
from conda_appliance.errors import UsageError

#: The variable that holds credentials itself.
VARIABLE = "CONDA_APPLIANCE_AUTH"
#: What to do about a server that wants to know who asks.
HINT = (
    "give the host's credentials by RATTLER_AUTH_FILE, CONDA_APPLIANCE_AUTH, a keyring or ~/.netrc, and its URL as "
    "https (docs/how-to/channels.md)"
)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FORM = 'a host\'s credentials look like {"host.example": {"BearerToken": "…"}} (docs/how-to/channels.md)'


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a host asks for: ``kind`` is BasicHTTP (with a ``user``), BearerToken or CondaToken."""

    kind: str
    secret: str = field(repr=False)
    user: str = ""

    @property
    def header(self) -> str:
        """The value of the header ``Authorization``; nothing for a conda token, which is in the URL."""
        if self.kind == "BasicHTTP":
            return "Basic " + base64.b64encode(f"{self.user}:{self.secret}".encode()).decode()
        return f"Bearer {self.secret}" if self.kind == "BearerToken" else ""

    def sent(self, url: str) -> str:
        """The URL that is asked for: with a conda token, ``/t/TOKEN`` goes before its path."""
        if self.kind != "CondaToken":
            return url
        parts = urlsplit(url)
        return urlunsplit(parts._replace(path=f"/t/{self.secret}{parts.path}"))

    def as_json(self) -> dict[str, Any]:
        """As rattler's file has it."""
        if self.kind == "BasicHTTP":
            return {"BasicHTTP": {"username": self.user, "password": self.secret}}
        return {self.kind: self.secret}


def find(url: str) -> Credential | None:
    """What the host of ``url`` is to be given. Raises UsageError for a place that cannot be read."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)):
        return None
    environ = os.environ
    home = Path(environ.get("HOME") or Path.home())
    names = [host, *_above(host)]
    places: tuple[Callable[[], Mapping[str, Credential]], ...] = (
        lambda: _in_variable(environ.get(VARIABLE, "")),
        lambda: _in_file(environ.get("RATTLER_AUTH_FILE", ""), required=True),
        lambda: _in_keyring(tuple(names)),
        lambda: _in_file(str(home / ".rattler/credentials.json"), required=False),
        lambda: _in_netrc(environ.get("NETRC", ""), home),
    )
    for place in places:
        known = place()
        for name in names:
            if name in known:
                return known[name]
    return None


def of_hosts(urls: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The credentials for the hosts of ``urls``, by host, as rattler's file has them; secrets, so not to be written.

    Raises UsageError where a host's would go over plain http too, because rattler looks at the host alone.
    """
    asked = [*urls]
    found = {}
    for url in asked:
        if credential := find(url):
            found[(urlsplit(url).hostname or "").lower()] = credential.as_json()
    for url in asked:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if parts.scheme == "http" and host in found and host not in _LOOPBACK:
            raise UsageError(
                f"{redact.text(url)} would have the credentials of {host} sent in the clear",
                hint="write https",
            )
    return found


def require_clean(url: str, what: str) -> None:
    """Raise UsageError for a URL with a user, password or token in it, which would land in the lock and the image."""
    if secret_in(url):
        raise UsageError(
            f"{what} {_told(url)} holds a password or token, which would land in the lock and the image",
            hint=f"write it without, and {HINT}",
        )


def secret_in(url: str) -> bool:
    """Whether a URL holds a user, a password or conda's token."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and ("@" in parts.netloc or "/t/" in f"{parts.path}/")


def _told(url: str) -> str:
    parts = urlsplit(url)
    words = parts.path.split("/")
    words = [
        redact.MARK if before == "t" else word for before, word in zip(["", *words], words, strict=False)
    ]
    netloc = f"{redact.MARK}@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return urlunsplit(parts._replace(netloc=netloc, path="/".join(words), query="", fragment=""))


def _above(host: str) -> list[str]:
    """``*.example.org`` and ``*.org`` for ``conda.example.org``."""
    words = host.split(".")
    return [f"*.{'.'.join(words[start:])}" for start in range(1, len(words))]


@functools.cache
def _in_variable(content: str) -> Mapping[str, Credential]:
    return _parsed(content, f"the variable {VARIABLE}") if content else {}


def _in_file(name: str, *, required: bool) -> Mapping[str, Credential]:
    return _read(name) if name and (required or Path(name).is_file()) else {}


@functools.cache
def _read(name: str) -> Mapping[str, Credential]:
    try:
        content = Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"the credentials in {name} cannot be read: {why}", hint="RATTLER_AUTH_FILE names such a file"
        ) from None
    return _parsed(content, name)


def _parsed(content: str, where: str) -> dict[str, Credential]:
    """What rattler's JSON says. No message here quotes any of it."""
    try:
        value = json.loads(content)
    except ValueError as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{where} is not JSON{line}", hint=_FORM) from None
    if not isinstance(value, dict):
        raise UsageError(f"{where} is no JSON object", hint=_FORM)
    found = {}
    for host, entry in value.items():
        credential = _entry(entry)
        if credential is not None:
            found[host.lower()] = credential
        elif not (isinstance(entry, dict) and {*entry} & {"S3Credentials", "OAuth"}):
            raise UsageError(f"{where}: what it has for {host} is not understood", hint=_FORM)
    return found


def _entry(entry: object) -> Credential | None:
    match entry:
        case {"BasicHTTP": {"username": str(user), "password": str(secret)}}:
            credential = Credential(kind="BasicHTTP", user=user, secret=secret)
        case {"BearerToken": str(secret)}:
            credential = Credential(kind="BearerToken", secret=secret)
        case {"CondaToken": str(secret)}:
            credential = Credential(kind="CondaToken", secret=secret)
        case _:
            return None
    redact.keep(credential.secret, credential.user)
    return credential


@functools.cache
def _in_keyring(names: tuple[str, ...]) -> Mapping[str, Credential]:
    """What the keyring has for the first of ``names`` that it knows, as `pixi auth login` keeps it there."""
    try:
        keyring = importlib.import_module("keyring")
    except ImportError:
        return {}
    for name in names:
        if _failed:
            return {}
        try:
            content = keyring.get_password("rattler", name)
        except Exception as error:  # each backend has errors of its own
            _tell_failure(error)
            return {}
        if content:
            return (
                _parsed(json.dumps({name: json.loads(content)}), "the keyring") if _is_json(content) else {}
            )
    return {}


#: How the keyring failed, once it did: it is not asked again, for it may ask a person.
_failed: dict[str, Exception] = {}


def _tell_failure(error: Exception) -> None:
    """Say that the keyring failed, once a run; one that has no backend is none, as on most servers."""
    first = _failed.setdefault("keyring", error) is error
    if first and type(error).__name__ != "NoKeyringError":
        said = redact.text(str(error)).strip() or "it does not say why"
        log.warn(
            f"the keyring cannot be asked for credentials ({type(error).__name__}: {said}), so what it has is not "
            "used: unlock it, give them by RATTLER_AUTH_FILE, or turn it off by "
            "PYTHON_KEYRING_BACKEND=keyring.backends.null.Keyring"
        )


def _is_json(content: str) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def _in_netrc(named: str, home: Path) -> Mapping[str, Credential]:
    """The machines of a .netrc. Its ``default`` is left out: it would go to every host."""
    path = Path(named) if named else home / ".netrc"
    if path.is_file():
        return _read_netrc(path)
    if named:
        raise UsageError(f"NETRC names {path}, which is no file", hint="name one, or unset it")
    return {}


@functools.cache
def _read_netrc(path: Path) -> Mapping[str, Credential]:
    try:
        hosts = netrc.netrc(str(path)).hosts
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        line = f", line {error.lineno}" if isinstance(error, netrc.NetrcParseError) else ""
        raise UsageError(
            f"{path}{line} cannot be read as a .netrc",
            hint="write `machine HOST login USER password PASSWORD`",
        ) from None
    found = {}
    for host, (user, _account, secret) in hosts.items():
        if host != "default" and secret:
            redact.keep(secret, user)
            found[host.lower()] = Credential(kind="BasicHTTP", user=user, secret=secret)
    return found

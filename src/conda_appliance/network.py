"""What every way to a server has in common: whose certificates are trusted, and the proxies.

`sources`, rattler, uv and git are told the same, each by the name it knows.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from conda_appliance import redact
from conda_appliance.errors import UsageError

#: The certificates that the system's owner trusts, an internal authority's among them (Debian's ca-certificates).
SYSTEM_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
#: The variables that may name a file of certificates (PEM) instead, the first before the second.
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


def certificates() -> Path | None:
    """The file of certificates that https is checked with; None where a tool must use its own.

    Raises UsageError when a variable names what is no file.
    """
    for name in CERTIFICATE_VARIABLES:
        if given := os.environ.get(name):
            if not Path(given).exists():
                raise UsageError(
                    f"{name} names {given}, which is not there",
                    hint="name a file of certificates (PEM), or unset it",
                )
            return Path(given)
    return SYSTEM_CERTIFICATES if SYSTEM_CERTIFICATES.is_file() else None


def variables() -> dict[str, str]:
    """What a program that asks servers is given beside our environment: our certificates, by all their names."""
    check_proxies()
    found = certificates()
    if found is None:
        return {}
    given = {"SSL_CERT_FILE": str(found)}
    if "GIT_SSL_CAINFO" not in os.environ:
        given["GIT_SSL_CAINFO"] = str(found)
    return given


def check_proxies() -> None:
    """Raise UsageError for a proxy that cannot be asked, which every tool would tell in another way."""
    keep_proxy_secrets()
    for name, given in _proxies():
        try:
            parts = urlsplit(given)
            usable = bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(
                f"{name} is not the URL of a proxy: {redact.text(given)}",
                hint="write http://proxy.example:3128, with USER:PASSWORD@ before the host if it wants one, "
                "percent-encoded",
            )


def keep_proxy_secrets() -> None:
    """Have the passwords of proxies taken out of what is told."""
    for _name, given in _proxies():
        found = re.match(r"[^/]*//([^:]*):(.*)@", given)
        if found:
            user, secret = found.groups()
            redact.keep(secret, user)
            redact.keep(unquote(secret), unquote(user))


def _proxies() -> list[tuple[str, str]]:
    """The variables that name proxies, and their values as URLs."""
    names = [spelled for name in PROXY_VARIABLES for spelled in (name, name.upper())]
    given = [(name, os.environ[name]) for name in names if os.environ.get(name)]
    return [(name, value if "://" in value else f"http://{value}") for name, value in given]

"""Takes secrets out of what is written for people: the one owner of what may not be told.

Two ways lead here: what a secret looks like in a URL or a header, and the values that were read as secrets in this
process (`keep`), in every spelling in which they travel.
"""

from __future__ import annotations

import base64
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO
from urllib.parse import quote

#: What stands where a secret was.
MARK = "…"
#: A value that is shorter is no secret by itself: to take every ``abc`` out of all texts would hide what happened.
_SHORTEST = 4

_PATTERNS = (
    # user:password@ of a URL (RFC 3986, 3.2.1); a name alone, as in ssh://git@host, is none
    (re.compile(r"(\w://)[^\s/:@]*:[^\s/]*@"), rf"\1{MARK}@"),
    # conda's token in a path (https://conda.org/learn/ceps/: anaconda-client and conda spell it so)
    (re.compile(r"(\w://[^\s/]+(?:/[^\s/]+)*?/t/)[^\s/]+"), rf"\1{MARK}"),
    (re.compile(r"(?i)(authorization['\"]?[:=]\s*['\"]?(?:basic|bearer|token)\s+)[^\s'\"]+"), rf"\1{MARK}"),
)

_known: set[str] = set()


def keep(secret: str, user: str = "") -> None:
    """Have a secret taken out of all texts from now on: as it is, percent-encoded, in base64.

    ``user`` is who it belongs to, for the base64 of ``user:secret`` that basic authentication sends.
    """
    if len(secret) < _SHORTEST:
        return
    packed = [base64.b64encode(one.encode()).decode() for one in (secret, f"{user}:{secret}")]
    spelled = {secret, quote(secret, safe=""), quote(secret), *packed, *(one.rstrip("=") for one in packed)}
    _known.update(spelled)


def text(given: str) -> str:
    """``given`` without its secrets."""
    for one in sorted(_known, key=len, reverse=True):
        if one in given:
            given = given.replace(one, MARK)
    for pattern, instead in _PATTERNS:
        given = pattern.sub(instead, given)
    return given


def holds_secret(given: str) -> bool:
    """Whether there is a secret in ``given``."""
    return text(given) != given


class _Guarded:
    """A text stream that lets no secret through; all but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, given: str) -> int:
        self._stream.write(text(given))
        return len(given)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Standard output and error let no secret through while the block runs, nor does the traceback that ends it."""
    out, err = sys.stdout, sys.stderr
    sys.excepthook = lambda *error: err.write(text("".join(traceback.format_exception(*error)))) and None
    sys.stdout, sys.stderr = _Guarded(out), _Guarded(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err

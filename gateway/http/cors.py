"""Pages of other origins that may call the gateway from browsers: what browsers are told of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.config.table import CorsSpec
from gateway.http.answer import Answer
from gateway.http.request import Request

METHODS: Final = b"GET, POST, DELETE"
MAX_AGE: Final = b"600"
"""Seconds for which a browser need not ask again."""
MOST_ASKED: Final = 2048
"""Bytes of the names of headers that a page may ask for."""

Headers = list[tuple[bytes, bytes]]


class Cors:
    """Says which origins may call, and tells browsers so with each answer."""

    def __init__(self, spec: CorsSpec) -> None:
        self._anyone = "*" in spec.origins
        self._origins = frozenset(origin.encode() for origin in spec.origins)

    def allow(self, request: Request, answer: Answer) -> bool:
        """Have the answer say that its origin may read it, if so; whether it was only a question for that, answered.

        Keys are no cookies: a page must send one itself, so that answers may be read by whoever has it.
        """
        origin = _first(request.headers, b"origin")
        if not origin or not (self._anyone or origin in self._origins):
            return False
        said: Headers = [(b"access-control-allow-origin", b"*" if self._anyone else origin)]
        if not self._anyone:
            said.append((b"vary", b"Origin"))
        asked = _first(request.headers, b"access-control-request-method")
        if request.method != "OPTIONS" or not asked:
            answer.more = [*said, (b"access-control-expose-headers", b"*")]
            return False
        wanted = _first(request.headers, b"access-control-request-headers")[:MOST_ASKED]
        said += [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", MAX_AGE)]
        if wanted:
            said.append((b"access-control-allow-headers", wanted))
        answer.start(204, said)
        answer.end()
        return True


def _first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")

"""What of a route decides its answers, and by what name an answer is kept: whatever decides it is in the name."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import Struct

from backends.api import Call
from gateway.config import RouteSpec
from gateway.config.caching import ResponseCacheSpec

KEY: Final = "{tl}:answer:"
_VERSION: Final = b"1"
"""Of the way in which names are made: with another, nothing is found that was kept before."""
_NO_ANSWERS_OF_ITS_OWN: Final = (
    "targets", "aliases", "fallback", "fallback_route", "policy", "queue", "shadow", "timeouts", "proxy", "loras",
    "passes", "trust_request_id", "retry", "resume", "keepalive", "hold", "body", "limits", "key_limits", "price",
    "response_cache", "forward_headers", "session_headers",
)  # fmt: skip
"""Keys of a route that decide where its calls go and whether, or that stand in the body by then, or in the name."""
_ANY_SERVER: Final = (
    "name", "url", "api_key", "tls", "proxy", "weight", "canary", "max_inflight", "context", "kv_tokens", "finish",
    "usage_event", "continuous_usage",
)  # fmt: skip
"""Keys of a target that replicas of one model may differ in. All others, those to come too, decide its answers."""
_ANYBODYS: Final = frozenset({"model", "stream", "user", "safety_identifier"})
"""Fields that are no part of the name: `model` and `stream` are, in another form; the others say who asks, for whom no
model answers differently."""
_REPEATED: Final = ("responses", "messages")
"""Endpoints whose answers may repeat who asks."""
_DIALECT: Final = (b"anthropic-version", b"anthropic-beta")


class Terms(Struct, frozen=True):
    """A route's rules for its answers."""

    route: str
    spec: ResponseCacheSpec
    made_by: bytes
    """Stands for all in the table that decides the route's answers."""
    headers: tuple[bytes, ...] = _DIALECT
    """Headers of calls that go on to targets, and may decide an answer there."""

    @classmethod
    def of(cls, name: str, route: RouteSpec) -> Terms | None:
        """Those of this route; None: its answers are not kept."""
        if route.response_cache is None:
            return None
        own = _without(msgspec.to_builtins(route), _NO_ANSWERS_OF_ITS_OWN)
        kinds = [msgspec.json.encode(_without(msgspec.to_builtins(each), _ANY_SERVER)) for each in route.targets]
        made_by = blake2b(msgspec.json.encode(own, order="sorted"), digest_size=16)
        for kind in sorted({*kinds}):
            made_by.update(kind)
        headers = sorted({*_DIALECT, *(header.lower().encode() for header in route.forward_headers)})
        return cls(name, route.response_cache, made_by.digest(), tuple(headers))

    def name(self, call: Call, tenant: str, headers: dict[bytes, bytes], secret: bytes) -> str:
        """The name under which the call's answer is kept; who does not know the `secret` cannot make it.

        In it is all that decides the answer: tenant, route and what it consists of, endpoint, the model's name as it
        was asked for, whether it is a stream, each field of the body byte for byte, in whatever order they come, and
        the headers that go on.
        """
        scope = "" if self.spec.shared else tenant
        digest = blake2b(digest_size=24, key=secret)

        def add(part: Any) -> None:
            digest.update(len(part).to_bytes(8))
            digest.update(part)

        for part in (self.route, self.made_by, scope, call.endpoint, call.model, b"stream" if call.stream else b""):
            add(part.encode() if isinstance(part, str) else part)
        left_out = ("model", "stream") if call.endpoint in _REPEATED else _ANYBODYS
        fields = call.body.fields
        for field in sorted(name for name in fields if name not in left_out):
            add(field.encode())
            add(fields[field])
        for header in self.headers:
            if header in headers:
                add(header)
                add(headers[header])
        shown = "*" if self.spec.shared else tenant
        return f"{KEY}{shown}:{self.route}:{_VERSION.decode()}{digest.hexdigest()}"


def _without(spec: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in names}

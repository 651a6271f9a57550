"""Which dialects can be translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from backends.capabilities import Capabilities
from gateway.dialects.dialect import Dialect
from gateway.dialects.generate.dialect import Generate
from gateway.dialects.messages.dialect import Messages
from gateway.dialects.responses.dialect import Responses
from gateway.dialects.translating import Translating

FOR: Final[Mapping[str, Dialect]] = {
    "messages": Messages(),
    "responses": Responses(),
    "generate": Generate(),
    "generate/root": Generate(root=True),
}
"""By the endpoint that clients ask for."""


def translated(native: Mapping[Any, Capabilities]) -> dict[Any, Capabilities]:
    """What a server can do that has these endpoints itself: these, and those that can be translated into them."""
    spoken = dict(native)
    for endpoint, dialect in FOR.items():
        if endpoint not in native and dialect.asks in native:
            spoken[endpoint] = Translating(native[dialect.asks], dialect).capabilities()
    return spoken

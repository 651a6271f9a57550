"""Which dialects can be translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from backends.api import CountsChats
from backends.capabilities import Capabilities
from gateway.dialects.dialect import Dialect
from gateway.dialects.generate.dialect import Generate
from gateway.dialects.messages.counting import Counting
from gateway.dialects.messages.dialect import Messages
from gateway.dialects.parsing import Parsing
from gateway.dialects.responses.dialect import Responses
from gateway.dialects.translating import Translating

FOR: Final[Mapping[str, Dialect]] = {
    "messages": Messages(),
    "responses": Responses(),
    "generate": Generate(),
    "generate/root": Generate(root=True),
}
"""By the endpoint that clients ask for."""
CHATS: Final = "chat/completions"
COUNTS: Final = "messages/count_tokens"


def translated(native: Mapping[Any, Capabilities], parser: str | None = None) -> dict[Any, Capabilities]:
    """What a server can do that has these endpoints itself: these, and those that can be translated into them.

    `parser`: the format in which its model writes calls, where the server does not find them. Then all that can be
    translated into chats is, for in its other endpoints it does not find them either.
    """
    spoken = dict(native)
    if parser is not None and CHATS in native:
        spoken[CHATS] = Parsing(native[CHATS], parser).capabilities()
    for endpoint, dialect in FOR.items():
        if dialect.asks in native and (endpoint not in native or (parser is not None and dialect.asks == CHATS)):
            spoken[endpoint] = Translating(spoken[dialect.asks], dialect).capabilities()
    chats = native.get(CHATS)
    if COUNTS not in native and chats is not None and isinstance(chats.adapter, CountsChats):
        spoken[COUNTS] = Counting(chats, chats.adapter).capabilities()
    return spoken

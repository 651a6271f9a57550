"""Anthropic's `count_tokens`, for servers that can say how long the prompt of a chat is."""

from __future__ import annotations

import msgspec
from msgspec import structs

from backends.api import Call, CountsChats, Reply, Target, UpstreamRequest, Usage
from backends.capabilities import Capabilities
from gateway.dialects.messages.dialect import Messages
from gateway.dialects.translating import Translating


class Counting(Translating):
    """Asks for the tokens of the chat that the same messages would be."""

    def __init__(self, inner: Capabilities, counts: CountsChats) -> None:
        super().__init__(inner, Messages())
        self._counts = counts

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        return structs.replace(super().request(call, target), path=self._counts.chat_tokens_path)

    def reply(self, call: Call, body: bytes) -> Reply:
        return Reply(msgspec.json.encode({"input_tokens": self._counts.chat_tokens(body)}), Usage())

"""Anthropic's messages, for servers that know chats only."""

from __future__ import annotations

from typing import Final

import msgspec

from backends.api import Call, Endpoint
from gateway.dialects.asking import Asking
from gateway.dialects.messages.answer import message
from gateway.dialects.messages.request import chat_of, shows_thoughts
from gateway.dialects.messages.stream import MessageEvents

ERRORS: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large"}
"""What errors of these statuses are called."""


class Messages:
    """`Dialect` of the endpoint `messages`."""

    asks: Endpoint = "chat/completions"

    def request(self, call: Call) -> Asking:
        return chat_of(call)

    def answer(self, call: Call, body: bytes) -> bytes:
        return message(call, body, thoughts=shows_thoughts(call))

    def open(self, call: Call) -> MessageEvents:
        return MessageEvents(call, thoughts=shows_thoughts(call))

    def refusal(self, call: Call, status: int, message: str, param: str | None) -> tuple[int, bytes]:
        error = {"type": ERRORS.get(status, "invalid_request_error"), "message": message}
        return status, msgspec.json.encode({"type": "error", "error": error, "request_id": call.id})

"""OpenAI's responses, for servers that know chats only."""

from __future__ import annotations

import msgspec

from backends.api import Call, Endpoint
from gateway.dialects.asking import Asking
from gateway.dialects.responses.request import chat_of
from gateway.dialects.responses.response import whole
from gateway.dialects.responses.stream import ResponseEvents


class Responses:
    """`Dialect` of the endpoint `responses`."""

    asks: Endpoint = "chat/completions"

    def request(self, call: Call) -> Asking:
        return chat_of(call)

    def answer(self, call: Call, body: bytes) -> bytes:
        return whole(call, body)

    def open(self, call: Call) -> ResponseEvents:
        return ResponseEvents(call)

    def refusal(self, call: Call, status: int, message: str, param: str | None) -> tuple[int, bytes]:
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
        return status, msgspec.json.encode({"error": error})

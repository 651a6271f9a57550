"""TGI's own language, for servers that complete prompts."""

from __future__ import annotations

import msgspec

from backends.api import Call, Endpoint
from gateway.dialects.asking import Asking
from gateway.dialects.generate.answer import generated
from gateway.dialects.generate.request import completion_of
from gateway.dialects.generate.stream import Generation


class Generate:
    """`Dialect` of `/generate` and `/generate_stream`, and of `/`, which gives lists."""

    asks: Endpoint = "completions"

    def __init__(self, *, root: bool = False) -> None:
        """`root`: it answers as TGI does at `/`, with a list, and with the prompt unless that is not wanted."""
        self._root = root

    def request(self, call: Call) -> Asking:
        return completion_of(call)

    def answer(self, call: Call, body: bytes) -> bytes:
        value = generated(call, body, full_text=self._root)
        return msgspec.json.encode([value] if self._root else value)

    def open(self, call: Call) -> Generation:
        return Generation(call, full_text=self._root)

    def refusal(self, call: Call, status: int, message: str, param: str | None) -> tuple[int, bytes]:
        """In words alone, which get the envelope of all errors of the endpoint."""
        return 422 if status == 400 else status, msgspec.json.encode({"message": message})

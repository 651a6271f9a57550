"""Reads the recorded exchanges in tests/golden."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from backends.api import Call, Endpoint
from backends.body import Body

GOLDEN = Path(__file__).parents[1] / "golden"
_CUT = re.compile(rb"\.\.\.\[\d+ characters cut\]\.\.\.")


class Capture(NamedTuple):
    """One exchange: what was sent to a real server, and all that came back."""

    name: str
    request_line: str
    request: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def cut(self) -> bool:
        """The answer was shortened after recording, so that it cannot be read as a whole."""
        return _CUT.search(self.body) is not None

    @property
    def endpoint(self) -> Endpoint:
        endpoint: Any = self.request_line.split()[1].removeprefix("/v1/")
        return endpoint  # type: ignore[no-any-return]

    @property
    def asked(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.request)
        return decoded

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def call(self, *, include_usage: bool | None = None) -> Call:
        """The call that a client would have made; by default with the usage event if it was recorded with it."""
        asked = self.asked
        wanted = (asked.get("stream_options") or {}).get("include_usage", False)
        stream = asked.get("stream", False)
        model = asked.get("model", "m")
        usage = wanted if include_usage is None else include_usage
        return Call("call-1", self.endpoint, model, Body(self.request), "application/json", stream, usage)


def captures(pattern: str) -> list[Capture]:
    """The exchanges whose path below tests/golden matches, such as "vllm/vllm-chat*"."""
    return [read_capture(path) for path in sorted(GOLDEN.glob(pattern + ".txt")) if "mid-stream" not in path.name]


def read_capture(path: Path) -> Capture:
    sent, received = path.read_bytes().split(b"\n< ", 1)
    sent_head, _, sent_body = sent.partition(b"\n>\n")
    received_head, _, body = received.partition(b"\n\n")
    request_line = sent_head.decode().split("\n")[0].removeprefix("> ")
    status_line, *lines = [line.removeprefix("< ") for line in received_head.decode().split("\n")]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if "content-length" in headers and len(body) > int(headers["content-length"]):
        body = body[: int(headers["content-length"])]  # drops the newline that was added for the file's sake
    return Capture(path.stem, request_line, sent_body.strip(), int(status_line.split()[0]), headers, body)


def broken_stream(path: str) -> bytes:
    """What a server still sent after it was hit in mid-stream, without the chunked framing."""
    text = (GOLDEN / path).read_text()
    raw = ast.literal_eval("".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")))
    blocks, rest = [], raw.encode()
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        blocks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(blocks)

"""The calls that are measured, and whether what comes back is the answer."""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass

MODEL = "bench-model"
EVENTS = 66
SYSTEM = "You are the support assistant of a hosting company. Answer briefly and name the page of the manual. " * 2
QUESTION = "Which of our replicas should take this call, and what does the manual say about draining one? "
WORDS = "the replica with most free memory answers the first of all calls that wait "
TIMEOUT_SECONDS = 60.0


class Wrong(Exception):
    """An answer is not what was asked for; the message shows it."""


@dataclass(frozen=True, slots=True)
class Call:
    """The body of a chat completion."""

    body: bytes
    streams: bool = False

    def request(self, secret: str) -> bytes:
        """The whole request as it goes over the wire."""
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: bench\r\naccept: */*\r\n"
            f"authorization: Bearer {secret}\r\ncontent-type: application/json\r\ncontent-length: {len(self.body)}\r\n"
        )
        return head.encode() + b"\r\n" + self.body


def chat(prompt: str = QUESTION, *, model: str = MODEL, streams: bool = False) -> Call:
    """A chat completion of everyday fields."""
    body = {
        "model": model,
        **({"stream": True} if streams else {}),
        "max_tokens": 256,
        "temperature": 0.2,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
    }
    return Call(json.dumps(body, separators=(",", ":")).encode(), streams)


def sized(size: int) -> Call:
    """A chat completion whose prompt has about so many bytes."""
    return chat(WORDS * (size // len(WORDS)))


def paced(gap_ms: int, events: int) -> Call:
    """A stream of which the stub sends so many events, so far apart."""
    return chat(f"pace {gap_ms} ms x {events}", streams=True)


WHOLE = chat()
STREAM = chat(streams=True)


def check(port: int, secret: str, call: Call) -> None:
    """Make the call once and look at the whole answer. Raises `Wrong`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", call.body, headers)
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Wrong(f"no answer: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise Wrong(f"status {response.status}: {answer[:300]!r}")
    if call.streams:
        events = re.findall(rb"^data: ", answer, re.MULTILINE)
        if len(events) < EVENTS or b"data: [DONE]" not in answer[-64:]:
            raise Wrong(f"{len(events)} events where {EVENTS} were sent, the last of them {answer[-200:]!r}")
    elif not json.loads(answer).get("usage"):
        raise Wrong(f"no usage in {answer[-300:]!r}")

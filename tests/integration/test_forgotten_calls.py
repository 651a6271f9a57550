"""Nothing of a call is in memory once it is over, however it ended, whether or not a garbage collector comes by."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator

import pytest
from harness.in_process import InProcess, in_process
from harness.upstream import Act, Script, Upstream, answer, event, stream, whole
from integration.client import CHAT, chat, request

from gateway.call_state import CallState
from gateway.http.client import Client
from gateway.http.request import Request
from gateway.metering import CallRecord
from gateway.routing import Attempt

TIMES = 3
LIMIT = 1024 * 1024
HASTY = {"first_output": "200ms", "whole": "200ms", "idle": "200ms"}
GOOD, BAD = whole(answer()), whole({"error": {"message": "no"}}, 500)
HALF = stream(event("Hi"), end=False)


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    def target(name: str) -> dict[str, str]:
        return {"name": name, "backend": "openai", "url": upstream.target(name).url}

    routes = {
        "one": {"targets": [target("forgotten-one")], "timeouts": HASTY},
        "two": {"targets": [target("forgotten-bad")], "fallback": [target("forgotten-good")]},
    }
    table = json.dumps({"routes": routes, "bodies": {"request": LIMIT}})
    with in_process(table, tmp_path_factory.mktemp("forgotten"), upstream) as started:
        yield started


def held() -> list[object]:
    """What is in memory of calls."""
    kinds = (Attempt, CallRecord, CallState, Client, Request)
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


CASES: dict[str, tuple[str, str, Script | None]] = {
    "a good answer": ("one", "", GOOD),
    "a good stream": ("one", "stream", stream(event("Hi"), event(finish="stop"), b"data: [DONE]\n\n")),
    "a key that is none": ("one", "key", None),
    "no such route": ("none", "", None),
    "a body that is too large": ("one", "large", None),
    "a body that is no JSON": ("one", "broken", None),
    "refused by the target": ("one", "", whole({"error": {"message": "no"}}, 400)),
    "failed at all targets": ("one", "", BAD),
    "failed at one, answered by another": ("two", "", BAD),
    "nonsense from the target": ("one", "", whole(b"nonsense")),
    "too late": ("one", "", [Act.STALL]),
    "a stream that is cut": ("one", "stream", [*HALF, Act.CUT]),
    "a stream that is reset": ("one", "stream", [*HALF, Act.RESET]),
    "a stream that stands still": ("one", "stream", [*HALF, Act.STALL]),
    "a client that leaves": ("one", "leaves", [*HALF, Act.STALL]),
}


def asked(model: str, how: str, key: str) -> bytes:
    if how == "large":
        start = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
        return start.encode() + b"%x\r\n%b\r\n" % (LIMIT + 1, b" " * (LIMIT + 1))
    if how == "broken":
        return request(b"{", key)
    return request(chat(model, stream=how in ("stream", "leaves")), "tl_none" if how == "key" else key)


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_call_waits_for_the_garbage_collector(gateway: InProcess, upstream: Upstream, case: str) -> None:
    model, how, script = CASES[case]
    upstream.target("forgotten-one").script = upstream.target("forgotten-bad").script = script
    upstream.target("forgotten-good").script = GOOD
    raw = asked(model, how, gateway.issue().secret)
    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(TIMES):
            with gateway.client(raw) as client:
                if how == "leaves":
                    client.until(b"Hi")
                else:
                    client.answer()
        assert [type(each).__name__ for each in held()] == [type(each).__name__ for each in before]
    finally:
        gc.enable()

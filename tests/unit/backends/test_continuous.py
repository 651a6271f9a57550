"""Usage in every event: asked for, summed over the choices, and hidden from clients that did not ask."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.captures import captures

from backends import registry, sse
from backends.api import DONE, Call, Endpoint, Target, Usage
from backends.body import Body
from backends.capabilities import Capabilities
from backends.sglang import SGLang
from backends.vllm import VLLM
from gateway.core.errors import GatewayError
from gateway.upstream.reading import AnswerLimits, AnswerMemory, reader_for

ALWAYS = Target("t", "http://t", continuous_usage=True)
EVENTS = "text/event-stream"
BOTH = {"include_usage": True, "continuous_usage_stats": True}
PLAIN = [
    "vllm/vllm-chat-stream-plain",
    "vllm/vllm-chat-stream-logprobs",
    "vllm/vllm-chat-tools-named-stream",
    "vllm/vllm-completions-stream",
]


def call(options: Any = None, endpoint: Endpoint = "chat/completions", **fields: Any) -> Call:
    asked = {"model": "m", "messages": [], "prompt": "x", "stream": True, **fields}
    if options is not None:
        asked["stream_options"] = options
    wanted = isinstance(options, dict) and options.get("include_usage") is True
    return Call("c", endpoint, "m", Body(json.dumps(asked).encode()), stream=True, include_usage=wanted)


def counts(prompt: int, made: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made, "details": {"a": None}}


def event(*choices: dict[str, Any], **more: Any) -> bytes:
    return b"data: " + json.dumps({"id": "x", "choices": choices, **more}, separators=(",", ":")).encode() + b"\n\n"


def piece(index: int = 0, text: str = "a", finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": {"content": text}, "finish_reason": finish}


def read(asked: Call, *events: bytes, continuous: bool = True) -> tuple[bytes, Usage | None]:
    """What the client gets of a stream of vLLM that tells its usage in every event, and the last usage that we get."""
    limits = AnswerLimits(2**20, 2**20)
    reader = reader_for(asked, Capabilities.of(VLLM()), EVENTS, limits, AnswerMemory(2**30), continuous=continuous)
    shown, last = b"", None
    for each in events:
        if (chunk := reader.feed(each)) is not None:
            shown, last = shown + chunk.data, chunk.usage or last
    failure: GatewayError | None = reader.failure
    assert failure is None
    return shown, last


@pytest.mark.parametrize("adapter", [VLLM(), SGLang()])
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, BOTH),
        ({}, BOTH),
        ({"include_usage": False, "x": 1}, {**BOTH, "x": 1}),
        ({"include_usage": True}, BOTH),
        ({"include_usage": True, "continuous_usage_stats": False}, BOTH),
        (BOTH, BOTH),
    ],
)
def test_it_is_asked_for(adapter: VLLM, given: Any, sent: Any) -> None:
    body = json.loads(adapter.request(call(given), ALWAYS).body)
    assert body["stream_options"] == sent
    assert body.keys() == {"model", "messages", "prompt", "stream", "stream_options"}


def test_whole_answers_and_targets_without_it_are_asked_as_before() -> None:
    asked = call({"include_usage": True})
    assert VLLM().request(asked, Target("t", "http://t")).body == asked.body.raw
    whole = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'))
    assert VLLM().request(whole, ALWAYS).body == whole.body.raw


def test_only_servers_that_can_have_the_power() -> None:
    found = {name for name in registry.installed() if registry.capabilities(name).continuous is not None}
    assert found == {"vllm", "sglang"}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("options", [None, {"include_usage": True}, {"continuous_usage_stats": True}], ids=str)
@pytest.mark.parametrize("together", [False, True])
def test_clients_see_the_stream_that_they_would_have_seen(name: str, options: Any, together: bool) -> None:
    """Recorded streams, to each event of which usage was added."""
    (recorded,) = captures(name)
    body, told, made = recorded.body.replace(b',"usage":null', b""), [], 0
    for each in sse.Splitter().feed(body):
        if each.endswith(b"}\n\n") and not json.loads(sse.data(each)).get("usage"):
            made += 1
            each = each[: -len(b"}\n\n")] + b',"usage":' + json.dumps(counts(7, made)).encode() + b"}\n\n"
        told.append(each)
    asked = call(options, recorded.endpoint)
    shown, last = read(asked, *([b"".join(told)] if together else told))
    assert (shown, last) == (read(asked, *sse.Splitter().feed(body), continuous=False)[0], last)
    assert last is not None and b'"details"' not in shown


def test_the_recorded_stream_of_a_real_engine() -> None:
    (recorded,) = captures("vllm/vllm-chat-stream-continuous-usage")
    events = sse.Splitter().feed(recorded.body)
    shown, last = read(call(), *events)
    assert b"usage" not in shown and b"prompt_token_ids" in shown and shown.endswith(DONE)
    assert last == Usage(25, 4)
    shown, last = read(call({"include_usage": True}), *events)
    assert [b"usage" in each for each in sse.Splitter().feed(shown)] == [False] * 5 + [True, False]
    shown, last = read(call(BOTH), *events)
    assert shown == recorded.body
    for number in range(1, 6):
        assert read(call(), *events[:number])[1] == Usage(25, number - 1), "exact at each place where it may be left"


@pytest.mark.parametrize(
    ("told", "left"),
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"choices":[%b]}', b'{"choices":[%b]}'),
        (b'{"choices": [%b], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}', b'{"choices": [%b]}'),
        (b'{"choices":[%b] , "usage" : {"prompt_tokens":1,"completion_tokens":2}}', b'{"choices":[%b]}'),
        (b'{"choices":[%b],"usage":{"prompt_tokens":1,"completion_tokens":2,"a":{"b":{"c":"}"}}},"z":1}',
         b'{"choices":[%b],"z":1}'),
        (b'{"choices":[%b],"x":{"y":1,"usage":{"z":1}},"usage":{"prompt_tokens":1,"completion_tokens":2}}',
         b'{"choices":[%b],"x":{"y":1,"usage":{"z":1}}}'),
    ],
)  # fmt: skip
def test_only_the_usage_is_taken_out_wherever_it_stands(told: bytes, left: bytes) -> None:
    choice = json.dumps(piece(text='say ,"usage":{"a":1} \u00e9')).replace(" ", " ").encode()
    shown, last = read(call(), b"data: " + told % choice + b"\n\n")
    assert shown == b"data: " + left % choice + b"\n\n"
    assert last == Usage(1, 2)


@pytest.mark.parametrize("options", [None, BOTH], ids=["hidden", "shown"])
def test_choices_are_summed(options: Any) -> None:
    """Each event tells of its own choice only: eight answers that are left early once were charged as one."""
    events = [event(piece(index % 3), usage=counts(10, index // 3 + 1)) for index in range(9)]
    assert read(call(options, n=3), *events)[1] == Usage(10, 9)
    assert read(call(options, n=3), *events[:4])[1] == Usage(10, 4)
    final = event(usage=counts(10, 12))
    assert read(call(options, n=3), *events, final)[1] == Usage(10, 12), "the last word is the server's"


def test_prompts_are_summed_and_those_to_come_are_like_the_others() -> None:
    asked = call(endpoint="completions", prompt=["a", "b", "c", "d"], n=2)
    first = event({"index": 0, "text": "a"}, usage=counts(10, 1))
    second = event({"index": 1, "text": "a"}, usage=counts(10, 5))
    third = event({"index": 6, "text": "a"}, usage=counts(20, 2))
    assert read(asked, first)[1] == Usage(40, 1)
    assert read(asked, first, second)[1] == Usage(40, 6)
    assert read(asked, first, second, third)[1] == Usage(60, 8)
    stray = event({"index": 8, "text": "a"}, usage=counts(500, 500))
    assert read(asked, first, stray)[1] == Usage(40, 1), "there is no such choice"


def test_one_event_of_many_choices_costs_no_more_than_the_others() -> None:
    """The sum is kept, not made anew: choices times events would be hours."""
    asked = call(endpoint="completions", prompt=["x"] * 2048, n=8)
    events = b"".join(event({"index": index, "text": "a"}, usage=counts(1, 1)) for index in range(2048 * 8))
    assert read(asked, *[events[at : at + 2**19] for at in range(0, len(events), 2**19)])[1] == Usage(2048, 16384)


def test_odd_usage_decides_over_no_event() -> None:
    for odd in (b'"x"', b"[]", b"3", b'{"prompt_tokens":"x"}', b"null"):
        told = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":%b}\n\n' % odd
        assert read(call(), told) == (told, None)

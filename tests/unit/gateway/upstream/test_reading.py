"""Answers are read as they come, whatever the network makes of them: nothing is lost, and nothing is made up."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import DONE, Call, Chunk, StreamReader, Usage
from backends.body import Body
from backends.capabilities import Capabilities
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.tgi import TGI
from backends.vllm import VLLM
from gateway.core.errors import (
    AnswerMemoryFull,
    AnswerTooLarge,
    BadReply,
    Disconnected,
    Rejected,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.upstream.reading import AnswerLimits, AnswerMemory, AnswerReader, EventReader, WholeReader, reader_for

ASKED = b'{"model":"m","messages":[],"stream":true}'
CALL = Call("c", "chat/completions", "m", Body(ASKED), stream=True, include_usage=True)
UNASKED = Call("c", "chat/completions", "m", Body(ASKED), stream=True)
WHOLE = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'))
LIMITS = AnswerLimits(2**20, 2**20)
EVENTS = "text/event-stream; charset=utf-8"
OPENAI = Capabilities.of(OpenAI())


def spoken(data: bytes, tokens: int, usage: Usage | None = None, finished: int = 0, done: bool = False) -> Chunk:
    """A chunk that counts the text in its events."""
    text = sum(map(len, re.findall(rb'"content":"([^"]*)"', data)))
    return Chunk(data, tokens, usage, finished, done=done, text=text)


def chunk(content: str, finish: str = "null") -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":%s}]}\n\n' % (
        content.encode(),
        finish.encode(),
    )


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
ERROR = b'data: {"error":{"message":"died","code":500}}\n\n'
END = chunk("", '"stop"')


def events(call: Call = CALL, capabilities: Capabilities = OPENAI, **options: Any) -> AnswerReader:
    return reader_for(call, capabilities, EVENTS, LIMITS, AnswerMemory(10**9), **options)


def told(reader: AnswerReader) -> str:
    return type(reader.failure).__name__ if reader.failure is not None else "done" if reader.done else "open"


def test_events_that_came_together_become_one_chunk() -> None:
    came = [chunk("a"), b": ping\n\n", chunk("b", '"stop"'), USAGE, DONE]
    reader = events()
    assert reader.feed(b"".join(came)) == spoken(b"".join(came), tokens=2, usage=Usage(3, 2), finished=1, done=True)
    assert reader.done and reader.failure is None


def test_comments_alone_stay_a_comment() -> None:
    assert events().feed(b": a\n\n:\n\n") == Chunk(b": a\n\n:\n\n", comment=True, opening=True)


def test_nothing_is_passed_on_of_nothing_or_of_half_an_event() -> None:
    reader = events()
    assert reader.feed(b"") is None and reader.feed(chunk("a")[:-1]) is None and told(reader) == "open"
    assert reader.feed(b"\n") == spoken(chunk("a"), tokens=1)


def test_what_came_before_a_failure_is_passed_on() -> None:
    reader = events()
    assert reader.feed(chunk("a") + ERROR + DONE) == spoken(chunk("a"), tokens=1)
    assert isinstance(reader.failure, UpstreamFailed) and not reader.done
    assert reader.feed(chunk("b")) is None and reader.end(None) is None, "nothing comes after it"


def test_what_comes_after_the_end_is_not_read() -> None:
    reader = events()
    found = reader.feed(chunk("a", '"stop"') + DONE + b"data: nonsense\n\n")
    assert found is not None and found.done and found.data.endswith(DONE)
    assert reader.feed(ERROR) is None and reader.end(Disconnected("")) is None and told(reader) == "done"


@pytest.mark.parametrize("event", [b"data: nonsense\n\n", b"data: [1]\n\n", b"data: {" + b'"a":[' * 50_000 + b"\n\n"])
def test_an_event_that_is_not_understood_is_a_bad_reply(event: bytes) -> None:
    reader = events()
    assert reader.feed(event) is None and isinstance(reader.failure, BadReply)


BEGUN = (b"dat", b"data", b"data:", b"data: ", b"event: message\ndata: ", b"event: message")
"""What is there of an event whose data is still to come."""


@pytest.mark.parametrize(
    ("came", "broken", "expected", "passed"),
    [
        ([END], None, "done", END + DONE),
        ([END], Disconnected(""), "done", END + DONE),
        ([END], UpstreamTimeout(""), "UpstreamTimeout", END),
        ([END], BadReply("chunk size"), "BadReply", END),
        ([chunk("a")], None, "Disconnected", chunk("a")),
        ([], None, "Disconnected", b""),
        ([DONE], None, "Disconnected", b""),
        ([chunk("a"), DONE], None, "Disconnected", chunk("a")),
        # The HTTP message ended well: its last event is whole without the empty line, which is put behind it.
        ([END, DONE[:-1]], None, "done", END + DONE),
        ([END, DONE[:-2]], None, "done", END + DONE),
        ([END, b"data: [DONE]\r\n"], None, "done", END + b"data: [DONE]\r\n\n"),
        ([END, b"data: [DONE]\r"], None, "done", END + b"data: [DONE]\r\n\n"),
        ([END[:-1]], None, "done", END + DONE),
        ([chunk("a"), END[:-2]], None, "done", chunk("a") + END + DONE),
        ([END, USAGE[:-2]], None, "done", END + USAGE + DONE),
        ([END, b": bye"], None, "done", END + b": bye\n\n" + DONE),
        ([END, b"\n"], None, "done", END + DONE),
        ([chunk("a"), ERROR[:-2]], None, "UpstreamFailed", chunk("a")),
        ([chunk("a")[:-2]], None, "Disconnected", chunk("a")),
        ([END, USAGE[:-9]], None, "Disconnected", END),
        ([chunk("a")[:-9]], None, "Disconnected", b""),
        # Cut before its data: SDKs would read an event of nothing as JSON.
        *(([chunk("a"), begun], None, "Disconnected", chunk("a")) for begun in BEGUN),
        *(([END, begun], None, "done", END + DONE) for begun in BEGUN),
        # After a break it may be half an event.
        ([END, DONE[:-1]], Disconnected(""), "Disconnected", END),
        ([chunk("a"), END[:-1]], Disconnected(""), "Disconnected", chunk("a")),
        # Lone carriage returns: only the end tells that the last is not half a line end.
        ([END.replace(b"\n", b"\r")], Disconnected(""), "done", END.replace(b"\n", b"\r") + DONE),
        ([END, b"data: [DONE]\r\r"], None, "done", END + b"data: [DONE]\r\r"),
    ],
)
def test_how_a_stream_ends(came: list[bytes], broken: Any, expected: str, passed: bytes) -> None:
    for reads in ([b"".join(came)], came, [bytes([byte]) for byte in b"".join(came)]):
        reader = events()
        found = [reader.feed(read) for read in reads]
        found.append(reader.end(broken))
        assert told(reader) == expected
        assert b"".join(each.data for each in found if each is not None) == passed


@pytest.mark.parametrize("broken", [UpstreamTimeout(""), BadReply("chunk size")])
def test_the_end_of_an_answer_that_waits_for_its_usage_is_passed_on(broken: Any) -> None:
    reader = events(UNASKED)
    assert reader.feed(chunk("a")) == spoken(chunk("a"), 1) and reader.feed(END) is None
    assert reader.end(broken) == spoken(END, 1, finished=1) and reader.failure is broken


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        ([chunk("a"), DONE], "done"),
        ([ROLE, chunk("a"), chunk("b"), chunk("c"), USAGE, DONE], "done"),
        ([DONE], "Disconnected"),
        ([ROLE, DONE], "Disconnected"),
        ([b": ping\n\n", DONE], "Disconnected"),
        ([chunk("a")], "Disconnected"),
        ([chunk("a"), ERROR, DONE], "UpstreamFailed"),
    ],
)
def test_a_lenient_stream_may_end_without_telling_why(came: list[bytes], expected: str) -> None:
    """But not before it has said something, nor without its terminator."""
    for reads in (came, [b"".join(came)]):
        reader = events(lenient=True)
        for read in reads:
            reader.feed(read)
        reader.end(None)
        assert told(reader) == expected
    strict = events()
    strict.feed(b"".join(came))
    strict.end(None)
    assert told(strict) != "done"


def test_an_event_beyond_the_bound_is_nobodys_failure() -> None:
    reader = reader_for(CALL, OPENAI, EVENTS, AnswerLimits(10, 1000), AnswerMemory(10**9))
    first = reader.feed(chunk("a") + b"data: {" + b"x" * 500)
    assert first == spoken(chunk("a"), tokens=1) and told(reader) == "open"
    assert reader.feed(b"x" * 500) is None
    assert isinstance(reader.failure, AnswerTooLarge) and not reader.failure.retryable
    assert "bodies.event" in reader.failure.message and "1000 bytes" in reader.failure.message


def test_each_event_is_held_against_the_bound() -> None:
    first, large = [chunk("a"), chunk("b"), chunk("c")], chunk("x" * 2000)
    reader = reader_for(CALL, OPENAI, EVENTS, AnswerLimits(10, len(large) - 1), AnswerMemory(10**9))
    passed = [reader.feed(first[0]), reader.feed(b"".join([*first[1:], large, *first]))]
    assert passed == [spoken(first[0], 1), spoken(first[1] + first[2], 2)]
    assert isinstance(reader.failure, AnswerTooLarge)


def test_an_event_of_the_bound_passes() -> None:
    large = chunk("x" * 5000)
    reader = reader_for(CALL, OPENAI, EVENTS, AnswerLimits(10, len(large)), AnswerMemory(10**9))
    assert reader.feed(large[:4000]) is None
    assert reader.feed(large[4000:-1]) is None and told(reader) == "open"
    assert reader.feed(large[-1:]) == spoken(large, tokens=1)


LARGE = 100_000
MANY = AnswerLimits(10 * LARGE, 10 * LARGE)


def test_large_answers_share_one_bound_until_they_are_let_go_of() -> None:
    memory = AnswerMemory(2 * LARGE)
    first, second, third = (reader_for(WHOLE, OPENAI, "application/json", MANY, memory) for _ in range(3))
    first.feed(b" " * LARGE)
    second.feed(b" " * LARGE)
    third.feed(b" " * 1000)
    assert memory.held == 2 * LARGE and told(third) == "open", "a small one is not counted"
    second.feed(b"{")
    full = second.failure
    assert isinstance(full, AnswerMemoryFull) and "bodies.answers" in full.message and "200000 bytes" in full.message
    assert (full.status, full.retry_after, full.should_retry) == (503, 1, True)
    second.count(0)
    assert memory.held == LARGE
    third.feed(b" " * LARGE)
    assert told(third) == "AnswerMemoryFull" and told(first) == "open"


def test_a_large_event_counts_until_its_client_has_it() -> None:
    memory = AnswerMemory(3 * LARGE)
    reader, large = reader_for(CALL, OPENAI, EVENTS, MANY, memory), chunk("x" * LARGE)
    for _ in range(3):
        assert reader.feed(large[:-1]) is None and memory.held == len(large) - 1
        assert reader.feed(large[-1:]) == spoken(large, tokens=1) and memory.held == len(large)
    reader.feed(chunk("a"))
    assert memory.held == 0 == reader.counted


def test_an_event_for_which_there_is_no_room_ends_its_stream_and_no_other() -> None:
    memory = AnswerMemory(2 * LARGE)
    readers = [reader_for(CALL, OPENAI, EVENTS, MANY, memory) for _ in range(3)]
    for reader in readers:
        reader.feed(b"data: " + b"x" * LARGE)
    assert [told(reader) for reader in readers] == ["open", "AnswerMemoryFull", "AnswerMemoryFull"]
    small = reader_for(CALL, OPENAI, EVENTS, MANY, memory)
    assert small.feed(chunk("a")) == spoken(chunk("a"), tokens=1) and small.counted == 0


def test_events_that_have_come_are_passed_on_however_much_is_held() -> None:
    memory = AnswerMemory(10)
    reader = reader_for(CALL, OPENAI, EVENTS, MANY, memory)
    assert reader.feed(chunk("x" * LARGE)) == spoken(chunk("x" * LARGE), tokens=1)
    assert told(reader) == "open" and memory.held > LARGE


def test_a_whole_answer_is_one_chunk_at_its_end() -> None:
    body = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
    reader = reader_for(WHOLE, OPENAI, "application/json", LIMITS, AnswerMemory(10**9))
    assert isinstance(reader, WholeReader)
    assert reader.feed(body[:9]) is None and reader.feed(body[9:]) is None
    assert reader.end(None) == Chunk(body, usage=Usage(3, 2), finished=1, done=True) and reader.done


@pytest.mark.parametrize(
    ("body", "broken", "expected"),
    [
        (b"nonsense", None, "BadReply"),
        (b"[" * 100_000, None, "BadReply"),
        (b'{"choices":[]}', Disconnected(""), "Disconnected"),
        (b'{"choices":[]}', BadReply(""), "BadReply"),
        (b'{"error":{"message":"no","code":500}}', None, "UpstreamFailed"),
        (b'{"error":{"message":"no","code":400}}', None, "Rejected"),
        (b"x" * 1001, None, "AnswerTooLarge"),
    ],
)
def test_how_a_whole_answer_fails(body: bytes, broken: Any, expected: str) -> None:
    reader = reader_for(
        WHOLE, OPENAI, "application/json", AnswerLimits(1000 if b"x" in body else 10**6, 10), AnswerMemory(10**9)
    )
    reader.feed(body)
    assert reader.end(broken) is None and told(reader) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"choices":[]}', "BadReply"),
        (b"<html>", "BadReply"),
        (b"x" * (2**20 + 1), "BadReply"),
        (b'{"error":{"message":"no","code":400}}', "Rejected"),
        (b'{"error":{"message":"no"}}', "UpstreamFailed"),
    ],
)
def test_what_is_no_stream_is_an_error_where_one_was_asked_for(body: bytes, expected: str) -> None:
    reader = reader_for(CALL, OPENAI, "application/json", LIMITS, AnswerMemory(10**9))
    reader.feed(body)
    assert reader.end(None) is None and told(reader) == expected
    if isinstance(reader.failure, Rejected):
        assert reader.failure.message == "no"


@pytest.mark.parametrize("content_type", ["text/event-stream", "Text/Event-Stream;charset=UTF-8"])
def test_event_streams_are_known_by_their_type(content_type: str) -> None:
    assert isinstance(reader_for(CALL, OPENAI, content_type, LIMITS, AnswerMemory(10**9)), EventReader)


# Most events are not looked into. What is learned must be what looking into each of them would teach.

MISLEADING = [
    '"usage"',
    '"finish_reason":"stop"',
    '"role"',
    '"error":{}',
    "data: [DONE]\n\n",
    '"content":"x"',
    '"index":3',
]
TEXTS = st.text(max_size=6) | st.sampled_from(
    [*MISLEADING, '"', "\\", "\n\n", "\ud83d", "\u2028", "{", '"}', '\\"', "\x7f", "é"]
)
NAMES = st.sampled_from(["content", "reasoning", "reasoning_content", "text", "refusal", 'x"content', "role"])
FINISHES = st.sampled_from([None] * 8 + ["", "stop"])


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    delta: dict[str, Any] = draw(st.dictionaries(NAMES, TEXTS, max_size=2))
    if draw(st.integers(0, 9)) == 0:
        delta["tool_calls"] = [{"index": 0, "function": {"arguments": draw(TEXTS)}}]
    order = [("index", draw(st.sampled_from([0, 0, 0, 1]))), ("delta", delta), ("finish_reason", draw(FINISHES))]
    return dict(draw(st.permutations(order))) if draw(st.booleans()) else dict(order)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    kind = draw(st.integers(0, 19))
    value: dict[str, Any] = {"id": "c-1", "choices": [draw(choices())]}
    if kind == 0:
        value["choices"].append(draw(choices()))
    elif kind == 1:
        value |= {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": draw(st.integers(0, 3))}}
    elif kind == 2:
        value["usage"] = {"prompt_tokens": 3, "completion_tokens": draw(st.integers(0, 3))}
    elif kind == 3:
        value["error"] = draw(st.sampled_from([None, {}, "", [], {"message": "x"}]))
    elif kind == 4:
        value["choices"][0]["logprobs"] = {"content": [{"token": draw(TEXTS), "logprob": draw(st.floats())}]}
    text = json.dumps(
        value, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    )
    return text.encode("utf-8", "surrogatepass")


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Streams like those of engines: runs of events that differ in their text alone, and whatever else there is."""
    found: list[bytes] = []
    for _ in range(draw(st.integers(0, 6))):
        payload = draw(payloads())
        found.append(payload)
        for _ in range(draw(st.integers(0, 3))):
            again = json.loads(payload.decode("utf-8", "surrogatepass"))
            for choice in again["choices"]:
                for name in choice["delta"]:
                    if isinstance(choice["delta"][name], str):
                        choice["delta"][name] = draw(TEXTS)
            found.append(json.dumps(again, separators=(",", ":")).encode())
    end = draw(st.sampled_from([b"\n\n"] * 6 + [b"\r\n\r\n", b"\r\r", b"\n\n\n"]))
    odd = st.sampled_from([b": ping", b"data: {", b"data: [DONE]", b"event: x\ndata: {}", b"data: \xff", b"data: {}x"])
    lines = [b"data: " + payload for payload in found]
    for _ in range(draw(st.integers(0, 2))):
        lines.insert(draw(st.integers(0, len(lines))), draw(odd))
    return b"".join(line + end for line in lines)


class Slow:
    """The same adapter, looking into every event."""

    def __init__(self, reader: StreamReader) -> None:
        self.chunk = reader.chunk
        self.close = getattr(reader, "close", tuple)


class Looking:
    """A kind of server that is read with `Slow`."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self.request, self.reply, self.chunk = adapter.request, adapter.reply, adapter.chunk

    def open(self, call: Call) -> StreamReader:
        return Slow(self._adapter.open(call))


ADAPTERS = OpenAI(), VLLM(), LlamaCpp(), TGI()
PAIRS = [(Capabilities.of(adapter), Capabilities.of(Looking(adapter))) for adapter in ADAPTERS]


def raw(text: bytes, delta: bytes = b"", rest: bytes = b"") -> bytes:
    """An event with this inside of a string, these members before it, and these behind its choices."""
    return b'data: {"choices":[{"index":0,"delta":{%s"content":"%s"},"finish_reason":null}]%s}\n\n' % (
        delta,
        text,
        rest,
    )


ROLED = b'"role":"assistant",'
COUNTED = b',"usage":{"prompt_tokens":1,"completion_tokens":2}'


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param([raw(b"a", ROLED), raw(b"", ROLED)], id="a role with no text yet"),
        pytest.param([raw(b"a", rest=COUNTED), raw(b"b", rest=COUNTED)], id="usage in every event"),
        pytest.param([raw(b"a"), raw(b"a\\")], id="a string that does not end"),
        pytest.param([raw(b"a"), raw(b"a\\q")], id="no escape"),
        pytest.param([raw(b"a"), raw(b"\\u00g0")], id="no code point"),
        pytest.param([raw(b"a"), raw(b"a\tb")], id="a control character"),
        pytest.param([raw(b"a"), raw(b"\xff")], id="no UTF-8"),
        pytest.param([raw(b"a"), raw("é".encode()), raw(b"\xc3"), raw(b"\xa9")], id="half a character each"),
        pytest.param([raw(b"a"), raw(b'b"},"finish_reason":"stop"}],"x":[{"y":{"z":"')], id="the end in another guise"),
        pytest.param([raw(b"a"), END, raw(b"b"), raw(b"c"), DONE], id="output behind the end"),
        pytest.param([raw(b"a"), END, DONE], id="an end"),
        pytest.param([raw(b"a"), ERROR], id="an error"),
        pytest.param([raw(b"a"), raw(b"b").replace(b'"index":0', b'"index":1'), END, DONE], id="another choice"),
        pytest.param(
            [raw(each).replace(b'"index":0', b'"index":1') for each in (b"a", b"b", b"c")], id="the second alone"
        ),
        pytest.param([raw(b"a"), raw(b"b")[:-1] + b"\r\n"], id="another line end"),
        pytest.param([raw(b"a"), raw(b"b") + b"\n"], id="an empty line too many"),
        pytest.param([raw(b"a"), raw(b"b", rest=b',"x":[]')], id="something new"),
        pytest.param([raw(b"a"), raw(b"\\ud83d"), raw(b"\\ude00"), raw(b"\\\\"), raw(b'\\"')], id="good escapes"),
    ],
)
@pytest.mark.parametrize("call", [CALL, UNASKED], ids=["usage asked", "usage not asked"])
@pytest.mark.parametrize("pair", PAIRS, ids=[type(adapter).__name__ for adapter in ADAPTERS])
def test_what_differs_in_more_than_its_text_is_read(
    odd: list[bytes], call: Call, pair: tuple[Capabilities, Capabilities]
) -> None:
    came = [raw(b"x"), *odd, raw(b"y")]
    for reads in (came, [b"".join(came)], [bytes([byte]) for byte in b"".join(came)]):
        quick, slow = (events(call, capabilities) for capabilities in pair)
        for read in reads:
            assert quick.feed(read) == slow.feed(read)
            assert told(quick) == told(slow)
        assert (quick.end(None), told(quick)) == (slow.end(None), told(slow))


def test_most_events_are_not_looked_into() -> None:
    looked: list[bytes] = []
    reader = events(UNASKED)
    chunk_of = reader._chunk  # type: ignore[attr-defined]
    reader._chunk = lambda call, event: looked.append(event) or chunk_of(call, event)  # type: ignore[attr-defined]
    came = [ROLE, *(chunk(f"w{number}") for number in range(60)), END, USAGE, DONE]
    reader.feed(b"".join(came[:30]))
    for event in came[30:]:
        reader.feed(event)
    assert reader.done and looked == [ROLE, chunk("w0"), END, USAGE, DONE]


@given(streams(), st.data(), st.sampled_from(PAIRS), st.sampled_from([CALL, UNASKED]))
def test_what_is_skimmed_teaches_what_reading_would(
    stream: bytes, drawn: st.DataObject, pair: tuple[Capabilities, Capabilities], call: Call
) -> None:
    cuts = sorted(drawn.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    quick, slow = (events(call, capabilities) for capabilities in pair)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        block = stream[start:end]
        assert quick.feed(block) == slow.feed(block)
        assert told(quick) == told(slow)
    assert quick.end(None) == slow.end(None)
    assert told(quick) == told(slow)


@given(streams(), st.data(), st.sampled_from([CALL, UNASKED]))
def test_cuts_of_the_network_change_nothing(stream: bytes, drawn: st.DataObject, call: Call) -> None:
    cuts = sorted(drawn.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    whole, cut = events(call), events(call)
    found = [[each for each in (whole.feed(stream), whole.end(None)) if each is not None]]
    found.append([])
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found[1].append(cut.feed(stream[start:end]) or Chunk(b""))
    found[1].append(cut.end(None) or Chunk(b""))
    one, other = (
        (b"".join(each.data for each in all), sum(each.tokens for each in all), sum(each.finished for each in all))
        for all in found
    )
    assert one == other and told(whole) == told(cut)
    seen = [[each.usage for each in all if each.usage is not None][-1:] for all in found]
    assert seen[0] == seen[1]

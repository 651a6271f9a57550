"""The conformance suite: what the gateway expects of every adapter, as cases that anyone can run on theirs.

In a test file of your own, with any adapter class:

    @pytest.mark.parametrize("case", conformance(Acme, samples=[...]), ids=str)
    def test_conformance(case):
        case()

Samples are what a server really sends. Those given by default are in OpenAI's language.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from backends import sse
from backends.api import (
    DONE,
    Adapter,
    Call,
    RefusesInItsOwnWords,
    RequestRefused,
    Stateful,
    UpstreamFault,
    Usage,
)
from backends.body import Body
from backends.powers import continuous, counts, facts, metrics, paths_and_launch
from backends.samples import NOT_ANSWERS, NOT_EVENTS, OPENAI, TARGET, Sample

MAX_CUTS = 400
"""A stream is cut in two at so many places: at every byte of a short one, evenly spread over a longer one."""


class Case:
    """One case, named; call it to run it. It fails with `AssertionError` or with what the adapter raised."""

    def __init__(self, name: str, check: Callable[..., None], *arguments: Any) -> None:
        self.name, self._check, self._arguments = name, check, arguments

    def __call__(self) -> None:
        self._check(*self._arguments)

    def __str__(self) -> str:
        return self.name


class Seen(Struct):
    """All that was learned from one stream."""

    data: bytes = b""
    tokens: int = 0
    usage: Usage | None = None
    finished: int = 0
    done: int = 0
    comments: int = 0
    fault: int | None = None


def conformance(make: Callable[[], Adapter], *, samples: Sequence[Sample] = (), transparent: bool = True) -> list[Case]:
    """The cases for the adapter that `make`, usually its class, gives.

    `transparent`: the server speaks OpenAI's language, so nothing but `model` and `stream_options` is ever changed.
    """
    samples = samples or OPENAI
    adapter = make()
    cases = [
        Case("has the required methods", _required_methods, adapter),
        Case("has working capabilities", paths_and_launch, adapter),
        Case("takes no other text for metrics", metrics, adapter),
        Case("takes no other answer for facts", facts, adapter),
        Case("takes no other answer for a count of tokens", counts, adapter),
        Case("hides usage in every event", continuous, adapter),
        Case("refuses in JSON or not at all", _refusals, adapter),
        Case("fails on a broken answer as promised", _broken_answers, adapter),
        Case("samples cover every kind of answer", _coverage, samples),
    ]
    for sample in samples:
        streamed = sample.call().stream
        checks = [_requests, _no_io, *(_STREAM_CHECKS if streamed else [_whole])]
        if transparent:
            checks.append(_transparent)
        cases += [
            Case(f"{sample.name}: {check.__name__.replace('_', ' ').strip()}", check, adapter, sample)
            for check in checks
        ]
    return cases


def read(adapter: Adapter, call: Call, blocks: Iterable[bytes]) -> Seen:
    """Read one stream as the gateway does, whole events at a time; a fault ends it."""
    reader = adapter.open(call) if isinstance(adapter, Stateful) else adapter
    splitter, seen = sse.Splitter(), Seen()
    for block in blocks:
        for event in splitter.feed(block):
            try:
                chunks = list(reader.chunk(call, event))
            except UpstreamFault as fault:
                seen.fault = fault.status
                return seen
            for chunk in chunks:
                assert not seen.done, "a chunk came after the stream's end"
                seen.data += chunk.data
                seen.tokens += chunk.tokens
                seen.usage = chunk.usage or seen.usage
                seen.finished += chunk.finished
                seen.done += chunk.done
                seen.comments += chunk.comment
    assert not any(getattr(reader, "close", tuple)()), "the reader held back what the stream's end should have freed"
    return seen


def _required_methods(adapter: Adapter) -> None:
    for method in ("request", "reply", "chunk"):
        assert callable(getattr(adapter, method, None)), f"the adapter has no method {method!r}"


def _refusals(adapter: Adapter) -> None:
    if not isinstance(adapter, RefusesInItsOwnWords):
        return
    call = OPENAI[0].call()
    for status in (400, 404, 405, 413, 422, 424, 499):
        for body in (b"{}", b'{"error":"no"}', b'{"error":{"message":"no"}}', b'{"detail":"no"}', *NOT_ANSWERS):
            try:
                said = adapter.refusal(call, status, body)
            except UpstreamFault:
                continue
            if said is not None:
                assert 400 <= said[0] < 500, "a refusal is the caller's fault"
                assert isinstance(msgspec.json.decode(said[1]), dict), "a refusal's body is a JSON object"


def _broken_answers(adapter: Adapter) -> None:
    whole, stream = OPENAI[0].call(), structs.replace(OPENAI[0].call(), stream=True)
    for body in NOT_ANSWERS:
        assert _fails(adapter.reply, whole, body), f"reply() took {body[:40]!r} for an answer"
    for event in NOT_EVENTS:
        assert _fails(read, adapter, stream, [event]), f"chunk() took {event!r} for an event"


def _fails(action: Callable[..., Any], *arguments: Any) -> bool:
    try:
        result = action(*arguments)
    except (ValueError, RecursionError, UpstreamFault):  # the gateway takes the first two for the same
        return True
    return isinstance(result, Seen) and result.fault is not None


def _coverage(samples: Sequence[Sample]) -> None:
    streams = [sample for sample in samples if sample.call().stream]
    whole = [sample for sample in samples if not sample.call().stream]
    for kind, wanted in {
        "a whole answer": [s for s in whole if s.fault is None],
        "a whole answer that tells of a failure": [s for s in whole if s.fault is not None],
        "a stream with usage": [s for s in streams if s.usage is not None],
        "a stream without usage": [s for s in streams if s.usage is None and s.fault is None],
        "a stream that fails on its way": [s for s in streams if s.fault is not None],
    }.items():
        assert wanted, f"there is no sample of {kind}"


def _requests(adapter: Adapter, sample: Sample) -> None:
    for include_usage in {False, sample.call().stream}:
        call = sample.call(include_usage=include_usage)
        asked = adapter.request(call, TARGET)
        assert asked == adapter.request(call, TARGET), "the same call becomes the same request"
        assert asked.path.startswith("/") and "\n" not in asked.path
        assert isinstance(msgspec.json.decode(asked.body), dict)
        for name, value in asked.headers.items():
            assert name == name.lower() and (name + value).isprintable(), (
                f"header {name!r} is not a plain lower-case one"
            )
        assert "content-type" in asked.headers and "content-length" not in asked.headers
        bare = adapter.request(call, structs.replace(TARGET, api_key=None))
        assert any(str(TARGET.api_key) in value for value in asked.headers.values()), "the credential is sent"
        assert "authorization" not in bare.headers, "there is no credential to send"
        assert bare.body == asked.body and call.body.raw == sample.asked
    for broken in (
        b'{"model":"m"}',
        b'{"model":"m","messages":null,"prompt":null}',
        b'{"model":"m","messages":3,"prompt":{}}',
    ):
        with suppress(RequestRefused):
            adapter.request(structs.replace(sample.call(), body=Body(broken)), TARGET)


def _transparent(adapter: Adapter, sample: Sample) -> None:
    extra = b'"x_unknown": {"deep": [1.50, "\\u00e9"], "null": null}'
    raw = b"{ " + extra + b" ," + sample.asked.lstrip()[1:]
    for include_usage in {False, sample.call().stream}:
        call = structs.replace(sample.call(include_usage=include_usage), body=Body(raw))
        sent = Body(adapter.request(call, TARGET).body)
        assert extra in sent.raw, "a field the adapter does not know must reach the server as it came"
        assert sent.get("model", str, "") == TARGET.model
        for name, value in call.body.fields.items():
            if name not in ("model", "stream_options"):
                assert bytes(sent.fields[name]) == bytes(value), f"{name!r} was changed on the way"
        assert sent.fields.keys() - call.body.fields.keys() <= {"model", "stream_options"}
        named = Body(adapter.request(call, structs.replace(TARGET, model=None)).body)
        assert named.get("model", str, "") == call.model, "a target without a model of its own gets the client's name"


def _whole(adapter: Adapter, sample: Sample) -> None:
    call = sample.call()
    if sample.fault is not None:
        try:
            reply = adapter.reply(call, sample.answered)
        except UpstreamFault as fault:
            assert fault.status == sample.fault
            return
        raise AssertionError(f"a failure was taken for an answer: {reply}")
    found = adapter.reply(call, sample.answered)
    assert found.usage == sample.usage
    if sample.unchanged:
        assert found.body == sample.answered, "the answer was changed on its way"
    assert isinstance(msgspec.json.decode(found.body), dict)


def _ends_as_told(adapter: Adapter, sample: Sample) -> None:
    seen = read(adapter, sample.call(include_usage=True), [sample.answered])
    assert seen.fault == sample.fault
    if sample.fault is not None:
        assert not seen.done, "a stream that failed must not look as if it had ended well"
        return
    assert seen.done == 1, "the stream's end was not told, or told twice"
    assert seen.finished, "no choice told why it ended"
    assert seen.tokens > 0, "no event counted as output"
    assert seen.usage == sample.usage
    assert seen.data.endswith(DONE), "the client's stream ends in [DONE]"
    if sample.unchanged:
        assert seen.data == sample.answered, "the stream was changed on its way"


def _tells_usage_only_if_asked(adapter: Adapter, sample: Sample) -> None:
    told, untold = (read(adapter, sample.call(include_usage=wanted), [sample.answered]) for wanted in (True, False))
    assert untold.usage == told.usage, "the gateway learns the usage in any case"
    assert (untold.finished, untold.done, untold.fault) == (told.finished, told.done, told.fault)
    shown, hidden = _objects(told.data), _objects(untold.data)
    assert all(event.get("choices") != [] for event in hidden), "a usage event the client did not ask for"
    if sample.usage is not None and sample.fault is None:
        assert any(event.get("usage") for event in shown), "the client asked for the usage"


def _events_cut_anywhere(adapter: Adapter, sample: Sample) -> None:
    call, whole = sample.call(include_usage=True), sample.answered
    expected = read(adapter, call, [whole])
    for cut in range(0, len(whole) + 1, max(1, len(whole) // MAX_CUTS)):
        assert read(adapter, call, [whole[:cut], whole[cut:]]) == expected, f"cut at byte {cut}"
    assert read(adapter, call, (whole[i : i + 1] for i in range(len(whole)))) == expected, "byte by byte"


def _framed_otherwise(adapter: Adapter, sample: Sample) -> None:
    """Line ends, comments and the space after the colon are the server's choice."""
    call = sample.call()
    expected = structs.replace(read(adapter, call, [sample.answered]), data=b"")
    for other in (
        sample.answered.replace(b"\n", b"\r\n"),
        sample.answered.replace(b"\ndata: ", b"\ndata:").replace(b"data: ", b"data:", 1),
        sample.answered.replace(b"\ndata: ", b"\nevent: x\nid: 7\ndata: "),
    ):
        assert structs.replace(read(adapter, call, [other]), data=b"") == expected, f"not understood: {other[:80]!r}..."
    commented = b": still here\n\n" + sample.answered.replace(b"\n\ndata", b"\n\n:\n\ndata")
    seen = read(adapter, call, [commented])
    assert structs.replace(seen, data=b"", comments=0) == expected
    assert seen.comments, "a comment must be marked as one: it promises nothing"


def _streams_do_not_mix(adapter: Adapter, sample: Sample) -> None:
    """The adapter is shared by all calls."""
    call = sample.call(include_usage=True)
    alone = read(adapter, call, [sample.answered])

    def disturbed() -> Iterator[bytes]:
        for event in sse.Splitter().feed(sample.answered):
            read(adapter, structs.replace(call, id="call-2"), [sample.answered])
            yield event

    assert read(adapter, call, disturbed()) == alone


_STREAM_CHECKS: list[Callable[[Adapter, Sample], None]] = [
    _ends_as_told,
    _tells_usage_only_if_asked,
    _events_cut_anywhere,
    _framed_otherwise,
    _streams_do_not_mix,
]


def _no_io(adapter: Adapter, sample: Sample) -> None:
    call = sample.call()
    for guard in (nullcontext, _forbidden_io):  # the first time may import something
        with guard(), suppress(UpstreamFault):
            adapter.request(call, TARGET)
            _ = read(adapter, call, [sample.answered]) if call.stream else adapter.reply(call, sample.answered)


_IO: Final = ("open", "socket.", "subprocess.", "os.", "shutil.", "_thread.start_new_thread")


@cache
def _guards() -> list[list[str]]:
    """The I/O seen under each guard in force. One hook for all: an audit hook cannot be taken away again."""
    guards: list[list[str]] = []

    def watch(event: str, _: object) -> None:
        if guards and event.startswith(_IO):
            guards[-1].append(event)

    sys.addaudithook(watch)
    return guards


@contextmanager
def _forbidden_io() -> Iterator[None]:
    guards = _guards()
    guards.append([])
    try:
        yield
    finally:
        seen = guards.pop()
    assert not seen, f"an adapter does no I/O, this one did: {', '.join(seen)}"


def _objects(stream: bytes) -> list[dict[str, Any]]:
    """The JSON events of a stream in the client's language."""
    splitter = sse.Splitter()
    found = [sse.data(event) for event in splitter.feed(stream)]
    assert not splitter.rest, "the client's stream ends within an event"
    return [msgspec.json.decode(data) for data in found if data and data != b"[DONE]"]

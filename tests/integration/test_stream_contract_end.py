"""The stream contract after the first byte: only an answer that is whole ends cleanly, any other in an error event."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from harness.dialects import ENDPOINTS, KINDS, Event, StreamKind, sse
from harness.upstream import DONE, END, Act, Script, Step, Upstream, chunk, head, stream
from harness.verdicts import Heard, heard
from integration.client import Reply, eventually, record
from integration.streaming import WORDS, Speaking, datas, speaking

SECRET = "secret-of-upstream"
MIB = 1024 * 1024
ONE = [kind for kind in KINDS if kind.choices == 1]
TWO = [kind for kind in KINDS if kind.choices == 2]
TERMINATED = [kind for kind in KINDS if kind.dialect.name != "tgi"]
"""TGI tells no reason after a tool call: its [DONE] has to do."""


@pytest.fixture(scope="module")
def speak(upstream: Upstream) -> Iterator[Speaking]:
    with speaking(upstream) as started:
        yield started


def failure(kind: StreamKind) -> bytes:
    if kind.dialect.name == "tgi":
        return sse({"error": {"message": f"Request failed during generation: {SECRET}", "http_status_code": 422}})
    return sse({"error": {"message": SECRET, "type": "InternalServerError", "param": None, "code": 500}})


def texts(events: list[Event]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events:
        if event.kind in ("text", "finish"):
            found[event.index] = found.get(event.index, "") + event.text
    return found


def check_broken(speak: Speaking, answer: Reply, said: list[Event], code: str) -> Heard:
    """An error event and nothing after it; what was said before is all there."""
    assert answer.status == 200, answer
    found = heard(answer.body)
    assert not found.done
    assert found.error is not None, answer.body[-300:]
    assert set(found.error) == {"message", "type", "param", "code"}
    assert found.error["code"] == code
    assert (answer.header("x-request-id") or "-") in found.error["message"]
    assert SECRET not in repr(answer)
    assert found.texts == texts(said)
    line = record(speak.gateway, answer.header("x-request-id"))
    assert (line["outcome"], len(line["attempts"])) == ("broke", 1)
    return found


def until_one_finished(events: list[Event]) -> list[Event]:
    """Up to where only the last choice has not told why it ended."""
    last = max(at for at, event in enumerate(events) if event.kind == "finish")
    return events[:last]


def unfinished(events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind in ("role", "text")]


def broken(kind: StreamKind) -> dict[str, tuple[list[Event], list[Step], str]]:
    """Ways to break off: the events that are good, what follows them, and the code that the client is told."""
    events = kind.stream(WORDS)
    some, one = unfinished(events), until_one_finished(events)
    rest = [event.data for event in events if event.kind == "usage"]
    gone, failed, bad = "upstream_disconnected", "upstream_failed", "upstream_bad_reply"
    return {
        "end": (some, [], gone),
        "end after the usage": (some, rest, gone),
        "end before the last choice's end": (one, [], gone),
        "end in an event": (some, [b'data: {"choices":[{"index":0,"fini'], gone),
        "cut": (some, [Act.CUT], gone),
        "reset": (some, [Act.RESET], gone),
        "error": (some, [failure(kind)], failed),
        "error, done": (some, [failure(kind), DONE], failed),
        "error before the last choice's end": (one, [failure(kind), DONE], failed),
        "named error": (some, [b"event: error\n" + failure(kind), DONE], failed),
        "no JSON": (some, [b"data: {oops\n\n", DONE], bad),
        "a list": (some, [b"data: [1]\n\n", DONE], bad),
        "HTML": (some, [b"data: <html>502</html>\n\n", DONE], bad),
        "other JSON": (some, [b'data: {"choices": 7}\n\n', DONE], bad),
    }


@pytest.mark.parametrize("case", broken(KINDS[0]))
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_breaks_off_ends_in_an_error_event(speak: Speaking, kind: StreamKind, case: str) -> None:
    said, more, code = broken(kind)[case]
    answer = speak.ask(kind, stream(*datas(said), *more))
    if case == "reset" and answer.status == 200:
        assert not heard(answer.body).done and heard(answer.body).error  # it may overtake what was sent before
    else:
        check_broken(speak, answer, said, code)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_error_after_the_last_reason_is_told_where_it_comes_in_time(speak: Speaking, kind: StreamKind) -> None:
    events = [event for event in kind.stream(WORDS) if event.kind in ("role", "text", "finish")]
    answer = speak.ask(kind, stream(*datas(events), failure(kind), DONE))
    found = heard(answer.body)
    assert (found.done, found.error is not None) == (False, True), answer.body[-300:]
    assert record(speak.gateway, answer.header("x-request-id"))["outcome"] == "broke"


@pytest.mark.parametrize("kind", TERMINATED, ids=str)
def test_done_needs_a_reason_of_every_choice(speak: Speaking, kind: StreamKind) -> None:
    events = kind.stream(WORDS)
    for said in (unfinished(events), until_one_finished(events)):
        answer = speak.ask(kind, stream(*datas(said), DONE))
        found = heard(answer.body)
        assert (found.done, found.error is not None) == (False, True), answer.body[-300:]


@pytest.mark.parametrize("kind", [kind for kind in TWO if kind.endpoint == "completions"], ids=str)
def test_each_prompt_of_several_has_an_end_of_its_own(speak: Speaking, kind: StreamKind) -> None:
    """Whether told by `n` or by the number of prompts, of which each may be a list of tokens."""
    events = kind.stream(WORDS)
    for prompt in (["a", "b"], [[1, 2], [3]]) if kind.dialect.name != "tgi" else (["a", "b"],):
        fields = {"prompt": prompt, **({} if kind.dialect.name == "tgi" else {"n": 1})}
        check_broken(
            speak,
            speak.ask(kind, stream(*datas(until_one_finished(events))), **fields),
            until_one_finished(events),
            "upstream_disconnected",
        )
        kind.dialect.shown(events, speak.ask(kind, stream(*datas(events)), **fields).body, False)


@pytest.mark.parametrize("prompt", [[1, 2, 3], ["a"], "ab"], ids=str)
def test_a_prompt_of_tokens_is_one(speak: Speaking, prompt: object) -> None:
    """Nobody waits for a choice for each token."""
    for kind in ONE:
        if kind.endpoint == "completions" and kind.dialect.name != "tgi":
            events = [event for event in kind.stream(WORDS) if event.kind != "done"]
            answer = speak.ask(kind, stream(*datas(events)), prompt=prompt)
            assert heard(answer.body).done, answer


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_whole_answer_without_done_gets_one(speak: Speaking, kind: StreamKind) -> None:
    events = kind.stream(WORDS)
    answer = speak.ask(kind, stream(*datas(events[:-1])))
    kind.dialect.shown(events, answer.body, False)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_follows_done_is_not_passed_on(speak: Speaking, kind: StreamKind) -> None:
    events = kind.stream(WORDS)
    whole = b"".join(event.data for event in events)
    for more in (events[1].data, DONE, b"garbage", b"data: {oops\n\n", failure(kind), b"<html>" * 1000):
        for script in (stream(whole, more), stream(whole + more), stream(whole, more, Act.CUT)):
            kind.dialect.shown(events, speak.ask(kind, script).body, False)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_next_call_gets_nothing_of_what_followed_done(speak: Speaking, kind: StreamKind) -> None:
    """Even where it comes outside of the framing, or the framing is not whole."""
    first, second = kind.stream([["first"], ["first"]]), kind.stream([["second"], ["second"]])
    body = b"".join(event.data for event in first)
    junk = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\njunk!"
    start = head(content_type="text/event-stream", transfer_encoding="chunked")
    for script in ([start + chunk(body) + END + junk], [start + chunk(body)], [start + chunk(body), chunk(junk)]):
        kind.dialect.shown(first, speak.ask(kind, script).body, False)
        kind.dialect.shown(second, speak.ask(kind, stream(*datas(second))).body, False)


FRAMES = ("short length", "no last chunk", "closed", "wrong chunk")


def framed(body: bytes, how: str) -> Script:
    """A body that ends before its framing says so."""
    start = head(content_type="text/event-stream", transfer_encoding="chunked")
    if how == "short length":
        return [head(content_type="text/event-stream", content_length=len(body) + 9) + body, Act.CUT]
    if how == "closed":
        return [head(content_type="text/event-stream", connection="close") + body, Act.CUT]
    return [start + chunk(body) + (b"" if how == "no last chunk" else b"zz\r\n\r\n"), Act.CUT]


@pytest.mark.parametrize("how", FRAMES)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_broken_framing_is_no_end(speak: Speaking, kind: StreamKind, how: str) -> None:
    """Unless [DONE] has come before: then all is there."""
    events = kind.stream(WORDS)
    whole = b"".join(event.data for event in events)
    said = until_one_finished(events)
    answer = speak.ask(kind, framed(b"".join(event.data for event in said), how))
    if how == "wrong chunk" and answer.status == 502:
        return  # what came before it in its packet may be lost to the reader
    found = heard(answer.body)
    assert found.error and not found.done
    if how != "wrong chunk":
        assert found.texts == texts(said)
        kind.dialect.shown(events, speak.ask(kind, framed(whole, how)).body, False)


def test_silence_between_events_is_a_timeout(speak: Speaking) -> None:
    """For all kinds at once, as it takes its time."""

    def wait(kind: StreamKind) -> None:
        said = unfinished(kind.stream(WORDS))
        began = time.monotonic()
        answer = speak.ask(kind, stream(*datas(said), Act.STALL))
        assert 0.8 < time.monotonic() - began < 5
        check_broken(speak, answer, said, "upstream_timeout")
        assert speak.upstream.target(f"speaks-{kind.dialect.name}").calls[0].closed.wait(2)

    for endpoint in ENDPOINTS:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(wait, [kind for kind in ONE if kind.endpoint == endpoint]))


@pytest.mark.parametrize("size", [MIB - 200, MIB + 200], ids=["below", "above"])
@pytest.mark.parametrize("kind", ONE, ids=str)
def test_an_event_has_at_most_a_mebibyte(speak: Speaking, kind: StreamKind, size: int) -> None:
    events = kind.stream([["x", "y"]])
    choice = kind.dialect.choice(kind.endpoint, 0, "", None)
    frame = len(sse(kind.dialect.chunk(kind.endpoint, [choice])))
    words = [["x", "y" * (size - frame - 40), "z"]]
    events = kind.stream(words)
    answer = speak.ask(kind, stream(*datas(events)))
    if size < MIB:
        kind.dialect.shown(events, answer.body, False)
    else:
        said = [event for event in events if len(event.data) < MIB][: events.index(events[-1])]
        first = [event for event in said if event.text == "x" or event.kind == "role"]
        check_broken(speak, answer, first, "upstream_bad_reply")


@pytest.mark.parametrize("filler", [b"data: " + b"a" * 65536, b"a" * 65536, b":" * 65536, b"data: a\n" * 8192])
def test_an_endless_event_is_cut_off_and_costs_little(speak: Speaking, filler: bytes) -> None:
    kind = ONE[0]
    events = kind.stream(WORDS)[:2]
    target = speak.target(kind.dialect.name)
    before = resident(speak)
    answer = speak.ask(kind, stream(*datas(events), *[filler] * 1024, Act.STALL))
    check_broken(speak, answer, events, "upstream_bad_reply")
    assert target.calls[0].closed.wait(2)
    assert resident(speak) - before < 24 * MIB, "64 MiB were sent"


def resident(speak: Speaking) -> int:
    """Bytes that the gateway has in memory."""
    process = psutil.Process(speak.gateway.process.pid)
    return sum(int(each.memory_info().rss) for each in [process, *process.children(recursive=True)])


def test_broken_streams_leave_nothing_in_flight(speak: Speaking) -> None:
    """Runs last in this file."""
    eventually(lambda: "trunkline_in_flight 0.0" in speak.gateway.metrics(), "no call is in flight")
    assert "Traceback" not in speak.gateway.stderr()
    assert "gateway_other" not in speak.gateway.metrics()

"""The stream contract after the first byte: only an answer that is whole ends cleanly, any other in an error event."""

from __future__ import annotations

from typing import Any

import pytest
from harness.dialects import EVERY_KIND, KINDS, Event, StreamKind, sse
from harness.upstream import DONE, END, Act, Script, Step, chunk, head, stream
from harness.verdicts import heard
from integration.client import record
from integration.streaming import SECRET, WORDS, Speaking, check_broken, datas, nothing_left, texts, unfinished

ONE = [kind for kind in KINDS if kind.choices == 1]
TWO = [kind for kind in KINDS if kind.choices == 2]
TERMINATED = [kind for kind in KINDS if kind.dialect.name != "tgi"]
"""TGI tells no reason after a tool call: its [DONE] has to do."""


def failure(kind: StreamKind) -> bytes:
    if kind.dialect.name == "tgi":
        return sse({"error": {"message": f"Request failed during generation: {SECRET}", "http_status_code": 422}})
    return sse({"error": {"message": SECRET, "type": "InternalServerError", "param": None, "code": 500}})


def until_one_finished(events: list[Event]) -> list[Event]:
    """Up to where only the last choice has not told why it ended."""
    last = max(at for at, event in enumerate(events) if event.kind == "finish")
    return events[:last]


def broken(kind: StreamKind) -> dict[str, tuple[list[Event], list[Step], str]]:
    """Ways to break off: the events that are good, what follows them, and the code that the client is told."""
    events = kind.stream(WORDS)
    some, one = unfinished(events), until_one_finished(events)
    rest = datas(events, "usage")
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


BROKEN = [
    (kind, case) for kind in EVERY_KIND for case in broken(kind) if kind in KINDS or case in ("end", "error, done")
]


@pytest.mark.parametrize(("kind", "case"), BROKEN, ids=str)
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
        fields: dict[str, Any] = {"prompt": prompt, **({} if kind.dialect.name == "tgi" else {"n": 1})}
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


def test_broken_streams_leave_nothing_in_flight(in_this_process: Speaking, over_sockets: Speaking) -> None:
    """Runs last in this file."""
    for speak in (in_this_process, over_sockets):
        nothing_left(speak)

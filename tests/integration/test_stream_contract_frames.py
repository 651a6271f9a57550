"""The stream contract for odd but valid events, and for recorded ones: byte for byte, whatever the packets."""

from __future__ import annotations

import random

import pytest
from harness.captures import Capture, captures
from harness.dialects import KINDS, StreamKind
from harness.upstream import DONE, END, Act, Received, Script, Slowly, chunk, head, stream, whole
from harness.verdicts import heard, judge
from integration.streaming import WORDS, Speaking, datas, nothing_left

TRANSPARENT = [kind for kind in KINDS if kind.dialect.name != "tgi" and kind.choices == 1]
START = head(content_type="text/event-stream", transfer_encoding="chunked")
BOM = b"\xef\xbb\xbf"
RECORDED = [
    capture
    for pattern in ("vllm/vllm-*stream*", "llamacpp/llamacpp-*stream*")
    for capture in captures(pattern)
    if capture.status == 200 and capture.streamed and not capture.cut
]


def odd(body: bytes) -> dict[str, bytes]:
    """The same stream, written as few servers do, but as any may."""
    events = body.split(b"\n\n")[:-1]
    ends = [b"\n", b"\r\n", b"\r"]
    mixed = b"".join(
        event.replace(b"\n", ends[at % 3]) + ends[at % 3] + ends[(at + 1) % 3 if at % 3 == 0 else at % 3]
        for at, event in enumerate(events)
    )
    return {
        "byte order mark": BOM + body,
        "CRLF": body.replace(b"\n", b"\r\n"),
        "CR": body.replace(b"\n", b"\r"),
        "one line end and another": mixed,
        "comments between": b": a\n\n" + body.replace(b"\n\n", b"\n\n: b\n\n:\n\n", 3),
        "comments inside": body.replace(b"data: {", b": c\ndata: {"),
        "comments that look like data": b": data: [DONE]\n\n" + body.replace(b"\n\n", b"\n\n:data: {oops\n\n", 1),
        "comments of odd bytes": body.replace(b"\n\n", b"\n\n: \xff\xfe\x00 \xe2\x82\n\n", 1),
        "fields": body.replace(b"data: {", b"event: message\nid: 7\nretry: 5\ndata: {"),
        "unknown fields": body.replace(b"data: {", b"x-new: 1\nalone\nDATA: {oops\n data: {oops\ndata: {"),
        "fields alone": body.replace(b"\n\n", b"\n\nid: 7\n\nretry: 5\n\nevent: ping\n\n", 2),
        "no space": body.replace(b"data: ", b"data:"),
        "spaces": body.replace(b"data: ", b"data:   "),
        "lines of data": body.replace(b'"choices":', b'\ndata: "choices":\ndata:'),
        "empty lines": b"\n\n" + body.replace(b"\n\ndata", b"\n\n\n\n\ndata"),
        "blanks in JSON": body.replace(b'"choices":[', b' \t"choices" : [ ').replace(b"]}\n\n", b"] }  \n\n"),
        "blanks after done": body.replace(b"[DONE]", b"[DONE] "),
        "escapes": body.replace("ï".encode(), b"\\u00ef").replace("🐎".encode(), b"\\ud83d\\udc0e"),
        "keys turned round": body.replace(b'{"id":"x-1",', b'{"x":{"choices":[],"error":{"code":500}},"id":"x-1",'),
    }


@pytest.mark.parametrize("case", odd(b""))
@pytest.mark.parametrize("kind", TRANSPARENT, ids=str)
def test_odd_events_pass_byte_for_byte(speak: Speaking, kind: StreamKind, case: str) -> None:
    body = b"".join(event.data for event in kind.stream(WORDS) if event.kind != "usage")
    said = odd(body)[case]
    at_once, pieces = chunk(said), Slowly(b"".join(map(chunk, cut(said, 29))), 61)
    answer = speak.ask(kind, [START, pieces if len(case) % 2 == (kind.endpoint == "completions") else at_once, END])
    assert answer.status == 200, answer
    assert answer.body == said


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


@pytest.mark.parametrize("case", odd(b""))
def test_odd_events_are_understood_in_tgis_words(speak: Speaking, case: str) -> None:
    """TGI's events are written anew, so what counts is what they say."""
    for kind in KINDS:
        if kind.dialect.name == "tgi":
            body = b"".join(event.data for event in kind.stream([["Once", " ïn"], ["Or", " 🐎"]]))
            answer = speak.ask(kind, [START + chunk(odd(body)[case]) + END])
            plain = answer.body.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            found, truth = heard(plain), heard(body)
            assert (found.texts, found.done, found.error) == (truth.texts, True, None), answer


@pytest.mark.parametrize("case", ["byte order mark", "CRLF", "CR", "no space", "lines of data", "fields"])
@pytest.mark.parametrize("kind", TRANSPARENT, ids=str)
def test_odd_events_that_break_off_are_noticed(speak: Speaking, kind: StreamKind, case: str) -> None:
    """And an odd usage event is taken out, as any."""
    events = kind.stream(WORDS)
    broken = odd(b"".join(event.data for event in events if event.kind in ("role", "text")))[case]
    answer = speak.ask(kind, [START + chunk(broken) + END])
    assert answer.body.startswith(broken)
    error = heard(answer.body[len(broken) :]).error
    assert error is not None and error["code"] == "upstream_disconnected"
    shown = odd(b"".join(event.data for event in events if event.kind != "usage"))[case]
    assert speak.ask(kind, [START + chunk(odd(b"".join(e.data for e in events))[case]) + END]).body == shown


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_characters_may_be_cut_in_two(speak: Speaking, kind: StreamKind) -> None:
    """By packets, and by the chunks of the framing."""
    events = kind.stream([["é🐎", "漢字"], ["ñ"]])
    body = b"".join(event.data for event in events)
    for at in [at for at in range(len(body)) if body[at] & 0xC0 == 0x80]:
        answer = speak.ask(kind, [START + chunk(body[:at]), Slowly(chunk(body[at:]) + END, len(body))])
        kind.dialect.shown(events, answer.body, False)


@pytest.mark.parametrize("broken", [b"\xff\xfe", b"\xe2\x82", b"\xed\xa0\x80"], ids=["bytes", "half", "surrogate"])
def test_what_is_no_utf_8_passes_or_is_an_error(speak: Speaking, broken: bytes) -> None:
    """It is never mended, nor taken out."""
    for kind in TRANSPARENT:
        events = [
            event.data.replace(b'" a"', b'"%b"' % broken) for event in kind.stream(WORDS) if event.kind != "usage"
        ]
        answer = speak.ask(kind, stream(*events))
        assert answer.status == 200
        last = answer.body.split(b"\n\n")[-2]
        assert answer.body == b"".join(events) or b'"code":"upstream_bad_reply"' in last, answer


def sent_by(capture: Capture) -> str:
    return capture.name.partition("-")[0]


@pytest.mark.parametrize("capture", RECORDED, ids=lambda capture: capture.name)
def test_recorded_streams_pass_byte_for_byte(speak: Speaking, capture: Capture) -> None:
    """However their bytes come in packets."""
    chance = random.Random(capture.name)
    target = speak.target(sent_by(capture))
    for size in (len(capture.body), 1000, 97, chance.randrange(2, 50)):
        pieces = cut(capture.body, size)
        target.script = [START, Slowly(b"".join(map(chunk, pieces)) + END, chance.randrange(60, 4000))]
        answer = speak.post(capture.endpoint, {**capture.asked, "model": sent_by(capture)})
        assert (answer.status, answer.body) == (200, capture.body)


@pytest.mark.parametrize("capture", RECORDED, ids=lambda capture: capture.name)
def test_recorded_streams_cut_short_are_never_shown_as_whole(speak: Speaking, capture: Capture) -> None:
    """At the end of each event, around it, and anywhere; the faults suite cuts at every byte."""
    chance = random.Random(capture.name)
    size = len(capture.body)
    ends = [at for at in range(size) if capture.body[:at].endswith(b"\n\n")]
    places = sorted({at + by for at in ends[-12:] for by in (-1, 0, 1)} | {chance.randrange(size) for _ in range(12)})
    truth = heard(capture.body).texts
    target = speak.target(sent_by(capture))

    def script(received: Received) -> Script:
        if received.method == "GET":
            return whole({})
        at = received.json()["seed"]
        return [START + chunk(capture.body[:at] or b"\n") + (END if at % 2 else b""), Act.CUT]

    def check(at: int) -> None:
        answer = speak.post(capture.endpoint, {**capture.asked, "model": sent_by(capture), "seed": at})
        judge(answer.status, answer.body, truth)

    target.answers = script  # type: ignore[method-assign]
    try:
        for place in places:
            check(place)
    finally:
        del target.answers


def test_odd_streams_leave_nothing_in_flight(in_this_process: Speaking, over_sockets: Speaking) -> None:
    """Runs last in this file."""
    for speak in (in_this_process, over_sockets):
        assert DONE in speak.ask(KINDS[0], stream(*datas(KINDS[0].stream(WORDS)))).body
        nothing_left(speak)

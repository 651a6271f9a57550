"""The stream contract before the first byte: what a target says first is looked at before a client gets a status."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.dialects import ENDPOINTS, KINDS, StreamKind, sse
from harness.upstream import DONE, Act, Step, stream
from integration.client import record
from integration.streaming import SECRET, WORDS, Speaking, datas, nothing_left

COMMENT = b": still here\n\n"


def openai_error(code: int, message: str = SECRET) -> bytes:
    return sse({"error": {"message": message, "type": "SomeError", "param": None, "code": code}})


def tgi_error(message: str) -> bytes:
    return sse({"error": {"message": message, "http_status_code": 422}})


ENGINE = {"tgi": tgi_error(f"Request failed during generation: {SECRET}")}
"""How a target says that its engine has failed, by dialect; all others as OpenAI does."""
BUSY = {"tgi": tgi_error("Model is overloaded")}
CALLER = {"tgi": tgi_error("Input validation error: too long")}
BEFORE = ("nothing", "comments", "the roles", "roles and comments")


@pytest.fixture(scope="module")
def spares() -> int:
    return 14


def said_before(kind: StreamKind, what: str) -> list[Step]:
    """What promises nothing: comments, and the naming of the role where the dialect has that."""
    roles = datas(kind.stream(WORDS), "role")
    mixed: list[Step] = [step for role in roles for step in (COMMENT, role, COMMENT)]
    every: dict[str, list[Step]] = {
        "nothing": [],
        "comments": [COMMENT, b":\n\n"],
        "the roles": roles,
        "roles and comments": mixed,
    }
    return every[what]


def failures(kind: StreamKind) -> dict[str, tuple[list[Step], int]]:
    """What a target may do where its first word should be, and the status that this is worth."""
    name = kind.dialect.name
    return {
        "engine failed": ([ENGINE.get(name, openai_error(500)), DONE], 502),
        "named error": ([b"event: error\n" + ENGINE.get(name, openai_error(500))], 502),
        "error in words": ([sse({"error": SECRET})], 502),
        "end": ([], 502),
        "cut": ([Act.CUT], 502),
        "reset": ([Act.RESET], 502),
        "no JSON": ([b"data: {secret-of-upstream\n\n", DONE], 502),
        "half an event": ([kind.stream(WORDS)[0].data[:-7], Act.CUT], 502),
    }


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_failure_in_place_of_the_first_word_has_a_status(speak: Speaking, kind: StreamKind, before: str) -> None:
    for case, (steps, status) in failures(kind).items():
        answer = speak.ask(kind, stream(*said_before(kind, before), *steps))
        assert answer.status == status, (case, answer)
        assert answer.error["type"] == "server_error"
        assert SECRET not in repr(answer), case


def test_what_waits_for_the_first_word_is_bounded(speak: Speaking) -> None:
    kind = KINDS[0]
    route, first, other = speak.spare(kind.dialect.name)
    flood = b"".join(b": %d\n\n" % number for number in range(9000))
    first.script = stream(*[flood] * 40, *datas(kind.stream(WORDS)))
    other.script = stream(*datas(kind.stream(WORDS)))
    answer = speak.call(kind, route)
    assert answer.status == 200 and flood not in answer.body
    assert len(first.calls) == len(other.calls) == 1
    assert answer.header("x-trunkline-attempts") == "2"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_callers_fault_is_a_4xx_and_not_tried_elsewhere(speak: Speaking, kind: StreamKind) -> None:
    route, first, other = speak.spare(kind.dialect.name)
    for before in BEFORE:
        error = CALLER.get(kind.dialect.name, openai_error(400, "too long"))
        first.script = stream(*said_before(kind, before), error, DONE)
        answer = speak.call(kind, route)
        assert 400 <= answer.status < 500, (before, answer)
        assert "too long" in answer.error["message"]
        assert answer.error["type"] == "invalid_request_error"
        assert answer.header("x-should-retry") == "false"
    assert (len(first.calls), len(other.calls)) == (len(BEFORE), 0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_silence_in_place_of_the_first_word_is_a_timeout(over_sockets: Speaking, endpoint: str) -> None:
    """For all dialects at once, as it takes its time."""

    def wait(kind: StreamKind) -> None:
        answer = over_sockets.ask(kind, stream(*said_before(kind, "roles and comments"), Act.STALL), patience="hasty-")
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        assert over_sockets.upstream.target(f"speaks-{kind.dialect.name}").calls[0].closed.wait(30)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(wait, [kind for kind in KINDS if (kind.endpoint, kind.choices) == (endpoint, 1)]))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_end_without_any_answer_is_no_answer(speak: Speaking, kind: StreamKind) -> None:
    for before in BEFORE:
        answer = speak.ask(kind, stream(*said_before(kind, before), DONE))
        assert answer.status == 502, answer


ELSEWHERE = [
    (kind, case)
    for kind in KINDS
    for case in ("engine failed", "busy", "end", "reset", "no JSON", "half an event")
    if kind.endpoint == "chat/completions" and (kind.choices == 1 or case in ("engine failed", "end"))
]


@pytest.mark.parametrize(("kind", "case"), ELSEWHERE, ids=str)
def test_another_target_answers_and_nothing_of_the_first_is_seen(speak: Speaking, kind: StreamKind, case: str) -> None:
    busy = [BUSY.get(kind.dialect.name, openai_error(503)), DONE]
    bad = busy if case == "busy" else failures(kind)[case][0]
    good = kind.stream(WORDS)
    route, first, other = speak.spare(kind.dialect.name)
    first.script = stream(*said_before(kind, "roles and comments"), *bad)
    other.script = stream(*datas(good))

    answer = speak.call(kind, route)

    assert answer.status == 200, answer
    kind.dialect.shown(good, answer.body, False)
    assert len(other.calls) == 1
    line = record(speak.gateway, answer.header("x-request-id"))
    assert [attempt["target"] for attempt in line["attempts"]] == [f"{route}-first", f"{route}-other"]
    assert line["outcome"] == "answered"


def test_a_text_that_looks_like_an_error_is_none(speak: Speaking) -> None:
    for kind in KINDS:
        words = [['{"error": {"message": "x", "code": 500}}', ' "error": "y"'], ["error"]]
        events = kind.stream(words)
        nulls = [event._replace(data=event.data.replace(b'"choices"', b'"error":null,"choices"')) for event in events]
        answer = speak.ask(kind, stream(*datas(events)))
        kind.dialect.shown(events, answer.body, False)
        if kind.dialect.name != "tgi":  # which never says so
            kind.dialect.shown(nulls, speak.ask(kind, stream(*datas(nulls))).body, False)
        assert json.dumps(words[0][1]).encode() in answer.body


def test_failures_at_the_start_leave_nothing_in_flight(in_this_process: Speaking, over_sockets: Speaking) -> None:
    """Runs last in this file."""
    for speak in (in_this_process, over_sockets):
        nothing_left(speak)

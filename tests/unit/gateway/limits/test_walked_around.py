"""Limits that cannot be walked around: what a call, or its target, says of it is not just believed."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from harness.clock import FixedClock
from unit.gateway.metering.recording import recorded

from backends import large
from backends.api import Call, Endpoint, Usage
from backends.asked import Asked
from backends.body import Body
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from gateway.core.errors import ClientGone
from gateway.core.types import Spent
from gateway.limits import Estimator
from gateway.metering import CallRecord, Meter, Metrics
from gateway.routing.attempt import Choice
from gateway.routing.features import read as features
from gateway.upstream.reading import AnswerLimits, AnswerMemory, reader_for

WORDS = "The quick brown fox jumps over the lazy dog. "
PIXELS = base64.b64encode(bytes(range(256)) * 400).decode()


def call(endpoint: Endpoint = "completions", **fields: Any) -> Call:
    return Call("c", endpoint, "m", Body(json.dumps({"model": "m", **fields}).encode()))


def reserved(asked: Call) -> int:
    return Estimator().estimate(asked, "k", "r").output


def in_windows(endpoint: Endpoint, **fields: Any) -> Asked:
    """What a body asks for that is read as large ones are."""
    steps = large.read(endpoint, json.dumps({"model": "m", **fields}).encode(), 10**6)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Asked = end.value[1]
            return found


PROMPTS: list[tuple[dict[str, Any], int]] = [
    ({"prompt": ["x"] * 1000}, 1000),
    ({'prompt': ['a [b] "c"'] * 10}, 10),
    ({"prompt": [[1, 2]] * 30}, 30),
    ({"prompt": ["x", [1, 2], "y", [3]]}, 4),
    ({"prompt": [[1, "of both"], [2]]}, 2),
    ({"prompt": [1, "of both", 2]}, 1),
    ({"prompt": [{"prompt_string": "x", "multimodal_data": ["eA=="]}] * 3}, 3),
    ({"prompt_embeds": ["eA=="] * 5}, 5),
    ({"prompt": ["x", "y"], "prompt_embeds": ["eA=="] * 5}, 7),
    ({"prompt": None, "prompt_embeds": "eA=="}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "prompts"), PROMPTS, ids=[str(number) for number in range(len(PROMPTS))])
def test_each_prompt_of_a_list_reserves_its_answers(fields: dict[str, Any], prompts: int) -> None:
    assert reserved(call(**fields, max_tokens=100)) == 100 * prompts
    assert reserved(call(**fields, max_tokens=100, n=2, best_of=3)) == 300 * prompts
    assert in_windows("completions", **fields, max_tokens=100).answers == prompts


def test_texts_beside_token_ids_are_counted_as_well() -> None:
    long = WORDS * 1000
    assert Estimator().estimate(call(prompt=[[1, 2], long]), "k", "r").input > len(long) / 5
    assert Estimator().estimate(call(prompt=[[1, long]]), "k", "r").input > len(long) / 5


def context(asked: Call) -> int:
    """Tokens that the longest of its prompts is taken to need, with its answer."""
    tokens = Estimator().estimate(asked, "k", "r").input
    return features(asked, {}, model="m", tenant="t", tokens=tokens).context


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ([WORDS] * 100, len(WORDS) // 4),
        ([WORDS] * 99 + [WORDS * 100], len(WORDS) * 25),
        ([[1] * 50] * 40 + [[1] * 2000], 2000),
        ([1] * 3000, 3000),
        ([WORDS * 100], len(WORDS) * 25),
    ],
    ids=["short ones", "a long one", "token ids", "one of token ids", "one"],
)
def test_the_context_is_checked_for_each_prompt(prompt: Any, tokens: int) -> None:
    assert tokens + 100 <= context(call(prompt=prompt, max_tokens=100)) <= tokens * 1.1 + 120
    assert in_windows("completions", prompt=prompt).longest <= 1


def chat(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


TEXT = WORDS * 2000
TEXTS: dict[str, Any] = {
    "begins with data:": "data: " + TEXT,
    "a data URL and more": "data:image/png;base64,AAAA " + TEXT,
    "holds a quoted data:": '{"url":"data:image/png;base64,' + TEXT + '"} ',
    "in a part": [{"type": "text", "text": '"data:' + TEXT}],
    "in a part of no type": [{"text": '"data:' + TEXT}],
    "beside a picture": [{"type": "text", "text": TEXT, "image_url": {"url": "data:x"}}],
    "as a picture": [{"type": "image_url", "image_url": {"url": "data: " + TEXT}}],
    "as a bare picture": [{"type": "image_url", "image_url": TEXT}],
    "beside a link": [{"type": "image_url", "image_url": {"url": "http://pictures/1.png", "detail": TEXT}}],
    "as a recording": [{"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}}],
    "with escapes for blanks": [{"type": "image_url", "image_url": {"url": TEXT.replace(" ", "\n")}}],
    "of other letters": [{"type": "image_url", "image_url": {"url": "图片" * (len(TEXT) // 6)}}],
    "as rows": [{"type": "image_embeds", "image_embeds": [TEXT]}],
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
def test_text_that_looks_like_media_is_text(content: Any) -> None:
    """Once 600,060 tokens of text passed a limit of 20,000 as one picture."""
    small, windows = call("chat/completions", **chat(content)).asked, in_windows("chat/completions", **chat(content))
    assert small.text >= len(TEXT) * 0.9
    assert (windows.text, windows.media) == (small.text, small.media)


SHOWN: dict[str, Any] = {
    "image_url": {"image_url": {"url": "data:image/png;base64," + PIXELS, "detail": "high"}},
    "escaped": {"image_url": {"url": "data:image/png;base64," + PIXELS.replace("A", "/")}},
    "link": {"image_url": {"url": "https://pictures/1.png?" + "x" * 60_000}},
    "input_audio": {"input_audio": {"data": PIXELS, "format": "wav"}},
    "image_embeds": {"image_embeds": PIXELS},
    "rows": {"image_embeds": [[0.5, -1.25]] * 8000},
}


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
def test_media_is_what_stands_where_media_stands(shown: dict[str, Any]) -> None:
    raw = json.dumps({"model": "m", **chat([{"type": next(iter(shown)), **shown}])}).replace("/", "\\/").encode()
    small = Call("c", "chat/completions", "m", Body(raw)).asked
    assert small.media == 1 and small.text < 1000


def test_media_in_a_large_body_is_no_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PIXELS * 30}}
    found = in_windows("chat/completions", **chat([picture] * 2))
    assert found.media == 2 and found.text < 1000


class Bench:
    """A meter whose clock is advanced by hand, and targets that answer as they are told."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.metrics, self.lines = Metrics(), list[bytes]()
        self.meter = Meter(self.metrics, self.clock, self.lines.append)

    def open(self, record: CallRecord, asked: Call, target: str = "a") -> None:
        record.received_body(asked)
        record.routed("r")
        record.attempt_started(target, Choice("home-cost", "warm"))

    def answered(self, output: int, seconds: float, text: int = 0, asked: Call | None = None) -> None:
        """A target has answered a call, and counted its tokens."""
        with recorded(self.meter) as record:
            self.open(record, asked or talk())
            self.clock.advance(seconds)
            record.received(500, 0, Usage(10, output), text)
            record.sent()
            record.attempt_ended()

    def left(self, asked: Call, seconds: float, *events: bytes) -> Spent:
        """What a call is charged whose client leaves, so late and after these events."""
        record = self.meter.open("c", asked.endpoint)
        self.open(record, asked)
        if events:
            reader = reader_for(
                asked, Capabilities.of(OpenAI()), "text/event-stream", AnswerLimits(2**20, 2**20), AnswerMemory(2**30)
            )
            for event in events:
                chunk = reader.feed(event)
                assert chunk is not None
                record.received(len(chunk.data), chunk.tokens, chunk.usage, chunk.text)
                record.sent()
        self.clock.advance(seconds)
        record.attempt_failed(ClientGone())
        record.attempt_ended()
        record.close(ClientGone())
        return record.final_usage()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def talk(**fields: Any) -> Call:
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()
    return Call("c", "chat/completions", "m", Body(raw), stream=fields.get("stream", False))


def event(text: str, name: str = "content") -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {name: text}}]}).encode() + b"\n\n"


@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("together", [False, True])
def test_a_stream_of_several_tokens_an_event_is_charged_its_text(bench: Bench, name: str, together: bool) -> None:
    """vLLM with --stream-interval 20: once 59 of 1,000 tokens were charged."""
    events = [event(f"{number:05}" + WORDS * 2, name) for number in range(50)]
    said = 50 * len(WORDS * 2)
    spent = bench.left(talk(stream=True, max_tokens=2000), 1.0, *([b"".join(events)] if together else events))
    assert said / 4 <= spent.output <= said / 4 + 100


def test_text_in_events_of_many_kinds_counts(bench: Bench) -> None:
    odd = b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"' + b"x" * 400 + b'"}}]}}]}\n\n'
    assert bench.left(talk(stream=True), 1.0, odd, odd).output == 200


def test_events_count_where_they_are_more_than_their_text(bench: Bench) -> None:
    assert bench.left(talk(stream=True), 1.0, *[event("a")] * 300).output == 300


def test_text_is_charged_by_what_was_learned_of_the_target(bench: Bench) -> None:
    for _ in range(200):
        bench.answered(100, 1.0, text=250, asked=talk(stream=True))
    assert bench.left(talk(stream=True), 1.0, event("x" * 1000)).output == pytest.approx(400, rel=0.01)


@pytest.mark.parametrize(("text", "least"), [(100_000, 1000 // 8), (1, 1000 // 4)])
def test_what_is_learned_of_text_has_bounds(bench: Bench, text: int, least: int) -> None:
    for _ in range(500):
        bench.answered(10, 1.0, text=text, asked=talk(stream=True))
    assert least <= bench.left(talk(stream=True), 1.0, event("x" * 1000)).output <= 1000 // 2


def test_text_is_never_charged_beyond_the_bound(bench: Bench) -> None:
    assert bench.left(talk(stream=True, max_tokens=100), 1.0, event("x" * 4000)).output == 100


def test_a_whole_answer_nobody_waits_for_is_charged_its_time(bench: Bench) -> None:
    """Left at 2.9 of 3 s, 27 of 1,000 tokens were charged."""
    for _ in range(20):
        bench.answered(900, 3.0)
    assert bench.left(talk(max_tokens=1000), 2.9).output == pytest.approx(870, rel=0.01)
    assert json.loads(bench.lines[-1])["usage"]["source"] == "estimated"
    assert bench.left(talk(max_tokens=1000), 60.0).output == 1000
    assert bench.left(talk(max_tokens=1000, n=3), 2.0).output == pytest.approx(1800, rel=0.01)
    assert bench.left(talk(max_tokens=100, n=3), 60.0).output == 300


def test_a_target_of_which_nothing_is_known_has_a_common_speed(bench: Bench) -> None:
    assert bench.left(talk(), 10.0).output == 300


def test_the_speed_that_is_learned_has_bounds(bench: Bench) -> None:
    bench.answered(10**6, 0.001)
    assert bench.left(talk(), 1.0).output == 1000


def test_embeddings_that_nobody_waits_for_have_no_answer(bench: Bench) -> None:
    assert bench.left(call("embeddings", input="x"), 9.0).output == 0


def test_long_answers_of_one_key_make_others_reserve_little_more() -> None:
    """Once another's first call reserved 1,000 times too much."""
    estimator = Estimator()
    for _ in range(500):
        estimator.learn(talk(), "long", "r", 10, 300_000)
    assert estimator.estimate(talk(), "long", "r").output > 100_000
    assert estimator.estimate(talk(), "new", "r").output <= 4 * 256
    estimator.learn(talk(), "new", "r", 10, 20)
    assert estimator.estimate(talk(), "new", "r").output <= 4 * 256


def test_short_answers_of_one_key_make_others_reserve_little_less() -> None:
    estimator = Estimator()
    for _ in range(500):
        estimator.learn(talk(), "short", "r", 10, 1)
    assert estimator.estimate(talk(), "short", "r").output < 10
    assert estimator.estimate(talk(), "new", "r").output >= 256 / 4


@pytest.mark.parametrize(
    ("tokens", "least", "most"), [(2, 1 / 6, 1 / 4), (10**6, 1 / 4, 1 / 2)], ids=["sparse", "dense"]
)
def test_text_of_one_key_makes_others_reserve_little_more_or_less(tokens: int, least: float, most: float) -> None:
    estimator, asked = Estimator(), talk(user=WORDS * 100)
    size = len(asked.body.raw)
    for _ in range(500):
        estimator.learn(asked, "odd", "r", tokens, 10)
    assert size * least - 1 <= estimator.estimate(asked, "new", "r").input <= size * most + 1
    own = estimator.estimate(asked, "odd", "r").input
    assert size / 8 - 1 <= own <= size + 1, "a text is never nearly free, not even by what its key has taught"


def test_what_a_key_has_learned_is_its_own() -> None:
    estimator, asked = Estimator(), talk(user=WORDS * 100)
    size = len(asked.body.raw)
    for _ in range(300):
        estimator.learn(asked, "code", "r", size // 3, 10)
        for _ in range(3):
            estimator.learn(asked, "others", "r", size // 6, 10)
    assert estimator.estimate(asked, "code", "r").input == pytest.approx(size / 3, rel=0.02)
    assert estimator.estimate(asked, "others", "r").input == pytest.approx(size / 6, rel=0.02)


@pytest.mark.parametrize(
    ("fields", "told", "charged"),
    [
        ({"max_tokens": 100}, Usage(20, 10**9), (20, 164)),
        ({"max_tokens": 100, "n": 3}, Usage(20, 10**9), (20, 3 * 164)),
        ({}, Usage(20, 10**9), (20, 1 << 20)),
        ({"max_tokens": 100}, Usage(10**9, 5), (8192, 5)),
        ({"max_tokens": 100}, Usage(10**9, 10**9, 10**9), (8192, 164)),
    ],
)
def test_a_target_that_tells_too_much_is_capped(
    bench: Bench, fields: dict[str, Any], told: Usage, charged: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    with recorded(bench.meter) as record:
        bench.open(record, asked := talk(**fields))
        record.received(500, 0, told)
        record.sent()
        record.attempt_ended()
    spent = record.final_usage()
    assert charged[0] <= spent.input <= charged[0] + asked.asked.text and spent.output == charged[1]
    assert spent.cached <= spent.input
    refused = bench.metrics.registry.get_sample_value("trunkline_usage_refused_total", {"route": "r", "target": "a"})
    assert refused == 1 and json.loads(bench.lines[-1])["usage"]["source"] == "capped"
    (message,) = caplog.messages
    assert "target a" in message and str(told.completion_tokens) in message


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": 100}, Usage(3000, 100)),
        ({"max_tokens": 100}, Usage(20, 110)),
        ({"max_tokens": 100, "n": 4}, Usage(20, 400)),
        ({"user": "x" * 50_000}, Usage(50_000, 200_000)),
        (chat([{"type": "image_url", "image_url": {"url": "http://pictures/1.png"}}]), Usage(100_000, 5)),
    ],
)
def test_what_is_possible_is_believed(bench: Bench, fields: dict[str, Any], told: Usage) -> None:
    with recorded(bench.meter) as record:
        bench.open(record, talk(**fields))
        record.received(500, 0, told)
        record.sent()
        record.attempt_ended()
    assert record.final_usage() == Spent(told.prompt_tokens, 0, told.completion_tokens, 0)
    assert record.usage_source == "upstream"

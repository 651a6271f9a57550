"""A target dies in the middle of an answer, and the client of a route with `resume: text` does not notice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.teller import BREAKS, PROMPT, Teller
from harness.upstream import Act, Received, Step, Upstream, event, stream, whole
from integration.client import CHAT, Reply, Wire, ask, chat, eventually, record, request, samples, total

STORY = "Once upon a time there was a sea.\n\nIt was  wide and \u00e9toil\u00e9e; nobody had crossed it.\n"
PIECES = -(-len(STORY) // 4)
ROUTES = {"vllm": 48, "tgi": 8, "hasty-vllm": 2, "hasty-tgi": 2}
"""Each test has a pair of its own: targets that break off are left alone for a while. All of them are probed."""
IDLE = {"": "40s", "hasty": "2s"}
"""How long a target may pause. Only those that fall silent have little time: a busy machine needs much."""
NAMES = ("lone", "plain-a", "plain-b", "off-a", "off-b", "tier-a", "tier-b")
ENDPOINTS = {"chat": CHAT, "completion": "/v1/completions"}


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    def route(*names: str, backend: str = "vllm", idle: str = "40s", **fields: Any) -> dict[str, Any]:
        targets = [{"name": name, "backend": backend, "url": upstream.target(name).url} for name in names]
        shared = {"policy": "round-robin", "timeouts": {"idle": idle}, "resume": "text"}
        return {"targets": targets, **shared, **fields}

    fallback = {"name": "tier-b", "backend": "vllm", "url": upstream.target("tier-b").url}
    off = route("off-a", "off-b")
    del off["resume"]
    pairs = {}
    for kind, n in _pairs():
        patience, _, backend = kind.rpartition("-")
        pairs[f"{kind}-{n}"] = route(f"{kind}-{n}-a", f"{kind}-{n}-b", backend=backend, idle=IDLE[patience])
    routes = {
        **pairs,
        "lone": route("lone"),
        "plain": route("plain-a", "plain-b", backend="openai"),
        "off": off,
        "tier": route("tier-a", fallback=[fallback], fallback_route="vllm-0"),
    }
    with gateway_process(json.dumps({"routes": routes})) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


def _pairs() -> Iterator[tuple[str, int]]:
    for kind, count in ROUTES.items():
        for number in range(count):
            yield kind, number


class Pair:
    """A route with two targets that nobody has used; whichever is asked first breaks off."""

    def __init__(self, upstream: Upstream, kind: str, number: int) -> None:
        self.route = f"{kind}-{number}"
        self.tellers = [Teller(upstream, f"{self.route}-{end}", STORY, opens="vllm" in kind) for end in "ab"]

    def breaks(self, *how: tuple[int, Step]) -> str:
        """The route, whose next calls break off."""
        shared = list(how)
        for teller in self.tellers:
            teller.breaks = shared
        return self.route

    @property
    def calls(self) -> list[Received]:
        return [call for teller in self.tellers for call in teller.calls]

    @property
    def rest(self) -> Received:
        """The call for what was missing."""
        return next(call for call in self.calls if b"continue_final_message" in call.body)


@pytest.fixture
def pair(upstream: Upstream, unused: dict[str, Iterator[int]]) -> Pair:
    return Pair(upstream, "vllm", next(unused["vllm"]))


@pytest.fixture(scope="module")
def unused() -> dict[str, Iterator[int]]:
    return {kind: iter(range(count)) for kind, count in ROUTES.items()}


@pytest.fixture
def singles(upstream: Upstream) -> dict[str, Teller]:
    return {name: Teller(upstream, name, STORY) for name in NAMES}


def body(model: str, endpoint: str, **fields: Any) -> dict[str, Any]:
    if endpoint == "chat":
        return chat(model, stream=True, **fields)
    return {"model": model, "prompt": "Tell:", "stream": True, **fields}


def objects(reply: Reply) -> list[dict[str, Any]]:
    return [json.loads(data) for data in reply.data if data != b"[DONE]"]


def text(reply: Reply) -> str:
    choices = [choice for told in objects(reply) for choice in told.get("choices", ())]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def resumes(gateway: GatewayProcess, route: str) -> dict[str, float]:
    found = samples(gateway)
    outcomes = ("resumed", "failed", "refused")
    return {each: total(found, "resumes_total", route=route, outcome=each) for each in outcomes}


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("kind", ["vllm", "tgi"])
def test_the_answer_goes_on_at_another_target(
    gateway: GatewayProcess,
    key: str,
    upstream: Upstream,
    unused: dict[str, Iterator[int]],
    kind: str,
    how: str,
    endpoint: str,
) -> None:
    kind = f"hasty-{kind}" if how == "stall" else kind
    pair = Pair(upstream, kind, next(unused[kind]))
    asked = body(pair.breaks((5, BREAKS[how])), endpoint, stream_options={"include_usage": True})
    reply = ask(gateway, asked, key, ENDPOINTS[endpoint])
    assert reply.status == 200 and text(reply) == STORY, reply.data[-1]
    told = objects(reply)
    assert reply.data[-1] == b"[DONE]" and len({each["id"] for each in told}) == 1
    assert [len(teller.calls) for teller in pair.tellers] == [1, 1]
    finishes = [choice["finish_reason"] for each in told for choice in each["choices"] if choice["finish_reason"]]
    assert finishes == ["stop"]
    # What was said is counted once: the other target reads it as a part of its prompt.
    counts = told[-1]["usage"]
    assert (counts["prompt_tokens"], counts["completion_tokens"]) == (PROMPT, PIECES)
    assert counts["total_tokens"] == PROMPT + PIECES
    line = record(gateway, reply.header("x-request-id"))
    assert (line["outcome"], line["resumed"], len(line["attempts"])) == ("answered", 1, 2)
    assert (line["usage"]["prompt_tokens"], line["usage"]["completion_tokens"]) == (PROMPT, PIECES)
    assert line["usage"]["source"] == "upstream" and "wasted_tokens" not in line
    assert resumes(gateway, pair.route) == {"resumed": 1, "failed": 0, "refused": 0}


@pytest.mark.parametrize("after", range(0, PIECES + 1))
def test_wherever_it_breaks(gateway: GatewayProcess, key: str, pair: Pair, after: int) -> None:
    """Also after a blank, in the middle of a word, before the first word, and when only its end was missing."""
    reply = ask(gateway, body(pair.breaks((after, Act.CUT)), "chat"), key)
    assert text(reply) == STORY and reply.data[-1] == b"[DONE]"
    roles = [choice["delta"].get("role") for told in objects(reply) for choice in told["choices"]]
    assert [role for role in roles if role] == ["assistant"]


@pytest.mark.parametrize("after", [4, 8])
def test_bounds_hold_for_the_whole(gateway: GatewayProcess, key: str, pair: Pair, after: int) -> None:
    """Also when the client has all its tokens, and only their end is missing."""
    asked = body(pair.breaks((after, Act.RESET)), "chat", max_tokens=8, stream_options={"include_usage": True})
    reply = ask(gateway, asked, key)
    assert text(reply) == STORY[: 8 * 4]
    *_, end, counts = objects(reply)
    assert end["choices"][0]["finish_reason"] == "length" and counts["usage"]["completion_tokens"] == 8


def test_the_rest_is_asked_for_in_the_servers_words(gateway: GatewayProcess, key: str, pair: Pair) -> None:
    ask(gateway, body(pair.breaks((3, Act.CUT)), "chat", max_tokens=50, temperature=0.25), key)
    rest = pair.rest.json()
    (asked,) = (call.json() for call in pair.calls if call is not pair.rest)
    assert rest["messages"] == [*asked["messages"], {"role": "assistant", "content": STORY[:12].rstrip()}]
    assert (rest["continue_final_message"], rest["add_generation_prompt"], rest["max_tokens"]) == (True, False, 47)
    assert rest["temperature"] == 0.25 and "continue_final_message" not in asked


def test_it_may_break_twice(upstream: Upstream) -> None:
    """However few attempts a call has before its answer begins."""
    three = [Teller(upstream, f"third-{name}", STORY) for name in "abc"]
    breaks: list[tuple[int, Step]] = [(4, Act.CUT), (3, Act.RESET)]
    for teller in three:
        teller.breaks = breaks
    targets = [{"name": each.name, "backend": "vllm", "url": each.target.url} for each in three]
    table = {"routes": {"three": {"targets": targets, "resume": "text", "retry": {"attempts": 1}}}}
    with gateway_process(json.dumps(table)) as other:
        reply = ask(other, body("three", "chat"), other.issue().secret)
        assert text(reply) == STORY and record(other, reply.header("x-request-id"))["resumed"] == 2


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_calls_that_cannot_go_on_end_in_an_error(
    gateway: GatewayProcess, key: str, pair: Pair, fields: dict[str, Any], word: str
) -> None:
    reply = ask(gateway, body(pair.breaks((5, Act.CUT)), "chat", **fields), key)
    assert text(reply) == STORY[:20] and "error" in objects(reply)[-1] and b"[DONE]" not in reply.data
    assert record(gateway, reply.header("x-request-id"))["not_resumed"] == word
    assert resumes(gateway, pair.route) == {"resumed": 0, "failed": 0, "refused": 1}
    assert len(pair.calls) == 1


@pytest.mark.parametrize("route", ["lone", "plain", "off", "tier"])
def test_without_a_target_that_could_it_ends_in_an_error(
    gateway: GatewayProcess, key: str, singles: dict[str, Teller], route: str
) -> None:
    """The only one; of a kind that cannot; not wanted; and another tier or route, which may serve another model."""
    for teller in singles.values():
        teller.breaks = [(5, Act.CUT)]
    reply = ask(gateway, body(route, "chat"), key)
    assert text(reply) == STORY[:20] and "error" in objects(reply)[-1] and b"[DONE]" not in reply.data
    assert sum(len(teller.calls) for teller in singles.values()) == 1
    assert resumes(gateway, route)["failed"] == (route != "off")


def test_a_rest_that_is_refused_is_not_the_callers_fault(gateway: GatewayProcess, key: str, pair: Pair) -> None:
    scripts = [stream(event("Once"), Act.CUT, end=False), whole({"error": {"message": "no such field"}}, 400)]
    for teller in pair.tellers:
        teller.target.answers = lambda received: whole({}) if received.method == "GET" else scripts.pop(0)  # type: ignore[method-assign]
    reply = ask(gateway, body(pair.route, "chat"), key)
    assert not scripts and objects(reply)[-1]["error"]["code"] == "upstream_disconnected"
    assert "no such field" not in reply.body.decode()


def test_a_client_that_leaves_the_second_part_ends_it(gateway: GatewayProcess, key: str, pair: Pair) -> None:
    wire = Wire(gateway.port)
    wire.send(request(body(pair.breaks((4, Act.CUT), (3, Act.STALL)), "chat"), key))
    wire.read_until(STORY[16 + 8 : 16 + 12].encode())
    wire.leave()
    assert pair.rest.closed.wait(30)
    eventually(lambda: total(samples(gateway), "in_flight") == 0 or None, "nothing is in flight")

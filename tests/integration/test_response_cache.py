"""Answers are kept and given again, byte for byte, to calls that ask for exactly the same, and to no other."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import DONE, Act, Gate, Received, Script, Target, Upstream, answer, event, stream, whole
from integration.batching import at_end, client, leave, line, results
from integration.client import Reply, ask, chat, eventually, record, request, samples, total, wire

from gateway.core.types import Limit

CACHE = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
PATIENT = {"wait": "1s"}
"""A busy machine is slow, and no cache that is down."""
KEPT = "{tl}:answer:*"
ROUTES: dict[str, Any] = {
    "m": {"aliases": ["m-alias"]},
    "asked": {"response_cache": {"calls": "asked"}},
    "shared": {"response_cache": {"shared": True}},
    "small": {"response_cache": {"largest": 400}},
    "brief": {"response_cache": {"ttl": "90s"}},
    "priced": {"price": {"input": 1, "output": 2, "cached_answer": "0.25"}},
    "json": {"repair": "retry"},
    "without": {"response_cache": None},
}


def table(upstream: Upstream) -> str:
    """Every route has the same server, under another name for each."""
    routes = {}
    for name, fields in ROUTES.items():
        cache = fields.get("response_cache", {})
        targets = [{"name": f"cached-{name}", "backend": "openai", "url": upstream.target("cached").url}]
        patient = {} if cache is None else {"response_cache": {**PATIENT, **cache}}
        routes[name] = {**fields, "targets": targets, **patient}
        if cache is None:
            del routes[name]["response_cache"]
    second = [
        {"name": f"cached-{each}", "backend": "openai", "url": upstream.target(f"cached-{each}").url}
        for each in ("first", "second")
    ]
    routes["tiers"] = {"targets": second[:1], "fallback": second[1:], "response_cache": PATIENT}
    pair = [
        {"name": f"cached-{each}", "backend": "vllm", "url": upstream.target(f"cached-{each}").url}
        for each in ("left", "right")
    ]
    routes["resumes"] = {"targets": pair, "policy": "round-robin", "resume": "text", "response_cache": PATIENT}
    return json.dumps({"routes": routes})


@pytest.fixture(scope="module")
def cache() -> Iterator[RedisServer]:
    with redis_server(options=CACHE) as server:
        yield server


@pytest.fixture(scope="module")
def pair(
    upstream: Upstream, redis: RedisServer, cache: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[GatewayProcess]]:
    """Two gateways with one cache."""
    env = {"TRUNKLINE_CACHE_URL": cache.url, "TRUNKLINE_FILES": str(tmp_path_factory.mktemp("files"))}
    with (
        gateway_process(table(upstream), redis_url=redis.url, env=env) as one,
        gateway_process(table(upstream), redis_url=redis.url, env=env) as two,
    ):
        yield [one, two]


@pytest.fixture
def one(pair: list[GatewayProcess], cache: RedisServer, target: Target, key: str) -> GatewayProcess:
    """One of them, with an empty cache: what the test before had kept has come, as answers come in their order."""
    cache.ask("FLUSHALL")
    marker = secrets.randbits(32)
    eventually(lambda: cached(ask(pair[0], same(seed=marker), key)) == "hit" or None, "the cache works")
    cache.ask("FLUSHALL")
    target.restore()
    return pair[0]


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("cached")
    found.restore()
    return found


@pytest.fixture(scope="module")
def key(pair: list[GatewayProcess]) -> str:
    return pair[0].issue(tenant="readers").secret


def same(model: str = "m", **fields: Any) -> dict[str, Any]:
    """A call whose answer is the same each time."""
    return chat(model, **{"temperature": 0, **fields})


def cached(reply: Reply) -> str | None:
    return reply.header("x-trunkline-cache")


def kept(cache: RedisServer, count: int = 1) -> list[str]:
    """The names of answers, once there are as many."""
    return eventually(lambda: found if len(found := cache.keys(KEPT)) >= count else None, f"{count} answers are kept")


def refused(one: GatewayProcess, outcome: str, route: str = "m") -> float:
    """How many good answers were not kept, for this reason."""
    return total(samples(one), "response_cache_answers_total", route=route, outcome=outcome)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_second_call_is_answered_with_the_bytes_of_the_first(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str, streamed: bool
) -> None:
    first = ask(one, same(stream=streamed), key)
    kept(cache)
    again = ask(one, same(stream=streamed), key)
    assert (first.status, cached(first), again.status, cached(again)) == (200, "miss", 200, "hit")
    assert (again.body, len(target.calls)) == (first.body, 1)
    assert first.header("age") is None and int(again.header("age") or "") >= 0
    assert again.header("x-request-id") != first.header("x-request-id")
    assert again.header("content-type") == first.header("content-type")
    assert again.header("x-trunkline-target") is None


@pytest.mark.parametrize("streamed", [False, True])
def test_a_miss_has_the_bytes_that_it_has_without_the_cache(
    one: GatewayProcess, target: Target, key: str, streamed: bool
) -> None:
    missed, without = (ask(one, same(model, stream=streamed), key) for model in ("m", "without"))
    assert (cached(missed), cached(without)) == ("miss", None)
    assert missed.body == without.body
    assert target.calls[0].body.replace(b'"m"', b'"without"') == target.calls[1].body
    if not streamed:  # whether a stream comes at once, or in pieces, is told by its head
        ours = ("x-trunkline-cache", "x-trunkline-target", "x-request-id", "date")
        assert [(name, value) for name, value in missed.headers if name.lower() not in ours] == [
            (name, value) for name, value in without.headers if name.lower() not in ours
        ]


def test_what_one_gateway_keeps_another_finds(
    one: GatewayProcess, pair: list[GatewayProcess], cache: RedisServer, target: Target, key: str
) -> None:
    first = ask(one, same(), key)
    kept(cache)
    again = ask(pair[1], same(), key)
    assert (cached(again), again.body, len(target.calls)) == ("hit", first.body, 1)


def test_whole_and_streamed_answers_are_two(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    ask(one, same(), key)
    assert cached(ask(one, same(stream=True), key)) == "miss"
    assert len(kept(cache, 2)) == 2


def test_an_answer_is_its_tenants_alone(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    other = one.issue(tenant="others").secret
    ask(one, same(), key)
    assert ":readers:m:" in kept(cache)[0]
    assert cached(ask(one, same(), other)) == "miss"
    assert len(target.calls) == 2


def test_unless_the_route_shares_them(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    other = one.issue(tenant="others").secret
    ask(one, same("shared"), key)
    kept(cache)
    assert cached(ask(one, same("shared"), other)) == "hit"


OTHERS: dict[str, dict[str, Any]] = {
    "another question": {"messages": [{"role": "user", "content": "Hi "}]},
    "another length": {"max_tokens": 5},
    "another field": {"min_p": 0.1},
    "another name of the model": {"model": "m-alias"},
    "a seed": {"seed": 1},
    "a salt": {"cache_salt": "x"},
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_call_is_not_answered_with_it(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str, other: str
) -> None:
    ask(one, same(), key)
    kept(cache)
    assert cached(ask(one, same() | OTHERS[other], key)) == "miss"
    assert len(target.calls) == 2


def test_who_asks_and_the_order_of_fields_make_no_other_call(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str
) -> None:
    ask(one, same(user="a"), key)
    kept(cache)
    turned = dict(reversed(same(user="b").items()))
    assert cached(ask(one, turned, key)) == "hit"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.1},
        {"temperature": None},
        {"temperature": 0, "web_search_options": {}},
        {"temperature": 0, "tools": [{"type": "web_search"}]},
        {
            "temperature": 0,
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        },
    ],
)
def test_a_call_takes_no_part_whose_answer_may_be_another_each_time(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str, fields: dict[str, Any]
) -> None:
    replies = [ask(one, chat("m", **fields), key) for _ in range(2)]
    assert [cached(reply) for reply in replies] == ["bypass", "bypass"]
    assert (len(target.calls), cache.keys(KEPT)) == (2, [])


def test_unless_it_asks_for_that(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    wish = {"X-Trunkline-Cache": "use"}
    assert cached(ask(one, chat("m"), key, headers=wish)) == "miss"
    kept(cache)
    assert cached(ask(one, chat("m"), key, headers=wish)) == "hit"
    assert cached(ask(one, chat("m"), key)) == "bypass"


def test_a_route_may_leave_it_to_calls_alone(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    assert cached(ask(one, same("asked"), key)) == "bypass"
    assert cached(ask(one, same("asked"), key, headers={"x-trunkline-cache": "use"})) == "miss"


def test_a_call_can_stay_out_and_have_its_answer_made_anew(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str
) -> None:
    ask(one, same(), key)
    (name,) = kept(cache)
    before = cache.raw()
    old = before.get(name)
    target.script = whole(answer("Another"))
    assert cached(ask(one, same(), key, headers={"x-trunkline-cache": "no-store"})) == "bypass"
    assert cached(ask(one, same(), key)) == "hit"
    fresh = ask(one, same(), key, headers={"x-trunkline-cache": "refresh"})
    assert (cached(fresh), b"Another" in fresh.body) == ("refresh", True)
    eventually(lambda: before.get(name) != old, "the new answer is kept")
    before.close()
    again = ask(one, same(), key)
    assert (cached(again), again.body) == ("hit", fresh.body)


def test_a_wish_that_nobody_knows_is_refused(one: GatewayProcess, target: Target, key: str) -> None:
    reply = ask(one, same(), key, headers={"x-trunkline-cache": "always"})
    assert (reply.status, reply.error["param"]) == (400, "x-trunkline-cache")
    assert "'use', 'refresh', 'no-store'" in reply.error["message"]
    assert ask(one, same("without"), key, headers={"x-trunkline-cache": "always"}).status == 200


BAD: dict[str, Any] = {
    "an error": whole({"error": {"message": "no"}}, 500),
    "a mistake": whole({"error": {"message": "no"}}, 400),
    "a stream that breaks": stream(event("Hel"), Act.RESET, end=False),
    "a stream that stops": stream(event("Hel"), end=True),
    "a stream that is given up": stream(event("Hel"), event(finish="abort"), DONE),
    "a failure of a stream that has told why it ended": stream(
        event("Hel"), event(finish="stop"), b'data: {"error": {"message": "no"}}\n\n', DONE
    ),
    "a failure in a stream": stream(event("Hel"), b'data: {"error": {"message": "no"}}\n\n', DONE),
}


@pytest.mark.parametrize("bad", BAD)
def test_nothing_is_kept_of_what_went_wrong(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str, bad: str
) -> None:
    target.script = BAD[bad]
    ask(one, same(stream="stream" in bad), key)
    target.restore()
    good = ask(one, same(stream="stream" in bad), key)
    assert (good.status, cached(good)) == (200, "miss")
    kept(cache)
    assert cached(ask(one, same(stream="stream" in bad), key)) == "hit"


def test_nothing_is_kept_of_a_call_whose_client_has_left(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str
) -> None:
    gate = Gate()
    target.script = stream(event("Hel"), gate, event("lo"), event(finish="stop"), DONE)
    with wire(one, request(same(stream=True), key)) as client:
        client.read_until(b"Hel")
        client.leave()
        received = target.wait_for_calls()
        assert received.closed.wait(30)
        gate.open()
    target.restore()
    assert cached(ask(one, same(stream=True), key)) == "miss"


def test_an_answer_of_another_tier_is_not_kept(
    one: GatewayProcess, upstream: Upstream, cache: RedisServer, key: str
) -> None:
    first, second = upstream.target("cached-first"), upstream.target("cached-second")
    first.restore(), second.restore()
    first.script = whole({}, 500)
    instead = ask(one, same("tiers"), key)
    assert (instead.status, cached(instead), instead.header("x-trunkline-target")) == (200, "miss", "cached-second")
    first.restore()
    again = ask(one, same("tiers"), key)
    assert (cached(again), again.header("x-trunkline-target")) == ("miss", "cached-first")
    kept(cache)
    assert cached(ask(one, same("tiers"), key)) == "hit"


def test_a_stream_that_went_on_elsewhere_is_not_kept(
    one: GatewayProcess, upstream: Upstream, cache: RedisServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [stream(event("Hel"), Act.RESET, end=False)]

    def answers(received: Received) -> Script:
        if received.method == "GET":
            return whole({})
        if received.json()["messages"][-1]["role"] == "assistant":
            return stream(event("lo"), event(finish="stop"), DONE)
        return first.pop() if first else stream(event("Whole"), event(finish="stop"), DONE)

    for name in ("left", "right"):
        monkeypatch.setattr(upstream.target(f"cached-{name}"), "answers", answers)
    replies = [ask(one, same("resumes", stream=True), key) for _ in range(2)]
    assert [cached(reply) for reply in replies] == ["miss", "miss"]
    assert b"Hel" in replies[0].body and b"lo" in replies[0].body and replies[0].body.endswith(DONE)
    kept(cache)
    again = ask(one, same("resumes", stream=True), key)
    assert (cached(again), again.body) == ("hit", replies[1].body)


def test_an_answer_is_not_kept_that_is_not_the_json_that_was_asked_for(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str
) -> None:
    body = same("json", response_format={"type": "json_object"})
    target.scripts = [whole(answer("no")), whole(answer("no")), whole(answer("no")), whole(answer("{}"))]
    replies = [ask(one, body, key) for _ in range(2)]
    assert [(cached(reply), reply.json()["choices"][0]["message"]["content"]) for reply in replies] == [
        ("miss", "no"),
        ("miss", "{}"),
    ]
    kept(cache)
    assert (cached(ask(one, body, key)), len(target.calls)) == ("hit", 4)


def test_a_large_answer_is_not_kept(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    target.script = whole(answer("x" * 500))
    replies = [ask(one, same("small"), key) for _ in range(2)]
    assert [cached(reply) for reply in replies] == ["miss", "miss"]
    eventually(lambda: refused(one, "too_large", "small") >= 2, "both are counted")
    target.restore()
    ask(one, same("small"), key)
    kept(cache)
    assert cached(ask(one, same("small"), key)) == "hit"


def test_an_answer_is_kept_for_so_long(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    ask(one, same("brief"), key)
    (name,) = kept(cache)
    assert 0 < cache.ask("PTTL", name) <= 90_000
    cache.ask("PEXPIRE", name, 1)
    eventually(lambda: not cache.keys(KEPT), "it has expired")
    assert cached(ask(one, same("brief"), key)) == "miss"


FOREIGN = ["", "no answer", "cut off", "a letter", "of another call"]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_is_no_answer_of_ours_is_never_given(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str, foreign: str
) -> None:
    first = ask(one, same(), key)
    (name,) = kept(cache)
    ask(one, same(seed=7), key)
    (other,) = {*kept(cache, 2)} - {name}
    client = cache.raw()
    value = client.get(name)
    assert isinstance(value, bytes)
    put = {
        "": b"",
        "no answer": b"HTTP/1.1 200 OK",
        "cut off": value[:-1],
        "a letter": value.replace(b"Hello", b"Hullo"),
        "of another call": client.get(other),
    }[foreign]
    client.set(name, put or b"")
    again = ask(one, same(), key)
    assert (again.status, cached(again), again.body) == (200, "miss", first.body)
    eventually(lambda: client.get(name) != put, "it is kept anew")
    client.close()
    assert cached(ask(one, same(), key)) == "hit"


def test_a_value_of_another_kind_is_none(one: GatewayProcess, cache: RedisServer, target: Target, key: str) -> None:
    ask(one, same(), key)
    (name,) = kept(cache)
    cache.ask("DEL", name)
    cache.ask("LPUSH", name, "x")
    assert cached(ask(one, same(), key)) == "miss"


def test_hits_are_recorded_counted_and_charged_as_hits(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str
) -> None:
    def summed() -> list[int]:
        """Calls, input and cost of the ledger, in which other tests' calls for this model stand as well."""
        rows = [row for row in one.said("usage", "--by", "model")["rows"] if row["model"] == "priced"]
        return [sum(row[what] for row in rows) for what in ("calls", "input", "cost_micros")]

    before, earlier = samples(one), summed()
    first = ask(one, same("priced"), key)
    kept(cache)
    again = ask(one, same("priced"), key)
    made, found = (record(one, reply.header("x-request-id")) for reply in (first, again))
    assert (made["cache"], made["cost_micros"], made["usage"]["source"]) == ("miss", 9, "upstream")
    assert (found["cache"], found["cost_micros"], found["outcome"], found["attempts"]) == (
        "hit",
        250_000,
        "answered",
        [],
    )
    assert found["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "source": "cache"}
    assert (found["target"], found["status"], found["queue_s"]) == ("", 200, 0)

    def grown(name: str, **labels: str) -> float:
        return total(samples(one), name, route="priced", **labels) - total(before, name, route="priced", **labels)

    eventually(lambda: grown("response_cache_answers_total", outcome="kept") == 1, "it is counted")
    assert [grown("response_cache_total", outcome=outcome) for outcome in ("hit", "miss")] == [1, 1]
    assert [grown("response_cache_saved_tokens_total", direction=each) for each in ("in", "out")] == [5, 2]
    assert [grown("tokens_total", direction=each) for each in ("in", "out")] == [5, 2]
    assert (grown("cost_micros_total"), grown("requests_total", outcome="answered")) == (250_009, 2)

    due = [count + more for count, more in zip(earlier, (2, 5, 250_009), strict=True)]
    eventually(lambda: summed() == due or None, "the ledger has both")


def test_a_hit_takes_a_request_and_no_tokens(one: GatewayProcess, cache: RedisServer, target: Target) -> None:
    limited = one.issue(tenant="limited", limit=Limit(rpm=4, tpm=60)).secret
    body = same(max_tokens=20)
    replies = [ask(one, body, limited)]
    kept(cache)
    replies += [ask(one, body, limited) for _ in range(4)]
    assert [reply.status for reply in replies] == [200, 200, 200, 200, 429]
    assert [cached(reply) for reply in replies[:4]] == ["miss", "hit", "hit", "hit"]
    assert replies[4].error["code"] == "rate_limit_exceeded" and "requests" in replies[4].error["message"]


def test_a_revoked_key_finds_nothing(one: GatewayProcess, cache: RedisServer, target: Target) -> None:
    issued = one.issue(tenant="readers")
    assert ask(one, same(), issued.secret).status == 200
    kept(cache)
    one.keys("revoke", issued.record.id)
    assert ask(one, same(), issued.secret).status == 401


def test_bodies_are_compared_as_rules_have_made_them(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str
) -> None:
    from gateway.core.body_rules import BodyRules

    ruled = one.issue(tenant="readers", body=BodyRules(set={"temperature": 0})).secret
    ask(one, same(), key)
    kept(cache)
    assert cached(ask(one, chat("m", temperature=1), ruled)) == "hit"


def test_lines_of_batches_find_answers_and_leave_some(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str
) -> None:
    lines = [line(number, body=same(seed=number)) for number in range(2)]
    first = ask(one, lines[0]["body"], key)
    kept(cache)
    with client(one, tenant="readers") as ours:
        batch = at_end(ours, leave(ours, lines))
        found = results(ours, batch.output_file_id)
    assert found["line-0"]["response"]["body"] == first.json()
    assert (found["line-1"]["response"]["status_code"], len(target.calls)) == (200, 2)
    kept(cache, 2)
    assert cached(ask(one, lines[1]["body"], key)) == "hit"


ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi", "temperature": 0},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "temperature": 0},
    "/v1/responses": {"input": "Hi", "temperature": 0},
    "/generate": {"inputs": "Hi", "parameters": {"seed": 1}, "model": "m"},
}


@pytest.mark.parametrize("path", ENDPOINTS)
def test_answers_of_every_dialect_are_given_again(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str, path: str
) -> None:
    """Translated ones as their clients got them."""
    if path in ("/v1/completions", "/generate"):
        choice = {"index": 0, "text": "Hello", "finish_reason": "stop", "message": {"content": "Hello"}}
        target.script = whole({**answer(), "choices": [choice]})
    if path == "/v1/embeddings":
        target.script = whole({"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 1}})
    body = {"model": "m", **ENDPOINTS[path]}
    first = ask(one, body, key, path)
    assert (first.status, cached(first)) == (200, "miss"), first
    kept(cache)
    again = ask(one, body, key, path)
    assert (again.status, cached(again), again.body, len(target.calls)) == (200, "hit", first.body, 1)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_streams_of_other_dialects_are_given_again(
    one: GatewayProcess, cache: RedisServer, target: Target, key: str, path: str
) -> None:
    body = {"model": "m", **ENDPOINTS[path], "stream": True}
    first = ask(one, body, key, path)
    assert (first.status, cached(first)) == (200, "miss"), first
    kept(cache)
    again = ask(one, body, key, path)
    assert (cached(again), again.body) == ("hit", first.body)
    target.script = stream(event("Hel"), Act.RESET, end=False)
    broken = ask(one, {**body, "seed": 3}, key, path)
    assert (cached(broken), broken.body != first.body) == ("miss", True)
    target.restore()
    assert cached(ask(one, {**body, "seed": 3}, key, path)) == "miss"

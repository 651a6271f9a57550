"""Tokens and money over the wire: what is reserved, what comes back, what is owed, and what a client is told."""

from __future__ import annotations

import base64
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import DONE, Act, Gate, Script, Target, Upstream, answer, event, stream, usage, usage_event, whole
from integration.client import Reply, ask, chat, eventually, record, request, samples, total, wire

from gateway.core.types import Allowance, Budget, Limit

ROUTES = ("plain", "priced", "learned", "modest", "private", "pair", "hasty")
PROMPT = 200
"""Tokens, more than any of the short prompts here is ever estimated at."""


@pytest.fixture(scope="module", params=["memory", "redis"])
def metered(request: pytest.FixtureRequest, upstream: Upstream, redis: RedisServer) -> Iterator[GatewayProcess]:
    """One worker, without Redis and with it."""

    def route(name: str, *targets: str, **fields: Any) -> dict[str, Any]:
        found = [
            {"name": each, "backend": "openai", "url": upstream.target(each).url} for each in targets or (f"t-{name}",)
        ]
        return {"targets": found, **fields}

    price = {"input": 1, "cached": 0.1, "output": 10}
    routes = {
        "plain": route("plain"),
        "learned": route("learned"),
        "priced": route("priced", price=price),
        "modest": route("modest", limits={"rpm": 4}),
        "private": route("private", key_limits={"rpm": 2}),
        "pair": route("pair", "t-pair-a", "t-pair-b", policy="round-robin"),
        "hasty": route("hasty", timeouts={"first_byte": "300ms"}),
    }
    url = redis.url if request.param == "redis" else None
    with gateway_process(json.dumps({"routes": routes}), redis_url=url) as started:
        yield started


@pytest.fixture
def targets(upstream: Upstream) -> dict[str, Target]:
    """The target of each route, as new."""
    names = {route: f"t-{route}" for route in ROUTES} | {"pair": "t-pair-a", "pair-b": "t-pair-b"}
    found = {route: upstream.target(name) for route, name in names.items()}
    for each in found.values():
        each.restore()
    return found


@pytest.fixture
def plain(targets: dict[str, Target]) -> Target:
    return targets["plain"]


def tokens(reply: Reply) -> int:
    """Tokens left, as an answer tells."""
    left = reply.header("x-ratelimit-remaining-tokens")
    assert left is not None, reply
    return int(left)


def left(gateway: GatewayProcess, issued: Issued, model: str = "plain", **fields: Any) -> int:
    """What is left of a key's tokens after one more small call, which reserves at most `PROMPT` and one token."""
    reply = ask(gateway, chat(model, max_tokens=1, **fields), issued.secret)
    assert reply.status == 200, reply
    return tokens(reply)


def used(prompt: int, completion: int, **fields: Any) -> Script:
    """An answer that took so many tokens."""
    return whole(answer(prompt=prompt, completion=completion) | fields)


def of(gateway: GatewayProcess, issued: Issued) -> dict[str, Any]:
    """The record of a key's one call."""

    def look() -> dict[str, Any] | None:
        found = [line for line in gateway.records() if line["key_id"] == issued.record.id]
        return found[-1] if found else None

    return eventually(look, "the record of the key's call")


def day(**allowed: int) -> Limit:
    return Limit(budget=Budget(day=Allowance(**allowed)))


@pytest.mark.parametrize(
    ("fields", "reserved"),
    [
        ({"max_tokens": 1000}, 1000),
        ({"max_completion_tokens": 1000}, 1000),
        ({"max_tokens": 1, "max_completion_tokens": 10_000}, 10_000),
        ({"max_tokens": 10_000, "max_completion_tokens": 1}, 10_000),
        ({"max_tokens": 1000, "n": 3}, 3000),
        ({"max_completion_tokens": 1000, "n": 3, "stream": True}, 3000),
    ],
)
def test_what_a_call_may_use_is_reserved(
    metered: GatewayProcess, plain: Target, fields: dict[str, Any], reserved: int
) -> None:
    issued = metered.issue(limit=Limit(tpm=100_000))
    granted = ask(metered, chat("plain", **fields), issued.secret)
    assert granted.status == 200
    assert granted.header("x-ratelimit-limit-tokens") == "100000"
    assert 0 < 100_000 - reserved - tokens(granted) < PROMPT


@pytest.mark.parametrize("name", ["tpm", "itpm", "otpm"])
def test_each_kind_of_tokens_counts_its_own(metered: GatewayProcess, plain: Target, name: str) -> None:
    issued = metered.issue(limit=Limit(**{name: 10_000}))
    plain.script = used(prompt=4000, completion=700)
    ask(metered, chat("plain", max_tokens=5000), issued.secret)
    spent = {"tpm": 4700, "itpm": 4000, "otpm": 700}[name]
    assert 10_000 - spent - PROMPT - 1 <= left(metered, issued) <= 10_000 - spent + 2000  # a second leaks 167


def test_what_was_not_used_is_back_at_the_next_call(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(tpm=10_000))
    for streamed in (False, True):
        first = ask(metered, chat("plain", max_tokens=9000, stream=streamed), issued.secret)
        assert first.status == 200
        assert tokens(first) < 1000
        assert left(metered, issued) > 10_000 - 3 * 7 - PROMPT - 10


def test_while_a_call_is_under_way_its_reservation_stays(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(tpm=1000))
    gate = Gate()
    plain.scripts = [stream(event("Hi"), gate, event(finish="stop"), usage_event(5, 2), DONE)]
    with wire(metered, request(chat("plain", stream=True, max_tokens=900), issued.secret)) as connection:
        connection.read_until(b"Hi")
        refused = ask(metered, chat("plain", max_tokens=900), issued.secret)
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        gate.open()
        connection.read_until(b"[DONE]")
    assert ask(metered, chat("plain", max_tokens=900), issued.secret).status == 200


def test_more_than_was_reserved_is_a_debt(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(tpm=6000))
    plain.script = used(prompt=2000, completion=10_000)
    assert ask(metered, chat("plain", max_tokens=10), issued.secret).status == 200
    denied = ask(metered, chat("plain", max_tokens=10), issued.secret)
    assert denied.status == 429
    assert tokens(denied) == 0
    # 12,000 used of 6,000 a minute: a minute until nothing is owed, and a little until the call fits
    assert 58_000 <= int(denied.header("retry-after-ms") or 0) <= 63_000
    assert denied.header("x-should-retry") == "true"
    assert len(plain.calls) == 1


def test_a_long_way_until_all_is_there_again_is_told_in_minutes(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(tpm=100))
    plain.script = used(prompt=600, completion=50)
    assert ask(metered, chat("plain", max_tokens=1), issued.secret).status == 200
    denied = ask(metered, chat("plain", max_tokens=1), issued.secret)
    assert denied.status == 429
    assert (denied.header("x-ratelimit-reset-tokens") or "").startswith(("6m2", "6m30s"))
    assert int(denied.header("retry-after") or 0) <= 120


def test_without_a_bound_the_learned_length_is_reserved(metered: GatewayProcess, targets: dict[str, Target]) -> None:
    issued = metered.issue(limit=Limit(otpm=1_000_000))
    targets["learned"].script = used(prompt=20, completion=3000)

    def reserved() -> int:
        return 1_000_000 - tokens(ask(metered, chat("learned"), metered.issue(limit=Limit(otpm=1_000_000)).secret))

    assert reserved() == 256, "what is assumed of a model that nobody knows"
    for _ in range(10):
        assert ask(metered, chat("learned"), issued.secret).status == 200
    assert 2000 < reserved() < 4500


def test_a_cut_stream_is_charged_what_was_counted(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(otpm=1000))
    plain.scripts = [stream(*[event("x")] * 300, Act.CUT)]
    ask(metered, chat("plain", stream=True, max_tokens=900), issued.secret)
    line = of(metered, issued)
    assert (line["outcome"], line["usage"]["source"], line["usage"]["completion_tokens"]) == ("broke", "counted", 300)
    assert 1 < line["usage"]["prompt_tokens"] < PROMPT
    assert 1000 - 300 - 1 <= left(metered, issued) <= 700 + 60


def test_a_stream_without_usage_is_charged_what_was_counted(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(otpm=1000))
    plain.scripts = [stream(*[event("x")] * 300, event(finish="stop"), DONE)]
    ask(metered, chat("plain", stream=True, max_tokens=900), issued.secret)
    line = of(metered, issued)
    assert (line["outcome"], line["usage"]["source"]) == ("answered", "counted")
    assert 300 <= line["usage"]["completion_tokens"] <= 301
    assert 1000 - 301 - 1 <= left(metered, issued) <= 700 + 60


def test_a_whole_answer_without_usage_is_charged_by_its_size(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(otpm=1000))
    told = answer("x" * 1200)
    del told["usage"]
    plain.scripts = [whole(told)]
    ask(metered, chat("plain", max_tokens=900), issued.secret)
    line = of(metered, issued)
    assert line["usage"]["source"] == "estimated"
    assert 300 <= line["usage"]["completion_tokens"] <= 400
    assert 1000 - 400 - 1 <= left(metered, issued) <= 700 + 60


def test_a_client_that_leaves_in_the_middle_pays_for_what_came(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(otpm=1000))
    plain.scripts = [stream(*[event("x")] * 299, event("last"), Act.STALL)]
    with wire(metered, request(chat("plain", stream=True, max_tokens=900), issued.secret)) as connection:
        connection.read_until(b"last")
    line = of(metered, issued)
    assert (line["outcome"], line["usage"]["source"], line["usage"]["completion_tokens"]) == ("gone", "counted", 300)
    assert 1000 - 300 - 1 <= left(metered, issued) <= 700 + 60


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_before_the_first_token_pays_for_its_prompt(
    metered: GatewayProcess, plain: Target, streamed: bool
) -> None:
    issued = metered.issue(limit=Limit(tpm=10_000))
    plain.scripts = [[Act.STALL]]
    body = chat("plain", stream=streamed, max_tokens=5000, user="x" * 8000)
    with wire(metered, request(body, issued.secret)):
        plain.wait_for_calls()
    line = of(metered, issued)
    assert (line["outcome"], line["usage"]["source"], line["usage"]["completion_tokens"]) == ("gone", "estimated", 0)
    prompt = line["usage"]["prompt_tokens"]
    assert 500 <= prompt <= 4000  # 8,000 bytes by what was learned here
    assert 10_000 - prompt - PROMPT <= left(metered, issued) <= 10_000 - prompt + 500


@pytest.mark.parametrize(
    ("model", "script", "status"),
    [
        ("plain", whole({}, 500), 502),
        ("plain", whole({"error": {"message": "no"}}, 400), 400),
        ("plain", [Act.CUT], 502),
        ("plain", whole(b"<html>", 200, "text/html"), 502),
        ("hasty", [Act.STALL], 504),
    ],
    ids=["500", "400", "cut", "nonsense", "silence"],
)
def test_a_call_that_no_target_has_worked_for_costs_no_tokens(
    metered: GatewayProcess, targets: dict[str, Target], model: str, script: Script, status: int
) -> None:
    issued = metered.issue(limit=Limit(tpm=1000, rpm=100, budget=Budget(day=Allowance(tokens=1000))))
    targets[model].script = script
    for _ in range(3):
        assert ask(metered, chat(model, max_tokens=800), issued.secret).status == status
    line = of(metered, issued)
    assert "usage" not in line and line["outcome"] in ("failed", "refused")
    targets[model].restore()
    healed = ask(metered, chat(model, max_tokens=800), issued.secret)
    assert healed.status == 200
    assert healed.header("x-ratelimit-remaining-requests") in ("96", "97")


def test_a_call_that_was_tried_twice_is_charged_once(metered: GatewayProcess, targets: dict[str, Target]) -> None:
    issued = metered.issue(limit=Limit(tpm=10_000, budget=Budget(day=Allowance(tokens=1000))))
    before = samples(metered)
    # Whichever is first.
    for name, other in (("pair", "pair-b"), ("pair-b", "pair")):
        targets[name].scripts = [whole({}, 500)]
        targets[other].script = used(prompt=30, completion=300)
    targets["pair"].script = targets["pair-b"].script = used(prompt=30, completion=300)
    targets["pair-b"].scripts = []
    replies = [ask(metered, chat("pair", max_tokens=500), issued.secret) for _ in range(2)]
    assert [reply.status for reply in replies] == [200, 200]
    assert sum(len(targets[name].calls) for name in ("pair", "pair-b")) == 3
    after = samples(metered)
    for way, count in (("in", 60), ("out", 600)):
        grown = [total(each, "tokens_total", route="pair", direction=way) for each in (before, after)]
        assert grown[1] - grown[0] == count
    lines = [record(metered, reply.header("x-request-id")) for reply in replies]
    assert sorted(len(line["attempts"]) for line in lines) == [1, 2]
    assert ask(metered, chat("pair", max_tokens=270), issued.secret).status == 200, "340 of the day's are left"


@pytest.mark.parametrize(
    ("limit", "fields"),
    [
        (Limit(tpm=1000), {"max_tokens": 1001}),
        (Limit(tpm=1000), {"max_tokens": 1, "max_completion_tokens": 1001}),
        (Limit(otpm=1000), {"max_tokens": 501, "n": 2}),
        (Limit(itpm=1000), {"user": "x" * 200_000}),
        (Limit(tpm=1000), {"max_tokens": 10**17, "n": 10**17}),
        (Limit(budget=Budget(day=Allowance(tokens=1000))), {"max_tokens": 1001}),
        (Limit(budget=Budget(month=Allowance(cost_micros=1000))), {"max_tokens": 101}),
    ],
    ids=["tpm", "larger", "n", "prompt", "astronomic", "budget", "money"],
)
def test_a_call_that_can_never_fit_is_refused_for_good(
    metered: GatewayProcess, targets: dict[str, Target], limit: Limit, fields: dict[str, Any]
) -> None:
    """429 would have it come again for ever."""
    issued = metered.issue(limit=limit)
    for _ in range(2):
        refused = ask(metered, chat("priced", **fields), issued.secret)
        assert refused.status == 400
        assert (refused.error["code"], refused.error["type"]) == ("exceeds_limit", "invalid_request_error")
        assert refused.header("x-should-retry") == "false"
        assert refused.header("retry-after") is None
    line = record(metered, refused.header("x-request-id"))
    assert (line["outcome"], line["error_type"]) == ("refused", "policy_exceeds_limit")
    assert targets["priced"].calls == []
    assert ask(metered, chat("priced", max_tokens=10), issued.secret).status == 200


def test_embeddings_are_prompt_tokens(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=Limit(tpm=5000, otpm=1))
    told = {"object": "list", "data": [], "model": "m", "usage": {"prompt_tokens": 900, "total_tokens": 900}}
    plain.script = whole(told)
    body = {"model": "plain", "input": "x" * 400, "max_tokens": 10_000}
    assert ask(metered, body, issued.secret, "/v1/embeddings").status == 200
    again = ask(metered, body, issued.secret, "/v1/embeddings")
    assert again.status == 200
    line = record(metered, again.header("x-request-id"))
    assert (line["usage"]["prompt_tokens"], line["usage"]["completion_tokens"]) == (900, 0)
    too_much = ask(metered, {"model": "plain", "input": "x" * 500_000}, issued.secret, "/v1/embeddings")
    assert (too_much.status, too_much.error["code"]) == (400, "exceeds_limit")


@pytest.mark.parametrize("limit", [Limit(tpm=50), Limit(otpm=50), day(tokens=50), Limit(tpm=200, otpm=1)])
def test_small_limits_let_small_calls_in(metered: GatewayProcess, plain: Target, limit: Limit) -> None:
    """BerriAI/litellm#28805: with less than what is assumed of an answer, nothing ever came in."""
    issued = metered.issue(limit=limit)
    plain.script = used(prompt=5, completion=1)
    first = ask(metered, chat("plain"), issued.secret)
    assert first.status == 200
    assert first.header("x-ratelimit-remaining-tokens") in (None, "0", str((limit.tpm or 0) - 50))


def test_nearly_all_of_a_small_budget_can_be_spent(metered: GatewayProcess, plain: Target) -> None:
    """By calls that bound their answers: what is kept back is what the last of them might have needed."""
    issued = metered.issue(limit=day(tokens=1000))
    plain.script = used(prompt=50, completion=50)
    statuses = [ask(metered, chat("plain", max_tokens=50), issued.secret).status for _ in range(12)]
    assert statuses.count(200) in (8, 9, 10)


def test_images_do_not_make_a_call_too_large(metered: GatewayProcess, plain: Target) -> None:
    pixels = base64.b64encode(random.Random(1).randbytes(300_000)).decode()
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + pixels}}] * 2
    body = {"model": "plain", "messages": [{"role": "user", "content": parts}], "max_tokens": 100}
    issued = metered.issue(limit=Limit(tpm=5000, itpm=4000))
    assert ask(metered, body, issued.secret).status == 200


@pytest.mark.parametrize("n", [-1, 0, "3", 2.5, 1e3, None, True, [2], {"n": 2}, -(10**40)])
@pytest.mark.parametrize("name", ["n", "max_tokens", "max_completion_tokens", "best_of"])
def test_odd_numbers_are_the_targets_to_refuse(metered: GatewayProcess, plain: Target, name: str, n: Any) -> None:
    issued = metered.issue(limit=Limit(tpm=5000))
    reply = ask(metered, chat("plain", **{name: n}), issued.secret)
    assert reply.status == 200
    assert plain.calls[0].json()[name] == n


@pytest.mark.parametrize("digits", [15, 18, 19, 25, 300])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_numbers_however_huge_are_no_way_around_a_limit(
    metered: GatewayProcess, plain: Target, name: str, digits: int
) -> None:
    issued = metered.issue(limit=Limit(tpm=5000))
    refused = ask(metered, chat("plain", **{name: 10**digits}), issued.secret)
    assert (refused.status, refused.error["code"]) == (400, "exceeds_limit")


def test_a_budget_of_tokens_ends(metered: GatewayProcess, plain: Target) -> None:
    issued = metered.issue(limit=day(tokens=1000))
    plain.script = used(prompt=300, completion=200)
    before = samples(metered)
    for _ in range(2):
        granted = ask(metered, chat("plain", max_tokens=250), issued.secret)
        assert granted.status == 200
        assert granted.header("x-ratelimit-remaining-tokens") is None
    denied = ask(metered, chat("plain", max_tokens=250), issued.secret)
    assert denied.status == 429
    assert (denied.error["code"], denied.error["type"]) == ("insufficient_quota", "rate_limit_error")
    assert "1000 tokens" in denied.error["message"] and "day" in denied.error["message"]
    assert denied.header("x-should-retry") == "false"
    assert int(denied.header("retry-after") or 0) <= 120
    line = record(metered, denied.header("x-request-id"))
    assert (line["outcome"], line["error_type"]) == ("shed", "policy_out_of_budget")
    grown = [total(each, "limit_denials_total", scope="key", dimension="budget") for each in (before, samples(metered))]
    assert grown[1] - grown[0] == 1
    assert len(plain.calls) == 2


def test_a_budget_that_calls_under_way_have_reserved_is_worth_another_try(
    metered: GatewayProcess, plain: Target
) -> None:
    issued = metered.issue(limit=day(tokens=1000))
    plain.scripts = [[Act.STALL]]
    with wire(metered, request(chat("plain", max_tokens=700), issued.secret)):
        plain.wait_for_calls()
        denied = ask(metered, chat("plain", max_tokens=700), issued.secret)
        assert (denied.status, denied.error["code"]) == (429, "insufficient_quota")
        assert denied.header("x-should-retry") == "true"
        assert int(denied.header("retry-after-ms") or 0) <= 1000

    def granted() -> bool | None:
        return ask(metered, chat("plain", max_tokens=700), issued.secret).status == 200 or None

    eventually(granted, "the reservation is given back")


def test_a_budget_of_money_ends(metered: GatewayProcess, targets: dict[str, Target]) -> None:
    """A micro-unit for a prompt token, a tenth of one for a cached one, ten for one of the answer."""
    issued = metered.issue(limit=day(cost_micros=2000))
    counts = usage(400, 50) | {"prompt_tokens_details": {"cached_tokens": 100}}
    targets["priced"].script = used(400, 50, usage=counts)
    before = samples(metered)
    costs = []
    for _ in range(2):
        granted = ask(metered, chat("priced", max_tokens=50), issued.secret)
        assert granted.status == 200
        costs.append(record(metered, granted.header("x-request-id"))["cost_micros"])
    assert costs == [300 + 10 + 500] * 2
    denied = ask(metered, chat("priced", max_tokens=50), issued.secret)
    assert (denied.status, denied.error["code"]) == (429, "insufficient_quota")
    assert denied.header("x-should-retry") == "false"
    assert "money" in denied.error["message"] and "2000" not in denied.error["message"]
    after = samples(metered)
    name = "cost_micros_total"
    assert total(after, name, route="priced") - total(before, name, route="priced") == 1620
    assert total(after, name, route="plain") == 0
    assert ask(metered, chat("plain", max_tokens=50), issued.secret).status == 200, "a model that costs nothing"


def test_every_record_of_a_priced_model_has_its_cost(metered: GatewayProcess, targets: dict[str, Target]) -> None:
    key = metered.issue().secret
    target = targets["priced"]
    ids = []
    for streamed, script in (
        (False, used(100, 10)),
        (True, stream(event("x"), event(finish="stop"), usage_event(100, 10), DONE)),
        (True, stream(event("x"), usage_event(100, 10), Act.CUT)),
    ):
        target.scripts = [script]
        ids.append(ask(metered, chat("priced", stream=streamed), key).header("x-request-id"))
    assert [record(metered, each)["cost_micros"] for each in ids] == [200] * 3
    target.script = stream(event("x"), event("y"), Act.CUT)
    line = record(metered, ask(metered, chat("priced", stream=True), key).header("x-request-id"))
    assert line["usage"]["source"] == "counted"
    assert line["cost_micros"] == line["usage"]["prompt_tokens"] + 20
    line = record(metered, ask(metered, chat("plain"), key).header("x-request-id"))
    assert line["cost_micros"] == 0


def test_where_the_counts_come_from_is_a_metric(metered: GatewayProcess, plain: Target) -> None:
    key = metered.issue().secret
    nobody = answer()
    del nobody["usage"]
    plain.scripts = [
        whole(answer()),
        whole(nobody),
        stream(event("x"), event(finish="stop"), usage_event(), DONE),
        stream(event("x"), event(finish="stop"), DONE),
        whole({}, 500),
    ]
    before = samples(metered)
    for streamed in (False, False, True, True, False):
        ask(metered, chat("plain", stream=streamed), key)
    after = samples(metered)
    for source, count in (("upstream", 2), ("counted", 1), ("estimated", 1)):
        labels = {"route": "plain", "source": source}
        grown = [total(each, "usage_source_total", **labels) for each in (before, after)]
        assert grown[1] - grown[0] == count, source


def test_a_tenants_keys_share_its_limits(metered: GatewayProcess, plain: Target) -> None:
    tenant = f"team-{time.monotonic_ns()}"
    metered.said("tenants", "set", tenant, "--rpm", "5", "--tpm", "10k")
    one, other = (metered.issue(tenant=tenant, limit=Limit(rpm=4)) for _ in range(2))
    before = samples(metered)
    replies = [ask(metered, chat("plain", max_tokens=5), each.secret) for each in (one, other) * 4]
    assert [reply.status for reply in replies].count(200) == 5
    assert [reply.header("x-ratelimit-remaining-requests") for reply in replies[:5]] == ["3", "3", "2", "1", "0"]
    denied = replies[-1]
    assert denied.status == 429 and "This tenant" in denied.error["message"]
    assert denied.header("x-ratelimit-limit-requests") == "5"
    labels = {"scope": "tenant", "dimension": "rpm"}
    grown = [total(each, "limit_denials_total", **labels) for each in (before, samples(metered))]
    assert grown[1] - grown[0] == 3
    stranger = metered.issue(limit=Limit(rpm=4))
    assert ask(metered, chat("plain"), stranger.secret).status == 200


def test_a_tenants_budget_is_above_those_of_its_keys(metered: GatewayProcess, plain: Target) -> None:
    tenant = f"team-{time.monotonic_ns()}"
    metered.said("tenants", "set", tenant, "--budget", "day:tokens=1000")
    one, other = (metered.issue(tenant=tenant, limit=day(tokens=900)) for _ in range(2))
    plain.script = used(prompt=200, completion=500)
    assert ask(metered, chat("plain", max_tokens=500), one.secret).status == 200
    denied = ask(metered, chat("plain", max_tokens=500), other.secret)
    assert (denied.status, denied.error["code"]) == (429, "insufficient_quota")
    assert "This tenant" in denied.error["message"]
    assert ask(metered, chat("plain", max_tokens=50), other.secret).status == 200


def test_a_change_of_a_tenant_holds_for_the_next_call(metered: GatewayProcess, plain: Target) -> None:
    tenant = f"team-{time.monotonic_ns()}"
    metered.said("tenants", "set", tenant, "--rpm", "100")
    issued = metered.issue(tenant=tenant)
    assert ask(metered, chat("plain"), issued.secret).header("x-ratelimit-limit-requests") == "100"
    metered.said("tenants", "set", tenant, "--rpm", "2")
    replies = [ask(metered, chat("plain"), issued.secret) for _ in range(3)]
    assert {reply.header("x-ratelimit-limit-requests") for reply in replies} == {"2"}
    assert replies[-1].status == 429


def test_all_keys_share_a_models_limits(metered: GatewayProcess, targets: dict[str, Target]) -> None:
    keys = [metered.issue().secret for _ in range(3)]
    before = samples(metered)
    replies = [ask(metered, chat("modest"), key) for key in keys * 3]
    assert [reply.status for reply in replies].count(200) == 4
    assert "This model" in replies[-1].error["message"]
    labels = {"scope": "model", "dimension": "rpm"}
    grown = [total(each, "limit_denials_total", **labels) for each in (before, samples(metered))]
    assert grown[1] - grown[0] == 5
    assert ask(metered, chat("plain"), keys[0]).status == 200


def test_a_key_on_a_model_has_limits_of_its_own(metered: GatewayProcess, targets: dict[str, Target]) -> None:
    """Of the table for each key, of the key where that says something else."""
    usual = metered.issue(limit=Limit(rpm=50))
    special = metered.issue(limit=Limit(rpm=50), model_limits={"private": Limit(rpm=3)})
    for issued, most in ((usual, 2), (special, 3)):
        replies = [ask(metered, chat("private"), issued.secret) for _ in range(5)]
        assert [reply.status for reply in replies] == [200] * most + [429] * (5 - most)
        assert "This key on this model" in replies[-1].error["message"]
        assert replies[0].header("x-ratelimit-limit-requests") == str(most), "the tightest"
        assert ask(metered, chat("plain"), issued.secret).header("x-ratelimit-limit-requests") == "50"
    labels = {"scope": "key_model", "dimension": "rpm"}
    assert total(samples(metered), "limit_denials_total", **labels) >= 5


def test_what_one_dimension_denies_charges_no_other(metered: GatewayProcess, plain: Target) -> None:
    both = Limit(rpm=100, tpm=1000, concurrency=5, budget=Budget(month=Allowance(tokens=100_000)))
    issued = metered.issue(limit=both)
    plain.script = used(prompt=100, completion=880)
    assert ask(metered, chat("plain", max_tokens=890), issued.secret).status == 200
    for _ in range(30):
        denied = ask(metered, chat("plain", max_tokens=890), issued.secret)
        assert denied.status == 429
        assert denied.header("x-ratelimit-remaining-requests") in ("98", "99", "100")


@pytest.mark.parametrize("prompt", [-5, -(10**9), 10**25])
def test_a_target_that_lies_about_its_usage_spoils_nothing(metered: GatewayProcess, plain: Target, prompt: int) -> None:
    issued = metered.issue(limit=Limit(rpm=100, concurrency=2, budget=Budget(day=Allowance(tokens=1000))))
    plain.script = used(prompt=prompt, completion=prompt)
    reply = ask(metered, chat("plain", max_tokens=300), issued.secret)
    assert reply.status == 200
    line = record(metered, reply.header("x-request-id"))
    assert line["usage"]["prompt_tokens"] >= 0
    plain.script = used(prompt=500, completion=400)
    statuses = [ask(metered, chat("plain", max_tokens=300), issued.secret).status for _ in range(4)]
    if prompt < 0:
        assert statuses == [200, 200, 429, 429] or statuses == [200, 429, 429, 429]
    else:
        assert statuses == [429] * 4

"""Budgets, prices, and limits of tenants and models over the wire, and what the records tell of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess
from harness.redis_server import RedisServer
from harness.upstream import DONE, Act, Target, Upstream, answer, event, stream, usage, usage_event, whole
from integration.client import ask, chat, eventually, record, request, samples, total, wire
from integration.metered import day, metered_gateway, renewed_targets, used

from gateway.core.types import Allowance, Budget, Limit


@pytest.fixture(scope="module", params=["memory", "redis"])
def metered(request: pytest.FixtureRequest, upstream: Upstream, redis: RedisServer) -> Iterator[GatewayProcess]:
    """One worker, without Redis and with it."""
    with metered_gateway(upstream, redis.url if request.param == "redis" else None) as started:
        yield started


@pytest.fixture
def targets(upstream: Upstream) -> dict[str, Target]:
    """The target of each route, as new."""
    return renewed_targets(upstream)


@pytest.fixture
def plain(targets: dict[str, Target]) -> Target:
    """The target of the route "plain"."""
    return targets["plain"]


def test_of_a_small_budget_all_can_be_spent(metered: GatewayProcess, plain: Target) -> None:
    """Also by calls that do not bound their answers, whatever is assumed of these."""
    issued = metered.issue(limit=day(tokens=100))
    plain.script = used(prompt=5, completion=5)
    statuses = [ask(metered, chat("plain"), issued.secret).status for _ in range(12)]
    assert 9 <= statuses.count(200) <= 10


def test_nearly_all_of_a_small_budget_can_be_spent(metered: GatewayProcess, plain: Target) -> None:
    """By calls that bound their answers: what is kept back is what the last of them might have needed."""
    issued = metered.issue(limit=day(tokens=1000))
    plain.script = used(prompt=50, completion=50)
    statuses = [ask(metered, chat("plain", max_tokens=50), issued.secret).status for _ in range(12)]
    assert statuses.count(200) in (8, 9, 10)


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
    metered.said("tenants", "set", tenant, "--rpm", "100000")
    issued = metered.issue(tenant=tenant)
    assert ask(metered, chat("plain"), issued.secret).header("x-ratelimit-limit-requests") == "100000"
    metered.said("tenants", "set", tenant, "--rpm", "2")
    replies = [ask(metered, chat("plain"), issued.secret) for _ in range(6)]
    assert {reply.header("x-ratelimit-limit-requests") for reply in replies} == {"2"}
    assert [reply.status for reply in replies].count(200) == 2, "the call before the change has hardly used anything"


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
    assert statuses in ([200, 200, 429, 429], [200, 429, 429, 429]), "what cannot be is counted by us instead"

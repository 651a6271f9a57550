"""Calls of all sizes over the wire: too large for good, small under small limits, odd numbers, images."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream, whole
from integration.client import ask, chat, record
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
    assert ask(metered, chat("plain"), issued.secret).status == 200


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

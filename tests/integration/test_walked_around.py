"""Ways around limits, tried on a real gateway over Redis: each is charged, bounded or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream
from integration.client import ask

from gateway.core.types import Limit

COMPLETIONS: Final = "/v1/completions"
CONTEXT: Final = 300
ROUTES: Final = ("plain", "narrow")


@pytest.fixture(scope="module")
def walled(upstream: Upstream, redis: RedisServer) -> Iterator[GatewayProcess]:
    """One worker. "narrow" has a context of 300 tokens."""

    def route(name: str, **fields: Any) -> dict[str, Any]:
        return {
            "targets": [{"name": f"w-{name}", "backend": "openai", "url": upstream.target(f"w-{name}").url, **fields}]
        }

    routes = {"plain": route("plain"), "narrow": route("narrow", context=CONTEXT)}
    with gateway_process(json.dumps({"routes": routes}), redis_url=redis.url) as started:
        yield started


@pytest.fixture
def targets(upstream: Upstream) -> dict[str, Target]:
    """The target of each route, as new."""
    found = {name: upstream.target(f"w-{name}") for name in ROUTES}
    for each in found.values():
        each.restore()
    return found


def prompts(model: str, prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, **fields}


def test_lists_of_prompts_stay_within_the_budget(walled: GatewayProcess, targets: dict[str, Target]) -> None:
    issued = walled.issue(limit=Limit(otpm=20_000))
    body = prompts("plain", ["x"] * 100, max_tokens=100)  # 10,000
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda _: ask(walled, body, issued.secret, COMPLETIONS), range(12)))
    huge = ask(walled, prompts("plain", ["x"] * 1000, max_tokens=100), issued.secret, COMPLETIONS)
    assert (huge.status, huge.error["code"]) == (400, "exceeds_limit")
    first = next(reply for reply in replies if reply.status == 200)
    assert first.header("x-ratelimit-limit-tokens") == "20000"
    assert {reply.status for reply in replies} <= {200, 429}


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (COMPLETIONS, "prompt", ["x"] * 2049),
        (COMPLETIONS, "prompt", [[1, 2]] * 2049),
        ("/v1/embeddings", "input", ["x"] * 2049),
        ("/v1/embeddings", "input", ["x"] * 150_000),
    ],
    ids=["texts", "token ids", "inputs", "in windows"],
)
def test_more_prompts_than_the_cap_are_refused(
    walled: GatewayProcess, targets: dict[str, Target], path: str, name: str, value: Any
) -> None:
    key = walled.issue().secret
    refused = ask(walled, {"model": "plain", name: value}, key, path)
    assert refused.status == 400
    assert "2048" in refused.error["message"] and "bodies.prompts" in refused.error["message"]
    assert not targets["plain"].calls
    assert ask(walled, {"model": "plain", name: value[:2048]}, key, path).status == 200


def test_the_context_is_checked_for_each_prompt(walled: GatewayProcess, targets: dict[str, Target]) -> None:
    key = walled.issue().secret
    many = ask(walled, prompts("narrow", ["a short prompt "] * 1000, max_tokens=50), key, COMPLETIONS)
    assert many.status == 200, "each of them has the context to itself"
    long = ask(walled, prompts("narrow", ["x", "word " * 2000], max_tokens=50), key, COMPLETIONS)
    assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
    assert len(targets["narrow"].calls) == 1

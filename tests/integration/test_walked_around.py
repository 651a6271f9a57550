"""Ways around limits, tried on a real gateway over Redis: each is charged, bounded or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import DONE, Act, Target, Upstream, event, stream, usage, usage_event
from integration.client import ask, chat, request, samples, total, wire
from integration.metered import of, used

from gateway.core.types import Allowance, Budget, Limit

COMPLETIONS: Final = "/v1/completions"
CONTEXT: Final = 300
ROUTES: Final = ("plain", "narrow", "strict", "told")


@pytest.fixture(scope="module")
def walled(upstream: Upstream, redis: RedisServer) -> Iterator[GatewayProcess]:
    """One worker. "narrow" has a context of 300 tokens, and the target of "told" is asked for usage in every event."""

    def route(name: str, **fields: Any) -> dict[str, Any]:
        spec = {"name": f"w-{name}", "backend": "openai", "url": upstream.target(f"w-{name}").url, **fields}
        return {"targets": [spec]}

    routes = {
        "plain": route("plain"),
        "strict": route("strict") | {"body": {"deny": ["cache_salt", "user"]}},
        "narrow": route("narrow", context=CONTEXT),
        "told": route("told", backend="vllm", continuous_usage=True),
    }
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


@pytest.mark.parametrize(
    "content", ["data: ", '"data:', [{"type": "image_url", "image_url": {"url": "data: "}}]], ids=str
)
@pytest.mark.parametrize("size", [100_000, 2_500_000])
def test_text_that_looks_like_media_is_reserved_as_text(
    walled: GatewayProcess, targets: dict[str, Target], content: Any, size: int
) -> None:
    issued = walled.issue(limit=Limit(itpm=10_000))
    text = "word " * (size // 5)
    written = json.dumps({"model": "plain", "messages": [{"role": "user", "content": content}]})
    body = written.replace("data: ", "data: " + text).replace('"data:', '"data:' + text).encode()
    refused = ask(walled, body, issued.secret)
    assert (refused.status, refused.error["code"]) == (400, "exceeds_limit")
    assert not targets["plain"].calls


def test_a_stream_left_early_is_charged_its_text(walled: GatewayProcess, targets: dict[str, Target]) -> None:
    """Each event holds about twenty tokens, and no usage has come yet."""
    issued = walled.issue(limit=Limit(otpm=2000))
    targets["plain"].script = stream(*[event("word " * 20)] * 49, event("the last"), Act.STALL)
    with wire(walled, request(chat("plain", stream=True, max_tokens=1500), issued.secret)) as connection:
        connection.read_until(b"the last")
    line = of(walled, issued)
    assert (line["outcome"], line["usage"]["source"]) == ("gone", "counted")
    assert 49 * 100 / 8 <= line["usage"]["completion_tokens"] <= 1500
    after = ask(walled, chat("plain", max_tokens=1500), issued.secret)
    assert after.status == 429, "what came is charged"


@pytest.mark.parametrize("asks", [False, True])
def test_a_stream_left_early_is_charged_what_its_target_told_last(
    walled: GatewayProcess, targets: dict[str, Target], asks: bool
) -> None:
    """Each event holds some tokens, of two choices, and tells the usage of its own."""
    issued = walled.issue(limit=Limit(otpm=100_000))
    said = [
        event(choices=[{"index": index, "delta": {"content": f"<{number}>"}}], usage=usage(31, number * 7))
        for number in range(1, 21)
        for index in (0, 1)
    ]
    targets["told"].script = stream(*said, Act.STALL)
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}} if asks else {}
    body = chat("told", stream=True, max_tokens=1500, n=2, **options)
    with wire(walled, request(body, issued.secret)) as connection:
        shown = connection.read_until(b"<20>")
        if b"<20>" not in shown.partition(b"<20>")[2]:
            shown += connection.read_until(b"<20>")
    assert (b"usage" in shown) is asks
    sent = targets["told"].calls[0].json()["stream_options"]
    assert sent == {"include_usage": True, "continuous_usage_stats": True}
    line = of(walled, issued)
    assert (line["outcome"], line["usage"]["source"]) == ("gone", "upstream")
    assert (line["usage"]["prompt_tokens"], line["usage"]["completion_tokens"]) == (31, 280)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_lie_of_a_target_is_bounded(walled: GatewayProcess, targets: dict[str, Target], streamed: bool) -> None:
    issued = walled.issue(limit=Limit(otpm=100_000, budget=Budget(day=Allowance(tokens=1_000_000))))
    lie = stream(event("Hi"), event(finish="stop"), usage_event(10**12, 10**12), DONE)
    targets["plain"].scripts = [lie if streamed else used(prompt=10**12, completion=10**12)]
    before = total(samples(walled), "usage_refused_total", route="plain", target="w-plain")
    assert ask(walled, chat("plain", max_tokens=500, stream=streamed), issued.secret).status == 200
    line = of(walled, issued)
    assert line["usage"]["source"] == "capped"
    assert (line["usage"]["prompt_tokens"], line["usage"]["completion_tokens"]) < (10_000, 565)
    assert line["usage"]["completion_tokens"] == 564
    assert total(samples(walled), "usage_refused_total", route="plain", target="w-plain") == before + 1
    assert ask(walled, chat("plain", max_tokens=500), issued.secret).status == 200, "its budget is not eaten up"


@pytest.mark.parametrize(
    ("model", "field", "status"),
    [
        ("plain", '"priority": -1000', 400),
        ("plain", '"priorit\\u0079": 0', 400),
        ("plain", '"cache_salt": "x"', 200),
        ("strict", '"cache_salt": "x"', 400),
        ("strict", '"user": null', 400),
        ("strict", '"priority": 1', 200),
        ("strict", '"metadata": {"user": "x"}', 200),
    ],
)
def test_fields_that_act_on_others_are_not_taken(
    walled: GatewayProcess, targets: dict[str, Target], model: str, field: str, status: int
) -> None:
    body = '{"model": "%s", "messages": [{"role": "user", "content": "Hi"}], %s}' % (model, field)  # noqa: UP031
    reply = ask(walled, body.encode(), walled.issue(limit=Limit(rpm=10)).secret)
    assert reply.status == status
    assert len(targets[model].calls) == (status == 200)
    if status == 400:
        assert reply.error["param"] in field.encode().decode("unicode_escape")

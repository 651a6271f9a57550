"""What the table says of policies, tiers, canaries, queues and other routes, and what it cannot say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config import Mistake, Mistakes, Table, parse_table


def target(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "backend": "vllm", "url": f"http://{name}", **fields}


def text(**routes: Any) -> str:
    """A table; `fields` of each route beside a target of its own."""
    found = {name: {"targets": [target(f"t-{name}")], **fields} for name, fields in routes.items()}
    return json.dumps({"routes": found}, indent=1)


def good(**routes: Any) -> Table:
    table, warnings = parse_table(text(**routes), "t", {})
    assert not warnings
    return table


def mistake(**routes: Any) -> Mistake:
    with pytest.raises(Mistakes) as caught:
        parse_table(text(**routes), "t", {})
    (found,) = caught.value.found
    return found


def line(what: str, **routes: Any) -> int:
    content = text(**routes)
    return content[: content.index(what)].count("\n") + 1


def test_defaults() -> None:
    route = good(one={}).routes["one"]
    assert route.policy == "home-cost" and route.fallback_route is None and route.shadow is None
    assert (route.queue.calls, route.queue.size, route.queue_wait) == (256, 64 * 2**20, 10.0)
    spec = route.targets[0]
    assert (spec.canary, spec.max_inflight, spec.context, spec.kv_tokens) == (None, None, None, None)


def test_all_that_can_be_said() -> None:
    table = good(
        one={
            "policy": "session",
            "targets": [target("a", max_inflight=64, context="32k", kv_tokens="500k"), target("b", canary=0.05)],
            "fallback": [target("c"), target("d", tier=2)],
            "fallback_route": "two",
            "queue": {"calls": 0, "size": "1MiB", "wait": "2s"},
            "shadow": {"target": target("s"), "share": 0.1, "concurrency": 2},
        },
        two={},
    )
    route = table.routes["one"]
    assert [each.tier for each in route.fallback] == [1, 2]
    assert (route.targets[0].context, route.targets[0].kv_tokens) == (32_000, 500_000)
    assert [spec.name for _, _, spec in table.targets()] == ["a", "b", "c", "d", "s", "t-two"]


@pytest.mark.parametrize("policy", ["home-cost", "least-tokens", "round-robin", "session"])
def test_our_policies_are_known(policy: str) -> None:
    assert good(one={"policy": policy}).routes["one"].policy == policy


def test_a_policy_that_is_not_installed() -> None:
    found = mistake(one={"policy": "chance"})
    assert found.line == line('"policy"', one={"policy": "chance"})
    assert "'chance'" in found.message and "home-cost, least-tokens, round-robin, session" in found.message


def test_a_fallback_route_must_be_there() -> None:
    found = mistake(one={"fallback_route": "too"}, two={})
    assert found.line == line('"fallback_route"', one={"fallback_route": "too"}, two={})
    assert "'too'" in found.message and "two" in found.message


def test_fallback_routes_must_end() -> None:
    assert "one -> one" in mistake(one={"fallback_route": "one"}).message
    with pytest.raises(Mistakes, match="one -> two -> one"):
        good(one={"fallback_route": "two"}, two={"fallback_route": "one"})
    assert good(one={"fallback_route": "two"}, two={"fallback_route": "three"}, three={})


@pytest.mark.parametrize(
    "targets",
    [
        [target("a", canary=0.1)],
        [target("a", canary=0.5), target("b", canary=0.5), target("c")],
    ],
)
def test_canaries_leave_something_to_others(targets: list[dict[str, Any]]) -> None:
    assert "canaries" in mistake(one={"targets": targets}).message


@pytest.mark.parametrize("backend", ["vllm", "sglang"])
def test_usage_in_every_event_can_be_asked_of_servers_that_tell_it(backend: str) -> None:
    table = good(one={"targets": [target("a", backend=backend, continuous_usage=True), target("b")]})
    assert [spec.continuous_usage for spec in table.routes["one"].targets] == [True, False]


@pytest.mark.parametrize("backend", ["openai", "tgi", "llamacpp"])
@pytest.mark.parametrize("place", ["targets", "fallback", "shadow"])
def test_usage_in_every_event_cannot_be_asked_of_others(backend: str, place: str) -> None:
    spec = target("a", backend=backend, continuous_usage=True)
    found = mistake(one={place: {"target": spec, "share": 0.1} if place == "shadow" else [spec]})
    assert repr(backend) in found.message and "sglang, vllm" in found.message


def test_usage_in_every_event_needs_the_wish_for_it() -> None:
    fields = {"targets": [target("a", continuous_usage=True, usage_event=False)]}
    found = mistake(one=fields)
    assert found.line == line('"continuous_usage"', one=fields)
    assert "'usage_event: false'" in found.message


def test_usage_in_every_event_cannot_be_had_of_a_target_whose_text_is_parsed() -> None:
    fields = {"targets": [target("a", continuous_usage=True, tool_parser="hermes")]}
    assert "'tool_parser'" in mistake(one=fields).message


def test_rules_for_bodies_may_hold_any_value() -> None:
    text = """
routes:
  one:
    targets: [{name: a, backend: vllm, url: "http://a"}]
    body:
      deny: [priority, logit_bias]
      set: {max_tokens: 500, temperature: 0.2, "yes": true, user: null, note: 2026-11-27, x: {a: [1, "x", null, {}]}}
      default: {stop: ["\\n", "${WORD}"]}
"""
    body = parse_table(text, "t", {"WORD": "end"})[0].routes["one"].body
    assert body.set == {
        "max_tokens": 500,
        "temperature": 0.2,
        "yes": True,
        "user": None,
        "note": "2026-11-27",
        "x": {"a": [1, "x", None, {}]},
    }
    assert body.default == {"stop": ["\n", "end"]} and body.deny == ("priority", "logit_bias")
    assert type(body.set["max_tokens"]) is int


def test_what_is_denied_where_nothing_is_said() -> None:
    body = good(one={"body": {"set": {"priority": 3}}}).routes["one"].body
    assert "priority" in body.deny and "kv_transfer_params" in body.deny and "cache_salt" not in body.deny


@pytest.mark.parametrize(
    ("body", "where", "told"),
    [
        ({"deny": ["model"]}, '"deny"', "every call"),
        ({"set": {"stream": True}}, '"stream"', "makes the call"),
        ({"set": {"max_tokens": "many"}}, '"max_tokens"', "whole number"),
        ({"set": {"seed": 1}, "default": {"seed": 2}}, '"seed": 2', "never missing"),
        ({"default": {"priority": 2}}, '"priority"', "'deny'"),
        ({"default": {"seed": None}}, '"seed"', "null"),
    ],
)
def test_rules_for_bodies_that_cannot_be_meant(body: dict[str, Any], where: str, told: str) -> None:
    found = mistake(one={"body": body})
    assert found.line == line(where, one={"body": body})
    assert told in found.message and "'one'" in found.message


def test_nobody_waits_longer_than_for_the_first_output() -> None:
    found = mistake(one={"queue": {"wait": "6m"}})
    assert "360 s" in found.message and "300 s" in found.message


def test_calls_can_only_be_held_where_some_may_wait() -> None:
    found = mistake(one={"hold": "30s", "queue": {"calls": 0}})
    assert found.line == line('"hold"', one={"hold": "30s", "queue": {"calls": 0}})
    assert "'queue.calls' is 0" in found.message
    assert good(one={"hold": "30s"}).routes["one"].hold == 30.0


@pytest.mark.parametrize(("hold", "said"), [("100ms", ["hardly noticed"]), ("1s", []), ("10m", []), ("11m", ["660 s"])])
def test_a_hold_that_helps_nobody_is_warned_of(hold: str, said: list[str]) -> None:
    warnings = [found.message for found in parse_table(text(one={"hold": hold}), "t", {})[1]]
    assert len(warnings) == len(said) and all(word in found for word, found in zip(said, warnings, strict=True))


@pytest.mark.parametrize(
    ("cache", "told"),
    [
        ({"ttl": "500ms"}, "from 1s to 30d"),
        ({"ttl": "31d"}, "from 1s to 30d"),
        ({"largest": "17MiB"}, "16MiB"),
        ({"wait": "2s"}, "at most 1s"),
        ({"calls": "all"}, "deterministic, asked"),
    ],
)
def test_what_no_response_cache_can_do(cache: dict[str, Any], told: str) -> None:
    found = mistake(one={"response_cache": cache})
    assert found.line == line(f'"{next(iter(cache))}"', one={"response_cache": cache})
    assert told in found.message
    assert good(one={"response_cache": {}}).routes["one"].response_cache is not None


def test_a_price_of_kept_answers_needs_some() -> None:
    price = {"input": 1, "output": 1, "cached_answer": "0.5"}
    assert "no 'response_cache'" in warned(one={"price": price})[0]
    assert warned(one={"price": price, "response_cache": {}}) == []


def test_a_shadow_has_a_name_and_place_like_other_targets() -> None:
    shadow = {"target": target("t-one"), "share": 0.1}
    with pytest.raises(Mistakes, match="used twice"):
        good(one={"shadow": shadow})
    with pytest.raises(Mistakes, match="needs one of 'url', 'launch' and 'discover'"):
        good(one={"shadow": {"target": {"name": "s", "backend": "vllm"}, "share": 0.1}})


def warned(**routes: Any) -> list[str]:
    return [each.message for each in parse_table(text(**routes), "t", {})[1]]


def test_tiers_that_no_failing_call_comes_to() -> None:
    full = {"targets": [target("a"), target("b"), target("c")], "retry": {"attempts": 3}}
    tiers = [target("d"), target("e"), target("f"), target("g", tier=2), target("h", tier=2)]
    (told,) = warned(one={**full, "fallback": tiers})
    assert "tier 2 (g, h)" in told and "6 targets" in told
    assert not warned(one={**full, "fallback": tiers, "retry": {"attempts": 2}})
    (told,) = warned(one={**full, "fallback": tiers[:3], "fallback_route": "two"}, two={})
    assert "tier 0 of route 'two' (t-two)" in told


@pytest.mark.parametrize("base", ["http://a:8000", "https://proxy/serve/a", "http://a/v1beta"])
@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/chat/completions", "/v1/models", "/chat/completions", "/v1/embeddings/", "/health"]
)
def test_a_url_of_one_request_is_no_base_url(base: str, path: str) -> None:
    assert f"write the base URL, {base!r}" in mistake(one={"targets": [target("a") | {"url": base + path}]}).message


@pytest.mark.parametrize("url", ["http://a/v1beta", "http://a/v1/serve/b", "http://health", "unix:///run/v1"])
def test_other_paths_may_lead_to_a_server(url: str) -> None:
    assert good(one={"targets": [target("a") | {"url": url}]})

"""What a table says of routing: tiers, routes that stand in, canaries, queues, shadows, and the tests of all that."""

from __future__ import annotations

import pytest

from gateway.config import Mistake, Mistakes, Table, parse_table


def table(text: str) -> Table:
    parsed, warnings = parse_table(text, "t", {})
    assert not warnings
    return parsed


def mistakes(text: str) -> list[Mistake]:
    with pytest.raises(Mistakes) as caught:
        parse_table(text, "t", {})
    return caught.value.found


def one(extra: str = "") -> str:
    return f"routes: {{one: {{targets: [{server('a')}]{extra}}}}}\n"


def server(name: str, **values: object) -> str:
    more = "".join(f", {key}: {value}" for key, value in values.items())
    return f"{{name: {name}, backend: vllm, url: 'http://{name}'{more}}}"


def routed(**routes: str) -> str:
    """Routes, each with one target of its own and what else is said."""
    return "routes:\n" + "".join(
        f"  {name}: {{targets: [{server('t-' + name)}]{more}}}\n" for name, more in routes.items()
    )


def test_routing_has_its_defaults() -> None:
    spec = table(one()).routes["one"]
    assert (spec.policy, spec.fallback_route, spec.shadow) == ("home-cost", None, None)
    assert (spec.queue.calls, spec.queue.size, spec.queue_wait) == (256, 64 * 2**20, 10.0)
    target = spec.targets[0]
    assert (target.max_inflight, target.canary, target.context, target.kv_tokens) == (None, None, None, None)


def test_routing_is_read() -> None:
    extra = """, fallback: [{name: f, backend: tgi, url: 'http://f', tier: 2}, {name: g, backend: tgi, url: 'http://g'}],
      policy: session, queue: {calls: 0, size: 1MiB, wait: 1500ms},
      shadow: {target: {name: s, backend: vllm, url: 'http://s'}, share: 0.1}"""
    spec = table(one(extra)).routes["one"]
    assert [(each.name, each.tier) for each in spec.fallback] == [("f", 2), ("g", 1)]
    assert (spec.policy, spec.queue.calls, spec.queue.size, spec.queue_wait) == ("session", 0, 2**20, 1.5)
    assert spec.shadow is not None and (spec.shadow.share, spec.shadow.concurrency) == (0.1, 4)
    bounds = server("a", max_inflight=64, canary=0.05, context="32k", kv_tokens="500k")
    target = table(f"routes: {{one: {{targets: [{bounds}, {server('b')}]}}}}").routes["one"].targets[0]
    assert (target.max_inflight, target.canary, target.context, target.kv_tokens) == (64, 0.05, 32_000, 500_000)


@pytest.mark.parametrize("policy", ["home-cost", "least-tokens", "round-robin", "session"])
def test_our_policies_are_known(policy: str) -> None:
    assert table(one(f", policy: {policy}")).routes["one"].policy == policy


def test_an_unknown_policy_is_told_which_there_are() -> None:
    (mistake,) = mistakes(one(", policy: random"))
    for name in ("'random'", "home-cost", "least-tokens", "round-robin", "session"):
        assert name in mistake.message


@pytest.mark.parametrize(("first_output", "wait"), [("60s", 10.0), ("8s", 4.0), ("100ms", 0.05)])
def test_who_says_nothing_waits_for_half_of_the_first_outputs_time(first_output: str, wait: float) -> None:
    assert table(one(f", timeouts: {{first_output: {first_output}}}")).routes["one"].queue_wait == wait


@pytest.mark.parametrize(("wait", "good"), [("4s", True), ("5s", False), ("6s", False)])
def test_a_wait_ends_before_the_first_output_is_due(wait: str, good: bool) -> None:
    text = one(f", timeouts: {{first_output: 5s}}, queue: {{wait: {wait}}}")
    if good:
        assert table(text)
        return
    (mistake,) = mistakes(text)
    assert "queue" in mistake.message and "5 s" in mistake.message


@pytest.mark.parametrize(
    ("canaries", "good"),
    [
        ((0.05, None), True),
        ((0.5, 0.4, None), True),
        ((0.5, 0.5, None), False),
        ((0.5, 0.3, 0.2, None), False),
        ((0.1,), False),
        ((0.1, 0.1), False),
    ],
)
def test_canaries_leave_most_to_the_others(canaries: tuple[float | None, ...], good: bool) -> None:
    targets = ", ".join(
        server(f"t{number}", **({} if canary is None else {"canary": canary})) for number, canary in enumerate(canaries)
    )
    text = f"routes: {{one: {{targets: [{targets}]}}}}"
    if good:
        assert table(text)
        return
    (mistake,) = mistakes(text)
    assert "canaries" in mistake.message and "'one'" in mistake.message


def test_another_route_may_stand_in() -> None:
    read = table(routed(a=", fallback_route: b", b=", fallback_route: c", c=""))
    assert read.routes["a"].fallback_route == "b"
    assert read.order("a") == ["t-a", "t-b", "t-c"] and read.order("c") == ["t-c"]


def test_tiers_stand_in_the_order_of_their_numbers() -> None:
    fallback = f", fallback: [{server('z', tier=3)}, {server('y')}, {server('x', tier=3)}, {server('w', tier=2)}]"
    assert table(routed(a=fallback + ", fallback_route: b", b="")).order("a") == ["t-a", "y", "w", "z", "x", "t-b"]


def test_a_route_that_is_not_there_cannot_stand_in() -> None:
    (mistake,) = mistakes(routed(a=", fallback_route: z", b=""))
    assert "'z'" in mistake.message and "a, b" in mistake.message and mistake.line == 2


@pytest.mark.parametrize(
    ("following", "circle"),
    [({"a": "a"}, "a -> a"), ({"a": "b", "b": "a"}, "a -> b -> a"), ({"a": "b", "b": "c", "c": "b"}, "b -> c -> b")],
)
def test_routes_do_not_stand_in_for_each_other_in_a_circle(following: dict[str, str], circle: str) -> None:
    found = mistakes(routed(**{name: f", fallback_route: {after}" for name, after in following.items()}))
    assert any(circle in mistake.message for mistake in found)


SHADOWED = one(", shadow: {target: {name: SHADOW, backend: vllm, url: 'http://s'}, share: 0.1}")


def test_a_shadow_is_a_target_like_others_but_serves_nobody() -> None:
    read = table(SHADOWED.replace("SHADOW", "s"))
    assert [target.name for _, _, target in read.targets()] == ["a", "s"]
    assert read.order("one") == ["a"]
    (mistake,) = mistakes(SHADOWED.replace("SHADOW", "a"))
    assert "'a'" in mistake.message and "twice" in mistake.message


def test_tests_of_the_table_may_name_the_targets_in_order() -> None:
    text = routed(a=f", fallback: [{server('f', tier=2)}, {server('e')}], fallback_route: b", b="") + "tests:\n"
    good = "  - {ask: {model: a}, expect: {route: a, targets: [t-a, e, f, t-b]}}\n"
    assert table(text + good).tests[0].expect.targets == ("t-a", "e", "f", "t-b")
    for wrong in ("[t-a, f, e, t-b]", "[t-a, e, f]", "[]"):
        (mistake,) = mistakes(text + good + f"  - {{ask: {{model: a}}, expect: {{route: a, targets: {wrong}}}}}\n")
        assert "t-a, e, f, t-b" in mistake.message and mistake.line == 6


@pytest.mark.parametrize(
    "extra",
    [
        ", fallback: [{name: f, backend: tgi, url: 'http://f', tier: 0}]",
        ", fallback: [{name: f, backend: tgi, url: 'http://f', tier: 9}]",
        ", queue: {calls: -1}",
        ", queue: {length: 5}",
        ", shadow: {target: {name: s, backend: vllm, url: 'http://s'}}",
        ", shadow: {target: {name: s, backend: vllm, url: 'http://s'}, share: 0}",
        ", shadow: {target: {name: s, backend: vllm, url: 'http://s'}, share: 2}",
    ],
)
def test_what_routing_cannot_mean_is_a_mistake(extra: str) -> None:
    assert mistakes(one(extra))

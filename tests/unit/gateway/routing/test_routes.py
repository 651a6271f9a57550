"""From a name to a route, from a table to routes, orders of operators, and what the client is told."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest
from harness.clock import FixedClock
from unit.gateway.routing.building import PROMPT, World, call, key, one, table, targets, tried_in_turn, virtual

from backends.capabilities import Capabilities
from gateway.config import parse_table
from gateway.core.errors import NoRoute
from gateway.core.types import TargetOrder
from gateway.routing import Builder, Routes, TargetSlots
from gateway.store.local import LocalStore
from gateway.targets.load import Share

TABLE = """
routes:
  one: {aliases: [uno, "o*"], policy: round-robin, targets: [{name: a, backend: vllm, url: "http://a/"}]}
  two:
    targets: [{name: b, backend: llamacpp, launch: {model: embedded}, model: m, api_key: "${K}"}]
    fallback: [{name: c, backend: tgi, url: "http://c"}, {name: d, backend: tgi, url: "http://d", tier: 4}]
    timeouts: {idle: 1s}
    retry: {attempts: 3}
    price: {input: 1, output: 2}
"""


def capabilities(name: str) -> Capabilities:
    return Capabilities.of(name)  # type: ignore[arg-type] # no call is really made


@pytest.fixture
def routes(tmp_path_factory: pytest.TempPathFactory) -> Routes:
    clock = FixedClock()
    slots = TargetSlots(LocalStore(tmp_path_factory.getbasetemp() / "absent.json").limits)
    builder = Builder({"b": "http://127.0.0.1:5/"}, capabilities, slots, clock)
    return builder.build(parse_table(TABLE, "t", {"K": "key"})[0], "hash")


def test_a_table_becomes_routes(routes: Routes) -> None:
    assert [each.name for each in routes] == ["one", "two"]
    assert list(routes.targets) == ["a", "b", "c", "d"]
    b = routes.targets["b"]
    assert (b.address.url, b.address.model, b.address.api_key) == ("http://127.0.0.1:5", "m", "key")
    assert b.capabilities.adapter == "llamacpp"
    assert b.timeouts.idle == 1.0 and routes.targets["c"].timeouts.idle == 1.0
    assert routes.targets["a"].address.url == "http://a"
    two = routes.get("two")
    assert two is not None and two.price is not None and two.attempts == 3
    assert [tier.names for tier in two.tiers] == [["b"], ["c"], ["d"]]
    assert [tier.policy_name for each in routes for tier in each.tiers] == ["round-robin", *["home-cost"] * 3]
    assert routes.config_hash == "hash" and routes.get("three") is None


def test_names_lead_to_routes(routes: Routes) -> None:
    for name, found in {"one": "one", "uno": "one", "other": "one", "two": "two"}.items():
        assert routes.find(name, lambda *_: True).name == found


def test_an_unknown_name_is_answered_with_those_the_key_may_use(routes: Routes) -> None:
    with pytest.raises(NoRoute) as caught:
        routes.find("three", lambda name, route: route == "one")
    assert "'three'" in caught.value.message and "one, uno" in caught.value.message
    assert "two" not in caught.value.message and caught.value.param == "model"
    with pytest.raises(NoRoute, match="none") as caught:
        routes.find("x" * 5000, lambda *_: False)
    assert len(caught.value.message) < 400


def test_models_are_names_that_can_be_asked_for(routes: Routes) -> None:
    assert routes.models(lambda *_: True) == ["one", "uno", "two"]
    assert routes.models(lambda name, route: name == "uno") == ["uno"]


def test_a_server_has_one_load_whoever_lists_it() -> None:
    of = World(
        table(
            x={"targets": targets("a", "b")},
            y={"targets": [*targets("c", url="http://a/", model="m"), *targets("d")]},
        )
    )
    assert of["a"].load is of["c"].load and of["b"].load is not of["d"].load
    assert of["a"].breaker is not of["c"].breaker, "another model may work where this one does not"
    assert {name: sorted(each.loads) for name, each in of.routes.gossip.items()} == {
        "x": ["http://a", "http://b"],
        "y": ["http://d"],
    }


def order(state: str, version: int, until: float | None = None) -> TargetOrder:
    return TargetOrder(id="a", created=0.0, version=version, state=state, until=until)  # type: ignore[arg-type]


def test_operators_orders_hold_until_they_end() -> None:
    of = World(one("a", "b"))
    of.routes.ordered({"a": order("drained", 1), "elsewhere": order("drained", 1)}, 100.0)
    assert [(of[name].order, of[name].order_version) for name in "ab"] == [("drained", 1), ("open", 0)]
    of.routes.ordered({"a": order("open", 2)}, 100.0)
    assert (of["a"].order, of["a"].order_version, of["a"].since) == ("open", 2, of.clock())
    ejection = {"a": order("ejected", 3, until=200.0)}
    of.routes.ordered(ejection, 199.0)
    assert (of["a"].order, of["a"].order_version) == ("ejected", 3)
    of.routes.ordered(ejection, 200.0)
    assert (of["a"].order, of["a"].order_version) == ("open", 3)
    of.routes.ordered({}, 300.0)
    assert (of["a"].order, of["a"].order_version) == ("open", 0)


def test_an_order_that_holds_already_changes_nothing() -> None:
    of = World(one("a", "b"))
    orders = {"a": order("open", 2)}
    of.routes.ordered(orders, 100.0)
    of.route.tiers[0].usable(PROMPT, of.clock())
    since = of["a"].since
    of.routes.ordered(orders, 101.0)
    assert of["a"].since == since and of["a"] not in of["a"].unsure


@virtual
async def test_the_client_is_told_where_its_call_went_and_by_which_table() -> None:
    of = World(one("a", fallback=targets("b")))
    told = [dict(attempt.headers) async for attempt in of.attempts()]
    assert told == [
        {b"x-trunkline-target": b"a", b"x-trunkline-attempts": b"1", b"x-trunkline-config": b"hash"},
        {
            b"x-trunkline-target": b"b",
            b"x-trunkline-attempts": b"2",
            b"x-trunkline-config": b"hash",
            b"x-trunkline-fallback": b"failed",
        },
    ]


@virtual
async def test_an_explanation_is_told_on_request_and_as_it_was_before_the_call() -> None:
    of = World(one("a", "b"))
    Share(of["b"].load, 50)
    attempts = tried_in_turn(of.routes.attempts(of.route, call(), {}, key(), 10, explain=True), lambda: of.spent)
    async with aclosing(attempts):
        first = dict((await anext(attempts)).headers)
        second = dict((await anext(attempts)).headers)
    shown = json.loads(first[b"x-trunkline-explain"])
    assert [(each["target"], each.get("running", 0), each.get("picked", False)) for each in shown] == [
        ("a", 0, True),
        ("b", 1, False),
    ]
    assert second[b"x-trunkline-explain"] == first[b"x-trunkline-explain"]
    assert b"\n" not in first[b"x-trunkline-explain"]


@virtual
async def test_aliases_share_conversations_and_routes_do_not() -> None:
    of = World(table(x={"aliases": ["x1", "x2"], "targets": targets("a", "b")}, y={"targets": targets("c", "d")}))
    x, y = of.routes.get("x"), of.routes.get("y")
    assert x is not None and y is not None
    by_alias = [of.routes.read(x, call(name), {}, key(), 10) for name in ("x1", "x2", "x")]
    assert len({prompt.conversation for prompt in by_alias}) == 1
    assert of.routes.read(y, call("y"), {}, key(), 10).conversation != by_alias[0].conversation

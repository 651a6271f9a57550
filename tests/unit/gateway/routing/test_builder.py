"""A new table takes over what the one before has learned and what is under way; one that cannot be built, nothing."""

from __future__ import annotations

import asyncio
from math import inf

import pytest
from harness.clock import FixedClock
from harness.routing import key as hashed
from harness.virtual_time import settle
from unit.gateway.routing.building import PROMPT, World, call, eject, one, table, targets, virtual

from backends.api import Facts
from backends.capabilities import Capabilities
from gateway.config import parse_table
from gateway.routing import Attempt
from gateway.routing.policies.api import Prompt, Score
from gateway.targets.load import Share


def test_the_same_server_goes_on_as_it_was() -> None:
    of = World(one("a", "b"))
    a = of["a"]
    share = Share(a.load, 500)
    eject(a)
    a.probed("away")
    a.learned(Facts(context=4096, kv_tokens=50_000))
    a.attempts = 7
    before = of.reload(one(targets=[*targets("a", weight=3, max_inflight=9), *targets("b")], timeouts={"idle": "1s"}))
    new = of["a"]
    assert new is not a and of.routes is not before
    assert new.load is a.load and new.breaker is a.breaker and new.capabilities is a.capabilities
    assert (new.why, new.context, new.attempts, new.since) == ("away", 4096, 7, -inf)
    assert (new.weight, new.max_inflight, new.timeouts.idle) == (3, 9, 1.0), "these are the new table's"
    share.end()
    assert new.load.running == 0


def test_a_new_target_begins_slowly_but_not_in_the_first_table() -> None:
    of = World(one("a"))
    assert of["a"].since == -inf
    of.reload(one("a", "b"))
    assert (of["a"].since, of["b"].since) == (-inf, of.clock())


@pytest.mark.parametrize("change", [{"url": "http://elsewhere"}, {"backend": "tgi"}])
def test_another_server_under_the_same_name_is_a_new_target(change: dict[str, str]) -> None:
    of = World(one("a", "b"))
    a = of["a"]
    eject(a)
    a.learned(Facts(context=4096))
    of.reload(one(targets=[{**targets("a")[0], **change}, *targets("b")]))
    new = of["a"]
    assert new.breaker is not a.breaker and new.breaker.closed and new.facts == Facts()
    assert new.since == of.clock()
    assert (new.load is a.load) == ("url" not in change), "the load is the server's"


def test_a_server_that_was_renamed_keeps_its_load() -> None:
    of = World(one("a", "b"))
    Share(of["a"].load, 500)
    of.reload(one(targets=[*targets("z", url="http://a/"), *targets("b")]))
    assert of["z"].load.running == 1 and "a" not in of.routes.targets


def test_what_the_policies_remember_is_kept_for_targets_that_stay() -> None:
    of = World(one("a", "b", "c", policy="home-cost"))
    prompt = Prompt(1000, hashed("c"), follow_up=True)
    tier = of.route.tiers[0]
    away = next(score for score in tier.policy.score(prompt, tier.targets, [0, 1, 2], 0.0) if score.reason == "spill")
    name = tier.names[away.index]
    tier.placed(prompt, away)
    staying = sorted({name, "d"} | {tier.names[0]})
    of.reload(one(*staying, policy="home-cost"))
    new = of.route.tiers[0]
    scores = new.policy.score(prompt, new.targets, range(len(staying)), of.clock())
    assert [new.names[score.index] for score in scores if score.cached >= 1000] == [name]


def test_another_policy_begins_anew() -> None:
    of = World(one("a", "b", policy="home-cost"))
    of.reload(one("a", "b", policy="round-robin"))
    of.reload(one("a", "b", policy="home-cost"))
    assert of.route.tiers[0].policy_name == "home-cost"


def test_notes_go_on_being_counted() -> None:
    """Else others would take old ones for new, or new ones for old."""
    of = World(one("a", "b", policy="home-cost"))

    def noted(number: int) -> bytes | None:
        tier = of.route.tiers[0]
        attempt = Attempt(tier, Score(0, 0.0, reason="spill"), Prompt(100, hashed("c", number), follow_up=True))
        attempt.begin()
        attempt.end()
        return of.routes.gossip["r"].publish(of.clock())

    first = noted(1)
    of.reload(one("a", "b", policy="home-cost"))
    second = noted(2)
    heard = World(one("a", "b", policy="home-cost"))
    told: list[int] = []
    policy = heard.route.tiers[0].policy
    policy.heard = lambda notes, targets: told.extend(note.key for note in notes)  # type: ignore[attr-defined]
    for report in (first, second):
        assert report is not None
        heard.routes.gossip["r"].apply({"g": (report, 0.0)}, heard.clock())
    assert told == [hashed("c", 1), hashed("c", 2)]


@virtual
async def test_calls_under_way_go_on_and_make_room_in_the_new_table() -> None:
    text = one(targets=targets("a", max_inflight=1))
    of = World(text)
    held, attempt = await of.first(call(id="c0"))
    before = of.reload(text)
    waits = asyncio.create_task(of.tried(call(id="c1")))
    await settle()
    assert not waits.done()
    began = of.clock()
    await held.aclose()
    assert await waits == ["a"] and of.clock() == began
    assert attempt.target.load.running == 0
    of.idle()
    assert not [freed for freed in of["a"].load.freed if freed == before.get("r").freed]  # type: ignore[union-attr]


@virtual
async def test_calls_that_wait_in_the_table_before_are_served_too() -> None:
    text = one(targets=targets("a", max_inflight=1))
    of = World(text)
    held, _ = await of.first(call(id="c0"))
    waits = asyncio.create_task(of.tried(call(id="c1")))
    await settle()
    of.reload(text)
    began = of.clock()
    await held.aclose()
    assert await waits == ["a"] and of.clock() < began + 0.06
    of.idle()


@virtual
async def test_calls_that_wait_go_where_the_new_table_sends_them() -> None:
    of = World(one(targets=targets("a", max_inflight=1), queue={"calls": 5}))
    held, _ = await of.first(call(id="c0"))
    waits = [asyncio.create_task(of.tried(call(id=f"c{number}"))) for number in (1, 2, 3)]
    await settle()
    of.reload(one(targets=[*targets("a", max_inflight=1), *targets("b", max_inflight=1)], queue={"calls": 2}))
    assert of.route.waiting == 3, "a shorter queue throws nobody out"
    began = of.clock()
    assert await asyncio.gather(*waits) == [["b"]] * 3
    assert of.clock() < began + 0.2
    of.reload(one(targets=targets("b", max_inflight=1)))
    await held.aclose()
    of.idle()


@virtual
async def test_calls_that_wait_for_a_route_that_is_gone_are_served_or_refused_in_time() -> None:
    of = World(table(r={"targets": targets("a", max_inflight=1)}, s={"targets": targets("b")}))
    held, _ = await of.first(call(id="c0"))
    served, late = (asyncio.create_task(of.tried(call(id=f"c{number}"))) for number in (1, 2))
    await settle()
    of.reload(table(s={"targets": targets("b")}))
    await asyncio.sleep(0.5)
    late.cancel()
    await held.aclose()
    assert await served == ["a"]


@virtual
async def test_a_call_does_not_come_twice_to_a_target_because_the_table_changed() -> None:
    of = World(one("a", "b", retry={"attempts": 3}))
    calls, attempt = await of.first()
    first = attempt.target.name
    of.reload(one("a", "b", retry={"attempts": 3}))
    went = [first, *[each.target.name async for each in calls]]
    assert sorted(went) == ["a", "b"]


@virtual
async def test_a_removed_target_ends_its_calls_and_gets_no_more() -> None:
    of = World(one("a", "b", policy="least-tokens"))
    held = [await of.first() for _ in range(4)]
    gone = of["a"]
    assert gone.load.running == 2
    of.reload(one("b"))
    assert await of.tried() == ["b"]
    for calls, attempt in held:
        attempt.first_token()
        attempt.answered(None)
        await calls.aclose()
    assert gone.load.running == 0 and not gone.load.freed
    assert "http://a" not in of.routes.gossip["r"].loads
    of.idle()


@virtual
async def test_what_happens_while_a_large_table_is_built_is_not_lost() -> None:
    text = table(**{f"r{n}": {"targets": targets(f"a{n}", f"b{n}")} for n in range(40)})
    of = World(text)
    before = of.routes
    building = asyncio.create_task(of.builder.rebuild(parse_table(text, "t", {})[0], "new", before))
    while not building.done():
        await asyncio.sleep(0)
        before.targets["a0"].rest(5.0)
        before.targets["a1"].probed("away")
        before.targets["a2"].ordered("drained", 3)
        before.targets["a3"].sleeps(True)
        before.targets["a4"].learned(Facts(context=4096))
        before.targets["a5"].attempts += 1
    of.routes = await building
    of.routes.open(before)
    assert (of["a0"].resting_until, of["a1"].why, of["a2"].order_version) == (5.0, "away", 3)
    assert (of["a3"].asleep, of["a4"].context) == (True, 4096)
    assert of["a5"].attempts == before.targets["a5"].attempts > 0
    route = of.routes.get("r4")
    assert route is not None and route.tiers[0].usable(Prompt(10, context=9000), of.clock()) == [1]


def test_a_build_that_fails_changes_nothing() -> None:
    of = World(one("a", "b", policy="home-cost"))
    assert isinstance(of.clock, FixedClock)
    tier = of.route.tiers[0]
    prompt = Prompt(1000, hashed("c"), follow_up=True)
    share = Share(of["a"].load, 500)
    tier.placed(prompt, Score(1, 0.0, reason="spill"))
    of["b"].rest(5.0)

    def state() -> object:
        return (
            [(t.name, t.order, t.up, t.since, t.attempts, t.resting_until, t.facts) for t in tier.targets],
            [(len(t.load.freed), t.load.report(), t.load.clock) for t in of.routes.targets.values()],
            tier.policy.score(prompt, tier.targets, [0, 1], of.clock()),
            tier.usable(PROMPT, of.clock()),
        )

    before = state()
    good = {"policy": "home-cost", "targets": targets("a", "b", "new")}
    bad = {"targets": [{"name": "z", "backend": "openai", "url": "http://z"}]}

    def capabilities(name: str) -> Capabilities:
        if name == "openai":
            raise LookupError("no such adapter")
        return Capabilities.of(name)  # type: ignore[arg-type] # no call is really made

    of.builder._capabilities = capabilities
    of.clock.advance(0.0)
    with pytest.raises(LookupError):
        of.build(table(r=good, s=bad), of.routes)
    assert state() == before
    assert [note.key for note in tier.policy.notes()] == [hashed("c")]  # type: ignore[attr-defined]
    share.end()
    of.idle()


def test_a_route_that_is_new_has_nothing_to_take_over() -> None:
    of = World(one("a"))
    of.reload(table(r={"targets": targets("a")}, s={"targets": targets("b", "c"), "fallback": targets("d")}))
    assert [route.name for route in of.routes] == ["r", "s"]
    assert all(target.since == of.clock() for target in of.routes.targets.values() if target.name != "a")
    of.reload(one("a"))
    assert list(of.routes.targets) == ["a"]

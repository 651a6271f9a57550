"""Which dimensions a call is checked against: four scopes, each limit of each, said by records before the table."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from gateway.config.limits import Price
from gateway.core.types import Allowance, Budget, Dimension, KeyRecord, Limit, Plan, Secret, Spent, Tenant
from gateway.limits import Rules
from gateway.limits.estimate import Estimate
from gateway.limits.plan import Planner, Terms
from gateway.store import LEASE_SECONDS
from gateway.store.rebuild import budget_key

ALLOWED = Allowance(tokens=1000, cost_micros=2000)
WHOLE = Limit(rpm=1, tpm=2, itpm=3, otpm=4, concurrency=5, budget=Budget(day=ALLOWED, week=ALLOWED, month=ALLOWED))
EACH = ["rpm", "tpm", "itpm", "otpm", "concurrency", *["budget"] * 6]
SPENT = Spent(input=30, cached=10, output=12, cost=777)
PRICE = Price(input=10_000_000, output=20_000_000)
"""Ten micro-units for a token of the prompt, twenty for one of the answer."""


def key(limit: Limit | None = None, **fields: Any) -> KeyRecord:
    given = {"name": "n", "created": 1, "secrets": (Secret(digest="0"),), "tenant": "t", **fields}
    return KeyRecord(id="K", limit=limit or Limit(), **given)


def tenant(limit: Limit, version: int = 1) -> Tenant:
    return Tenant(id="t", created=1, version=version, limit=limit)


def plan(rules: Rules, record: KeyRecord, above: Tenant | None = None, route: str = "r") -> tuple[Dimension, ...]:
    return Planner(rules, {route: PRICE}).terms(record, above, route).plan.dimensions


def test_without_limits_there_is_nothing_to_check() -> None:
    assert plan(Rules(), key()) == ()
    assert plan(Rules(models={"other": WHOLE}, key_models={"other": WHOLE}), key(model_limits={"other": WHOLE})) == ()


@pytest.mark.parametrize(
    ("rules", "record", "above", "scope", "id"),
    [
        (Rules(), key(WHOLE), None, "key", "K"),
        (Rules(key=WHOLE), key(), None, "key", "K"),
        (Rules(), key(), tenant(WHOLE), "tenant", "t"),
        (Rules(tenant=WHOLE), key(), None, "tenant", "t"),
        (Rules(models={"r": WHOLE}), key(), None, "model", "r"),
        (Rules(), key(model_limits={"r": WHOLE}), None, "key_model", "K:r"),
        (Rules(key_models={"r": WHOLE}), key(), None, "key_model", "K:r"),
    ],
)
def test_every_limit_of_every_scope_becomes_a_dimension(
    rules: Rules, record: KeyRecord, above: Tenant | None, scope: str, id: str
) -> None:
    found = plan(rules, record, above)
    assert [dimension.name for dimension in found] == EACH
    assert {dimension.scope for dimension in found} == {scope}
    assert [dimension.limit for dimension in found] == [1, 2, 3, 4, 5, *[1000, 2000] * 3]
    assert [dimension.key for dimension in found[:5]] == [
        f"rate:{scope}:{id}:rpm",
        f"rate:{scope}:{id}:tpm",
        f"rate:{scope}:{id}:itpm",
        f"rate:{scope}:{id}:otpm",
        f"lease:{scope}:{id}",
    ]
    budgets = found[5:]
    assert [(each.period, each.unit) for each in budgets] == [
        (period, unit) for period in ("day", "week", "month") for unit in ("tokens", "cost")
    ]
    for each in budgets:
        assert each.period is not None
        assert each.key == budget_key(scope, id, each.period, each.unit)
    assert {each.window for each in found[:4]} == {60.0} and found[4].window == LEASE_SECONDS


def test_all_scopes_count_together() -> None:
    rules = Rules(key=Limit(rpm=1), tenant=Limit(rpm=2), models={"r": Limit(rpm=3)}, key_models={"r": Limit(rpm=4)})
    found = plan(rules, key())
    assert [(each.scope, each.limit) for each in found] == [("key", 1), ("tenant", 2), ("model", 3), ("key_model", 4)]


def test_what_a_record_says_goes_before_what_the_table_says() -> None:
    table = Limit(rpm=100, concurrency=50, budget=Budget(day=Allowance(tokens=10, cost_micros=20)))
    rules = Rules(key=table, tenant=table, key_models={"r": table})
    own = Limit(rpm=2, budget=Budget(day=Allowance(tokens=3)))
    for found in (
        plan(rules, key(own, model_limits={"r": own}), tenant(own)),
        plan(Rules(key=own, tenant=own, key_models={"r": own}), key(table, model_limits={"r": table}), tenant(table)),
    ):
        assert len(found) == 12
    limits = {(d.scope, d.name, d.unit): d.limit for d in plan(rules, key(own, model_limits={"r": own}), tenant(own))}
    for scope in ("key", "tenant", "key_model"):
        assert limits[scope, "rpm", "requests"] == 2
        assert limits[scope, "concurrency", "calls"] == 50
        assert limits[scope, "budget", "tokens"] == 3
        assert limits[scope, "budget", "cost"] == 20


def test_zero_is_a_limit() -> None:
    """A budget of nothing closes; it is not the same as none."""
    (found,) = plan(Rules(), key(Limit(budget=Budget(day=Allowance(tokens=0)))))
    assert found.limit == 0


def test_limits_of_the_key_on_one_model_hold_on_that_model_only() -> None:
    record = key(model_limits={"r": Limit(rpm=1)})
    assert len(plan(Rules(), record, route="r")) == 1
    assert plan(Rules(), record, route="q") == ()


def test_budgets_are_closed_in_an_outage_and_all_else_is_shared() -> None:
    outages = {each.name: each.outage for each in plan(Rules(), key(WHOLE))}
    assert outages.pop("budget") == "closed"
    assert set(outages.values()) == {"share"}


@pytest.mark.parametrize("name", ["rpm", "tpm", "itpm", "otpm", "concurrency", "budget"])
@pytest.mark.parametrize("policy", ["share", "closed", "open"])
def test_each_dimension_does_in_an_outage_what_was_said_for_it(name: str, policy: Any) -> None:
    found = plan(Rules(key=Limit(outage={name: policy})), key(WHOLE))
    assert {each.outage for each in found if each.name == name} == {policy}
    others = {each.name: each.outage for each in found if each.name != name}
    assert others == {other: "closed" if other == "budget" else "share" for other in set(EACH) - {name}}


def test_a_change_of_key_or_tenant_makes_a_new_plan() -> None:
    planner, record, above = Planner(Rules()), key(Limit(rpm=1)), tenant(Limit(rpm=5))

    def limits(above: Tenant | None) -> list[int]:
        return [each.limit for each in planner.terms(record, above, "r").plan.dimensions]

    assert limits(above) == [1, 5]
    record = structs.replace(record, version=2, limit=Limit(rpm=2))
    assert limits(above) == [2, 5]
    above = tenant(Limit(rpm=6), version=2)
    assert limits(above) == [2, 6]
    assert limits(None) == [2]
    assert planner.terms(record, above, "r") is planner.terms(record, above, "r"), "remembered"


def test_the_records_decided_on_go_with_the_plan() -> None:
    planner = Planner(Rules(key=Limit(rpm=1)))
    assert planner.terms(key(version=3), None, "r").plan.records == (("key:K", 3), ("tenant:t", 0))
    assert planner.terms(key(version=3), tenant(Limit(), 2), "r").plan.records == (("key:K", 3), ("tenant:t", 2))


def test_money_limits_only_what_costs_something() -> None:
    free = Price(input=0, output=0)
    for price, units in ((PRICE, ["tokens", "cost"]), (free, ["tokens"]), (None, ["tokens"])):
        record = key(Limit(budget=Budget(day=ALLOWED)))
        dimensions = Planner(Rules(), {"r": price}).terms(record, None, "r").plan.dimensions
        assert [each.unit for each in dimensions] == units


def test_plans_that_nobody_asks_for_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.limits.plan.MAX_TERMS", 3)
    planner = Planner(Rules(key=Limit(rpm=1)))
    for number in range(10):
        planner.terms(structs.replace(key(), id=f"k{number}"), None, "r")
    assert len(planner._terms) == 3


@pytest.mark.parametrize(
    ("unit", "taken"),
    [("requests", 1), ("calls", 1), ("tokens", 42), ("input", 30), ("output", 12), ("cost", 777)],
)
def test_what_a_call_takes_of_each_unit(unit: str, taken: int) -> None:
    assert Terms(Plan((), (Dimension("x", "rate", "x", 10, unit=unit),))).used(SPENT) == [taken]


def test_what_is_reserved_is_never_more_than_a_dimension_can_hold() -> None:
    """Or no call would ever be let in under a limit smaller than what is assumed of an answer."""
    terms = Planner(Rules(), {"r": PRICE}).terms(key(WHOLE), None, "r")
    ask = terms.ask("c", Estimate(30, 12, (0, 0)))
    assert ask.plan is terms.plan and ask.call_id == "c"
    amounts = {(d.name, d.unit): n for d, n in zip(ask.plan.dimensions, ask.amounts, strict=True)}
    assert amounts == {
        ("rpm", "requests"): 1,
        ("tpm", "tokens"): 2,
        ("itpm", "input"): 3,
        ("otpm", "output"): 4,
        ("concurrency", "calls"): 1,
        ("budget", "tokens"): 42,
        ("budget", "cost"): 540,
    }

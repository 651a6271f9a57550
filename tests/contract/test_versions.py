"""Records are compared in the same step that admits: a change of a key or tenant holds for the very next call."""

from __future__ import annotations

import pytest
from contract.subject import Subject


@pytest.mark.parametrize("version", [1, 3])
async def test_another_version_of_the_key_is_stale_and_charges_nothing(subject: Subject, version: int) -> None:
    await subject.key()
    await subject.key(version=2)
    dimensions = (subject.rate(9), subject.tokens(90, 10), subject.lease(9), subject.budget(90, 10))
    for _ in range(3):
        verdict = await subject.store.limits.admit(subject.ask(*dimensions, version=version))
        assert verdict.stale
    _, verdict = await subject.granted_with(2, *dimensions)
    assert [each.remaining for each in verdict.standings] == [each.limit - each.amount for each in dimensions]


async def test_an_unknown_key_is_stale(subject: Subject) -> None:
    assert (await subject.admit(subject.rate(1))).stale


@pytest.mark.parametrize("key", [0, 1, 2, 3])
@pytest.mark.parametrize("tenant", [0, 1, 2])
async def test_every_record_decided_on_is_compared(subject: Subject, key: int, tenant: int) -> None:
    """The key stands at version 2, the tenant at 1: only an ask decided on both is let in."""
    await subject.key()
    await subject.key(version=2)
    await subject.tenant()
    records = [(f"key:{subject.name}", key), (f"tenant:{subject.name}", tenant)]
    for order in (records, records[::-1]):
        rate = subject.rate(5, name=str(order[0]))
        verdict = await subject.store.limits.admit(subject.ask(rate, records=order))
        assert verdict.stale is ((key, tenant) != (2, 1))
        _, after = await subject.granted_with(2, rate)
        assert after.standings[0].remaining == (4 if verdict.stale else 3)


async def test_a_tenant_without_a_record_is_version_zero_until_it_has_one(subject: Subject) -> None:
    await subject.key()
    records = [(f"key:{subject.name}", 1), (f"tenant:{subject.name}", 0)]
    rate = subject.rate(9)
    assert not (await subject.store.limits.admit(subject.ask(rate, records=records))).stale
    await subject.tenant()
    assert (await subject.store.limits.admit(subject.ask(rate, records=records))).stale
    records[1] = (f"tenant:{subject.name}", 1)
    verdict = await subject.store.limits.admit(subject.ask(rate, records=records))
    assert not verdict.stale and verdict.standings[0].remaining == 7

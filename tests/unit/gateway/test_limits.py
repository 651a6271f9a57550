"""Admission: what is asked of the store, what a denial says, and what happens while the store is down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness.clock import FixedClock
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from gateway.core.errors import RateLimited, Unauthenticated
from gateway.core.types import Ask, KeyRecord, Limit, Secret, Verdict
from gateway.limits import MAX_STALE, Admission, Lease, duration
from gateway.store import StoreDown
from gateway.store.memory import MemoryStore

NONE = Limit()
PIECE = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?")


class Flaky(MemoryStore):
    down = False

    async def admit(self, ask: Ask) -> Verdict:
        if self.down:
            raise StoreDown("gone")
        return await super().admit(ask)


class Parts:
    def __init__(self, folder: Path, gateways: int = 1) -> None:
        self.clock, self.denied, self.seconds = FixedClock(), list[str](), list[float]()
        self.told = list[bool]()
        self.store = Flaky(folder / "keys.json", self.clock.now)
        self.refreshed = 0
        self.admission = Admission(
            self.store,
            gateways=gateways,
            seconds=self.seconds.append,
            denied=self.denied.append,
            degraded=self.told.append,
            clock=self.clock,
        )

    async def admit(self, call: str, record: KeyRecord, default: Limit = NONE) -> Lease:
        return await self.admission.admit(call, record, default, self.refresh)

    async def refresh(self) -> KeyRecord:
        self.refreshed += 1
        stored = await self.store.key("k")
        if stored is None or stored.revoked:
            raise Unauthenticated
        return stored

    async def key(self, limit: Limit = NONE) -> KeyRecord:
        record = KeyRecord(id="k", name="n", created=1, secrets=(Secret(digest="0"),), limit=limit)
        await self.store.put_key(record)
        return record

    async def granted(self, record: KeyRecord, times: int, default: Limit = NONE) -> int:
        count = 0
        for number in range(times):
            try:
                await self.admit(f"c{number}", record, default)
            except RateLimited:
                continue
            count += 1
        return count


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


async def test_the_keys_own_limits_go_before_the_default(parts: Parts) -> None:
    record = await parts.key(Limit(rpm=2))
    assert await parts.granted(record, 5, Limit(rpm=100, concurrency=50)) == 2
    assert Limit(rpm=2).over(Limit(rpm=100, concurrency=50)) == Limit(rpm=2, concurrency=50)


async def test_without_limits_everything_is_granted(parts: Parts) -> None:
    assert await parts.granted(await parts.key(), 50) == 50


async def test_a_lease_gives_its_slot_back_however_the_call_ends(parts: Parts) -> None:
    record, one = await parts.key(), Limit(concurrency=1)
    with await parts.admit("a", record, one), pytest.raises(RateLimited):
        await parts.admit("b", record, one)
    with pytest.raises(RuntimeError), await parts.admit("c", record, one):
        raise RuntimeError
    lease = await parts.admit("d", record, one)
    with lease:
        pass
    lease.__exit__(None, None, None)
    assert await parts.granted(record, 3, one) == 1


async def test_a_denial_says_what_and_when(parts: Parts) -> None:
    record = await parts.key(Limit(rpm=60))
    assert await parts.granted(record, 60) == 60
    with pytest.raises(RateLimited) as caught:
        await parts.admit("x", record, NONE)
    error = caught.value
    assert (error.dimension, error.retry_after) == ("rpm", pytest.approx(1.0))
    assert "60 requests per minute" in error.message and "1s" in error.message
    assert error.headers["x-ratelimit-limit-requests"] == "60"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert parts.denied == ["rpm"]


async def test_a_denied_slot_says_so(parts: Parts) -> None:
    record = await parts.key(Limit(concurrency=2))
    assert await parts.granted(record, 2) == 2
    with pytest.raises(RateLimited, match="2 calls at the same time") as caught:
        await parts.admit("x", record, NONE)
    assert caught.value.dimension == "concurrency" and caught.value.retry_after
    assert parts.denied == ["concurrency"]


async def test_a_grant_carries_the_rate_limit_headers(parts: Parts) -> None:
    lease = await parts.admit("x", await parts.key(Limit(rpm=60, concurrency=3)), NONE)
    assert dict(lease.headers) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
    }
    assert not (await parts.admit("y", await changed(parts), NONE)).headers


async def changed(parts: Parts) -> KeyRecord:
    """The key without limits."""
    stored = await parts.store.key("k")
    assert stored is not None
    record = structs.replace(stored, version=stored.version + 1, limit=NONE)
    await parts.store.put_key(record)
    return record


async def test_a_key_that_changed_meanwhile_is_loaded_again(parts: Parts) -> None:
    old = await parts.key(Limit(rpm=1))
    await changed(parts)
    assert await parts.granted(old, 5) == 5
    assert parts.refreshed == 5


async def test_a_key_revoked_meanwhile_is_refused(parts: Parts) -> None:
    old = await parts.key()
    await parts.store.put_key(structs.replace(old, version=2, revoked=5.0))
    with pytest.raises(Unauthenticated):
        await parts.admit("x", old, NONE)


async def test_a_key_that_never_stands_still_is_told_to_come_again(parts: Parts) -> None:
    old = await parts.key()
    await changed(parts)

    async def useless() -> KeyRecord:
        parts.refreshed += 1
        return old

    with pytest.raises(RateLimited) as caught:
        await parts.admission.admit("x", old, NONE, useless)
    assert caught.value.retry_after and parts.refreshed == MAX_STALE


@pytest.mark.parametrize(("gateways", "share"), [(1, 12), (3, 4), (5, 2), (100, 1)])
async def test_without_the_store_a_gateway_grants_its_share(tmp_path: Path, gateways: int, share: int) -> None:
    parts = Parts(tmp_path, gateways)
    record = await parts.key(Limit(rpm=12))
    parts.store.down = True
    assert await parts.granted(record, 30) == share
    assert parts.admission.degraded
    parts.clock.advance(60)
    parts.store.down = False
    lease = await parts.admit("x", record, NONE)
    assert not parts.admission.degraded and parts.told == [True, False]
    assert b"x-trunkline-degraded" not in dict(lease.headers)


async def test_degraded_answers_say_so(parts: Parts) -> None:
    record = await parts.key(Limit(rpm=1))
    parts.store.down = True
    lease = await parts.admit("x", record, NONE)
    assert dict(lease.headers)[b"x-trunkline-degraded"] == b"limits-local"
    with pytest.raises(RateLimited) as caught:
        await parts.admit("y", record, NONE)
    assert caught.value.headers["x-trunkline-degraded"] == "limits-local"


async def test_slots_taken_without_the_store_go_back_where_they_came_from(parts: Parts) -> None:
    record, one = await parts.key(), Limit(concurrency=1)
    shared = await parts.admit("a", record, one)
    parts.store.down = True
    own = await parts.admit("b", record, one)
    with pytest.raises(RateLimited):
        await parts.admit("c", record, one)
    with own:
        pass
    with await parts.admit("d", record, one):
        pass
    parts.store.down = False
    with pytest.raises(RateLimited):
        await parts.admit("e", record, one)
    with shared:
        pass
    with await parts.admit("f", record, one):
        pass


async def test_the_time_of_the_decision_is_measured(parts: Parts) -> None:
    record = await parts.key()
    await parts.admit("x", record, NONE)
    parts.store.down = True
    await parts.admit("y", record, NONE)
    assert len(parts.seconds) == 2 and all(value >= 0 for value in parts.seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.017, "17ms"),
        (0.0171, "18ms"),
        (0.5, "500ms"),
        (1, "1s"),
        (1.2, "2s"),
        (59.5, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90061, "25h1m1s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
@example(0.9995)
@example(0.0)
@example(3599.5)
def test_a_duration_is_rounded_up_and_each_part_in_its_range(seconds: float) -> None:
    match = PIECE.fullmatch(duration(seconds))
    assert match is not None
    hours, minutes, whole, milliseconds = (int(part or 0) for part in match.groups())
    assert minutes < 60 and whole < 60 and milliseconds < 1000
    written = hours * 3600 + minutes * 60 + whole + milliseconds / 1000
    assert written >= seconds - 1e-9
    assert written - seconds < (0.001 if seconds < 0.999 else 1) + 1e-9

"""The counters in Redis: one script call an admission, one a settlement, and what they need to be complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from operator import mul
from typing import Any

from gateway.core.types import Ask, Dimension, Plan, Standing, Verdict
from gateway.store import LEASE_SECONDS, RENEW_SECONDS, Ledger, StoreDown, periods
from gateway.store.rebuild import budgets_of
from gateway.store.redis.connection import Command, Pipe, pack, packed, script
from gateway.store.redis.looking import look
from gateway.store.redis.records import RedisRecords

log = logging.getLogger("trunkline.store")

MICRO = 1_000_000
LEASE_MICROS = int(LEASE_SECONDS * MICRO)
LEASE_KEY_MS = 3_600_000
"""As in admit.lua: a set of leases that nobody renews or empties is forgotten after an hour."""
MAX_UNSETTLED = 100_000
"""Settlements kept while Redis is down; each is some hundred bytes."""
STEP = 500
"""Keys that one command may touch, so that others get their turn."""

# One hash tag, so that every key an admission touches lives in one slot of a cluster.
TAG = "{tl}:"
_COMPLETE, _LOCK, _DEAD = TAG + "complete", TAG + "rebuilding", TAG + "dead"
_GATE = TAG.encode() + b"settled:%b"
LOCK_MS = 10_000
WAIT_TURNS, WAIT_SECONDS = 50, 0.02
"""How long a call waits for another gateway that rebuilds the budgets."""

ADMIT, SETTLE, REBUILD = script("period", "admit"), script("period", "settle"), script("rebuild")


class RedisCounters:
    """Raises `StoreDown` when Redis does not answer in time. A retry could charge twice: none.

    `records` are asked for the versions of keys and tenants, `ledger` for what was spent.
    """

    def __init__(self, pipe: Pipe, ledger: Ledger, records: RedisRecords) -> None:
        self._pipe, self._ledger, self._records = pipe, ledger, records
        self._held: dict[str, Ask] = {}
        self._unsettled: dict[bytes, bytes] = {}
        """Settlements by their gates, as they are sent."""
        self._known: list[bytes] = []
        """Gates of settlements that Redis has confirmed: they will not be sent again."""
        self._rebuilding: asyncio.Task[None] | None = None
        self._back = asyncio.Event()

    async def close(self) -> None:
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.wait([self._rebuilding])

    @property
    def unsettled(self) -> int:
        return len(self._unsettled)

    def register_lease(self, ask: Ask) -> None:
        self._held[ask.call_id] = ask

    def open_leases(self) -> list[Ask]:
        return list(self._held.values())

    async def admit(self, ask: Ask) -> Verdict:
        encoded = ask.plan.encoded or _encode(ask.plan)
        data = encoded.admission + pack((ask.call_id, *map(mul, ask.amounts, encoded.costs)))[encoded.count :]
        versions_brought = budgets_rebuilt = False
        while True:
            command = self._pipe.send(data, ADMIT)
            try:
                answer = await command.answer
            except (asyncio.CancelledError, StoreDown):
                self._abandon(command, ask)
                raise
            status, denied, wait, now = answer[:4]
            if status == 3 and not versions_brought:
                versions_brought = True
                await self._bring_versions(ask)
            elif status == 4 and not budgets_rebuilt:
                budgets_rebuilt = True
                await self._rebuilt()
            else:
                break
        if status == 4:
            raise StoreDown("the budgets are being rebuilt")
        if status > 1:
            return Verdict(stale=True, at=now)
        standings = [
            Standing(max(0, limit - -(-level // cost)), level / MICRO)
            if is_rate
            else Standing(max(0, level), reset / MICRO)
            for (is_rate, cost, limit), level, reset in zip(encoded.readings, answer[4::2], answer[5::2], strict=True)
        ]
        if status == 1:
            spent = ask.plan.dimensions[denied - 1].kind == "budget" and answer[2 + 2 * denied] < 0
            return Verdict(standings, denied - 1, wait / MICRO, spent, at=now)
        self._held[ask.call_id] = ask
        return Verdict(standings, at=now)

    async def look(self, ask: Ask) -> Verdict:
        return await look(self._pipe, self._ledger, ask, TAG, _COMPLETE)

    def _abandon(self, command: Command, ask: Ask) -> None:
        """Redis may grant this yet, or may have: what nobody will use is handed back."""
        answer, command.about = command.answer, ask
        if not answer.cancelled():
            self._unused(command, answer.exception() or answer.result())
        elif command.late is not None:
            self._unused(command, command.late)
        else:
            command.ended = self._unused

    def _unused(self, command: Command, answer: list[int] | BaseException) -> None:
        """This is the answer to an ask that nobody waits for any more."""
        ask: Ask = command.about
        granted = command.sent if isinstance(answer, BaseException) else answer[0] == 0
        if granted:
            # Under a gate of its own: the same call may have been granted elsewhere, and be settled when it has ended.
            at = 0 if isinstance(answer, BaseException) else answer[3]
            gate = _GATE % ask.call_id.encode() + b":unused"
            self._pipe.send(_settlement(gate, ask, at, [0] * len(ask.amounts)), SETTLE, self._settled, gate)

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> asyncio.Future[Any] | None:
        """As the protocol says. Where nothing is to be corrected it takes the shorter way."""
        if self._held.pop(ask.call_id, None) is None:
            return None
        encoded = ask.plan.encoded or _encode(ask.plan)
        if encoded.budgets or [*used] != [*ask.amounts]:
            gate = _GATE % ask.call_id.encode()
            return self._pipe.send(_settlement(gate, ask, at, used), SETTLE, self._settled, gate).answer
        known: asyncio.Future[Any] | None = None
        for begin in encoded.returns:
            known = self._pipe.send(begin + packed(ask.call_id), None, self._returned, (ask, at, used)).answer
        return known

    def charge_later(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        gate = _GATE % ask.call_id.encode()
        self._pipe.send(_settlement(gate, ask, at, used), SETTLE, self._settled, gate)

    def _settled(self, command: Command, answer: Any) -> None:
        """A settlement has arrived, or is sent again when Redis is back: it counts once."""
        gate: bytes = command.about
        if not isinstance(answer, BaseException):
            self._known.append(gate)
        elif len(self._unsettled) < MAX_UNSETTLED:
            self._unsettled[gate] = command.data

    def _returned(self, command: Command, answer: Any) -> None:
        """A slot has gone back. If that failed, the long way is open when Redis is back."""
        if isinstance(answer, BaseException) and len(self._unsettled) < MAX_UNSETTLED:
            ask, at, used = command.about
            gate = _GATE % ask.call_id.encode()
            self._unsettled[gate] = _settlement(gate, ask, at, used)

    def connected(self) -> None:
        """Send what could not be sent, or may not have arrived."""
        self._settle_again()
        self._back.set()  # leases of calls that were let in meanwhile are not known there yet

    def _settle_again(self) -> None:
        waiting, self._unsettled = self._unsettled, {}
        for gate, data in waiting.items():
            self._pipe.send(data, SETTLE, self._settled, gate)

    async def renew(self) -> None:
        """Keep the leases and reservations of living calls alive; those of a gateway that died expire."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):
                    await self._back.wait()
            self._back.clear()
            self._forget_gates()
            if not self._pipe.down:  # what failed just before Redis was back, or was refused by it
                self._settle_again()
            if self._held:
                with suppress(StoreDown):
                    await self._renew_held()

    async def _renew_held(self) -> None:
        seconds, micros = await self._pipe.call("TIME")
        now = int(seconds) * MICRO + int(micros)
        leases: dict[str, list[str]] = {}
        reserved: dict[str, list[str]] = {}
        for ask in self._held.values():
            for dimension, amount in zip(ask.plan.dimensions, ask.amounts, strict=True):
                key = TAG + dimension.key
                if dimension.kind == "lease":
                    leases.setdefault(key, []).append(ask.call_id)
                elif dimension.kind == "budget":
                    reserved.setdefault(key + ":open", []).append(f"{ask.call_id} {amount}")
        for key, members in leases.items():  # without XX: a Redis that has lost its leases learns them again
            self._renew_members("ZADD", key, now + LEASE_MICROS, members)
            self._pipe.submit("ZREMRANGEBYSCORE", key, "-inf", now)
            self._pipe.submit("PEXPIRE", key, LEASE_KEY_MS)
        for key, members in reserved.items():
            self._renew_members("ZADD", key, now + LEASE_MICROS, members, "XX")

    def _renew_members(self, command: str, key: str, deadline: int, members: list[str], *options: str) -> None:
        for start in range(0, len(members), STEP):
            pairs = [part for member in members[start : start + STEP] for part in (deadline, member)]
            self._pipe.submit(command, key, *options, *pairs)

    def _forget_gates(self) -> None:
        known, self._known = self._known, []
        for start in range(0, len(known), STEP):
            step = known[start : start + STEP]
            self._pipe.send(pack(("DEL", *step)), None, self._forgotten, step)

    def _forgotten(self, command: Command, answer: Any) -> None:
        """Gates whose deletion may be lost are deleted again: they would stay for an hour."""
        if isinstance(answer, BaseException):
            self._known += command.about[: max(0, MAX_UNSETTLED - len(self._known))]

    async def _bring_versions(self, ask: Ask) -> None:
        """The counters do not know a record's version: they are new, or were lost. The records know."""
        for name, version in ask.plan.records:
            if version:
                stored = await self._records.version(name)
                if stored is not None:
                    await self._pipe.call("SET", TAG + "version:" + name, stored, "NX")

    async def _rebuilt(self) -> None:
        """Wait until the budgets have been rebuilt from the ledger; calls that come meanwhile wait for the same."""
        if self._rebuilding is None or self._rebuilding.done():
            self._rebuilding = asyncio.create_task(self._rebuild(), name="rebuild")
            self._rebuilding.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._rebuilding)

    async def _rebuild(self) -> None:
        for _ in range(WAIT_TURNS):
            if await self._pipe.call("SET", _LOCK, 1, "NX", "PX", LOCK_MS):
                break
            await asyncio.sleep(WAIT_SECONDS)
            if await self._pipe.call("EXISTS", _COMPLETE):
                return  # another gateway has done it
        else:
            raise StoreDown("the budgets are being rebuilt by another gateway")
        try:
            if not await self._pipe.call("EXISTS", _COMPLETE):  # it may have been done just before we got the lock
                await self._rebuild_all()
                await self._pipe.call("SET", _COMPLETE, 1)
        finally:
            self._pipe.submit("DEL", _LOCK)

    async def _rebuild_all(self) -> None:
        seconds, _ = await self._pipe.call("TIME")
        now = float(seconds)
        first = min(periods.first_day("week", now), periods.first_day("month", now))
        found = list(budgets_of(await self._ledger.sums(first, periods.day(now)), now))
        for start in range(0, len(found), STEP):
            step = found[start : start + STEP]
            numbers = [number for _, period, units in step for number in (period, units)]
            await self._pipe.run(REBUILD, [TAG + key for key, _, _ in step], *numbers)
            await self._pipe.call("PEXPIRE", _LOCK, LOCK_MS)
        if found:
            log.warning("the counters had been lost: %d budgets are rebuilt from the ledger", len(found))


class _Encoded:
    """What is sent for the calls of a plan, as far as it is the same for all of them."""

    __slots__ = ("admission", "all", "budgets", "costs", "count", "counted", "metered", "readings", "returns")

    def __init__(self, plan: Plan) -> None:
        dimensions = plan.dimensions
        self.costs = [_cost(dimension) for dimension in dimensions]
        """What a unit is counted as: microseconds of a rate, itself elsewhere."""
        self.readings = [
            (dimension.kind == "rate", cost, dimension.limit)
            for dimension, cost in zip(dimensions, self.costs, strict=True)
        ]
        """How the levels that come back are read."""
        keys = [_DEAD, _COMPLETE, *(f"{TAG}version:{name}" for name, _ in plan.records)]
        keys += [TAG + dimension.key for dimension in dimensions]
        fixed: list[Any] = [len(plan.records), LEASE_MICROS, *(version for _, version in plan.records)]
        for dimension, cost in zip(dimensions, self.costs, strict=True):
            most = dimension.limit * cost
            fixed += (_kind(dimension), most, -(-most // 1000) + 1000 if dimension.kind == "rate" else 0)
        parts = 3 + len(keys) + len(fixed) + 1 + len(dimensions)
        self.admission = b"*%d\r\n%b%b" % (parts, ADMIT.by_digest, packed(len(keys), *keys, *fixed))
        self.count = len(b"*%d\r\n" % (1 + len(dimensions)))
        """Bytes by which a packed command is longer than the parts in it: call id and amounts."""
        self.budgets = any(dimension.kind == "budget" for dimension in dimensions)
        self.counted = [i for i, dimension in enumerate(dimensions) if dimension.unit == "requests"]
        """Of these every call takes what it has asked for: there is nothing to settle."""
        self.metered = _Settling(plan, self.costs, [i for i in range(len(dimensions)) if i not in self.counted])
        self.all = _Settling(plan, self.costs, range(len(dimensions)))
        self.returns = [
            b"*3\r\n" + packed("ZREM", TAG + dimension.key) for dimension in dimensions if dimension.kind == "lease"
        ]
        """How the commands begin that give slots back."""


class _Settling:
    """How a settlement of some of a plan's dimensions is sent."""

    __slots__ = ("begin", "costs", "count", "kinds")

    def __init__(self, plan: Plan, costs: Sequence[int], indices: Sequence[int]) -> None:
        self.costs = [(i, costs[i]) for i in indices]
        keys, kinds = list[str](), list[Any]()
        for i in indices:
            dimension = plan.dimensions[i]
            keys.append(TAG + dimension.key)
            kinds += (_kind(dimension), dimension.limit * costs[i])
        parts = 3 + len(keys) + 1 + len(kinds) + 2 + 2 * len(indices)
        self.begin = b"*%d\r\n%b%b" % (parts, SETTLE.by_digest, packed(len(keys) + 1, *keys))
        self.count = len(b"*%d\r\n" % (2 + 2 * len(indices)))
        self.kinds = packed(*kinds) if kinds else b""


def _encode(plan: Plan) -> _Encoded:
    plan.encoded = encoded = _Encoded(plan)
    return encoded


def _settlement(gate: bytes, ask: Ask, at: int, used: Sequence[int]) -> bytes:
    """The command that settles a call."""
    encoded: _Encoded = ask.plan.encoded or _encode(ask.plan)
    amounts, settling = ask.amounts, encoded.metered
    for i in encoded.counted:
        if used[i] != amounts[i]:
            settling = encoded.all
    parts: list[Any] = [ask.call_id, at]
    for i, cost in settling.costs:
        parts += (amounts[i] * cost, used[i] * cost)
    units = pack(tuple(parts))[settling.count :]
    return b"%b$%d\r\n%b\r\n%b%b" % (settling.begin, len(gate), gate, settling.kinds, units)


def _kind(dimension: Dimension) -> str:
    """Its kind, as the scripts know it."""
    if dimension.kind == "budget":
        assert dimension.period is not None
        return dimension.period
    return "debt" if dimension.kind == "rate" and dimension.unit != "requests" else dimension.kind


def _cost(dimension: Dimension) -> int:
    """What a unit is counted as. The price of a rate's is rounded up, so that the rate is never above the limit."""
    return -(-int(dimension.window * MICRO) // max(1, dimension.limit)) if dimension.kind == "rate" else 1

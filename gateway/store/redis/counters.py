"""The counters in Redis: one script call an admission, one a settlement, and what they need to be complete."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from gateway.core.types import Ask, Dimension, Standing, Verdict
from gateway.store import LEASE_SECONDS, RENEW_SECONDS, Ledger, StoreDown, periods
from gateway.store.rebuild import budgets_of
from gateway.store.redis.connection import Pipe, script

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
LOCK_MS = 10_000
WAIT_TURNS, WAIT_SECONDS = 50, 0.02
"""How long a call waits for another gateway that rebuilds the budgets."""

ADMIT, SETTLE, REBUILD = script("period", "admit"), script("period", "settle"), script("rebuild")


class RedisCounters:
    """Raises `StoreDown` when Redis does not answer in time. A retry could charge twice: none.

    `version_of` asks for a record's stored version (None: there is none), `ledger` for what was spent.
    """

    def __init__(self, pipe: Pipe, ledger: Ledger, version_of: Callable[[str], Awaitable[bytes | None]]) -> None:
        self._pipe, self._ledger, self._version_of = pipe, ledger, version_of
        self._held: dict[str, Ask] = {}
        self._unsettled: dict[str, tuple[list[str], list[Any]]] = {}
        self._known: list[str] = []
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

    def hold(self, ask: Ask) -> None:
        self._held[ask.call_id] = ask

    def held(self) -> list[Ask]:
        return list(self._held.values())

    async def admit(self, ask: Ask) -> Verdict:
        answer = await self._admit(ask)
        if answer[0] == 3:
            await self._bring_versions(ask)
            answer = await self._admit(ask)
        if answer[0] == 4:
            await self._rebuilt()
            answer = await self._admit(ask)
        verdict = _verdict(answer)
        if answer[0] == 0:
            self._held[ask.call_id] = ask
        return verdict

    async def _admit(self, ask: Ask) -> list[int]:
        keys = [_DEAD, _COMPLETE]
        versions = []
        for name, version in ask.records:
            keys.append(TAG + "version:" + name)
            versions.append(version)
        arguments: list[Any] = []
        for dimension in ask.dimensions:
            keys.append(TAG + dimension.key)
            arguments += (*_kind(dimension), dimension.amount)
        answer = self._pipe.run(ADMIT, keys, ask.call_id, len(versions), LEASE_MICROS, *versions, *arguments)
        try:
            found: list[int] = await asyncio.shield(answer)
            return found
        except (asyncio.CancelledError, StoreDown):
            # Redis may grant this yet, or may have: what nobody will use is handed back.
            answer.add_done_callback(lambda future: self._hand_back(future, ask))
            raise

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> asyncio.Future[Any] | None:
        """As the protocol says. Where nothing is to be corrected it takes the shorter way."""
        if self._held.pop(ask.call_id, None) is None:
            return None
        if any(d.kind == "budget" or units != d.amount for d, units in zip(ask.dimensions, used, strict=True)):
            return self._settle(TAG + "settled:" + ask.call_id, ask, at, used)
        told: asyncio.Future[Any] | None = None
        for dimension in ask.dimensions:
            if dimension.kind == "lease":
                told = self._pipe.post("ZREM", TAG + dimension.key, ask.call_id)
        if told is not None:
            told.add_done_callback(lambda future: self._keep(future, ask, at, used))
        return told

    def owe(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        self._settle(TAG + "settled:" + ask.call_id, ask, at, used)

    def _keep(self, told: asyncio.Future[Any], ask: Ask, at: int, used: Sequence[int]) -> None:
        """The short way failed: the long one is open when Redis is back."""
        if not told.cancelled() and told.exception() is not None and len(self._unsettled) < MAX_UNSETTLED:
            gate = TAG + "settled:" + ask.call_id
            self._unsettled[gate] = _settlement(gate, ask, at, used)

    def _settle(self, gate: str, ask: Ask, at: int, used: Sequence[int]) -> asyncio.Future[Any]:
        return self._send_settlement(*_settlement(gate, ask, at, used))

    def _send_settlement(self, keys: list[str], arguments: list[Any]) -> asyncio.Future[Any]:
        """Now, and again when Redis is back if it cannot be known to have arrived: it counts once."""

        def ended(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                return
            if future.exception() is None:
                self._known.append(keys[0])
            elif len(self._unsettled) < MAX_UNSETTLED:
                self._unsettled[keys[0]] = (keys, arguments)

        told = self._pipe.run(SETTLE, keys, *arguments)
        told.add_done_callback(ended)
        return told

    def _hand_back(self, answer: asyncio.Future[Any], ask: Ask) -> None:
        if answer.cancelled():
            return
        known = answer.exception() is None
        if known and answer.result()[0] != 0:
            return
        # Under a gate of its own: the same call may have been granted elsewhere, and be settled when it has ended.
        gate = TAG + "settled:" + ask.call_id + ":unused"
        self._settle(gate, ask, answer.result()[3] if known else 0, [0] * len(ask.dimensions))

    def connected(self) -> None:
        """Send what could not be sent, or may not have arrived."""
        self._settle_again()
        self._back.set()  # leases of calls that were let in meanwhile are not known there yet

    def _settle_again(self) -> None:
        waiting, self._unsettled = self._unsettled, {}
        for keys, arguments in waiting.values():
            self._send_settlement(keys, arguments)

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
        deadline = int(seconds) * MICRO + int(micros) + LEASE_MICROS
        for ask in list(self._held.values()):
            for dimension in ask.dimensions:
                key = TAG + dimension.key
                if dimension.kind == "lease":  # without XX: a Redis that has lost its leases learns them again
                    self._pipe.post("ZADD", key, deadline, ask.call_id)
                    self._pipe.post("PEXPIRE", key, LEASE_KEY_MS)
                elif dimension.kind == "budget":
                    self._pipe.post("ZADD", key + ":open", "XX", deadline, f"{ask.call_id} {dimension.amount}")

    def _forget_gates(self) -> None:
        known, self._known = self._known, []
        for start in range(0, len(known), STEP):
            step = known[start : start + STEP]
            self._pipe.post("DEL", *step).add_done_callback(partial(self._forgotten, step))

    def _forgotten(self, step: list[str], told: asyncio.Future[Any]) -> None:
        """Gates whose deletion may be lost are deleted again: they would stay for an hour."""
        if not told.cancelled() and told.exception() is not None:
            self._known += step[: max(0, MAX_UNSETTLED - len(self._known))]

    async def _bring_versions(self, ask: Ask) -> None:
        """The counters do not know a record's version: they are new, or were lost. The records know."""
        for name, version in ask.records:
            if version:
                stored = await self._version_of(name)
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
            self._pipe.post("DEL", _LOCK)

    async def _rebuild_all(self) -> None:
        seconds, _ = await self._pipe.call("TIME")
        now = float(seconds)
        first = min(periods.first_day("week", now), periods.first_day("month", now))
        found = list(budgets_of(await self._ledger.sums(first, periods.day(now)), now))
        for start in range(0, len(found), STEP):
            step = found[start : start + STEP]
            numbers = [number for _, period, units in step for number in (period, units)]
            await asyncio.shield(self._pipe.run(REBUILD, [TAG + key for key, _, _ in step], *numbers))
            await self._pipe.call("PEXPIRE", _LOCK, LOCK_MS)
        if found:
            log.warning("the counters had been lost: %d budgets are rebuilt from the ledger", len(found))


def _settlement(gate: str, ask: Ask, at: int, used: Sequence[int]) -> tuple[list[str], list[Any]]:
    """Keys and arguments of a settlement."""
    keys, arguments = [gate], [ask.call_id, at]
    for dimension, units in zip(ask.dimensions, used, strict=True):
        keys.append(TAG + dimension.key)
        arguments += (*_kind(dimension), dimension.amount, units)
    return keys, arguments


def _kind(dimension: Dimension) -> tuple[str, int, int | str]:
    if dimension.kind == "budget":
        assert dimension.period is not None
        return "budget", dimension.limit, dimension.period
    kind = "debt" if dimension.kind == "rate" and dimension.unit != "requests" else dimension.kind
    return kind, dimension.limit, int(dimension.window * MICRO)


def _verdict(answer: Sequence[int]) -> Verdict:
    status, denied, wait, now = answer[:4]
    if status == 4:
        raise StoreDown("the budgets are being rebuilt")
    if status > 1:
        return Verdict(stale=True, at=now)
    standings = tuple(Standing(answer[i], answer[i + 1] / MICRO) for i in range(4, len(answer), 2))
    return Verdict(standings, denied=denied - 1 if status == 1 else None, retry_after=wait / MICRO, at=now)

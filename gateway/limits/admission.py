"""Admission: whether a call may come in under its key's limits, and the lease it holds while it runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import structs

from gateway.core.errors import RateLimited
from gateway.core.types import Ask, Dimension, KeyRecord, Limit, Verdict
from gateway.store import LEASE_SECONDS, Store, StoreDown
from gateway.store.memory import MemoryStore

log = logging.getLogger("trunkline.limits")

MAX_STALE = 3
"""Times a key may change under one call before it is told to come again."""


class Lease:
    """What admission grants; leaving the `with` gives the slot back, exactly once, however the call ended."""

    __slots__ = ("_ask", "_release", "headers")

    def __init__(self, ask: Ask, release: Callable[[Ask], None], headers: list[tuple[bytes, bytes]]) -> None:
        self._ask, self._release, self.headers = ask, release, headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release(self._ask)


class Admission:
    """Asks the store; while the store is down, grants each gateway its share of the limit from its own counters."""

    def __init__(
        self,
        store: Store,
        *,
        gateways: int = 1,
        seconds: Callable[[float], None] = lambda _: None,
        denied: Callable[[str], None] = lambda _: None,
        degraded: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._gateways = store, gateways
        self._seconds, self._denied, self._clock = seconds, denied, clock
        self._tell_degraded = degraded
        self._own = MemoryStore(Path("/dev/null"))
        self.degraded = False

    async def admit(
        self, call_id: str, key: KeyRecord, default: Limit, refresh: Callable[[], Awaitable[KeyRecord]]
    ) -> Lease:
        """A lease. Raises `RateLimited` with when to come again, and what `refresh` raises.

        `refresh` looks at the caller's key again, after it was found to have changed.
        """
        for _ in range(MAX_STALE):
            ask = _ask(call_id, key, key.limit.over(default))
            verdict, release = await self._decide(ask)
            if not verdict.stale:
                break
            key = await refresh()
        else:
            raise RateLimited("The key is being changed; try again.", dimension="key", retry_after=1)
        headers = _headers(ask, verdict)
        if self.degraded:
            headers.append((b"x-trunkline-degraded", b"limits-local"))
        if verdict.denied is not None:
            raise self._denial(ask, verdict, headers)
        return Lease(ask, release, headers)

    async def _decide(self, ask: Ask) -> tuple[Verdict, Callable[[Ask], None]]:
        started = self._clock()
        try:
            verdict = await self._store.admit(ask)
        except StoreDown as error:
            self._degrade(error)
            shares = tuple(
                structs.replace(dimension, limit=max(1, dimension.limit // self._gateways))
                for dimension in ask.dimensions
            )
            return self._own.charge(structs.replace(ask, dimensions=shares)), self._own.release
        finally:
            self._seconds(self._clock() - started)
        if self.degraded:
            self.degraded = False
            self._tell_degraded(False)
            log.warning("limits are shared again")
        return verdict, self._store.release

    def _degrade(self, error: StoreDown) -> None:
        if not self.degraded:
            self.degraded = True
            self._tell_degraded(True)
            log.warning("limits are counted in this gateway only: %s", error)

    def _denial(self, ask: Ask, verdict: Verdict, headers: list[tuple[bytes, bytes]]) -> RateLimited:
        assert verdict.denied is not None
        dimension = ask.dimensions[verdict.denied]
        self._denied(dimension.name)
        what = (
            f"{dimension.limit} requests per minute"
            if dimension.name == "rpm"
            else f"{dimension.limit} calls at the same time"
        )
        wait = verdict.retry_after
        error = RateLimited(
            f"This key is limited to {what}. Try again in {duration(wait)}.", dimension=dimension.name, retry_after=wait
        )
        error.headers = {name.decode(): value.decode() for name, value in headers}
        return error


def _ask(call_id: str, key: KeyRecord, limit: Limit) -> Ask:
    dimensions = []
    if limit.rpm is not None:
        dimensions.append(Dimension("rpm", "rate", f"rate:key:{key.id}:rpm", limit.rpm, 60.0))
    if limit.concurrency is not None:
        dimensions.append(Dimension("concurrency", "lease", f"lease:key:{key.id}", limit.concurrency, LEASE_SECONDS))
    return Ask(call_id, key.id, key.version, tuple(dimensions))


def _headers(ask: Ask, verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """OpenAI's rate-limit headers for the requests dimension."""
    for dimension, standing in zip(ask.dimensions, verdict.standings, strict=False):
        if dimension.name == "rpm":
            return [
                (b"x-ratelimit-limit-requests", b"%d" % dimension.limit),
                (b"x-ratelimit-remaining-requests", b"%d" % standing.remaining),
                (b"x-ratelimit-reset-requests", duration(standing.reset).encode()),
            ]
    return []


def duration(seconds: float) -> str:
    """A duration as OpenAI writes it: `17ms`, `1s`, `6m0s`."""
    if (milliseconds := math.ceil(seconds * 1000)) < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"

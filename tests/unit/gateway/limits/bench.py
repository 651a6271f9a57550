"""An admission on a store that can be taken away, with a clock that stands still and ears for all that it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from harness.around import Around
from harness.clock import FixedClock
from msgspec import Struct, structs

from backends.api import Call, Endpoint
from backends.body import Body
from gateway.config.limits import Price
from gateway.core.errors import GatewayError, LimitReached, Unauthenticated
from gateway.core.types import Ask, KeyRecord, Limit, Secret, Spent, Tenant, Verdict
from gateway.limits import Admission, AdmissionEvents, Lease, Rules
from gateway.limits.headers import Headers
from gateway.store import StoreDown
from gateway.store.local import LocalStore

USED = Spent(input=5, output=2)
"""What calls use here unless a test says otherwise."""


class Person(Struct, frozen=True):
    """Whom a call is charged to."""

    key: KeyRecord
    tenant: Tenant | None = None


class Flaky(Around):
    """Limits in memory that a test can take away, and whose settlements a test can delay."""

    down = False
    told: asyncio.Future[Any] | None = None
    """What `settle` gives back."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.asked: list[Ask] = []
        self.settled: list[tuple[Ask, int, Sequence[int]]] = []
        self.owed: list[tuple[Ask, int, Sequence[int]]] = []
        self.under_way: dict[str, Ask] = {}

    async def admit(self, ask: Ask) -> Verdict:
        if self.down:
            raise StoreDown("gone")
        self.asked.append(ask)
        verdict = await self.inner.admit(ask)
        if verdict.denied is None and not verdict.stale:
            self.under_way[ask.call_id] = ask
        return verdict

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> asyncio.Future[Any] | None:
        self.settled.append((ask, at, used))
        self.under_way.pop(ask.call_id, None)
        self.inner.settle(ask, at, used)
        return self.told

    def charge_later(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        self.owed.append((ask, at, used))

    def open_leases(self) -> list[Ask]:
        return list(self.under_way.values())


def call(number: int | str = 0, *, endpoint: Endpoint = "chat/completions", **fields: Any) -> Call:
    """A call with these fields in its body."""
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()
    return Call(f"c{number}", endpoint, "m", Body(raw))


class Held:
    """A lease, and what its call will have spent when its block ends."""

    def __init__(self, lease: Lease, spent: Spent) -> None:
        self.lease, self.spent = lease, spent

    @property
    def headers(self) -> Headers:
        return self.lease.headers

    @property
    def at(self) -> float:
        return self.lease.at

    async def end(self) -> None:
        await self.lease.end(self.spent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        """As the page does it."""
        if isinstance(error[1], asyncio.CancelledError):
            self.lease.settle(self.spent)
        await self.end()


class Noted(AdmissionEvents):
    """Writes down what a bench's admission tells."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def answered(self, seconds: float) -> None:
        self._bench.seconds.append(seconds)

    def denied(self, scope: str, dimension: str) -> None:
        self._bench.denied.append((scope, dimension))

    def degraded(self, alone: bool) -> None:
        self._bench.told.append(alone)


class Bench:
    """One gateway's admission; `denied`, `told` and `seconds` are what it has told its metrics."""

    def __init__(
        self, folder: Path, rules: Rules | None = None, *, gateways: int = 1, prices: dict[str, Price] | None = None
    ) -> None:
        self.clock, self.denied, self.seconds = FixedClock(), list[tuple[str, str]](), list[float]()
        self.told = list[bool]()
        self.store = LocalStore(folder / "keys.json", self.clock.now)
        self.store.limits = self.limits = Flaky(self.store.limits)
        self.refreshed = self.calls = 0
        self.admission = Admission(
            self.store,
            rules,
            prices=prices or {},
            gateways=gateways,
            events=Noted(self),
            clock=self.clock,
            now=self.clock.now,
        )

    async def person(
        self, limit: Limit | None = None, *, id: str = "k", tenant: Limit | None = None, **fields: Any
    ) -> Person:
        """A new key, and its tenant if that is to have a limit."""
        record = KeyRecord(
            id=id, name="n", created=1, secrets=(Secret(digest="0"),), limit=limit or Limit(), tenant="t", **fields
        )
        await self.store.records.put(record)
        if tenant is None:
            return Person(record)
        above = Tenant(id="t", created=1, limit=tenant)
        await self.store.records.put(above)
        return Person(record, above)

    async def changed(self, person: Person, limit: Limit) -> Person:
        """The key with another limit, as somebody else has just stored it."""
        record = structs.replace(person.key, version=person.key.version + 1, limit=limit)
        await self.store.records.put(record)
        return Person(record, person.tenant)

    async def admit(self, person: Person, asked: Call | None = None, *, route: str = "r", spent: Spent = USED) -> Held:
        """A lease on a new call."""
        self.calls += 1
        asked = asked or call()
        asked = structs.replace(asked, id=f"c{self.calls}")
        return Held(await self.admission.admit(asked, person, route, self._refresh(person, asked)), spent)

    async def done(self, person: Person, asked: Call | None = None, *, route: str = "r", spent: Spent = USED) -> Held:
        """A lease on a new call that has ended already."""
        lease = await self.admit(person, asked, route=route, spent=spent)
        async with lease:
            return lease

    async def refused(self, person: Person, asked: Call | None = None, *, route: str = "r") -> LimitReached:
        """The denial of a new call, which must be denied."""
        try:
            await self.admit(person, asked, route=route)
        except LimitReached as error:
            return error
        raise AssertionError("the call was let in")

    async def granted(self, person: Person, times: int, asked: Call | None = None) -> int:
        """How many of so many calls at once are let in."""
        count = 0
        for _ in range(times):
            try:
                await self.admit(person, asked)
            except GatewayError:
                continue
            count += 1
        return count

    def _refresh(self, person: Person, asked: Call) -> Callable[[], Any]:
        async def refresh() -> tuple[Person, Call]:
            self.refreshed += 1
            stored = await self.store.records.get(KeyRecord, person.key.id)
            if stored is None or stored.revoked:
                raise Unauthenticated
            return Person(stored, await self.store.records.get(Tenant, stored.tenant)), asked

        return refresh


def header(lease: Held, name: str) -> str | None:
    """A header of a granted call's answer."""
    found = dict(lease.headers).get(name.encode())
    return None if found is None else found.decode()


def tokens_left(lease: Held) -> int:
    """Tokens that a granted call's answer says are left."""
    left = header(lease, "x-ratelimit-remaining-tokens")
    assert left is not None
    return int(left)

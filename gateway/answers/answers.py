"""Looks for the answer to a call among those that are kept, and keeps the one that it gets. Neither can fail it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

from backends.api import Call, Usage
from gateway.answers.kept import OVERHEAD, Kept, ended_well, sealed, unsealed, usage_of
from gateway.answers.taking_part import HEADER, obstacle, wish_of
from gateway.answers.terms import Terms
from gateway.core.clock import Clock
from gateway.store import KeptValues, StoreDown

MOST_HELD: Final = 64 * 1024**2
"""Bytes of answers that a worker copies, or that wait for the cache to take them; beyond that answers are not kept."""
REST_SECONDS: Final = 1.0
"""After an answer that was late one call looks in so long, until one is in time: a slow cache does not delay all."""

Found = Literal["hit", "miss", "refresh", "bypass", "unavailable", "unreadable"]
Outcome = Literal["kept", "too_large", "no_memory", "not_whole", "unavailable"]


class AnswerEvents:
    """Told of what becomes of calls that take part, for metrics; the methods must not raise."""

    def looked(self, route: str, found: Found) -> None:
        """The answer to a call was looked for."""

    def saved(self, route: str, input: int, output: int) -> None:
        """So many tokens need not be made again."""

    def kept(self, route: str, outcome: Outcome) -> None:
        """A good answer was kept, or was not."""


class Client(Protocol):
    """Who asks, as far as it matters here."""

    headers: dict[bytes, bytes]


class Answers:
    """The answers that are kept, of all routes and tenants."""

    def __init__(self, values: KeptValues, secret: bytes, clock: Clock, events: AnswerEvents | None = None) -> None:
        """`secret` is what answers are named and sealed with, the same for all gateways that share them."""
        self._values, self._secret, self._clock = values, secret, clock
        self.events = events or AnswerEvents()
        self.held = 0
        """Bytes that are held for it."""
        self._late, self._rests_until = False, 0.0

    async def look(self, call: Call, terms: Terms, tenant: str, client: Client) -> Cached:
        """What there is for the call; it waits for that as long as the route allows. Raises `BadRequest` for a header
        that says nothing known."""
        wish = wish_of(client.headers)
        cached = Cached(self, call, terms)
        if obstacle(call, terms.spec, wish):
            return cached
        cached.name = terms.name(call, tenant, client.headers, self._secret)
        if wish == "refresh":
            cached.found = "refresh"
        else:
            cached.found, cached.answer = await self._find(cached.name, terms)
        self.events.looked(terms.route, cached.found)
        if (answer := cached.answer) is not None:
            self.events.saved(terms.route, answer.input, answer.output)
            cached.age = max(0, int(self._clock.now() - answer.made_at))
        return cached

    async def _find(self, name: str, terms: Terms) -> tuple[Found, Kept | None]:
        if self._late:
            now = self._clock.monotonic()
            if now < self._rests_until:
                return "unavailable", None
            self._rests_until = now + REST_SECONDS
        asked = self._values.get(name, terms.spec.largest + OVERHEAD)
        await asyncio.wait([asked], timeout=terms.spec.wait)
        if not asked.done():
            await asyncio.sleep(0)  # where the loop was busy for so long, the answer lies there unread
        if not asked.done():
            self._late, self._rests_until = True, self._clock.monotonic() + REST_SECONDS
            return "unavailable", None
        try:
            value: bytes = asked.result()
        except StoreDown:
            return "unavailable", None
        self._late = False
        if not value:
            return "miss", None
        answer = unsealed(name, value, self._secret)
        return ("unreadable", None) if answer is None else ("hit", answer)

    def keep(self, name: str, terms: Terms, answer: Kept) -> None:
        """Have an answer stored under this name, soon."""
        value = sealed(name, answer, self._secret)
        size = len(value)

        def ended(answer: Any) -> None:
            self.held -= size
            self.events.kept(terms.route, "unavailable" if isinstance(answer, Exception) else "kept")

        self.held += size
        self._values.put(name, value, terms.spec.ttl, ended)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.now()


class Cached:
    """One call that takes part: what there is for it, and the copy of the answer that it gets. It ends with `end`."""

    __slots__ = ("_answers", "_call", "_content_type", "_pieces", "_size", "_terms", "age", "answer", "found", "name")

    def __init__(self, answers: Answers, call: Call, terms: Terms) -> None:
        self._answers, self._call, self._terms = answers, call, terms
        self._pieces: list[bytes] | None = None
        """What has come of an answer that may be kept; None: none may be."""
        self._content_type, self._size = b"", 0
        self.found: Found = "bypass"
        self.answer: Kept | None = None
        """The answer, if there is one."""
        self.age = 0
        """How old that is, in seconds."""
        self.name = ""
        """Under which its answer is kept; empty: it is not."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the client is told."""
        if self.answer is not None:
            return [(HEADER, b"hit"), (b"age", b"%d" % self.age)]
        return [(HEADER, self.found.encode() if self.found in ("refresh", "bypass") else b"miss")]

    def copy(self, content_type: bytes, *, own: bool) -> Callable[[bytes], None]:
        """What takes the pieces of an answer that begins to come; of one before it nothing stays.

        Only one of the route's `own` targets is kept, and only from its beginning: others may be of another model.
        """
        self._drop()
        self._content_type, self._pieces = content_type, [] if own else None
        return self._add

    def end(self, *, good: bool, usage: Usage | None) -> None:
        """The call is over. If that is `good`, its client has all of the answer: keep it, without waiting for that."""
        if self._pieces is None:
            return
        body, answers = b"".join(self._pieces) if good else b"", self._answers
        if good and ended_well(self._call, body):
            answers.keep(self.name, self._terms, Kept(self._content_type, body, answers.now(), *usage_of(usage)))
        elif good:
            answers.events.kept(self._terms.route, "not_whole")
        self._drop()

    def _add(self, data: bytes) -> None:
        if self._pieces is None:
            return
        size = len(data)
        if self._size + size > self._terms.spec.largest:
            self._give_up("too_large")
        elif self._answers.held + size > MOST_HELD:
            self._give_up("no_memory")
        else:
            self._pieces.append(data)
            self._size += size
            self._answers.held += size

    def _drop(self) -> None:
        self._answers.held -= self._size
        self._pieces, self._size = None, 0

    def _give_up(self, why: Outcome) -> None:
        self._drop()
        self._answers.events.kept(self._terms.route, why)

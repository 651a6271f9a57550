"""What gateways tell each other of the load they have put on targets, five times a second.

One board for each route, one word on it for each gateway: absolute numbers, so that a lost word or a dead gateway harms
nobody for long. The word also holds the last notes of the route's policies, counted, so that a reader applies each once
though it reads most of them several times.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from gateway.routes.load import KNOWN_GATEWAYS, STALE_SECONDS, Load, Told
from gateway.routes.policies.api import Note
from gateway.routes.target import Target
from gateway.routes.tier import Tier
from gateway.store import StoreDown

log = logging.getLogger("trunkline.routes")

SECONDS: Final = 0.2
RING: Final = 32
QUIET_SECONDS: Final = 5.0
"""A board is read for so long after its route was last busy here."""

Words = Mapping[str, tuple[bytes, float]]
"""By gateway: its word and the word's age in seconds."""


class Word(Struct, frozen=True, array_like=True):
    """What a gateway writes on a board."""

    loads: dict[str, Told]
    """By the server's URL."""
    count: int = 0
    """Notes ever written; the last ones are in `notes`."""
    notes: tuple[Note, ...] = ()
    waiting: int = 0
    """Calls in the route's queue."""
    inflight: dict[str, int] = {}
    """Calls at targets with `max_inflight`, by name."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Word)


class Shared(Protocol):
    """A route as the exchange needs it."""

    others_waiting: int
    """Calls in other gateways' queues, as they last told."""

    @property
    def name(self) -> str:
        """The board's."""

    @property
    def waiting(self) -> int:
        """Calls in its queue."""

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Whose policies may have notes."""


class Board:
    """One route's word, and what others said there. `loads` are those of servers which no earlier route lists."""

    def __init__(self, route: Shared, loads: Mapping[str, Load]) -> None:
        self.route, self.loads = route, loads
        self._bounded = [target for tier in route.tiers for target in tier.targets if target.max_inflight is not None]
        self._all = [target.load for tier in route.tiers for target in tier.targets]
        self._written = 0
        self._ring: deque[Note] = deque(maxlen=RING)
        self._heard: dict[str, int] = {}
        self._charged, self._busy, self._quiet = -1, float("-inf"), False

    def inherit(self, predecessor: Board | None) -> None:
        """Go on where the same route's board of the table before has left off."""
        if predecessor is not None:
            self._written, self._ring, self._heard = predecessor._written, predecessor._ring, predecessor._heard

    def word(self, now: float) -> bytes | None:
        """What to write; None: the route is quiet, and its board need not even be read."""
        for tier in self.route.tiers:
            if tier.teller is not None:
                notes = tier.teller.notes()
                self._ring.extend(notes)
                self._written += len(notes)
        charged = sum(load.charged for load in self._all)
        if charged != self._charged or self.route.waiting or any(load.running for load in self._all):
            self._charged, self._busy, self._quiet = charged, now, False
        if now - self._busy > QUIET_SECONDS:
            if self._quiet:
                return None
            self._quiet = True
            self.route.others_waiting = 0
            for target in self._bounded:
                target.inflight.others = target.inflight.reserve = 0
            for load in self.loads.values():
                load.told({}, now)  # nobody listens any more: what was heard would stay for ever
            return None
        loads = {url: load.tells() for url, load in self.loads.items() if load.charged}
        word = Word(
            loads,
            self._written,
            tuple(self._ring),
            self.route.waiting,
            {target.name: target.inflight.own for target in self._bounded if target.inflight.own},
        )
        return _encoder.encode(word)

    def read(self, words: Words, now: float) -> None:
        """Apply what others wrote. Words that cannot be read are left out: another version's, for a while."""
        told: dict[str, dict[str, tuple[Told, float]]] = {url: {} for url in self.loads}
        self.route.others_waiting = 0
        inflight: Counter[str] = Counter()
        for gateway, (raw, age) in words.items():
            try:
                word = _decoder.decode(raw)
            except (msgspec.DecodeError, ValueError):
                continue
            for url, said in word.loads.items():
                if url in told:
                    told[url][gateway] = said, age
            self._apply(gateway, word)
            self.route.others_waiting += word.waiting
            inflight.update(word.inflight)
        for url, load in self.loads.items():
            load.told(told[url], now)
        for target in self._bounded:
            target.inflight.others = inflight[target.name]
            target.inflight.reserve = self._owed(target)
        while len(self._heard) > KNOWN_GATEWAYS:  # one that was only silent goes on where it was
            del self._heard[next(iter(self._heard))]

    def _owed(self, target: Target) -> int:
        """Slots of the target that others' waiting calls are still to get: as their part of all that wait."""
        theirs, ours = self.route.others_waiting, self.route.waiting
        if not theirs or target.max_inflight is None:
            return 0
        part = max(1, target.max_inflight * theirs // (theirs + ours))
        return min(theirs, max(0, part - target.inflight.others))

    def _apply(self, gateway: str, word: Word) -> None:
        heard = self._heard.pop(gateway, 0)
        fresh = word.count - heard if word.count >= heard else word.count  # it has been restarted
        self._heard[gateway] = word.count
        notes = [note for note in word.notes[-fresh:] if _possible(note)] if fresh else []
        for tier in self.route.tiers if notes else ():
            if tier.teller is not None:
                tier.teller.heard([note for note in notes if note.target in tier.names], tier.targets)


def _possible(note: Note) -> bool:
    """Peers may be of another version."""
    return 0 < note.key < 1 << 64 and 0 <= note.tokens < 1 << 60


class Exchange:
    """Writes and reads the boards as long as it is open. While the store is down each gateway is on its own."""

    def __init__(
        self,
        exchange: Callable[[Mapping[str, bytes]], Awaitable[Mapping[str, Words]]],
        boards: Callable[[], Mapping[str, Board]],
        clock: Callable[[], float],
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        """`exchange` is the store's; `boards` are those of the table in force; `heard` is called after each reading."""
        self._exchange, self._boards, self._clock, self._heard = exchange, boards, clock, heard
        self._task: asyncio.Task[None] | None = None
        self.read_at = float("-inf")
        """When others' words were last read, by the clock."""

    def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="exchange")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def once(self) -> None:
        """Write and read all boards that are in use."""
        boards, now = self._boards(), self._clock()
        mine = {name: word for name, board in boards.items() if (word := board.word(now)) is not None}
        if not mine:
            return
        try:
            others = await self._exchange(mine)
            self.read_at = self._clock()
        except StoreDown:
            others = {}  # what was told last grows old and counts no more
            if self._clock() - self.read_at < STALE_SECONDS:
                return
        for name in mine:
            boards[name].read(others.get(name, {}), self._clock())
        self._heard()

    async def _run(self) -> None:
        while True:
            try:
                await self.once()
            except Exception:  # a bug of ours; without the exchange each gateway would be on its own for good
                log.exception("what gateways tell each other could not be exchanged")
            await asyncio.sleep(SECONDS * random.uniform(0.9, 1.1))  # noqa: S311 - jitter

"""Records in memory: loaded once for many calls, loaded again after a change, kept for when the store is down."""

from __future__ import annotations

import asyncio
from typing import Final, Generic

from gateway.core.clock import Clock
from gateway.store import KINDS, R, Records, StoreDown

FRESH_SECONDS: Final = 60.0
"""How long a record is used without asking the store; admission compares its version on every call all the same."""
DEAF_SECONDS: Final = 1.0
"""The same while changes by others are not heard of."""
STALE_SECONDS: Final = 300.0
"""How long a record is used while the store is down."""
MAX_CACHED: Final = 10_000


class Cache(Generic[R]):
    """The records of one kind that were used last.

    With `absent`, that there is no such record is remembered too. `stale` is how long a record is used while the store
    is down, in seconds; `most` is the number of records kept.
    """

    def __init__(
        self,
        store: Records,
        kind: type[R],
        clock: Clock,
        *,
        absent: bool = False,
        stale: float = STALE_SECONDS,
        most: int = MAX_CACHED,
    ) -> None:
        self._store, self._clock = store, clock
        self._kind: type[R] = kind
        self._absent, self._stale, self._most = absent, stale, most
        self._held: dict[str, _Held[R]] = {}
        self.changes = 0
        """In what is held, and heard of: as long as it stays, memory says what it said."""
        self._loads: dict[str, _Load[R]] = {}
        self._tasks: set[asyncio.Task[_Answer[R]]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def peek(self, id: str) -> R | None:
        """The record in memory, however old."""
        held = self._held.get(id)
        return None if held is None else held.record

    def current(self, id: str) -> _Held[R] | None:
        """What memory vouches for: the record is used without asking the store. None: it must be asked."""
        held = self._held.pop(id, None)
        if held is None:
            return None
        self._held[id] = held  # at the end: what was used last is dropped last
        fresh_seconds = FRESH_SECONDS if self._store.subscribed else DEAF_SECONDS
        return held if not held.outdated and self._clock.monotonic() - held.loaded < fresh_seconds else None

    async def get(self, id: str, *, fresh: bool = False) -> R | None:
        """The record, or None if there is none. Raises `StoreDown` for one that is not in memory.

        `fresh` asks the store in any case; what it answers is never older than this call.
        """
        held = self.current(id)
        if held is not None and not fresh:
            return held.record
        answer = await asyncio.shield(self._load(id, fresh=fresh))
        if answer.down is None:
            return answer.record
        held = self._held.get(id)
        if held is not None and self._clock.monotonic() - held.loaded < self._stale:
            return held.record
        raise StoreDown(str(answer.down)) from answer.down

    def changed(self, name: str | None) -> None:
        """Heed what `Records.watch` tells: forget this record, or look at all of them again before using them."""
        self.changes += 1
        if name is None:
            for held in self._held.values():
                held.outdated = True
            for load in self._loads.values():
                load.outdated = True
            self._loads = {id: load for id, load in self._loads.items() if not load.begun}
            return
        kind, _, id = name.partition(":")
        if kind == KINDS[self._kind]:
            self._held.pop(id, None)
            if (under_way := self._loads.get(id)) is not None and under_way.begun:
                under_way.changed = True
                del self._loads[id]  # who asks from now on must not be given what was there before

    def outdate(self, id: str) -> None:
        """Look at a record again before using it, if the store answers."""
        if (held := self._held.get(id)) is not None:
            held.outdated = True
            self.changes += 1

    async def close(self) -> None:
        """End the loads that are still under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _load(self, id: str, *, fresh: bool) -> asyncio.Task[_Answer[R]]:
        """The load that this call may share. One that has begun may bring what was there before a fresh call came."""
        load = self._loads.get(id)
        if load is None or (fresh and load.begun):
            self._loads[id] = following = _Load[R]()
            # A task of its own: a client that leaves must not take the others' answer with it.
            following.task = asyncio.create_task(self._run(id, following, None if load is None else load.task))
            self._tasks.add(following.task)
            following.task.add_done_callback(self._tasks.discard)
            load = following
        return load.task

    async def _run(self, id: str, load: _Load[R], former: asyncio.Task[_Answer[R]] | None) -> _Answer[R]:
        if former is not None:
            await asyncio.wait([former])
        load.begun, begun = True, self._clock.monotonic()
        load.outdated = False
        try:
            record = await self._store.get(self._kind, id)
        except StoreDown as error:
            return _Answer(None, error)
        finally:
            if self._loads.get(id) is load:
                del self._loads[id]
        if not load.changed:
            self._keep(id, _Held(record, begun, load.outdated))
        return _Answer(record)

    def _keep(self, id: str, held: _Held[R]) -> None:
        self.changes += 1
        former = self._held.get(id)
        if former is not None and former.loaded > held.loaded:
            return
        self._held.pop(id, None)
        if held.record is None and not self._absent:
            return
        while len(self._held) >= self._most:
            del self._held[next(iter(self._held))]
        self._held[id] = held


class _Answer(Generic[R]):
    """What the store said: the record, or why it could not be asked."""

    __slots__ = ("down", "record")

    def __init__(self, record: R | None, down: StoreDown | None = None) -> None:
        self.record: R | None = record
        self.down = down


class _Held(Generic[R]):
    __slots__ = ("loaded", "outdated", "record")

    def __init__(self, record: R | None, loaded: float, outdated: bool) -> None:
        self.record: R | None = record
        self.loaded = loaded
        self.outdated = outdated
        """It may have changed; it is used only while the store is down."""


class _Load(Generic[R]):
    """A load under way, and what was heard of its record since it began."""

    __slots__ = ("begun", "changed", "outdated", "task")

    def __init__(self) -> None:
        self.begun = self.changed = self.outdated = False
        self.task: asyncio.Task[_Answer[R]]

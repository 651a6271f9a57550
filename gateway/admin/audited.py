"""Changing a record that others may change at the same moment, with an entry in the audit log."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from gateway.admin.redact import public
from gateway.auth.rehash import K
from gateway.core.clock import Clock
from gateway.core.types import Audit
from gateway.store import KINDS, AnyRecord, Conflict, R, Records


class Changes:
    """The changes that `actor` makes."""

    def __init__(self, store: Records, clock: Clock, actor: str) -> None:
        self._store, self._clock, self._actor = store, clock, actor

    async def put(self, action: str, before: R | None, after: R) -> None:
        """Write `after` in the place of `before`. Raises `Conflict` when somebody else was faster."""
        now, kind = self._clock.now(), KINDS[type(after)]
        entry = Audit(
            time=now,
            actor=self._actor,
            action=f"{kind}.{action}",
            subject=f"{kind}:{after.id}",
            before=None if before is None else public(before, now),
            after=public(after, now),
        )
        await self._store.put(after, entry)

    async def make(
        self, action: str, kind: type[K], id: str, change: Callable[[K], K], version: int | None = None
    ) -> K:
        """Write what `change` makes of a key, decided again when somebody else was faster.

        Raises `KeyError`, and `Conflict` when a `version` is given and the key has another one.
        """
        while True:
            stored = await self._store.get(kind, id)
            if stored is None or is_deleted(stored):
                raise KeyError(id)
            expect(version, stored)
            changed = change(stored)
            if changed == stored:
                return stored
            changed = replace(changed, version=stored.version + 1)
            try:
                await self.put(action, stored, changed)
            except Conflict:
                continue
            return changed

    async def revoke(self, kind: type[K], id: str) -> K:
        """End a key for good; one that is revoked stays as it is."""
        now = self._clock.now()
        return await self.make(
            "revoke", kind, id, lambda record: replace(record, revoked=now) if record.revoked is None else record
        )


def is_deleted(record: AnyRecord) -> bool:
    """It is a tombstone: to operators it is not there."""
    return getattr(record, "deleted", None) is not None


def expect(version: int | None, stored: AnyRecord | None) -> None:
    """Raise `Conflict` unless the record has this version (0: there is none); None is content with any."""
    if version not in (None, 0 if stored is None else stored.version):
        raise Conflict

"""What operators order about targets: what an order may say, and how it is written."""

from __future__ import annotations

import math
from typing import Final

from msgspec.structs import replace

from gateway.admin import validation
from gateway.admin.audited import Changes
from gateway.core.types import OrderState, TargetOrder
from gateway.store import Conflict, Records

MAX_REASON: Final = 200
"""Characters of the reason that an operator gives."""
_ACTIONS: Final[dict[OrderState, str]] = {"drained": "drain", "open": "undrain", "ejected": "eject"}
"""What ordering a target into a state is called in the audit log."""


async def give(
    store: Records, changes: Changes, now: float, name: str, state: OrderState, until: float | None, reason: str
) -> TargetOrder:
    """Order a target into a state. Raises `ValueError` for what an order may not say, and `StoreDown`.

    `until`, in seconds since the epoch, is when an ejection ends; only an ejection has it, and must. What is so already
    is not written: a target that has no order and is to be open is told as version 0.
    """
    validation.name(name, "target", 256)
    _check(state, until, now)
    given = {"state": state, "until": until, "reason": reason and validation.name(reason, "reason", MAX_REASON)}
    while True:
        stored = await store.get(TargetOrder, name)
        before = stored or TargetOrder(id=name, created=now, version=0)
        if stored is None and state == "open":
            return before
        changed = replace(before, **given)
        if changed == stored:
            return stored
        changed = replace(changed, version=before.version + 1)
        try:
            await changes.put(_ACTIONS[state], stored, changed)
        except Conflict:
            continue  # decided again on what they wrote
        return changed


def _check(state: OrderState, until: float | None, now: float) -> None:
    if state not in _ACTIONS:
        raise ValueError(f"state {state!r}: expected one of {', '.join(_ACTIONS)}")
    if (state == "ejected") is (until is None):
        raise ValueError("until: an ejection needs a time at which it ends, and nothing else has one")
    if until is not None and not now < until < math.inf:
        raise ValueError("until: this time has passed")

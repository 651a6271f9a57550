"""What of a record may be shown: all but the digests of its secrets."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.clock import SystemClock
from gateway.core.types import AdminKey, KeyRecord, TargetOrder, Tenant
from gateway.store import AnyRecord


def public(record: AnyRecord, now: float | None = None) -> dict[str, Any]:
    """Every field as JSON has it, with a key's `status` at `now` (seconds since the epoch; None: this moment)."""
    shown = {field: msgspec.to_builtins(getattr(record, field)) for field in record.__struct_fields__}
    shown = {field: list(value) if isinstance(value, tuple) else value for field, value in shown.items()}
    if shown.get("deleted") is None:
        shown.pop("deleted", None)  # nearly all are no tombstones
    if isinstance(record, Tenant | TargetOrder):
        return shown
    shown["secrets"] = [{"pepper": secret.pepper, "not_after": secret.not_after} for secret in record.secrets]
    shown["status"] = status(record, SystemClock.now() if now is None else now)
    return shown


def status(record: KeyRecord | AdminKey, now: float) -> str:
    """`active`, `expired` or `revoked`."""
    if record.revoked is not None:
        return "revoked"
    return "expired" if record.expires is not None and record.expires <= now else "active"

"""What was changed, and what was used, as the admin interface tells it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any

from litestar import Controller, get, route
from litestar.params import Parameter

from gateway.admin.http.guards import AdminContext, told
from gateway.admin.models import AuditList, Usage
from gateway.core.errors import BadRequest
from gateway.metering.ledger import grouped

MAX_ENTRIES = 1000


class Reports(Controller):
    """The audit log and the ledger's sums."""

    path = "/admin/v1"
    tags = ("reports",)

    @get("/audit", summary="The newest changes: who, what, before and after")
    async def audit(
        self,
        context: AdminContext,
        count: Annotated[int, Parameter(ge=1, le=MAX_ENTRIES, description="Entries")] = 100,
    ) -> AuditList:
        return AuditList(await context.store.records.audit(count))

    @get("/usage", summary="Calls, tokens and cost, summed")
    async def usage(
        self,
        context: AdminContext,
        first: Annotated[
            str | None, Parameter(query="from", description="UTC day, such as 2026-11-01; default: this month's first")
        ] = None,
        last: Annotated[str | None, Parameter(query="to", description="UTC day, included; default: today")] = None,
        by: Annotated[
            str, Parameter(description="What to sum by: any of day, key, tenant, model, with commas")
        ] = "key",
    ) -> Usage:
        today = datetime.fromtimestamp(context.clock.now(), UTC).date()
        start, end = _day("from", first, today.replace(day=1)), _day("to", last, today)
        if start > end:
            raise BadRequest(f"from: {start} comes after {end}.", param="from")
        names = [name.strip() for name in by.split(",") if name.strip()]
        with told("day"):
            rows: list[dict[str, Any]] = grouped(await context.store.ledger.sums(str(start), str(end)), names)
        return Usage(str(start), str(end), names, rows)


@route("/health", http_method=["GET", "HEAD"], tags=["operations"], summary="The process lives")
async def health() -> dict[str, str]:
    """Needs no key."""
    return {"status": "ok"}


def _day(name: str, text: str | None, default: date) -> date:
    if text is None:
        return default
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            raise ValueError
        return date.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{name}: expected a day such as 2026-11-01.", param=name) from None

"""What `--clear` takes away: the name of an option, and after a colon which of its values."""

from __future__ import annotations

from typing import Any, get_args

from gateway.cli.options import SPENT
from gateway.core.batches import Storage
from gateway.core.body_rules import BodyRules
from gateway.core.dimensions import COUNTS, DIMENSIONS
from gateway.core.types import Period

FIELDS = (*COUNTS, "budget", "outage", "storage", "model-limit", "label", "source", "body", "expires")
_WHERE = {"model-limit": "model_limits", "label": "labels", "source": "sources", "body": "body", "expires": "expires"}


def cleared(text: str) -> dict[str, Any]:
    """`rpm`, `budget:day:tokens`, `label:team`, ...: the change, with null where something goes."""
    name, _, part = text.partition(":")
    if name not in FIELDS or (part and name in (*COUNTS, "source", "expires")):
        raise ValueError(
            f"{text!r}: expected one of {', '.join(FIELDS)}, or a part such as budget:day, budget:day:tokens, "
            "outage:rpm, model-limit:ROUTE, label:NAME, body:set"
        )
    if name == "body" and part and part not in BodyRules.__struct_fields__:
        raise ValueError(f"{text!r}: expected body:PART, PART one of {', '.join(BodyRules.__struct_fields__)}")
    if name == "budget":
        return {"limit": {"budget": _budget(text, part)}}
    if name == "outage":
        if part and part not in DIMENSIONS:
            raise ValueError(f"{text!r}: expected outage:DIM, DIM one of {', '.join(DIMENSIONS)}")
        return {"limit": {"outage": {part: None} if part else None}}
    if name == "storage":
        if part and part not in Storage.__struct_fields__:
            allowed = ", ".join(Storage.__struct_fields__)
            raise ValueError(f"{text!r}: expected storage:FIELD, FIELD one of {allowed}")
        return {"storage": {part: None} if part else None}
    if name in _WHERE:
        return {_WHERE[name]: {part: None} if part else None}
    return {"limit": {name: None}}


def _budget(text: str, part: str) -> Any:
    if not part:
        return None
    period, _, spent = part.partition(":")
    if period not in get_args(Period) or (spent and spent not in SPENT):
        raise ValueError(
            f"{text!r}: expected budget:PERIOD or budget:PERIOD:tokens or budget:PERIOD:money, "
            f"PERIOD one of {', '.join(get_args(Period))}"
        )
    return {period: {SPENT[spent][0]: None} if spent else None}

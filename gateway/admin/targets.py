"""The targets of the table, with what all gateways report of them and what operators have ordered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.admin import Registrar
from gateway.admin.models import OrderShown, TargetAt, TargetChange, TargetShown
from gateway.config import FallbackSpec, Table
from gateway.config.discovery import AT, first_url
from gateway.core.types import Report, TargetCondition, TargetOrder, TargetState
from gateway.store import Store

WORST: Final[tuple[TargetCondition, ...]] = ("down", "ejected", "drained", "resting", "full", "unknown", "up")
"""The states of a target, the worst first: what one gateway suffers from is told of the target."""
EJECTION_SECONDS: Final = 60.0
"""How long an ejection lasts if nobody says."""
MAX_NAMED: Final = 20
"""Targets that a message names."""

_report = msgspec.msgpack.Decoder(Report)
_Seen = tuple[float, Report, TargetState]
"""The age of a report in seconds, the report, and what it says of one target."""


class UnknownTarget(ValueError):
    """The table has no target of this name; the message names those it has."""


class Listed(Struct, frozen=True):
    """A target as the table has it."""

    name: str
    route: str
    tier: int
    """0: one of the route's `targets`; above: a fallback."""
    backend: str
    url: str
    weight: float
    discovered: bool = False
    """It stands for the targets that its name leads to."""


def listed(table: Table) -> dict[str, Listed]:
    """The table's targets by name; not those of shadows, to which no call is ever sent."""
    found = {}
    for (_, route, part, *_), _, target in table.targets():
        if part != "shadow":
            tier = target.tier if isinstance(target, FallbackSpec) else 0
            found[target.name] = Listed(
                target.name,
                str(route),
                tier,
                target.backend,
                first_url(target) or "",
                target.weight,
                target.discover is not None,
            )
    return found


async def targets(store: Store, table: Mapping[str, Listed], now: float) -> list[TargetShown]:
    """The table's targets in its order, then those that are not in it and that gateways still have. Raises
    `StoreDown`. `now` is in seconds since the epoch."""
    orders = {order.id: order for order in await store.records.all(TargetOrder)}
    seen: dict[str, list[_Seen]] = {name: [] for name in table}
    for age, report in reports(await store.board.reports()):
        for state in report.targets:
            seen.setdefault(state.name, []).append((age, report, state))
    for name in {name.rpartition(AT)[0] for name in seen if _place(name, table) is not table.get(name)}:
        if not seen[name]:  # its addresses are known, and told in its place
            del seen[name]
    return [_merged(name, _place(name, table), found, orders.get(name), now) for name, found in seen.items()]


async def target(store: Store, table: Mapping[str, Listed], name: str, now: float) -> TargetShown:
    """One of them. Raises `UnknownTarget` and `StoreDown`."""
    for shown in await targets(store, table, now):
        if shown.name == name:
            return shown
    order = await store.records.get(TargetOrder, name)
    if order is None:
        raise unknown(name, table)
    return _merged(name, None, [], order, now)


async def give(
    store: Store, registrar: Registrar, table: Mapping[str, Listed], name: str, body: TargetChange, now: float
) -> TargetOrder:
    """Order a target into a state. Raises `UnknownTarget`, `ValueError` and `StoreDown`.

    A target that has left the table can only be opened, so that no order waits for its return.
    """
    if _place(name, table) is None and (body.state != "open" or await store.records.get(TargetOrder, name) is None):
        raise unknown(name, table)
    if body.state != "ejected" and body.seconds is not None:
        raise ValueError("seconds: only an ejection has an end; to open a drained target, order it open")
    until = now + (body.seconds or EJECTION_SECONDS) if body.state == "ejected" else None
    return await registrar.order(name, body.state, until=until, reason=body.reason)


def _place(name: str, table: Mapping[str, Listed]) -> Listed | None:
    """What the table says of a target, or of the one that it was found by."""
    if (place := table.get(name)) is None:
        parent = table.get(name.rpartition(AT)[0])
        place = replace(parent, name=name, url="") if parent is not None and parent.discovered else None
    return place


def reports(words: Mapping[str, tuple[bytes, float]]) -> list[tuple[float, Report]]:
    """What `Store.reports` gave, with each report's age in seconds; one that another version wrote may be unreadable
    and is left out."""
    found = []
    for _, (word, age) in sorted(words.items()):
        try:
            found.append((age, _report.decode(word)))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return found


def unknown(name: str, table: Iterable[str]) -> UnknownTarget:
    """There is no target of this name: what to say."""
    names = list(table)
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return UnknownTarget(f"there is no target {name!r}; targets: {', '.join(names[:MAX_NAMED])}{more}")


def _merged(name: str, place: Listed | None, seen: list[_Seen], order: TargetOrder | None, now: float) -> TargetShown:
    """A target as all gateways see it together."""
    states = [state for _, _, state in sorted(seen, key=lambda each: each[0])]
    worst = min(states, key=lambda state: WORST.index(state.state), default=TargetState(name=name, route=""))
    newest = states[0] if states else worst
    known = place is not None
    if place is None:
        place = Listed(name, newest.route, newest.tier, newest.backend, newest.url, newest.weight)
    return TargetShown(
        name=name,
        route=place.route,
        tier=place.tier,
        backend=place.backend,
        url=place.url or newest.url,
        listed=known,
        state=worst.state,
        why=worst.why if states else "no gateway reports",
        order=None if order is None or order.at(now) == "open" else _order(order),
        weight=min((state.weight for state in states), default=place.weight),
        running=sum(state.running for state in states),
        waiting=sum(state.waiting for state in states),
        prefill=sum(state.prefill for state in states),
        attempts=sum(state.attempts for state in states),
        max_inflight=newest.max_inflight,
        context=newest.context,
        kv_tokens=newest.kv_tokens,
        version=newest.version,
        gateways=[_at(*each) for each in seen],
    )


def _order(order: TargetOrder) -> OrderShown:
    return OrderShown(state=order.state, until=order.until, reason=order.reason, version=order.version)


def _at(age: float, report: Report, state: TargetState) -> TargetAt:
    return TargetAt(
        gateway=report.gateway,
        age=round(age, 3),
        config_hash=report.config_hash,
        state=state.state,
        why=state.why,
        order=state.order,
        running=state.running,
        waiting=state.waiting,
        prefill=state.prefill,
    )

"""What must be so when the soak is over, each with what was expected and what was seen."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from integration.client import total
from soak.accounts import admitted, charged, lost, usable, written
from soak.chaos import Chaos
from soak.drift import Drift
from soak.keys import LIMITS, NARROW
from soak.leftovers import SETTLE_SECONDS, leftovers, scrape
from soak.peaks import Peaks
from soak.place import Place
from soak.tally import Tally

MORE_DESCRIPTORS = 4
"""A process may have so many more than at the beginning: connections to Redis are made anew after an outage, and the
files of metrics are opened when the first value of their kind is told."""
MIB_A_1000_CALLS = 1.0
"""The bound of the memory slope: one KiB left behind by each call would be that much. Without chaos it is about 0.1
once caches, metrics and pools are filled, which takes some thousand calls; outages and new tables add their own."""
ENOUGH_CALLS = 3000
"""Calls of a process below which its slope is the start's own growth and is shown, not judged."""
REVOKED_SECONDS = 2.0
"""After which a revoked key must be refused everywhere, when Redis was well meanwhile."""


class Row(NamedTuple):
    """One invariant."""

    name: str
    expected: str
    seen: str
    ok: bool


class Soaked(NamedTuple):
    """All that a soak leaves to be judged; `warm` is when it was warm, on the monotonic clock."""

    place: Place
    tally: Tally
    chaos: Chaos
    drift: Drift
    peaks: Peaks
    warm: float


async def check(soaked: Soaked) -> list[Row]:
    """All rows, once everything has come to rest."""
    place = soaked.place
    rows = [_zero(name, seen) for name, seen in (await leftovers(place)).items()]
    slots = await usable(place)
    rows.append(Row("slots of a key that can be used", f"{NARROW}", f"{slots}", slots == NARROW))
    after = await leftovers(place)
    rows.append(_zero("held after those", sum(after.values())))
    rows += await asyncio.to_thread(lambda: list(_looked_up(soaked)))
    return rows


def _looked_up(soaked: Soaked) -> Iterator[Row]:
    yield from _descriptors(soaked)
    yield from _memory(soaked)
    yield from _gateways(soaked)
    yield from _calls(soaked)
    yield from _limits(soaked)


def _zero(name: str, seen: float) -> Row:
    return Row(name, "0", f"{seen:g}", seen == 0)


def _descriptors(soaked: Soaked) -> Iterator[Row]:
    before, after = soaked.drift.before, soaked.drift.rest()
    # A worker that had been asked little by then may come to what another one had.
    warm = max(before.values(), default=0)
    lived = {pid: after[pid] - (warm if count > warm / 2 else count) for pid, count in before.items() if pid in after}
    worst = max(lived.values(), default=0)
    pairs = " ".join(f"{before[pid]}>{after[pid]}" for pid in lived)
    yield Row(
        "descriptors, of processes that lived", f"<= +{MORE_DESCRIPTORS}", f"{worst:+} ({pairs})",
        bool(lived) and worst <= MORE_DESCRIPTORS,
    )  # fmt: skip
    young = [after[pid] for pid in after if pid not in before]
    most = max(before.values(), default=0) + MORE_DESCRIPTORS
    if young:
        yield Row("descriptors, of younger processes", f"<= {most}", f"{max(young)}", max(young) <= most)


def _memory(soaked: Soaked) -> Iterator[Row]:
    for number, (calls, slope, mib) in enumerate(soaked.drift.slopes(soaked.warm)):
        judged = calls >= ENOUGH_CALLS
        expected = f"<= {MIB_A_1000_CALLS:g} MiB/1,000 calls" if judged else f"(below {ENOUGH_CALLS:,} calls)"
        seen = f"{slope:+.3f} in the later half of {calls:,} calls; {mib:.0f} MiB"
        yield Row(f"memory slope of worker {number}", expected, seen, not judged or slope <= MIB_A_1000_CALLS)
        if not soaked.drift.total(number):
            yield Row(f"calls of worker {number}", "> 0", "0", False)


def _gateways(soaked: Soaked) -> Iterator[Row]:
    fleet = soaked.place.fleet
    for text in ("a bug of ours", "Traceback", "never awaited", "was destroyed but it is pending"):
        found = [log for log in fleet.logs if text in log]
        yield _zero(f"'{text}' in the logs", sum(log.count(text) for log in found))
        soaked.tally.wrong += [log[max(0, log.index(text) - 300) : log.index(text) + 1500] for log in found[:2]]
    scraped, _ = scrape(soaked.place)
    for kind in ("gateway_other",):
        yield _zero(f"errors {kind}", sum(total(each, "requests_total", error_type=kind) for each in scraped))
    yield _zero("calls missing in the ledger", sum(total(each, "ledger_entries_dropped_total") for each in scraped))
    ends = [each.stderr()[-400:] for each in fleet.gateways if each.process.poll() is not None]
    yield Row("gateways that died by themselves", "0", f"{len(ends)} {ends or ''}", not ends)
    failed = soaked.chaos.failed
    yield Row("events that did not end as they should", "0", f"{len(failed)} {failed or ''}", not failed)
    codes = Counter(code for _, code in fleet.retired)
    yield Row("exit codes after SIGTERM", "all 0", f"{dict(codes)}", set(codes) <= {0})
    living = soaked.place.redis.ask("ZCARD", "{tl}:workers")
    wanted = fleet.workers * len(fleet.gateways)
    yield Row("workers that share the limits", f"{wanted}", f"{living}", living == wanted)
    tables = {
        labels
        for each in scraped
        for (name, labels), value in each.items()
        if name == "trunkline_config_info" and value == 1
    }
    yield Row("tables in force", "1", f"{len(tables)}", len(tables) == 1)


def _calls(soaked: Soaked) -> Iterator[Row]:
    tally = soaked.tally
    yield Row(
        "calls that ended wrong or not at all", "0", f"{tally.endings['WRONG']} of {tally.calls:,}", not tally.wrong
    )
    silent = sum("SILENT" in why for why in tally.wrong)
    streams = sum(found["answered"] for kind, found in tally.by_kind.items() if "stream" in kind)
    yield Row("silent truncations", "0", f"{silent}; {streams:,} streams whole", silent == 0)
    hits = tally.endings["cut with a worker"]
    kills = len(soaked.chaos.kills)
    yield Row("calls cut with killed workers", "only then", f"{hits} in {kills} kills", kills > 0 or hits == 0)
    none = [kind for kind, count in tally.answered.items() if not count]
    yield Row(
        "kinds of calls that were never answered", "0", f"{len(none)} of {len(tally.answered)} {none or ''}", not none
    )
    late = [
        id for id, sent, _ in tally.late_volatile
        if id in soaked.place.keys.revoked and sent > (at := soaked.place.keys.revoked[id]) + REVOKED_SECONDS
        and not soaked.chaos.spoilt("redis", at, sent)
    ]  # fmt: skip
    yield _zero("answers to revoked keys", len(late))


def _limits(soaked: Soaked) -> Iterator[Row]:
    place, peaks = soaked.place, soaked.peaks
    peaks.fold()
    for name, (most, seen) in admitted(place, soaked.tally, peaks.calm, peaks.rough).items():
        yield Row(f"admitted: {name}", f"<= {most:g}", f"{seen:g}", seen <= most)
    slack = lost(soaked.tally, soaked.chaos)
    spent = written(place.redis)
    patience = time.monotonic() + SETTLE_SECONDS  # a busy gateway writes its ledger late
    while time.monotonic() < patience and not _agree(place, spent, slack):
        time.sleep(0.5)
        spent = written(place.redis)
    for label, limit in LIMITS.items():
        if limit.budget.month.tokens is not None:
            id = place.keys.issued[label].record.id
            budget, ledger = charged(place.redis, id), spent[id]
            expected = f"{ledger:,} as in the ledger" + (f" +-{slack:,}" if slack else "")
            yield Row(f"charged to the budget '{label}'", expected, f"{budget:,}", abs(budget - ledger) <= slack)


def _agree(place: Place, spent: Counter[str], slack: int) -> bool:
    """Whether the budgets were charged what the ledger tells."""
    ids = [
        place.keys.issued[label].record.id for label, limit in LIMITS.items() if limit.budget.month.tokens is not None
    ]
    return all(abs(charged(place.redis, id) - spent[id]) <= slack for id in ids)

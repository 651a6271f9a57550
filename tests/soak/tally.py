"""What has happened so far: calls by kind and ending, times of the limited ones, and what was wrong."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import NamedTuple

from soak.calls import Made, Plan
from soak.judging import Verdict

KEPT = 30
"""Violations that are kept to be shown, the first ones; all are counted."""
BUDGETED = ("budget", "spent")
LIMITED = ("rpm", "tpm", "spent")


class Spent(NamedTuple):
    """A call of a limited key that was answered on the strength of the shared counters."""

    sent: float
    tokens: int


class Tally:
    """Grows with the kinds of calls, not with their number, except for those of the limited keys."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.calls = 0
        self.endings: Counter[str] = Counter()
        self.by_kind: dict[str, Counter[str]] = {}
        self.statuses: Counter[int] = Counter()
        self.by_boot: Counter[str] = Counter()
        """Calls by the boot id of the worker that took them."""
        self.wrong: list[str] = []
        self.spent: dict[str, list[Spent]] = {label: [] for label in LIMITED}
        self.budgeted: deque[tuple[float, int]] = deque(maxlen=20_000)
        """When calls with a budget ended, and at which port: for what a kill may have lost."""
        self.late_volatile: list[tuple[str, float, float]] = []
        """Answers to keys that chaos has made: the key's id, when the call was sent, when it ended."""

    def count(self, plan: Plan, call: Made, verdict: Verdict) -> None:
        """One more call is over."""
        self.calls += 1
        self.endings[verdict.ending] += 1
        self.by_kind.setdefault(plan.kind, Counter())[verdict.ending] += 1
        self.statuses[call.status] += 1
        if "x-request-id" in call.headers:
            self.by_boot[call.headers["x-request-id"].split("-")[1]] += 1
        if verdict.ending == "WRONG" and len(self.wrong) < KEPT:
            self.wrong.append(f"{time.monotonic() - self.began:.1f} s: {verdict.why}")
        if plan.label in BUDGETED:
            self.budgeted.append((time.monotonic(), call.port))
        if call.status == 200 and plan.label in LIMITED and not call.degraded:
            self.spent[plan.label].append(Spent(call.sent, verdict.tokens))
        if call.status == 200 and plan.kind == "volatile key":
            self.late_volatile.append((plan.label, call.sent, call.finished))

    @property
    def answered(self) -> dict[str, int]:
        """By kind, how many ended as calls of that kind should."""
        return {
            kind: sum(found[ending] for ending in ("answered", "refused", "left"))
            if _refuses(kind)
            else found["answered"]
            for kind, found in self.by_kind.items()
        }


def _refuses(kind: str) -> bool:
    return kind in (
        "wrong key",
        "garbage",
        "wrong body",
        "huge body",
        "unknown model",
        "idle connection",
        "never reads",
    )

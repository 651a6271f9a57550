"""The values that travel between floors: keys, tenants, limits, verdicts of admission, entries of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from gateway.core.batches import Storage
from gateway.core.body_rules import BodyRules
from gateway.core.dimensions import COUNTS

Outage = Literal["share", "closed", "open"]
"""What a limit does while the store is down: each gateway enforces its share, nothing passes, everything passes."""
Period = Literal["day", "week", "month"]
"""A calendar window in UTC; weeks begin on Monday."""
Priority = Literal["high", "normal", "low"]
Rank = Literal["high", "normal", "low", "batch"]
"""A call's place: the priority of its key, or, as a line of a batch, behind all of them."""


class Allowance(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What may be spent in one period; None is unlimited."""

    tokens: int | None = None
    """Prompt and completion tokens together."""
    cost_micros: int | None = None
    """Money in millionths of the table's currency, by the prices of the routes."""

    def over(self, base: Allowance) -> Allowance:
        """This allowance where it says something, `base` elsewhere."""
        return _over(self, base)


class Budget(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Spending by calendar period."""

    day: Allowance = Allowance()
    week: Allowance = Allowance()
    month: Allowance = Allowance()

    def over(self, base: Budget) -> Budget:
        """This budget where it says something, `base` elsewhere."""
        return Budget(day=self.day.over(base.day), week=self.week.over(base.week), month=self.month.over(base.month))


class Limit(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one key, tenant or model may use; None is unlimited."""

    rpm: int | None = None
    """Requests a minute; as many may come at once after a quiet minute."""
    tpm: int | None = None
    """Tokens a minute, prompt and completion together."""
    itpm: int | None = None
    """Prompt tokens a minute."""
    otpm: int | None = None
    """Completion tokens a minute."""
    concurrency: int | None = None
    """Calls in flight at the same time."""
    budget: Budget = Budget()
    outage: dict[str, Outage] = {}
    """By dimension (those of `core.dimensions`); budgets are closed by default, all else is shared."""

    def over(self, base: Limit) -> Limit:
        """This limit where it says something, `base` elsewhere."""
        counts = {name: getattr(base, name) if getattr(self, name) is None else getattr(self, name) for name in COUNTS}
        return Limit(**counts, budget=self.budget.over(base.budget), outage={**base.outage, **self.outage})


def _over(one: Allowance, base: Allowance) -> Allowance:
    return Allowance(
        tokens=base.tokens if one.tokens is None else one.tokens,
        cost_micros=base.cost_micros if one.cost_micros is None else one.cost_micros,
    )


class Secret(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The stored half of a key's secret."""

    digest: str
    """HMAC-SHA256 of the secret under pepper number `pepper`, hexadecimal."""
    pepper: int = 0
    not_after: float | None = None
    """Seconds since the epoch; set on the old secret by a rotation."""


class KeyRecord(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All that is known of a virtual key. `version` rises with every change and is compared at admission."""

    id: str
    name: str
    secrets: tuple[Secret, ...]
    created: float
    version: int = 1
    tenant: str = "default"
    models: tuple[str, ...] = ("*",)
    """Globs over route names and aliases."""
    endpoints: tuple[str, ...] = ("*",)
    """Globs over endpoints such as `chat/completions`."""
    default_route: str = ""
    """What its calls ask for that name no model; empty: what the table says."""
    user_header: str = ""
    """The header that names the user for whom a call is made, in lower case; it is believed. Empty: none is."""
    limit: Limit = Limit()
    model_limits: dict[str, Limit] = {}
    """Further limits of this key on one route each, by route name."""
    priority: Priority = "normal"
    labels: dict[str, str] = {}
    """For the operator: shown, filtered by, never interpreted."""
    sources: tuple[str, ...] = ()
    """Networks the key may be used from, such as `10.0.0.0/8`; none: anywhere."""
    body: BodyRules | None = None
    """What of its bodies is the operator's to decide, beside what their route says."""
    expires: float | None = None
    revoked: float | None = None
    """Seconds since the epoch."""
    deleted: float | None = None
    """Seconds since the epoch, of a tombstone: revoked, without secrets, listed nowhere. Its version goes on to count,
    so that no gateway serves what it remembers of the key; and its name stays, for the ledger."""


class Tenant(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A group of keys with limits of its own above theirs. A tenant without a record has the table's defaults."""

    id: str
    """The name that keys give as their `tenant`."""
    created: float
    version: int = 1
    limit: Limit = Limit()
    storage: Storage = Storage()
    labels: dict[str, str] = {}
    deleted: float | None = None
    """Seconds since the epoch, of a tombstone: nothing is set, and its version goes on to count."""


class Caller(Struct, frozen=True):
    """Who a call is from. A tenant without a record is None: it has the table's defaults."""

    key: KeyRecord
    tenant: Tenant | None


class AdminKey(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A key of the admin interface. It cannot infer, as virtual keys cannot administer."""

    id: str
    name: str
    secrets: tuple[Secret, ...]
    created: float
    version: int = 1
    once: bool = False
    """The bootstrap token: good for making the first admin key, revoked by that."""
    expires: float | None = None
    revoked: float | None = None


class Audit(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One change, as the append-only audit log keeps it: who, what, before and after, without secrets."""

    time: float
    actor: str
    """`admin:<key id>`, `cli:<user>`, `bootstrap`."""
    action: str
    """`key.create`, `key.update`, `key.rotate`, `key.revoke`, `tenant.set`, `admin.create`, ..."""
    subject: str
    """What was changed: `key:<id>`, `tenant:<id>`, `admin:<id>`."""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


class Dimension(Struct, frozen=True):
    """One thing an admission checks, such as a key's requests per minute.

    `kind` is "rate" (a GCRA over `window` seconds), "lease" (slots held until settled, or until `window` seconds
    after the last renewal) or "budget" (spending in the calendar `period`).
    """

    name: str
    """What a denial is labelled with: `rpm`, `tpm`, `itpm`, `otpm`, `concurrency`, `budget`."""
    kind: str
    key: str
    """Where the store keeps it; the same string in every gateway."""
    limit: int
    window: float = 60.0
    scope: str = "key"
    """Whose limit it is: `key`, `tenant`, `model`, `key_model`."""
    unit: str = "requests"
    """What is counted: `requests`, `tokens`, `input`, `output`, `calls`, `cost`."""
    period: Period | None = None
    outage: Outage = "share"


class Plan(Struct, eq=False):
    """What an admission checks: the same for many calls, and kept for them."""

    records: tuple[tuple[str, int], ...]
    """The records decided on, with their versions: `("key:<id>", 3)`, `("tenant:<id>", 0)`; 0: there is none."""
    dimensions: tuple[Dimension, ...]
    encoded: Any = None
    """What the store sends for every call of this plan, kept here by the store."""


class Ask(Struct, frozen=True):
    """One admission: all dimensions are granted, or none is charged."""

    call_id: str
    plan: Plan
    amounts: Sequence[int]
    """Units reserved, a number for each of the plan's dimensions."""


class Standing(Struct, frozen=True):
    """How a dimension stands after an admission: units left, and seconds until it is whole again."""

    remaining: int
    reset: float


class Verdict(Struct, frozen=True):
    """What admission said. `denied` is the index of the dimension that said no; None is a grant."""

    standings: Sequence[Standing] = ()
    denied: int | None = None
    retry_after: float = 0.0
    """Seconds; after exactly this long the same ask would be granted if nobody else asked."""
    spent: bool = False
    """The budget that denied it is used up, without what calls under way have reserved: nothing fits until it ends."""
    stale: bool = False
    """A record's version is not the one asked with: load it again."""
    at: int = 0
    """The store's time of the decision, in microseconds since the epoch."""


class Spent(Struct, frozen=True):
    """What a call really used, in the units of dimensions."""

    input: int = 0
    cached: int = 0
    """Of `input`, the prompt tokens that the target had in its cache."""
    output: int = 0
    cost: int = 0
    """Micro-units of the table's currency."""


class Entry(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One ended call in the usage ledger."""

    call_id: str
    time: float
    """Seconds since the epoch when the call was admitted: it counts to the day, week and month of its admission."""
    key_id: str
    tenant: str
    route: str
    target: str = ""
    endpoint: str = ""
    outcome: str = "answered"
    input: int = 0
    cached: int = 0
    output: int = 0
    cost_micros: int = 0
    source: str = ""
    """Where the token counts come from: `upstream`, `capped`, `counted`, `estimated`; empty: no target was asked."""
    user: str = ""
    """For whom the call was made, by the header that its key says is believed; empty: nobody says."""


class Sum(Struct, frozen=True, kw_only=True):
    """What one key used of one route in one UTC day."""

    day: str
    """`2026-11-22`."""
    key_id: str
    tenant: str
    route: str
    calls: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    cost_micros: int = 0


OrderState = Literal["open", "drained", "ejected"]
"""What an operator may want of a target: calls, no new calls, no calls for a time."""
TargetCondition = Literal["up", "down", "unknown", "ejected", "drained", "resting", "full"]
"""How a target stands with a gateway; `resting`: it asked for a pause, `full`: it takes no more calls now."""


class TargetOrder(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An operator's order about a target, for all gateways. A target without one is open."""

    id: str
    """The target's name."""
    created: float
    version: int = 1
    state: OrderState = "open"
    until: float | None = None
    """Seconds since the epoch; an ejection ends then by itself."""
    reason: str = ""
    """The operator's words."""

    def at(self, now: float) -> OrderState:
        """What holds at `now`, in seconds since the epoch."""
        return "open" if self.until is not None and self.until <= now else self.state


class TargetState(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One target as one gateway worker sees it: counts are of its own calls."""

    name: str
    route: str
    tier: int = 0
    """0: one of the route's `targets`; above: a fallback."""
    url: str = ""
    """Without credentials."""
    backend: str = ""
    state: TargetCondition = "unknown"
    why: str = ""
    """What is wrong, in a few words; empty when nothing is."""
    order: int = 0
    """The version of the operator's order that the worker goes by; 0: it knows of none."""
    weight: float = 1.0
    """Its share of the load now: a target that has just come back begins with less."""
    running: int = 0
    """Calls that have not ended."""
    waiting: int = 0
    """Of these, calls without a first token."""
    prefill: int = 0
    """Prompt tokens that the target has still to read."""
    attempts: int = 0
    """Calls ever tried there."""
    max_inflight: int | None = None
    """The most calls that all gateways send there at once; None: no bound."""
    context: int | None = None
    """Tokens of prompt and answer together."""
    kv_tokens: int | None = None
    """Tokens that its cache holds."""
    version: str = ""
    """The engine's."""


class Report(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a gateway worker says of its targets; it travels as MessagePack."""

    gateway: str
    """Its boot id."""
    config_hash: str = ""
    """Which table it serves."""
    targets: tuple[TargetState, ...] = ()

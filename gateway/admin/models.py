"""What the admin interface reads and answers, as it stands in JSON and in the API's description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct

from gateway.core.batches import Storage
from gateway.core.body_rules import BodyRules
from gateway.core.dimensions import count_fields
from gateway.core.types import Audit, Limit, OrderState, Outage, Priority, TargetCondition

T = TypeVar("T")
Change: TypeAlias = T | UnsetType | None
"""A field that a change leaves alone (absent), clears (null) or sets."""

Count = Annotated[int, Meta(ge=1)]
Spending = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]
Status = Literal["active", "expired", "revoked"]
Epoch = Annotated[float, Meta(description="Seconds since the epoch")]
Version = Annotated[int, Meta(ge=0, description="Change only this version; 409 when there is a newer one")]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all that is read: a field nobody knows is a mistake, not to be passed over."""


class AllowanceBody(_Strict, frozen=True):
    """What may be spent in one calendar period, in UTC."""

    tokens: Annotated[Change[Spending], Meta(description="Prompt and completion tokens")] = UNSET
    cost_micros: Annotated[Change[Count], Meta(description="Money, in millionths of the currency of the prices")] = (
        UNSET
    )


class BudgetBody(_Strict, frozen=True):
    """Spending by calendar period; weeks begin on Monday."""

    day: Change[AllowanceBody] = UNSET
    week: Change[AllowanceBody] = UNSET
    month: Change[AllowanceBody] = UNSET


if TYPE_CHECKING:
    _Outages: TypeAlias = _Strict
    _Counts: TypeAlias = _Strict
else:
    _OPTIONS = {"bases": (_Strict,), "frozen": True, "module": __name__}
    _Outages = defstruct("_Outages", count_fields(lambda text: Annotated[Change[Outage], text], UNSET), **_OPTIONS)
    _Counts = defstruct("_Counts", count_fields(lambda text: Annotated[Change[Count], text], UNSET), **_OPTIONS)


class OutageBody(_Outages, frozen=True):
    """What each limit does while Redis is down: share (default; budgets: closed), closed or open."""

    budget: Change[Outage] = UNSET


class LimitBody(_Counts, frozen=True):
    """Limits. In a change, what is absent stays as it is and null removes a limit."""

    budget: Change[BudgetBody] = UNSET
    outage: Change[OutageBody] = UNSET


class StorageBody(_Strict, frozen=True):
    """What a tenant may store. In a change, what is absent stays as it is and null is what the table says."""

    bytes: Annotated[Change[Spending], Meta(description="Of all its files together")] = UNSET
    files: Annotated[Change[Spending], Meta(description="Files, results of batches included")] = UNSET
    batches: Annotated[Change[Spending], Meta(description="Batches that have not ended")] = UNSET
    lines: Annotated[Change[Spending], Meta(description="Lines of one batch")] = UNSET
    days: Annotated[Change[Count], Meta(description="For which files, and batches that have ended, are kept")] = UNSET


class BodyRulesBody(_Strict, frozen=True):
    """What of a key's bodies is the operator's to decide. In a change each part is replaced whole; null clears it."""

    deny: Annotated[Change[tuple[str, ...]], Meta(description="Fields that may not be sent: 400")] = UNSET
    set: Annotated[
        Change[dict[str, Any]],
        Meta(description="Values of fields, whatever is sent; null takes a field out. A route's go before them"),
    ] = UNSET
    default: Annotated[
        Change[dict[str, Any]],
        Meta(description="Values of fields that are missing or null; they go before a route's"),
    ] = UNSET
    system_prompt: Annotated[
        Change[str], Meta(description="Goes before the caller's own, and behind a route's; empty: none")
    ] = UNSET


class NewKey(_Strict, frozen=True):
    """A key to be made."""

    name: Annotated[Text, Meta(description="What the key is for")]
    tenant: Annotated[Text, Meta(description="Who uses it")] = "default"
    models: Annotated[
        tuple[Text, ...], Meta(min_length=1, description="Globs over route names and aliases; * is any text")
    ] = ("*",)
    endpoints: Annotated[
        tuple[Text, ...], Meta(min_length=1, description="Globs over endpoints such as chat/completions")
    ] = ("*",)
    default_route: Annotated[
        str, Meta(max_length=256, description="What calls ask for that name no model; empty: what the table says")
    ] = ""
    user_header: Annotated[
        str, Meta(max_length=128, description="The header that names the user of a call, and is believed; empty: none")
    ] = ""
    limit: LimitBody = LimitBody()
    model_limits: Annotated[
        dict[str, LimitBody], Meta(description="Further limits on one route each, by its name")
    ] = {}
    priority: Priority = "normal"
    labels: Annotated[dict[Text, str], Meta(description="For the operator; never interpreted")] = {}
    sources: Annotated[
        tuple[str, ...], Meta(description="Networks it may be used from, such as 10.0.0.0/8; none: anywhere")
    ] = ()
    body: BodyRulesBody | None = None
    expires: Annotated[Epoch | None, Meta(description="Seconds since the epoch; null: never")] = None


class KeyChange(_Strict, frozen=True):
    """What is to change of a key: absent stays, null clears, lists are replaced whole."""

    name: Text | UnsetType = UNSET
    tenant: Text | UnsetType = UNSET
    models: Annotated[tuple[Text, ...], Meta(min_length=1)] | UnsetType = UNSET
    endpoints: Annotated[tuple[Text, ...], Meta(min_length=1)] | UnsetType = UNSET
    default_route: Annotated[str, Meta(max_length=256)] | UnsetType = UNSET
    user_header: Annotated[str, Meta(max_length=128)] | UnsetType = UNSET
    limit: Change[LimitBody] = UNSET
    model_limits: Change[dict[str, LimitBody | None]] = UNSET
    priority: Priority | UnsetType = UNSET
    labels: Change[dict[Text, str | None]] = UNSET
    sources: Change[tuple[str, ...]] = UNSET
    body: Change[BodyRulesBody] = UNSET
    expires: Change[Epoch] = UNSET
    version: Version | UnsetType = UNSET


class Rotation(_Strict, frozen=True):
    """How a key gets a new secret."""

    overlap_seconds: Annotated[float, Meta(ge=0, le=366 * 86400, description="How long the old secret stays valid")] = (
        86400.0
    )


class TenantBody(_Strict, frozen=True):
    """A tenant, whole: what is absent is not limited."""

    limit: LimitBody = LimitBody()
    storage: StorageBody = StorageBody()
    labels: dict[Text, str] = {}
    version: Version | UnsetType = UNSET


class TenantChange(_Strict, frozen=True):
    """What is to change of a tenant: absent stays, null clears."""

    limit: Change[LimitBody] = UNSET
    storage: Change[StorageBody] = UNSET
    labels: Change[dict[Text, str | None]] = UNSET
    version: Version | UnsetType = UNSET


class NewAdminKey(_Strict, frozen=True):
    """An admin key to be made."""

    name: Text
    expires: Annotated[Epoch | None, Meta(description="Seconds since the epoch; null: never")] = None


class TargetChange(_Strict, frozen=True):
    """What all gateways are to do with a target."""

    state: Annotated[
        OrderState, Meta(description="open: it gets calls; drained: no new ones; ejected: no new ones for a time")
    ]
    seconds: Annotated[
        Annotated[float, Meta(gt=0, le=86400)] | None, Meta(description="How long an ejection lasts; null: a minute")
    ] = None
    reason: Annotated[str, Meta(max_length=200, description="Why, for the audit log and for whoever looks")] = ""


class SecretShown(Struct, frozen=True, kw_only=True):
    """What may be told of a stored secret."""

    pepper: int = 0
    not_after: float | None = None


class Key(Struct, frozen=True, kw_only=True):
    """A virtual key, without its secrets."""

    id: str
    name: str
    status: Status
    tenant: str
    models: tuple[str, ...]
    endpoints: tuple[str, ...]
    default_route: str
    user_header: str
    limit: Limit
    model_limits: dict[str, Limit]
    priority: Priority
    labels: dict[str, str]
    sources: tuple[str, ...]
    body: BodyRules | None
    created: float
    expires: float | None
    revoked: float | None
    version: int
    secrets: tuple[SecretShown, ...]


class LimitHeld(Struct, frozen=True, kw_only=True):
    """A limit that holds, be it of the record or of the table's defaults, and how much of it is used."""

    scope: Annotated[str, Meta(description="Whose it is: `key`, `tenant`, `key_model`")]
    route: Annotated[str, Meta(description="The route that a `key_model` limit is for; empty: all")]
    name: Annotated[str, Meta(description="`rpm`, `tpm`, `itpm`, `otpm`, `concurrency`, `budget`")]
    period: Annotated[str, Meta(description="Of a budget; empty: it is none")]
    unit: Annotated[str, Meta(description="`requests`, `calls`, `tokens`, `input`, `output`, `cost` (in millionths)")]
    limit: int
    used: Annotated[
        int | None, Meta(description="Spent, or in use now, reservations too; null: the gateway alone knows, no Redis")
    ]
    left: Annotated[int | None, Meta(description="What a call may take now; null as above")]


class KeyHeld(Key, frozen=True, kw_only=True):
    """A key with the limits that hold for it."""

    standing: list[LimitHeld]


class IssuedKey(Key, frozen=True, kw_only=True):
    """A key with its new secret, which is shown this once."""

    secret: str


class KeyList(Struct, frozen=True):
    """A page of keys, the oldest first."""

    data: list[Key]
    next: Annotated[str | None, Meta(description="`after` of the next page; null: this was the last")]


class TenantShown(Struct, frozen=True, kw_only=True):
    """A tenant; one without a record (version 0) has the table's defaults."""

    id: str
    limit: Limit
    storage: Annotated[Storage, Meta(description="What it may store; what is absent is as the table says")]
    labels: dict[str, str]
    created: float | None
    version: int
    keys: Annotated[int, Meta(description="Its keys that are neither revoked nor expired")]


class TenantHeld(TenantShown, frozen=True, kw_only=True):
    """A tenant with the limits that hold for it."""

    standing: list[LimitHeld]


class TenantDeleted(Struct, frozen=True):
    """A tenant that was deleted: its keys have the table's defaults, if it gets any again."""

    id: str
    version: int


class TenantList(Struct, frozen=True):
    """All tenants, by name."""

    data: list[TenantShown]


class AdminKeyShown(Struct, frozen=True, kw_only=True):
    """An admin key, without its secret."""

    id: str
    name: str
    status: Status
    created: float
    expires: float | None
    revoked: float | None
    once: Annotated[bool, Meta(description="A one-time token for the first admin key")]
    version: int


class IssuedAdminKey(AdminKeyShown, frozen=True, kw_only=True):
    """An admin key with its secret, which is shown this once."""

    secret: str


class AdminKeyList(Struct, frozen=True):
    """All admin keys, the oldest first."""

    data: list[AdminKeyShown]


class OrderShown(Struct, frozen=True, kw_only=True):
    """What an operator has ordered about a target."""

    state: OrderState
    until: Annotated[float | None, Meta(description="When it ends by itself, in seconds since the epoch")]
    reason: str
    version: int


class TargetAt(Struct, frozen=True, kw_only=True):
    """A target as one gateway worker sees it; counts are of its own calls."""

    gateway: Annotated[str, Meta(description="Its boot id")]
    age: Annotated[float, Meta(description="Seconds since it reported")]
    config_hash: Annotated[str, Meta(description="Which table it serves")]
    state: TargetCondition
    why: str
    order: Annotated[int, Meta(description="The version of the order that it goes by; 0: none")]
    running: int
    waiting: int
    prefill: int


class TargetShown(Struct, frozen=True, kw_only=True):
    """A target as all gateways see it: the worst of their states, the sums of their counts."""

    name: str
    route: str
    tier: Annotated[int, Meta(description="0: one of the route's targets; above: a fallback")]
    backend: str
    url: str
    listed: Annotated[bool, Meta(description="It is in the table; one that is not is being drained")]
    state: TargetCondition
    why: str
    order: Annotated[OrderShown | None, Meta(description="What an operator has ordered; null: it is open")]
    weight: Annotated[float, Meta(description="Its share of the load now")]
    running: Annotated[int, Meta(description="Calls that have not ended")]
    waiting: Annotated[int, Meta(description="Of these, calls without a first token")]
    prefill: Annotated[int, Meta(description="Prompt tokens that it has still to read")]
    attempts: Annotated[int, Meta(description="Calls ever tried there, by the gateways that live")]
    max_inflight: Annotated[int | None, Meta(description="The most calls there at once; null: no bound")]
    context: Annotated[int | None, Meta(description="Tokens of prompt and answer together")]
    kv_tokens: Annotated[int | None, Meta(description="Tokens that its cache holds")]
    version: Annotated[str, Meta(description="The engine's")]
    gateways: list[TargetAt]


class TargetList(Struct, frozen=True):
    """All targets, in the order of the table."""

    data: list[TargetShown]


class AuditList(Struct, frozen=True):
    """Changes, the newest first."""

    data: list[Audit]


class Usage(Struct, frozen=True, rename={"first": "from", "last": "to"}):
    """What was used, summed."""

    first: str
    last: str
    by: list[str]
    data: list[dict[str, Any]]

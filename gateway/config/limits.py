"""The parts of the routing table that say what may be used, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, TypeAlias

from msgspec import Struct, defstruct

from gateway.config.units import Count, Money, PerAnswer, PerMillion, Size
from gateway.core.batches import Storage
from gateway.core.dimensions import COUNTS, count_fields
from gateway.core.types import Allowance, Budget, Limit, Outage


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of the table."""


class AllowanceSpec(Part, frozen=True, kw_only=True):
    """What may be spent in one period; absent is unlimited."""

    tokens: Count | None = None
    """Prompt and completion tokens together."""
    money: Money | None = None
    """An amount of the currency that the routes' prices are in, exact to six decimals, such as `12.50`."""

    def allowance(self) -> Allowance:
        return Allowance(tokens=self.tokens, cost_micros=self.money)


class BudgetSpec(Part, frozen=True, kw_only=True):
    """Spending by calendar period in UTC; it begins anew with every period."""

    day: AllowanceSpec = AllowanceSpec()
    """From midnight to midnight."""
    week: AllowanceSpec = AllowanceSpec()
    """From Monday to Sunday."""
    month: AllowanceSpec = AllowanceSpec()
    """From the first to the last day of the month."""

    def budget(self) -> Budget:
        return Budget(day=self.day.allowance(), week=self.week.allowance(), month=self.month.allowance())


if TYPE_CHECKING:
    _Outages: TypeAlias = Part
    _Counts: TypeAlias = Part
else:
    _OPTIONS = {"bases": (Part,), "frozen": True, "kw_only": True, "module": __name__}
    _OUTAGES = count_fields(lambda text: Annotated[Outage, text] | None, None, "{text}; if left out, `share`.")
    _COUNTS = count_fields(lambda text: Annotated[Count, text] | None, None, "{text}{note}.")
    _Outages, _Counts = defstruct("_Outages", _OUTAGES, **_OPTIONS), defstruct("_Counts", _COUNTS, **_OPTIONS)


class OutageSpec(_Outages, frozen=True, kw_only=True):
    """While Redis does not answer: `share` (each gateway enforces its part of the limit), `closed` or `open`."""

    budget: Outage | None = None
    """Budgets of tokens and of money; if left out, `closed`."""

    def by_dimension(self) -> dict[str, Outage]:
        """Only what was said: a key's own limits and the table's defaults add up."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}


class LimitSpec(_Counts, frozen=True, kw_only=True):
    """What may be used; absent is unlimited."""

    budget: BudgetSpec = BudgetSpec()
    """What may be spent in a day, a week, a month."""
    outage: OutageSpec = OutageSpec()
    """What these limits do while Redis does not answer."""

    def limit(self) -> Limit:
        """These limits as admission knows them."""
        counts = {name: getattr(self, name) for name in COUNTS}
        return Limit(**counts, budget=self.budget.budget(), outage=self.outage.by_dimension())

    def money(self) -> Iterator[tuple[str, ...]]:
        """Where in these limits a budget of money stands."""
        for period in self.budget.__struct_fields__:
            if getattr(self.budget, period).money is not None:
                yield "budget", period, "money"


class Price(Part, frozen=True, kw_only=True):
    """What a route's tokens cost: units of one currency, whichever it is, for a million tokens."""

    input: PerMillion
    """Prompt tokens."""
    cached: PerMillion | None = None
    """Prompt tokens that the target had in its cache; as `input` if left out."""
    output: PerMillion
    """Completion tokens."""
    cached_answer: PerAnswer = 0
    """A whole answer of the response cache, whatever its tokens: no model has worked for it."""

    def cost(self, input: int, cached: int, output: int) -> int:
        """What a call costs in micro-units, rounded up; `cached` are those of the `input` tokens that were cached."""
        cached = min(cached, input)
        cheap = self.input if self.cached is None else self.cached
        return -(-((input - cached) * self.input + cached * cheap + output * self.output) // 1_000_000)

    @property
    def free(self) -> bool:
        """No call costs anything."""
        return not (self.input or self.cached or self.output or self.cached_answer)


class StorageSpec(Part, frozen=True, kw_only=True):
    """How much of files and batches each tenant may have, unless the tenant says otherwise."""

    bytes: Size = 10 * 1024**3
    """Of all its files together."""
    files: Count = 2000
    """Files, results of batches included."""
    batches: Count = 20
    """Batches that have not ended."""
    lines: Count = 50_000
    """Lines of one batch."""
    days: Count = 30
    """For which files, and batches that have ended, are kept."""

    def storage(self) -> Storage:
        """As the parts that ask know it."""
        return Storage(**{name: getattr(self, name) for name in self.__struct_fields__})


class Limits(Part, frozen=True, kw_only=True):
    """Limits by whom they hold for."""

    default: LimitSpec = LimitSpec()
    """Each key, unless the key says otherwise."""
    tenant: LimitSpec = LimitSpec()
    """Each tenant, which is all its keys together, unless the tenant says otherwise."""
    storage: StorageSpec = StorageSpec()
    """What each tenant may store: files, and batches."""
    ietf_headers: bool = False
    """Send the headers `RateLimit` and `RateLimit-Policy` of the IETF's draft, beside `x-ratelimit-...`."""

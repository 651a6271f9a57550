"""Whose turn it is: the tenants of a class share by the tokens they use, not by the calls they make.

The virtual token counter of Sheng et al. (arXiv 2401.00588). Each tenant's counter rises by the tokens it is served;
of the tenants that wait the one with the smallest counter is next. A tenant that comes back starts no lower than those
that wait: what it did not use while it was away is nobody's debt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import nsmallest
from itertools import chain, islice
from operator import attrgetter
from typing import Final, Generic, TypeVar

W = TypeVar("W")

MOST_TENANTS: Final = 4096
"""Tenants remembered while none of their calls waits; of more, those that were quiet the longest are forgotten."""

_counter = attrgetter("counter")


class _Account(Generic[W]):
    """One tenant: the tokens it was served, and its calls in line."""

    __slots__ = ("counter", "floor", "line")

    def __init__(self) -> None:
        self.counter = self.floor = 0
        self.line: OrderedDict[W, None] = OrderedDict()


class Turns(Generic[W]):
    """The lines of one class, one for each tenant. What waits (`W`) is told apart by identity."""

    def __init__(self, most: int = MOST_TENANTS) -> None:
        self._most = most
        self._active: dict[str, _Account[W]] = {}
        self._idle: dict[str, _Account[W]] = {}
        self._level = 0
        """The highest counter there ever was when somebody left: where a tenant starts while nobody waits."""
        self.waiting = 0

    @property
    def tenants(self) -> int:
        """How many are remembered."""
        return len(self._active) + len(self._idle)

    def join(self, tenant: str, one: W, *, first: bool = False) -> None:
        """Stand in line, last among the tenant's own or `first`."""
        account = self._active.get(tenant)
        if account is None:
            account = self._returned(tenant)
            del self._idle[tenant]
            self._active[tenant] = account
        account.line[one] = None
        if first:
            account.line.move_to_end(one, last=False)
        self.waiting += 1

    def leave(self, tenant: str, one: W) -> bool:
        """Leave the line, for whatever reason; False: it was not in line."""
        account = self._active.get(tenant)
        if account is None or one not in account.line:
            return False
        del account.line[one]
        self.waiting -= 1
        if not account.line:
            del self._active[tenant]
            self._remember(tenant, account)
        return True

    def next(self, most: int) -> Iterator[W]:
        """Whose turn it is, and who goes if those before cannot: at most `most`, of other tenants first."""
        accounts = nsmallest(most, self._active.values(), key=_counter)
        heads = (next(iter(account.line)) for account in accounts)
        behind = islice(accounts[0].line, 1, most) if accounts else ()
        return islice(chain(heads, behind), most)

    def all(self) -> Iterator[W]:
        """Everybody in line, in no particular order."""
        return (one for account in self._active.values() for one in account.line)

    def newest(self) -> W:
        """The last in the longest line, of equals the one that is there for the shortest time; somebody must wait."""
        return next(reversed(max(reversed(self._active.values()), key=lambda account: len(account.line)).line))

    def length(self, tenant: str) -> int:
        """Calls of the tenant in line."""
        account = self._active.get(tenant)
        return 0 if account is None else len(account.line)

    def longest(self) -> int:
        """Calls in the longest line."""
        return max((len(account.line) for account in self._active.values()), default=0)

    def charge(self, tenant: str, tokens: int) -> None:
        """The tenant is served so many tokens."""
        account = None if self._active else self._idle.pop(tenant, None)
        if account is None:
            account = self._active.get(tenant) or self._returned(tenant)
        else:  # as `_returned`, where nobody waits
            self._idle[tenant] = account
            if account.counter < self._level:
                account.counter = account.floor = self._level
        account.counter += tokens
        if account.counter > self._level:
            self._level = account.counter

    def correct(self, tenant: str, tokens: int) -> None:
        """An earlier charge was too low, or too high (negative). A tenant that is not remembered has no charges."""
        account = self._active.get(tenant) or self._idle.get(tenant)
        if account is not None:
            # What was charged before the tenant was lifted is gone with the lift: giving it back would put it ahead.
            account.counter = max(account.floor, account.counter + tokens)

    def _returned(self, tenant: str) -> _Account[W]:
        """The account of a tenant that has none in line, no lower than those that have, the last to be forgotten."""
        account = self._idle.pop(tenant, None) or _Account()
        lowest = min(map(_counter, self._active.values())) if self._active else self._level
        if account.counter < lowest:
            account.counter = account.floor = lowest
        self._remember(tenant, account)
        return account

    def _remember(self, tenant: str, account: _Account[W]) -> None:
        self._level = max(self._level, account.counter)
        self._idle[tenant] = account
        if len(self._idle) > self._most:
            del self._idle[next(iter(self._idle))]

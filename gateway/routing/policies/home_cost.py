"""The default policy: keep calls where their prompt is cached, as long as that is where they are answered soonest.

A target's score is what it has to read before the call, and the call's own prompt, less kappa times what it is expected
to have of that prompt in its cache. What is cached is predicted from rendezvous hashing, which needs no memory and is
the same in every gateway, and from two small tables of what hashing cannot know. The rule, its constants and the
simulations they were chosen by are described in docs/routing.md; `trunkline simulate` replays them.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from itertools import chain
from random import Random
from typing import Final

from msgspec import Struct

from gateway.routing.policies.api import Candidate, Note, Policy, Prompt, Reason, Score, cheapest, ripe
from gateway.routing.policies.tables import NEVER, Exceptions, Groups
from gateway.routing.rendezvous import Rendezvous
from gateway.targets.load import LEAST_CHARGE

KAPPA: Final = 2.0
"""Of an idle fleet: a prompt that is read where it is not cached pushes as much out of the cache there. With each call
that waits it grows by one over the number of targets: an unnecessary read delays all behind it."""
KAPPA_MAX: Final = 8.0
"""Without a cap one target would keep a hot prefix for itself."""
SPARE: Final = 0.25
"""The part of all caches together that may hold further copies of groups' prefixes, for each as its part of the calls:
a prefix that is short or much asked for has many homes, one that is long and one of many has a single one."""
COPY_CALLS: Final = 2
"""Calls of a group, of late, that pay for each further home: there its prefix is read once more."""
FAR: Final = 1.5
"""A target that holds so many times its part of all prefixes keeps no group that has room elsewhere."""
COUNT_SECONDS: Final = 1.0
"""For so long the count of prefixes at each target is only added to."""
S_MIN: Final = 1024
"""Tokens; a shorter common prefix is not worth a home of its own."""
ALPHA, ALPHA_RATE = 0.7, 0.02
"""The part of a follow-up that its home has cached: the first guess, and how fast it is learned."""
PHI, PSI, SHARE_RATE = 0.5, 1.0, 0.01
"""The share of follow-ups among calls, of known groups among grouped calls: first guesses, and how fast they move."""
RING: Final = 32
"""Notes for other gateways between two exchanges; older ones are lost."""
FEW: Final = 16
"""Up to so many targets each is scored; of more only those that can be worth it."""
SAMPLE: Final = 8
"""Of a large tier's warm targets so many are looked at."""
REFRESH_SECONDS: Final = 0.05
"""For so long the weights of young targets and a large tier's mean load are taken as they were."""
KEPT_ORDERS, KEPT_PLACES = 1024, 65536
"""Orders of groups that are remembered, and places in all of them together."""


class Look(Struct):
    """Where a call belongs, by places in the tier. Empty where there is no group, -1 where there is no such place."""

    home: int = -1
    homes: Sequence[int] = ()
    """The group's order, nearest first."""
    count: int = 0
    """How many of them are homes of the group."""
    stamps: Sequence[int] = ()
    """For each place its clock when the group was last sent there."""
    last: int = -1
    """Where the conversation is expected to be cached: at home, or where its last call went instead."""
    length: float = 0.0
    """Tokens of it that are expected there."""


class HomeCost:
    """The routing rule `home-cost`, version 2. Greek names and single letters are the rule's own."""

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._rendezvous, self._random = Rendezvous(names), Random(seed)  # noqa: S311 - no secret
        self._luck = self._random.getrandbits(64)  # of the next call, drawn before it comes: to look changes nothing
        self._groups, self._exceptions = Groups(len(names)), Exceptions()
        self._alpha, self._phi, self._psi = ALPHA, PHI, PSI
        self._ring: deque[Note] = deque(maxlen=RING)
        self._weights: Sequence[float] | None = None
        self._resident: list[int] = [0] * len(names)
        self._counted = float("-inf")
        self._kappa, self._refreshed = 1.0, float("-inf")
        self._orders: dict[int, array[int]] = {}
        self._most_orders = min(KEPT_ORDERS, max(1, KEPT_PLACES // max(1, len(names))))
        self._orders_of: tuple[Sequence[int], Sequence[float] | None] = ((), None)

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        self._refresh(targets, usable, now)
        draws = self._rendezvous.draws(prompt.conversation or self._luck, self._weights)
        look = self._look(prompt, draws, targets, usable)
        if len(usable) <= FEW:
            order = sorted(usable, key=draws.__getitem__, reverse=True)  # of equals the nearest to home is picked
        else:
            order = self._worthwhile(look, draws, targets, usable)
        homes, stamps, tokens, prefix = set(look.homes[: look.count]), look.stamps, prompt.tokens, float(prompt.prefix)
        home, last = look.home, look.last
        begins, kappa = -1 if prompt.follow_up else home, self._kappa
        other: Reason = "spill" if home >= 0 else "no_key"
        scores = []
        for place in order:
            target = targets[place]
            load = target.load
            cached = value = hoped = 0.0
            if stamps and load.clock - stamps[place] < target.kv_tokens:
                cached = value = prefix
            elif place in homes:
                value = self._psi * prefix
            if place == last:
                cached, value = max(cached, look.length), max(value, look.length)
            if place == begins:
                hoped = self._phi * (tokens - cached)  # it pays when the conversation goes on
            pending = load.pending(now) if load.others_prefill else load.prefill
            cost = (pending + tokens - hoped - kappa * value) / target.weight
            reason: Reason = "warm" if cached else other
            if place == home:
                reason = "home"
            elif place == last:
                reason = "exception"
            scores.append(Score(place, cost, int(cached), reason))
        return scores

    def pick(self, scores: Sequence[Score]) -> Score:
        self._luck = self._random.getrandbits(64)
        return cheapest(scores)

    def placed(self, prompt: Prompt, score: Score, targets: Sequence[Candidate]) -> None:
        conversation = prompt.conversation
        if conversation is None:
            return
        place, target = score.index, targets[score.index]
        clock = target.load.clock
        if (group := _group(prompt)) is not None:
            known, stamp = self._groups.sent(group, place, clock, prompt.prefix)
            self._psi += SHARE_RATE * (known - self._psi)
            if clock - max(LEAST_CHARGE, prompt.tokens - score.cached) - stamp >= target.kv_tokens:  # it was not warm
                self._resident[place] += prompt.prefix
                self._ring.append(Note("group", group, target.name, prompt.prefix))
        self._phi += SHARE_RATE * (prompt.follow_up - self._phi)
        if score.reason != "home" or conversation in self._exceptions:
            self._exceptions.put(conversation, place, prompt.tokens, clock)
            self._ring.append(Note("call", conversation, target.name, prompt.tokens))

    def told(self, prompt: Prompt, score: Score, prompt_tokens: int, cached_tokens: int) -> None:
        if prompt.follow_up and score.reason == "home" and prompt_tokens > 0:
            self._alpha += ALPHA_RATE * (min(1.0, max(0, cached_tokens) / prompt_tokens) - self._alpha)

    def notes(self) -> list[Note]:
        notes = list(self._ring)
        self._ring.clear()
        return notes

    def heard(self, notes: Sequence[Note], targets: Sequence[Candidate]) -> None:
        for note in notes:
            place = self._places.get(note.target)
            if place is None:  # another table, for a moment
                continue
            clock = targets[place].load.clock
            if note.kind == "group":
                self._resident[place] += note.tokens
                self._groups.heard(note.key, place, clock, note.tokens)
            else:
                self._exceptions.put(note.key, place, note.tokens, clock)

    def inherit(self, predecessor: Policy, names: Sequence[str]) -> None:
        assert isinstance(predecessor, HomeCost)
        places = [(before, self._places[name]) for before, name in enumerate(names) if name in self._places]
        self._groups.inherit(predecessor._groups, places)
        self._exceptions.inherit(predecessor._exceptions, places)
        self._alpha, self._phi, self._psi = predecessor._alpha, predecessor._phi, predecessor._psi
        self._ring = predecessor._ring

    def _look(
        self, prompt: Prompt, draws: Sequence[float], targets: Sequence[Candidate], usable: Sequence[int]
    ) -> Look:
        if (conversation := prompt.conversation) is None:
            return Look()
        if (group := _group(prompt)) is None:
            look = Look(_first(draws, usable))
        else:
            look, share, calls = Look(), 0.0, 0.0
            if (slot := self._groups.find(group)) >= 0:
                look.stamps, share, calls = (
                    self._groups.stamps(slot),
                    self._groups.share(slot),
                    self._groups.calls(slot),
                )
            look.homes = self._homes(group, prompt.prefix, look.stamps, targets, usable)
            look.count = self._count(share, calls, prompt.prefix, targets, usable)
            look.home = max(look.homes[: look.count], key=draws.__getitem__)
        if prompt.follow_up:
            look.last, look.length = look.home, self._alpha * prompt.tokens
            exception = self._exceptions.get(conversation)
            if exception is not None and exception[0] in usable:
                place, length, stamp = exception
                if targets[place].load.clock - stamp < targets[place].kv_tokens:
                    look.last, look.length = place, float(min(length, prompt.tokens))
        return look

    def _homes(
        self,
        group: int,
        prefix: int,
        stamps: Sequence[int],
        targets: Sequence[Candidate],
        usable: Sequence[int],
    ) -> Sequence[int]:
        """The group's homes, nearest first: where it is cached, in its own order; if nowhere, where there is room.

        Of targets that have it cached, those with more than their part of all prefixes, and one more, come last: it is
        left where it is rather than moved to and fro. It moves when all hold far more, as when the fleet has grown.
        """
        order, resident = self._order(group, usable), self._resident
        fair = (sum([resident[place] for place in usable]) + prefix) / sum([targets[place].weight for place in usable])
        warm = [p for p in order if stamps and targets[p].load.clock - stamps[p] < targets[p].kv_tokens]
        roomy = [p for p in warm if resident[p] <= fair * targets[p].weight + prefix]
        if not any(resident[p] <= FAR * fair * targets[p].weight + prefix for p in warm):
            roomy = [p for p in order if resident[p] <= fair * targets[p].weight + prefix / 2]
        return list(dict.fromkeys([*roomy, *warm, *order]))

    @staticmethod
    def _count(share: float, calls: float, prefix: int, targets: Sequence[Candidate], usable: Sequence[int]) -> int:
        """How many homes a group has: as its calls need, or as there is spare room for; and as they have paid for."""
        room = SPARE * sum([targets[place].kv_tokens for place in usable])
        return min(int(1 + calls / COPY_CALLS), max(1, round(share * len(usable)), int(1 + share * room / prefix)))

    def _order(self, group: int, usable: Sequence[int]) -> array[int]:
        """The group's order. Groups come again and again: their orders are kept as long as they are true."""
        if self._orders_of != (usable, self._weights):
            self._orders.clear()
            self._orders_of = (usable, self._weights)
        order = self._orders.get(group)
        if order is None:
            order = self._orders[group] = array("H", self._rendezvous.order(group, usable, self._weights))
            if len(self._orders) > self._most_orders:
                del self._orders[next(iter(self._orders))]
        return order

    def _worthwhile(
        self, look: Look, draws: Sequence[float], targets: Sequence[Candidate], usable: Sequence[int]
    ) -> list[int]:
        """Of a large tier: home, the first of each order, some where the group is cached, and two by chance."""
        luck, count = self._luck, len(usable)
        allowed = usable if count == len(draws) else set(usable)
        places = dict.fromkeys((look.home, _first(draws, usable), *look.homes[:2], look.last))
        places |= dict.fromkeys((usable[luck % count], usable[(luck >> 32) % count]))
        if look.stamps:
            start, warm = luck % len(targets), 0
            for place in chain(range(start, len(targets)), range(start)):
                stamp = look.stamps[place]
                if stamp != NEVER and targets[place].load.clock - stamp < targets[place].kv_tokens:
                    places[place], warm = None, warm + 1
                    if warm == SAMPLE:
                        break
        return [place for place in places if place in allowed]

    def _refresh(self, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> None:
        """What need not be asked for each call: the weights with slow start, the mean load of a large tier, and the
        tokens of the prefixes that are at home at each target."""
        if not 0 <= now - self._counted < COUNT_SECONDS:
            self._counted = now
            self._resident = self._groups.residents([each.load.clock - each.kv_tokens + 1 for each in targets])
        late = not 0 <= now - self._refreshed < REFRESH_SECONDS
        if late:
            weights = [ripe(target, now) for target in targets]
            self._weights = None if len(set(weights)) == 1 else weights
            self._refreshed = now
        if late or len(usable) <= FEW:
            waiting = sum([(load := targets[place].load).waiting + load.others_waiting for place in usable])
            self._kappa = min(KAPPA_MAX, KAPPA + waiting / len(usable))


def _first(draws: Sequence[float], usable: Sequence[int]) -> int:
    return draws.index(max(draws)) if len(usable) == len(draws) else max(usable, key=draws.__getitem__)


def _group(prompt: Prompt) -> int | None:
    return prompt.group if prompt.prefix >= S_MIN else None

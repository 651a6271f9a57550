"""The default policy: keep calls where their prompt is cached, as long as that is where they are answered soonest.

A target's score is what it has to read before the call, and the call's own prompt, less kappa times what it is expected
to have of that prompt in its cache. What is cached is predicted from rendezvous hashing, which needs no memory and is
the same in every gateway, and from two small tables of what hashing cannot know. The rule, its constants and the
simulations they were chosen by are described in docs/routing.md; `trunkline simulate` replays them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from itertools import chain, islice
from random import Random
from typing import Final

from msgspec import Struct

from gateway.routing.policies.api import Candidate, Note, Policy, Prompt, Reason, Score, cheapest, ripe
from gateway.routing.policies.orders import Orders, marked, marks_of
from gateway.routing.policies.tables import Exceptions, Groups
from gateway.routing.rendezvous import Rendezvous
from gateway.targets.load import LEAST_CHARGE, Load

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


class Look(Struct):
    """Where a call belongs, by places in the tier. Empty where there is no group, -1 where there is no such place."""

    home: int = -1
    first: int = -1
    """The first in the conversation's own order; -1: not looked for yet."""
    homes: Collection[int] = ()
    """Of the group."""
    nearest: Sequence[int] = ()
    """Those of them that come first, two at least in a large tier."""
    stamps: Sequence[int] = ()
    """For each place its clock when the group was last sent there."""
    sent: bytes | bytearray = b""
    """For each place 1 if the group was ever sent there."""
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
        self._everywhere = frozenset(range(len(names)))
        self._loads: Sequence[Load] = ()
        self._usable: list[int] = []
        self._allowed = b""
        """For each place 1 if it is usable; empty if all are."""
        self._weight = self._room = 0.0
        """Of the usable targets together: their weight, and tokens of their caches that copies may take."""
        self._orders = Orders(self._rendezvous, len(names))

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        self._refresh(targets, usable, now)
        draws = self._rendezvous.draws(prompt.conversation or self._luck, self._weights)
        look = self._look(prompt, draws, targets, usable)
        if len(usable) <= FEW:
            order = sorted(usable, key=draws.__getitem__, reverse=True)  # of equals the nearest to home is picked
        else:
            order = self._worthwhile(look, draws, targets, usable)
        loads, sent, stamps, homes, tokens = self._loads, look.sent, look.stamps, look.homes, prompt.tokens
        prefix, at_home, kappa = prompt.prefix, self._psi * prompt.prefix, self._kappa
        saved, saved_at_home = kappa * prefix, kappa * at_home
        other: Reason = "spill" if look.home >= 0 else "no_key"
        scores = []
        for place in order:
            target, load = targets[place], loads[place]
            cost = (load.pending(now) if load.others_prefill else load.prefill) + tokens
            if sent and sent[place] and load.clock - stamps[place] < target.kv_tokens:
                scores.append(Score(place, (cost - saved) / target.weight, prefix, "warm"))
            elif place in homes:
                scores.append(Score(place, (cost - saved_at_home) / target.weight, 0, other))
            else:
                scores.append(Score(place, cost / target.weight, 0, other))
        # The conversation's own part of the prompt counts at its home, and where its last call went.
        for place in (look.last, look.home) if look.last != look.home else (look.home,):
            if place >= 0:
                score, target = scores[order.index(place)], targets[place]
                cached: float = score.cached
                value, hoped = cached or (at_home if place in homes else 0.0), 0.0
                if place == look.last:
                    cached, value = max(cached, look.length), max(value, look.length)
                if place == look.home and not prompt.follow_up:
                    hoped = self._phi * (tokens - cached)  # it pays when the conversation goes on
                score.cost = (loads[place].pending(now) + tokens - hoped - kappa * value) / target.weight
                score.cached, score.reason = int(cached), "home" if place == look.home else "exception"
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
        if (group := prompt.group) is not None and prompt.prefix >= S_MIN:
            known, stamp = self._groups.sent(group, place, clock, prompt.prefix)
            self._psi += SHARE_RATE * (known - self._psi)
            if clock - max(LEAST_CHARGE, prompt.tokens - score.cached) - stamp >= target.kv_tokens:  # it was not warm
                self._resident[place] += prompt.prefix
                self._ring.append(Note("group", group, target.name, prompt.prefix))
        self._phi += SHARE_RATE * (prompt.follow_up - self._phi)
        if score.reason != "home" or self._exceptions.get(conversation) is not None:
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
        if (group := prompt.group) is None or prompt.prefix < S_MIN:
            look = Look()
            look.home = look.first = _first(draws, usable)
        else:
            look = self._look_for_group(group, prompt.prefix, draws, targets, usable)
        if prompt.follow_up:
            look.last, look.length = look.home, self._alpha * prompt.tokens
            exception = self._exceptions.get(conversation)
            if exception is not None and exception[0] in usable:
                place, length, stamp = exception
                if targets[place].load.clock - stamp < targets[place].kv_tokens:
                    look.last, look.length = place, float(min(length, prompt.tokens))
        return look

    def _look_for_group(
        self, group: int, prefix: int, draws: Sequence[float], targets: Sequence[Candidate], usable: Sequence[int]
    ) -> Look:
        look, share, calls, many = Look(), 0.0, 0.0, len(usable)
        if (slot := self._groups.find(group)) >= 0:
            look.stamps, look.sent, share, calls = self._groups.known(slot)
        # How many homes: as its calls need, or as there is spare room for; and as they have paid for.
        count = min(int(1 + calls / COPY_CALLS), max(1, round(share * many), int(1 + share * self._room / prefix)))
        if count < many:
            look.nearest = self._nearest(group, prefix, look, targets, count if many <= FEW else max(2, count))
            homes = look.nearest[:count]
            look.homes, look.home = set(homes), max(homes, key=draws.__getitem__)
        else:
            look.homes, look.home = self._everywhere, _first(draws, usable)
            look.first = look.home
            if many > FEW:
                look.nearest = self._nearest(group, prefix, look, targets, 2)
        return look

    def _nearest(self, group: int, prefix: int, look: Look, targets: Sequence[Candidate], most: int) -> Sequence[int]:
        """The first homes of the group: where it is cached, in its own order; if nowhere, where there is room.

        Of targets that have it cached, those with more than their part of all prefixes, and one more, come last: it is
        left where it is rather than moved to and fro. It moves when all hold far more, as when the fleet has grown.
        """
        resident, allowed, order = self._resident, self._allowed, self._orders.of(group, self._weights)
        held = sum([resident[place] for place in self._usable]) if allowed else sum(resident)
        fair = (held + prefix) / self._weight
        roomy: list[int] = []
        full: list[int] = []
        for place in order.among(look.sent):
            target = targets[place]
            if (allowed and not allowed[place]) or target.load.clock - look.stamps[place] >= target.kv_tokens:
                continue
            if resident[place] > fair * target.weight + prefix:
                full.append(place)
                continue
            roomy.append(place)
            if len(roomy) == most:
                return roomy
        all_places = [place for place in order.places if allowed[place]] if allowed else order.places
        if not roomy and not any(resident[p] <= FAR * fair * targets[p].weight + prefix for p in full):
            with_room = (p for p in all_places if resident[p] <= fair * targets[p].weight + prefix / 2)
            roomy = list(islice(with_room, most))
        # A few of all places are enough: no more of them than that are among the others.
        return list(dict.fromkeys([*roomy, *full, *all_places[: most + len(full)]]))[:most]

    def _worthwhile(
        self, look: Look, draws: Sequence[float], targets: Sequence[Candidate], usable: Sequence[int]
    ) -> list[int]:
        """Of a large tier: home, the first of each order, some where the group is cached, and two by chance."""
        luck, count, allowed = self._luck, len(usable), self._allowed
        first = look.first if look.first >= 0 else _first(draws, usable)
        places = dict.fromkeys((look.home, first, *look.nearest[:2], look.last))
        places |= dict.fromkeys((usable[luck % count], usable[(luck >> 32) % count]))
        start, warm = luck % len(targets), 0
        for place in chain(marked(look.sent, start, len(targets)), marked(look.sent, 0, start)):
            if self._loads[place].clock - look.stamps[place] < targets[place].kv_tokens:
                places[place], warm = None, warm + 1
                if warm == SAMPLE:
                    break
        return [place for place in places if place >= 0 and (not allowed or allowed[place])]

    def _refresh(self, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> None:
        """What need not be asked for each call: the weights with slow start, the mean load and the caches of a large
        tier, and the tokens of the prefixes that are at home at each target."""
        if not 0 <= now - self._counted < COUNT_SECONDS:
            self._counted = now
            self._resident = self._groups.residents([each.load.clock - each.kv_tokens + 1 for each in targets])
        late, few = not 0 <= now - self._refreshed < REFRESH_SECONDS, len(usable) <= FEW
        if late:
            self._refreshed = now
            self._loads = [target.load for target in targets]
            weights: Sequence[float] | None = [ripe(target, now) for target in targets]
            if weights and weights.count(weights[0]) == len(weights):
                weights = None
            if weights != self._weights:
                self._weights = weights
                self._orders.clear()
        changed = usable != self._usable
        if changed or late:
            self._usable = list(usable)
            self._weight = sum([targets[place].weight for place in usable])
            self._allowed = b"" if len(usable) == len(targets) else marks_of(usable, len(targets))
        if changed or late:
            self._room = SPARE * sum([targets[place].kv_tokens for place in usable])
        if late or few:
            loads = self._loads
            waiting = sum([(load := loads[place]).waiting + load.others_waiting for place in usable])
            self._kappa = min(KAPPA_MAX, KAPPA + waiting / len(usable))


def _first(draws: Sequence[float], usable: Sequence[int]) -> int:
    return draws.index(max(draws)) if len(usable) == len(draws) else max(usable, key=draws.__getitem__)

"""The rule `home-cost` once more, word by word from its page and as plainly as can be: no bounds, no speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.routing import Replica

from gateway.routing.policies.api import Note, Prompt, ripe
from gateway.routing.rendezvous import Rendezvous

KAPPA, KAPPA_MAX, SPARE, FAR, S_MIN, PRIOR, COPY_CALLS = 2, 8, 0.25, 1.5, 1024, 128, 2
ALPHA0, ALPHA_RATE, PHI0, PSI0, RATE = 0.7, 0.02, 0.5, 1.0, 0.01
SAMPLE = 8
"""Of a large tier: with more targets than this that ever had a group, not all warm ones need be looked at."""
DECAY = 0.5 ** (1 / 512)


@dataclass
class Exception_:
    target: str
    tokens: int
    stamp: int


@dataclass
class Group:
    """What is known of a group: the length of its prefix, where its last call went, and when it went where."""

    tokens: int
    last: str
    stamps: dict[str, int] = field(default_factory=dict)


@dataclass
class Choice:
    """What the page says of one call: the targets in the order of its conversation, and what each would cost."""

    order: list[int]
    home: int
    costs: dict[int, float]
    cached: dict[int, float]
    reasons: dict[int, str]
    needed: set[int]
    """Those that must be scored however many there are: warm ones, the first of each order, the home."""
    warm: set[int]

    def picks(self, scored: set[int], *, first_of_equals: bool) -> list[int]:
        """The pick among `scored`; more only where costs are as good as equal and not the same."""
        order = [index for index in self.order if index in scored]
        least = min(self.costs[index] for index in order)
        near = [index for index in order if self.costs[index] <= least + 1e-7 * max(1.0, abs(least))]
        same = [index for index in near if self.costs[index] == least]
        return [index for index in near if index not in same[1:] or not first_of_equals]


class Reference:
    """Tables of any size, one entry per key."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.rendezvous = Rendezvous(names)
        self.alpha, self.phi, self.psi = ALPHA0, PHI0, PSI0
        self.counts: dict[int, float] = {}
        self.total = 0.0
        self.groups: dict[int, Group] = {}
        self.resident, self.counted = dict.fromkeys(names, 0), float("-inf")
        self.exceptions: dict[int, Exception_] = {}
        self.ring: list[Note] = []

    def share(self, group: int) -> float:
        """As if 128 calls of other groups had just come."""
        return self.counts.get(group, 0.0) / (self.total + PRIOR)

    def is_warm(self, group: int, target: Replica) -> bool:
        stamp = self.groups[group].stamps.get(target.name) if group in self.groups else None
        return stamp is not None and target.load.clock - stamp < target.kv_tokens

    def count(self, targets: Sequence[Replica], now: float) -> None:
        """Once a second, when it is needed: whose last call went where, and is cached there still."""
        if now - self.counted >= 1:
            self.counted = now
            self.resident = {
                target.name: sum(
                    group.tokens
                    for key, group in self.groups.items()
                    if group.last == target.name and self.is_warm(key, target)
                )
                for target in targets
            }

    def homes(
        self, group: int, prefix: int, order: list[int], targets: Sequence[Replica], usable: Sequence[int]
    ) -> list[int]:
        """All usable targets in the order in which they are the group's homes."""
        fair = (sum(self.resident[targets[index].name] for index in usable) + prefix) / sum(
            targets[index].weight for index in usable
        )

        def holds_at_most(index: int, parts: float, prefixes: float) -> bool:
            return self.resident[targets[index].name] <= parts * fair * targets[index].weight + prefixes * prefix

        warm = [index for index in order if self.is_warm(group, targets[index])]
        if any(holds_at_most(index, FAR, 1) for index in warm):
            first = [index for index in warm if holds_at_most(index, 1, 1)]
        else:
            first = [index for index in order if holds_at_most(index, 1, 0.5)]
        second = [index for index in warm if index not in first]
        return first + second + [index for index in order if index not in first + second]

    def number(self, group: int, prefix: int, targets: Sequence[Replica], usable: Sequence[int], nudge: float) -> int:
        """How many of these are its homes."""
        share = self.share(group) * (1 + nudge)
        copies = share * SPARE * sum(targets[index].kv_tokens for index in usable) / prefix
        paid = int(1 + self.counts.get(group, 0.0) * (1 + nudge) / COPY_CALLS)
        return min(paid, max(1, round(share * len(usable)), int(1 + copies)))

    def fresh(self, prompt: Prompt, targets: Sequence[Replica], usable: Sequence[int]) -> int | None:
        """Where the exceptions table expects the conversation, if anywhere usable."""
        found = self.exceptions.get(prompt.conversation or 0)
        for index in usable:
            target = targets[index]
            if found and found.target == target.name and target.load.clock - found.stamp < target.kv_tokens:
                return index
        return None

    def choose(
        self, prompt: Prompt, targets: Sequence[Replica], usable: Sequence[int], now: float, nudge: float = 0.0
    ) -> Choice:
        """`nudge` tells which way a share falls that is a whole number of homes but for rounding."""
        assert prompt.conversation is not None
        length, m = prompt.tokens, len(usable)
        weights = [ripe(target, now) for target in targets]
        order = self.rendezvous.order(prompt.conversation, usable, weights)
        value, cached = dict.fromkeys(usable, 0.0), dict.fromkeys(usable, 0.0)
        home, warm, needed = order[0], set[int](), {order[0]}
        group = prompt.group if prompt.prefix >= S_MIN else None
        self.count(targets, now)
        if group is not None:
            warm = {index for index in usable if self.is_warm(group, targets[index])}
            order_g = self.rendezvous.order(group, usable, weights)
            homes = self.homes(group, prompt.prefix, order_g, targets, usable)
            number = self.number(group, prompt.prefix, targets, usable, nudge)
            for index in homes[:number]:
                value[index] = self.psi * prompt.prefix
            for index in warm:
                value[index] = cached[index] = prompt.prefix
            home = next(index for index in order if index in homes[:number])
            known = self.groups[group].stamps if group in self.groups else ()
            needed |= set(homes[:2]) | (warm if len(known) <= SAMPLE else set())
        exception = None
        if prompt.follow_up:
            exception = self.fresh(prompt, targets, usable)
            if exception is not None:
                expected = min(self.exceptions[prompt.conversation].tokens, length)
                value[exception] = max(value[exception], expected)
                cached[exception] = max(cached[exception], expected)
            else:
                value[home] = max(value[home], self.alpha * length)
                cached[home] = max(cached[home], self.alpha * length)
        hoped = dict.fromkeys(usable, 0.0)
        if not prompt.follow_up:
            hoped[home] = self.phi * (length - cached[home])
        waiting = sum(targets[index].load.waiting + targets[index].load.others_waiting for index in usable)
        kappa = min(KAPPA_MAX, KAPPA + waiting / m)
        costs = {
            index: (targets[index].load.pending(now) + length - hoped[index] - kappa * value[index])
            / targets[index].weight
            for index in usable
        }

        def reason(index: int) -> str:
            if index == home:
                return "home"
            return "exception" if index == exception else "warm" if index in warm else "spill"

        return Choice(order, home, costs, cached, {index: reason(index) for index in usable}, needed | {home}, warm)

    def placed(self, prompt: Prompt, choice: Choice, pick: int, targets: Sequence[Replica]) -> None:
        """After the charge."""
        target = targets[pick]
        assert prompt.conversation is not None
        if prompt.group is not None and prompt.prefix >= S_MIN:
            group = prompt.group
            self.psi += RATE * ((group in self.groups) - self.psi)
            self.counts[group] = self.counts.get(group, 0.0) + 1
            self.counts = {each: count * DECAY for each, count in self.counts.items()}
            self.total = (self.total + 1) * DECAY
            self.went(group, prompt.prefix, target)
            if pick not in choice.warm:
                self.resident[target.name] += prompt.prefix
                self.ring.append(Note("group", group, target.name, prompt.prefix))
        self.phi += RATE * (prompt.follow_up - self.phi)
        if pick != choice.home or prompt.conversation in self.exceptions:
            self.exceptions[prompt.conversation] = Exception_(target.name, prompt.tokens, target.load.clock)
            self.ring.append(Note("call", prompt.conversation, target.name, prompt.tokens))

    def went(self, group: int, tokens: int, target: Replica) -> None:
        """A call of the group, to there."""
        found = self.groups.setdefault(group, Group(tokens, target.name))
        found.tokens, found.last = tokens, target.name
        found.stamps[target.name] = target.load.clock

    def told(self, prompt: Prompt, reason: str, cached_tokens: int) -> None:
        if prompt.follow_up and reason == "home":
            self.alpha += ALPHA_RATE * (cached_tokens / prompt.tokens - self.alpha)

    def notes(self) -> list[Note]:
        """The newest 32."""
        said, self.ring = self.ring[-32:], []
        return said

    def heard(self, notes: Sequence[Note], targets: Sequence[Replica]) -> None:
        by_name = {target.name: target for target in targets}
        for note in notes:
            if (target := by_name.get(note.target)) is None:
                continue
            if note.kind == "group":
                self.resident[target.name] += note.tokens
                self.went(note.key, note.tokens, target)
            else:
                self.exceptions[note.key] = Exception_(target.name, note.tokens, target.load.clock)

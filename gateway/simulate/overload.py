"""Whether a fleet can keep up at all: where it cannot, times to the first token say only how long the trial was."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.simulate.calls import Call
from gateway.simulate.study import Fleet, Outcome


def overloaded(calls: Sequence[Call], seconds: float, fleet: Fleet, outcomes: Sequence[Outcome]) -> list[str]:
    """Policies under which the targets have more to read, of what they have not cached, than they can in the time."""
    offered, left = 0, list(calls)
    while left:
        call = left.pop()
        offered += call.prompt.tokens
        left.extend(call.next)
    capacity = fleet.rate * sum(member.weight for member in fleet.members) * seconds
    return [each.policy for each in outcomes if offered * (1 - each.hit_ratio) > capacity]

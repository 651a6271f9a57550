"""What a policy sees and answers. Filter -> score -> pick: each step is a protocol of one method.

The filters are in `gateway.routing.filters`; a policy scores what they leave, and picks. Policies are pure: no I/O, no
clock of their own, randomness from a seed. The gateway and `trunkline simulate` run the same classes. A policy is found
by its entry point in `trunkline.policies`, which names a class that is made with the names of a tier's targets and a
seed: `make(names, seed)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

from gateway.targets.load import Load

Reason = Literal["home", "warm", "exception", "spill", "no_key", "least", "turn", "session", "only", "other"]
"""Why a target was picked: the closed vocabulary of metrics and explanations."""

YOUNG_SECONDS = 30.0
LEAST_WEIGHT = 0.02


class Prompt(Struct, frozen=True):
    """What routing knows of a call. Hashes are of 64 bits and never 0; None: the call has none."""

    tokens: int
    """Of the whole prompt, estimated (L in the routing rule)."""
    conversation: int | None = None
    """Hash of model, tenant, tools, system prompt and first user message, or of the session the client named (c)."""
    group: int | None = None
    """Hash of model, tenant, tools and system prompt (g)."""
    prefix: int = 0
    """Tokens of tools and system prompt (S)."""
    follow_up: bool = False
    """It holds an answer already: an earlier call of the conversation has been served somewhere."""
    session: int | None = None
    """Hash of the session or user that the client named."""
    context: int = 0
    """Tokens of prompt and answer together, estimated; 0: nothing is known of them."""
    least_context: int = 0
    """The same, at the very least."""
    alone: int = 0
    """Tokens of the prompt alone, as servers bound them; 0: nothing is known of them."""
    whole: bool = False
    """Its answer comes whole, and nobody sees when the prompt has been read."""
    patient: bool = False
    """Its route holds calls for targets that are not there: it need not be sent to one that seems not to be."""
    part: float = 1.0
    """The part of a target's room that the call may fill: a call of low priority leaves some for others."""
    endpoint: str = ""
    """What it asks for: not every target has all of it. Empty: anything."""
    lora: str = ""
    """The LoRA adapter that is asked for, which not every target may have. Empty: none."""
    only: str = ""
    """The name of the one target that has what the call goes on with. Empty: any can take it."""


class Candidate(Protocol):
    """A target as policies see it."""

    @property
    def name(self) -> str:
        """Unique in the table."""

    @property
    def weight(self) -> float:
        """Its share of the load, relative to the others."""

    @property
    def load(self) -> Load:
        """What it has to do."""

    @property
    def kv_tokens(self) -> int:
        """How many tokens its prefix cache holds, as far as known."""

    @property
    def since(self) -> float:
        """When it came or came back, in seconds of the clock that `now` is of; minus infinity: long ago."""


class Score(Struct):
    """What a policy thinks of one candidate."""

    index: int
    """Its place in the tier's targets."""
    cost: float
    """Lower is better."""
    cached: int = 0
    """Tokens of the prompt expected in its cache: they are not charged to its load."""
    reason: Reason = "other"
    """Why, should it be picked."""


class Scorer(Protocol):
    """Says what each candidate would cost. Changes nothing: an explanation asks, too."""

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        """Scores of some or all of `usable`, which are places in `targets`, at least one and in rising order.

        `targets` are always those the policy was made for; a list of `usable` is not changed afterwards.
        """


class Picker(Protocol):
    """Picks among scores."""

    def pick(self, scores: Sequence[Score]) -> Score:
        """One of `scores`, of which there is at least one."""


class Policy(Scorer, Picker, Protocol):
    """Both; and whichever it needs of the protocols below."""


@runtime_checkable
class Remembers(Protocol):
    """For policies that remember where calls went."""

    def placed(self, prompt: Prompt, score: Score, targets: Sequence[Candidate]) -> None:
        """The call goes to the scored target; its load already has the charge."""


@runtime_checkable
class Learns(Protocol):
    """For policies that learn from what targets report."""

    def told(self, prompt: Prompt, score: Score, prompt_tokens: int, cached_tokens: int) -> None:
        """The target of a placed call reported its usage, cached tokens included."""


class Note(Struct, frozen=True, array_like=True):
    """One thing a policy tells the same policy in other gateways. `target` is a name; stamps are the receiver's own."""

    kind: Literal["call", "group"]
    key: int
    target: str
    tokens: int = 0


@runtime_checkable
class Gossips(Protocol):
    """For policies that tell the same policy in other gateways what they remember."""

    def notes(self) -> list[Note]:
        """What has happened since this was last asked for, at most 32, the newest; older ones are lost."""

    def heard(self, notes: Sequence[Note], targets: Sequence[Candidate]) -> None:
        """Apply another gateway's notes, once."""


@runtime_checkable
class Inherits(Protocol):
    """For policies that take over what their predecessor remembers when the table is reloaded."""

    def inherit(self, predecessor: Policy, names: Sequence[str]) -> None:
        """Take over from a policy of the same class that was made for the targets `names`."""


def ripe(target: Candidate, now: float) -> float:
    """The target's weight, which rises from a fiftieth to its whole in the first 30 s after it came (slow start)."""
    age = now - target.since
    if age >= YOUNG_SECONDS:
        return target.weight
    return target.weight * (LEAST_WEIGHT + (1 - LEAST_WEIGHT) * max(0.0, age) / YOUNG_SECONDS)


def cheapest(scores: Sequence[Score]) -> Score:
    """The one with the lowest cost; of equals the first."""
    best = scores[0]
    for score in scores:
        if score.cost < best.cost:
            best = score
    return best


def __getattr__(name: str) -> type:
    """Names of before, for one release."""
    if name == "Tells":
        warnings.warn("gateway.routing.policies.api.Tells is called Gossips now", DeprecationWarning, stacklevel=2)
        return Gossips
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

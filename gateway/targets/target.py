"""A target, with all that decides whether a call can go there, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, get_args

from backends.api import Facts
from backends.api import Target as Address
from backends.capabilities import Capabilities
from gateway.config import FallbackSpec, TargetSpec, Timeouts
from gateway.config.weak_secrets import is_weak
from gateway.core.types import OrderState
from gateway.targets.endpoints import spoken
from gateway.targets.health import EJECT_SECONDS, Breaker
from gateway.targets.load import Load
from gateway.targets.progress import Progress

KV_TOKENS: Final = 1_000_000
"""Assumed of a prefix cache that tells nothing of its size: twice too much costs nothing, half costs 3 to 8 %."""
REST_SECONDS: Final = 0.5
"""How long a target is left alone that sheds load without saying for how long."""
MOST_REST_SECONDS: Final = 30.0
"""One absurd `Retry-After` must not take a target away for long."""
PREFILL_LIMIT: Final = 480_000
"""Outstanding prompt tokens with which the heaviest target of a tier is full: a minute of reading for a slow engine, a
quarter of one for a fast one. It bounds what piles up in engines, where calls can no longer be moved; to wait for less
would send calls away from where their prompts are cached."""
UNBOUNDED: Final = 1 << 60
MOST_NAMED: Final = 4
"""Models that a warning names."""
Warning = Literal["model", "unguarded", "credential"]  # the words of the metric
WARNINGS: Final = get_args(Warning)
THERE: Final = ("credential", "status 4", "cannot")
"""How the complaints of probes begin that something answered to: it may take calls though it does not please them."""


class Inflight:
    """Calls at one target, ours and those of other gateways as they last told; its server may have others."""

    __slots__ = ("others", "own", "reserve")

    def __init__(self) -> None:
        self.own = self.others = 0
        self.reserve = 0
        """Slots that calls waiting in other gateways have a right to."""

    @property
    def all(self) -> int:
        return self.own + self.others


def address_of(spec: TargetSpec, url: str) -> Address:
    """What an adapter needs to know of a target that is at this URL."""
    return Address(
        spec.name,
        url.rstrip("/"),
        spec.model,
        spec.api_key,
        usage_event=spec.usage_event,
        lenient=spec.finish == "lenient",
        continuous_usage=spec.continuous_usage,
    )


class Target:
    """One target of a route. `clock` is monotonic; the load is that of its server, which other routes may use, too."""

    def __init__(
        self,
        spec: TargetSpec,
        url: str,
        capabilities: Capabilities,
        timeouts: Timeouts,
        breaker: Breaker,
        clock: Callable[[], float],
        load: Load | None = None,
    ) -> None:
        self.spec, self.name, self.weight, self.canary = spec, spec.name, spec.weight, spec.canary or 0.0
        self.header_name = spec.name.encode()
        self.tier = spec.tier if isinstance(spec, FallbackSpec) else 0
        self.address = address_of(spec, url)
        self.capabilities, self.timeouts, self.breaker = capabilities, timeouts, breaker
        self.endpoints: Mapping[str, Capabilities] = spoken(capabilities, spec)
        """What can be asked of it, endpoints and paths that are passed on, and in which words its server is asked."""
        self.load = Load() if load is None else load
        self.inflight = Inflight()
        self._clock = clock
        self.since = float("-inf")
        """When it came or came back, by the clock; minus infinity: long ago."""
        self.attempts = 0
        """Calls ever tried there."""
        self.max_inflight = spec.max_inflight
        self.context, self.kv_tokens = spec.context or UNBOUNDED, spec.kv_tokens or KV_TOKENS
        self.prompt_limit = UNBOUNDED
        """Tokens of a prompt alone, where the server bounds them apart."""
        self.facts = Facts()
        """What its engine says that it is."""
        self.progress = Progress()
        """Whether its engine works."""
        self.asleep = False
        """The server has put its model away."""
        self.prefill_limit = float(PREFILL_LIMIT)
        """Outstanding prompt tokens with which it is full."""
        self.up: bool | None = None
        self.why = ""
        """What the last probe complained of."""
        self.warnings: dict[Warning, str] = {}
        """What is wrong with it though it serves, in a few words, by what it is about."""
        if spec.api_key is not None and is_weak(spec.api_key):
            self.warnings["credential"] = "its credential is a word that anybody would try"
        self.missed = False
        """A call could not reach it, and no probe has since."""
        self.order: OrderState = "open"
        self.order_version = 0
        self.resting, self.resting_until = "", 0.0
        """`resting`: it asked for a pause; `full`: other gateways have taken its last place."""
        self.unsure: set[Target] = {self}
        """Of its tier's targets those that a filter may refuse, whatever the call is; see `Tier.usable`."""
        self._heir: Target | None = None

    def inherit(self, before: Target) -> None:
        """Take over what is known of the same server from the table before, also what its calls find out later."""
        before._heir = self
        self.since, self.attempts, self.inflight = before.since, before.attempts, before.inflight
        self.up, self.why = before.up, before.why
        self.order, self.order_version = before.order, before.order_version
        self.asleep, self.missed, self.progress = before.asleep, before.missed, before.progress
        if self.address == before.address:
            self.warnings = before.warnings
        self.resting, self.resting_until = before.resting, before.resting_until
        self.learned(before.facts)

    def lists_model(self) -> None:
        """Look whether the engine lists the model that the table writes into calls."""
        model, known = self.spec.model, (*(self.facts.models or ()), *(self.facts.loras or ()))
        self.warnings.pop("model", None)
        if model is not None and known and model not in known:
            shown = ", ".join(known[:MOST_NAMED]) + (", ..." if len(known) > MOST_NAMED else "")
            self.warnings["model"] = f"its engine lists no model {model!r}, but {shown}"

    @property
    def resumes(self) -> bool:
        """It can go on with an answer that another server has begun."""
        return self.capabilities.resumable is not None

    @property
    def cold(self) -> bool:
        """It is not there, or sleeps: a call sent there now would come to nothing, one that waits may be served."""
        return self.asleep or self.missed or (self.up is False and not self.why.startswith(THERE))

    @property
    def complaint(self) -> str:
        """What is wrong with it, in a few words; empty when nothing is."""
        return self.why or ("asleep" if self.asleep else "hung" if self.progress.hung else "")

    def rest(self, seconds: float | None, why: str = "resting") -> None:
        """Send nothing for so long, at most 30 s."""
        until = self._clock() + (REST_SECONDS if seconds is None else min(seconds, MOST_REST_SECONDS))
        for target in self._line():
            if until > target.resting_until:
                target.resting, target.resting_until = why, until
                target.changed()

    def ordered(self, state: OrderState, version: int) -> None:
        """What an operator wants holds from now on."""
        if state == "open" and self.order != "open":
            self.returned()
        self.order, self.order_version = state, version
        self.changed()

    def probed(self, why: str) -> None:
        """The last probe's complaint; nothing when all is well."""
        if self.up is False and not why:
            self.returned()
        self.up, self.why, self.missed = not why, why, False
        self.changed()

    def miss(self) -> None:
        """A call could not reach it."""
        for target in self._line():
            target.missed = True
            target.changed()

    def learned(self, facts: Facts) -> None:
        """What the engine says that it is; the table goes first."""
        self.facts = facts
        self.prompt_limit = facts.prompt or UNBOUNDED
        if self.spec.context is None:
            self.context = facts.context or UNBOUNDED
        if self.spec.kv_tokens is None:
            self.kv_tokens = facts.kv_tokens or KV_TOKENS
        self.changed()

    def sleeps(self, asleep: bool) -> None:
        """Its server says whether it has put its model away."""
        if self.asleep and not asleep:
            self.returned()
        self.asleep = asleep
        self.changed()

    def failed(self, trial: bool) -> None:
        """A call has failed there, and it is to blame; `trial`: it was the call that tried it after an ejection."""
        self.breaker.failed(trial)
        self.changed()
        self.load.notify()  # its successor in a newer table has the same breaker

    def hangs(self) -> None:
        """Its engine makes no progress: send it no calls, but one that tries it now and then."""
        if not self.breaker.ejections:  # else the call that tries it fails
            self.breaker.eject(EJECT_SECONDS)
        self.changed()
        self.load.notify()

    def works(self) -> None:
        """Its engine, which hung, makes progress again."""
        if self.breaker.succeeded():
            self.returned()
        self.changed()

    def _line(self) -> Iterator[Target]:
        """It, and its successors in newer tables."""
        target: Target | None = self
        while target is not None:
            yield target
            target = target._heir

    def changed(self) -> None:
        """Something has happened to it, its load or its server: a filter may refuse it now."""
        self.unsure.add(self)

    def returned(self) -> None:
        """It is back: slowly at first."""
        for target in self._line():
            target.since = self._clock()

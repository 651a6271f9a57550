"""A call's place at a target: what it adds to the load there, given back exactly once, and what it tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from msgspec import Struct, structs

from backends.api import Usage
from gateway.core.errors import (
    ContextTooLong,
    Disconnected,
    GatewayError,
    ModelUnknown,
    NoTarget,
    QueueFull,
    QueueTimeout,
    Unreachable,
    UpstreamBusy,
    UpstreamError,
)
from gateway.routing.policies.api import Prompt, Reason, Score
from gateway.routing.tier import Tier
from gateway.targets.load import Share
from gateway.targets.target import Target

STANDING_IN: Final[dict[type[Exception], str]] = {
    NoTarget: "no_target",
    ContextTooLong: "too_long",
    QueueFull: "full",
    QueueTimeout: "full",
}
"""Why another route stands in, by what the first one raised."""


class Choice(Struct, frozen=True):
    """How a target was picked."""

    policy: str
    reason: Reason
    fallback: str = ""
    """Why a worse tier, or another route, was chosen; empty: it was not."""
    waited: float = 0.0
    """Seconds in the queue."""


class Outcome(Struct, frozen=True):
    """How an attempt ended that did not answer the call; `error` is None where its target is not to blame."""

    error: UpstreamError | None = None
    resumes: bool = False
    """The client has a part of the answer: the next attempt goes on with it."""

    @property
    def unreached(self) -> bool:
        """No connection: the call was not sent."""
        return isinstance(self.error, Unreachable)

    @property
    def lost(self) -> bool:
        """The connection ended: whatever the target did for the call, it does no more."""
        return isinstance(self.error, Disconnected | Unreachable)

    @property
    def away(self) -> bool:
        """The target was not there, as far as its failure tells."""
        return self.unreached or (isinstance(self.error, UpstreamBusy) and self.error.broken)


NO_OUTCOME: Final = Outcome()


class Attempt:
    """One attempt at one target. Made, it holds the target's load; `begin` makes it count, `end` gives all back."""

    __slots__ = (
        "_begun",
        "_ended",
        "_leave_slot",
        "_prompt",
        "_share",
        "_slot",
        "_tier",
        "_trial",
        "address",
        "fallback",
        "more_headers",
        "number",
        "outcome",
        "score",
        "target",
        "waited",
    )

    def __init__(self, tier: Tier, score: Score, prompt: Prompt) -> None:
        self.target: Target = tier.targets[score.index]
        self.address = self.target.address
        if prompt.lora:
            self.address = structs.replace(self.address, model=prompt.lora)
        self.score, self._tier, self._prompt = score, tier, prompt
        self._share = Share(self.target.load, prompt.tokens - score.cached)
        self._slot: Callable[[], Any] | None = None
        self._leave_slot: Callable[[Target], None] | None = None
        self.fallback = ""
        """Why a worse tier, or another route, has been chosen; empty: it has not."""
        self.outcome = NO_OUTCOME
        self.waited = 0.0
        """Seconds in the queue."""
        self.number = 1
        """Its number among the attempts of its call."""
        self.more_headers: Sequence[tuple[bytes, bytes]] = ()
        """What else the client is told of the way its call has taken."""
        self._begun = self._ended = self._trial = False
        self.target.inflight.own += 1

    def begin(self) -> None:
        """The call really goes there."""
        self._begun = True
        self._tier.placed(self._prompt, self.score)
        self.target.attempts += 1
        self._trial = bool(self.target.breaker.ejections) and self.target.breaker.attempt()
        if self._prompt.whole:  # nobody will see its first token, and its prompt is not being read until its end
            self.target.load.reads(self._share)

    @property
    def prompt_tokens(self) -> int:
        """Of the whole prompt, estimated."""
        return self._prompt.tokens

    @property
    def choice(self) -> Choice:
        """How the target was picked, for the record."""
        return Choice(self._tier.policy_name, self.score.reason, self.fallback, self.waited)

    def stand_in(self, route: str, refused: Exception | None) -> None:
        """The target is of another route than the client asked for, which `refused` the call or has failed."""
        if self.address.model is None:
            self.address = structs.replace(self.address, model=route)  # it would not know the name asked for
        self.fallback = next((word for kind, word in STANDING_IN.items() if isinstance(refused, kind)), "failed")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the client is told of the way its call has taken, in the headers of its answer."""
        headers = [
            (b"x-trunkline-target", self.target.header_name),
            (b"x-trunkline-attempts", b"%d" % self.number),
            *self.more_headers,
        ]
        if self.fallback:
            headers.append((b"x-trunkline-fallback", self.fallback.encode()))
        return headers

    def holds(self, give_back: Callable[[], asyncio.Future[Any] | None], leave_slot: Callable[[Target], None]) -> None:
        """A slot that is counted for all gateways is held, too; `leave_slot` is called just before it is free."""
        self._slot, self._leave_slot = give_back, leave_slot

    def first_token(self) -> None:
        """The prompt has been read. A target that is on trial works: other calls need not wait for this one's end."""
        self._share.first_token()
        if self._trial:
            self._trial = False
            if self.target.breaker.succeeded():
                self.target.returned()

    def answered(self, usage: Usage | None) -> None:
        """The target answered well."""
        if self.target.warnings:
            self.target.warnings.pop("model", None)
        if self.target.breaker.succeeded():
            self.target.returned()
        if usage is not None and usage.cached_tokens is not None:
            read = usage.prompt_tokens - max(0, usage.cached_tokens)
            self._share.read(min(read, self.target.kv_tokens))  # more than turns all over is an error of the engine's
            self._tier.told(self._prompt, self.score, usage.prompt_tokens, usage.cached_tokens)

    def failed(self, error: UpstreamError) -> None:
        """It did not, and is to blame; one that sheds load is not broken."""
        self._mark(error)
        self.outcome = Outcome(error)
        if isinstance(error, UpstreamBusy):
            self.target.rest(error.retry_after)
        if isinstance(error, ModelUnknown):
            self.target.warnings["model"] = error.message
        if self.outcome.away:
            self.target.miss()
        if not isinstance(error, UpstreamBusy) or error.broken:
            self.target.failed(self._trial)

    def resume(self) -> None:
        """It failed in the middle of its answer: the next attempt is to be one that can go on with it."""
        self.outcome = structs.replace(self.outcome, resumes=True)

    def refused(self, error: GatewayError) -> None:
        """It answered that the call was wrong: it is well."""
        self._mark(error)
        if self.target.breaker.succeeded():
            self.target.returned()

    def _mark(self, error: GatewayError) -> None:
        """An error, too, says which way the call has gone."""
        error.headers = {**error.headers, **{name.decode(): value.decode() for name, value in self.headers}}

    def end(self) -> None:
        """Give back all that is still held, however it ended."""
        if self._ended:
            return
        self._ended = True
        if self._leave_slot is not None:
            self._leave_slot(self.target)
        self.target.inflight.own -= 1
        if self._begun:
            if self._trial:
                self._trial = False
                self.target.breaker.ended(True)
            self._share.end()
        else:
            self._share.undo()
        give_back, self._slot = self._slot, None
        if give_back is not None:
            give_back()

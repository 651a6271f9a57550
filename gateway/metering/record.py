"""The record of one call: opened when it arrives, filled as it goes on, written once when it has ended."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Literal, Protocol

from backends.api import Call, Usage
from gateway.config.limits import Price
from gateway.core.clock import Clock
from gateway.core.errors import ClientGone, GatewayError, Internal, UpstreamError, ended_by
from gateway.core.types import KeyRecord, Spent
from gateway.metering.aborts import Abort, Client, Phase
from gateway.metering.counting import count

if TYPE_CHECKING:
    from gateway.metering.meter import Meter

log = logging.getLogger("trunkline.metering")

WAITED_SECONDS = 0.001
"""Less is not waiting, but choosing."""
MOST_GAPS = 64
"""Between pieces of a stream, that are observed together: one by one they are a tenth of what a piece costs."""

MOST_OF_A_NAME = 256
"""Bytes of a header that names a user; a longer one is none."""

NOBODY, TARGET, CLIENT, QUEUE = range(4)
"""Whom a call waits for."""
Repair = Literal["repaired", "in_vain", "failed", "gone"]
"""What came of asking once more for an answer that was not the JSON that was asked for."""


class Choice(Protocol):
    """How a target was picked, in words of closed vocabularies."""

    @property
    def policy(self) -> str:
        """By what."""

    @property
    def reason(self) -> str:
        """For what."""

    @property
    def fallback(self) -> str:
        """Why a worse tier, or another route, was chosen; empty: it was not."""

    @property
    def waited(self) -> float:
        """Seconds in the queue."""


class AttemptRecord:
    """One attempt at one target; `outcome` is ok or the error_type with which it ended."""

    __slots__ = ("choice", "outcome", "target")

    def __init__(self, target: str, choice: Choice) -> None:
        self.target, self.choice, self.outcome = target, choice, "ok"


def named(header: bytes | None) -> str:
    """The user that a header names; empty where it is missing, or no name that can be written down."""
    if header is None or len(header) > MOST_OF_A_NAME:
        return ""
    try:
        name = header.decode()
    except UnicodeDecodeError:
        return ""
    return name if name.isprintable() else ""


class CallRecord:
    """What is known of one call. `close` ends it, with the error that ended the call if one did."""

    __slots__ = (
        "_asked_at",
        "_clock",
        "_headed",
        "_last",
        "_meter",
        "_price",
        "_sent_at",
        "_waits_for",
        "abort",
        "admitted_at",
        "attempts",
        "cache",
        "call",
        "call_id",
        "chunks",
        "client",
        "earlier",
        "endpoint",
        "error",
        "events",
        "gaps",
        "key_id",
        "left_after",
        "left_in",
        "obstacle",
        "outcome",
        "prompt",
        "repair",
        "resumed",
        "resuming",
        "route",
        "seconds",
        "size",
        "spent",
        "started",
        "stream",
        "target",
        "tenant",
        "text",
        "ttft",
        "usage",
        "usage_source",
        "user",
        "wasted_tokens",
    )

    def __init__(self, meter: Meter, clock: Clock, call_id: str, endpoint: str, client: Client | None) -> None:
        self._meter, self._clock, self.client = meter, clock, client
        self.call_id, self.endpoint = call_id, endpoint
        self.started = self._last = self._sent_at = self._asked_at = clock.monotonic()
        self.seconds = [0.0, 0.0, 0.0, 0.0]
        """How long it waited for nobody, the target, the client, in the queue."""
        self._waits_for = NOBODY
        self.route, self.target, self.key_id, self.tenant = "other", "", "", ""
        self.user = ""
        """For whom the call is made, if its key's word for that is taken."""
        self.stream = False
        self.attempts: list[AttemptRecord] = []
        self.ttft: float | None = None
        """Seconds from its arrival until the first piece of the answer was sent."""
        self.gaps: list[float] = []
        """Seconds between pieces of a stream, those that were not observed yet."""
        self.chunks = 0
        self.events = self.size = self.text = 0
        """What has come of the answer: events with output, bytes, and bytes of text."""
        self.usage: Usage | None = None
        self.usage_source = ""
        self.admitted_at = 0.0
        self.call: Call | None = None
        self._price: Price | None = None
        self.prompt = 0
        """Estimated tokens."""
        self._headed = False
        self.left_in: Phase | None = None
        """Where the attempt at hand was when its client left."""
        self.left_after = 0.0
        """Seconds, from when its target was asked."""
        self.wasted_tokens = 0
        """Of answers that came to nothing."""
        self.abort: Abort | None = None
        self.cache = ""
        """What the response cache had for it; empty: it was not asked."""
        self.resuming, self.obstacle = False, ""
        self.resumed = 0
        """How often its stream went on at another target."""
        self.repair: Repair | None = None
        """None: it was not asked for once more."""
        self.earlier = (0, 0, 0)
        """Prompt, cached and completion tokens of the answer that was not passed on then."""
        self.spent: Spent | None = None
        """What it took, once that was asked for: see `final_usage`."""
        self.error: GatewayError | None = None
        self.outcome = "answered"

    def authenticated(self, key: KeyRecord) -> None:
        """From here on we wait for the client's body."""
        self.key_id, self.tenant = key.id, key.tenant
        if key.user_header and self.client is not None:
            self.user = named(self.client.headers.get(key.user_header.encode()))
        self._last, self._waits_for = self._clock.monotonic(), CLIENT

    def received_body(self, call: Call) -> None:
        """The body has come."""
        self.stream, self.call = call.stream, call
        now = self._clock.monotonic()
        self.seconds[CLIENT] += now - self._last
        self._last, self._waits_for = now, NOBODY

    def routed(self, route: str, price: Price | None = None) -> None:
        """The call is for this route, where tokens cost so much."""
        self.route, self._price = route, price

    def admitted(self, at: float, prompt: int) -> None:
        """The call may go on, and waits for a target; `at` is when, in seconds since the epoch, and its prompt is
        estimated to be of so many tokens."""
        self.admitted_at, self.prompt = at, prompt
        now = self._clock.monotonic()
        self.seconds[NOBODY] += now - self._last
        self._last, self._waits_for = now, QUEUE

    def looked(self, found: str) -> None:
        """Its answer was looked for in the cache, which is nobody's time but ours."""
        self.cache, now = found, self._clock.monotonic()
        self.seconds[NOBODY] += now - self._last
        self._last = now

    def from_cache(self) -> None:
        """Its answer is there already, and goes to the client now: no model works for it."""
        now = self._wait_for(CLIENT)
        self.ttft, self.chunks, self.usage_source = now - self.started, 1, "cache"
        self.spent = Spent(0, 0, 0, 0 if self._price is None else self._price.cached_answer)

    def attempt_started(self, target: str, choice: Choice) -> None:
        """The call goes to `target`; `choice` tells why there."""
        self.target, self.usage, self._headed = target, None, False
        now = self._wait_for(TARGET)
        if not self.resuming:
            self.events = self.size = self.text = 0  # what another target said before it failed
            self._asked_at = now  # of an answer in parts it is when its first one was asked for
        self.attempts.append(AttemptRecord(target, choice))

    def got_headers(self) -> None:
        """The target at hand has answered with the headers of a good answer."""
        self._headed = True

    def attempt_failed(self, error: GatewayError) -> None:
        """The attempt at hand failed."""
        if isinstance(error, ClientGone):
            self.left_in, self.left_after = self._phase(), self._clock.monotonic() - self._asked_at
        self.attempts[-1].outcome = error.error_type
        if isinstance(error, UpstreamError):
            log.warning("call %s: target %s: %s: %s", self.call_id, self.target, error.error_type, error.message)

    def broke_off(self, obstacle: str) -> bool:
        """The stream broke off; whether it goes on at another target, if no `obstacle`, in a word, prevents it."""
        self.resuming, self.obstacle = not obstacle, obstacle
        if obstacle:
            self._meter.resume(self, "refused")
        return not obstacle

    def attempt_ended(self) -> None:
        """The attempt at hand is over."""
        failed = self.attempts[-1].outcome != "ok"
        self._wait_for(QUEUE if failed else NOBODY)  # perhaps for another target
        if failed and not self.resuming:
            self._waste(gone=self.left_in is not None)

    def received(self, size: int, tokens: int, usage: Usage | None, text: int = 0) -> None:
        """A chunk of so many bytes, `text` of them of text, has come; until it is sent, we wait for the client."""
        now = self._clock.monotonic()  # as `_wait_for`, which would be a tenth of what a piece costs
        self.seconds[self._waits_for] += now - self._last
        self._last, self._waits_for = now, CLIENT
        self.events += tokens
        self.size += size
        self.text += text
        if usage is not None:
            self.usage = usage

    def sent(self) -> None:
        """A chunk has gone to the client; until the next one comes, the target is what we wait for."""
        now = self._clock.monotonic()
        self.seconds[CLIENT] += now - self._last
        self._last, self._waits_for = now, TARGET
        if self.ttft is None:
            self.ttft = now - self.started
            if self.stream:
                self._meter.first_token(self)
        elif self.resuming:  # the silence before it was another target's
            self.resuming = False
            self.resumed += 1
            self._meter.resume(self, "resumed")
        elif self.stream:
            self.gaps.append(now - self._sent_at)
            if len(self.gaps) >= MOST_GAPS:
                self._meter.between_tokens(self)
        self._sent_at = now
        self.chunks += 1

    def asked_again(self, size: int, usage: Usage | None) -> None:
        """A whole answer of so many bytes has come that is not the JSON that was asked for. Its target is asked once
        more, and what it took for both counts."""
        self.size, self.usage, self.repair = size, usage, "gone"
        input, cached, output, self.usage_source = count(self, self._meter.learned)
        self.earlier = input, cached, output
        self.size, self.usage, self._asked_at = 0, None, self._clock.monotonic()

    def first_kept(self) -> None:
        """There was no second answer: the first is passed on, and counts as any."""
        self.earlier, self.repair = (0, 0, 0), "failed"

    def repaired(self, is_fine: bool) -> None:
        """The second answer is passed on."""
        self.repair = "repaired" if is_fine else "in_vain"

    def final_usage(self) -> Spent:
        """What the call took. Fixed when it is first asked for: what is charged is what is written."""
        if self.spent is None:
            input, cached, output, source = count(self, self._meter.learned)
            self.usage_source = source or self.usage_source  # of an answer before, if a second one was asked for
            if self.repair is not None:
                before = self.earlier
                input, cached, output = input + before[0], cached + before[1], output + before[2]
            if source == "capped":
                self._meter.usage_refused(self)
            cost = 0 if self._price is None else self._price.cost(input, cached, output)
            self.spent = Spent(input, cached, output, cost)
        return self.spent

    def seen(self) -> tuple[int, int | None, float | None, float]:
        """What the target made of an answered call: status, completion tokens, seconds to the first and to the end."""
        now = self._clock.monotonic()
        first = None if self.ttft is None else self.started + self.ttft - self._asked_at
        return 200, self.final_usage().output or None, first, now - self._asked_at

    def close(self, error: BaseException | None = None) -> None:
        """The call is over. To be called once."""
        if error is not None:
            self._fail(error)
        ended = self._wait_for(NOBODY)
        if self.outcome == "gone":
            self.abort = self._aborted(ended)
        if self.resuming and self.error is not None:  # what broke off was to go on, and did not
            self._waste(gone=self.outcome == "gone")
        self._meter.ended(self, ended)

    def _wait_for(self, whom: int) -> float:
        """Book the time since the last change on whom we waited for; the time now."""
        now = self._clock.monotonic()
        passed = now - self._last
        if passed > WAITED_SECONDS or self._waits_for != QUEUE:
            self.seconds[self._waits_for] += passed
        self._last, self._waits_for = now, whom
        return now

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = ended_by(error)
        elif not isinstance(error, GatewayError):
            # Where it happened and its type, but not its text: that may hold what a client typed.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("call %s: a bug of ours: %s\n%s", self.call_id, type(error).__qualname__, frames)
            error = Internal()
        self.error = error
        self.outcome = "broke" if self.ttft is not None and error.outcome == "failed" else error.outcome

    def _phase(self) -> Phase:
        """Where the attempt at hand is."""
        if not self.stream:
            return "whole"
        if self.events or self.resuming:
            return "stream"
        return "first_token" if self._headed else "headers"

    def _waste(self, *, gone: bool) -> None:
        """What has come so far came to nothing: its client is `gone`, or it broke off."""
        made = self._meter.learned.made(self)
        if made:
            self.wasted_tokens += made
            self._meter.wasted(self, "client_gone" if gone else "attempt_failed", made)

    def _aborted(self, ended: float) -> Abort | None:
        """How the client left; None if it is there, and it was us who were told to stop."""
        if self.client is None or self.client.gone_at is None:
            return None
        phase: Phase = self.left_in or ("body" if self.call is None else "queue")
        return Abort(phase, max(0.0, ended - self.client.gone_at))

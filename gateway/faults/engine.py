"""An engine in time, without a model: continuous batching, chunked prefill, a prefix cache of blocks, a waiting queue.

It behaves like vLLM's V1 scheduler as far as time and cache go. One step serves every call that runs: answers go on by
a token each, prompts are read in chunks with what is left of the step's tokens, and calls that wait are taken in while
there is room in the step, in the batch and in the cache. Calls that share a prefix share its blocks. Blocks of calls
that have ended stay until their room is needed, the longest unused first, and of one prompt its end before its
beginning. Not modelled: preemption (a call is taken in when its whole answer has room), speculative decoding,
neighbours on the same GPU.

`Engine` is pure and knows no clock. `TimedEngine` runs it on an event loop: a real one for `trunkline fake-backend
--engine`, a virtual one for `trunkline simulate`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Final

from msgspec import Struct

Segment = tuple[int, int]
"""A piece of prompts and its tokens. Equal ids mean equal text after equal text: a prefix is a run of equal ids."""

BLOCK: Final = 256
"""Tokens of a block at most. vLLM's have 16; what a larger one rounds away is small beside a prompt."""
LATE_SECONDS: Final = 0.05
"""A step that ends late, because the loop was busy, makes the next one begin early by so much at most."""


class Shape(Struct, frozen=True):
    """What an engine can do. The defaults fit vLLM 0.25, a 7B model on half an H200 (docs/routing-simulation.md)."""

    kv_tokens: int = 80_000
    """Tokens that its cache holds, of calls that run and of those that have ended."""
    rate: float = 33_000.0
    """Prompt tokens that it reads in a second."""
    step: float = 0.010
    """Seconds that a step takes, whatever is in it."""
    write: float = 0.00005
    """Seconds that each answer adds to a step."""
    batch: int = 8192
    """Tokens in one step at most."""
    calls: int = 128
    """Calls that run at a time at most; others wait."""


class Work:
    """One call at an engine. `heard` is called at its first token, at its end and, if `streams`, at every token."""

    __slots__ = ("_heard", "answer", "cached", "left", "read", "said", "segments", "streams", "tokens")

    def __init__(
        self, segments: Sequence[Segment], answer: int, heard: Callable[[Work], None], *, streams: bool = False
    ) -> None:
        self.segments = tuple(blocks(segments))
        self.tokens = sum(size for _, size in segments)
        self.answer = max(1, answer)
        """Tokens that it will say."""
        self.streams = streams
        self._heard = heard
        self.cached: int | None = None
        """Tokens of its prompt that need not be read; None until it runs."""
        self.left = 0
        """Tokens of its prompt that are still to be read."""
        self.read = False
        """Its prompt is, and its answer has begun."""
        self.said = 0
        """Tokens of its answer so far; of one that does not stream, when it was last heard of."""

    @property
    def ended(self) -> bool:
        return self.said >= self.answer

    def told(self, said: int) -> None:
        self.said = said
        self._heard(self)


class PrefixCache:
    """Blocks of prompts: those of calls that run are kept, the others until their room is needed."""

    __slots__ = ("_answers", "_idle", "_idle_tokens", "_kept", "_tokens", "kept_tokens")

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._kept: dict[int, list[int]] = {}  # size, calls
        self._idle: dict[int, int] = {}  # in the order of use
        self._idle_tokens = 0
        self.kept_tokens = 0
        """Tokens of calls that run, their answers included."""
        self._answers = 0

    def cached(self, segments: Sequence[Segment]) -> int:
        """Tokens at the beginning of the prompt that need not be read."""
        tokens = 0
        for segment, size in segments:
            if segment not in self._kept and segment not in self._idle:
                break
            tokens += size
        return tokens

    def take(self, segments: Sequence[Segment], answer: int) -> int | None:
        """Keep a prompt's blocks, and room for its answer; how much was there already. None: there is no room now."""
        kept, idle = self._kept, self._idle
        needed = answer + sum([size for segment, size in segments if segment not in kept])
        if self.kept_tokens and self.kept_tokens + needed > self._tokens:
            return None
        cached = self.cached(segments)
        for segment, size in segments:
            if segment in kept:
                kept[segment][1] += 1
            else:
                self._idle_tokens -= idle.pop(segment, 0)
                kept[segment] = [size, 1]
        self.kept_tokens += needed
        self._make_room()
        return cached

    def free(self, segments: Sequence[Segment], answer: int) -> None:
        """The call that kept them has ended: its blocks stay as long as their room is not needed."""
        kept = self._kept
        self.kept_tokens -= answer
        self._answers -= 1
        self._leave(self._answers, answer)  # it is remembered too, though nobody asks for it again
        for segment, size in reversed(segments):
            held = kept[segment]
            held[1] -= 1
            if not held[1]:
                del kept[segment]
                self.kept_tokens -= size
                self._leave(segment, size)

        self._make_room()  # after a prompt larger than the cache

    def _leave(self, segment: int, size: int) -> None:
        self._idle[segment] = size
        self._idle_tokens += size

    def _make_room(self) -> None:
        idle = self._idle
        while idle and self.kept_tokens + self._idle_tokens > self._tokens:
            self._idle_tokens -= idle.pop(next(iter(idle)))


class Engine:
    """The scheduler and the cache. `begin` and `end` are called in turn, as far apart as `begin` says."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.cache = shape, PrefixCache(shape.kv_tokens)
        self.waiting: deque[Work] = deque()
        self._reading: dict[Work, None] = {}
        self.writing: dict[Work, int] = {}
        """The calls whose answers are being written, with the number of the step before their first token."""
        self._streams: dict[Work, None] = {}
        self._ends: list[tuple[int, int, Work]] = []
        self._number = 0
        self.steps = 0
        """Steps so far."""
        self.queried = self.hit = self.written = 0
        """Prompt tokens of calls that ran, those of them that were cached, and tokens of answers."""

    @property
    def running(self) -> int:
        return len(self._reading) + len(self.writing)

    def add(self, work: Work) -> None:
        """A call has come."""
        self.waiting.append(work)

    def abort(self, work: Work) -> None:
        """Its client has left."""
        if work in self.writing or work in self._reading:
            self._finish(work)
        elif work in self.waiting:
            self.waiting.remove(work)

    def begin(self) -> float | None:
        """Make up a step; how many seconds it takes. None: there is nothing to do."""
        if not self.waiting and not self._reading and not self.writing:
            return None
        shape, writing = self.shape, len(self.writing)
        budget = left = max(1, shape.batch - writing)
        for work in self._reading:
            left -= self._chunk(work, left)
        while self.waiting and left > 0 and self.running < shape.calls and self._admit(self.waiting[0]):
            work = self.waiting.popleft()
            left -= self._chunk(work, left)
        return shape.step + (budget - left) / shape.rate + writing * shape.write

    def end(self) -> None:
        """The step is over: tell the calls that it has served."""
        self.steps += 1
        self.written += len(self.writing)
        for work in list(self._streams):
            if (begun := self.writing.get(work)) is not None and self.steps - begun < work.answer:
                work.told(self.steps - begun)
        while self._ends and self._ends[0][0] <= self.steps:
            work = heappop(self._ends)[2]
            if work in self.writing:
                self._finish(work)
                work.told(work.answer)
        for work in [work for work in self._reading if not work.left]:
            self._begin_answer(work)

    def _admit(self, work: Work) -> bool:
        cached = self.cache.take(work.segments, work.answer)
        if cached is None:
            return False
        work.cached = min(cached, work.tokens - 1)  # the last token is always read: the answer begins there
        work.left = work.tokens - work.cached
        self.queried += work.tokens
        self.hit += work.cached
        self._reading[work] = None
        return True

    def _chunk(self, work: Work, most: int) -> int:
        read = min(work.left, most)
        work.left -= read
        return read

    def _begin_answer(self, work: Work) -> None:
        del self._reading[work]
        work.read = True
        self.written += 1
        self.writing[work] = self.steps - 1
        if work.answer == 1:
            self._finish(work)
        else:
            self._number += 1  # orders answers that end in the same step
            heappush(self._ends, (self.steps - 1 + work.answer, self._number, work))
            if work.streams:
                self._streams[work] = None
        work.told(1)

    def _finish(self, work: Work) -> None:
        self.cache.free(work.segments, work.answer)
        for calls in (self._reading, self.writing, self._streams):
            calls.pop(work, None)


class TimedEngine(Engine):
    """An engine whose steps take their time on the running event loop."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._busy = self._late = 0.0
        self.stopped = False
        """As if its process were: calls come and wait, and no step is made."""

    def stop(self, stopped: bool = True) -> None:
        """Stop in the middle of a step, or go on from there."""
        if stopped is self.stopped:
            return
        self.stopped, timer = stopped, self._timer
        if stopped and timer is not None:
            timer.cancel()
        elif not stopped:
            loop = asyncio.get_running_loop()
            if timer is None:
                self._timer = loop.call_soon(self._begin, loop.time()) if self.waiting else None
            else:
                self._timer = loop.call_soon(self._end, loop.time())

    def add(self, work: Work) -> None:
        super().add(work)
        if self._timer is None and not self.stopped:  # calls that come in the same turn are in the same step
            loop = asyncio.get_running_loop()
            self._timer = loop.call_soon(self._begin, loop.time())

    def close(self) -> None:
        """Stop in the middle."""
        if self._timer is not None:
            self._timer.cancel()

    def tells(self) -> dict[str, float]:
        """What it did; `busy`: seconds that its steps should have taken, `late`: those by which they ended late."""
        return {"steps": self.steps, "queried": self.queried, "hit": self.hit, "busy": self._busy, "late": self._late}

    def _begin(self, due: float) -> None:
        loop, seconds = asyncio.get_running_loop(), self.begin()
        if seconds is None:
            self._timer = None
        else:
            self._busy += seconds
            due = max(due, loop.time() - LATE_SECONDS) + seconds
            self._timer = loop.call_at(due, self._end, due)

    def _end(self, due: float) -> None:
        self._late += asyncio.get_running_loop().time() - due
        self.end()
        self._begin(due)


def blocks(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Segments in pieces of at most a block; the ids are those of the pieces."""
    for segment, size in segments:
        for number, begin in enumerate(range(0, size, BLOCK)):
            yield segment << 16 | number, min(BLOCK, size - begin)

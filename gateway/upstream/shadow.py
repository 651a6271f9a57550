"""Shadow traffic: a share of a route's calls, asked again of a shadow target when they have ended, and compared.

Nothing here reaches the client: the shadow call begins after the answer has ended, is never tried again, its answer is
read and thrown away, and whatever goes wrong stays here. It carries the call's body, the shadow target's own credential
and, of the client's headers, those that the route's `forward_headers` names.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final

from msgspec import Struct

from backends.api import Call
from backends.api import Target as Address
from backends.capabilities import Capabilities
from backends.endpoints import COMMON
from gateway.config import Timeouts
from gateway.core.comparison import Comparison, Seen
from gateway.core.errors import ClientGone, GatewayError, Internal, UpstreamTimeout
from gateway.upstream.forwarder import Forwarder

__all__ = ["Comparison", "Mirror", "Seen", "Shadow", "chosen"]

log = logging.getLogger("trunkline.upstream")

MAX_BYTES: Final = 16 * 1024**2
"""Bodies of shadow calls under way, all routes together."""
MAX_SECONDS: Final = 600.0
"""For a whole shadow call: a stream that never ends would hold its place for ever."""


class Mirror(Struct, frozen=True):
    """A route's shadow target, and how much goes there."""

    address: Address
    capabilities: Capabilities
    timeouts: Timeouts
    share: float
    """Of the route's calls, between 0 and 1."""
    concurrency: int
    """Shadow calls at once; more are dropped."""


class Shadow:
    """Mirrors calls in tasks of its own. `mirrors`, by route, may be replaced: what is under way goes on as before."""

    def __init__(
        self,
        mirrors: Mapping[str, Mirror],
        forwarder: Forwarder,
        compared: Callable[[str, str, Comparison], None],
        dropped: Callable[[str, str], None],
        clock: Callable[[], float],
        *,
        most: int = MAX_BYTES,
    ) -> None:
        """`compared` is told each result, `dropped` each call for which there was no room, both with route and shadow
        target; `clock` is monotonic; at most `most` bytes of bodies are kept."""
        self.mirrors = mirrors
        self._forwarder, self._clock, self._most = forwarder, clock, most
        self._compared, self._dropped = compared, dropped
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Counter[str] = Counter()
        self._closed = False
        self.bytes = 0
        """Bodies kept."""

    def ended(self, call: Call, headers: Mapping[bytes, bytes], route: str, primary: Seen) -> None:
        """The call is over, as far as its client is concerned: mirror it, if it is one of those. Never raises.

        `headers` are those that it came with, names in lower case; the forwarder sends on what the table names. A call
        whose client left is not mirrored: there is no answer to compare with.
        """
        mirror = self.mirrors.get(route)
        if mirror is None or self._closed or call.endpoint not in COMMON:
            return
        if primary.status == ClientGone.status or not chosen(call.id, mirror.share):
            return
        size = len(call.body.raw)
        if self._running[route] >= mirror.concurrency or self.bytes + size > self._most:
            self._dropped(route, mirror.address.name)
            return
        self.bytes += size
        self._running[route] += 1
        task = asyncio.get_running_loop().create_task(
            self._mirror(call, headers, route, mirror, primary), name="shadow"
        )
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:  # also of a task that was cancelled before it began
            self._tasks.discard(task)
            self._running[route] -= 1
            self.bytes -= size

        task.add_done_callback(over)

    async def close(self) -> None:
        """End what is under way, and mirror no more."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _mirror(
        self, call: Call, headers: Mapping[bytes, bytes], route: str, mirror: Mirror, primary: Seen
    ) -> None:
        try:
            shadow = await self._asked(call, headers, mirror)
            self._compared(route, mirror.address.name, Comparison(primary, shadow))
        except Exception as error:  # whoever counts is not to break anything either
            log.error("call %s: its shadow was not compared: %s", call.id, type(error).__name__)

    async def _asked(self, call: Call, headers: Mapping[bytes, bytes], mirror: Mirror) -> Seen:
        """What the shadow target makes of the call."""
        began = self._clock()
        status, tokens, counted, first = 200, None, 0, None
        trace = {"x-request-id": f"{call.id}-shadow"}
        try:
            async with asyncio.timeout(MAX_SECONDS):
                answer = await self._forwarder.send(
                    call, mirror.address, mirror.capabilities, mirror.timeouts, trace, headers
                )
                try:
                    done = False
                    while not done:
                        chunk = await answer.next()
                        done = chunk.done
                        if first is None and (chunk.tokens or done):
                            first = self._clock() - began
                        counted += chunk.tokens
                        tokens = chunk.usage.completion_tokens if chunk.usage is not None else tokens
                finally:
                    answer.close()
        except GatewayError as error:
            status = error.status
        except TimeoutError:
            status = UpstreamTimeout.status
        except Exception as error:  # an adapter is anybody's code
            log.error("call %s: shadow target %s: %s", call.id, mirror.address.name, type(error).__name__)
            status = Internal.status
        return Seen(status, (counted or None) if tokens is None else tokens, first, self._clock() - began)


def chosen(call_id: str, share: float) -> bool:
    """Whether a call is one of the share: the same in every gateway, and all of a smaller share are in a larger."""
    return int.from_bytes(blake2b(call_id.encode(), digest_size=8).digest()) < share * 2**64

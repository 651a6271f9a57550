"""The fault kit's TCP link in a thread of its own, for tests that are not in its loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from gateway.faults import link as kit


class Link:
    """A proxy to a port on loopback; changes hold for old and new connections."""

    def __init__(self, target: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()
        self._link = kit.Link("127.0.0.1", target)
        self.port: int = self._run(self._link.open())

    def delay(self, seconds: float) -> None:
        """Each piece arrives this much later, in each direction; nothing is reordered, throughput stays."""
        self._link.delay = seconds

    def bandwidth(self, size: float) -> None:
        """So many bytes a second, in each direction of each connection."""
        self._link.bandwidth = size

    def cut_after(self, size: int) -> None:
        """Close every connection once so many more bytes have come through from the server."""
        self._link.cut_after = size

    def black_hole(self) -> None:
        """Take everything and pass nothing on; what was swallowed stays lost."""
        self._link.black_hole = True

    def reset(self) -> None:
        """Reset every connection that is open now; new ones work."""
        self._call(self._link.reset)

    def restore(self) -> None:
        """Back to normal. Connections that lost bytes are reset: they could never be right again."""
        self._call(self._link.restore)

    def stop(self) -> None:
        self._run(self._link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _call(self, work: Callable[[], None]) -> None:
        async def run() -> None:
            work()

        self._run(run())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


@contextmanager
def link(target: int) -> Iterator[Link]:
    """A link to this port for as long as the block lasts."""
    made = Link(target)
    try:
        yield made
    finally:
        made.stop()

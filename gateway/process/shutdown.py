"""How a worker ends: not ready at once, accepting a while longer, then only finishing, and cutting what takes too long.

`trunkline serve` starts its workers with the signals below blocked. They stay so: a thread takes them from the kernel,
as the event loop would lose what comes while the server, in its start, does not run it.

SIGTERM  end; also what the kernel sends when the main process has died
SIGUSR1  end, and accept no more calls from now on
SIGINT   kept from the worker, as a terminal sends it to every process: raised here, it stops the server's listener
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

from gateway.process.child import die_with_parent

log = logging.getLogger("trunkline.process")

LOOK_SECONDS: Final = 0.02
START_SECONDS: Final = 0.05
"""The server stops the event loop at the end of its start; when the loop has waited for so long, it runs for good."""
LINGER_SECONDS: Final = 3.0
"""After the last call its answer may still be on the way to the client; a connection open then is cut."""


class Calls(Protocol):
    """What runs in the worker."""

    @property
    def running(self) -> int:
        """Calls under way."""

    def drain(self) -> None:
        """Tell whoever asks that this worker will be gone soon."""

    def end_calls(self) -> None:
        """End every call that runs with an error. Returns before they have ended."""


class NoCalls:
    """For a server whose requests are all short."""

    running = 0

    def drain(self) -> None:
        pass

    def end_calls(self) -> None:
        pass


class Ending:
    """Begun by a signal, at most once. `close` gives back what the worker holds; it too is called at most once."""

    def __init__(self, calls: Calls, accept: float, grace: float, close: Callable[[], Awaitable[None]]) -> None:
        """New calls are accepted for `accept` seconds, those then under way may go on for `grace` more."""
        self._calls, self._accept, self._grace, self._close = calls, max(0.0, accept), max(0.0, grace), close
        self._refuse = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._started = self._closing = False

    def open(self) -> None:
        """Begin to listen to signals, if the main process has left them to us; another server has its own ways."""
        if not hasattr(signal, "SIGUSR1") or signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, []):
            return
        parent = os.getppid()
        die_with_parent()
        if os.getppid() != parent:  # it died just before it was to be told of
            self.begin(self._accept)
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), name="signals", daemon=True).start()

    def started(self) -> None:
        """The server is about to begin."""
        self._started = True

    def begin(self, accept: float) -> None:
        """End, accepting new calls for so many seconds more. Whoever asks again can only shorten that."""
        if self._task is None:
            self._calls.drain()
            self._task = asyncio.create_task(self._run(), name="ending")
        asyncio.get_running_loop().call_later(accept, self._refuse.set)

    async def close(self) -> None:
        """The server has stopped: give back what is held, once the calls whose clients have just left are unwound."""
        if not self._closing:
            self._closing = True
            await self._until(lambda: not self._calls.running, LINGER_SECONDS)
            await self._close()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            number = signal.sigwait([signal.SIGTERM, signal.SIGUSR1])
            with suppress(RuntimeError):  # the loop is closed: the worker has ended
                loop.call_soon_threadsafe(self.begin, 0.0 if number == signal.SIGUSR1 else self._accept)

    async def _run(self) -> None:
        await self._refuse.wait()
        await self._until(lambda: self._started, self._grace)
        await asyncio.sleep(START_SECONDS)
        _stop_listening()
        if not await self._until(lambda: not self._calls.running, self._grace):
            log.warning("ending %d calls that took longer than the grace of %g s", self._calls.running, self._grace)
            self._calls.end_calls()
        if not await self._until(lambda: self._closing, LINGER_SECONDS):
            # The server waits for clients that do not read, or send half a request: nothing is lost without them.
            self._closing = True
            try:
                await self._close()
            finally:
                logging.shutdown()
                os._exit(0)

    async def _until(self, reached: Callable[[], bool], seconds: float) -> bool:
        """Whether something was reached within so many seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not reached():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True


def _stop_listening() -> None:
    """Have the server close its listener and its idle connections, and stop when the others have ended.

    Granian does that on its first SIGINT; at a second one it would stand still.
    """
    os.kill(os.getpid(), signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

"""A worker: one event loop that serves one socket, until it is told to end.

SIGTERM  not ready at once, accepting for a while longer, then only finishing, and cutting what takes too long; the
         kernel sends it too when the main process has died
SIGUSR1  the same, accepting no more from now on
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from typing import Final, Protocol

import uvloop

from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.listener import Listener
from gateway.http.request import Request

log = logging.getLogger("trunkline.app")

LOOK_SECONDS: Final = 0.02
LINGER_SECONDS: Final = 3.0
"""After the last call its answer may still be on the way to the client; a connection open then is cut."""


MOST_FILES: Final = 65536
"""Room for as many clients as the listener takes, and for a connection to a target for each."""


class App(Protocol):
    """What a worker serves."""

    accept: float
    """Seconds for which it goes on to accept calls once it was told to end."""
    grace: float
    """Seconds that those under way may take then."""

    @property
    def running(self) -> int:
        """Calls under way."""

    async def open(self) -> None:
        """Get ready to serve."""

    async def close(self) -> None:
        """Give back all that is held."""

    async def serve(self, connection: Connection, request: Request, answer: Answer) -> None:
        """Answer one request."""

    def drain(self) -> None:
        """Tell whoever asks that this worker will be gone soon."""

    def end_calls(self) -> None:
        """End every call that runs with an error. Returns before they have ended."""


def run(make: Callable[[], App], bound: socket.socket, head_seconds: float) -> None:
    """Serve until told to end. `head_seconds`: in how many a request's head must arrive."""
    allow_files()
    uvloop.run(_run(make, bound, head_seconds))


def most_files() -> int:
    """How many a worker may have open here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)


def allow_files() -> None:
    """Let this process have `MOST_FILES` open, or as many as its hard limit lets it.

    The soft limit is often 1,024, for programs that use select(2); a worker is none, and its children are not started
    from here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most_files()
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(make: Callable[[], App], bound: socket.socket, head_seconds: float) -> None:
    app, refuse = make(), asyncio.Event()
    _obey(app, refuse)
    await app.open()
    try:
        listener = Listener(app.serve, head_seconds)
        await listener.open(bound)
        await refuse.wait()
        listener.refuse()
        if not await _idle(app, app.grace):
            log.warning("ending %d calls that took longer than the grace of %g s", app.running, app.grace)
            app.end_calls()
            await _idle(app, LINGER_SECONDS)
        await listener.close(LINGER_SECONDS)
        await _idle(app, LINGER_SECONDS)  # calls of clients that were cut off just now
    finally:
        await app.close()


def _obey(app: App, refuse: asyncio.Event) -> None:
    """Set handlers for the signals with which a worker is told to end, which have been blocked until now."""
    loop = asyncio.get_running_loop()

    def end(seconds: float) -> None:
        app.drain()
        loop.call_later(seconds, refuse.set)

    loop.add_signal_handler(signal.SIGTERM, end, max(0.0, app.accept))
    loop.add_signal_handler(signal.SIGUSR1, end, 0.0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])


async def _idle(app: App, seconds: float) -> bool:
    """Whether all calls have ended within so many seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while app.running:
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True

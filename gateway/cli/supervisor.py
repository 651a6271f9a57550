"""Granian as `trunkline serve` runs it: SIGHUP reloads the routing table in every worker, and restarts none of them.

By itself Granian's main process answers SIGHUP by starting all workers anew, which cuts off what is being streamed when
the time for it is over. A worker's own handler is set by the watcher of its table, once it can reload.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

BACKLOG = 4096
BACKPRESSURE = 16384
"""Connections a worker holds; Granian counts idle keep-alive ones too, so its default stops accepting early."""
HEADER_READ_MS = 10_000
ASK_SECONDS = 0.5
"""Between two requests to a worker to stop."""


class Supervisor(Server):  # type: ignore[misc,valid-type] # Granian's classes are not typed
    """Starts workers, starts them again when they die, and passes SIGHUP on to them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._begun: dict[int, Any] = {}
        """Workers by their number, from before they begin: Granian's own list has them only afterwards."""

    def signal_handler_reload(self, *_: Any) -> None:
        """What Granian sets as its main process's handler of SIGHUP."""
        for worker in list(self._begun.values()):
            with suppress(ProcessLookupError, TypeError):  # it has ended, or not begun
                os.kill(worker._id(), signal.SIGHUP)

    def _stop_workers(self) -> None:
        """Ask again and again: a worker that is only starting does not hear of it the first time."""
        stopped = threading.Event()

        def ask() -> None:
            while not stopped.wait(ASK_SECONDS):
                for worker in self.wrks:
                    with suppress(Exception):
                        worker.terminate()

        asking = threading.Thread(target=ask, name="stop workers", daemon=True)
        asking.start()
        try:
            super()._stop_workers()
        finally:
            stopped.set()
            asking.join()

    def _spawn_worker(self, *arguments: Any, **options: Any) -> Any:
        """A worker begins with SIGHUP blocked, until it has a handler: none is lost, and none ends it."""
        worker = super()._spawn_worker(*arguments, **options)
        worker.start = _undisturbed(worker.start)
        self._begun[worker.idx] = worker
        return worker


def _undisturbed(start: Callable[[], None]) -> Callable[[], None]:
    """`start` with SIGHUP blocked, here and in what it starts."""
    if not hasattr(signal, "SIGHUP"):
        return start

    def begin() -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        try:
            start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return begin


def ignore_hangup() -> None:
    """Nothing can be reloaded yet. Not SIG_IGN: child processes would inherit that."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: None)


def supervisor(app: str, host: str, port: int, workers: int, grace: float) -> Supervisor:
    """A server for the app that the factory `app` (`module:function`) makes in each worker; `grace` in seconds."""
    return Supervisor(
        app,
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        loop=Loops.uvloop if sys.platform != "win32" else Loops.asyncio,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_READ_MS),
        websockets=False,
        backlog=BACKLOG,
        backpressure=BACKPRESSURE,
        log_level=LogLevels.warning,
        respawn_failed_workers=True,
        respawn_interval=1.0,
        workers_kill_timeout=max(1, round(grace)),
    )

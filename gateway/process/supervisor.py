"""Granian as `trunkline serve` runs it: when told to end it ends in order, and SIGHUP reloads the routing table.

By itself Granian's main process closes the listener at once when it is told to end, and answers SIGHUP by starting all
workers anew, which cuts off what is being streamed when the time for it is over. A worker's own handlers are set by
the watcher of its table and by `gateway.process.shutdown`, which knows the time for each step of its end.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import Server

from gateway.process.listener import listening

log = logging.getLogger("trunkline.process")

BACKLOG = 4096
BACKPRESSURE = 16384
"""Connections a worker holds; Granian counts idle keep-alive ones too, so its default stops accepting early."""
BUFFER_BYTES = 40 * 1024
"""Of a connection, each way: a request's head, and what its client has not read of an answer."""
LAST_SECONDS = 8
"""After the grace, for a worker to end its calls and give back what it holds; it is killed if that takes longer."""
YOUNG_SECONDS = 6.0
"""A worker that dies within this time of its start may do so again at once."""
PAUSE_SECONDS = 1.0
MOST_YOUNG_DEATHS = 5
"""In a row; a worker that cannot live ends the gateway, whose own supervisor may know better."""
_TO_WORKERS = ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1")


class Supervisor(Server):  # type: ignore[misc,valid-type] # Granian's classes are not typed
    """Starts workers, starts them again when they die, and tells them to reload and to end.

    The first SIGTERM or SIGINT ends them in order; after SIGINT, which a person sends, no new calls are accepted
    meanwhile. A second signal kills them, and calls `insist`: what else takes its time is to be cut short.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.insist: Callable[[], None] = lambda: None
        self.exit_code = 0
        """128 and the signal's number once a second one came."""
        self._first = signal.SIGTERM
        self._born: dict[int, float] = {}
        self._young_deaths: Counter[int] = Counter()
        self._begun: dict[int, Any] = {}
        """Workers by their number, from before they begin: Granian's own list has them only afterwards."""

    def signal_handler_interrupt(self, number: int = signal.SIGTERM, *_: Any) -> None:
        """What Granian sets as its main process's handler of SIGTERM and SIGINT."""
        if self.interrupt_signal:
            self.exit_code = 128 + number
            self._tell(signal.SIGKILL)
            self.insist()
        else:
            self._first = signal.Signals(number)
        super().signal_handler_interrupt()

    def signal_handler_reload(self, *_: Any) -> None:
        """What Granian sets as its main process's handler of SIGHUP."""
        self._tell(signal.SIGHUP)

    def _stop_workers(self) -> None:
        """Tell them once: the signal waits for a worker that is only starting, and one that was told knows the time."""
        self._tell(signal.SIGUSR1 if self._first == signal.SIGINT else signal.SIGTERM)
        deadline = time.monotonic() + self.workers_kill_timeout
        while left := [worker for worker in self.wrks if worker.is_alive()]:
            if time.monotonic() > deadline:
                log.warning("killing %d workers that do not end", len(left))
                self._tell(signal.SIGKILL)
                deadline = float("inf")
            left[0].join(0.05)
        self.wrks.clear()

    def _tell(self, number: signal.Signals) -> None:
        for worker in list(self._begun.values()):
            with suppress(ProcessLookupError):  # it has ended just now
                if worker.is_alive():
                    worker.interrupt_by_parent |= number != signal.SIGHUP
                    os.kill(worker._id(), number)

    def _respawn_workers(self, workers: Any, *arguments: Any, **options: Any) -> None:
        """One that dies young is started again a second later: Granian would end the gateway, and all others' calls."""
        now = time.monotonic()
        for idx in workers:
            young = now - self._born.get(idx, 0.0) < YOUNG_SECONDS
            self._young_deaths[idx] = self._young_deaths[idx] + 1 if young else 0
        if any(self._young_deaths[idx] for idx in workers):
            time.sleep(PAUSE_SECONDS)
        if self.interrupt_signal:  # it came meanwhile, and Granian has already looked
            self.main_loop_interrupt.set()
            return
        super()._respawn_workers(workers, *arguments, **options)
        if all(self._young_deaths[idx] < MOST_YOUNG_DEATHS for idx in workers):
            self.respawned_wrks.clear()  # what Granian recognises a crash loop by

    def _spawn_worker(self, *arguments: Any, **options: Any) -> Any:
        """A worker begins with its signals blocked, until it has handlers: none is lost, and none ends it."""
        options["target"] = listening(options["target"])
        worker = super()._spawn_worker(*arguments, **options)
        self._born[worker.idx] = time.monotonic()
        worker.start = _undisturbed(worker.start)
        self._begun[worker.idx] = worker
        return worker


def _undisturbed(start: Callable[[], None]) -> Callable[[], None]:
    """`start` with the signals for workers blocked, here and in what it starts."""
    if not hasattr(signal, "pthread_sigmask"):
        return start
    numbers = [getattr(signal, name) for name in _TO_WORKERS]

    def begin() -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        try:
            start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return begin


def ignore_hangup() -> None:
    """Nothing can be reloaded yet. Not SIG_IGN: child processes would inherit that."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: None)


def supervisor(app: str, host: str, port: int, workers: int, patience: float, head_timeout: float = 10.0) -> Supervisor:
    """A server for the app that the factory `app` (`module:function`) makes in each worker.

    `patience` is for how many seconds a worker that was told to end may serve on, `head_timeout` in how many a
    request's head must arrive.
    """
    return Supervisor(
        app,
        factory=True,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        loop=Loops.uvloop if sys.platform != "win32" else Loops.asyncio,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=round(head_timeout * 1000), max_buffer_size=BUFFER_BYTES),
        websockets=False,
        backlog=BACKLOG,
        backpressure=BACKPRESSURE,
        log_level=LogLevels.warning,
        respawn_failed_workers=True,
        respawn_interval=1.0,
        workers_kill_timeout=round(max(0.0, patience)) + LAST_SECONDS,
    )

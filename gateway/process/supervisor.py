"""The main process of `trunkline serve`: it starts workers, starts them again when they die, and ends them in order.

SIGTERM, SIGINT  end: workers get SIGTERM; after SIGINT, which a person sends, SIGUSR1: accept no more calls meanwhile
a second one     kill the workers; the exit code is 128 and the signal's number
SIGHUP           is for the workers, which read their table again
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from gateway.process.child import FORKING, die_with_parent

log = logging.getLogger("trunkline.process")

LAST_SECONDS: Final = 8.0
"""After its patience, for a worker to end its calls and give back what it holds; it is killed if that takes longer."""
YOUNG_SECONDS: Final = 6.0
"""A worker that dies within this time of its start may do so again at once."""
PAUSE_SECONDS: Final = 1.0
MOST_YOUNG_DEATHS: Final = 5
"""In a row; a worker that cannot live ends the gateway, whose own supervisor may know better."""
LOOK_SECONDS: Final = 0.1
TO_WORKERS: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Blocked in a worker until it has handlers for them: none is lost, and none ends it while it starts."""


restarts = 0
"""In a worker: how many before it have died that served its socket."""


class Supervisor:
    """Runs `work` in a process for each socket.

    The sockets stay open here as well: whoever connects while a worker is being replaced waits for the next one.
    """

    def __init__(
        self, work: Callable[[socket.socket], None], sockets: Sequence[socket.socket], patience: float
    ) -> None:
        """`patience`: for how many seconds workers that were told to end may go on with their calls."""
        self.insist: Callable[[], None] = lambda: None
        """Called at the second signal: what else takes its time is to be cut short."""
        self._work, self._patience = work, max(0.0, patience)
        self._workers = [_Worker(bound) for bound in sockets]
        self._came: list[int] = []
        self._is_ending = False
        self._kill_at = float("inf")
        self._exit_code = 0

    def serve(self) -> int:
        """Until a signal; the exit code."""
        with self._signals() as wait:
            while self._look():
                wait()
        return self._exit_code

    def _look(self) -> bool:
        """Do what is to be done now; whether anything is left to be waited for."""
        while self._came:
            self._obey(self._came.pop(0))
        for worker in self._workers:
            if worker.has_ended() and not self._is_ending:
                worker.plan_the_next()
        if not self._is_ending:
            if any(worker.young_deaths >= MOST_YOUNG_DEATHS for worker in self._workers):
                log.error("a worker has died %d times as soon as it was started: ending", MOST_YOUNG_DEATHS)
                self._exit_code = 1
                self._end(signal.SIGTERM)
            for worker in self._workers:
                if not worker.pid and time.monotonic() >= worker.start_at and not self._is_ending:
                    self._start(worker)
        elif time.monotonic() > self._kill_at:
            log.warning("killing workers that do not end")
            self._tell(signal.SIGKILL)
        return not self._is_ending or any(worker.pid for worker in self._workers)

    def _obey(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._tell(signal.SIGHUP)
        elif self._is_ending:
            self._exit_code = 128 + number
            self._tell(signal.SIGKILL)
            self.insist()
        else:
            self._end(number)

    def _end(self, number: int) -> None:
        self._is_ending = True
        self._kill_at = time.monotonic() + self._patience + LAST_SECONDS
        for worker in self._workers:
            worker.bound.close()  # it is the workers' to say when nobody can connect any more
        self._tell(signal.SIGUSR1 if number == signal.SIGINT else signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.pid:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, number)

    def _start(self, worker: _Worker) -> None:
        parent, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, TO_WORKERS)
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            with FORKING:
                pid = os.fork()
            if not pid:
                self._be(worker, parent)
        except OSError as error:
            log.error("no worker can be started now: %s", error)
            worker.start_at = time.monotonic() + PAUSE_SECONDS
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker.pid, worker.born = pid, time.monotonic()

    def _be(self, worker: _Worker, parent: int) -> None:
        """Be the worker, in its process; does not return."""
        global restarts
        code, restarts = 1, worker.deaths
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *TO_WORKERS):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the main process hands it on
            die_with_parent()
            if os.getppid() != parent:  # it died just before it was to be told of
                os.kill(os.getpid(), signal.SIGTERM)
            for other in self._workers:
                if other is not worker:
                    other.bound.close()
            self._work(worker.bound)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @contextmanager
    def _signals(self) -> Iterator[Callable[[], None]]:
        """Signals are kept for `_look`; what is given waits for one, or a while."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(write, False)
        before: dict[int, Any] = {}
        for kept in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before[kept] = signal.signal(kept, lambda number, _: self._came.append(number))
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

        def wait() -> None:
            if select.select([read], [], [], LOOK_SECONDS if self._is_hasty() else None)[0]:
                os.read(read, 1024)

        try:
            yield wait
        finally:
            signal.set_wakeup_fd(former)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    def _is_hasty(self) -> bool:
        """Something is to be done by the clock."""
        return self._is_ending or not all(worker.pid for worker in self._workers)


class _Worker:
    """One socket, and the process that serves it at the moment."""

    def __init__(self, bound: socket.socket) -> None:
        self.bound = bound
        self.pid = 0
        """0: there is none."""
        self.born = self.start_at = 0.0
        self.deaths = self.young_deaths = 0
        self._died = self._status = 0

    def has_ended(self) -> bool:
        """Whether its process has ended since the last time this was asked."""
        if not self.pid:
            return False
        pid, self._status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return False
        self._died, self.pid = self.pid, 0
        return True

    def plan_the_next(self) -> None:
        """One that dies young is started again a second later."""
        young = time.monotonic() - self.born < YOUNG_SECONDS
        self.deaths += 1
        self.young_deaths = self.young_deaths + 1 if young else 0
        self.start_at = time.monotonic() + PAUSE_SECONDS if young else 0.0
        code = os.waitstatus_to_exitcode(self._status)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        when = f" in {PAUSE_SECONDS:.0f} s" if young else ""
        log.error("a worker %s; starting another%s (pid %d, restart %d)", how, when, self._died, self.deaths)


def ignore_hangup() -> None:
    """Nothing can be reloaded yet. Not SIG_IGN: child processes would inherit that."""
    signal.signal(signal.SIGHUP, lambda *_: None)


def leave_when_told() -> None:
    """A SIGTERM that comes before there is anything to end in order: this process undoes what it has done, and ends.

    By default it would end where it stands, and as the first process of a container not at all.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

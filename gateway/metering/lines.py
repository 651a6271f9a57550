"""Log lines written by a thread, so that a slow reader of the log never holds the event loop."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

MAX_WAITING = 20_000
FLUSH_SECONDS = 0.05


class Lines:
    """Lines to a file descriptor, a batch at a time. When the reader stalls, new lines are dropped and counted."""

    def __init__(self, descriptor: int, dropped: Callable[[int], None] = lambda _: None) -> None:
        self._descriptor, self._dropped = descriptor, dropped
        self._waiting: deque[bytes] = deque()
        self._wanted = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="log lines", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line, without its newline."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped(1)
            return
        self._waiting.append(line)
        if not self._wanted.is_set():
            self._wanted.set()

    def close(self, timeout: float = 2.0) -> None:
        """Write what is left, for at most `timeout` seconds."""
        self._closed = True
        self._wanted.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not (self._closed and not self._waiting):
            self._wanted.wait()
            self._wanted.clear()
            batch = []
            while self._waiting:
                batch.append(self._waiting.popleft())
            try:
                _write_all(self._descriptor, b"".join(line + b"\n" for line in batch))
            except OSError:  # the reader is gone, or the disk is full: calls go on
                self._dropped(len(batch))
            if not self._closed:
                threading.Event().wait(FLUSH_SECONDS)


def _write_all(descriptor: int, text: bytes) -> None:
    rest = memoryview(text)
    while rest:
        rest = rest[os.write(descriptor, rest) :]

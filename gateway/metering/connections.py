"""Connections to targets, as metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Protocol
from weakref import WeakKeyDictionary

from gateway.metering.metrics import Metrics


class Counted(Protocol):
    """What is counted of one target's connections; several may bear the name of one target, after a reload."""

    name: str
    open: int
    made: int
    reused: int
    seconds: list[float]

    @property
    def idle(self) -> Sized:
        """Those that wait for a request."""


class ConnectionMetrics:
    """Brings what is counted to metrics: now and then, for a call has no time for it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._seen: WeakKeyDictionary[Counted, tuple[int, int]] = WeakKeyDictionary()
        self._children: dict[str, _Children] = {}

    def show(self, origins: Iterable[Counted]) -> None:
        """Show how things stand with these, and nothing more of those that are no longer among them."""
        now: dict[str, tuple[int, int]] = {}
        for origin in origins:
            children = self._children.get(origin.name)
            if children is None:
                children = self._children[origin.name] = _Children(self._metrics, origin.name)
            made, reused = self._seen.get(origin, (0, 0))
            children.made.inc(origin.made - made)
            children.reused.inc(origin.reused - reused)
            self._seen[origin] = origin.made, origin.reused
            seconds, origin.seconds = origin.seconds, []
            for each in seconds:
                children.seconds.observe(each)
            opened, idle = now.get(origin.name, (0, 0))
            now[origin.name] = opened + origin.open, idle + len(origin.idle)
        for name, (opened, idle) in now.items():
            self._children[name].open.set(opened)
            self._children[name].idle.set(idle)
        for name in self._children.keys() - now.keys():
            del self._children[name]
            self._metrics.forget(self._metrics.connections_open, name)
            self._metrics.forget(self._metrics.connections_idle, name)


class _Children:
    """A target's own, looked up once."""

    def __init__(self, metrics: Metrics, target: str) -> None:
        self.open, self.idle = metrics.connections_open.labels(target), metrics.connections_idle.labels(target)
        self.made, self.reused = metrics.connections_made.labels(target), metrics.connections_reused.labels(target)
        self.seconds = metrics.connect.labels(target)

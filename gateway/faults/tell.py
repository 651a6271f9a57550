"""What an operator may tell a running link, a line at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from gateway.faults.link import Link
from gateway.faults.values import SECONDS, SIZE, Value

HELP: Final = (
    "delay S, bandwidth BYTES, cut-after BYTES, reset, reset-every S, black-hole, restore, status (0 switches off)"
)


class Unknown(ValueError):
    """A line that means nothing; says what would."""


class Teller:
    """Applies lines to a link, and keeps how often it is to be reset."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.reset_every = 0.0
        """Seconds; 0: never by itself."""
        self._changes: dict[str, tuple[Value | None, Callable[[Any], None]]] = {
            "delay": (SECONDS, lambda value: setattr(link, "delay", value)),
            "bandwidth": (SIZE, lambda value: setattr(link, "bandwidth", float(value))),
            "cut-after": (SIZE, lambda value: setattr(link, "cut_after", value or None)),
            "reset-every": (SECONDS, lambda value: setattr(self, "reset_every", value)),
            "black-hole": (None, lambda _: setattr(link, "black_hole", True)),
            "reset": (None, lambda _: link.reset()),
            "restore": (None, self._restore),
            "status": (None, lambda _: None),
        }

    def apply(self, line: str) -> str:
        """Do what a line says; returns what holds from now on. Raises `Unknown`."""
        name, _, given = line.strip().partition(" ")
        if name not in self._changes:
            raise Unknown(f"{name[:40]!r}: expected one of {HELP}")
        value, change = self._changes[name]
        try:
            change(None if value is None else value.parse(given.strip()))
        except ValueError:
            allowed = "nothing after it" if value is None else value.allowed
            raise Unknown(f"{name}: expected {allowed}") from None
        return self.status()

    def status(self) -> str:
        """What holds now, and what came through."""
        link = self._link
        spoilt = [
            f"delay {link.delay:g} s" if link.delay else "",
            f"{link.bandwidth:g} B/s" if link.bandwidth else "",
            f"cut after {max(0, link.cut_after)} B more" if link.cut_after is not None else "",
            f"reset every {self.reset_every:g} s" if self.reset_every else "",
            "black hole" if link.black_hole else "",
        ]
        shown = ", ".join(each for each in spoilt if each) or "as it should be"
        return f"{shown}; {link.connections} connections, {link.carried[0]} B to the target, {link.carried[1]} B back"

    async def reset_again_and_again(self) -> None:
        """As `reset-every` says, until cancelled."""
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await asyncio.sleep(min(0.05, self.reset_every or 0.05))
            if self.reset_every and clock() - last >= self.reset_every:
                last = clock()
                self._link.reset()

    def _restore(self, _: None) -> None:
        self.reset_every = 0.0
        self._link.restore()

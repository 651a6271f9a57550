"""Waiting for the calls on a drained target to end, with what is seen meanwhile."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import click
from rich.console import Console

from gateway.admin import targets
from gateway.admin.models import TargetShown
from gateway.admin.targets import Listed
from gateway.store import DEAD_SECONDS, Store, StoreDown

LOOK_SECONDS = 0.5
SOON_SECONDS = 2.0
"""How long it may take until every gateway goes by an order and has said so."""


async def drained(store: Store, table: Mapping[str, Listed], target: TargetShown, seconds: float) -> TargetShown:
    """Return once every gateway goes by the order to drain `target` and none has calls there.

    Raises `ValueError` after `seconds`, when the order was taken back, and when no gateway has reported the target for
    so long that those that do are dead.
    """
    name = target.name
    begun = heard = now = time.monotonic()
    with _progress() as tell:
        while now - begun <= seconds:
            try:
                shown = await targets.target(store, table, name, time.time())
                told = _left(shown)
                heard = now if shown.gateways else heard
            except StoreDown:
                told = "the store does not answer"
            if not told:
                return shown
            tell(told)
            if now - heard > DEAD_SECONDS + SOON_SECONDS:
                raise ValueError(f"target {name!r} is drained, but {told}: what runs there is not known")
            await asyncio.sleep(min(LOOK_SECONDS, seconds))
            now = time.monotonic()
    raise ValueError(f"target {name!r} is drained, but after {seconds:g} s {told}")


def _left(shown: TargetShown) -> str:
    """What is still to be waited for; raises `ValueError` for an order that is no longer to drain."""
    order = shown.order
    if order is None or order.state != "drained":
        raise ValueError(f"somebody has ordered target {shown.name!r} otherwise meanwhile")
    if not shown.gateways:
        return "no gateway reports it"
    late = sum(at.order < order.version for at in shown.gateways)
    if late:  # its report may be of before: a call may have gone there since
        return f"{late} of {len(shown.gateways)} gateway workers have not heard of it yet"
    calls = "1 call still runs" if shown.running == 1 else f"{shown.running} calls still run"
    return f"{calls} there" if shown.running else ""


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Tells how it goes: on one line of a terminal, else a line whenever it changes. Always on stderr."""
    if sys.stderr.isatty():
        with Console(stderr=True, highlight=False).status("draining") as status:
            yield status.update
        return
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            click.echo(text, err=True)
        last = text

    yield tell

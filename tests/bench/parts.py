"""What parts of the gateway cost alone: a choice of a target, a refused key, a body, an event, a reload."""

from __future__ import annotations

from collections.abc import Callable

import bodies
import choosing
import events
import garbage
import reloading
from figures import OWN, Figures
from gateways import Bed, Gateway
from processes import NotReady

RELOADS = 6


def measure(bed: Bed, gateway: Gateway, figures: Figures, rounds: int, note: Callable[[str], None]) -> None:
    """Add all of them; the gateway only lends its key. Raises `NotReady`, `OSError`."""
    alone: dict[str, Callable[[], float]] = {
        "choice_8": lambda: choosing.choice_us(8),
        "choice_256": lambda: choosing.choice_us(256),
        "garbage": garbage.cpu_us,
        "reading_500": lambda: bodies.reading_us(500),
        "reading_64k": lambda: bodies.reading_us(64 * 1024),
        "hostile_step": bodies.worst_step,
        "event": lambda: events.reading_us(continuous=False),
        "event_usage": lambda: events.reading_us(continuous=True),
    }
    for name, cost in alone.items():
        for _ in range(rounds):
            figures.add(OWN, name, cost())
        note(f"{OWN}: {name}: {figures.median(OWN, name):.1f}")
    redis_url = f"redis://127.0.0.1:{bed.redis_port}/0"
    place = reloading.Place(bed.command, bed.folder, bed.gateway_core, bed.stub_port, redis_url, gateway.secret)
    note(f"{OWN}: {RELOADS} reloads")
    try:
        reloads, outcome = place.measure(RELOADS, lambda _: None)
    except reloading.Stalled as error:
        raise NotReady(str(error)) from None
    for name, values in reloads.figures().items():
        for value in values:
            figures.add(OWN, name, value)
    if outcome.failures:
        raise NotReady(f"{outcome.failures} of {outcome.calls} calls during reloads: {outcome.first_fault}")

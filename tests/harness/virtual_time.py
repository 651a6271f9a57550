"""Time that passes only when nothing else can happen, as `trunkline simulate` has it."""

from __future__ import annotations

import asyncio

from gateway.simulate.virtual_time import VirtualLoop, run

__all__ = ["VirtualLoop", "run", "settle"]


async def settle() -> None:
    """Let everything happen that can without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)

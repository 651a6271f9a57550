"""How late the loop is, in virtual time."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Histogram

from gateway.metering.loop_lag import TICK_SECONDS, LoopLag


class Loop(asyncio.SelectorEventLoop):
    """A loop whose clock is set by hand."""

    now = 0.0

    def time(self) -> float:
        return self.now


def test_what_keeps_the_loop_is_observed() -> None:
    loop, registry = Loop(), CollectorRegistry()
    lag = LoopLag(Histogram("lag", "text", registry=registry, buckets=(0.05, 1.0)))

    async def busy() -> None:
        lag.open()
        for late in (0.0, 0.5, 0.0):
            loop.now += TICK_SECONDS + late
            for _ in range(3):
                await asyncio.sleep(0)
        lag.close()

    loop.run_until_complete(busy())
    loop.close()
    assert registry.get_sample_value("lag_count") == 3
    assert registry.get_sample_value("lag_bucket", {"le": "0.05"}) == 2
    assert round(registry.get_sample_value("lag_sum") or 0, 6) == 0.5

"""Engines in one process: `hosts.py NUMBER` prints their ports in a line and serves until its input ends."""

from __future__ import annotations

import asyncio
import gc
import sys

import uvloop

from gateway.faults.backend import FakeBackend
from gateway.faults.engine import Shape
from gateway.faults.openai import Served
from gateway.faults.orders import Orders


async def host(number: int) -> None:
    fakes = [FakeBackend("vllm", Served(), Orders(), engine=Shape()) for _ in range(number)]
    print(*[await fake.open() for fake in fakes], flush=True)
    gc.freeze()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for fake in fakes:
        await fake.close()


if __name__ == "__main__":
    uvloop.run(host(int(sys.argv[1])))

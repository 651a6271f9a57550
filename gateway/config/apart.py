"""Reads a routing table in a child process, for a gateway that must not stop meanwhile.

A table of a thousand routes takes most of a second of pure Python. A thread would share that second with the event loop
in turns of 5 ms and more, which every call would feel; of a child process the event loop feels a few steps of a
millisecond.
"""

from __future__ import annotations

import asyncio
import io
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gateway.config.reader import Reading
from gateway.config.table import RouteSpec

CHILD_SECONDS = 60.0
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from gateway.config.reader import main; main()"


class Unread(Exception):
    """The child process did not do its work; the message says what is known."""


async def read_apart(path: Path, environment: Mapping[str, str] | None = None) -> Reading:
    """Read and check the table in a child process. Raises `Unread` if that fails."""
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _CHILD, *sys.path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise Unread(f"no process can be started: {error}") from None
    try:
        async with asyncio.timeout(CHILD_SECONDS):
            said, _ = await child.communicate(pickle.dumps((path, environment and dict(environment))))
    except TimeoutError:
        raise Unread(f"it took longer than {CHILD_SECONDS:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise Unread(f"the process that reads it ended with code {child.returncode}")
    return await _unpacked(said)


async def _unpacked(said: bytes) -> Reading:
    source = io.BytesIO(said)
    reading: Reading = pickle.load(source)  # noqa: S301 - from our child
    routes: dict[str, RouteSpec] = {}
    while frame := pickle.load(source):  # noqa: S301
        routes.update(frame)
        await asyncio.sleep(0)  # calls go on between frames
    if reading.table is None:
        return reading
    return msgspec.structs.replace(reading, table=msgspec.structs.replace(reading.table, routes=routes))

"""Resetting connections that the server holds: ASGI has no word for it, and what lies unread must not stay for ever."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from contextlib import suppress
from typing import Any, Final, NamedTuple

DESCRIPTORS: Final = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
SECONDS_BETWEEN: Final = 1.0
"""Looking through ten thousand descriptors takes a twentieth of a second: many connections are reset in one go."""
_AT_ONCE = struct.pack("ii", 1, 0)


class Ends(NamedTuple):
    """What tells a connection from all others of this process."""

    host: str
    """The client's."""
    port: int
    """The client's."""
    ours: int
    """Our port."""


def ends_of(scope: Any) -> Ends | None:
    """The ends of the connection that an ASGI request came on; None behind a Unix socket."""
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or not client[1] or not server[1]:
        return None
    return Ends(_plain(client[0]), int(client[1]), int(server[1]))


_waiting: set[Ends] = set()


def reset_soon(ends: Ends) -> None:
    """Reset this connection within a second, beside the event loop."""
    if not _waiting:
        asyncio.get_running_loop().call_later(SECONDS_BETWEEN, _reset_waiting)
    _waiting.add(ends)


def reset(wanted: set[Ends]) -> int:
    """Reset those connections of this process, and drop what is still to be sent on them; how many there were."""
    found = 0
    for name in os.listdir(DESCRIPTORS):
        with suppress(OSError, ValueError):
            descriptor = int(name)
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            # A copy cannot become another connection while we look at it.
            with _copy(descriptor) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                peer = one.getpeername()
                if Ends(_plain(peer[0]), peer[1], one.getsockname()[1]) in wanted:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                    one.shutdown(socket.SHUT_RD)  # the server takes this for the end, and closes; a FIN would look well
                    found += 1
    return found


def _copy(descriptor: int) -> socket.socket:
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:  # it has become something else
        os.close(copy)
        raise


def _reset_waiting() -> None:
    wanted = set(_waiting)
    _waiting.clear()
    asyncio.get_running_loop().run_in_executor(None, reset, wanted)


def _plain(host: str) -> str:
    return host.removeprefix("::ffff:")

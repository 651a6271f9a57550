"""The sockets that workers listen on, bound before they are started: a port that is taken is found out at once."""

from __future__ import annotations

import errno
import socket
from typing import Final

BACKLOG: Final = 4096
"""Connections that wait to be accepted."""
UNSENT_BYTES: Final = 32 * 1024
"""Of an answer in the kernel, beyond what is on its way: a client that does not read is felt before it is megabytes."""
UNREAD_SECONDS: Final = 90.0
"""A connection ends whose client takes nothing for so long, or does not acknowledge what it was sent: also when the
call is over, and no timer of ours runs any more."""
_REASONS: Final = {
    errno.EADDRINUSE: "the port is taken; stop what listens there, or choose another with --port",
    errno.EACCES: "this user may not listen there; ports below 1024 need a privilege",
    errno.EADDRNOTAVAIL: "this machine does not have the address; 0.0.0.0 means all that it has",
}


class CannotListen(Exception):
    """The message names the address and why."""


def bind(host: str, port: int, number: int) -> list[socket.socket]:
    """So many sockets on one address, among which the kernel shares out connections. Raises `CannotListen`."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise CannotListen(f"cannot listen on {where}: there is no host of that name ({error})") from None
    bound: list[socket.socket] = []
    try:
        if number > 1:  # sockets that share a port would also share it with another gateway's
            with socket.socket(family, kind, protocol) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(address)
        for _ in range(number):
            one = socket.socket(family, kind, protocol)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number > 1:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            _tune(one)
            one.bind(address)
            one.listen(BACKLOG)
            one.setblocking(False)
    except OSError as error:
        for one in bound:
            one.close()
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise CannotListen(f"cannot listen on {where}: {reason}") from None
    return bound


def _tune(bound: socket.socket) -> None:
    """Set what the system has of our options; accepted connections inherit them."""
    for name, value in {"TCP_NOTSENT_LOWAT": UNSENT_BYTES, "TCP_USER_TIMEOUT": int(UNREAD_SECONDS * 1000)}.items():
        if (option := getattr(socket, name, None)) is not None:
            bound.setsockopt(socket.IPPROTO_TCP, option, value)

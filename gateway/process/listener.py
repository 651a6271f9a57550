"""The socket that a worker listens on: what is set on it holds for every connection that is accepted from it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final

UNSENT_BYTES: Final = 32 * 1024
"""Of an answer in the kernel, beyond what is on its way: a client that does not read is felt before it is megabytes."""
UNREAD_SECONDS: Final = 90.0
"""A connection ends whose client takes nothing for so long, or does not acknowledge what it was sent: also when the
call is over, and no timer of ours runs any more."""


def listening(target: Callable[..., Any]) -> Callable[..., Any]:
    """`target`, the main function of a Granian worker, listening on a socket on which our options are set."""
    return partial(_listen, target)


def _listen(target: Callable[..., Any], worker: int, name: Any, loader: Any, sockets: Any, *rest: Any) -> Any:
    (spec, holder), shared = sockets
    if holder is None:  # each worker has a socket of its own, bound to the same port
        holder = spec.build()
    with socket.socket(fileno=os.dup(holder.get_fd())) as bound:
        tune(bound)
    return target(worker, name, loader, ((None, holder), shared), *rest)


def tune(bound: socket.socket) -> None:
    """Set what the system has of our options; accepted connections inherit them."""
    options = {"TCP_NOTSENT_LOWAT": UNSENT_BYTES, "TCP_USER_TIMEOUT": int(UNREAD_SECONDS * 1000)}
    if bound.family in (socket.AF_INET, socket.AF_INET6):
        for name, value in options.items():
            if (option := getattr(socket, name, None)) is not None:
                bound.setsockopt(socket.IPPROTO_TCP, option, value)

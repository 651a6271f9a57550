"""Runs `trunkline` without paying for its imports, which take most of a start: forks of a process that has made them.

A fork is a process like the command's own: its arguments, environment, folder, output and signals are the same, and so
is its end. Only other people's packages are imported beforehand. The gateway's modules, and prometheus_client, which
looks at the environment when it is imported, are imported in each fork, as where an operator starts one.

What differs: forks of one server hash strings alike, so what two gateways agree on by accident is for the tests to show
that start them as operators do (`GatewayProcess` itself, and all commands that tests run by themselves).
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

FRESH: Final = ("gateway", "backends", "prometheus_client")
"""Packages that every fork imports anew."""
ROOM: Final = 8192
"""Bytes for the arguments of a fork, which take the place of those of the server."""


class Forked:
    """A fork, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def end(self, status: int) -> None:
        """It has ended so."""
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; raises `subprocess.TimeoutExpired`."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("trunkline", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The end that asks for forks. The server itself ends with this process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", __file__, str(theirs.fileno()), " " * ROOM]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._forks: dict[int, Forked] = {}
        self._newest: Forked | None = None
        self._told = threading.Condition()
        self._asking = threading.Lock()
        self.pid = self._server.pid
        threading.Thread(target=self._listen, name="fork server", daemon=True).start()

    def start(self, command: Sequence[str], out: Path, err: Path, environment: Mapping[str, str]) -> Forked:
        """Run this command, which is `trunkline` and its arguments; its output goes to these files."""
        order = {
            "command": list(command),
            "out": str(out),
            "err": str(err),
            "env": dict(environment),
            "cwd": os.getcwd(),
        }
        with self._asking, self._told:
            self._socket.sendall(json.dumps(order).encode() + b"\n")
            if not self._told.wait_for(lambda: self._newest, 120):
                raise RuntimeError("the fork server does not answer")
            made, self._newest = self._newest, None
            assert made is not None
            return made

    def _listen(self) -> None:
        with self._socket.makefile() as lines:
            for line in lines:
                pid, status = json.loads(line)
                with self._told:
                    if status is None:
                        self._forks[pid] = self._newest = Forked(pid)
                        self._told.notify()
                    else:
                        self._forks.pop(pid).end(status)


@cache
def fork_server() -> ForkServer:
    """The one of this process."""
    return ForkServer()


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each order that comes; tell the process id, and later how it ended. Gives a fork its order; None when
    nobody asks any more."""
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    asked = b""
    while True:
        for key, _ in selector.select():
            if key.fileobj is not control:
                selector.unregister(key.fileobj)
                os.close(key.fd)
                _tell(control, key.data, os.waitpid(key.data, 0)[1])
                continue
            data = control.recv(1 << 20)
            if not data:
                return None
            *orders, asked = (asked + data).split(b"\n")
            for order in map(json.loads, orders):
                if not (pid := os.fork()):
                    for other in list(selector.get_map().values()):
                        os.close(other.fd)
                    selector.close()
                    control.detach()
                    return dict(order)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                _tell(control, pid, None)


def _tell(control: socket.socket, pid: int, status: int | None) -> None:
    control.sendall(json.dumps([pid, status]).encode() + b"\n")


def become(order: dict[str, Any]) -> None:
    """Make this process what the order wants."""
    for path, descriptor in ((order["out"], 1), (order["err"], 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    command: list[str] = order["command"]
    _show("\0".join(command).encode() + b"\0")
    sys.argv = command[command.index("gateway") :]


def _show(arguments: bytes) -> None:
    """Have this process listed with these arguments."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    assert len(arguments) <= end - start, "there is no room for these arguments"
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, arguments, len(arguments))


def run() -> None:
    """Be `trunkline`; does not return. All is done that an interpreter does at its end, but that it frees its memory
    piece by piece, which would copy what it shares with the server first."""
    code: object = 1
    try:
        from gateway.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined] # waits for threads
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def preload() -> None:
    """Import what gateways import, without what each is to import for itself."""
    from litestar import Litestar

    import gateway.app
    import gateway.cli.serve  # noqa: F401

    Litestar(logging_config=None)  # imports what it finds installed
    for name in list(sys.modules):
        if name.partition(".")[0] in FRESH:
            del sys.modules[name]
    assert threading.active_count() == 1, "a fork would lack the others"
    assert not logging.root.handlers, "a fork would not set up its own"
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    preload()
    if given := serve(socket.socket(fileno=int(sys.argv[1]))):
        become(given)
        run()

"""A master, a replica and three sentinels, all real: kill the master, and the replica becomes one within seconds."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import redis as redis_py
from harness.redis_server import RedisServer, free_port, redis_binary, wait_listening

MASTER = "trunkline"
SENTINELS, QUORUM = 3, 2
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""Replication starts when asked for, not five seconds later for others to join in."""
CONFIGURATION = """port {port}
bind 127.0.0.1
dir {folder}
sentinel monitor {master} 127.0.0.1 {watched} {quorum}
sentinel down-after-milliseconds {master} 500
sentinel failover-timeout {master} 3000
sentinel parallel-syncs {master} 1
"""


class Guarded:
    """The set; `url` is what a gateway is given."""

    def __init__(self, master: RedisServer, replica: RedisServer, sentinels: list[int]) -> None:
        self.servers = [master, replica]
        self.sentinels = sentinels
        hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels)
        self.url = f"redis+sentinel://{hosts}/{MASTER}/0"

    @property
    def master(self) -> RedisServer:
        """Whom most sentinels take for the master."""
        named = [_master_port(port) for port in self.sentinels]
        port = max(named, key=named.count)
        return next(server for server in self.servers if server.port == port)

    def step_down(self) -> None:
        """Have the sentinels make the replica the master, though nothing is wrong with the present one."""
        with redis_py.Redis(port=self.sentinels[0], decode_responses=True, socket_timeout=5) as client:
            client.execute_command("SENTINEL", "FAILOVER", MASTER)

    def fail_over(self, how: Callable[[RedisServer], None], seconds: float = 20) -> float:
        """Do this to the master and wait for another one; how many seconds that took."""
        began, old = time.monotonic(), self.master
        how(old)

        def changed() -> bool:
            master = self.master
            return master is not old and master.ask("ROLE")[0] == "master"

        until(changed, "another master", seconds)
        return time.monotonic() - began


def until(look: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Wait until this is so; a server that cannot be asked yet counts as no."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(redis_py.RedisError, OSError):
            if look():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


def _master_port(sentinel: int) -> int:
    with redis_py.Redis(port=sentinel, decode_responses=True, socket_timeout=2) as client:
        return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)[1])


def _is_ready(sentinel: int) -> bool:
    """It knows the replica and the other sentinels: from here on a failover can be agreed on."""
    with redis_py.Redis(port=sentinel, decode_responses=True, socket_timeout=2, protocol=2) as client:
        told = client.execute_command("SENTINEL", "MASTER", MASTER)
        known = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
        return int(known["num-slaves"]) == 1 and int(known["num-other-sentinels"]) == SENTINELS - 1


def _sentinel(folder: Path, watched: int, binary: str) -> tuple[int, subprocess.Popen[bytes]]:
    port = free_port()
    folder.mkdir()
    file = folder / "sentinel.conf"
    file.write_text(CONFIGURATION.format(port=port, folder=folder, master=MASTER, watched=watched, quorum=QUORUM))
    process = subprocess.Popen([binary, str(file), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_listening(process, port)
    return port, process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@contextmanager
def redis_sentinel(*, binary: str | None = None) -> Iterator[Guarded]:
    """A set of one's own, ready to fail over, for as long as the block lasts."""
    program = binary or redis_binary()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        master = RedisServer(str(folder), binary=program, options=AT_ONCE)
        stack.callback(master.stop)
        follows = ("--replicaof", "127.0.0.1", str(master.port))
        replica = RedisServer(str(folder), binary=program, options=(*AT_ONCE, *follows))
        stack.callback(replica.stop)
        until(lambda: replica.ask("ROLE")[3] == "connected", "the replica follows")
        ports = []
        for number in range(SENTINELS):
            port, process = _sentinel(folder / f"sentinel-{number}", master.port, program)
            stack.callback(_end, process)
            ports.append(port)
        until(lambda: all(_is_ready(port) for port in ports), "the sentinels know each other", 30)
        yield Guarded(master, replica, ports)

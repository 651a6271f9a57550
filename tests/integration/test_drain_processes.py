"""What becomes of a gateway's processes: a worker or the main one dies, a signal comes twice, a target is launched."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import DONE, Gate, Upstream, event, stream, usage_event
from integration.client import Wire, ask, chat, eventually, get, request, wire
from integration.test_drain import SLOWLY, refused, serving, terminate, workers

SERVER = """
import http.server, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[2])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write((folder / "first").read_bytes())
        while not (folder / "go").exists():
            time.sleep(0.01)
        self.wfile.write((folder / "rest").read_bytes())
        (folder / "done").touch()

def leave(*_):
    (folder / ("left" if (folder / "done").exists() else "cut")).touch()
    if not (folder / "stubborn").exists():
        raise SystemExit

signal.signal(signal.SIGTERM, leave)
http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def launching(folder: Path) -> str:
    """A table with a target that the gateway starts, whose answer goes on once the file "go" is there."""
    (folder / "first").write_bytes(event("Hi"))
    (folder / "rest").write_bytes(event(finish="stop") + usage_event() + DONE)
    target = {
        "name": "child",
        "backend": "openai",
        "launch": {"argv": [sys.executable, "-c", SERVER, "{port}", str(folder)]},
    }
    return json.dumps({"routes": {"m": {"targets": [target]}}})


def ends_whole(connection: Wire) -> bool:
    """Whether the stream comes to its end before the connection does."""
    try:
        connection.read_until(b"[DONE]")
    except (AssertionError, ConnectionResetError):
        return False
    return True


def listens(worker: psutil.Process) -> bool | None:
    return any(connection.status == "LISTEN" for connection in worker.net_connections()) or None


def is_up(gateway: GatewayProcess) -> bool | None:
    return get(gateway, "/ready").json()["targets"]["child"] == "up" or None


def test_a_launched_target_is_stopped_after_its_calls(tmp_path: Path) -> None:
    with gateway_process(launching(tmp_path)) as gateway:
        key = gateway.issue().secret
        eventually(lambda: is_up(gateway), "the target runs")
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            terminate(gateway)
            eventually(lambda: refused(gateway), "connections are refused")
            (tmp_path / "go").touch()
            connection.read_until(b"[DONE]")
        assert gateway.process.wait(40) == 0
        assert (tmp_path / "left").exists() and not (tmp_path / "cut").exists()


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    with gateway_process(launching(tmp_path), env=SLOWLY, admin=True) as gateway:
        key = gateway.issue().secret
        eventually(lambda: is_up(gateway), "the target runs")
        family = psutil.Process(gateway.process.pid).children(recursive=True)
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            terminate(gateway)
            eventually(lambda: get(gateway, "/ready").status == 503 or None, "it is not ready")
            began = time.monotonic()
            terminate(gateway)
            assert gateway.process.wait(40) == 128 + signal.SIGTERM
            assert time.monotonic() - began < 9  # the target would take 10 s, the grace is 30 s
            connection.all_that_comes(5)
            assert b"[DONE]" not in connection.seen
        assert len(family) >= 4
        assert psutil.wait_procs(family, 30)[1] == []


def test_a_killed_worker_is_replaced_and_the_other_one_not_disturbed(upstream: Upstream, redis: RedisServer) -> None:
    with serving(upstream, {}, redis_url=redis.url, workers=2) as (gateway, target, key), ExitStack() as stack:
        target.script = stream(event("Hi"), gate := Gate(), event(finish="stop"), usage_event(), DONE)
        before = workers(gateway)
        # One is enough for the gateway to be ready.
        eventually(lambda: all(map(listens, before)) or None, "both listen")
        streams = [stack.enter_context(wire(gateway, request(chat("m", stream=True), key))) for _ in range(12)]
        for each in streams:
            each.read_until(b"Hi")
        before[0].kill()
        eventually(lambda: len([w for w in workers(gateway) if w not in before]) == 1 or None, "another worker")
        gate.open()
        assert 0 < sum(map(ends_whole, streams)) < len(streams)
        target.script = None
        new = next(worker for worker in workers(gateway) if worker not in before)
        eventually(lambda: listens(new), "it listens")
        assert [ask(gateway, chat("m"), key).status for _ in range(20)] == [200] * 20
        terminate(gateway)
        assert gateway.process.wait(40) == 0


def test_workers_do_not_outlive_the_main_process(upstream: Upstream) -> None:
    """They would share the port with the next gateway. What they serve may finish."""
    with serving(upstream, {}) as (gateway, target, key):
        target.script = stream(event("Hi"), gate := Gate(), event(finish="stop"), usage_event(), DONE)
        orphans = workers(gateway)
        assert orphans
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            gateway.process.kill()
            gateway.process.wait(40)
            eventually(lambda: refused(gateway), "connections are refused")
            gate.open()
            connection.read_until(b"[DONE]")
        assert psutil.wait_procs(orphans, 30)[1] == []


def test_a_signal_during_the_start_is_not_lost(upstream: Upstream, tmp_path: Path) -> None:
    targets = [{"name": "drain", "backend": "openai", "url": upstream.target("drain").url}]
    table = json.dumps({"routes": {"m": {"targets": targets}}})
    gateway = GatewayProcess(table, tmp_path, redis_url=None, workers=1, env={})
    try:
        eventually(lambda: workers(gateway) or None, "a worker has begun")
        terminate(gateway)
        assert gateway.process.wait(40) == 0
        assert "Traceback" not in gateway.stderr()
    finally:
        gateway.process.kill()
        gateway.process.wait()


def test_the_admin_listener_serves_until_the_calls_have_ended(upstream: Upstream) -> None:
    with serving(upstream, {}, admin=True) as (gateway, target, key):
        target.script = stream(event("Hi"), gate := Gate(), event(finish="stop"), usage_event(), DONE)
        admin = [p for p in psutil.Process(gateway.process.pid).children(recursive=True) if "admin" in p.cmdline()]
        assert len(admin) == 2
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            terminate(gateway)
            eventually(lambda: refused(gateway), "connections are refused")
            Wire(gateway.admin_port).leave()
            gate.open()
            connection.read_until(b"[DONE]")
        assert gateway.process.wait(40) == 0
        assert not any(process.is_running() for process in admin)
        assert "killing" not in gateway.stderr()

"""Attackers against one gateway: their calls end in 4xx or nothing, and others hardly notice."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from faults.crowd import allow_files, closed_within, joined, newcomers, p99, resident
from faults.report import Report
from harness.gateway_process import TRUNKLINE, GatewayProcess, gateway_process
from harness.upstream import Target, Upstream, answer, whole
from integration.client import CHAT, Reply, Wire, ask, chat, eventually, request, samples, total
from integration.smuggling import CASES, KEY, TRAP, Fate
from integration.test_bad_bodies import BAD

ATTACKERS = 1_000
MIB = 1024**2


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    allow_files(8_000)
    routes = {
        name: {"targets": [{"name": f"hostile-{name}", "backend": "openai", "url": upstream.target(f"h-{name}").url}]}
        for name in ("solo", "trap", "good")
    }
    with gateway_process(json.dumps({"routes": routes})) as started:
        newcomers(started.port, 200)
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


@pytest.fixture
def solo(upstream: Upstream) -> Target:
    for name in ("h-trap", "h-good", "h-solo"):
        found = upstream.target(name)
        found.restore()
    return found


@contextmanager
def watched(gateway: GatewayProcess) -> Iterator[tuple[list[float], list[int]]]:
    """Times of other clients and the serving process's memory, as they are while the block runs."""
    times, sizes, over = list[float](), [resident(gateway)], threading.Event()

    def watch() -> None:
        while True:
            times.extend(newcomers(gateway.port, 1))
            sizes.append(resident(gateway))
            if over.wait(0.01):
                return

    with ThreadPoolExecutor(1) as watcher:
        watching = watcher.submit(watch)
        try:
            yield times, sizes
        finally:
            over.set()
            watching.result(120)


def test_slow_heads_and_bodies_are_dropped(gateway: GatewayProcess, key: str, solo: Target, report: Report) -> None:
    half_head = request(chat("solo"), key)[:60]
    half_body = request(chat("solo"), key)[:-20]
    for what, said, seconds in (("heads", half_head, 10), ("bodies", half_body, 10)):
        with watched(gateway) as (times, _), joined(gateway.port, ATTACKERS, said) as attackers:
            dropped = closed_within(attackers, 120)
        assert len(dropped) == ATTACKERS
        assert solo.calls == []
        report.fault(
            25,
            what,
            ATTACKERS,
            f"dropped after {seconds} s",
            f"{len(dropped):,} dropped",
            f"all within {max(dropped):.1f} s, others' p99 {p99(times):.1f} ms",
        )
    assert ask(gateway, chat("good"), key).status == 200


def announced(gateway: GatewayProcess, key: str) -> Reply:
    with talking(gateway) as connection:
        connection.send(request(b"{", key, length=100 * MIB))
        return connection.answer()


def chunked(gateway: GatewayProcess, key: str) -> Reply:
    start = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    with talking(gateway) as connection:
        connection.send(start.encode())
        piece = b"%x\r\n%b\r\n" % (MIB, b" " * MIB)
        sender = threading.Thread(target=lambda: [connection.send_all_that_is_taken(piece) for _ in range(100)])
        sender.start()
        try:
            return connection.answer()
        finally:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            sender.join(120)


def lying(gateway: GatewayProcess, key: str) -> Reply:
    """Small by its head, 100 MiB behind it."""
    with talking(gateway) as connection:
        connection.send(request(b"{}", key))
        sender = threading.Thread(target=connection.send_all_that_is_taken, args=(b"x" * 100 * MIB,))
        sender.start()
        try:
            return connection.answer()
        finally:
            with suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
            sender.join(120)


@contextmanager
def talking(gateway: GatewayProcess) -> Iterator[Wire]:
    opened = Wire(gateway.port)
    try:
        yield opened
    finally:
        opened.leave()


@pytest.mark.parametrize(("way", "status"), [(announced, 413), (chunked, 413), (lying, 400)])
def test_bodies_of_100_MB_are_refused_before_they_are_in_memory(
    gateway: GatewayProcess,
    key: str,
    solo: Target,
    report: Report,
    way: Callable[[GatewayProcess, str], Reply],
    status: int,
) -> None:
    before, took = resident(gateway), []
    with watched(gateway) as (times, sizes):
        for _ in range(5):
            began = time.monotonic()
            assert way(gateway, key).status == status
            took.append(time.monotonic() - began)
    assert solo.calls == []
    grown = (max(sizes) - before) / MIB
    assert grown < 64  # 20 MiB are let in, and joined
    report.fault(
        26,
        way.__name__,
        5,
        f"{status} before it is read whole",
        f"{status}",
        f"{max(took) * 1000:.0f} ms, RSS +{max(0, grown):.1f} MiB, others' p99 {p99(times):.1f} ms",
    )


HOSTILE_JSON = {
    "a huge integer": b'{"model":"solo","messages":[],"n":' + b"9" * 1_000_000 + b"}",
    "a huge exponent": b'{"model":"solo","messages":[],"n":1e' + b"9" * 100_000 + b"}",
    "a million brackets in a text": b'{"model":"solo","messages":"' + b"[" * 1_000_000 + b'"}',
    "a million escapes": b'{"model":"' + b"\\u0061" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize(
    ("fault", "detail", "names"),
    [
        (27, "depth, keys, numbers, duplicates, NaN", [n for n in BAD if "UTF" not in n and "surrogate" not in n]),
        (28, "and lone surrogates, NUL", [n for n in BAD if "UTF" in n or "surrogate" in n or "NUL" in n]),
    ],
)
def test_hostile_bodies_are_a_400_and_stall_nobody(
    gateway: GatewayProcess, key: str, solo: Target, report: Report, fault: int, detail: str, names: list[str]
) -> None:
    bodies = [BAD[name][0] for name in names] + (list(HOSTILE_JSON.values()) if fault == 27 else [])
    solo.script = whole(answer())
    statuses, slowest = Counter[int](), 0.0
    with watched(gateway) as (times, _):
        for body in bodies * 3:
            began = time.monotonic()
            statuses[ask(gateway, body, key).status] += 1
            slowest = max(slowest, time.monotonic() - began)
    served = statuses.pop(200, 0)  # a huge number is the target's matter
    assert set(statuses) <= {400, 413}, statuses
    assert served <= 6
    assert "Traceback" not in gateway.stderr()
    report.fault(
        fault,
        detail,
        3 * len(bodies),
        "4xx, no 5xx, no crash",
        f"{dict(statuses)}, 5xx 0",
        f"slowest {slowest * 1000:.0f} ms, others' longest wait {max(times) * 1000:.0f} ms",
    )


def test_no_header_is_injected(gateway: GatewayProcess, key: str, solo: Target, report: Report) -> None:
    line = "a\r\nx-injected: 1"
    bodies = [
        chat("solo" + line),
        chat("solo", user=line, metadata={line: line}),
        chat("solo", stream=True, tools=[{"type": line}]),
    ]
    statuses = Counter(ask(gateway, body, key).status for body in bodies)
    raws = [
        request(chat("solo"), key, more=b"x-a: " + b"a" * 64 * 1024 + b"\r\n"),
        request(chat("solo"), key, more=b"".join(b"x-%d: 1\r\n" % number for number in range(1000))),
        request(chat("solo"), key + "\r\nx-injected: 1"),
        request(chat("solo"), key, more=b"traceparent: a\tx-injected: 1\r\ntracestate: \xff\xfe\r\n"),
        request(chat("solo"), key, more=b"x-a: b\rx-injected: 1\r\n"),
        request(chat("solo"), key, more=b"x-a: b\x00x-injected: 1\r\n"),
    ]
    for raw in raws:
        with talking(gateway) as connection:
            connection.send_all_that_is_taken(raw)
            reply = connection.answer()
            assert reply.header("x-injected") is None
            statuses[reply.status] += 1
    assert all(status == 200 or 400 <= status < 500 for status in statuses)
    injected = [call for call in solo.calls if "injected" in repr(call.headers)]
    assert injected == []
    report.fault(29, "", len(bodies) + len(raws), "0 injected, no 5xx", "0 injected", f"{dict(statuses)}")


def test_the_smuggling_corpus_in_every_order(
    gateway: GatewayProcess, key: str, solo: Target, upstream: Upstream, report: Report
) -> None:
    """Many at once, and each also in pieces: how the bytes arrive must not change how they are read."""
    trap = upstream.target("h-trap")

    def deliver(turn: int) -> int:
        case, size = CASES[turn % len(CASES)], (0, 7, 1)[turn // len(CASES)]
        raw = (case.raw if case.fate is Fate.TAKEN else case.raw + TRAP).replace(KEY, key.encode())
        if len(raw) > 20_000:
            size = 0
        with talking(gateway) as connection:
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # each piece a packet
            for at in range(0, len(raw), size or len(raw)):
                connection.send_all_that_is_taken(raw[at : at + (size or len(raw))])
            if case.fate is Fate.TAKEN:
                return connection.answer().status
            seen = connection.all_that_comes(60)
            return int(seen[9:12] or 0)

    with ThreadPoolExecutor(8) as attackers:
        statuses = Counter(attackers.map(deliver, range(3 * len(CASES))))
    wanted = 3 * sum(case.fate is not Fate.REFUSED for case in CASES)
    assert trap.calls == []
    assert len(solo.calls) == wanted
    assert statuses[200] == wanted
    assert all(status in (0, 200) or 400 <= status < 500 for status in statuses), statuses
    report.fault(30, "corpus, whole and in pieces", 3 * len(CASES), "0 desyncs", "0", f"{dict(statuses)}")


def test_no_address_off_the_table_is_called(
    gateway: GatewayProcess, key: str, solo: Target, upstream: Upstream, report: Report
) -> None:
    trap = Upstream("127.31.31.31")  # on 127.0.0.1 somebody may still look for a server whose port it has got
    try:
        there = f"{trap.host}:{trap.port}"
        body = chat("solo", image_url=f"http://{there}/", base_url=f"http://{there}/v1")
        raw = json.dumps(body).encode()
        tries = 0
        for status in (300, 301, 302, 303, 307, 308):
            for streamed in (False, True):
                solo.script = whole({}, status, location=f"http://{there}/x")
                reply = ask(gateway, {**body, "stream": streamed}, key)
                assert (reply.status, reply.header("location")) == (502, None)
                solo.script, tries = None, tries + 1
        for line, host in (
            (f"POST http://{there}{CHAT} HTTP/1.1", there),
            (f"POST {CHAT} HTTP/1.1", there),
            (f"POST //{there}{CHAT} HTTP/1.1", there),
            (f"POST {CHAT}@{there} HTTP/1.1", f"x@{there}"),
        ):
            rest = f"host: {host}\r\nx-forwarded-host: {there}\r\nauthorization: Bearer {key}\r\n"
            with talking(gateway) as connection:
                connection.send(f"{line}\r\n{rest}content-length: {len(raw)}\r\n\r\n".encode() + raw)
                assert connection.answer().status < 500
            tries += 1
        assert trap.accepted == 0
    finally:
        trap.stop()
    report.fault(31, "redirects, hosts, absolute form", tries, "0 connections elsewhere", "0")


def test_a_gateway_out_of_files_and_of_disk_goes_on(upstream: Upstream, report: Report) -> None:
    """Its limit of open files is reached, its log cannot be written; then the crowd leaves."""
    target = {"name": "hostile-scarce", "backend": "openai", "url": upstream.target("h-good").url}
    upstream.target("h-good").restore()
    scarce = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *TRUNKLINE]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "stdout.log").symlink_to("/dev/full")
        table = json.dumps({"routes": {"good": {"targets": [target]}}})
        gateway = GatewayProcess(table, Path(folder), redis_url=None, workers=1, env={}, trunkline=scarce)
        try:
            gateway.wait_ready()
            key = gateway.issue().secret
            assert ask(gateway, chat("good"), key).status == 200
            with joined(gateway.port, 600):
                time.sleep(1)  # the crowd stays for a while
            left = time.monotonic()
            eventually(lambda: _answers(gateway, key) or None, "the gateway serves again", 120)
            recovered = time.monotonic() - left
            assert gateway.process.poll() is None
            dropped = total(samples(gateway), "log_lines_dropped_total")
        finally:
            gateway.stop()
    report.fault(
        35,
        "256 files, 600 connections, no room for logs",
        600,
        "accept waits, log lines are dropped, then it serves",
        "it serves",
        f"{recovered:.1f} s to recover, {dropped:.0f} lines dropped",
    )


def _answers(gateway: GatewayProcess, key: str) -> bool:
    try:
        return ask(gateway, chat("good"), key).status == 200
    except OSError:
        return False

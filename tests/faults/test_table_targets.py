"""Faults 1 to 12: what a target may do to a call, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import formatdate

import pytest
from faults.kit import ANSWER, HASTY, Place, asked, code, milliseconds, place, plain, resident, said, statuses
from faults.report import Report
from faults.volley import Exchange, eventually
from harness.fake_backend import fake
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from integration.client import record

from gateway.core.types import Allowance, Budget, Limit

ROUTES = (
    "hangs",
    "hangs-stream",
    "stalls",
    "frames",
    "endless",
    "nonsense",
    "500",
    "flapping",
    "all",
    "busy-2",
    "busy-date",
    "busy-1e9",
)
BLACK_HOLE_CALLS = 40
FEW = 6
"""Calls at once: half of them may fail at their first target, and the budget has three retries at least."""


@pytest.fixture(scope="module")
def here(redis: RedisServer) -> Iterator[Place]:
    with place(ROUTES, redis.url) as started:
        yield started


async def test_1_a_target_refuses(report: Report) -> None:
    """Its port closes while calls come in, and opens again."""
    with fake("vllm", "one") as one, fake("vllm", "two") as two:
        both = {"targets": [one.spec(), two.spec()], "policy": "round-robin", "timeouts": HASTY}
        alone = {"targets": [{**one.spec(), "name": "alone"}], "timeouts": HASTY}
        with gateway_process(json.dumps({"routes": {"m": both, "alone": alone}})) as gateway:
            secret = (await asyncio.to_thread(gateway.issue)).secret
            calm = await asked(gateway.port, secret, "m", 100)
            before = two.tells()["calls"]
            calls = await asked(gateway.port, secret, "m", 300, x_fault={"one": "refuse=2"})
            lonely = await asked(gateway.port, secret, "alone", 20, x_fault={"one": "refuse=2"})
            attempts = [record["attempts"] for record in gateway.records()]
    good = [call for call in calls if said(call) == ANSWER]
    met = sum(len(each) > 1 for each in attempts)
    added = 1000 * (max(call.seconds for call in calls) - max(call.seconds for call in calm))
    report.fault(1, "", 300, "all answered", f"{len(good)} answered", f"{met} met it, slowest {added:+.0f} ms")
    report.fault(1, "and there is no other", 20, "502 or 503", f"{statuses(lonely)}")
    assert len(good) == 300 and met >= 1 and two.tells()["calls"] - before >= 200
    assert set(statuses(lonely)) <= {502, 503}
    assert all("retry-after" in call.headers for call in lonely if call.status == 503)


def asked_of(gateway: GatewayProcess, calls: Sequence[Exchange]) -> Iterator[list[str]]:
    """Which targets each call was sent to, as its record says."""
    for call in calls:
        told = record(gateway, call.headers["x-request-id"])
        yield [attempt["target"] for attempt in told["attempts"]]


class Hole:
    """A server that answers probes, until its queue of connections is full and the kernel drops each SYN."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port = self._socket.getsockname()[1]
        self._open = True
        self._fillers: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._socket.settimeout(0.05)
        while self._open:
            with suppress(TimeoutError):
                connection, _ = self._socket.accept()
                with connection:
                    connection.settimeout(1)
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    def swallow(self) -> None:
        """From here on nobody gets through."""
        self._open = False
        self._thread.join()
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with suppress(BlockingIOError):
                filler.connect(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def close(self) -> None:
        self._open = False
        self._thread.join()
        for each in (*self._fillers, self._socket):
            each.close()


@contextmanager
def hole() -> Iterator[Hole]:
    made = Hole()
    try:
        yield made
    finally:
        made.close()


async def test_2_a_black_hole(report: Report) -> None:
    with hole() as lost, fake("openai", "good") as good:
        targets = [{"name": "hole", "backend": "openai", "url": f"http://127.0.0.1:{lost.port}"}, good.spec()]
        table = {"routes": {"m": {"targets": targets, "policy": "round-robin", "timeouts": HASTY}}}
        with gateway_process(json.dumps(table)) as gateway:
            secret = (await asyncio.to_thread(gateway.issue)).secret
            await eventually(lambda: "target hole is up" in gateway.stderr(), "it is up", 15)
            await asyncio.to_thread(lost.swallow)
            calls = await asked(gateway.port, secret, "m", BLACK_HOLE_CALLS, 3)
            met = [attempts for attempts in asked_of(gateway, calls) if "hole" in attempts]
    slowest = max(call.seconds for call in calls)
    report.fault(
        2, "connect 1 s", BLACK_HOLE_CALLS, "all answered", f"{statuses(calls)}",
        f"{len(met)} met it, slowest answered after {1000 * slowest:.0f} ms",
    )  # fmt: skip
    assert statuses(calls) == {200: BLACK_HOLE_CALLS} and met
    assert all(attempts == ["hole", "good"] for attempts in met), "one time-out, not several"


async def test_3_a_target_hangs(here: Place, report: Report) -> None:
    for streamed in (False, True):
        calls = await here.ask("hangs-stream" if streamed else "hangs", 30, 3, stream=streamed, x_fault={"bad": "hang"})
        tried = list(asked_of(here.gateway, calls))
        met = [call.seconds for call, attempts in zip(calls, tried, strict=True) if attempts[0].endswith("bad")]
        kind, expected = ("stream, first_output", "answered elsewhere") if streamed else ("whole", "504, once each")
        assert met and all(len(attempts) == 1 for attempts in tried if not (streamed and attempts[0].endswith("bad")))
        assert statuses(calls) == {200: 30} if streamed else statuses(calls) == {200: 30 - len(met), 504: len(met)}
        assert all(said(call) == ANSWER for call in calls if call.status == 200)
        report.fault(
            3, f"{kind} 3 s", 30, expected, f"{statuses(calls)}",
            f"{len(met)} met it, p99 {milliseconds(met, 0.99)}",
        )  # fmt: skip
    lonely = await here.ask("hangs-alone", 3, x_fault="hang")
    await eventually(lambda: here.bad.tells()["running"] == 0, "all connections that hung are closed")
    took = milliseconds([call.seconds for call in lonely], 0.99)
    report.fault(3, "and there is no other", 3, "504, 0 left open", f"{statuses(lonely)}, 0 left open", f"p99 {took}")
    assert statuses(lonely) == {504: 3}
    assert here.bad.tells()["aborted"] >= 4


async def test_4_a_stream_stalls(here: Place, redis: RedisServer, report: Report) -> None:
    budget = Limit(concurrency=50, budget=Budget(month=Allowance(tokens=1_000_000)))
    issued = await asyncio.to_thread(lambda: here.gateway.issue(limit=budget))
    calls = await asked(here.gateway.port, issued.secret, "stalls", 20, 20, stream=True, x_fault="stall=4")
    assert all(call.status == 200 and call.whole for call in calls)
    assert [(said(call), code(call)) for call in calls] == [("w1 w2 w3", "upstream_timeout")] * 20
    assert not any(b"[DONE]" in call.body for call in calls)
    lease, (spent,) = (
        f"{{tl}}:lease:key:{issued.record.id}",
        redis.keys(f"{{tl}}:budget:key:{issued.record.id}:*:tokens"),
    )
    await eventually(lambda: redis.ask("ZCARD", lease) == 0, "no slot is held")
    await eventually(lambda: redis.ask("HGET", spent, "o") == "0", "nothing is reserved")
    settled = int(redis.ask("HGET", spent, "s"))
    assert 20 * 3 <= settled < 20 * 200, "charged for what came, and for the prompt"
    took = [call.finished - call.answered for call in calls]
    report.fault(
        4, "idle 3 s", 20, "error event, no [DONE]", "20 error events, 0 [DONE]",
        f"after p50 {milliseconds(took, 0.5)}; {settled / 20:.0f} tokens each, 0 leases, 0 reserved",
    )  # fmt: skip


VALID = ("crlf", "mixed", "comments", "utf8", "bom", "prefix")
_CALL_NUMBER = re.compile(rb"chatcmpl-fake-\d+|\"created\":\d+")


@pytest.mark.parametrize("kind", [*VALID, "json", "bad_utf8"])
async def test_6_frames_are_malformed(here: Place, report: Report, kind: str) -> None:
    fields = {"stream": True, "stream_options": {"include_usage": True}, "x_fault": f"malformed={kind}"}
    (direct,) = await asked(here.bad.port, "", "frames-alone", 1, 1, **fields)
    (call,) = await here.ask("frames-alone", 1, 1, **fields)
    sent, got = (_CALL_NUMBER.sub(b"", plain(each)) for each in (direct, call))
    if kind in VALID:
        assert got == sent
        report.fault(6, f"{kind} (valid)", 1, "every byte as sent", "every byte as sent", f"{len(got)} bytes")
    else:
        seen = code(call) if code(call) else "passed on as it is"
        clean = b"[DONE]" in got
        assert got.startswith(sent[:200]) and (kind != "json" or (code(call) == "upstream_bad_reply" and not clean))
        report.fault(6, f"{kind} (broken)", 1, "error event, no [DONE]" if kind == "json" else "no crash", seen)


async def test_7_a_line_never_ends(here: Place, report: Report) -> None:
    before, peak, over = resident(here.gateway), 0, asyncio.Event()

    async def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, await asyncio.to_thread(resident, here.gateway))
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    calls = await here.ask("endless-alone", 4, 2, stream=True, x_fault="huge_line=64MiB")
    over.set()
    await watching
    await eventually(lambda: here.bad.tells()["running"] == 0, "the target's connections are closed")
    grown = (peak - before) / 1024**2
    report.fault(7, "64 MiB", 4, "cut at 1 MiB", ", ".join(sorted(set(map(code, calls)))), f"RSS +{grown:.1f} MiB")
    assert {code(call) for call in calls} == {"answer_too_large"}
    assert all(call.whole and len(call.body) < 10_000 for call in calls)
    assert grown < 40


async def test_8_nonsense_with_200(here: Place, report: Report) -> None:
    tries = [(fault, streamed) for fault in ("html", "invalid_json", "gzip_bomb=16MiB") for streamed in (False, True)]
    tries.remove(("invalid_json", True))  # that is a broken frame
    good = 0
    for fault, streamed in tries:
        (call,) = await here.ask("nonsense-alone", 1, 1, stream=streamed, x_fault=fault)
        assert (call.status, code(call)) == (502, "upstream_bad_reply"), (fault, streamed, bytes(call.seen[:500]))
        assert b"sign in" not in call.body.lower()
        good += 1
    elsewhere = await here.ask("nonsense", 20, 3, x_fault={"bad": "html"})
    assert [said(call) for call in elsewhere] == [ANSWER] * 20
    report.fault(
        8, "and there is no other", len(tries), "502 upstream_bad_reply", f"{good} of {len(tries)}", "0 echoed"
    )
    report.fault(8, "", 20, "answered elsewhere", f"{statuses(elsewhere)}")


async def test_9_a_target_answers_500(here: Place, report: Report) -> None:
    before = here.upstream_calls
    calls = await here.ask("500", 200, FEW, x_fault={"bad": "500"})
    amplified = (here.upstream_calls - before) / 200
    report.fault(9, "", 200, "answered elsewhere, <= 1.2x", f"{statuses(calls)}", f"{amplified:.3f} calls for one")
    good = sum(call.status == 200 and said(call) == ANSWER for call in calls)
    assert good >= 194 and 1 < amplified <= 1.2, "what goes wrong at once may be more than the retry budget's three"


@pytest.mark.parametrize(
    ("route", "spec", "quiet"),
    [
        ("busy-2", "retry_after=2", 1.8),
        ("busy-date", "status=503,retry_after={date}", 1.5),
        ("busy-1e9", "retry_after=1e9", 2.5),
    ],
)
async def test_10_a_target_asks_for_a_pause(here: Place, report: Report, route: str, spec: str, quiet: float) -> None:
    ordered = spec.format(date=formatdate(time.time() + 3, usegmt=True))
    untold, calls = here.bad.tells()["calls"], list[Exchange]()
    while here.bad.tells()["calls"] == untold and len(calls) < 50:  # until it has asked
        calls += await here.ask(route, 4, 1, x_fault={"bad": ordered})
    before, ends = here.bad.tells()["calls"], time.monotonic() + quiet
    while time.monotonic() < ends:
        calls += await here.ask(route, 10, 2, x_fault={"bad": ordered})
    during = here.bad.tells()["calls"] - before
    (told,) = await here.ask(f"{route}-alone", 1, 1, x_fault=ordered)
    wait = int(told.headers["retry-after"])
    report.fault(
        10, spec.partition("{")[0], len(calls), "all answered, 0 during the pause", f"{statuses(calls)}, {during}",
        f"alone: {told.status} with retry-after {wait}",
    )  # fmt: skip
    assert [said(call) for call in calls] == [ANSWER] * len(calls)
    assert during == 0 and told.status == 503 and 1 <= wait <= 120
    assert f"target {route}-bad is ejected" not in here.gateway.stderr()


async def test_11_a_target_flaps(here: Place, report: Report) -> None:
    before, began = here.upstream_calls, time.monotonic()
    calls = await here.ask("flapping", 400, FEW, x_fault={"bad": "flap=0.5"})
    rate = 400 / (time.monotonic() - began)
    began = time.monotonic()
    oracle = await here.ask("all", 400, FEW)
    ideal = 400 / (time.monotonic() - began)
    good = sum(said(call) == ANSWER for call in calls if call.status == 200)
    amplified = (here.upstream_calls - before - len(oracle)) / 400
    report.fault(
        11, "", 400, "all answered", f"{statuses(calls)}",
        f"{rate / ideal:.2f} of the calls/s without it, {amplified:.2f} calls for one",
    )  # fmt: skip
    assert good >= 396 and amplified <= 1.35


async def test_12_all_targets_are_bad(here: Place, report: Report) -> None:
    before = here.upstream_calls
    calls = await here.ask("all", 300, 32, x_fault="500")
    amplified = (here.upstream_calls - before) / 300
    took = milliseconds([call.seconds for call in calls], 0.99)
    report.fault(12, "", 300, "502/503, no storm", f"{statuses(calls)}", f"{amplified:.2f} calls for one, p99 {took}")
    assert set(statuses(calls)) <= {502, 503} and amplified <= 1.4

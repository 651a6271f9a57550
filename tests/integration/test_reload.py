"""Another table takes over while calls go on: none is lost, none waits, and a table with mistakes changes nothing."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.gateway_process import TRUNKLINE, GatewayProcess, gateway_process
from harness.redis_server import RedisServer, free_port
from harness.upstream import DONE, Gate, Target, Upstream, event, stream
from integration.client import CHAT, ask, chat, eventually, get, request, samples, total, wire

RELOADS = 20
CALLS = 1_000
"""At least; the full size is in tests/faults."""
CLIENTS = 8


def table(*targets: Target, model: str = "m", **route: Any) -> str:
    """A table of one route; targets are named by where they are."""
    listed = [{"name": each.url.rpartition("/")[2], "backend": "openai", "url": each.url} for each in targets]
    return json.dumps({"routes": {model: {"targets": listed, **route}}})


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def replace(gateway: GatewayProcess, text: str) -> None:
    """Put another table in the place of the gateway's, as deployment tools do."""
    fresh = gateway.routing.with_name("fresh.yaml")
    fresh.write_text(text)
    fresh.replace(gateway.routing)


def in_force(gateway: GatewayProcess, text: str) -> None:
    """Wait until a gateway of one worker serves this table."""
    eventually(lambda: get(gateway, "/ready").json()["config"] == sha(text) or None, "the table is in force")


def refused(gateway: GatewayProcess) -> str:
    """Wait for a refusal; what the log says of it. `/ready`, which anybody may read, only counts the mistakes."""
    said = eventually(lambda: get(gateway, "/ready").json().get("config_error") or None, "the table is refused")
    assert said.startswith("a newer table cannot be used (") and said.endswith("see the log)")
    return gateway.stderr()


def workers(gateway: GatewayProcess) -> list[int]:
    return sorted(child.pid for child in psutil.Process(gateway.process.pid).children())


@pytest.fixture
def targets(upstream: Upstream) -> list[Target]:
    found = [upstream.target(f"reload-{letter}") for letter in "abc"]
    for target in found:
        target.restore()
    return found


@contextmanager
def callers(gateway: GatewayProcess, key: str, statuses: Counter[int | str], enough: threading.Event) -> Iterator[None]:
    """Clients that call without a pause, on connections that they keep, until there is enough."""
    numbers = count()

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=50)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        while not enough.is_set():
            number = next(numbers)
            body = json.dumps(chat("m", user=f"u{number % 100}", stream=number % 10 == 0))
            try:
                connection.request("POST", CHAT, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                whole = number % 10 or data.endswith(DONE)
                statuses[answer.status if whole else "half an answer"] += 1
            except (OSError, http.client.HTTPException) as error:
                statuses[repr(error)] += 1
        connection.close()

    threads = [threading.Thread(target=call) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(50)


@pytest.mark.timeout(180)
def test_no_call_is_lost_in_twenty_reloads_one_of_them_broken(targets: list[Target]) -> None:
    one, two, three = targets
    tables = [
        table(one, two),
        table(one, two, three, policy="least-tokens"),
        table(two, three, policy="round-robin", timeouts={"idle": "20s"}),
        table(one, fallback=[{"name": "f", "backend": "openai", "url": three.url}]),
    ]
    statuses: Counter[int | str] = Counter()
    enough = threading.Event()
    with gateway_process(tables[0]) as gateway:
        with callers(gateway, gateway.issue().secret, statuses, enough):
            for number in range(1, RELOADS + 1):
                seen = sum(statuses.values())
                if number == RELOADS // 2:
                    replace(gateway, tables[number % 4] + "nonsense: [")
                    assert "not valid YAML" in refused(gateway)
                else:
                    replace(gateway, tables[number % 4])
                    if number % 2:  # the others are found by looking, twice a second, while calls go on
                        gateway.process.send_signal(signal.SIGHUP)
                    in_force(gateway, tables[number % 4])
                # calls were made under each of the tables
                eventually(lambda seen=seen: sum(statuses.values()) > seen + 30 or None, "calls go on")
            eventually(lambda: sum(statuses.values()) >= CALLS or None, "all calls were made", 120)
        assert set(statuses) == {200}, statuses
        found = samples(gateway)
        assert total(found, "config_reloads_total", outcome="applied") == RELOADS - 1
        assert total(found, "config_reloads_total", outcome="refused") == 1
    assert all(target.calls for target in targets)


def test_a_stream_ends_well_on_a_target_that_is_gone(targets: list[Target]) -> None:
    gone, stays, _ = targets
    gate = Gate()
    gone.script = stream(event("Hi"), gate, event(finish="stop"), DONE)
    with gateway_process(table(gone)) as gateway:
        key = gateway.issue().secret
        with wire(gateway, request(chat("m", stream=True), key)) as client:
            client.read_until(b"Hi")
            replace(gateway, table(stays))
            in_force(gateway, table(stays))
            assert ask(gateway, chat("m"), key).header("x-trunkline-target") == "reload-b"
            gate.open()
            client.read_until(b"[DONE]")


def test_the_answer_names_the_table_that_it_came_by(targets: list[Target]) -> None:
    with gateway_process(table(targets[0])) as gateway:
        assert samples(gateway)["trunkline_config_info", frozenset({("hash", sha(table(targets[0])))})] == 1
        replace(gateway, table(targets[1], model="other"))
        in_force(gateway, table(targets[1], model="other"))
        key = gateway.issue().secret
        assert ask(gateway, chat("other"), key).status == 200
        assert ask(gateway, chat("m"), key).status == 404
        found = samples(gateway)
        assert found["trunkline_config_info", frozenset({("hash", sha(table(targets[1], model="other")))})] == 1
        assert found.get(("trunkline_config_info", frozenset({("hash", sha(table(targets[0])))})), 0) == 0


def test_a_table_with_mistakes_changes_nothing_and_is_told(targets: list[Target]) -> None:
    good = table(targets[0])
    with gateway_process(good) as gateway:
        key = gateway.issue().secret
        replace(gateway, "routes:\n  m:\n    targetz: []\n")
        told = refused(gateway)
        assert f"{gateway.routing}:3:5: unknown key 'targetz'" in told
        ready = get(gateway, "/ready")
        assert ready.status == 200 and ready.json()["config"] == sha(good)
        assert total(samples(gateway), "config_refused") == 1
        assert ask(gateway, chat("m"), key).status == 200
        replace(gateway, good)
        eventually(lambda: not get(gateway, "/ready").json().get("config_error") or None, "all is well again")
        assert total(samples(gateway), "config_refused") == 0


def test_sighup_reaches_every_worker_and_restarts_none(redis: RedisServer, targets: list[Target]) -> None:
    gate = Gate()
    targets[0].script = stream(event("Hi"), gate, event(finish="stop"), DONE)
    text = table(targets[0])
    with gateway_process(text, redis_url=redis.url, workers=2) as gateway:
        key = gateway.issue().secret
        before = workers(gateway)
        assert len(before) == 2
        with wire(gateway, request(chat("m", stream=True), key)) as client:
            client.read_until(b"Hi")
            for reloads in (2, 4):  # nothing has changed, so only the signal brings them about
                gateway.process.send_signal(signal.SIGHUP)
                said = f"the routing table {sha(text)} is in force"
                eventually(lambda n=reloads, s=said: gateway.stderr().count(s) >= n or None, "both have reloaded")
            gate.open()
            client.read_until(b"[DONE]")
        assert workers(gateway) == before
        assert gateway.stderr().count("is in force") == 4


def test_sighup_while_starting_is_not_lost_and_ends_nothing(targets: list[Target], tmp_path: Path) -> None:
    """Neither the command that reads its table, nor its worker before it can reload, which then does."""
    routing, log = tmp_path / "routing.yaml", tmp_path / "stderr.log"
    os.mkfifo(routing)
    command = [*TRUNKLINE, "serve", str(routing), "--port", str(free_port()), "--state", str(tmp_path / "keys.json")]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        with routing.open("w") as pipe:  # the command is reading
            replacement = tmp_path / "fresh.yaml"
            replacement.write_text(table(targets[0]))
            replacement.replace(routing)
            process.send_signal(signal.SIGHUP)
            pipe.write(table(targets[0]))
        family = psutil.Process(process.pid)

        def begun() -> bool:
            process.send_signal(signal.SIGHUP)
            return bool(family.children())

        eventually(begun, "the worker begins", 40)
        process.send_signal(signal.SIGHUP)
        eventually(lambda: "is in force" in log.read_text(), "the worker reloads", 40)
        assert process.poll() is None and "Unexpected exit" not in log.read_text()
    finally:
        process.terminate()
        assert process.wait(40) == 0


def test_a_worker_that_dies_beside_a_broken_table_comes_back_with_the_last_good_one(targets: list[Target]) -> None:
    new = table(targets[1])
    with gateway_process(table(targets[0])) as gateway:
        key = gateway.issue().secret
        replace(gateway, new)
        in_force(gateway, new)
        replace(gateway, "routes: [")
        refused(gateway)
        (dying,) = workers(gateway)
        os.kill(dying, signal.SIGKILL)
        eventually(lambda: set(workers(gateway)) - {dying} or None, "another worker")
        gateway.wait_ready()
        assert ask(gateway, chat("m"), key).header("x-trunkline-target") == "reload-b"
        assert "not valid YAML" in refused(gateway)
        assert get(gateway, "/ready").json()["config"] == sha(new)


def test_what_would_have_to_be_launched_is_refused(targets: list[Target]) -> None:
    with gateway_process(table(targets[0])) as gateway:
        launched = {"name": "new", "backend": "openai", "launch": {"argv": ["true", "{port}"]}}
        replace(gateway, json.dumps({"routes": {"m": {"targets": [launched]}}}))
        told = refused(gateway)
        assert "'new'" in told and "restart" in told

"""Where conversations live: the same target in every gateway, turn after turn, and how anybody can see why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Upstream
from integration.client import ask, chat, eventually, get, record, samples, total
from integration.engine import Engine, engines, served, table, talk, text, where

NAMES = ("home-a", "home-b", "home-c", "home-d")


def homes(upstream: Upstream) -> str:
    targets = [Engine(upstream, name).spec() for name in NAMES]
    alone = {**targets[0], "name": "alone"}
    return table({"m": {"targets": targets}, "one": {"targets": [alone]}})


@pytest.fixture(scope="module")
def pair(upstream: Upstream, redis: RedisServer) -> Iterator[list[GatewayProcess]]:
    """Two gateways on one Redis and one table."""
    both = [gateway_process(homes(upstream), redis_url=redis.url) for _ in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as starters:
        started = list(starters.map(lambda each: each.__enter__(), both))
        for each in both:
            stack.push(each)
        yield started


@pytest.fixture(scope="module")
def admin(pair: list[GatewayProcess]) -> str:
    secret: str = pair[0].said("admin", "create", "--name", "tests")["secret"]
    return secret


@pytest.fixture(autouse=True)
def fleet(upstream: Upstream) -> list[Engine]:
    return engines(upstream, *NAMES)


def test_a_conversation_stays_where_it_began_in_every_gateway_and_after_a_restart(
    pair: list[GatewayProcess], upstream: Upstream, redis: RedisServer
) -> None:
    key = pair[0].issue().secret
    topics = [f"What about {n}?" for n in range(24)]
    first = {topic: served(pair[n % 2], talk("m", topic), key) for n, topic in enumerate(topics)}
    assert len(set(first.values())) == len(NAMES), "conversations are spread"
    for turn in (2, 3):
        for n, topic in enumerate(topics):
            assert served(pair[(n + turn) % 2], talk("m", topic, turn), key) == first[topic]
    with gateway_process(homes(upstream), redis_url=redis.url) as restarted:
        assert {topic: served(restarted, talk("m", topic, 4), key) for topic in topics} == first


def test_tenants_and_models_are_other_conversations(pair: list[GatewayProcess]) -> None:
    """Else one tenant could tell from the time its answer takes what another has asked."""
    keys = [pair[0].issue(tenant=f"tenant-{n}").secret for n in range(12)]
    places = [served(pair[0], talk("m", "The same question of all."), key) for key in keys]
    assert len(set(places)) > 1
    assert [served(pair[1], talk("m", "The same question of all.", 2), key) for key in keys] == places


def test_calls_with_one_system_prompt_go_where_it_is_warm(pair: list[GatewayProcess]) -> None:
    """Each of 16 groups of calls has a home or two, whichever gateway is asked; together they use all targets."""
    key = pair[0].issue().secret
    places: dict[int, list[str]] = {group: [] for group in range(16)}
    for n in range(5):
        for group, seen in places.items():
            question = talk("m", f"Question {n}", system=text(1500, f"You are expert {group}."))
            seen.append(served(pair[(n + group) % 2], question, key))
    assert max(len(set(seen)) for seen in places.values()) <= 2
    assert len({place for seen in places.values() for place in seen}) == len(NAMES)


def test_a_session_header_is_a_conversation(pair: list[GatewayProcess]) -> None:
    key = pair[0].issue().secret
    for name in ("x-session-id", "x-session-affinity", "session-id"):
        places = {
            session: {served(pair[n % 2], talk("m", f"Anything {n}"), key, headers={name: session}) for n in range(4)}
            for session in map(str, range(6))
        }
        assert all(len(seen) == 1 for seen in places.values()), places
        assert len(set.union(*places.values())) > 1


def test_why_is_told_in_the_record_and_in_metrics(pair: list[GatewayProcess]) -> None:
    key = pair[0].issue().secret
    before = total(samples(pair[0]), "route_decisions_total", route="m", policy="home-cost", reason="home")
    reply = ask(pair[0], talk("m", "Why here?"), key)
    line = record(pair[0], reply.header("x-request-id"))
    assert line["attempts"] == [{"target": where(reply), "outcome": "ok", "reason": "home"}]
    assert line["target"] == where(reply) and "fallback" not in line
    assert (reply.header("x-trunkline-attempts"), reply.header("x-trunkline-fallback")) == ("1", None)
    after = total(samples(pair[0]), "route_decisions_total", route="m", policy="home-cost", reason="home")
    assert after == before + 1
    alone = ask(pair[0], chat("one"), key)
    assert record(pair[0], alone.header("x-request-id"))["attempts"][0]["reason"] == "only"


def test_what_engines_report_of_their_cache_is_counted(pair: list[GatewayProcess], fleet: list[Engine]) -> None:
    key = pair[0].issue().secret
    for engine in fleet:
        engine.cached = 0.5

    def counted(what: str) -> float:
        return total(samples(pair[0]), f"{what}_tokens_total", route="m")

    prompt, cached = counted("prompt"), counted("cached")
    body = talk("m", text(400))
    assert ask(pair[0], body, key).json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    tokens = len(json.dumps(body)) // 4
    eventually(lambda: counted("prompt") == prompt + tokens or None, "the prompt is counted")
    assert counted("cached") == cached + tokens // 2


def test_an_admin_key_is_told_how_its_target_was_picked_and_nobody_else(
    pair: list[GatewayProcess], admin: str, fleet: list[Engine]
) -> None:
    issued = pair[0].issue()
    body = talk("m", "Explain yourself.")
    reply = ask(pair[0], body, issued.secret, headers={"x-trunkline-explain": admin})
    told = json.loads(reply.header("x-trunkline-explain") or "")
    assert sorted(each["target"] for each in told) == sorted(NAMES)
    (picked,) = [each for each in told if each.get("picked")]
    assert (picked["target"], picked["reason"], picked["policy"]) == (where(reply), "home", "home-cost")
    assert all(each["cost"] >= picked["cost"] for each in told)
    assert all(admin not in repr(call.headers) for engine in fleet for call in engine.calls)
    assert ask(pair[0], body, issued.secret).header("x-trunkline-explain") is None
    asked = sum(len(engine.calls) for engine in fleet)
    for token in (issued.secret, "tladm_guess", ""):
        refused = ask(pair[0], body, issued.secret, headers={"x-trunkline-explain": token})
        assert refused.status == 401 and refused.header("x-trunkline-explain") is None
        assert refused.error["code"] == "invalid_api_key"
    assert sum(len(engine.calls) for engine in fleet) == asked


def test_the_command_explains_where_the_call_goes(pair: list[GatewayProcess], tmp_path: Path) -> None:
    issued = pair[0].issue(tenant="explained")
    for n in range(3):
        body = talk("m", f"Where does {n} go?", system=text(20 + 300 * n))
        file = tmp_path / f"{n}.json"
        file.write_text(json.dumps(body))
        arguments = ("--body", str(file), "--key", issued.record.id, "--routing", str(pair[0].routing))
        told = pair[0].said("explain", *arguments)
        assert (told["route"], told["policy"], told["picked"]) == (
            "m",
            "home-cost",
            served(pair[1], body, issued.secret),
        )
        assert told["gateways"] >= 2
        assert [each["target"] for each in told["candidates"]] == list(NAMES)


def test_the_table_in_force_is_told_in_headers_metrics_and_ready(pair: list[GatewayProcess]) -> None:
    expected = hashlib.sha256(pair[0].routing.read_bytes()).hexdigest()[:12]
    reply = ask(pair[0], chat("m"), pair[0].issue().secret)
    assert reply.header("x-trunkline-config") == expected
    assert total(samples(pair[0]), "config_info", hash=expected) == 1
    assert total(samples(pair[0]), "config_info") == 1
    assert get(pair[0], "/ready").json()["config"] == expected

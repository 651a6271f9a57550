"""The gateways and the upstream that the integration tests share, as starting a gateway takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, free_port
from harness.upstream import Target, Upstream, scripted_upstream
from integration.cases import FAILURES, SECRET
from integration.client import eventually, get
from integration.streaming import SOCKETS, Speaking, speaking, speaking_over_sockets

UPSTREAM_KEY = "canary-upstream-credential"
BEHIND_PROXY = {"TRUNKLINE_TRUSTED_PROXIES": "127.0.0.1/32"}
"""Lets a test choose the address that it calls from."""
PATIENT = {"TRUNKLINE_REDIS_TIMEOUT": "20"}
SHEDDING = 16
HASTY = {"connect": "20s", "first_output": "700ms", "whole": "700ms", "idle": "40s"}
"""For targets that say nothing, and those alone: a busy machine is slow to answer."""
PAUSING = {"connect": "20s", "first_output": "40s", "whole": "40s", "idle": "700ms"}
"""For targets that say something, and then nothing more."""
TURNING = {**HASTY, "first_output": "3s", "whole": "3s"}
"""For a target that says nothing and another one that answers."""


@pytest.fixture(scope="module", autouse=True)
def redis_timeout(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a busy machine Redis is slow, not lost. Tests of what happens without it say how soon it counts as lost."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**PATIENT, **getattr(request.module, "IMPATIENT", {})}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    with scripted_upstream() as server:
        yield server


@pytest.fixture(scope="session")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    """One worker without Redis; its table has a route for every kind of test."""

    def target(name: str, backend: str = "openai", **fields: Any) -> dict[str, Any]:
        return {"name": name, "backend": backend, "url": upstream.target(name).url, **fields}

    dead = f"http://127.0.0.1:{free_port()}"
    routes: dict[str, Any] = {
        "solo": {"aliases": ["solo-alias", "team/solo:8b"], "targets": [target("solo")]},
        "vllm": {"targets": [target("vllm", "vllm", model="Served/Name", api_key="${UPSTREAM_KEY}")]},
        "hasty": {"targets": [target("hasty")], "timeouts": HASTY},
        "pausing": {"targets": [{**target("hasty"), "name": "pausing"}], "timeouts": PAUSING},
        "calm": {"targets": [{**target("hasty"), "name": "calm"}]},
        "good": {"targets": [target("good")]},
        "dead": {"targets": [{"name": "dead", "backend": "openai", "url": dead}]},
        "tiers": {
            "targets": [target("tier-down"), {"name": "tier-dead", "backend": "vllm", "url": dead}],
            "fallback": [target("tier-fallback", "vllm")],
            "retry": {"attempts": 3},
        },
    }
    for number in range(SHEDDING):
        routes[f"shed-{number}"] = {"targets": [target(f"shed-{number}")], "queue": {"wait": "350ms"}}
    for case in FAILURES:
        pair = [target(f"{case}-a"), target(f"{case}-b")]
        patience = {"timeouts": TURNING} if "hang" in case else {}
        routes[f"pair-{case}"] = {"targets": pair, "policy": "round-robin", **patience}
    table = {"routes": routes, "bodies": {"timeout": "3s", "event": 1024 * 1024}}
    with gateway_process(json.dumps(table), env={"UPSTREAM_KEY": UPSTREAM_KEY, **BEHIND_PROXY}) as started:
        yield started


@pytest.fixture(scope="session")
def key(gateway: GatewayProcess) -> str:
    """A key without limits for `gateway`."""
    return gateway.issue().secret


@pytest.fixture
def solo(upstream: Upstream) -> Target:
    """The target of the route "solo", as new."""
    return _renewed(upstream, "solo")


@pytest.fixture
def vllm(upstream: Upstream) -> Target:
    """The target of the route "vllm", which renames the model and has a credential."""
    return _renewed(upstream, "vllm")


@pytest.fixture
def hasty(upstream: Upstream) -> Target:
    """The target of the route "hasty", whose patience for the first output is short; of "pausing", which bears no
    pause, and "calm"."""
    return _renewed(upstream, "hasty")


@pytest.fixture(scope="session")
def sheds(gateway: GatewayProcess, upstream: Upstream) -> Callable[[], tuple[str, Target]]:
    """Gives a route and its target, each time others: one that sheds load is left alone for a while."""
    numbers = iter(range(SHEDDING))

    def fresh() -> tuple[str, Target]:
        name = f"shed-{next(numbers)}"
        return name, upstream.target(name)

    return fresh


@pytest.fixture(scope="session")
def fleet(upstream: Upstream, redis: RedisServer) -> Iterator[list[GatewayProcess]]:
    """Two gateways of two workers each on one Redis."""
    targets = [{"name": "fleet", "backend": "openai", "url": upstream.target("fleet").url}]
    table = json.dumps({"routes": {"fleet": {"targets": targets}}})
    pair = [gateway_process(table, redis_url=redis.url, workers=2, env={**BEHIND_PROXY, **PATIENT}) for _ in range(2)]
    with ExitStack() as stack, ThreadPoolExecutor(2) as starters:
        started = list(starters.map(lambda each: each.__enter__(), pair))
        for each in pair:
            stack.push(each)
        yield started


@pytest.fixture(scope="session")
def guarded(upstream: Upstream) -> Iterator[GatewayProcess]:
    """Its target gets a credential with signs that JSON escapes."""
    spec = {"name": "guarded", "backend": "vllm", "url": upstream.target("guarded").url, "api_key": "${GUARDED}"}
    route = {"targets": [spec], "retry": {"attempts": 1}}
    with gateway_process(json.dumps({"routes": {"m": route}}), env={"GUARDED": SECRET}) as started:
        yield started


@pytest.fixture(scope="session")
def guarded_key(guarded: GatewayProcess) -> str:
    return guarded.issue().secret


@pytest.fixture
def guarded_target(upstream: Upstream) -> Target:
    """The target of `guarded`, as new."""
    return _renewed(upstream, "guarded")


@pytest.fixture(scope="session")
def embedded() -> Iterator[GatewayProcess]:
    """A gateway that serves the embedded model, whose server it has started itself."""
    targets = [{"name": "local", "backend": "llamacpp", "launch": {"model": "embedded"}}]
    table = {"routes": {"smollm2-135m": {"aliases": ["demo/smollm2:135m"], "targets": targets}}}
    with gateway_process(json.dumps(table)) as started:

        def up() -> bool | None:
            return get(started, "/ready").json()["targets"]["local"] == "up" or None

        eventually(up, "the model is loaded", 40)
        yield started


@pytest.fixture
def shared_target(upstream: Upstream) -> Target:
    """The target of the fleet's one route, as new."""
    return _renewed(upstream, "fleet")


@pytest.fixture(scope="module")
def spares() -> int:
    """How many spare routes the tests of a file use up for a dialect."""
    return 0


@pytest.fixture(scope="module")
def in_this_process(upstream: Upstream, spares: int) -> Iterator[Speaking]:
    with speaking(upstream, spares) as started:
        yield started


@pytest.fixture(scope="module")
def over_sockets(upstream: Upstream, spares: int) -> Iterator[Speaking]:
    with speaking_over_sockets(upstream, spares) as started:
        yield started


@pytest.fixture
def speak(request: pytest.FixtureRequest) -> Speaking:
    """The stream contract's gateway: in this process, or over sockets for some kinds of streams and some captures."""
    of = getattr(request.node, "callspec", None)
    values = [] if of is None else [str(getattr(value, "name", value)) for value in of.params.values()]
    found: Speaking = request.getfixturevalue("over_sockets" if {*values} & {*SOCKETS} else "in_this_process")
    return found


def _renewed(upstream: Upstream, name: str) -> Target:
    target = upstream.target(name)
    target.restore()
    return target

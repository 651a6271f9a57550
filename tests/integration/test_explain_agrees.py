"""`trunkline explain` says beforehand what a gateway then does: for keys, calls and states as chance has them."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, free_port
from harness.upstream import Upstream
from integration.client import Reply, ask, eventually
from integration.conftest import BEHIND_PROXY
from integration.engine import Engine, send, table, where

from backends.endpoints import PATHS
from gateway.admin import Registrar
from gateway.cli.group import cli
from gateway.core.clock import SystemClock
from gateway.core.types import Allowance, Budget, Limit
from gateway.store.redis.store import RedisStore

CASES = 100
FIELDS = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "query": "/v1/rerank",
    "input": "/v1/embeddings",
}
ROUTES = ("open", "tiny", "gone", "drained", "falls", "ruled", "other-server", "busy-route", "chats")
NOT_WORDS = re.compile(r"about \d+ tokens, with its answer \d+|\s*\(request [\w-]+\)|Try again in .*|[\d.]+m?s\b")
"""What differs from one time to the next, or by what a gateway has learned."""


@pytest.fixture(scope="module")
def engines(upstream: Upstream) -> dict[str, Engine]:
    return {name: Engine(upstream, f"told-{name}") for name in (*ROUTES, "fallback", "holds")}


@pytest.fixture(scope="module")
def gateway(engines: dict[str, Engine], redis: RedisServer) -> Iterator[GatewayProcess]:
    dead = {"name": "told-dead", "backend": "vllm", "url": f"http://127.0.0.1:{free_port()}"}
    routes: dict[str, Any] = {
        name: {"targets": [engines[name].spec()]} for name in ("open", "tiny", "drained", "ruled", "chats", "holds")
    }
    routes["tiny"]["targets"][0]["context"] = 64
    routes["gone"] = {"targets": [dead]}
    routes["falls"] = {"targets": [{**dead, "name": "told-dead-too"}], "fallback": [engines["fallback"].spec()]}
    routes["ruled"]["body"] = {"deny": ["seed"], "set": {"max_tokens": 40}}
    routes["other-server"] = {"targets": [engines["other-server"].spec("tgi")]}
    routes["busy-route"] = {"targets": [engines["busy-route"].spec()], "limits": {"itpm": 20}}
    price = {"input": 1, "output": 1}
    for route in routes.values():
        route["price"] = price
    with gateway_process(table(routes, bodies={"prompts": 8}), redis_url=redis.url, env=BEHIND_PROXY) as started:
        started.said("targets", "drain", "told-drained", "--routing", str(started.routing))
        listed = lambda: started.said("targets", "list", "--routing", str(started.routing))  # noqa: E731
        eventually(lambda: "unknown" not in {each["state"] for each in listed()} or None, "all targets are known")
        yield started


class Case:
    """A key with a past, and the call that it makes now."""

    def __init__(self, chance: random.Random, gateway: GatewayProcess) -> None:
        self.chance, self.gateway = chance, gateway
        self.token = asyncio.run(self._key())
        self.source = chance.choice(["10.1.2.3", "192.0.2.1"])
        self.headers = {"x-forwarded-for": self.source}
        self.body = self._body()

    async def _key(self) -> str:
        chance = self.chance

        def maybe(*values: Any, odds: float = 0.25) -> Any:
            return chance.choice(values) if chance.random() < odds else None

        tokens, money = maybe(60, 5_000), maybe(50, 1_000_000)
        limit = Limit(
            rpm=maybe(1, 2, 1000),
            tpm=maybe(3, 1_000_000),
            concurrency=maybe(1, 5),
            budget=Budget(month=Allowance(tokens=tokens, cost_micros=money)),
        )
        fields: dict[str, Any] = {
            "limit": limit,
            "models": maybe(("open", "tiny"), ("o*", "falls"), odds=0.2) or ("*",),
            "endpoints": maybe(("chat/completions",), odds=0.2) or ("*",),
            "sources": maybe(("10.0.0.0/8",), odds=0.3) or (),
        }
        store = RedisStore(self.gateway._store[1], timeout=5)
        await store.open()
        try:
            registrar = Registrar(store.records, {0: b""}, SystemClock(), "test")
            record, token = await registrar.create("told", **fields)
            if chance.random() < 0.08:
                await registrar.revoke(record.id)
        finally:
            await store.close()
        if chance.random() < 0.08:  # another secret, well formed
            from gateway.auth.token import random as digits
            from gateway.auth.token import token as text

            return text(record.id, digits(43))
        return token

    def _body(self) -> dict[str, Any]:
        chance = self.chance
        words = "word " * chance.choice([1, 1, 1, 200])
        what = chance.choice(["messages", "messages", "messages", "prompt", "input", "query"])
        said: Any = [{"role": "user", "content": words}] if what == "messages" else words
        more = (
            chance.choice([{}, {}, {"seed": 1}, {"n": 2}, {"stream": True}]) if what in ("messages", "prompt") else {}
        )
        bound = {"max_tokens": chance.choice([1, 30, 200])} if what in ("messages", "prompt") else {}
        if what == "prompt" and chance.random() < 0.2:
            said = [words] * chance.choice([2, 9])  # more than the table's `bodies.prompts`
        more |= {"documents": ["one"]} if what == "query" else {}
        return {"model": chance.choice([*ROUTES, "open", "open", "nothing"]), what: said, **bound, **more}

    @property
    def path(self) -> str:
        return next(path for field, path in FIELDS.items() if field in self.body)

    def call(self) -> Reply:
        return ask(self.gateway, self.body, self.token, self.path, headers=self.headers)

    def explained(self) -> tuple[int, str, str | None]:
        """The status that explain foresees, its words, and the target."""
        words = [
            "--endpoint",
            PATHS[self.path],
            "--key",
            self.token,
            "--source",
            self.source,
            "--routing",
            str(self.gateway.routing),
        ]
        options = ["--body", "-", "--json", "--redis-url", self.gateway._store[1]]
        done = CliRunner().invoke(cli, ["explain", *words, *options], input=json.dumps(self.body))
        if done.exit_code:
            (status,) = re.findall(r"refused with (\d+)", done.output)
            return int(status), "", None
        answer = json.loads(done.stdout)
        refused: str = answer["refused"]
        if answer["last_resort"] and not refused:  # it is asked though it is down, and is
            assert answer["last_resort"] == "down"
            return 502, "", None
        if not refused:
            return 200, "", answer["picked"]
        status, _, said = refused.partition(": ")
        return int(status), said, None


def plain(words: str) -> str:
    return NOT_WORDS.sub("", words).strip()


def met(gateway: GatewayProcess, engines: dict[str, Engine], seed: int) -> str:
    """Whether a call meets what was foreseen; what that was."""
    case = Case(random.Random(seed), gateway)
    past = {"model": "open", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    before = [ask(gateway, past, case.token, headers=case.headers) for _ in range(case.chance.choice([0, 0, 1, 2]))]
    held, came = None, 0
    if case.chance.random() < 0.2:
        engines["holds"].holding = 1.0
        came = len(engines["holds"].calls)
        held = send(gateway, {**past, "model": "holds"}, case.token)
        deadline = time.monotonic() + 0.5
        while len(engines["holds"].calls) == came and time.monotonic() < deadline:
            time.sleep(0.01)  # it may be refused
    try:
        status, words, target = case.explained()
        reply = case.call()
    finally:
        engines["holds"].release()
        if held is not None:
            held.leave()
    refused = any(each.status == 429 for each in before) or (held is not None and len(engines["holds"].calls) == came)
    if reply.status == 429 and refused:
        return "429 as just before"  # a worker repeats it until its time is over, before it looks at anything else
    assert reply.status == status, (seed, reply, words, case.body)
    if status == 200:
        assert where(reply) == target, seed
    elif words and status != 401 and target is None and status != 503:
        assert plain(reply.error["message"]) == plain(words), seed
    return f"{status} {'' if status == 200 else reply.error['code']}"


def test_calls_meet_what_was_foreseen(gateway: GatewayProcess, engines: dict[str, Engine]) -> None:
    found = Counter(met(gateway, engines, seed) for seed in range(CASES))
    print(found)
    assert {int(what.split()[0]) for what in found} >= {200, 400, 401, 403, 404, 429}, found

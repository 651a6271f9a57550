"""Two real vLLMs; one is killed under streams again and again, and what clients read has no seam."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import free_port
from harness.replicas import CHAT, MODEL, NAMES, user
from harness.vllm_server import VLLMServer, client, vllm_server
from integration.client import eventually, get, samples, total

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

SEAMS, STREAMS, TOKENS = 20, 4, 64
"""As many streams must read on; so many run at once, each of so many tokens."""
BEGUN = 6
"""Events that each stream has had by then, at least."""
COMPLETIONS = "/v1/completions"


class Pair:
    """Two vLLMs, each on a port that it keeps when it is started anew."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, tell
        self._stacks = [ExitStack(), ExitStack()]
        self._ports = [free_port(), free_port()]
        self.servers = [self._begin(number) for number in (0, 1)]
        for server in self.servers:
            server.wait_ready(tell)

    def _begin(self, number: int) -> VLLMServer:
        port = self._ports[number]
        return self._stacks[number].enter_context(vllm_server(self._folder, "replica", "2048", port=port))

    def kill(self, number: int) -> None:
        self.servers[number].kill()

    def restart(self, number: int) -> None:
        self._stacks[number].close()
        self.servers[number] = self._begin(number)
        self.servers[number].wait_ready(self._tell)

    def close(self) -> None:
        for stack in self._stacks:
            stack.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]) -> Iterator[Pair]:
    tell("two vLLMs are starting, to be killed")
    started = Pair(tmp_path_factory.mktemp("killed"), tell)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def gateway(pair: Pair) -> Iterator[GatewayProcess]:
    targets = [
        {"name": name, "backend": "vllm", "url": server.url} for name, server in zip(NAMES, pair.servers, strict=True)
    ]
    times = {"first_output": "200s", "whole": "200s", "idle": "60s"}
    route = {"targets": targets, "policy": "round-robin", "resume": "text", "timeouts": times, "queue": {"wait": "90s"}}
    with gateway_process(json.dumps({"routes": {MODEL: route}})) as started:
        yield started


class Told:
    """One stream as its client saw it."""

    def __init__(self) -> None:
        self.target, self.text, self.at_the_kill = "", "", ""
        self.events: list[dict[str, Any]] = []
        self.ended = False

    def read(self, towards: httpx.Client, path: str, body: dict[str, Any]) -> "Told":
        with towards.stream("POST", path, json=body) as response:
            assert response.status_code == 200, response.read()
            self.target = response.headers.get("x-trunkline-target", "")
            for line in response.iter_lines():
                self.ended |= line == "data: [DONE]"
                if line.startswith("data: {"):
                    self.events.append(json.loads(line[6:]))
                    self.text += "".join(map(_text, self.events[-1].get("choices", ())))
        return self


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def asked(round: int, number: int) -> tuple[str, dict[str, Any]]:
    """Stories, and numbers that count on: a token lost or doubled shows."""
    common = {"model": MODEL, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    common["stream_options"] = {"include_usage": True}
    if number % 2:
        first = 10 * (10 * round + number) + 1
        return COMPLETIONS, {**common, "prompt": ", ".join(str(n) for n in range(first, first + 12)) + ","}
    return CHAT, {**common, "messages": user(f"Write a long story about the number {10 * round + number} and the sea.")}


def test_what_clients_read_has_no_seam(
    gateway: GatewayProcess, pair: Pair, record: Callable[..., None], tell: Callable[[str], None]
) -> None:
    key, kills, seams, same = gateway.issue().secret, 0, 0, 0
    with client(gateway.url, authorization=f"Bearer {key}") as towards, ThreadPoolExecutor(STREAMS) as clients:
        while seams < SEAMS:
            calls = [asked(kills, number) for number in range(STREAMS)]
            tolds = [Told() for _ in calls]
            running = [clients.submit(told.read, towards, *call) for told, call in zip(tolds, calls, strict=True)]
            _begun(tolds)
            doomed = Counter(told.target for told in tolds).most_common(1)[0][0]
            for told in tolds:
                told.at_the_kill = told.text
            pair.kill(NAMES.index(doomed))
            kills += 1
            for each in running:
                each.result()
            survivor = pair.servers[1 - NAMES.index(doomed)]
            for told, call in zip(tolds, calls, strict=True):
                if told.target == doomed:
                    uncut = Told().read(survivor.client, *call)
                    check(told, uncut, survivor)
                    seams, same = seams + 1, same + (told.text == uncut.text)
            tell(f"kill {kills}: {seams} streams read on, {same} of them with the very text of an uncut one")
            pair.restart(NAMES.index(doomed))
            _all_up(gateway)
    found = samples(gateway)
    assert total(found, "resumes_total", outcome="resumed") == seams and total(found, "resumes_total") == seams
    record("resume", "servers killed with kill -9", kills)
    record("resume", "streams that read on", seams)
    record("resume", "of them with the very text of an uncut one", same)


def _begun(tolds: list[Told]) -> None:
    eventually(lambda: all(len(told.events) >= BEGUN for told in tolds) or None, "all have begun", 300)


def check(told: Told, uncut: Told, survivor: VLLMServer) -> None:
    """Nothing lost, nothing doubled: as many tokens as were asked for, and the numbers count on."""
    assert told.ended and not any("error" in event for event in told.events)
    assert len({event["id"] for event in told.events}) == 1
    assert told.text.startswith(told.at_the_kill)
    roles = [choice["delta"].get("role") for event in told.events for choice in event["choices"] if "delta" in choice]
    assert len([role for role in roles if role]) == ("delta" in told.events[0]["choices"][0])
    usage, plain = told.events[-1]["usage"], uncut.events[-1]["usage"]
    assert usage["completion_tokens"] == TOKENS, usage
    assert abs(usage["prompt_tokens"] - plain["prompt_tokens"]) <= 2, (usage, plain)
    counted = survivor.client.post("/tokenize", json={"model": MODEL, "prompt": told.text, "add_special_tokens": False})
    assert abs(counted.json()["count"] - TOKENS) <= 2, told.text
    numbers = [int(word) for word in uncut.text.split(",")[:-1] if word.strip().isdigit()]
    if len(numbers) > 5 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        assert told.text == uncut.text, "the numbers count on"


def _all_up(gateway: GatewayProcess) -> None:
    def up() -> bool | None:
        return set(get(gateway, "/ready").json()["targets"].values()) == {"up"} or None

    eventually(up, "both are up again", 120)

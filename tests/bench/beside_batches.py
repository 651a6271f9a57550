"""What calls wait for their first token beside a batch, against without one: two gateways, a Redis, two timed engines.

    .venv/bin/python tests/bench/beside_batches.py [--rate 8] [--calls 240]

The engines keep an engine's time without a GPU (`trunkline fake-backend --engine`). Each round has calls of its own: no
prompt is in a cache. Printed: the time to the first token in milliseconds, p50 and p95, and how many
lines were answered meanwhile.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import openai
from harness.fake_backend import fake_process
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import free_port, redis_server
from open_loop import first_tokens

WORDS = 1200
"""Of a prompt, about 1,500 tokens."""
LINES = 4000


def prompt(number: int) -> str:
    return f"{number} " + "word " * WORDS


def request(number: int, token: str) -> bytes:
    messages = [{"role": "user", "content": prompt(number)}]
    body = json.dumps({"model": "m", "messages": messages, "max_tokens": 64, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def measured(gateways: list[GatewayProcess], token: str, first: int, calls: int, rate: float) -> list[float]:
    ports = [gateway.port for gateway in gateways]
    requests = [(ports[number % len(ports)], request(first + number, token)) for number in range(calls)]
    found = first_tokens(requests, 1, rate / calls)
    return [seconds * 1000 for times in found.seconds.values() for seconds in times]


def told(what: str, times: list[float]) -> float:
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f"{what:<28} p50 {statistics.median(times):7.1f} ms   p95 {p95:7.1f} ms   ({len(times)} calls)", flush=True)
    return p95


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rate", type=float, default=8.0, help="calls a second")
    options.add_argument("--calls", type=int, default=240, help="of a round")
    given = options.parse_args()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        redis = stack.enter_context(redis_server())
        ports = [free_port() for _ in range(2)]
        for port in ports:
            stack.enter_context(fake_process("fake-backend", "--engine", "--quiet", "--port", str(port)))
        targets = [{"name": f"t{port}", "backend": "vllm", "url": f"http://127.0.0.1:{port}"} for port in ports]
        table = json.dumps({"routes": {"m": {"targets": targets}}})
        gateways = [
            stack.enter_context(gateway_process(table, redis_url=redis.url, env={"TRUNKLINE_FILES": folder}))
            for _ in range(2)
        ]
        token = gateways[0].issue().secret
        measured(gateways, token, 0, 40, given.rate)
        alone = told("without a batch", measured(gateways, token, 1000, given.calls, given.rate))
        ours = stack.enter_context(openai.OpenAI(api_key=token, base_url=f"{gateways[0].url}/v1"))
        lines = [
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {
                    "model": "m",
                    "messages": [{"role": "user", "content": prompt(10**6 + number)}],
                    "max_tokens": 64,
                },
            }
            for number in range(LINES)
        ]
        raw = "\n".join(map(json.dumps, lines)).encode()
        file = ours.files.create(file=("lines.jsonl", io.BytesIO(raw)), purpose="batch")
        batch = ours.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        while not done(ours, batch.id):
            pass
        before = done(ours, batch.id)
        beside = told("beside a batch", measured(gateways, token, 2000, given.calls, given.rate))
        lines_done = done(ours, batch.id) - before
        print(f"lines meanwhile: {lines_done}, {lines_done / (given.calls / given.rate):.1f} a second")
        ours.batches.cancel(batch.id)
        print(f"p95 beside / without: {beside / alone:.2f}")


def done(ours: openai.OpenAI, id: str) -> int:
    counts = ours.batches.retrieve(id).request_counts
    return 0 if counts is None else counts.completed + counts.failed


if __name__ == "__main__":
    main()

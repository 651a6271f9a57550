"""Batches as OpenAI's client leaves them with a gateway, and what has become of each line."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import Any

import openai
from harness.gateway_process import GatewayProcess
from integration.client import eventually
from openai.types import Batch

ENDED = {"completed", "failed", "expired", "cancelled"}


def client(gateway: GatewayProcess, **key: Any) -> openai.OpenAI:
    return openai.OpenAI(api_key=gateway.issue(**key).secret, base_url=f"{gateway.url}/v1", max_retries=0)


def line(number: int, model: str = "m", **fields: Any) -> dict[str, Any]:
    """A good line; `fields` make it another one."""
    body = {"model": model, "messages": [{"role": "user", "content": f"Line {number}"}]}
    return {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body, **fields}


def leave(ours: openai.OpenAI, lines: list[Any], endpoint: Any = "/v1/chat/completions") -> Batch:
    """A batch of these lines; anything but bytes is written as JSON."""
    raw = b"\n".join(each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines)
    file = ours.files.create(file=("lines.jsonl", io.BytesIO(raw)), purpose="batch")
    return ours.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def at_end(ours: openai.OpenAI, batch: Batch, seconds: float = 60) -> Batch:
    def look() -> Batch | None:
        found = ours.batches.retrieve(batch.id)
        return found if found.status in ENDED else None

    return eventually(look, "the batch has ended", seconds)


def results(ours: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """What stands in a file of results, by custom id; nothing may be there twice."""
    if file_id is None:
        return {}
    lines = [json.loads(each) for each in ours.files.content(file_id).text.splitlines()]
    assert [id for id, times in Counter(each["custom_id"] for each in lines).items() if times > 1] == []
    return {each["custom_id"]: each for each in lines}

"""What clients are tried on: a real gateway before a real model, in four ways, and before an engine that uses tools."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clients.engine import engine
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import free_port
from standin.embedded import child
from standin.tgi import start_standin

PATIENCE = {"connect": "20s", "first_output": "60s", "whole": "60s", "idle": "40s"}


@contextmanager
def bed() -> Iterator[GatewayProcess]:
    """The gateway. Its models: `native` is the embedded model, whose server speaks chats, responses and messages;
    `translated` is the same one as a server of chats only, `tgi` the same one behind TGI's dialect; `engine` uses
    tools. Calls that name none are for `native`."""
    embedded = [sys.executable, "-m", "backends.embedded", "--port", str(free_port()), "--name", "native"]
    with child(embedded) as model, start_standin(model_url=model) as tgi, engine() as tools:

        def route(backend: str, url: str, name: str | None = None) -> dict[str, Any]:
            target = {"name": f"{backend}-{url.rpartition(':')[2]}", "backend": backend, "url": url}
            return {"targets": [{**target, **({"model": name} if name else {})}], "timeouts": PATIENCE}

        routes = {
            "native": route("llamacpp", model),
            "translated": route("openai", model, "native"),
            "tgi": route("tgi", tgi),
            "engine": route("openai", tools),
        }
        with gateway_process(json.dumps({"routes": routes, "default_route": "native"})) as gateway:
            yield gateway

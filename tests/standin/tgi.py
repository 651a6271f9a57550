"""A stand-in for Hugging Face text-generation-inference (TGI): its HTTP dialect over a small real model.

    python tests/standin/tgi.py --port 0 (--embedded | --model-url URL) [--api-key KEY] ...

prints `listening URL` when ready and ends on SIGTERM, or when the process that started it is gone. The request header
`x-fault` makes it misbehave, in the way TGI itself does, for that request only:

    overload                     no room: 429, or in a stream the error event
    generation-error-mid-stream  the model fails at the third token: 424, or an error event after two tokens
    incomplete                   the model ends without an end at the third token: 500, or an error event
    cut                          the connection breaks at the third token, without the end of the body
    stall                        silent after two tokens but for keep-alive comments, until the client leaves
    unhealthy                    the health routes answer 503

Known to differ from TGI: the probabilities of prompt tokens are null; parts of a character spread over several tokens
all carry the id of the last one; adapters are accepted and ignored; there is no watermark, and `/docs` is missing.
"""

import argparse
import asyncio
import hmac
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Middleware
from standin.embedded import child, embedded_model
from standin.tgi_answers import json_answer
from standin.tgi_errors import Cut, TgiError
from standin.tgi_generation import Infer, Limits
from standin.tgi_json import Rejected
from standin.tgi_metrics import Metrics
from standin.tgi_model import Model
from standin.tgi_routes import Routes

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def start_standin(
    *,
    model_url: str | None = None,
    api_key: str | None = None,
    max_concurrent_requests: int | None = None,
    keepalive: float | None = None,
    more: tuple[str, ...] = (),
) -> Iterator[str]:
    """Run a stand-in of its own process and yield its base URL; without a model to share it embeds one."""
    command = [sys.executable, str(Path(__file__).resolve()), "--port", "0"]
    command += ["--model-url", model_url] if model_url else ["--embedded"]
    command += ["--api-key", api_key] if api_key else []
    command += ["--max-concurrent-requests", str(max_concurrent_requests)] if max_concurrent_requests else []
    command += ["--keepalive", str(keepalive)] if keepalive else []
    with child([*command, *more]) as url:
        yield url


def plain(status: int, text: str = "") -> web.Response:
    return web.Response(status=status, text=text) if text else web.Response(status=status)


def errors(payload_limit: int) -> Middleware:
    """The middleware that turns what is raised into TGI's answers."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (request.content_length or 0) > payload_limit:
            return plain(413, "Failed to buffer the request body: length limit exceeded")
        try:
            return await handler(request)
        except Rejected as error:
            return plain(error.status, str(error))
        except TgiError as error:
            return json_answer(error.body(), error.status)
        except Cut:
            if request.transport is not None:
                request.transport.abort()
            raise asyncio.CancelledError from None  # what aiohttp takes quietly
        except web.HTTPRequestEntityTooLarge:
            return plain(413, "Failed to buffer the request body: length limit exceeded")
        except web.HTTPMethodNotAllowed as error:
            return web.Response(status=405, headers={"allow": error.headers["Allow"]})
        except web.HTTPNotFound:
            return plain(404)

    return answer


def keys(api_key: str, guarded: set[str], opened: set[tuple[str, str]]) -> Middleware:
    """The middleware that wants the key, before it looks at the method; TGI compares it without regard to case."""
    expected = f"Bearer {api_key}".lower().encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("authorization", "").lower().encode()
        wanted = request.path in guarded and (request.method, request.path) not in opened
        if wanted and not hmac.compare_digest(given, expected):
            return plain(401)
        return await handler(request)

    return check


@web.middleware
async def allow_any_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
        allowed = {"access-control-allow-methods": "GET,POST", "access-control-allow-headers": "content-type"}
        return web.Response(headers=allowed)
    return await handler(request)


async def dress(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["access-control-allow-origin"] = "*"
    response.headers["vary"] = "origin, access-control-request-method, access-control-request-headers"
    response.headers.popall("Server", None)
    if isinstance(response, web.Response) and response.body is None:
        response.headers.popall("Content-Type", None)
    elif response.content_type == "application/json":
        response.headers["content-type"] = "application/json"


def application(routes: Routes, api_key: str | None, payload_limit: int) -> web.Application:
    guarded = {route.path for route in routes.guarded()}
    opened = {(route.method, route.path) for route in routes.open()}
    middlewares: list[Middleware] = [allow_any_origin, errors(payload_limit)]
    if api_key:
        middlewares.insert(1, keys(api_key, guarded, opened))
    app = web.Application(middlewares=middlewares, client_max_size=payload_limit)
    app.add_routes([*routes.guarded(), *routes.open()])
    app.on_response_prepare.append(dress)
    return app


async def serve(options: argparse.Namespace, model_url: str, limits: Limits) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    no_limit = aiohttp.ClientTimeout(total=None, connect=10)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # llama.cpp closes idle connections after 5 s
    async with aiohttp.ClientSession(timeout=no_limit, connector=connector) as session:
        model, metrics = Model(session, model_url), Metrics()
        await model.learn()
        metrics.gauges["tgi_batch_max_total_tokens"] = model.slots * limits.max_total_tokens
        routes = Routes(Infer(model, limits, metrics), metrics, limits, options.model_id, options.keepalive)
        runner = web.AppRunner(
            application(routes, options.api_key, options.payload_limit), handler_cancellation=True, access_log=None
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", options.port, shutdown_timeout=1)
            await site.start()
            print(f"listening http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
            await until_orphaned(stopped)
        finally:
            await runner.cleanup()


async def until_orphaned(stopped: asyncio.Event) -> None:
    parent = os.getppid()
    while os.getppid() == parent and not stopped.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for text-generation-inference on a loopback port.")
    parser.add_argument("--port", type=int, default=3000, help="0 picks a free one")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model-url", help="a running llama.cpp server")
    model.add_argument("--embedded", action="store_true", help="start the embedded model in a child process")
    parser.add_argument("--model-id", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--api-key")
    parser.add_argument("--payload-limit", type=int, default=2_000_000)
    parser.add_argument("--keepalive", type=float, default=15.0, help="seconds between comments on a silent stream")
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name.replace('_', '-')}", type=int, default=limit.default)
    options = parser.parse_args()
    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
    with ExitStack() as stack:
        url = options.model_url or stack.enter_context(embedded_model())
        asyncio.run(serve(options, url, limits))


if __name__ == "__main__":
    main()

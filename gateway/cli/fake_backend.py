"""`trunkline fake-backend`: a model server without a model, which misbehaves as it is told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from gateway.cli.options import Parsed, Quantity
from gateway.cli.tables import rows
from gateway.config.units import COUNT
from gateway.faults.backend import CONTROL, DIALECTS, FakeBackend, Told
from gateway.faults.engine import Shape
from gateway.faults.openai import Served
from gateway.faults.orders import BadOrder, Entry, Orders, parse, read_script
from gateway.faults.vocabulary import FAULTS

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
WARNING: Final = "Warning: it listens beyond this machine; whoever reaches it can order faults, `die` too."


def _order(text: str) -> str:
    parse(text)
    return text


def _print_faults(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        rows(("fault", "default", "what it does"), [_row(name) for name in FAULTS], "")
        ctx.exit()


def _row(name: str) -> tuple[object, ...]:
    fault = FAULTS[name]
    return fault.usage, "" if fault.value is None else fault.default, fault.about


@click.command()
@click.option(
    "--dialect", type=click.Choice(list(DIALECTS)), default="vllm", show_default=True, help="Which server to be."
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any that is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--name", help="By which an `x_fault` object in a body means it. [default: its port]")
@click.option("--model", "models", multiple=True, help="A name it answers to. Repeatable. [default: any]")
@click.option("--tokens", type=click.IntRange(0), default=16, show_default=True, help="Words of an answer.")
@click.option("--token-interval", type=click.FloatRange(0), default=0.0, show_default=True, help="Seconds a word.")
@click.option("--context", type=click.IntRange(1), default=32768, show_default=True, help="Tokens of the context.")
@click.option("--wake", type=click.FloatRange(0), default=0.0, show_default=True, help="Seconds that /wake_up takes.")
@click.option("--engine", is_flag=True, help="Take an engine's time: batches, a prefix cache, a queue (vllm only).")
@click.option("--kv-tokens", type=Quantity(COUNT, positive=True), default="80k", show_default=True,
              help="Tokens that the engine's cache holds.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=33_000.0, show_default=True,
              help="Prompt tokens that the engine reads in a second.")  # fmt: skip
@click.option("--fault", "default", type=Parsed("SPEC", _order), default="", help="The fault of every call.")
@click.option(
    "--script",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A YAML or JSON list: which calls get which fault.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all chance.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines: the start, then one for each call.")
@click.option("--quiet", is_flag=True, help="Do not tell each call.")
@click.option("--list-faults", is_flag=True, is_eager=True, expose_value=False, callback=_print_faults,
              help="Print all faults and end.")  # fmt: skip
def fake_backend(**options: Any) -> None:
    """Speak like vLLM, TGI or OpenAI without any model, and fail on order.

    An answer is "w1 w2 w3 ..." and goes on from the words that end the last assistant message
    (`continue_final_message`) or the raw prompt: so a resumed answer can be checked for lost and doubled words.

    A fault is ordered by a call itself, with the header `x-fault: SPEC` or, through a gateway, the body's field
    `"x_fault": "SPEC"` (or an object of them by --name); else by the first fitting entry of --script; else by --fault.
    SPEC is such as `stall=3` or `slow=0.1,cut=5`; --list-faults prints all. A script is a list of entries such as
    `{calls: 1-3, fault: status=503}`, `{every: 10, stream: true, fault: cut=4}`, `{probability: 0.1, fault: hang}`,
    `{path: /health, calls: "5-", fault: status=503}`.

    With --engine it answers when an engine of that shape would (vLLM's scheduler, modelled): its prompts' tokens are
    their bytes / 4, equal beginnings are cached, calls wait for room, /metrics tell it all, and `ignore_eos` makes an
    answer of exactly `max_tokens`.

    GET /fake tells what happened so far; POST /fake with `{"fault": "SPEC"}` changes --fault while it runs, with
    `{"engine": "stop"}` or `"go"` the engine of --engine stops and goes on, while /health and /metrics answer.
    """
    if options["engine"] and options["dialect"] != "vllm":
        raise click.UsageError("--engine: speaks --dialect vllm only")
    orders = _orders(options)
    served = Served(
        options["models"], options["tokens"], options["token_interval"], options["context"], options["wake"]
    )
    try:
        asyncio.run(_serve(options, served, orders))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {options['host']}:{options['port']}: {error.strerror}") from None


def _orders(options: dict[str, Any]) -> Orders:
    entries: list[Entry] = []
    if options["script"] is not None:
        try:
            entries = read_script(options["script"])
        except (OSError, BadOrder) as error:
            raise click.BadParameter(str(error), param_hint="--script") from None
    return Orders(options["default"], entries, name=options["name"] or "", seed=options["seed"])


async def _serve(options: dict[str, Any], served: Served, orders: Orders) -> None:
    tell = (lambda _: None) if options["quiet"] else _tell_json if options["as_json"] else _tell
    shape = Shape(kv_tokens=options["kv_tokens"], rate=options["rate"]) if options["engine"] else None
    server = FakeBackend(options["dialect"], served, orders, told=tell, died=lambda: os._exit(1), engine=shape)
    port = await server.open(options["host"], options["port"])
    orders.name = options["name"] or str(port)
    url = f"http://{options['host']}:{port}"
    if options["host"] not in LOOPBACK:
        click.echo(WARNING, err=True)
    if options["as_json"]:
        click.echo(json.dumps({"url": url, "port": port, "dialect": options["dialect"], "name": orders.name}))
    else:
        click.echo(_start(url, options["dialect"]))
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    await over.wait()
    await server.close()


def _start(url: str, dialect: str) -> str:
    body = '{"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": true, "x_fault": "cut=3"}'
    return (
        f"A fake {dialect} server listens on {url} until Ctrl-C; what happened so far: {url}{CONTROL}\n"
        f"Try: curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"
    )


def _tell(told: Told) -> None:
    kind, fault = "stream" if told.stream else "whole", told.fault or "none"
    click.echo(f"{told.number} {told.path} {kind}: {fault}: {told.outcome}, {told.events} pieces, {told.seconds:.3f} s")


def _tell_json(told: Told) -> None:
    click.echo(msgspec.json.encode(told))

"""`trunkline fake-link`: a TCP proxy that spoils what it carries, to a Redis or a model server."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import Any, Final

import click

from gateway.cli.options import Parsed
from gateway.faults.link import Link
from gateway.faults.tell import HELP, Teller, Unknown
from gateway.faults.values import SECONDS, SIZE, Value

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)


def _of(value: Value) -> Parsed:
    return Parsed(value.name, value.read)


@click.command()
@click.option("--listen", type=click.IntRange(0, 65535), default=0, show_default=True, help="Port; 0: any free one.")
@click.option("--to", type=Parsed("HOST:PORT", _address), required=True, help="Where the link leads.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--delay", type=_of(SECONDS), default=0.0, help="Seconds by which all arrives later, each way.")
@click.option("--bandwidth", type=_of(SIZE), default=0, help="Bytes a second, each way of each connection.")
@click.option(
    "--cut-after", type=_of(SIZE), default=0, help="Close all connections after so many bytes from the target."
)
@click.option("--reset-every", type=_of(SECONDS), default=0.0, help="Seconds after which all connections are reset.")
@click.option("--black-hole", is_flag=True, help="Take everything and pass nothing on.")
def fake_link(**options: Any) -> None:
    """Carry TCP connections to HOST:PORT, and spoil them.

    While it runs it takes orders on its standard input, a line each: `delay S`, `bandwidth BYTES`, `cut-after BYTES`,
    `reset` (all that are open), `reset-every S`, `black-hole`, `restore` (as it should be), `status`. 0 switches off.
    """
    try:
        asyncio.run(_carry(options))
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {options['host']}:{options['listen']}: {error.strerror}"
        ) from None


async def _carry(options: dict[str, Any]) -> None:
    host, port = options["to"]
    link = Link(host, port)
    teller = Teller(link)
    for name in ("delay", "bandwidth", "cut_after", "reset_every"):
        teller.apply(f"{name.replace('_', '-')} {options[name]}")
    link.black_hole = options["black_hole"]
    at = await link.open(options["host"], options["listen"])
    if options["host"] not in LOOPBACK:
        click.echo("Warning: it listens beyond this machine, and whoever reaches it reaches its target.", err=True)
    click.echo(
        f"A link from {options['host']}:{at} to {host}:{port} until Ctrl-C: {teller.status()}\n"
        f"Orders on standard input: {HELP}\n"
        f"Try: curl http://{options['host']}:{at}/health (to a model server), redis-cli -p {at} ping (to Redis)"
    )
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    threading.Thread(target=_listen, args=(loop, teller), daemon=True).start()
    resets = loop.create_task(teller.reset_again_and_again())
    await over.wait()
    resets.cancel()
    await link.close()


def _listen(loop: asyncio.AbstractEventLoop, teller: Teller) -> None:
    """Lines of standard input; it may be closed, or none at all."""
    for line in sys.stdin or ():
        if line.strip():
            try:
                loop.call_soon_threadsafe(_obey, teller, line)
            except RuntimeError:  # the loop is closed: it is over
                return


def _obey(teller: Teller, line: str) -> None:
    try:
        click.echo(teller.apply(line))
    except Unknown as error:
        click.echo(str(error), err=True)

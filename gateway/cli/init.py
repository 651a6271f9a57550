"""`trunkline init`: a routing table for servers that already run, by what they say of themselves."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
from msgspec import Struct

from backends import registry
from backends.api import Facts
from backends.api import Target as Address
from gateway.cli.asked import ASK_SECONDS, AT_ONCE
from gateway.config import Mistakes, Timeouts, parse_table
from gateway.upstream import AnswerLimits, Forwarder

ANY_KIND: Final = "openai"
"""The adapter for whatever speaks OpenAI's language."""
QUICK: Final = Timeouts(connect=3.0)
LIMITS: Final = AnswerLimits(1 << 22, 1 << 22, 1 << 22)
HEAD: Final = """\
# Written by `trunkline init`. `trunkline check --probe` asks the servers again; `trunkline schema` has all keys.
routes:
"""
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*")
_WORDS: Final = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


class Server(Struct, frozen=True):
    """What answers at a URL."""

    url: str
    backend: str
    facts: Facts


class Unknown(ValueError):
    """No table can be written for a URL; the message names it, and what to do."""


@click.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--output", default="routing.yaml", show_default=True, help="The file to write; - prints it.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.option("--credential", metavar="VARIABLE", help="The environment variable that has the servers' API key.")
def init(urls: tuple[str, ...], output: str, force: bool, credential: str | None) -> None:
    """Ask the servers at each URL what they are and which models they serve, and write a routing table.

    vLLM, TGI, SGLang, llama.cpp and any server with OpenAI's list of models are known. Servers of the same model become
    targets of one route.
    """
    bases = [*dict.fromkeys(map(_base, urls))]
    if output != "-" and Path(output).exists() and not force:
        raise click.ClickException(f"{output} is there already: --force writes over it, --output names another file")
    key = None if credential is None else os.environ.get(credential)
    if credential is not None and not key:
        raise click.ClickException(f"--credential: the environment variable {credential} is not set")
    found = asyncio.run(_servers(bases, key))
    if wrong := [each for each in found if isinstance(each, Unknown)]:
        for each in wrong:
            click.echo(f"Error: {each}", err=True)
        raise click.exceptions.Exit(1)
    servers = [each for each in found if isinstance(each, Server)]
    text = table_of(servers, credential)
    said = [f"{server.url}: {_told(server)}, {', '.join(server.facts.models or ())}" for server in servers]
    write_table(text, output, "what the servers say", said)


def write_table(text: str, output: str, source: str, said: Sequence[str] = ()) -> None:
    """Write a table that was made of something, or print it for `-`; then what is `said` of it, and what is next.

    Raises `ClickException` for one that is none, naming its `source`, and for a file that cannot be written.
    """
    try:
        table, _ = parse_table(text, output)
    except Mistakes as error:
        raise click.ClickException(f"{source} makes no table:\n{error}") from None
    if output == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from None
    for line in said:
        click.echo(line, err=True)
    click.echo(f"{output}: routes: {len(table.routes)}; next: trunkline check {output} --probe", err=True)


def table_of(servers: Sequence[Server], credential: str | None = None) -> str:
    """A routing table in which each model is a route, and each of its servers a target."""
    routes: dict[str, list[Server]] = {}
    for server in servers:
        for model in server.facts.models or ():
            routes.setdefault(model, []).append(server)
    lines, names = [HEAD], set[str]()
    for model, its in routes.items():
        lines.append(f"  {_scalar(model)}:\n")
        if any(server.facts.loras for server in its):
            lines.append("    loras: true\n")
        lines.append("    targets:\n")
        for server in its:
            name = _name(server, model, names)
            key = f', api_key: "${{{credential}}}"' if credential else ""
            target = f"{{name: {_scalar(name)}, backend: {server.backend}, url: {json.dumps(server.url)}{key}}}"
            lines.append(f"      - {target}  # {_told(server)}\n")
    return "".join(lines)


async def _servers(urls: Sequence[str], key: str | None) -> list[Server | Unknown]:
    forwarder, room = Forwarder(LIMITS), asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> Server | Unknown:
        try:
            async with room, asyncio.timeout(ASK_SECONDS):
                return await _server(forwarder, Address("asked", url, None, key))
        except TimeoutError:
            return Unknown(f"{url}: no answer in {ASK_SECONDS:g} s")
        except Unknown as error:
            return error

    try:
        return await asyncio.gather(*map(one, urls))
    finally:
        await forwarder.close()


async def _server(forwarder: Forwarder, address: Address) -> Server:
    """Which kind of server there is: the one whose adapter is told a version, as no two look for it in one place."""
    if why := await forwarder.reach(address, QUICK):
        raise Unknown(f"{address.url} is {why}: is the server up, and are host and port right?")
    kinds = {name: registry.capabilities(name) for name in registry.installed()}
    told = await asyncio.gather(*(forwarder.describe(address, kind, QUICK) for kind in kinds.values()))
    described = {name: facts for name, facts in zip(kinds, told, strict=True) if facts is not None}
    certain = [name for name, facts in described.items() if facts.version]
    for name in (*certain, ANY_KIND):
        facts = described.get(name)
        if facts is not None and facts.models:
            return Server(address.url, name, facts)
    why = await forwarder.probe(address, kinds[ANY_KIND], QUICK)
    if why.startswith("credential"):
        given = "--credential's" if address.api_key else "--credential VARIABLE gives it one; it wants a"
        raise Unknown(f"{address.url} refuses us: {given} credential")
    raise Unknown(f"{address.url} lists no models at /v1/models ({why or 'an empty list'}): is it the URL of one?")


def _base(text: str) -> str:
    """The server's base, as a table has it, of what people type."""
    url = (text if "://" in text else f"http://{text}").rstrip("/").removesuffix("/v1").rstrip("/")
    parts = urlsplit(url)
    try:
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment:
        raise click.UsageError(f"{text!r}: expected a URL such as http://vllm-a:8000")
    if parts.username is not None or parts.password is not None:
        raise click.UsageError("a URL must not have a credential in it: --credential VARIABLE")
    return url


def _told(server: Server) -> str:
    parts = [f"{server.backend} {server.facts.version}" if server.facts.version else server.backend]
    if server.facts.context:
        parts.append(f"context {server.facts.context}")
    return ", ".join(parts)


def _name(server: Server, model: str, names: set[str]) -> str:
    """A name for the target that no other has: host and port, and the model where the server has several."""
    parts = urlsplit(server.url)
    name = f"{parts.hostname}-{parts.port}" if parts.port else f"{parts.hostname}"
    if len(server.facts.models or ()) > 1:
        name = f"{name}-{model.rpartition('/')[2]}"
    name = first = re.sub(r"[^!-~]", "-", name)[:90]
    number = 1
    while name in names:
        number += 1
        name = f"{first}-{number}"
    names.add(name)
    return name


def _scalar(text: str) -> str:
    """The text as YAML, in quotes where it needs them."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text)

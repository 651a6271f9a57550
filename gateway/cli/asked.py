"""What the targets of a table say when they are asked: whether they serve, with which credential, which models.

The questions are those that a gateway asks them all the time, put by the same code.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Final, Literal

import click
import msgspec
from msgspec import Struct, structs
from rich.console import Console

from backends import registry
from backends.api import Call, Facts
from backends.body import Body
from gateway.app.discovery import found_now
from gateway.app.reload import answer_limits
from gateway.config import Settings, Table, TargetSpec, Timeouts
from gateway.config.discovery import expanded
from gateway.targets import Target
from gateway.targets.engines import differences
from gateway.targets.health import Breaker
from gateway.targets.target import MOST_NAMED
from gateway.upstream import Forwarder

AT_ONCE: Final = 32
"""Targets that are asked at a time."""
ASK_SECONDS: Final = 10.0
"""For all questions to one target."""
FORBEARING: Final = 3.0
"""Seconds within which a target that is asked must take a connection, whatever the table says."""
ERRANDS: Final = {
    "unreachable": "is the server up, and host and port of 'url' right?",
    "timeout": "does a firewall drop packets, or is the server overloaded?",
    "credential refused": "is 'api_key' the one that the server was started with?",
    "status 404": "has 'url' a path that is not the server's, or is 'backend' another kind?",
    "cannot": "the log of the server may tell",
}
"""What to do, by how a complaint begins."""
MODEL_ERRAND: Final = {
    True: "set 'model' to one that it lists",
    False: "set 'model' to one that it lists, unless it answers to any name",
}
"""By whether the table names the model."""

Verdict = Literal["ok", "warning", "wrong"]


class Asked(Struct, frozen=True, kw_only=True):
    """One target, and what it said."""

    target: str
    route: str
    backend: str
    url: str
    verdict: Verdict
    why: str = ""
    """What is wrong, in a few words."""
    next: str = ""
    """What to do about it."""
    context: int | None = None
    """Tokens of prompt and answer together."""
    models: tuple[str, ...] = ()
    version: str = ""
    milliseconds: float | None = None
    """Until its first answer."""

    @property
    def told(self) -> str:
        """In a line, without what to do."""
        known = [f"version {self.version}" if self.version else "", f"context {self.context}" if self.context else ""]
        models = (
            f"models {', '.join(self.models[:MOST_NAMED])}" + ", ..." * (len(self.models) > MOST_NAMED)
            if self.models
            else ""
        )
        said = f"{self.target} ({self.backend} at {self.url}): {self.why or 'serves'}"
        return "; ".join(filter(None, [said, *known, models]))


async def asked(table: Table, settings: Settings, told: Callable[[Asked], None] | None = None) -> list[Asked]:
    """What each target of `table` says, in its order; `told` hears of each as soon as it has.

    Bounded by `ASK_SECONDS` for `AT_ONCE` targets. Raises `ValueError` if the proxy of the environment cannot be used.
    """
    room, load = asyncio.Semaphore(AT_ONCE), cache(registry.capabilities)
    table = expanded(table, await found_now(table))
    async with _forwarder(table) as forwarder:

        async def one(route: str, spec: TargetSpec, timeouts: Timeouts) -> tuple[str, Asked, Facts]:
            if spec.url is None:
                found = Asked(target=spec.name, route=route, backend=spec.backend, url="-", verdict="ok",
                              why="started by `trunkline serve`, not asked")  # fmt: skip
                facts = Facts()
            else:
                short = Timeouts(connect=min(timeouts.connect, FORBEARING))
                target = Target(spec, spec.url, load(spec.backend), short, Breaker(spec.name, time.monotonic),
                                time.monotonic)  # fmt: skip
                async with room:
                    found = await _ask(forwarder, target, route, asks=settings.ask_without_credential)
                facts = target.facts
            if told is not None:
                told(found)
            return found.backend, found, facts

        jobs = [one(str(path[1]), spec, route.timeouts) for path, route, spec in table.targets()]
        answers = await asyncio.gather(*jobs)
    return [*_drifting([(found, facts) for _, found, facts in answers])]


async def _ask(forwarder: Forwarder, target: Target, route: str, *, asks: bool) -> Asked:
    began, took = time.monotonic(), None
    try:
        async with asyncio.timeout(ASK_SECONDS):
            why = await complaint(forwarder, target)
            took = time.monotonic() - began
            if not why:
                target.learned(
                    await forwarder.describe(target.address, target.capabilities, target.timeouts) or Facts()
                )
                target.lists_model()
                _passes_on(target, route)
                if asks and target.spec.api_key is not None and target.spec.tls is None:
                    open_ = await forwarder.open_paths(target.address, target.capabilities, target.timeouts)
                    if open_:
                        target.warnings["unguarded"] = f"it answers {', '.join(open_)} without its credential"
    except TimeoutError:
        why = "timeout"
    except Exception as error:  # an adapter is anybody's code, a certificate may be missing
        why = f"cannot be asked: {error or type(error).__name__}"
    warnings, facts, named = target.warnings, target.facts, target.spec.model is not None
    return Asked(
        target=target.name,
        route=route,
        backend=target.spec.backend,
        url=target.address.url,
        verdict="wrong" if why or ("model" in warnings and named) else "warning" if warnings else "ok",
        why=why or "; ".join(warnings.values()),
        next=_errand(why) if why else MODEL_ERRAND[named] if "model" in warnings else "",
        context=target.spec.context or facts.context,
        models=(*(facts.models or ()), *(facts.loras or ())),
        version=facts.version or "",
        milliseconds=None if took is None else round(took * 1000, 1),
    )


def _passes_on(target: Target, route: str) -> None:
    """Warn of a target to which the route's name goes, as the table has no `model`, and that does not list it."""
    known = (*(target.facts.models or ()), *(target.facts.loras or ()))
    if target.spec.model is not None or not known or route in known:
        return
    body = Body(msgspec.json.encode({"model": route, "messages": []}))
    sent = target.capabilities.adapter.request(Call("tl-check", "chat/completions", route, body), target.address)
    if Body(sent.body).get("model", str, "") == route:
        shown = ", ".join(known[:MOST_NAMED])
        target.warnings["model"] = f"it lists no model {route!r}, which it is asked for, but {shown}"


async def complaint(forwarder: Forwarder, target: Target) -> str:
    """Why the target cannot serve, by its health route and its credential; nothing if it can."""
    address, capabilities, timeouts = target.address, target.capabilities, target.timeouts
    if capabilities.probed is None:
        why = await forwarder.reach(address, timeouts)
    else:
        why = await forwarder.probe(address, capabilities, timeouts)
    return why or await forwarder.credential(address, capabilities, timeouts)


def _errand(why: str) -> str:
    return next((errand for begin, errand in ERRANDS.items() if why.startswith(begin)), "see the log of the server")


def _drifting(found: list[tuple[Asked, Facts]]) -> Iterator[Asked]:
    """All of them; those of a route whose targets differ where they should be alike say so."""
    of_route: dict[str, list[tuple[str, Facts]]] = {}
    for each, facts in found:
        of_route.setdefault(each.route, []).append((each.backend, facts))
    for each, _ in found:
        differ = differences(of_route[each.route])
        if each.verdict == "ok" and differ and each.url != "-":
            why = f"serves, but the targets of route {each.route!r} differ in {', '.join(differ)}"
            yield structs.replace(each, verdict="warning", why=why)
        else:
            yield each


@asynccontextmanager
async def _forwarder(table: Table) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(answer_limits(table))
    try:
        forwarder.origins.bind(table)
        yield forwarder
    finally:
        await forwarder.close()


COLOURS: Final[Mapping[Verdict, str]] = {"ok": "green", "warning": "yellow", "wrong": "red"}


def tell(verdict: Verdict, *texts: str) -> None:
    """One line: the verdict, what there is to say, and what to do about it."""
    said = "; ".join(text.rstrip(".") for text in texts if text)
    click.echo(f"{click.style(f'{verdict:<8}', fg=COLOURS[verdict])}{said}")


def ask_with_progress(table: Table, settings: Settings) -> list[Asked]:
    """As `asked`; a terminal shows how far it is. Raises `click.ClickException` where nobody can be asked."""
    number = len([*table.targets()])
    try:
        with _progress(number) as told:
            return asyncio.run(asked(table, settings, told))
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _progress(number: int) -> Iterator[Callable[[Asked], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    done = 0
    with Console(stderr=True, highlight=False).status(f"asking {number} targets") as status:

        def told(found: Asked) -> None:
            nonlocal done
            done += 1
            status.update(f"asked {done} of {number} targets, the last {found.target}")

        yield told


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of all, the one that counts."""
    order: tuple[Verdict, ...] = ("ok", "warning", "wrong")
    return max(verdicts, key=order.index, default="ok")

"""`trunkline explain`: where a call would go, and why not elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec
from msgspec import Struct

from backends import registry
from backends.api import Call, Facts
from backends.body import Body, Malformed
from gateway.admin.targets import reports
from gateway.auth import authorize, may_use
from gateway.auth.rights import is_good
from gateway.auth.token import parse
from gateway.cli.session import command, console
from gateway.cli.tables import rows
from gateway.config import Mistakes, Settings, load_table
from gateway.core.errors import BadRequest, ContextTooLong, Forbidden, NoRoute, NoTarget
from gateway.core.types import KeyRecord, Report, TargetOrder, TargetState
from gateway.limits.estimate import Estimator
from gateway.routing import Builder, Route, Routes, TargetSlots
from gateway.routing.explain import Candidacy
from gateway.routing.policies.api import Prompt
from gateway.store import Store, StoreDown
from gateway.targets import Target
from gateway.targets.load import LoadReport

COLUMNS = ("", "target", "route", "tier", "cost", "cached", "reason", "refused", "running", "waiting", "prefill")


A_WHILE = 60.0
"""Seconds, longer than it takes to explain."""


class Answer(Struct):
    """What `--json` prints."""

    model: str
    route: str
    policy: str
    tokens: int
    """Of the prompt, estimated."""
    gateways: int
    """How many told how their targets stand."""
    picked: str | None
    refused: str
    """What the caller would be told instead, such as "401: ..."; empty: it would be answered, or wait."""
    candidates: list[Candidacy]


@click.command()
@click.option("--model", help="The model's name, as a client would send it; default: the body's.")
@click.option("--key", "key_id", help="A virtual key or its id: for its tenant, its priority and what it may use.")
@click.option("--body", type=click.File("rb"), help="A file with a request body in JSON; - reads standard input.")
@click.option("--routing", type=click.Path(dir_okay=False), help="The routing table. [default: routing.yaml]")
@command
async def explain(store: Store, settings: Settings, as_json: bool, **options: Any) -> None:
    """Show where a call would go now: the candidates, what each would cost, what was left out and why.

    Loads and states are those that running gateways report. What their policies remember of earlier calls is not known
    here: the header x-trunkline-explain with an admin key as its value asks a gateway itself.
    """
    call = _call(options["model"], options["body"])
    key = await _key(store, options["key_id"])
    try:
        table, _ = load_table(Path(options["routing"] or settings.routing))
    except Mistakes as error:
        raise click.ClickException(str(error)) from None
    launched = {target.name: "http://launched" for _, _, target in table.targets() if target.launch is not None}
    routes = Builder(launched, cache(registry.capabilities), TargetSlots(store.limits), time.monotonic).build(table)
    said = await _reports(store, set(routes.targets))
    _apply(routes, said)
    routes.ordered({order.id: order for order in await store.records.all(TargetOrder)}, time.time())
    try:
        route = routes.find(call.model, lambda *names: may_use(key, *names))
    except NoRoute as error:
        raise click.ClickException(error.message) from None
    refused = _refused(key, call, route)
    with suppress(BadRequest):
        call = route.ruled(call, key.body)
    tokens = Estimator().estimate(call, key.id, route.name).input
    prompt = routes.read(route, call, {}, key, tokens)
    found = routes.explain(route, prompt)
    picked = next((each.target for each in found if each.picked), None)
    refused = refused or ("" if picked is not None else _nowhere(routes, route, prompt))
    answer = Answer(call.model, route.name, found[0].policy, tokens, len(said), picked, refused, found)
    if as_json:
        click.echo(msgspec.json.encode(answer))
        return
    _show(answer)


def _refused(key: KeyRecord, call: Call, route: Route) -> str:
    """Why the key's call is refused wherever its targets are."""
    if key.id and not is_good(key, time.time()):
        return f"401: the key is {'revoked' if key.revoked is not None else 'expired'}"
    try:
        authorize(key, call.endpoint, call.model, route.name)
        route.ruled(call, key.body)
    except (Forbidden, BadRequest) as error:
        return f"{error.status}: {error.message}"
    return ""


def _nowhere(routes: Routes, route: Route, prompt: Prompt) -> str:
    """What a call is told that no target can take now; nothing if it waits for room, or is held."""
    if routes.waits(route, prompt):
        return ""
    if route.hold is not None and True in [each.waits_for(prompt) for each in routes.chain(route)]:
        return ""
    try:
        for each in reversed([*routes.chain(route)]):
            each.chooser.fitted(prompt)
    except ContextTooLong as error:
        return f"{error.status}: {error.message}"
    return f"{NoTarget.status}: no target of {route.name!r} can take the call now"


def _call(model: str | None, file: BinaryIO | None) -> Call:
    try:
        body = Body(file.read() if file is not None else b'{"messages":[]}')
        named = body.get("model", str, "")
    except Malformed as error:
        raise click.UsageError(f"--body: {error}") from None
    if not (model or named):
        raise click.UsageError("say which model: --model NAME, or a --body that has one")
    if "messages" in body.fields:
        endpoint = "chat/completions"
    else:
        endpoint = "completions" if "prompt" in body.fields else "embeddings"
    return Call("tl-explain", endpoint, model or named, body)  # type: ignore[arg-type] # one of the three


async def _key(store: Store, id: str | None) -> KeyRecord:
    """The key of this id or token; without one a key that may do all."""
    if id is None:
        return KeyRecord(id="", name="anybody", secrets=(), created=0.0)
    with suppress(ValueError):  # it is an id
        id, _ = parse(id)
    record = await store.records.get(KeyRecord, id)
    if record is None:
        raise ValueError("there is no such key, its calls are refused with 401; `trunkline keys list` shows all")
    return record


async def _reports(store: Store, targets: set[str]) -> list[Report]:
    """What running gateways say that serve such a table; nothing where none runs."""
    try:
        found = reports(await store.board.reports())
    except StoreDown:
        return []
    return [report for _, report in found if any(state.name in targets for state in report.targets)]


def _apply(routes: Routes, said: Sequence[Report]) -> None:
    """Let the targets stand as the gateways say, all of their calls together."""
    for name, target in routes.targets.items():
        states = [state for report in said for state in report.targets if state.name == name]
        if not states:
            continue
        loads = [LoadReport(state.prefill, state.waiting, state.running, 0) for state in states]
        target.load.apply({str(number): (each, 0.0) for number, each in enumerate(loads)}, time.monotonic())
        _stand(target, states)


def _stand(target: Target, states: Sequence[TargetState]) -> None:
    conditions = [state.state for state in states]
    target.learned(Facts(context=max(state.context or 0 for state in states) or None))
    if all(condition == "down" for condition in conditions):
        if states[0].why.startswith("asleep"):
            target.sleeps(True)
        else:
            target.probed(states[0].why or "down")
    if all(condition == "ejected" for condition in conditions):
        target.breaker.eject(A_WHILE)
    for condition in ("resting", "full"):
        if all(each == condition for each in conditions):
            target.rest(A_WHILE, condition)


def _show(answer: Answer) -> None:
    lines: list[tuple[object, ...]] = [
        (
            "->" if each.picked else "",
            each.target,
            each.route,
            each.tier,
            "" if each.cost is None else f"{each.cost:g}",
            each.cached or "",
            each.reason,
            each.refused,
            each.running,
            each.waiting,
            each.pending,
        )
        for each in answer.candidates
    ]
    rows(COLUMNS, lines, "The route has no targets.")
    out = console()
    seen = f"as {answer.gateways} gateway workers report" if answer.gateways else "no gateway reports: all idle"
    if answer.picked is None:
        out.print(f"No target can take it now ({seen}).")
    else:
        out.print(
            f"{answer.model} is route {answer.route}; for about {answer.tokens} prompt tokens "
            f"{answer.policy} picks {answer.picked} ({seen}).",
            markup=False,
        )
    if answer.refused:
        out.print(f"The call would be refused with {answer.refused}.", markup=False)

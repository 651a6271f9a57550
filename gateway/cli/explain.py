"""`trunkline explain`: where a call would go, and why not elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec
from msgspec import Struct

from backends import registry
from backends.api import Call, Facts
from backends.body import Body, Malformed
from backends.endpoints import FORMS, PATHS, STREAMED, Endpoint
from gateway.admin.targets import reports
from gateway.answers.taking_part import obstacle
from gateway.app.reload import prices, rules
from gateway.auth import may_use
from gateway.cli.refusals import call_of, cannot, key_of, nowhere, told
from gateway.cli.session import command, console
from gateway.cli.tables import rows
from gateway.config import Mistakes, Settings, Table, load_table
from gateway.config.discovery import expanded, reported
from gateway.core.dimensions import BUDGET
from gateway.core.errors import NoRoute, too_many_prompts
from gateway.core.types import KeyRecord, Report, TargetOrder, TargetState, Tenant
from gateway.limits.estimate import Estimate, Estimator
from gateway.limits.outlook import LimitLook, Outlook, outlook
from gateway.limits.plan import Planner
from gateway.routing import Builder, Routes, TargetSlots
from gateway.routing.explain import Candidacy
from gateway.routing.filters import refusal
from gateway.store import Store, StoreDown
from gateway.targets import Target
from gateway.targets.load import LoadReport

ENDPOINTS = sorted({*PATHS.values()} - FORMS)
LIMIT_COLUMNS = ("limit of", "what", "is", "the call reserves", "left")
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
    last_resort: str
    """What is wrong with the picked target, which is asked because no other can be: it may fail. Empty: nothing."""
    refused: str
    """What the caller would be told instead, such as "401: ..."; empty: it would be answered, or wait."""
    sources: tuple[str, ...]
    """The networks that the key may be used from; none: from anywhere."""
    limits: list[LimitLook]
    """How each limit of the call stands."""
    shared: bool
    """The limits are those of all gateways; else only budgets are known here, as far as the ledger has them."""
    candidates: list[Candidacy]
    cache: str | None = None
    """Why its answer is not looked for among those that are kept; empty: it is; None: the route keeps none."""


@click.command()
@click.option("--model", help="The model's name, as a client would send it; default: the body's.")
@click.option("--key", "key_id", help="A virtual key or its id: for its tenant, its priority and what it may use.")
@click.option("--source", help="The address that the call comes from, for keys that are for some networks.")
@click.option("--endpoint", type=click.Choice(ENDPOINTS), help="What is asked for; default: what takes such a body.")
@click.option("--body", type=click.File("rb"), help="A file with a request body in JSON; - reads standard input.")
@click.option("--routing", type=click.Path(dir_okay=False), help="The routing table. [default: routing.yaml]")
@command
async def explain(store: Store, settings: Settings, as_json: bool, **options: Any) -> None:
    """Show where a call would go now: the candidates, what each would cost, what was left out and why.

    Loads and states are those that running gateways report. What their policies remember of earlier calls is not known
    here, and neither is what they learned of prompts and answers: the header x-trunkline-explain with an admin key as
    its value asks a gateway itself.
    """
    call = _call(options["model"], options["body"], options["endpoint"])
    key, refused = await key_of(store, settings, options["key_id"], options["source"])
    try:
        table, _ = load_table(Path(options["routing"] or settings.routing))
    except Mistakes as error:
        raise click.ClickException(str(error)) from None
    if not refused and call.asked.prompts > table.bodies.prompts:
        refused = told(too_many_prompts(call, table.bodies.prompts))
    launched = {target.name: "http://launched" for _, _, target in table.targets() if target.launch is not None}
    said = await _reports(store)
    table = expanded(table, reported(table, (state.name for report in said for state in report.targets)))
    routes = Builder(launched, cache(registry.capabilities), TargetSlots(store.limits), time.monotonic).build(table)
    said = [report for report in said if any(state.name in routes.targets for state in report.targets)]
    _apply(routes, said)
    routes.ordered({order.id: order for order in await store.records.all(TargetOrder)}, time.time())
    try:
        route = routes.find(call.model, lambda *names: may_use(key, *names), call.endpoint)
    except NoRoute as error:
        raise click.ClickException(f"the call would be refused with {refused or told(error)}") from None
    call, unruly = call_of(key, call, route)
    estimate = Estimator().estimate(call, key.id, route.name)
    limits = await _limits(store, table, key, call, route.name, estimate)
    read = partial(routes.read, call=call, headers={}, key=key, tokens=estimate.input)
    found, prompt = routes.explain(route, read), read(route)
    picked = next((each.target for each in found if each.picked), None)
    last = "" if picked is None else refusal(prompt, routes.targets[picked], time.monotonic()) or ""
    refused = refused or unruly or ("" if limits.refusal is None else told(limits.refusal))
    refused = refused or (nowhere(routes, route, prompt) if picked is None else cannot(call, routes.targets[picked]))
    answer = Answer(
        model=call.model,
        route=route.name,
        policy=found[0].policy,
        tokens=estimate.input,
        gateways=len(said),
        picked=picked,
        last_resort=last,
        refused=refused,
        sources=key.sources,
        limits=limits.limits,
        shared=settings.redis_url is not None,
        candidates=found,
        cache=None if route.answers is None else obstacle(call, route.answers.spec, ""),
    )
    if as_json:
        click.echo(msgspec.json.encode(answer))
        return
    _show(answer)


async def _limits(store: Store, table: Table, key: KeyRecord, call: Call, route: str, estimate: Estimate) -> Outlook:
    """What the call's limits say now; anybody has none."""
    if not key.id:
        return Outlook([], None)
    tenant = await store.records.get(Tenant, key.tenant)
    terms = Planner(rules(table), prices(table)).terms(key, tenant, route)
    return await outlook(store.limits, terms, call, estimate)


def _call(model: str | None, file: BinaryIO | None, endpoint: Endpoint | None) -> Call:
    try:
        body = Body(file.read() if file is not None else b'{"messages":[]}')
        named, streams = body.get("model", str, ""), body.get("stream", bool, False)
    except Malformed as error:
        raise click.UsageError(f"--body: {error}") from None
    if not (model or named):
        raise click.UsageError("say which model: --model NAME, or a --body that has one")
    meant = endpoint or _meant(body)
    return Call("tl-explain", meant, model or named, body, stream=streams and meant in STREAMED)


def _meant(body: Body) -> Endpoint:
    """The endpoint that takes such a body."""
    if "messages" in body.fields:
        return "chat/completions"
    return "completions" if "prompt" in body.fields else "embeddings"


async def _reports(store: Store) -> list[Report]:
    """What running gateways say; nothing where none runs."""
    try:
        return [report for _, report in reports(await store.board.reports())]
    except StoreDown:
        return []


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
    rows(COLUMNS, lines, "The route has no targets.", spare=("prefill", "waiting", "running", "tier"))
    out = console()
    if answer.limits:
        rows(LIMIT_COLUMNS, [_limit(each, answer.shared) for each in answer.limits], "")
    if not answer.shared and any(each.name != BUDGET for each in answer.limits):
        out.print("Without Redis, what is left of limits other than budgets is known to the gateway alone.")
    if answer.sources:
        out.print(f"The key is for calls from {', '.join(answer.sources)} only.", markup=False)
    seen = f"as {answer.gateways} gateway workers report" if answer.gateways else "no gateway reports: all idle"
    if answer.picked is None:
        out.print(f"No target can take it now ({seen}).")
    else:
        out.print(
            f"{answer.model} is route {answer.route}; for about {answer.tokens} prompt tokens "
            f"{answer.policy} picks {answer.picked} ({seen}).",
            markup=False,
        )
    if answer.cache is not None:
        takes_part = f"takes no part in the response cache: {answer.cache}"
        out.print(f"The call {takes_part if answer.cache else 'is looked up in the response cache'}.", markup=False)
    if answer.last_resort and not answer.refused:
        out.print(f"It is {answer.last_resort}: it is asked because no other can be, and the call may fail.")
    if answer.refused:
        out.print(f"The call would be refused with {answer.refused}.", markup=False)


def _limit(each: LimitLook, shared: bool) -> tuple[object, ...]:
    """A line of the table of limits; money as the currency has it."""

    def shown(amount: int) -> str:
        return f"{amount / 1e6:.6g}" if each.unit == "cost" else f"{amount}"

    what = f"{each.name} {each.period} {each.unit}" if each.period else each.name
    left = shown(each.left) if shared or each.name == BUDGET else ""
    return each.scope, what, shown(each.limit), shown(each.reserves), left

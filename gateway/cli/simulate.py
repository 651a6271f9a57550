"""`trunkline simulate`: policies compared on a trace or a built-in workload, before any GPU is bought."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.cli.options import Quantity
from gateway.cli.tables import rows
from gateway.config import Mistakes, RouteSpec, load_table
from gateway.config.units import COUNT
from gateway.routing.policies import registry
from gateway.simulate import plot, study, trace, workloads
from gateway.simulate.calls import Call, count
from gateway.simulate.overload import overloaded

REPLICAS: Final = 8
"""Without a table."""
OVERLOADED: Final = "More comes than the targets can read: give more --replicas or a smaller --load."
COLUMNS: Final = ("policy", "TTFT mean, s", "p50, s", "p95, s", "p99, s", "hit ratio", "imbalance", "queued")


class Scene(msgspec.Struct, frozen=True):
    """The calls of a simulation, and what to say of them."""

    calls: list[Call]
    seconds: float
    about: dict[str, Any]


@click.command()
@click.argument("routing", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--route", help="The route of ROUTING whose targets are simulated. [default: its first]")
@click.option("--trace", "trace_file", type=click.Path(dir_okay=False, path_type=Path), help=trace.HELP)
@click.option("--workload", metavar="NAME", help="A built-in workload; `--workload list` describes them.")
@click.option("--calls-per-second", type=click.FloatRange(0, min_open=True), help="Of a built-in workload.")
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=workloads.SECONDS,
    show_default=True,
    help="How long a built-in workload lasts.",
)
@click.option(
    "--skip",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="The part of the time that is not counted; 0: figures are those of a cold start.",
)
@click.option(
    "--load",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Calls come so many times as fast.",
)
@click.option(
    "--replicas", type=click.IntRange(1, 1024), help="Targets. [default: those of the route; without ROUTING 8]"
)
@click.option(
    "--gateways",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Gateways, which calls come to at random.",
)
@click.option(
    "--share-ms",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Milliseconds between exchanges of gateways; 0: none.",
)
@click.option(
    "--kv-tokens",
    type=Quantity(COUNT, positive=True),
    help="Tokens a target's prefix cache holds. [default: as ROUTING says, else 512k]",
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=study.RATE,
    show_default=True,
    help="Prompt tokens a second that a target of weight 1 reads.",
)
@click.option(
    "--policies",
    default=",".join(study.POLICIES),
    show_default=True,
    help="Installed policies, `oracle`, which knows what is in all caches, and `cache_aware`, as in sglang's router.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of all chance: the same seed, the same figures.")
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the distribution of TTFT into a .png or .svg file; needs the extra `plot`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in one line; times in seconds.")
def simulate(**options: Any) -> None:
    """Compare routing policies on simulated targets: those of a route of the table ROUTING, or as many as --replicas.

    Calls come from a trace (--trace) or a built-in workload (--workload, default: mixture). Real policies route them
    over engines that batch calls, read prompts in chunks and remember prefixes, as vLLM does. TTFT is the time to the
    first token, in seconds; hit ratio the part of all prompt tokens that was cached; imbalance the calls at the
    busiest target over the mean; queued counts calls that waited in a gateway.
    """
    if options["workload"] == "list":
        rows(("workload", "calls/s", ""), [(each.name, each.rate, each.about) for each in workloads.WORKLOADS], "")
        return
    policies = _policies(options["policies"])
    if options["plot_file"] is not None:
        _or_usage(plot.NoPlot, plot.ready, options["plot_file"])
    fleet = _fleet(options)
    scene = _scene(options)
    runs = _run(scene, fleet, policies, options["seed"])
    shown = [run.outcome for run in runs]
    about = {**scene.about, **_about(fleet, options)}
    if options["plot_file"] is not None:
        _or_usage(plot.NoPlot, plot.draw, runs, _title(about), options["plot_file"])
    if options["as_json"]:
        click.echo(json.dumps({"policies": msgspec.to_builtins(shown), **about}))
        return
    click.echo(_title(about))
    if too_much := overloaded(scene.calls, scene.seconds, fleet, shown):
        click.echo(f"Overloaded: {', '.join(too_much)}.\n{OVERLOADED}")
    rows(COLUMNS, [_row(outcome) for outcome in shown], "")


def _policies(text: str) -> list[str]:
    policies = [name for part in text.split(",") if (name := part.strip())]
    if not policies or study.unknown(policies):
        allowed = ", ".join([*registry.installed(), study.ORACLE, study.CACHE_AWARE])
        wrong = ", ".join(map(repr, study.unknown(policies))) or "nothing"
        raise click.BadParameter(f"{wrong}: expected one or more of {allowed}", param_hint="--policies")
    return list(dict.fromkeys(policies))


def _fleet(options: dict[str, Any]) -> study.Fleet:
    listed: Sequence[study.Member] = ()
    if options["routing"] is not None:
        listed = _members(options["routing"], options["route"])
    elif options["route"] is not None:
        raise click.UsageError("--route names a route of ROUTING: give the table, too")
    number = options["replicas"] or len(listed) or REPLICAS
    return study.Fleet(
        study.members(number, listed, options["kv_tokens"]),
        options["gateways"],
        options["share_ms"] / 1000,
        options["rate"],
        options["skip"],
    )


def _members(file: Path, name: str | None) -> list[study.Member]:
    try:
        table, _ = load_table(file)
    except Mistakes as found:
        for mistake in found.found:
            click.echo(str(mistake), err=True)
        sys.exit(1)
    route: RouteSpec | None = next(iter(table.routes.values()), None) if name is None else table.routes.get(name)
    if route is None:
        raise click.BadParameter(f"{name!r}: expected one of {', '.join(table.routes)}", param_hint="--route")
    return [
        study.Member(target.name, target.weight, target.kv_tokens or study.KV_TOKENS)
        for target in route.targets
        if target.canary is None  # it has conversations of its own
    ]


def _scene(options: dict[str, Any]) -> Scene:
    if options["trace_file"] is not None:
        if options["workload"] is not None or options["calls_per_second"] is not None:
            raise click.UsageError("--trace brings its own calls: leave --workload and --calls-per-second out")
        lines = _or_usage(trace.BadTrace, trace.read, options["trace_file"])
        calls, seconds = trace.calls(lines, options["load"], options["seed"])
        return Scene(calls, seconds, {"trace": options["trace_file"].name})
    name = options["workload"] or "mixture"
    try:
        workload = workloads.find(name)
    except KeyError:
        allowed = ", ".join(each.name for each in workloads.WORKLOADS)
        raise click.BadParameter(f"{name!r}: expected one of {allowed}", param_hint="--workload") from None
    rate = (options["calls_per_second"] or workload.rate) * options["load"]
    calls = workloads.calls(workload, rate, options["seconds"], options["seed"])
    return Scene(calls, options["seconds"], {"workload": workload.name, "calls_per_second": rate})


def _run(scene: Scene, fleet: study.Fleet, policies: Sequence[str], seed: int) -> list[study.Run]:
    with _progress(policies, count(scene.calls)) as watch:
        return [study.simulate(scene.calls, scene.seconds, fleet, policy, seed, watch) for policy in policies]


@contextmanager
def _progress(policies: Sequence[str], total: int) -> Iterator[Callable[[str, int], None] | None]:
    """A bar for each policy, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks = {policy: progress.add_task(policy, total=total) for policy in policies}
        yield lambda policy, arrived: progress.update(tasks[policy], completed=arrived)


def _about(fleet: study.Fleet, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "replicas": len(fleet.members),
        "gateways": fleet.gateways,
        "share_ms": options["share_ms"],
        "kv_tokens": max(member.kv_tokens for member in fleet.members),
        "rate": fleet.rate,
        "skip": fleet.skip,
        "load": options["load"],
        "seed": options["seed"],
    }


def _title(about: dict[str, Any]) -> str:
    calls = (
        f"trace {about['trace']}"
        if "trace" in about
        else f"{about['workload']} at {about['calls_per_second']:g} calls/s"
    )
    kv = COUNT.shown(about["kv_tokens"])
    return (
        f"{calls}, load x{about['load']:g}: {about['replicas']} targets with {kv} tokens of cache, "
        f"{about['gateways']} gateways, exchange each {about['share_ms']} ms, seed {about['seed']}"
    )


def _row(outcome: study.Outcome) -> tuple[str, ...]:
    times = (outcome.ttft_mean, outcome.ttft_p50, outcome.ttft_p95, outcome.ttft_p99)
    return (
        outcome.policy,
        *(f"{seconds:.3f}" if seconds < 10 else f"{seconds:.1f}" for seconds in times),
        f"{outcome.hit_ratio:.2f}",
        f"{outcome.imbalance:.2f}",
        str(outcome.queued),
    )


def _or_usage(error: type[Exception], work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns; its error ends the command with a message."""
    try:
        return work(*arguments)
    except error as failed:
        raise click.ClickException(str(failed)) from None

"""`trunkline doctor`: what a gateway needs around it, looked at one by one, and what to do about what is wrong."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec
from msgspec import Struct

from gateway import __version__
from gateway.app.worker import most_files
from gateway.batches.storage import examine_storage
from gateway.cli.asked import Verdict, ask_with_progress, tell, worst
from gateway.cli.serve import cache_trouble, one_folder
from gateway.cli.session import CLI_TIMEOUT
from gateway.config import Mistakes, Settings, load_table
from gateway.config.caching import without_cache
from gateway.config.settings import unknown
from gateway.config.weak_secrets import weak_secrets
from gateway.store import RedisSeen, StoreDown, examine, examine_redis, prepare_state, shown

FEW_FILES: Final = 4096
"""Descriptors; a call has two, so this is less than two thousand calls at once."""
SLOW_MILLISECONDS: Final = 5.0
"""Each call waits for Redis once before its target is asked."""
CLOCK_SECONDS: Final = 1.0
"""Expiry of keys goes by a gateway's clock, limits and budgets by that of Redis."""


class Found(Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    told: str
    next: str = ""
    """What to do about it; empty: nothing."""


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False), metavar="[TABLE]")
@click.option("--redis-url", help="Where keys and limits live. [default: TRUNKLINE_REDIS_URL, else the state file]")
@click.option("--state", type=click.Path(dir_okay=False), help="The state file of a gateway without Redis.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(file: str | None, redis_url: str | None, state: str | None, as_json: bool) -> None:
    """Look at all that a gateway needs: settings, Redis, clocks, this machine, the table TABLE and its targets.

    TABLE: a routing table (default: TRUNKLINE_ROUTING, else routing.yaml). Run it where the gateway runs, with its
    environment. Nothing is changed. The exit status is 1 if something is wrong; warnings alone leave it 0.
    """
    found: list[Found] = []

    def say(each: Found) -> None:
        found.append(each)
        if not as_json:
            tell(each.verdict, f"{each.what}: {each.told}", each.next)

    for each in _everything(file, redis_url, state):
        say(each)
    verdict = worst(each.verdict for each in found)
    if as_json:
        click.echo(json.dumps({"ok": verdict != "wrong", "found": msgspec.to_builtins(found)}))
    else:
        counts = [sum(each.verdict == kind for each in found) for kind in ("wrong", "warning")]
        click.echo(f"wrong: {counts[0]}, warnings: {counts[1]}, looked at: {len(found)}")
    sys.exit(verdict == "wrong")


def _everything(file: str | None, redis_url: str | None, state: str | None) -> Iterator[Found]:
    yield Found(what="versions", verdict="ok", told=f"trunkline {__version__}, Python {platform.python_version()}")
    yield _open_files()
    try:
        settings = Settings.read(redis_url=redis_url, state=state, routing=file)
    except ValueError as error:
        yield Found(what="settings", verdict="wrong", told=str(error), next="correct the variable, then run this again")
        return
    yield from _settings(settings)
    yield from _stores(settings)
    yield from _table(settings)


def _open_files() -> Found:
    """A worker raises its own limit as far as it may."""
    most = most_files()
    told = f"a worker may have {most} open, which is enough for about {most // 2} calls at once"
    if most >= FEW_FILES:
        return Found(what="open files", verdict="ok", told=told)
    more = "raise it: `ulimit -Hn 65536`, LimitNOFILE=65536 in a systemd unit, --ulimit nofile=65536 for a container"
    return Found(what="open files", verdict="warning", told=told, next=more)


def _settings(settings: Settings) -> Iterator[Found]:
    wrong = [*_refused(settings)]
    for told in wrong:
        yield Found(what="settings", verdict="wrong", told=told, next="`trunkline serve` refuses to start with it")
    for name in unknown():
        told = f"{name} is no setting; nothing reads it but a table that refers to it"
        yield Found(what="settings", verdict="warning", told=told, next="docs/reference.md has all settings")
    for weak in () if wrong else weak_secrets(settings):
        yield Found(what="settings", verdict="warning", told=weak, next="make one with `openssl rand -hex 32`")
    if not settings.peppers:
        told, more = (
            "TRUNKLINE_PEPPERS is not set: keys are hashed without a pepper",
            "docs/install.md tells how to set it",
        )
        yield Found(what="settings", verdict="warning", told=told, next=more)
    if folder := one_folder(settings):
        yield Found(what="files", verdict="warning", told=folder, next="s3://, gs:// or az:// need no shared folder")
    if not wrong:
        yield Found(what="settings", verdict="ok", told="all can be read")


def _examine_files(settings: Settings) -> None:
    if settings.files:
        examine_storage(settings.files)


def _refused(settings: Settings) -> Iterator[str]:
    """What a gateway does not start with."""
    checks = (settings.pepper_versions, settings.admin_digest, partial(_examine_files, settings))
    for check in checks:
        try:
            check()
        except ValueError as error:
            yield str(error)
    if settings.workers > 1 and settings.redis_url is None:
        yield f"TRUNKLINE_WORKERS={settings.workers}: more than one needs TRUNKLINE_REDIS_URL"


def _stores(settings: Settings) -> Iterator[Found]:
    urls = {"Redis": settings.redis_url, "Redis of records": settings.records_url}
    for name, url in urls.items():
        if url is None:
            continue
        try:
            examine(url)
            seen = asyncio.run(examine_redis(url, CLI_TIMEOUT))
        except ValueError as error:
            yield Found(what=name, verdict="wrong", told=str(error), next="correct its URL")
        except StoreDown as error:
            more = "is it started, is the URL right, may this host reach it, is its password the one in the URL?"
            yield Found(what=name, verdict="wrong", told=str(error), next=more)
        else:
            yield from _redis(name, seen)
    if settings.redis_url is None:
        yield _state(settings)
    yield from _cache(settings)


def _redis(name: str, seen: RedisSeen) -> Iterator[Found]:
    version = f"version {seen.version}" if seen.version else "its version is not told to this user"
    slow, old = seen.milliseconds > SLOW_MILLISECONDS, seen.is_old
    told = f"{seen.where} answers in {seen.milliseconds:g} ms, {version}"
    more = "6.2 or later is needed" if old else "every call waits for it once: put it nearer" if slow else ""
    yield Found(what=name, verdict="wrong" if old else "warning" if slow else "ok", told=told, next=more)
    if seen.evicts:
        told, more = f"maxmemory-policy is {seen.policy}: it may evict keys and counters", "set it to noeviction"
        yield Found(what=name, verdict="wrong", told=told, next=more)
    elif not seen.policy:
        told, more = "maxmemory-policy is not told to this user", "look that it is noeviction, or allow +info"
        yield Found(what=name, verdict="warning", told=told, next=more)
    else:
        yield Found(what=name, verdict="ok", told=f"maxmemory-policy is {seen.policy}")
    if seen.persistent is False:
        told, more = "it keeps no append-only file: a restart loses keys and limits", "set `appendonly yes`"
        yield Found(what=name, verdict="warning", told=told, next=more)
    if seen.denied:
        told = f"its user may not {', '.join(seen.denied)}"
        yield Found(what=name, verdict="wrong", told=told, next="docs/security.md has the rules for each role")
    else:
        yield Found(what=name, verdict="ok", told="its user may do what a gateway does")
    ahead = abs(seen.clock_ahead)
    told = f"that of {name} is {ahead:g} s {'ahead of' if seen.clock_ahead > 0 else 'behind'} ours"
    more = "" if ahead < CLOCK_SECONDS else "keys expire by our clock and budgets end by its: run NTP on both machines"
    yield Found(what="clock", verdict="warning" if more else "ok", told=told, next=more)


def _state(settings: Settings) -> Found:
    path = settings.state_path
    if not path.with_suffix(".db").exists():
        return Found(what="state file", verdict="ok", told=f"{path} is not there yet; `trunkline serve` makes it")
    try:
        return Found(what="state file", verdict="ok", told=f"no Redis; keys are in {prepare_state(path)}")
    except StoreDown as error:
        return Found(what="state file", verdict="wrong", told=str(error), next="TRUNKLINE_STATE names another file")


def _cache(settings: Settings) -> Iterator[Found]:
    if not settings.cache_url:
        return
    try:
        told = cache_trouble(settings)
    except ValueError as error:
        yield Found(what="response cache", verdict="wrong", told=str(error), next="docs/caching.md has what it needs")
        return
    yield Found(what="response cache", verdict="warning" if told else "ok", told=told or shown(settings.cache_url))


def _table(settings: Settings) -> Iterator[Found]:
    try:
        table, warnings = load_table(Path(settings.routing), look_up=True)
    except Mistakes as error:
        for mistake in error.found:
            yield Found(what="table", verdict="wrong", told=str(mistake))
        return
    for mistake in warnings:
        yield Found(what="table", verdict="wrong" if mistake.needed else "warning", told=str(mistake))
    for missing in without_cache(table, settings.cache_url):
        yield Found(what="table", verdict="wrong", told=missing)
    told = f"{settings.routing}; routes: {len(table.routes)}, targets: {len([*table.targets()])}"
    yield Found(what="table", verdict="ok", told=told)
    for each in ask_with_progress(table, settings):
        yield Found(what="target", verdict=each.verdict, told=each.told, next=each.next)

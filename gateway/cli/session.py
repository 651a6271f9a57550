"""What commands on the store have in common: open it, work, say what failed in a sentence, print."""

from __future__ import annotations

import asyncio
import functools
import getpass
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import click
import msgspec
from rich.console import Console

from gateway.admin import Registrar
from gateway.config import Settings
from gateway.core.clock import SystemClock
from gateway.store import Conflict, Store, StoreDown, open_store

CLI_TIMEOUT = 5.0
"""Seconds; a person waits longer for Redis than a call does."""

WHOLE_LINES = 10_000
"""Columns of a pipe: more than any line has."""

_NOUNS = {"keys": "key", "tenants": "tenant", "admin": "admin key", "batches": "batch"}


def command(work: Callable[..., Awaitable[Any]]) -> Callable[..., None]:
    """Run `work(store, settings, as_json, **options)` with an open store, and turn its failures into messages."""

    @click.option("--redis-url", help="Where the keys live; default: TRUNKLINE_REDIS_URL, else the state file.")
    @click.option("--state", type=click.Path(dir_okay=False), help="The state file of a gateway without Redis.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @functools.wraps(work)
    def run(redis_url: str | None, state: str | None, as_json: bool, **options: Any) -> None:
        async def session() -> Any:
            settings = Settings.read(redis_url=redis_url, state=state)
            store = open_store(settings.redis_url, settings.state_path, CLI_TIMEOUT, records_url=settings.records_url)
            await store.open()
            try:
                return await work(store, settings, as_json, **options)
            finally:
                await store.close()

        if logging.lastResort is not None:
            logging.lastResort.addFilter(_is_not_said_below)
        try:
            asyncio.run(session())
        except StoreDown as error:
            raise click.ClickException(f"the key store cannot be used: {error}") from None
        except Conflict:
            raise click.ClickException(
                "somebody else changed it at the same moment; look at it and try again"
            ) from None
        except KeyError as error:
            raise click.ClickException(_missing(error.args[0])) from None
        except msgspec.ValidationError as error:
            raise click.ClickException(_wrong(error)) from None
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from None

    return run


def _is_not_said_below(record: logging.LogRecord) -> bool:
    """A store that cannot be used is what the command says itself, once."""
    return not record.getMessage().startswith(("Redis does not answer", "Redis does not allow"))


def registrar(store: Store, settings: Settings) -> Registrar:
    """The registrar whose audit entries name the person at this terminal."""
    return Registrar(store.records, settings.pepper_versions(), SystemClock(), f"cli:{_user()}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user has a number, and sometimes no name
        return f"uid-{os.getuid()}"


def _wrong(error: msgspec.ValidationError) -> str:
    """`models[0]: expected ...`: where it is wrong comes first, without the mark of a path."""
    what, _, where = str(error).partition(" - at ")
    return f"{where.strip('`').removeprefix('$.')}: {what}" if where else what


def _missing(name: object) -> str:
    parent = click.get_current_context().parent
    group = parent.info_name if parent is not None else None
    return f"there is no {_NOUNS.get(group or '', 'record')} {name!r}; `trunkline {group} list` shows all"


def when(seconds: float | None) -> str:
    """A time as people read it; nothing for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def console() -> Console:
    """Where tables go. A pipe has no width: scripts get whole lines, people get the terminal's."""
    return Console(width=None if sys.stdout.isatty() else WHOLE_LINES, highlight=False)

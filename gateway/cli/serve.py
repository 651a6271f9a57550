"""`trunkline serve`: launch what the table launches, and serve until a signal."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from backends import registry
from gateway import __version__
from gateway.batches.storage import examine_storage, is_shared
from gateway.config import Mistakes, Settings, Table
from gateway.config.caching import without_cache
from gateway.config.settings import unknown
from gateway.config.source import Source
from gateway.config.weak_secrets import weak_secrets
from gateway.process.child import Child
from gateway.process.launch import Launcher
from gateway.process.log import set_up
from gateway.process.sockets import CannotListen, bind
from gateway.process.supervisor import Supervisor, ignore_hangup, leave_when_told
from gateway.store import StoreDown, examine, examine_cache, prepare_state, shown

log = logging.getLogger("trunkline.cli")

ADMIN_COMMAND: Final = (sys.executable, "-P", "-m", "gateway", "admin", "serve")
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.argument("routing", required=False, type=click.Path(dir_okay=False))
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on. [default: 8080]")
@click.option(
    "--workers", type=click.IntRange(1, 256), help="Serving processes; more than one needs Redis. [default: 1]"
)
@click.option("--redis-url", help="Where keys and limits live, such as redis://localhost:6379/0.")
@click.option("--state", type=click.Path(dir_okay=False), help="The state file of a gateway without Redis.")
@click.option("--admin-port", type=click.IntRange(1, 65535), help="Serve the admin interface too. [default: it is off]")
def serve(**options: Any) -> None:
    """Serve the routing table ROUTING (default: routing.yaml).

    A changed table is put in force by itself, or at once on SIGHUP; one with mistakes is told and not used.

    SIGTERM ends it in order: /ready says 503, new calls are accepted for TRUNKLINE_DRAIN_ACCEPT seconds more (none
    after Ctrl-C), those under way may finish within TRUNKLINE_GRACE seconds, and the exit code is 0. A second signal
    cuts everything at once; then the exit code is 128 and the signal's number.
    """
    ignore_hangup()
    leave_when_told()
    settings, source, table = _read(options)
    if settings.workers > 1 and settings.redis_url is None:
        raise click.UsageError(
            "--workers above 1 needs --redis-url: without Redis each worker would count limits for itself, "
            "and a key could use every limit several times over."
        )
    where = _store(settings)
    with ExitStack() as stack:
        sockets = _bind(settings.host, settings.port, settings.workers)
        stack.callback(_close, sockets)
        if settings.workers > 1:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="trunkline-metrics-"))
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="trunkline-table-"))
        os.environ["TRUNKLINE_KEPT"] = source.keep_in(folder)
        launcher = Launcher(table, registry.capabilities)
        stack.callback(launcher.stop)
        os.environ.update(settings.environment())
        os.environ["TRUNKLINE_LAUNCHED"] = json.dumps(launcher.urls)
        work = _worker("gateway.app", settings.head_timeout)
        supervisor = Supervisor(work, sockets, settings.drain_accept + settings.grace)
        launcher.start()
        _greet(settings, where)
        listener = admin_listener(settings) if settings.admin_port else None
        if listener is not None:
            stack.callback(listener.stop)
            listener.start()
        supervisor.insist = partial(_insist, launcher, listener)
        code = supervisor.serve()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # one more is not to wait for what was launched
    sys.exit(code)


def _bind(host: str, port: int, number: int) -> list[socket.socket]:
    try:
        return bind(host, port, number)
    except CannotListen as error:
        raise click.ClickException(str(error)) from None


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _worker(module: str, head_seconds: float) -> Callable[[socket.socket], None]:
    """What a worker process does; only there is the app imported, which takes most of the memory."""

    def work(bound: socket.socket) -> None:
        run = import_module("gateway.app.worker").run
        run(import_module(module).from_environment, bound, head_seconds)

    return work


def admin_listener(settings: Settings) -> Child:
    """The process that serves the admin interface. Its output goes to our stderr, as our stdout is for call records.

    It gets our environment and the settings, without the folder where the gateway's workers count.
    """
    environment = {**os.environ, **settings.environment()}
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    return Child("the admin listener", ADMIN_COMMAND, environment, sys.stderr.fileno())


def _insist(launcher: Launcher, listener: Child | None) -> None:
    """What still stops is not waited for any longer."""
    launcher.kill()
    if listener is not None:
        listener.kill()


def serve_admin(**options: Any) -> None:
    """Serve the admin interface in this process until a signal."""
    ignore_hangup()
    settings, *_ = _read(options)
    if not settings.admin_port:
        raise click.UsageError("say where: --port PORT or TRUNKLINE_ADMIN_PORT")
    sockets = _bind(settings.admin_host, settings.admin_port, 1)
    _store(settings)
    os.environ.update(settings.environment())
    _say(settings, f"trunkline {__version__}: admin interface on {settings.admin_address}, described at /docs")
    if settings.admin_host not in LOOPBACK:
        told = "The admin interface can be reached from elsewhere and speaks plain HTTP: put TLS before it."
        _say(settings, told)
    sys.exit(Supervisor(_worker("gateway.app.admin", settings.head_timeout), sockets, 0.0).serve())


def _read(options: dict[str, Any]) -> tuple[Settings, Source, Table]:
    """The settings and the table with its file, or what is wrong with them in a sentence; the log is set up."""
    try:
        settings = Settings.read(**options)
        set_up(settings.log_level, settings.log_format)
        settings.pepper_versions()
        settings.admin_digest()
        for url in filter(None, (settings.redis_url, settings.records_url)):
            examine(url)
        if settings.files:
            examine_storage(settings.files)
        told = cache_trouble(settings)
        source = Source(Path(settings.routing))
        table = source.load().table
        if missing := without_cache(table, settings.cache_url):
            raise ValueError("; ".join(missing))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except Mistakes as error:
        raise click.ClickException(f"{settings.routing} cannot be served:\n{error}") from None
    for name in unknown():
        log.warning("%s is no setting; nothing reads it but a table that refers to it", name)
    for weak in weak_secrets(settings):
        log.warning("%s", weak)
    if told:
        log.warning("%s", told)
    return settings, source, table


def _store(settings: Settings) -> str:
    """Where the store is, for people. Without Redis it is made now: what is wrong with it is said in a sentence."""
    if settings.redis_url:
        return shown(settings.redis_url)
    try:
        return f"in process, state in {prepare_state(settings.state_path)}"
    except StoreDown as error:
        raise click.ClickException(f"the key store cannot be used: {error}") from None


def cache_trouble(settings: Settings) -> str:
    """What is to be said of the response cache's Redis; empty: nothing. Raises `ValueError` if it cannot have it."""
    if not settings.cache_url:
        return ""
    others = [url for url in (settings.redis_url, settings.records_url) if url]
    try:
        return examine_cache(settings.cache_url, others)
    except ValueError as error:
        raise ValueError(f"TRUNKLINE_CACHE_URL: {error}") from None


def one_folder(settings: Settings) -> str:
    """What to say of files in a folder where more than one host may serve them; nothing elsewhere."""
    if not settings.files or settings.redis_url is None or is_shared(settings.files):
        return ""
    return (
        f"TRUNKLINE_FILES is the folder {settings.files}: all hosts that share this Redis must see the same folder "
        "there, or batches fail on those that do not."
    )


def _greet(settings: Settings, where: str) -> None:
    many = "s" * (settings.workers > 1)
    address = f"http://{settings.host}:{settings.port}"
    say = partial(_say, settings)
    say(f"trunkline {__version__}: {settings.routing} on {address}, {settings.workers} worker{many}, store: {where}")
    if settings.redis_url is None:
        say("No Redis: limits hold for this one process. Give --redis-url to share them.")
    if told := one_folder(settings):
        say(told)
    if not settings.peppers:
        say("TRUNKLINE_PEPPERS is not set: keys are hashed without a pepper.")


def _say(settings: Settings, line: str) -> None:
    """A line for the person who has started it, in the form of all others if that is not text."""
    if settings.log_format == "text":
        click.echo(line, err=True)
    else:
        log.info("%s", line)

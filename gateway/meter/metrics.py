"""Every metric the gateway exports, and how a scrape of several workers becomes one."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from gateway import __version__

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

# Seconds. Long generations take minutes; a prefix-cached first token takes milliseconds.
LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
SHORT = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2.5)
FIRST = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120)
GAP = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics. Label values come from the routing table and from closed vocabularies, never from a client."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"trunkline_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"trunkline_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests_total",
            "Calls ended, by endpoint, route, outcome (answered, refused, shed, failed, broke, gone) and error_type.",
            "endpoint",
            "route",
            "outcome",
            "error_type",
        )
        self.duration = histogram(
            "request_duration_seconds", "From a call's arrival to its end.", LONG, "endpoint", "route"
        )
        self.overhead = histogram(
            "overhead_seconds",
            "The gateway's own part of a call: its duration without waiting for the target or the client.",
            SHORT,
            "route",
        )
        self.ttft = histogram(
            "time_to_first_token_seconds",
            "From a streamed call's arrival to its first chunk sent to the client.",
            FIRST,
            "route",
            "target",
        )
        self.itl = histogram(
            "inter_token_latency_seconds",
            "Between successive chunks of a stream sent to the client; a chunk may carry several tokens.",
            GAP,
            "route",
            "target",
        )
        self.tokens = counter(
            "tokens_total",
            "Tokens as the targets reported them (estimated from events where they did not), direction in or out.",
            "route",
            "direction",
        )
        self.in_flight = Gauge(
            "trunkline_in_flight", "Calls being served now.", registry=registry, multiprocess_mode="livesum"
        )
        self.attempts = counter(
            "upstream_attempts_total",
            "Attempts at targets; outcome is ok or the error_type.",
            "route",
            "target",
            "outcome",
        )
        self.usage_source = counter(
            "usage_source_total",
            "Calls that reached a target, by where their token counts come from: upstream, counted or estimated.",
            "route",
            "source",
        )
        self.cost = counter(
            "cost_micros_total",
            "What calls cost by the routes' prices, in millionths of the table's currency.",
            "route",
        )
        self.denials = counter(
            "limit_denials_total",
            "Calls denied by a limit, by whose it is (key, tenant, model, key_model) and its dimension.",
            "scope",
            "dimension",
        )
        self.throttled = counter(
            "auth_throttled_total", "Authentications refused unseen: too many had failed from the same source."
        )
        self.redis = histogram("redis_seconds", "Waiting for the store to decide an admission.", SHORT)
        self.degraded = Gauge(
            "trunkline_limits_degraded",
            "1 while the store does not answer and limits are counted in each gateway on its own.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.settle_pending = Gauge(
            "trunkline_settle_pending",
            "Ended calls whose real usage the store has not been told yet, because it does not answer.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.gateways = Gauge(
            "trunkline_gateways",
            "Living gateway workers that share the store; while it does not answer, as last heard.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.ledger_dropped = counter(
            "ledger_entries_dropped_total",
            "Ended calls that are missing in the usage ledger: it was down for too long.",
        )
        self.drift_tokens = Gauge(
            "trunkline_reconcile_drift_tokens",
            "Tokens the target's engine has counted more than the usage ledger (below 0: less), direction in or out.",
            ["target", "direction"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.drift_ratio = Gauge(
            "trunkline_reconcile_drift_ratio",
            "The drift as a part of the larger of both counts, from -1 to 1, direction in or out.",
            ["target", "direction"],
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        self.target_up = Gauge(
            "trunkline_target_up",
            "Whether the target's health route answered its last probe.",
            ["target"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.dropped = counter("log_lines_dropped_total", "Call records that could not be written to the log.")
        self.build = Gauge(
            "trunkline_build_info",
            "Always 1; the label tells the version.",
            ["version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.build.labels(__version__).set(1)


@cache
def _multiprocess_folder() -> Path | None:
    """Where workers keep their metrics for each other; set by `trunkline serve` for several workers."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def exposition(metrics: Metrics) -> bytes:
    """The text of a scrape: of all workers, living and dead, where there are several."""
    folder = _multiprocess_folder()
    if folder is None:
        return generate_latest(metrics.registry)
    _bury_dead(folder)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _bury_dead(folder: Path) -> None:
    """Forget the gauges of workers that crashed; their counters stay, so that sums never fall."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]

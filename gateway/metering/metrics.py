"""Every metric the gateway exports, and how a scrape of several workers becomes one."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from gateway import __version__
from gateway.metering.pending import Pending

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
Mode = Literal["livesum", "livemax", "livemin", "mostrecent"]
"""How the gauges of several workers become one."""

# Seconds. Long generations take minutes; a prefix-cached first token takes milliseconds.
LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
SHORT = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2.5)
FIRST = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60, 120)
ABORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
GAP = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics. Label values come from the routing table and from closed vocabularies, never from a client."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.pending = Pending(self.registry)
        """What calls add, until it is asked for."""
        self._gauges: list[Gauge] = []
        self._make_calls()
        self._make_aborts()
        self._make_cache()
        self._make_limits()
        self._make_routing()
        self._make_targets()
        self._make_shadows()
        self._make_connections()
        self._make_engines()
        self._make_processes()
        self._make_batches()

    def _make_calls(self) -> None:
        """Calls, their times and tokens."""
        self.requests = self._counter(
            "requests_total",
            "Calls ended, by endpoint, route, outcome (answered, refused, shed, failed, broke, gone) and error_type.",
            "endpoint",
            "route",
            "outcome",
            "error_type",
        )
        self.duration = self._histogram(
            "request_duration_seconds", "From a call's arrival to its end.", LONG, "endpoint", "route"
        )
        self.overhead = self._histogram(
            "overhead_seconds",
            "The gateway's own part of a call: its duration without waiting for the target or the client.",
            SHORT,
            "route",
        )
        self.ttft = self._histogram(
            "time_to_first_token_seconds",
            "From a streamed call's arrival to its first chunk sent to the client.",
            FIRST,
            "route",
            "target",
        )
        self.itl = self._histogram(
            "inter_token_latency_seconds",
            "Between successive chunks of a stream sent to the client; a chunk may carry several tokens.",
            GAP,
            "route",
            "target",
        )
        self.tokens = self._counter(
            "tokens_total",
            "Tokens as the targets reported them (estimated from events where they did not), direction in or out.",
            "route",
            "direction",
        )
        self.in_flight = self._gauge("in_flight", "Calls being served now.", "livesum")
        self.attempts = self._counter(
            "upstream_attempts_total",
            "Attempts at targets; outcome is ok or the error_type.",
            "route",
            "target",
            "outcome",
        )
        self.usage_source = self._counter(
            "usage_source_total",
            "Calls that were answered or reached a target, by where their token counts come from: upstream, capped, "
            "counted, estimated, cache (the answer was kept, and took none).",
            "route",
            "source",
        )
        self.cost = self._counter(
            "cost_micros_total",
            "What calls cost by the routes' prices, in millionths of the table's currency.",
            "route",
        )
        self.dropped = self._counter("log_lines_dropped_total", "Call records that could not be written to the log.")

    def _make_aborts(self) -> None:
        """Clients that left, and work that was for nothing."""
        self.aborts = self._counter(
            "aborts_total",
            "Calls whose client left before its answer was sent, by phase: body (its body had not come), queue (it was "
            "at no target), headers (a stream, without the target's headers), first_token (a stream, without the first "
            "token), stream (a stream, after it), whole (a target worked on an answer that is no stream).",
            "route",
            "phase",
        )
        self.abort_seconds = self._histogram(
            "abort_seconds",
            "From learning that a client had left until nothing was held for its call: the connection to the target "
            "closed, the lease handed back.",
            ABORT,
        )
        self.wasted = self._counter(
            "wasted_tokens_total",
            "Completion tokens that targets sent in attempts that came to nothing, by cause: client_gone (its client "
            "had left), attempt_failed (it broke, and no other target continued its text). What a target made and had "
            "not sent is not in it.",
            "route",
            "cause",
        )
        self.repairs = self._counter(
            "repairs_total",
            "Answers of routes with `repair` that were not the JSON that was asked for, and were asked for once more, "
            "by outcome: repaired (the second is), in_vain (it is not either), failed (there is none, the first was "
            "passed on), gone (the client left meanwhile).",
            "route",
            "outcome",
        )
        self.resumes = self._counter(
            "resumes_total",
            "Streams of routes with `resume` whose target died, by outcome: resumed (another target went on), failed "
            "(none did), refused (the call or its answer so far is of a kind that cannot go on elsewhere).",
            "route",
            "outcome",
        )

    def _make_cache(self) -> None:
        """Answers that are kept, and given again."""
        self.cache = self._counter(
            "response_cache_total",
            "Calls that took part in the response cache: hit, miss, refresh (the call asked for a new answer), "
            "unavailable (the cache did not answer in time), unreadable (what is there is no answer of ours, or not "
            "whole).",
            "route",
            "outcome",
        )
        self.cache_kept = self._counter(
            "response_cache_answers_total",
            "Answers of such calls that ended well: kept, too_large, no_memory (as many are being copied as may be), "
            "not_whole (not all that was asked for has told why it ended), unavailable (the cache did not take it).",
            "route",
            "outcome",
        )
        self.cache_saved = self._counter(
            "response_cache_saved_tokens_total",
            "Tokens that kept answers had taken when they were made, once for each hit, direction in or out.",
            "route",
            "direction",
        )

    def _make_limits(self) -> None:
        """Admission, the store and the ledger."""
        self.usage_refused = self._counter(
            "usage_refused_total",
            "Calls whose target told more tokens than their bytes and max_tokens allow, and that were charged no more.",
            "route",
            "target",
        )
        self.denials = self._counter(
            "limit_denials_total",
            "Calls denied by a limit, by whose it is (key, tenant, model, key_model) and its dimension.",
            "scope",
            "dimension",
        )
        self.throttled = self._counter(
            "auth_throttled_total", "Authentications refused unseen: too many had failed from the same source."
        )
        self.redis = self._histogram("redis_seconds", "Waiting for the store to decide an admission.", SHORT)
        self.degraded = self._gauge(
            "limits_degraded",
            "1 while the store does not answer and limits are counted in each gateway on its own.",
            "livemax",
        )
        self.settle_pending = self._gauge(
            "settle_pending",
            "Ended calls whose real usage the store has not been told yet, because it does not answer.",
            "livesum",
        )
        self.gateways = self._gauge(
            "gateways",
            "Living gateway workers that share the store; while it does not answer, as last heard.",
            "livemax",
        )
        self.ledger_dropped = self._counter(
            "ledger_entries_dropped_total",
            "Ended calls that are missing in the usage ledger: it was down for too long.",
        )
        self.drift_tokens = self._gauge(
            "reconcile_drift_tokens",
            "Tokens the target's engine has counted more than the usage ledger (below 0: less), direction in or out.",
            "mostrecent",
            "target",
            "direction",
        )
        self.drift_ratio = self._gauge(
            "reconcile_drift_ratio",
            "The drift as a part of the larger of both counts, from -1 to 1, direction in or out.",
            "mostrecent",
            "target",
            "direction",
        )

    def _make_routing(self) -> None:
        """Where calls go, and what for, and which wait."""
        self.decisions = self._counter(
            "route_decisions_total",
            "Targets picked, by the policy and its reason: home (the conversation's own target), warm (its system "
            "prompt is cached there), exception (its last call went there), spill (cheaper than home), no_key (nothing "
            "tells calls apart), least, turn, session, only.",
            "route",
            "policy",
            "reason",
        )
        self.fallbacks = self._counter(
            "fallbacks_total",
            "Calls sent to a fallback target or route, by why no better one: drained, ejected, down, endpoint, "
            "elsewhere, too_long, resting, full, failed, canary, no_target.",
            "route",
            "reason",
        )
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "Of calls that had to wait: how long, until a target had room.", FIRST, "route"
        )
        self.queue_calls = self._gauge("queue_calls", "Calls waiting for a target with room.", "livesum", "route")
        self.queue_bytes = self._gauge("queue_bytes", "Bytes of the bodies of waiting calls.", "livesum", "route")
        self.held_calls = self._gauge(
            "held_calls",
            "Calls waiting because no target is there: all start, start anew or sleep. For autoscalers.",
            "livesum",
            "route",
        )
        self.hold = self._histogram(
            "hold_seconds",
            "How long calls were held because no target was there, by how that ended: up (a target had come), expired, "
            "refused (as many were held as may be, or an operator's order), gone (the client had left).",
            LONG,
            "route",
            "outcome",
        )

    def _make_targets(self) -> None:
        """What targets have to do."""
        self.prompt_tokens = self._counter(
            "prompt_tokens_total", "Prompt tokens as the targets reported them.", "route", "target"
        )
        self.cached_tokens = self._counter(
            "cached_tokens_total",
            "Of the prompt tokens, those that came from the target's cache, where it reports them.",
            "route",
            "target",
        )
        self.target_up = self._gauge(
            "target_up", "Whether the target's health route answered its last probe.", "livemin", "target"
        )
        self.target_hung = self._gauge(
            "target_hung",
            "Whether the target's engine makes no progress while calls wait for it, though its server answers.",
            "livemax",
            "target",
        )
        self.target_out = self._gauge(
            "target_out",
            "1 while the target gets no new calls, by reason: drained (by an operator's order, until he opens it "
            "again), ejected (its calls failed, or by an order, for a time).",
            "livemax",
            "target",
            "reason",
        )
        self.target_prefill = self._gauge(
            "target_prefill_tokens",
            "Prompt tokens sent to the target and not yet read, estimated.",
            "livesum",
            "target",
        )
        self.target_running = self._gauge(
            "target_running", "Calls at the target that have not ended.", "livesum", "target"
        )
        self.target_waiting = self._gauge(
            "target_waiting", "Calls at the target without a first token.", "livesum", "target"
        )
        self.load_age = self._gauge(
            "load_view_age_seconds", "How old the loads are that other gateways last told; -1: never heard.", "livemax"
        )

    def _make_shadows(self) -> None:
        """How shadows compare with targets."""
        self.shadow = self._counter(
            "shadow_calls_total",
            "Calls copied to a shadow target: same or other status than the primary's, or dropped for want of room.",
            "route",
            "target",
            "outcome",
        )
        self.shadow_ttft = self._histogram(
            "shadow_time_to_first_token_seconds",
            "Of copied calls: from asking the shadow target to its first token.",
            FIRST,
            "route",
            "target",
        )
        self.shadow_tokens = self._gauge(
            "shadow_tokens_ratio",
            "Completion tokens of shadow answers to those of the primaries', since the start.",
            "mostrecent",
            "route",
            "target",
        )

    def _make_connections(self) -> None:
        """The pool of connections to targets."""
        self.connections_open = self._gauge(
            "connections_open", "Connections to the target, in use or not.", "livesum", "target"
        )
        self.connections_idle = self._gauge(
            "connections_idle", "Connections to the target that wait for a request.", "livesum", "target"
        )
        self.connections_made = self._counter("connections_made_total", "Connections made to the target.", "target")
        self.connections_reused = self._counter(
            "connections_reused_total", "Requests that went out on a connection that had served before.", "target"
        )
        self.connect = self._histogram(
            "connect_seconds",
            "Making a connection to the target: its name's address, TCP, proxy and TLS.",
            SHORT,
            "target",
        )
        self.answer_memory = self._gauge(
            "answer_memory_bytes", "Large answers and events that are being collected (`bodies.answers`).", "livesum"
        )

    def _make_engines(self) -> None:
        """What engines tell of themselves, and which table and version this is."""
        self.engine_running = self._gauge(
            "engine_running", "Calls that the target's engine says it works on.", "mostrecent", "target"
        )
        self.engine_waiting = self._gauge(
            "engine_waiting", "Calls that the target's engine says wait in it.", "mostrecent", "target"
        )
        self.engine_cache = self._gauge(
            "engine_kv_usage_ratio",
            "Part of its cache that the target's engine says is in use.",
            "mostrecent",
            "target",
        )
        self.target_warning = self._gauge(
            "target_warning",
            "1 while something is wrong with a target that serves: `model` (it does not know the model that the table "
            "names), `unguarded` (it answers anybody, without its credential), `credential` (a word that anybody "
            "would try). The log and `trunkline targets list` say what.",
            "mostrecent",
            "target",
            "about",
        )
        self.route_drift = self._gauge(
            "route_drift",
            "1 while targets of one route differ in what they tell of themselves, by field: context, models, version, "
            "loras.",
            "mostrecent",
            "route",
            "field",
        )
        self.config = self._gauge("config_info", "1 for the table in force, by its hash.", "livemax", "hash")
        self.config_at = self._gauge(
            "config_loaded_timestamp_seconds", "When the table in force was loaded.", "livemax"
        )
        self.reloads = self._counter(
            "config_reloads_total", "Readings of a changed table, applied or refused.", "outcome"
        )
        self.config_bad = self._gauge(
            "config_refused", "1 while the newest table cannot be used and the last good one serves.", "livemax"
        )

    def _make_processes(self) -> None:
        """The gateway's own processes, and what is odd about their settings."""
        self.worker_restarts = self._gauge(
            "worker_restarts", "Workers that were started because one had died, since the gateway's start.", "livesum"
        )
        self.loop_lag = self._histogram(
            "loop_lag_seconds", "How late the event loop comes to what is due: what calls wait for each other.", SHORT
        )
        self.unknown_settings = self._gauge(
            "unknown_settings", "Variables named TRUNKLINE_... that are no settings.", "livemax"
        )
        self.weak_secrets = self._gauge(
            "weak_secrets",
            "Secrets of the gateway that are easily guessed: short peppers, the hash of a common word. The log names "
            "them.",
            "livemax",
        )
        self.build = self._gauge("build_info", "Always 1; the label tells the version.", "livemax", "version")
        self.build.labels(__version__).set(1)

    def _make_batches(self) -> None:
        """Batches, and their lines as far as this gateway asks them."""
        self.batches = self._gauge(
            "batches",
            "Batches that have not ended, by status (validating, in_progress, finalizing, cancelling), of all "
            "gateways, each of which tells the same: take the largest, not the sum.",
            "mostrecent",
            "status",
        )
        self.batches_ended = self._counter(
            "batches_ended_total",
            "Batches that this gateway has brought to their end, by what became of them: completed, failed (a line of "
            "its input was wrong), expired, cancelled.",
            "status",
        )
        self.batch_lines = self._counter(
            "batch_lines_total",
            "Lines of batches for which this gateway has recorded an answer: completed, or failed with an error.",
            "outcome",
        )
        self.batch_lines_in_flight = self._gauge(
            "batch_lines_in_flight", "Lines of batches that are being asked now.", "livesum"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"trunkline_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"trunkline_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: Mode, *labels: str) -> Gauge:
        gauge = Gauge(f"trunkline_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)
        self._gauges.append(gauge)
        return gauge

    def drift(self, target: str, direction: str, tokens: int, ratio: float) -> None:
        """How far an engine's count of tokens is from ours."""
        self.drift_tokens.labels(target, direction).set(tokens)
        self.drift_ratio.labels(target, direction).set(ratio)

    def keep(self, names: Mapping[str, Container[str | None]]) -> None:
        """Show nothing of routes and targets that are in no table any more, by label; but calls of a route that wait.

        Uses private parts of prometheus_client: a test fails when they change.
        """
        for gauge in self._gauges:
            if gauge in (self.connections_open, self.connections_idle):  # of shadow targets too; see `connections.py`
                continue
            for place, label in enumerate(gauge._labelnames):
                if (known := names.get(label)) is None:
                    continue
                children: dict[Sequence[str], Any] = dict(gauge._metrics)
                for values, child in children.items():
                    if values[place] in known:
                        continue
                    value = child._value.get()
                    # What waits is set until it waits no more; all else would stay as it is for ever.
                    waits = value and label == "route" and gauge._multiprocess_mode == "livesum"
                    if not math.isnan(value) and not waits:
                        self.forget(gauge, *values)

    def depart(self, targets: Container[str]) -> None:
        """Show nothing more of what was counted of targets that have gone for good; with several workers, until they
        end."""
        if _multiprocess_folder() is not None:
            return
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram) and "target" in metric._labelnames:
                place = metric._labelnames.index("target")
                for values in [each for each in dict(metric._metrics) if each[place] in targets]:
                    metric.remove(*values)

    @staticmethod
    def forget(gauge: Gauge, *labels: str) -> None:
        """Show nothing more of what is no longer there; with several workers, NaN until they end."""
        if _multiprocess_folder() is not None:
            gauge.labels(*labels).set(float("nan"))
        else:
            with suppress(KeyError):
                gauge.remove(*labels)


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
    metrics.pending.flush()
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

"""What servers tell of themselves: gauges and counters for Prometheus, facts in JSON."""

from __future__ import annotations

import math
from typing import Any

from fuzz.checks.adapters import adapters
from fuzz.feeding import Harness, short
from harness.captures import captures

from backends.api import Counted, Described, Facts, Gauged
from backends.exposition import Exposition

NAMES = ("vllm:num_requests_running", "vllm:cache_config_info", "llamacpp:prompt_tokens_total", "tgi_queue_size", "a")


def check_metrics(data: bytes) -> None:
    """Nothing is raised, and whatever is told is a number."""
    text = data.decode(errors="replace")
    told = Exposition(text)
    for name in NAMES:
        samples = list(told.samples(name))
        assert len(samples) <= text.count(name)
        assert all(isinstance(value, float) for _, value in samples)
        mean = told.mean(name)
        assert mean is None or math.isfinite(mean)
        told.total(name)
    for adapter in adapters().values():
        if isinstance(adapter, Counted):
            _counts(adapter.counters(text))
        if isinstance(adapter, Gauged):
            _gauges(adapter.gauges(text))


def _counts(found: Any) -> None:
    assert found is None or all(type(count) is int for count in found)


def _gauges(found: Any) -> None:
    for value in () if found is None else (found.running, found.waiting, found.kv_tokens, found.prefix_queries):
        assert value is None or type(value) is int
    assert found is None or found.kv_usage is None or math.isfinite(found.kv_usage)


def check_facts(data: bytes) -> None:
    """Nothing is raised; what is not understood is not told."""
    for adapter in adapters().values():
        if isinstance(adapter, Described):
            facts = adapter.facts(dict.fromkeys(adapter.fact_paths, data), "m")
            assert isinstance(facts, Facts)
            assert facts.loras is None or all(isinstance(name, str) for name in facts.loras)


_seen = captures("*/*")

METRICS = Harness("metrics", check_metrics, short(seen.body[:4000] for seen in _seen if "metrics" in seen.name))
FACTS = Harness(
    "facts", check_facts, short(seen.body for seen in _seen if "models" in seen.name or "props" in seen.name)
)

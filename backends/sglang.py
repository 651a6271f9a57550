"""Adapter for SGLang's OpenAI-compatible server; facts of its metrics and routes are those of version 0.5.

Metrics come with `--enable-metrics`. With `--api-key`, only the health routes and the metrics are open.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from msgspec import Struct, structs

from backends.api import Call, Facts, Gauges, StreamReader
from backends.exposition import Exposition
from backends.facts import MODELS, listed, understood
from backends.openai import OpenAI
from backends.passed import recordings
from backends.resume import continued

_ABOUT = ("/server_info", "/get_server_info")
"""The route's new and its old name."""


class SGLang(OpenAI):
    """SGLang validates calls itself, so nothing is refused on its behalf."""

    probe_path = "/health"
    credential_path = MODELS
    counters_path = gauges_path = "/metrics"
    fact_paths = (MODELS, *_ABOUT)
    inference_paths = (*OpenAI.inference_paths, "/generate", "/invocations")

    def __init__(self) -> None:
        self.endpoints = self.speaks(
            *("responses", "responses/stored", "messages", "messages/count_tokens"),
            *("rerank", "score", "tokenize", "detokenize"),
        )
        self.endpoints = {**self.endpoints, **recordings("audio/transcriptions")}

    def check(self, call: Call) -> None:
        pass

    def open_continuous(self, call: Call) -> StreamReader:
        return self._open_continuous(call)

    def resume(self, call: Call, said: str) -> Call:
        return continued(call, said, continue_final_message=b"true")

    def counters(self, text: str) -> tuple[int, int] | None:
        """Counted when a call has ended, cached prompt tokens among the first of them."""
        told = Exposition(text)
        read, made = told.total(*_named("prompt_tokens_total")), told.total(*_named("generation_tokens_total"))
        return None if read is None or made is None else (read, made)

    def gauges(self, text: str) -> Gauges | None:
        told = Exposition(text)
        running, waiting = _summed(told, "num_running_reqs"), _summed(told, "num_queue_reqs")
        if running is None and waiting is None:
            return None
        return Gauges(
            running=running,
            waiting=waiting,
            kv_usage=told.mean(*_named("token_usage")),
            kv_tokens=_summed(told, "max_total_num_tokens"),
            prefix_queries=told.total(*_named("prompt_tokens_total")),
            prefix_hits=told.total(*_named("cached_tokens_total")),
            steps=told.total(*_named("realtime_tokens_total")),
            started=told.mean("process_start_time_seconds"),
        )

    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        """A call must fit the KV cache, too, which may be smaller than the model's context."""
        told = listed(answers, model)
        about = next((found for path in _ABOUT if (found := understood(answers, path, _About))), None)
        if about is None:
            return told
        bounds = [bound for bound in (told.context, about.max_total_num_tokens) if bound]
        return structs.replace(
            told,
            context=min(bounds) if told.context else None,
            version=about.version,
            kv_tokens=about.max_total_num_tokens,
        )


class _About(Struct):
    version: str | None = None
    max_total_num_tokens: int | None = None


def _named(name: str) -> tuple[str, str]:
    return f"sglang:{name}", f"sglang_{name}"


def _summed(told: Exposition, name: str) -> int | None:
    """Over data-parallel ranks, which have engines of their own.

    Of each the largest counts: tensor-parallel ranks tell the same again, and samples with a priority a part of it.
    """
    for full in _named(name):
        ranks: dict[str, float] = {}
        for labels, value in told.samples(full):
            if isfinite(value):
                rank = labels.get("dp_rank", "")
                ranks[rank] = max(value, ranks.get(rank, 0.0))
        if ranks:
            return round(sum(ranks.values()))
    return None

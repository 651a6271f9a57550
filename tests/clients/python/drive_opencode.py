"""opencode: chats, streamed, by way of `@ai-sdk/openai-compatible`. It is the program of its platform's own package."""

import json
from pathlib import Path

from agents import Start, try_agent
from outcomes import URL


def start(modules: Path, prompt: str, model: str, key: str) -> Start:
    program = min(modules.glob("opencode-*/bin/opencode"))  # beside it there is one for older processors
    options = {"baseURL": URL + "/v1", "apiKey": key}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "gateway", "options": options, "models": {model: {}}}
    named = dict.fromkeys(("model", "small_model"), f"gateway/{model}")
    config = {**named, "autoupdate": False, "share": "disabled", "provider": {"gateway": provider}}
    names = ("AUTOUPDATE", "MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")
    alone = {f"OPENCODE_DISABLE_{name}": "1" for name in names}
    return Start([str(program), "run", "--print-logs", prompt], alone, {"opencode.json": json.dumps(config)})


try_agent("opencode-ai", start)

"""qwen-code: chats, streamed. It takes a proxy for this machine's own addresses too, so it is told of none."""

from pathlib import Path

from agents import Start, try_agent
from outcomes import URL


def start(modules: Path, prompt: str, model: str, key: str) -> Start:
    variables = {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": URL + "/v1", "OPENAI_MODEL": model}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "")
    options = ["--auth-type", "openai", "--yolo", "-p", prompt]
    return Start(["node", str(modules / ".bin/qwen"), *options], variables | proxies)


try_agent("@qwen-code/qwen-code", start)

"""codex: responses, streamed, with tools in namespaces. Its provider's own search is switched off."""

from pathlib import Path

from agents import Start, try_agent
from outcomes import URL

CONFIG = """
model_provider = "gateway"
web_search = "disabled"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.gateway]
name = "gateway"
base_url = "{url}/v1"
env_key = "GATEWAY_KEY"
wire_api = "responses"
"""


def start(modules: Path, prompt: str, model: str, key: str) -> Start:
    options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--model", model, prompt]
    command = ["node", str(modules / "@openai/codex/bin/codex.js"), "exec", *options]
    return Start(command, {"GATEWAY_KEY": key}, {".codex/config.toml": CONFIG.format(url=URL)})


try_agent("@openai/codex", start)

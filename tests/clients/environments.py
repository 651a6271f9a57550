"""The clients that are tried, and how each is installed and started."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from harness.environments import REQUIREMENTS, ROOT, npm_environment, python_environment

HERE = Path(__file__).resolve().parent


class Client(NamedTuple):
    """One client: its lock file (a folder, of npm's) below requirements/, and the script that tries it."""

    name: str
    lock: str
    script: str

    def install(self) -> tuple[list[str], dict[str, str]]:
        """How its script is started, and variables for it. Raises `RuntimeError` where it cannot be installed."""
        if not self.lock.startswith("npm/"):
            folder = ".venv-oracles" if self.lock.startswith("oracle-") else ".venv-clients"
            name = self.lock.removeprefix("oracle-").removeprefix("client-").removesuffix(".txt")
            python = python_environment(ROOT / folder / name, REQUIREMENTS / self.lock)
            return [str(python), str(HERE / "python" / self.script)], {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        home = npm_environment(ROOT / ".cache" / "clients" / self.lock.removeprefix("npm/"), REQUIREMENTS / self.lock)
        if self.script.endswith(".py"):  # of a command
            return [sys.executable, str(HERE / "python" / self.script)], {"CLIENT_HOME": str(home)}
        for script in (HERE / "node").glob("*.mjs"):  # modules are looked for beside who imports them
            shutil.copyfile(script, home / script.name)
        return ["node", str(home / self.script)], {}


CLIENTS = (
    Client("openai", "client-openai.txt", "drive_openai.py"),
    Client("openai-2", "client-openai-2.txt", "drive_openai.py"),
    Client("anthropic", "client-anthropic.txt", "drive_anthropic.py"),
    Client("langchain-openai", "client-langchain-openai.txt", "drive_langchain_openai.py"),
    Client("langchain-anthropic", "client-langchain-anthropic.txt", "drive_langchain_anthropic.py"),
    Client("llama-index", "client-llama-index.txt", "drive_llama_index.py"),
    Client("pydantic-ai", "client-pydantic-ai.txt", "drive_pydantic_ai.py"),
    Client("instructor", "client-instructor.txt", "drive_instructor.py"),
    Client("litellm", "client-litellm.txt", "drive_litellm.py"),
    Client("text-generation", "oracle-text-generation.txt", "drive_text_generation.py"),
    Client("huggingface_hub", "oracle-huggingface-hub.txt", "drive_huggingface_hub.py"),
    Client("npm-openai", "npm/openai", "drive_openai.mjs"),
    Client("npm-ai", "npm/ai", "drive_ai.mjs"),
    Client("codex", "npm/codex", "drive_codex.py"),
    Client("claude-code", "npm/claude-code", "drive_claude_code.py"),
    Client("opencode", "npm/opencode", "drive_opencode.py"),
    Client("qwen-code", "npm/qwen-code", "drive_qwen_code.py"),
)

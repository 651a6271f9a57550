"""The clients that are tried, and how each is installed and started."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from harness.environments import REQUIREMENTS, ROOT, npm_environment, python_environment

HERE = Path(__file__).resolve().parent


class Client(NamedTuple):
    """One client: its lock file below requirements/, the script that tries it, and what it must find in its
    environment."""

    name: str
    lock: str
    script: str
    variables: dict[str, str] = {}

    def command(self) -> list[str]:
        """How its script is started, after it was installed. Raises `RuntimeError` where it cannot be."""
        if self.lock.startswith("npm/"):
            home = npm_environment(ROOT / ".cache" / "clients" / self.name, REQUIREMENTS / self.lock)
            if self.script.endswith(".py"):  # of a command, which Python can drive
                return [_python(), str(HERE / "commands" / self.script), str(home)]
            for script in (HERE / "node").glob("*.mjs"):  # modules are looked for beside who imports them
                shutil.copyfile(script, home / script.name)
            return ["node", str(home / self.script)]
        folder = ".venv-oracles" if self.lock.startswith("oracle-") else ".venv-clients"
        name = self.lock.removeprefix("oracle-").removeprefix("client-").removesuffix(".txt")
        python = python_environment(ROOT / folder / name, REQUIREMENTS / self.lock)
        return [str(python), str(HERE / "python" / self.script)]


def _python() -> str:
    import sys

    return sys.executable


CLIENTS = (
    Client("openai", "client-openai.txt", "drive_openai.py"),
    Client("openai-2", "client-openai-2.txt", "drive_openai.py"),
    Client("anthropic", "client-anthropic.txt", "drive_anthropic.py"),
    Client("langchain-openai", "client-langchain-openai.txt", "drive_langchain_openai.py"),
    Client("langchain-anthropic", "client-langchain-anthropic.txt", "drive_langchain_anthropic.py"),
    Client("llama-index", "client-llama-index.txt", "drive_llama_index.py"),
    Client("pydantic-ai", "client-pydantic-ai.txt", "drive_pydantic_ai.py"),
    Client("instructor", "client-instructor.txt", "drive_instructor.py"),
    Client("litellm", "client-litellm.txt", "drive_litellm.py", {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}),
    Client("text-generation", "oracle-text-generation.txt", "drive_text_generation.py"),
    Client("huggingface_hub", "oracle-huggingface-hub.txt", "drive_huggingface_hub.py"),
)

"""The cases of agents that are commands: each is started in a folder of its own, told one thing, and waited for."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from outcomes import BAD_KEY, KEY, TOOL, case, failing, run

HOME = Path.cwd()
WORD = "wombat-4711"


class Start(NamedTuple):
    """How an agent is started."""

    command: list[str]
    variables: dict[str, str] = {}
    files: dict[str, str] = {}
    """What it reads, by its path below its home."""


def try_agent(package: str, start: Callable[[Path, str, str, str], Start]) -> None:
    """Try all cases of the agent in this npm package; `start` is given the package's folder, the prompt, the model
    and the key."""
    modules = Path(os.environ["CLIENT_HOME"]) / "node_modules"
    (HOME / "word.txt").write_text(WORD + "\n")

    def says(prompt: str, model: str = "engine", key: str = KEY) -> str:
        """All that the agent prints."""
        made = start(modules, prompt, model, key)
        for name, text in made.files.items():
            (HOME / name).parent.mkdir(parents=True, exist_ok=True)
            (HOME / name).write_text(text)
        done = subprocess.run(
            made.command,
            env={name: value for name, value in {**os.environ, **made.variables}.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
        )
        return done.stdout

    @case("plain")
    @case("stream")  # none of them asks in another way
    def plain() -> None:
        _tells(says("Say hello."), "Hello from the engine.")

    @case("tools")
    def tools() -> None:
        _tells(says(TOOL), WORD)

    @case("401")
    def bad_key() -> None:
        _tells(says("Say hello.", key=BAD_KEY), "The API key is missing or not valid")

    @case("404")
    def unknown_model() -> None:
        _tells(says("Say hello.", model="no-such-model"), "no-such-model")

    @case("retry", "503", "429")
    def retry(status: str) -> None:
        _tells(says(failing(int(status))), "Hello from the engine.")

    version = json.loads((modules / package / "package.json").read_text())["version"]
    run(**{package: version})


def _tells(printed: str, text: str) -> None:
    assert text in printed, f"{text!r} is not in what it printed: {printed[-1200:]}"

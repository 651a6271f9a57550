"""claude-code: messages, streamed. It is the program of its platform's own package, as no script puts it elsewhere."""

from pathlib import Path

from agents import Start, try_agent
from outcomes import URL


def start(modules: Path, prompt: str, model: str, key: str) -> Start:
    (program,) = modules.glob("@anthropic-ai/claude-code-*/claude")
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL")
    variables = {"ANTHROPIC_BASE_URL": URL, "ANTHROPIC_AUTH_TOKEN": key, **dict.fromkeys(names, model)}
    alone = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_TELEMETRY": "1"}
    return Start([str(program), "-p", prompt, "--allowedTools", "Bash"], variables | alone)


try_agent("@anthropic-ai/claude-code", start)

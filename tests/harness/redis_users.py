"""The users of Redis that docs/security.md tells operators to make, one for each role."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

from harness.redis_server import RedisServer

PAGE: Final = Path(__file__).parents[2] / "docs" / "security.md"
PASSWORD: Final = "canary-redis-password"
FIRST: Final = ("reset", "resetchannels", "on", ">PASSWORD")
"""How each begins."""
_BLOCK: Final = re.compile(r"```sh\n(redis-cli ACL SETUSER .*?)```", re.DOTALL)


def documented() -> dict[str, list[str]]:
    """The rules of each role, without the password."""
    blocks = [shlex.split(block.replace("\\\n", " ")) for block in _BLOCK.findall(PAGE.read_text())]
    found = {name: rules for _, _, _, name, *rules in blocks}
    assert all(tuple(rules[: len(FIRST)]) == FIRST for rules in found.values())
    return {name: rules[len(FIRST) :] for name, rules in found.items()}


def make_user(server: RedisServer, *roles: str, without: str = "", database: int = 0) -> str:
    """A user with the rules of these roles together, or all but one of them; the URL by which it comes.

    A Redis that cannot tell reading from writing lets it do both.
    """
    name = "-".join(roles)
    rules = [rule for role in roles for rule in documented()[role] if rule != without]
    if int(server.ask("INFO", "server")["redis_version"].split(".")[0]) < 7:
        rules = [rule.replace("%R~", "~") for rule in rules]
    server.ask("ACL", "SETUSER", name, "reset", "resetchannels", "on", f">{PASSWORD}", *rules)
    server.ask("ACL", "LOG", "RESET")
    return f"redis://{name}:{PASSWORD}@127.0.0.1:{server.port}/{database}"


def refused(server: RedisServer) -> list[dict[str, Any]]:
    """What was asked for and not allowed since the user was made: reason, context, object, user name of each."""
    return [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in server.ask("ACL", "LOG")]

"""What the store asks Redis for, and the rules of docs/security.md, are the same."""

from __future__ import annotations

import re
from pathlib import Path

from harness.redis_users import documented

STORE = Path(__file__).parents[2] / "gateway" / "store" / "redis"
ASKED = re.compile(r"""(?:call|submit|ask|pack|packed|_send|_renew_members)\(+(?:connection, )?["']([A-Z]+)["']""")
BY_HAND = {"evalsha", "eval"}
"""Sent as bytes."""
ON_CONNECTING = {"select", "client|setinfo"}
"""Redis-py's."""
OF_CONSUMERS = {"xinfo"}
"""docs/ledger.md's."""


def test_each_command_that_the_store_sends_has_a_rule_and_each_rule_a_command() -> None:
    sources = [path.read_text() for path in STORE.iterdir() if path.suffix in (".py", ".lua")]
    sent = {word.lower() for source in sources for word in ASKED.findall(source)} | BY_HAND | ON_CONNECTING
    allowed = {rule[1:] for rules in documented().values() for rule in rules if rule.startswith("+")}
    assert allowed - OF_CONSUMERS == sent


def test_each_key_is_in_a_rule() -> None:
    sources = [path.read_text() for path in STORE.iterdir() if path.suffix == ".py"]
    named = {name for source in sources for name in re.findall(r'(?:\{?\{tl\}\}?:|TAG \+ f?")([a-z]+)', source)}
    ruled = {rule.split(":")[1].rstrip("*") for rules in documented().values() for rule in rules if "{tl}" in rule}
    assert named <= ruled, "a key without a rule"

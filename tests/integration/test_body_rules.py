"""Rules for bodies on a real gateway over Redis: what targets get, what is charged, and how soon a change holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream
from integration.client import ask, chat
from integration.metered import tokens

from gateway.core.body_rules import BodyRules
from gateway.core.types import Limit

ROUTES = {
    "open": {"deny": []},
    "plain": {},
    "prompted": {},
    "ruled": {
        "deny": ["logit_bias"],
        "set": {"max_tokens": 50, "user": "acme", "stop": None},
        "default": {"temperature": 0.25, "n": 2},
    },
}
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture(scope="module")
def ruling(upstream: Upstream, redis: RedisServer) -> Iterator[GatewayProcess]:
    """One worker."""
    routes = {
        name: {"targets": [{"name": f"b-{name}", "backend": "openai", "url": upstream.target(f"b-{name}").url}],
               "body": body}
        for name, body in ROUTES.items()
    }  # fmt: skip
    routes["prompted"]["system_prompt"] = "Route."
    with gateway_process(json.dumps({"routes": routes}), redis_url=redis.url) as started:
        yield started


@pytest.fixture
def targets(upstream: Upstream) -> dict[str, Target]:
    """The target of each route, as new."""
    found = {name: upstream.target(f"b-{name}") for name in ROUTES}
    for each in found.values():
        each.restore()
    return found


def arrived(target: Target) -> dict[str, Any]:
    """What the target was asked last, but for what every call has."""
    body: dict[str, Any] = target.calls[-1].json()
    return {name: value for name, value in body.items() if name not in ("model", "messages", "input")}


def test_the_routes_rules_make_the_body(ruling: GatewayProcess, targets: dict[str, Target]) -> None:
    secret = ruling.issue().secret
    body = chat("ruled", max_completion_tokens=9000, stop=["x"], n=None, seed=1)
    assert ask(ruling, body, secret).status == 200
    assert arrived(targets["ruled"]) == {
        "max_tokens": 50, "user": "acme", "n": 2, "seed": 1, "temperature": 0.25,
    }  # fmt: skip
    assert ask(ruling, chat("ruled", temperature=1, n=1), secret).status == 200
    assert arrived(targets["ruled"]) == {"max_tokens": 50, "user": "acme", "n": 1, "temperature": 1}
    assert ask(ruling, {"model": "ruled", "input": "x"}, secret, EMBEDDINGS).status == 200
    assert arrived(targets["ruled"]) == {"user": "acme", "temperature": 0.25}


def test_what_is_set_is_what_is_reserved(ruling: GatewayProcess, targets: dict[str, Target]) -> None:
    """Two answers of fifty tokens, whatever the client asks for."""
    issued = ruling.issue(limit=Limit(otpm=1000))
    first = ask(ruling, chat("ruled", max_completion_tokens=900_000), issued.secret)
    assert first.status == 200 and tokens(first) == 1000 - 2 * 50
    own = ruling.issue(limit=Limit(otpm=1000), body=BodyRules(set={"max_tokens": 30}))
    assert tokens(ask(ruling, chat("open", max_completion_tokens=900_000), own.secret)) == 1000 - 30


def test_a_large_body_is_ruled_too(ruling: GatewayProcess, targets: dict[str, Target]) -> None:
    issued = ruling.issue(limit=Limit(otpm=1000))
    text = "word " * 600_000
    reply = ask(
        ruling, {**chat("ruled", max_tokens=900), "messages": [{"role": "user", "content": text}]}, issued.secret
    )
    assert reply.status == 200 and tokens(reply) == 1000 - 2 * 50
    assert arrived(targets["ruled"]) == {"max_tokens": 50, "user": "acme", "n": 2, "temperature": 0.25}
    assert targets["ruled"].calls[-1].json()["messages"][0]["content"] == text


def test_a_keys_rules_add_to_the_routes(ruling: GatewayProcess, targets: dict[str, Target]) -> None:
    rules = BodyRules(deny=("seed",), set={"user": "key", "top_p": 0.5}, default={"temperature": 0.75, "max_tokens": 7})
    secret = ruling.issue(body=rules).secret
    assert ask(ruling, chat("ruled"), secret).status == 200
    assert arrived(targets["ruled"]) == {
        "max_tokens": 50, "user": "acme", "top_p": 0.5, "temperature": 0.75, "n": 2,
    }  # fmt: skip
    assert ask(ruling, chat("open", priority=3), secret).status == 200
    assert arrived(targets["open"]) == {
        "priority": 3,
        "user": "key",
        "top_p": 0.5,
        "temperature": 0.75,
        "max_tokens": 7,
    }
    for model, field in (("ruled", "logit_bias"), ("ruled", "seed"), ("open", "seed")):
        refused = ask(ruling, chat(model, **{field: 1}), secret)
        assert (refused.status, refused.error["param"]) == (400, field)


@pytest.mark.parametrize("field", ["priority", "kv_transfer_params", "bootstrap_host", "bootstrap_room"])
def test_fields_that_act_on_others_are_not_taken_where_nothing_is_said(
    ruling: GatewayProcess, targets: dict[str, Target], field: str
) -> None:
    secret = ruling.issue().secret
    refused = ask(ruling, chat("plain", **{field: 1}), secret)
    assert (refused.status, refused.error["param"]) == (400, field) and not targets["plain"].calls
    assert ask(ruling, chat("open", **{field: 1}), secret).status == 200
    assert ask(ruling, chat("plain", cache_salt="own"), secret).status == 200


def test_a_change_of_a_keys_rules_holds_for_the_very_next_call(
    ruling: GatewayProcess, targets: dict[str, Target]
) -> None:
    """Also for what is reserved, and for a field that is denied from now on."""
    issued = ruling.issue(limit=Limit(otpm=1000), body=BodyRules(set={"max_tokens": 10}))
    assert tokens(ask(ruling, chat("open"), issued.secret)) == 1000 - 10
    ruling.keys("update", issued.record.id, "--body-set", "max_tokens=100", "--body-deny", "seed")
    targets["open"].restore()
    reply = ask(ruling, chat("open"), issued.secret)
    assert arrived(targets["open"])["max_tokens"] == 100
    assert tokens(reply) <= 1000 - 100
    ruling.keys("update", issued.record.id, "--clear", "body:set")
    assert ask(ruling, chat("open", seed=1), issued.secret).status == 400
    ruling.keys("update", issued.record.id, "--clear", "body")
    assert ask(ruling, chat("open", seed=1, max_tokens=3), issued.secret).status == 200
    assert arrived(targets["open"]) == {"seed": 1, "max_tokens": 3}


def test_system_prompts_of_routes_and_keys_reach_the_target(ruling: GatewayProcess, targets: dict[str, Target]) -> None:
    key = ruling.issue(body=BodyRules(system_prompt="Key."))
    assert ask(ruling, chat("prompted"), key.secret).status == 200
    sent = targets["prompted"].calls[-1].json()
    assert sent["messages"] == [{"role": "system", "content": "Route.\n\nKey."}, *chat("prompted")["messages"]]
    body = {"model": "prompted", "max_tokens": 5, "system": "Own.", "messages": chat("prompted")["messages"]}
    assert ask(ruling, body, key.secret, "/v1/messages").status == 200  # translated
    sent = targets["prompted"].calls[-1].json()
    assert sent["messages"][0] == {"role": "system", "content": "Route.\n\nKey.\n\nOwn."}
    plain = ruling.issue()
    assert ask(ruling, chat("plain"), plain.secret).status == 200
    assert targets["plain"].calls[-1].json()["messages"] == chat("plain")["messages"]

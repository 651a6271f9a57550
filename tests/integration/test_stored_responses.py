"""Responses that a server keeps are shown, deleted and stopped there, for the tenant that made them alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.captures import GOLDEN, read_capture
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Received, Script, Upstream, whole
from integration.client import Reply, ask, record

from gateway.core.types import Limit

PATH = "/v1/responses"
MADE = read_capture(GOLDEN / "vllm" / "vllm-responses.txt").body
ID = "resp_b1820432c5e928da"
NAMES = ("one", "two")
UPSTREAM_KEY = "credential-of-the-target"
KEY = {"UPSTREAM_KEY": UPSTREAM_KEY}


class Keeper:
    """A server that keeps responses; of the calls for these it remembers what they were."""

    def __init__(self, upstream: Upstream, name: str) -> None:
        self.name, self.url, self.asked = f"stored-{name}", upstream.target(f"stored-{name}").url, list[Received]()
        self.script: Script = whole(MADE)
        target = upstream.target(self.name)
        target.answers = self.answers  # type: ignore[method-assign]

    def answers(self, received: Received) -> Script:
        path = received.path
        if not path.startswith(PATH + "/"):
            return whole(MADE) if path == PATH else whole({})
        self.asked.append(received)
        return self.script


def table(keepers: list[Keeper], **more: Any) -> str:
    targets = [
        {"name": each.name, "backend": "vllm", "url": each.url, "api_key": "${UPSTREAM_KEY}"} for each in keepers
    ]
    route = {"targets": targets, "policy": "round-robin", "aliases": ["team-*"]}
    return json.dumps({"routes": {"m": route, **more}})


@pytest.fixture(scope="module")
def keepers(upstream: Upstream) -> list[Keeper]:
    return [Keeper(upstream, name) for name in NAMES]


@pytest.fixture(scope="module")
def keeping(keepers: list[Keeper], upstream: Upstream) -> Iterator[GatewayProcess]:
    with gateway_process(table(keepers), env=KEY) as started:
        yield started


@pytest.fixture(autouse=True)
def renewed(keepers: list[Keeper]) -> None:
    for each in keepers:
        each.asked.clear()
        each.script = whole(MADE)


def make(gateway: GatewayProcess, key: str, keepers: list[Keeper], model: str = "m", **fields: Any) -> Keeper:
    reply = ask(gateway, {"model": model, "input": "Hi", "store": True, **fields}, key, PATH)
    assert reply.status == 200 and reply.json()["id"] == ID
    return next(each for each in keepers if each.name == reply.header("x-trunkline-target"))


def about(gateway: GatewayProcess, key: str, method: str = "GET", below: str = "", name: str = ID) -> Reply:
    return ask(gateway, None, key, f"{PATH}/{name}{below}", method=method)


@pytest.mark.parametrize(
    ("method", "below", "said"),
    [
        ("GET", "", json.loads(MADE)),
        ("GET", "?include[]=reasoning.encrypted_content", json.loads(MADE)),
        ("GET", "/input_items?limit=5&order=asc", {"object": "list", "data": []}),
        ("POST", "/cancel", json.loads(MADE) | {"status": "cancelled"}),
        ("DELETE", "", {"id": ID, "object": "response", "deleted": True}),
    ],
)
def test_it_goes_where_the_response_is(
    keeping: GatewayProcess, keepers: list[Keeper], method: str, below: str, said: dict[str, Any]
) -> None:
    key = keeping.issue(tenant=f"{method}{len(below)}").secret
    for _ in range(2):  # wherever it was made
        keeper = make(keeping, key, keepers)
        keeper.script = whole(said)
        keeper.asked.clear()
        reply = about(keeping, key, method, below)
        assert (reply.status, reply.json(), reply.header("x-trunkline-target")) == (200, said, keeper.name)
        (asked,) = keeper.asked
        assert (asked.method, asked.path, asked.body) == (method, f"{PATH}/{ID}{below}", b"")
        assert asked.header("authorization") == f"Bearer {UPSTREAM_KEY}"
        line = record(keeping, reply.header("x-request-id"))
        assert (line["endpoint"], line["route"], line["target"]) == ("responses/stored", "m", keeper.name)
        assert line["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "cached_tokens": 0, "source": "upstream"}


def test_one_that_was_deleted_is_known_no_longer(keeping: GatewayProcess, keepers: list[Keeper]) -> None:
    key = keeping.issue(tenant="deleting").secret
    keeper = make(keeping, key, keepers)
    assert about(keeping, key, "DELETE").status == 200
    assert about(keeping, key).status == 404 and len(keeper.asked) == 1


def test_others_are_told_what_openai_says(keeping: GatewayProcess, keepers: list[Keeper]) -> None:
    mine, others = keeping.issue(tenant="mine").secret, keeping.issue(tenant="others").secret
    make(keeping, mine, keepers)
    forgotten = keeping.issue(tenant="forgotten").secret
    ask(keeping, {"model": "m", "input": "Hi"}, forgotten, PATH)  # store: false
    for key in (others, forgotten):
        for method, below in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            reply = about(keeping, key, method, below)
            assert (reply.status, reply.error["type"]) == (404, "invalid_request_error")
            assert reply.error["message"] == f"Response with id '{ID}' not found."
    assert not [call for each in keepers for call in each.asked]
    assert about(keeping, mine).status == 200


def test_keys_are_looked_at(keeping: GatewayProcess, keepers: list[Keeper]) -> None:
    mine = keeping.issue(tenant="rights").secret
    make(keeping, mine, keepers)
    assert about(keeping, "tl_nobody").status == 401
    other_model = keeping.issue(tenant="rights", models=("x",)).secret
    assert about(keeping, other_model).error["code"] == "model_not_allowed"
    other_endpoint = keeping.issue(tenant="rights", endpoints=("chat*",)).secret
    assert about(keeping, other_endpoint).error["code"] == "endpoint_not_allowed"
    few = keeping.issue(tenant="rights", limit=Limit(rpm=1)).secret
    assert [about(keeping, few).status for _ in range(2)] == [200, 429]


def test_a_model_by_another_name(keeping: GatewayProcess, keepers: list[Keeper]) -> None:
    key = keeping.issue(tenant="alias", models=("team-*",)).secret
    make(keeping, key, keepers, model="team-x")
    assert about(keeping, key).status == 200


@pytest.mark.parametrize(
    ("status", "said", "told"),
    [
        (
            404,
            {"error": {"message": f"Response with id '{ID}' not found.", "type": "invalid_request_error"}},
            "not found",
        ),
        (400, {"error": {"message": "Cannot cancel a synchronous response.", "type": "x"}}, "Cannot cancel"),
        (405, {"detail": "Method Not Allowed"}, "cannot delete responses"),
        (404, {"detail": "Not Found"}, "cannot delete responses"),
        (404, b"<html>", "cannot delete responses"),
    ],
)
def test_what_the_server_says_of_it(
    keeping: GatewayProcess, keepers: list[Keeper], status: int, said: Any, told: str
) -> None:
    key = keeping.issue(tenant="refused").secret
    make(keeping, key, keepers).script = whole(said, status)
    reply = about(keeping, key, "DELETE")
    assert reply.status == (404 if status == 405 else status) and told in reply.json()["error"]["message"]


def test_streams_and_odd_paths_are_refused(keeping: GatewayProcess, keepers: list[Keeper]) -> None:
    key = keeping.issue(tenant="odd").secret
    keeper = make(keeping, key, keepers)
    assert about(keeping, key, below="?stream=true").error["param"] == "stream"
    assert about(keeping, key, below="?a=%22&b=<").status == 400
    for method, below in (("PUT", ""), ("POST", ""), ("GET", "/cancel"), ("DELETE", "/input_items")):
        assert about(keeping, key, method, below).error["code"] == "method_not_allowed"
    for below in ("/x", "/cancel/x", "/../models"):
        assert about(keeping, key, below=below).error["code"] == "path_not_found"
    assert about(keeping, key, "POST", name="input_tokens").error["code"] == "path_not_found"
    assert about(keeping, key, name="resp%5F" + "x" * 190).status == 404
    assert not keeper.asked


def test_a_target_that_is_gone(keepers: list[Keeper], redis: RedisServer, upstream: Upstream) -> None:
    with gateway_process(table(keepers[:1]), redis_url=redis.url, env=KEY) as one:
        key = one.issue(tenant="moved").secret
        make(one, key, keepers)
        with gateway_process(table(keepers), redis_url=redis.url, env=KEY) as two:
            assert about(two, key).header("x-trunkline-target") == keepers[0].name
        with gateway_process(table(keepers[1:]), redis_url=redis.url, env=KEY) as three:
            gone = about(three, key)
            assert (gone.status, gone.error["code"]) == (404, "previous_response_gone")
        translated = [{"name": keepers[0].name, "backend": "openai", "url": keepers[0].url}]
        with gateway_process(
            json.dumps({"routes": {"m": {"targets": translated}}}), redis_url=redis.url, env=KEY
        ) as four:
            assert about(four, key).error["code"] == "endpoint_not_served"

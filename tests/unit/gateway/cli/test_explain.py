"""`trunkline explain`: where a call would go, as the gateways that run report it, or as if all were idle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from gateway.auth.token import SECRET_LENGTH, token
from gateway.auth.token import random as digits
from gateway.cli import cli
from gateway.core.types import Report, TargetState
from gateway.store.local import LocalStore

Run = Callable[..., Result]
Said = Callable[..., Any]
Refused = Callable[..., str]

TABLE = """
routes:
  big:
    aliases: ["gpt-*"]
    targets:
      - {name: a, backend: vllm, url: "http://a:8000", context: 8k}
      - {name: b, backend: vllm, url: "http://b:8000", api_key: "${NOT_SET_HERE}"}
    fallback:
      - {name: spare, backend: tgi, url: "http://spare"}
    fallback_route: small
  small:
    policy: round-robin
    targets:
      - {name: s, backend: llamacpp, launch: {model: embedded}}
"""


@pytest.fixture(autouse=True)
def routing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(TABLE)
    monkeypatch.setenv("TRUNKLINE_ROUTING", str(path))
    return path


def report(folder: Path, *states: TargetState) -> None:
    """What a gateway that runs here says of its targets."""

    async def say() -> None:
        store = LocalStore(folder / "keys.json", boot="g")
        word = msgspec.msgpack.encode(Report(gateway="g", config_hash="h", targets=states))
        await store.board.report(word)

    asyncio.run(say())


def body(folder: Path, **fields: object) -> str:
    file = folder / "body.json"
    file.write_text(json.dumps({"model": "big", "messages": [{"role": "user", "content": "hi"}], **fields}))
    return str(file)


def by_name(answer: Any) -> dict[str, Any]:
    return {each["target"]: each for each in answer["candidates"]}


def test_all_targets_of_the_chain_are_shown(said: Said, run: Run) -> None:
    answer = said("explain", "--model", "gpt-4o")
    assert (answer["model"], answer["route"], answer["policy"], answer["gateways"]) == ("gpt-4o", "big", "home-cost", 0)
    assert [(each["target"], each["route"], each["tier"]) for each in answer["candidates"]] == [
        ("a", "big", 0),
        ("b", "big", 0),
        ("spare", "big", 1),
        ("s", "small", 0),
    ]
    assert answer["picked"] in ("a", "b") and by_name(answer)[answer["picked"]]["picked"]
    text = run("explain", "--model", "gpt-4o").stdout
    assert f"home-cost picks {answer['picked']}" in text and "no gateway reports" in text
    (chosen,) = [line for line in text.splitlines() if line.startswith("->")]
    assert chosen.split()[1] == answer["picked"]


def test_the_same_body_goes_the_same_way(said: Said, tmp_path: Path) -> None:
    picks = {said("explain", "--body", body(tmp_path, user="u"))["picked"] for _ in range(3)}
    assert len(picks) == 1


def test_whether_it_would_be_looked_up_in_the_response_cache(
    said: Said, run: Run, tmp_path: Path, routing: Path
) -> None:
    file = body(tmp_path, temperature=0)
    assert said("explain", "--body", file)["cache"] is None
    routing.write_text(TABLE.replace("  small:", "    response_cache: {}\n  small:"))
    assert said("explain", "--body", file)["cache"] == ""
    assert "is looked up in the response cache" in run("explain", "--body", file).stdout
    file = body(tmp_path, temperature=1)
    assert "'temperature'" in said("explain", "--body", file)["cache"]
    assert "takes no part in the response cache: neither" in run("explain", "--body", file).stdout


def test_a_body_is_read_from_standard_input_too(tmp_path: Path) -> None:
    text = Path(body(tmp_path, max_tokens=9000)).read_text()
    result = CliRunner().invoke(cli, ["explain", "--body", "-", "--json"], input=text)
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert by_name(answer)["a"]["refused"] == "too_long" and answer["picked"] == "b"


def test_what_gateways_report_counts(said: Said, run: Run, tmp_path: Path) -> None:
    report(
        tmp_path,
        TargetState(name="a", route="big", state="up", running=7, waiting=2, prefill=900),
        TargetState(name="b", route="big", state="down", why="no route to host"),
        TargetState(name="gone", route="big", state="up"),
    )
    answer = said("explain", "--model", "big")
    shown = by_name(answer)
    assert (answer["gateways"], answer["picked"]) == (1, "a")
    assert (shown["a"]["running"], shown["a"]["waiting"]) == (7, 2) and 0 < shown["a"]["pending"] <= 900
    assert shown["b"]["refused"] == "down"
    assert "as 1 gateway workers report" in run("explain", "--model", "big").stdout


@pytest.mark.parametrize("state", ["ejected", "resting", "full"])
def test_a_target_that_takes_no_calls_is_passed_over(said: Said, tmp_path: Path, state: Any) -> None:
    report(tmp_path, TargetState(name="a", route="big", state=state), TargetState(name="b", route="big", state=state))
    answer = said("explain", "--model", "big")
    assert [by_name(answer)[name]["refused"] for name in "ab"] == [state] * 2
    assert answer["picked"] == "spare"


def test_operators_orders_count(said: Said, run: Run) -> None:
    for name in ("a", "b", "spare"):
        assert run("targets", "drain", name).exit_code == 0
    answer = said("explain", "--model", "big")
    assert answer["picked"] == "s" and by_name(answer)["a"]["refused"] == "drained"
    assert run("targets", "drain", "s").exit_code == 0
    assert said("explain", "--model", "big")["picked"] is None
    assert "No target can take it now" in run("explain", "--model", "big").stdout


def test_a_key_that_may_not_is_told_of(run: Run, said: Said) -> None:
    id = said("keys", "create", "--name", "n", "--model", "small")["id"]
    assert "would be refused with 403" in run("explain", "--model", "big", "--key", id).stdout
    assert "403" not in run("explain", "--model", "small", "--key", id).stdout


def test_a_key_that_is_no_longer_good_is_told_of(run: Run, said: Said) -> None:
    id = said("keys", "create", "--name", "n")["id"]
    assert not said("explain", "--model", "big", "--key", id)["refused"]
    assert run("keys", "revoke", id).exit_code == 0
    assert "401: the key is revoked" in run("explain", "--model", "big", "--key", id).stdout


def test_a_key_that_may_not_use_the_endpoint_is_told_of(said: Said) -> None:
    id = said("keys", "create", "--name", "n", "--endpoint", "embeddings")["id"]
    assert said("explain", "--model", "big", "--key", id)["refused"].startswith("403: ")


def test_what_a_call_is_told_that_nothing_can_take(said: Said, run: Run) -> None:
    for name in ("a", "b", "spare", "s"):
        assert run("targets", "drain", name).exit_code == 0
    assert said("explain", "--model", "big")["refused"].startswith("503: ")


def test_media_are_counted_as_the_gateway_counts_them(said: Said, tmp_path: Path) -> None:
    link = {"type": "image_url", "image_url": {"url": "https://x/" + "y" * 40_000}}
    file = body(tmp_path, messages=[{"role": "user", "content": [link]}])
    assert said("explain", "--body", file)["tokens"] < 2_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--model"),
        (("--model", "none"), "'none' does not exist"),
        (("--model", "big", "--key", "nobody"), "there is no such key"),
        (("--model", "big", "--routing", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_explained_says_why(refused: Refused, arguments: tuple[str, ...], told: str) -> None:
    assert told in refused("explain", *arguments)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": 5}'])
def test_a_body_that_is_no_call_is_named(refused: Refused, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    assert "--body" in refused("explain", "--body", str(tmp_path / "bad.json"))


def test_nothing_that_was_typed_is_shown(run: Run, tmp_path: Path) -> None:
    done = run("explain", "--body", body(tmp_path, messages=[{"role": "user", "content": "my secret"}]))
    assert done.exit_code == 0 and "secret" not in done.output


def test_rules_for_bodies_are_applied(said: Said, run: Run, routing: Path, tmp_path: Path) -> None:
    routing.write_text(TABLE.replace("    fallback_route: small", "    body: {deny: [seed], set: {max_tokens: 20000}}"))
    found = by_name(said("explain", "--body", body(tmp_path, max_tokens=5)))
    assert "refused" in found["a"], "the bound that is set is what has to fit"
    assert said("explain", "--body", body(tmp_path, seed=1))["refused"].startswith("400: The field 'seed'")
    key = said("keys", "create", "--name", "k", "--body-deny", "user")
    refused = said("explain", "--key", key["id"], "--body", body(tmp_path, user="u"))["refused"]
    assert refused.startswith("400: The field 'user' is not taken from callers with this key")


def test_what_a_call_would_reserve_and_what_is_left_is_shown(said: Said, run: Run, tmp_path: Path) -> None:
    key = said("keys", "create", "--name", "n", "--rpm", "5", "--budget", "month:tokens=1000")
    file = body(tmp_path, max_tokens=200)
    answer = said("explain", "--key", key["id"], "--body", file)
    shown = {each["name"]: each for each in answer["limits"]}
    assert shown["rpm"] == {"scope": "key", "name": "rpm", "unit": "requests", "limit": 5, "reserves": 1, "left": 5}
    budget = shown["budget"]
    assert (budget["period"], budget["left"]) == ("month", 1000) and 200 < budget["reserves"] < 260
    assert not answer["refused"] and not answer["shared"]
    text = run("explain", "--key", key["id"], "--body", file).stdout
    assert "budget month tokens" in text and "known to the gateway alone" in text


def test_a_call_that_no_limit_can_hold_is_told_of(said: Said, tmp_path: Path) -> None:
    key = said("keys", "create", "--name", "n", "--budget", "day:tokens=100")
    assert said("explain", "--key", key["id"], "--body", body(tmp_path, max_tokens=200))["refused"].startswith("400: ")


def test_networks_of_a_key_are_told_and_heeded(said: Said, run: Run) -> None:
    id = said("keys", "create", "--name", "n", "--source", "10.0.0.0/8")["id"]
    assert said("explain", "--model", "big", "--key", id)["sources"] == ["10.0.0.0/8"]
    assert "for calls from 10.0.0.0/8 only" in run("explain", "--model", "big", "--key", id).stdout
    assert not said("explain", "--model", "big", "--key", id, "--source", "10.2.3.4")["refused"]
    for source in ("192.0.2.1", "nonsense"):
        assert said("explain", "--model", "big", "--key", id, "--source", source)["refused"].startswith("403: ")


def test_a_secret_is_looked_at_where_it_is_given(said: Said, refused: Refused) -> None:
    made = said("keys", "create", "--name", "n")
    assert not said("explain", "--model", "big", "--key", made["secret"])["refused"]
    wrong = token(made["id"], digits(SECRET_LENGTH))
    assert said("explain", "--model", "big", "--key", wrong)["refused"].startswith("401: the secret is not the key's")
    assert "401" in refused("explain", "--model", "big", "--key", made["secret"][:-1] + "_")
    old = made["secret"]
    new = said("keys", "rotate", made["id"], "--overlap", "0s")["secret"]
    assert not said("explain", "--model", "big", "--key", new)["refused"]
    assert said("explain", "--model", "big", "--key", old)["refused"].startswith("401: ")


def test_a_model_that_is_not_there_is_told_after_the_key(refused: Refused, said: Said, run: Run) -> None:
    id = said("keys", "create", "--name", "n")["id"]
    assert "refused with 404" in refused("explain", "--model", "none", "--key", id)
    assert run("keys", "revoke", id).exit_code == 0
    assert "refused with 401" in refused("explain", "--model", "none", "--key", id)


def test_what_the_servers_kind_refuses_is_told(said: Said, routing: Path, tmp_path: Path) -> None:
    routing.write_text('routes: {m: {targets: [{name: t, backend: tgi, url: "http://t"}]}}')
    told = said("explain", "--body", body(tmp_path, model="m", n=2))["refused"]
    assert told.startswith("400: ") and "'n'" in told


def test_a_target_that_is_down_and_asked_all_the_same_is_told(said: Said, run: Run, tmp_path: Path) -> None:
    states = [TargetState(name=name, route="big", state="down", why="status 503") for name in ("a", "b", "spare", "s")]
    report(tmp_path, *states)
    assert said("explain", "--model", "big")["last_resort"] == "down"
    assert "It is down: it is asked because no other can be" in run("explain", "--model", "big").stdout


def test_the_endpoint_counts(said: Said, run: Run, refused: Refused, routing: Path, tmp_path: Path) -> None:
    routing.write_text('routes: {m: {targets: [{name: t, backend: openai, url: "http://t"}]}}')
    (tmp_path / "rank.json").write_text('{"model": "m", "query": "q", "documents": ["d"]}')
    assert "refused with 404" in refused("explain", "--endpoint", "rerank", "--body", str(tmp_path / "rank.json"))
    assert run("explain", "--endpoint", "nothing", "--model", "m").exit_code == 2


def test_too_many_prompts_are_told_of(said: Said, routing: Path, tmp_path: Path) -> None:
    routing.write_text(TABLE + "bodies: {prompts: 2}\n")
    (tmp_path / "many.json").write_text('{"model": "small", "prompt": ["a", "b", "c"], "max_tokens": 1}')
    assert said("explain", "--body", str(tmp_path / "many.json"))["refused"].startswith("400: 'prompt' has 3 entries")

"""`trunkline keys`: every option, every change, and what is said when it cannot be."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli

Run = Callable[..., Result]
Said = Callable[..., Any]
Refused = Callable[..., str]

EVERYTHING = shlex.split("""
    --tenant acme --model big --model small-* --endpoint chat/completions --rpm 10 --tpm 20k --itpm 15k --otpm 5k
    --concurrency 3 --budget day:tokens=2M --budget month:money=50 --model-limit demo/smollm2:135m:rpm=1,tpm=2k
    --default-route small-1 --user-header X-User
    --priority high --expires 30d --label team=search --label env=prod --source 10.0.0.0/8 --source ::1
    --outage rpm=closed --outage budget=open
    --body-deny logit_bias --body-deny user --body-set max_tokens=500 --body-set stop=null
    --body-default 'seed={"a": [1.5]}' --system-prompt 'Be kind.'
""")


def test_everything_that_a_key_can_have(said: Said) -> None:
    key = said("keys", "create", "--name", "k", *EVERYTHING)
    secret = key.pop("secret")
    assert secret.startswith(f"tl_{key['id']}_")
    shown = said("keys", "show", key["id"])
    assert shown.pop("standing") and shown == key
    assert key["expires"] == pytest.approx(time.time() + 30 * 86400, abs=60)
    facts = {name: key[name] for name in key if name not in ("id", "created", "expires", "secrets")}
    assert facts == {
        "name": "k",
        "status": "active",
        "tenant": "acme",
        "models": ["big", "small-*"],
        "endpoints": ["chat/completions"],
        "limit": {
            "rpm": 10,
            "tpm": 20_000,
            "itpm": 15_000,
            "otpm": 5_000,
            "concurrency": 3,
            "budget": {"day": {"tokens": 2_000_000}, "month": {"cost_micros": 50_000_000}},
            "outage": {"rpm": "closed", "budget": "open"},
        },
        "model_limits": {"demo/smollm2:135m": {"rpm": 1, "tpm": 2_000}},
        "default_route": "small-1",
        "user_header": "x-user",
        "priority": "high",
        "labels": {"team": "search", "env": "prod"},
        "sources": ["10.0.0.0/8", "::1/128"],
        "body": {
            "deny": ["logit_bias", "user"],
            "set": {"max_tokens": 500, "stop": None},
            "default": {"seed": {"a": [1.5]}},
            "system_prompt": "Be kind.",
        },
        "revoked": None,
        "version": 1,
    }


def test_a_key_with_nothing_but_a_name(said: Said) -> None:
    key = said("keys", "create", "--name", "k")
    assert (key["models"], key["endpoints"], key["limit"], key["tenant"]) == (["*"], ["*"], {}, "default")


def test_an_update_leaves_the_rest_alone(said: Said) -> None:
    key = said("keys", "create", "--name", "k", *EVERYTHING)
    after = said("keys", "update", key["id"], "--rpm", "99", "--label", "team=ads", "--model", "only")
    assert after["limit"] == {**key["limit"], "rpm": 99}
    assert after["labels"] == {"team": "ads", "env": "prod"}
    assert after["models"] == ["only"], "a list is replaced whole"
    untouched = ("name", "tenant", "endpoints", "model_limits", "priority", "sources", "expires", "id", "created")
    assert {name: after[name] for name in untouched} == {name: key[name] for name in untouched}
    assert after["version"] == 2


def test_rules_for_bodies_are_shown(run: Run, said: Said) -> None:
    key = said("keys", "create", "--name", "k", *EVERYTHING)
    told = run("keys", "show", key["id"]).output
    for line in (
        'system_prompt "Be kind."',
        "deny logit_bias",
        "set max_tokens=500",
        "set stop=null",
        'default seed={"a":[1.5]}',
    ):
        assert line in told


def test_rules_for_bodies_are_changed_part_by_part(said: Said, refused: Refused) -> None:
    key = said("keys", "create", "--name", "k", *EVERYTHING)
    after = said("keys", "update", key["id"], "--body-set", 'user="acme"', "--clear", "body:deny")
    assert after["body"] == {
        "set": {"user": "acme"},
        "default": {"seed": {"a": [1.5]}},
        "system_prompt": "Be kind.",
    }
    after = said("keys", "update", key["id"], "--clear", "body:system_prompt")
    assert "system_prompt" not in after["body"]
    assert said("keys", "update", key["id"], "--clear", "body")["body"] is None
    for wrong in ("user=acme", "user", "=1"):
        assert "VALUE in JSON" in refused("keys", "update", key["id"], "--body-set", wrong)
    assert "'model' is what every call" in refused("keys", "update", key["id"], "--body-deny", "model")
    assert "body:PART" in refused("keys", "update", key["id"], "--clear", "body:sets")


def test_endpoints_are_changed(said: Said) -> None:
    key = said("keys", "create", "--name", "k", *EVERYTHING)
    after = said("keys", "update", key["id"], "--endpoint", "embeddings", "--endpoint", "completions")
    assert after["endpoints"] == ["embeddings", "completions"]


def test_clearing(said: Said) -> None:
    key = said("keys", "create", "--name", "k", *EVERYTHING)
    clears = ["tpm", "budget:month", "outage:rpm", "label:env", "model-limit:demo/smollm2:135m", "source", "expires"]
    after = said("keys", "update", key["id"], *(word for field in clears for word in ("--clear", field)))
    assert after["limit"] == {
        "rpm": 10,
        "itpm": 15_000,
        "otpm": 5_000,
        "concurrency": 3,
        "budget": {"day": {"tokens": 2_000_000}},
        "outage": {"budget": "open"},
    }
    assert (after["model_limits"], after["sources"], after["expires"]) == ({}, [], None)
    assert after["labels"] == {"team": "search"}


def test_limits_on_one_model_are_changed_one_by_one(said: Said) -> None:
    key = said("keys", "create", "--name", "k", "--model-limit", "a:rpm=1,tpm=2", "--model-limit", "b:rpm=3")
    after = said("keys", "update", key["id"], "--model-limit", "a:rpm=9", "--clear", "model-limit:b")
    assert after["model_limits"] == {"a": {"rpm": 9, "tpm": 2}}


def test_a_list_is_narrowed_by_every_filter(said: Said, run: Run) -> None:
    ids = {}
    for name, options in {
        "a": ("--tenant", "x", "--label", "team=search"),
        "b": ("--tenant", "x", "--label", "team=ads", "--label", "env=prod"),
        "c": ("--tenant", "y"),
    }.items():
        ids[name] = said("keys", "create", "--name", name, *options)["id"]
    run("keys", "revoke", ids["b"])

    def listed(*options: str) -> list[str]:
        return [key["name"] for key in said("keys", "list", *options)]

    assert listed() == ["a", "b", "c"]
    assert listed("--tenant", "x") == ["a", "b"]
    assert listed("--label", "team=search") == ["a"]
    assert listed("--label", "team=ads", "--label", "env=prod") == ["b"]
    assert listed("--label", "team=ads", "--label", "env=test") == []
    assert listed("--status", "revoked") == ["b"]
    assert listed("--tenant", "x", "--status", "active") == ["a"]
    assert "No such keys." in run("keys", "list", "--tenant", "z").stdout


def test_a_list_without_keys_says_how_to_make_one(run: Run) -> None:
    assert "trunkline keys create" in run("keys", "list").stdout


def test_what_a_script_gets_is_the_token_alone(run: Run) -> None:
    result = run("keys", "create", "--name", "k")
    assert result.stdout.startswith("tl_") and result.stdout.count("\n") == 1


def test_rotating_and_revoking(said: Said, run: Run) -> None:
    key = said("keys", "create", "--name", "k")
    renewed = said("keys", "rotate", key["id"], "--overlap", "1h")
    assert renewed["secret"] != key["secret"] and renewed["id"] == key["id"]
    assert len(renewed["secrets"]) == 2
    assert "is revoked" in run("keys", "revoke", key["id"]).stdout
    assert said("keys", "show", key["id"])["status"] == "revoked"


def test_people_see_under_which_pepper_a_secret_is_stored_and_how_long_it_lives(said: Said, run: Run) -> None:
    key = said("keys", "create", "--name", "k", "--rpm", "5")
    run("keys", "rotate", key["id"], "--overlap", "1h")
    shown = run("keys", "show", key["id"]).stdout
    assert "pepper 0, until 20" in shown and "5 rpm" in shown and "k" in shown
    assert "digest" not in shown and "expires" not in shown


def test_secrets_are_shown_once_and_stored_nowhere(said: Said, run: Run, tmp_path: Path) -> None:
    secrets = [said("keys", "create", "--name", "k", *EVERYTHING)["secret"]]
    key_id = secrets[0].split("_")[1]
    secrets.append(said("keys", "rotate", key_id)["secret"])
    shown = "".join(
        run(*command).output
        for command in (
            ("keys", "list"),
            ("keys", "list", "--json"),
            ("keys", "show", key_id),
            ("keys", "update", key_id, "--rpm", "1"),
            ("keys", "revoke", key_id, "--json"),
            ("admin", "audit", "--json"),
        )
    )
    files = "".join(file.read_text("latin-1") for file in tmp_path.rglob("*") if file.is_file())
    assert key_id in shown and key_id in files
    for secret in secrets:
        assert secret.split("_")[2][:43] not in shown + files
    assert "digest" not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rpm", "0"), "'0': expected a number above 0"),
        (("--rpm", "many"), "'many': expected a number such as 200k"),
        (("--concurrency", "-1"), "'-1'"),
        (("--budget", "year:tokens=1"), "'year:tokens=1': expected PERIOD:tokens=NUMBER"),
        (("--outage", "rpm=maybe"), "'rpm=maybe'"),
        (("--model-limit", "m:rmp=1"), "'rmp' is no limit"),
        (("--priority", "urgent"), "'urgent' is not one of 'high', 'normal', 'low'"),
        (("--expires", "soon"), "'soon': expected a duration such as 2s"),
        (("--expires", "0s"), "has passed"),
        (("--label", "team"), "'team': expected NAME=VALUE"),
        (("--source", "10.0.0.0/99"), "10.0.0.0/99"),
        (("--source", ""), "is not a network"),
        (("--endpoint", "chats"), "'chats'"),
        (("--tenant", "a b"), "'a b'"),
        (("--model", ""), "models[0]"),
    ],
)
def test_what_cannot_be_is_named(refused: Refused, run: Run, options: tuple[str, str], said: str) -> None:
    message = refused("keys", "create", "--name", "k", *options)
    assert said in message
    assert run("keys", "list", "--json").stdout.strip() == "[]", "nothing was made"


def test_a_name_is_needed_and_printable(refused: Refused) -> None:
    assert "--name" in refused("keys", "create")
    assert "name" in refused("keys", "create", "--name", "a\x1b[31mb")


def test_an_update_needs_something_to_do(said: Said, refused: Refused) -> None:
    key = said("keys", "create", "--name", "k")
    assert "nothing to change" in refused("keys", "update", key["id"])
    assert "set and cleared" in refused("keys", "update", key["id"], "--rpm", "1", "--clear", "rpm")
    assert "'name': expected one of rpm" in refused("keys", "update", key["id"], "--clear", "name")


def test_a_revoked_key_is_not_changed(said: Said, refused: Refused, run: Run) -> None:
    key = said("keys", "create", "--name", "k")
    run("keys", "revoke", key["id"])
    assert "is revoked" in refused("keys", "update", key["id"], "--rpm", "1")


@pytest.mark.parametrize("command", ["show", "update", "rotate", "revoke"])
def test_a_key_that_is_not_there(refused: Refused, command: str) -> None:
    options = ("--rpm", "1") if command == "update" else ()
    assert "there is no key 'nobody'; `trunkline keys list` shows all" in refused("keys", command, "nobody", *options)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://user:hidden@127.0.0.1:1/0", "Redis does not answer at redis://127.0.0.1:1/0: .*127.0.0.1:1"),
        ("redis://nosuch.invalid/0", "Redis does not answer at redis://nosuch.invalid/0: .*nosuch.invalid"),
        ("unix:///no/such.sock", "Redis does not answer at unix:///no/such.sock: .*No such file"),
        ("redis://127.0.0.1:6379/limits", "the database behind the last slash must be a number"),
        ("redis://127.0.0.1:x/0", "the Redis URL cannot be read"),
        ("http://127.0.0.1", "the Redis URL must begin with one of redis://"),
    ],
)
def test_a_redis_that_cannot_be_used_is_told_in_one_line(url: str, said: str) -> None:
    done = CliRunner().invoke(cli, ["keys", "list", "--redis-url", url])
    lines = done.output.strip().splitlines()
    assert done.exit_code != 0 and len(lines) == 1
    assert re.search(said, lines[0]) and "hidden" not in lines[0]


def test_what_is_left_without_a_pepper_is_listed(run: Run, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = said("keys", "create", "--name", "old")["id"]
    assert "Without a pepper" not in run("keys", "list").output
    monkeypatch.setenv("TRUNKLINE_PEPPERS", "1:one")
    said("keys", "create", "--name", "new")
    assert (
        f"Without a pepper, and refused; TRUNKLINE_PEPPER_MIGRATE=DATE accepts them until then: {bare}\n"
        in run("keys", "list").output
    )
    monkeypatch.setenv("TRUNKLINE_PEPPER_MIGRATE", "2100-01-01")
    assert f"and hashed anew when they are used: {bare}\n" in run("keys", "list").output

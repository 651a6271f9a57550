"""Virtual keys over the admin interface: every field, merging changes, versions, pages, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.admin_app import Admin, admin_app

from gateway.admin import Registrar
from gateway.admin.standing import Holding
from gateway.core.types import KeyRecord, Limit
from gateway.limits import Rules


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with admin_app(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    """One in which nothing is made."""
    with admin_app(tmp_path_factory.mktemp("asked")) as started:
        yield started


FULL: dict[str, Any] = {
    "name": "k",
    "tenant": "acme",
    "models": ["big", "sm*"],
    "endpoints": ["chat/*"],
    "limit": {
        "rpm": 10,
        "tpm": 20000,
        "concurrency": 2,
        "budget": {"day": {"tokens": 5, "cost_micros": 6}, "month": {"cost_micros": 7}},
        "outage": {"rpm": "closed", "budget": "open"},
    },
    "model_limits": {"big": {"rpm": 1}, "small": {"tpm": 2}},
    "priority": "low",
    "labels": {"team": "search", "env": "prod"},
    "sources": ["10.0.0.0/8"],
    "body": {"deny": ["logit_bias"], "set": {"max_tokens": 9, "user": None}, "default": {"stop": ["a", {"b": 1.5}]}},
}


def test_every_field_is_kept_as_it_was_sent(admin: Admin) -> None:
    expires = admin.clock.now() + 100
    made = admin.said("POST", "/keys", {**FULL, "expires": expires})
    assert made["secret"].startswith(f"tl_{made['id']}_")
    assert {name: made[name] for name in FULL} == FULL
    assert made["expires"] == pytest.approx(expires)
    assert (made["status"], made["version"]) == ("active", 1)


def test_secrets_are_shown_by_making_and_rotating_and_nothing_else(admin: Admin) -> None:
    made = admin.said("POST", "/keys", FULL)
    rotated = admin.said("POST", f"/keys/{made['id']}/rotate", {"overlap_seconds": 60})
    assert rotated["secret"] != made["secret"]
    others = [
        admin.ask("GET", "/keys"),
        admin.ask("GET", f"/keys/{made['id']}"),
        admin.ask("PATCH", f"/keys/{made['id']}", {"name": "n"}),
        admin.ask("GET", "/audit"),
        admin.ask("DELETE", f"/keys/{made['id']}"),
    ]
    text = "".join(answer.text for answer in others)
    assert made["id"] in text
    for secret in (made["secret"], rotated["secret"], admin.token):
        assert secret.split("_")[2][:43] not in text
    assert "digest" not in text
    assert {answer.headers["cache-control"] for answer in others} == {"no-store"}


def test_a_change_merges(admin: Admin) -> None:
    """Absent stays, null clears, objects are merged, lists are replaced."""
    made = admin.said("POST", "/keys", FULL)
    change = {
        "limit": {"tpm": None, "rpm": 99, "budget": {"day": {"tokens": None}, "week": {"tokens": 8}}},
        "model_limits": {"small": None, "big": {"otpm": 3}},
        "labels": {"env": None, "new": "x"},
        "models": ["only"],
        "priority": "high",
    }
    changed = admin.said("PATCH", f"/keys/{made['id']}", change)
    assert changed["limit"] == {
        "rpm": 99,
        "concurrency": 2,
        "budget": {"day": {"cost_micros": 6}, "week": {"tokens": 8}, "month": {"cost_micros": 7}},
        "outage": {"rpm": "closed", "budget": "open"},
    }
    assert changed["model_limits"] == {"big": {"rpm": 1, "otpm": 3}}
    assert changed["labels"] == {"team": "search", "new": "x"}
    assert (changed["models"], changed["priority"], changed["version"]) == (["only"], "high", 2)
    assert {name: changed[name] for name in ("name", "tenant", "endpoints", "sources", "expires")} == {
        name: made[name] for name in ("name", "tenant", "endpoints", "sources", "expires")
    }


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"set": {"seed": 1}}, {**FULL["body"], "set": {"seed": 1}}),
        ({"set": None}, {"deny": ["logit_bias"], "default": FULL["body"]["default"]}),
        ({"deny": []}, {"set": FULL["body"]["set"], "default": FULL["body"]["default"]}),
        ({"deny": None, "set": {}, "default": None}, None),
        ({}, FULL["body"]),
    ],
    ids=str,
)
def test_each_part_of_the_rules_for_bodies_is_replaced_whole(admin: Admin, change: Any, left: Any) -> None:
    made = admin.said("POST", "/keys", FULL)
    assert admin.said("PATCH", f"/keys/{made['id']}", {"body": change})["body"] == left
    assert admin.said("PATCH", f"/keys/{made['id']}", {"name": "other"})["body"] == left


def test_a_change_may_not_contradict_what_stands(admin: Admin) -> None:
    made = admin.said("POST", "/keys", FULL)
    refused = admin.ask("PATCH", f"/keys/{made['id']}", {"body": {"default": {"max_completion_tokens": 3}}})
    assert refused.status_code == 400 and "'max_tokens' stands under 'set'" in refused.text
    assert admin.said("GET", f"/keys/{made['id']}")["body"] == FULL["body"]


def test_endpoints_can_be_changed(admin: Admin) -> None:
    made = admin.said("POST", "/keys", FULL)
    assert admin.said("PATCH", f"/keys/{made['id']}", {"endpoints": ["embeddings"]})["endpoints"] == ["embeddings"]


@pytest.mark.parametrize(
    ("field", "left"),
    [
        ("limit", {}),
        ("model_limits", {}),
        ("labels", {}),
        ("sources", []),
        ("body", None),
        ("expires", None),
    ],
)
def test_null_clears_a_field(admin: Admin, field: str, left: Any) -> None:
    made = admin.said("POST", "/keys", {**FULL, "expires": admin.clock.now() + 100})
    assert admin.said("PATCH", f"/keys/{made['id']}", {field: None})[field] == left


@pytest.mark.parametrize("field", ["name", "tenant", "models", "endpoints", "priority"])
def test_what_every_key_has_cannot_be_cleared(admin: Admin, field: str) -> None:
    made = admin.said("POST", "/keys", FULL)
    assert admin.wrong("PATCH", f"/keys/{made['id']}", {field: None})[1] == field


def test_a_change_of_another_version_is_refused(admin: Admin) -> None:
    made = admin.said("POST", "/keys", FULL)
    path = f"/keys/{made['id']}"
    assert admin.said("PATCH", path, {"name": "a", "version": 1})["version"] == 2
    answer = admin.ask("PATCH", path, {"name": "b", "version": 1})
    assert answer.status_code == 409
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("version_conflict", "version")
    assert admin.said("GET", path)["name"] == "a"
    assert admin.said("PATCH", path, {"name": "c", "version": 2})["name"] == "c"


def test_a_change_without_a_version_is_decided_anew_on_what_others_wrote(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = admin.said("POST", "/keys", FULL)
    rivals = [Registrar(admin.store.records, {0: b""}, admin.clock, "rival") for _ in range(3)]
    read = admin.store.records.get

    async def contested(kind: type[Any], id: str) -> Any:
        record = await read(kind, id)
        if kind is KeyRecord and rivals:
            rival = rivals.pop()
            monkeypatch.setattr(admin.store.records, "get", read)
            await rival.update(id, labels={**record.labels, f"rival-{len(rivals)}": "x"})
            monkeypatch.setattr(admin.store.records, "get", contested)
        return record

    monkeypatch.setattr(admin.store.records, "get", contested)
    changed = admin.said("PATCH", f"/keys/{made['id']}", {"labels": {"mine": "y"}})
    assert changed["labels"] == {**FULL["labels"], "rival-0": "x", "rival-1": "x", "rival-2": "x", "mine": "y"}


def test_a_key_that_never_stops_changing_is_a_conflict(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    made = admin.said("POST", "/keys", FULL)
    rival = Registrar(admin.store.records, {0: b""}, admin.clock, "rival")
    read, turn = admin.store.records.get, [0]

    async def contested(kind: type[Any], id: str) -> Any:
        record = await read(kind, id)
        if kind is KeyRecord and turn[0] < 1000:
            turn[0] += 1
            monkeypatch.setattr(admin.store.records, "get", read)
            await rival.update(id, name=f"n{turn[0]}")
            monkeypatch.setattr(admin.store.records, "get", contested)
        return record

    monkeypatch.setattr(admin.store.records, "get", contested)
    admin.wrong("PATCH", f"/keys/{made['id']}", {"labels": {"mine": "y"}}, status=409)


def test_revoking_and_rotating(admin: Admin) -> None:
    made = admin.said("POST", "/keys", FULL)
    path = f"/keys/{made['id']}"
    day = admin.said("POST", f"{path}/rotate")
    assert day["secrets"][0]["not_after"] == admin.clock.now() + 86400, "a day, if nothing is said"
    assert admin.said("DELETE", path)["status"] == "revoked"
    assert admin.said("DELETE", path)["status"] == "revoked", "twice does what once does"
    for method, where, body in (("PATCH", path, {"name": "n"}), ("POST", f"{path}/rotate", {})):
        assert "revoked" in admin.wrong(method, where, body)[0]


def make(admin: Admin, count: int, **fields: Any) -> list[str]:
    async def some() -> list[str]:
        registrar = Registrar(admin.store.records, {0: b""}, admin.clock, "test")
        made = []
        for index in range(count):
            admin.clock.advance(1)
            made.append((await registrar.create(f"k{index}", **fields))[0].id)
        return made

    return asyncio.run(some())


def test_pages_have_every_key_once(admin: Admin) -> None:
    ids = make(admin, 25)
    seen, after, pages = [], "", 0
    while True:
        page = admin.said("GET", f"/keys?limit=10{after}")
        seen += [key["id"] for key in page["data"]]
        pages += 1
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert (seen, pages) == (ids, 3)
    assert admin.said("GET", "/keys?limit=25")["next"] is None, "a full last page is the last one"


def test_lists_are_narrowed(admin: Admin) -> None:
    (one,) = make(admin, 1, tenant="a", labels={"team": "x"})
    (two,) = make(admin, 1, tenant="a", labels={"team": "x", "env": "p:q"})
    (three,) = make(admin, 1, tenant="b", lifetime=5.0)
    admin.said("DELETE", f"/keys/{one}")
    admin.clock.advance(10)

    def listed(query: str) -> list[str]:
        return [key["id"] for key in admin.said("GET", f"/keys?{query}")["data"]]

    assert listed("tenant=a") == [one, two]
    assert listed("label=team:x") == [one, two]
    assert listed("label=team:x&label=env:p:q") == [two]
    assert listed("label=team:y") == []
    assert listed("status=revoked") == [one]
    assert listed("tenant=b") == [three]
    assert listed(f"tenant=a&limit=1&after={one}") == [two]


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"nam": "k"}, "nam", "no such field"),
        ({"name": "k", "limit": {"rmp": 1}}, "limit.rmp", "no such field"),
        ({"name": "k", "limit": {"budget": {"day": {"money": 1}}}}, "limit.budget.day.money", "no such field"),
        ({"name": "k", "limit": {"budget": {"year": {}}}}, "limit.budget.year", "no such field"),
        ({"name": "k", "limit": {"rpm": 0}}, "limit.rpm", ">= 1"),
        ({"name": "k", "limit": {"rpm": "5"}}, "limit.rpm", "Expected `int"),
        ({"name": "k", "limit": {"rpm": "null"}}, "limit.rpm", "Expected `int"),
        ({"name": "k", "limit": {"rpm": 1.5}}, "limit.rpm", "Expected `int"),
        ({"name": "k", "limit": {"outage": {"rpm": "ajar"}}}, "limit.outage.rpm", "ajar"),
        ({"name": "k", "priority": "urgent"}, "priority", "urgent"),
        ({"name": "k", "models": []}, "models", "length >= 1"),
        ({"name": "k", "model_limits": {"other": {"rpm": 1}}}, "model_limits", "no route 'other'; routes: big, small"),
        ({"name": "k", "endpoints": ["chats"]}, None, "'chats'"),
        ({"name": "k", "sources": ["10.0.0.0/99"]}, None, "10.0.0.0/99"),
        ({"name": "k", "sources": [""]}, None, "not a network"),
        ({"name": "k", "body": {"set": {"model": "x"}}}, None, "'model' makes the call"),
        ({"name": "k", "body": {"set": {"a": 1}, "default": {"a": 1}}}, None, "body.default: 'a'"),
        ({"name": "k", "body": {"sets": {"a": 1}}}, "body.sets", "no such field"),
        ({"name": "k", "body": {"deny": "a"}}, "body.deny", "array"),
        ({"name": "k", "tenant": "a b"}, None, "'a b'"),
        ({"name": "k", "expires": 1.0}, None, "expires"),
        ({"name": "a\x1bb"}, None, "name"),
        ({}, None, "name"),
        ([], None, "Expected `object`"),
    ],
)
def test_what_is_wrong_is_named(asked: Admin, body: Any, field: str | None, said: str) -> None:
    message, param = asked.wrong("POST", "/keys", body)
    assert said in message
    assert param == field
    assert asked.said("GET", "/keys")["data"] == []


def test_a_body_that_is_none(asked: Admin) -> None:
    assert "body is needed" in asked.wrong("POST", "/keys")[0]
    for raw in (b"{", b'{"name": "k"', b"\xff"):
        answer = asked.client.post("/admin/v1/keys", content=raw, headers={"authorization": f"Bearer {asked.token}"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "bad_request"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "status=dead", "label=team", "after=nobody"])
def test_questions_that_make_no_sense(asked: Admin, query: str) -> None:
    assert asked.wrong("GET", f"/keys?{query}")[1] == query.partition("=")[0]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "", None), ("PATCH", "", {"name": "n"}), ("DELETE", "", None), ("POST", "/rotate", {})],
)
def test_a_key_that_is_not_there(asked: Admin, method: str, path: str, body: Any) -> None:
    assert "no key of this id" in asked.wrong(method, f"/keys/nobody{path}", body, status=404)[0]


def test_a_key_is_shown_with_the_limits_that_hold(admin: Admin) -> None:
    rules = Rules(key=Limit(tpm=5000), tenant=Limit(rpm=100))
    admin.context.replace(("big",), {}, Holding(rules))
    made = admin.said("POST", "/keys", {"name": "k", "limit": {"budget": {"day": {"tokens": 9}}}})
    shown = admin.said("GET", f"/keys/{made['id']}")["standing"]
    assert [(each["scope"], each["name"], each["limit"], each["left"]) for each in shown] == [
        ("key", "tpm", 5000, None),
        ("key", "budget", 9, 9),
        ("tenant", "rpm", 100, None),
    ]
    assert [each["name"] for each in admin.said("GET", "/tenants/default")["standing"]] == ["rpm"]


def test_a_key_and_a_tenant_are_deleted(admin: Admin) -> None:
    admin.said("PUT", "/tenants/acme", {"limit": {"rpm": 5}})
    made = admin.said("POST", "/keys", {"name": "k", "tenant": "acme"})
    assert "has 1 keys" in admin.wrong("DELETE", "/tenants/acme")[0]
    assert admin.said("DELETE", f"/keys/{made['id']}?forget=true")["status"] == "revoked"
    admin.wrong("GET", f"/keys/{made['id']}", status=404)
    admin.wrong("DELETE", f"/keys/{made['id']}", status=404)
    assert admin.said("GET", "/keys")["data"] == []
    assert admin.said("DELETE", "/tenants/acme") == {"id": "acme", "version": 2}
    admin.wrong("GET", "/tenants/acme", status=404)

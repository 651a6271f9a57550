"""The admin interface besides keys: who may come in, tenants, admin keys, reports, its description."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.admin_app import Admin, Records, admin_app
from harness.clock import FixedClock

from gateway.admin import Registrar
from gateway.admin.http.credentials import REMINDER, offer_token
from gateway.auth import token
from gateway.auth.token import ADMIN
from gateway.core.types import Entry
from gateway.store.local import LocalStore


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with admin_app(tmp_path) as started:
        yield started


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    """One that is only asked."""
    with admin_app(tmp_path_factory.mktemp("asked")) as started:
        yield started


GUARDED = [
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("GET", "/keys/x"),
    ("PATCH", "/keys/x"),
    ("DELETE", "/keys/x"),
    ("POST", "/keys/x/rotate"),
    ("GET", "/tenants"),
    ("GET", "/tenants/x"),
    ("PUT", "/tenants/x"),
    ("PATCH", "/tenants/x"),
    ("DELETE", "/tenants/x"),
    ("GET", "/targets"),
    ("GET", "/targets/x"),
    ("PATCH", "/targets/x"),
    ("GET", "/admin-keys"),
    ("POST", "/admin-keys"),
    ("DELETE", "/admin-keys/x"),
    ("GET", "/audit"),
    ("GET", "/usage"),
]


def test_every_route_wants_an_admin_key(admin: Admin) -> None:
    wrong = ("", "tladm_nonsense", token("A" * 12, "b" * 43, ADMIN), "tl" + admin.token[5:])
    answers = []
    for method, path in GUARDED:
        admin.clock.advance(600)  # or the throttle would answer
        answers += [admin.ask(method, path, {"name": "k"}, token=presented) for presented in wrong]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1, "nothing tells which keys exist"
    assert "tladm_" in answers[0].json()["error"]["message"]


def test_every_guarded_route_is_known_to_these_tests(asked: Admin) -> None:
    paths = asked.client.get("/docs/openapi.json").json()["paths"]
    found = {
        (method.upper(), re.sub(r"{\w+}", "x", path.removeprefix("/admin/v1")))
        for path, item in paths.items()
        for method in item
        if path.startswith("/admin/")
    }
    assert found == set(GUARDED)


def test_a_virtual_key_does_not_administer(admin: Admin) -> None:
    virtual = admin.said("POST", "/keys", {"name": "k"})["secret"]
    assert admin.ask("GET", "/keys", token=virtual).status_code == 401


def test_a_revoked_or_expired_admin_key_is_refused_at_once(admin: Admin) -> None:
    short = admin.said("POST", "/admin-keys", {"name": "s", "expires": admin.clock.now() + 10})
    other = admin.said("POST", "/admin-keys", {"name": "o"})
    assert [admin.ask("GET", "/keys", token=key["secret"]).status_code for key in (short, other)] == [200, 200]
    admin.clock.advance(11)
    assert admin.said("DELETE", f"/admin-keys/{other['id']}")["status"] == "revoked"
    assert [admin.ask("GET", "/keys", token=key["secret"]).status_code for key in (short, other)] == [401, 401]


def test_who_keeps_sending_wrong_keys_is_told_to_wait(admin: Admin) -> None:
    answers = [admin.ask("GET", "/keys", token=f"tladm_{index}") for index in range(60)]
    assert answers[0].status_code == 401
    assert answers[-1].status_code == 429 and int(answers[-1].headers["retry-after"]) > 0


def test_the_one_time_token_makes_one_admin_key_and_nothing_else(tmp_path: Path) -> None:
    with admin_app(tmp_path, once=True) as admin:
        for method, path in GUARDED:
            if (method, path) != ("POST", "/admin-keys"):
                assert admin.ask(method, path, {"name": "k"}).status_code == 401, (method, path)
        admin.wrong("POST", "/admin-keys", {"nam": "me"})  # a slip does not use it up
        made = admin.said("POST", "/admin-keys", {"name": "me"})
        assert admin.ask("POST", "/admin-keys", {"name": "me"}).status_code == 401
        assert admin.ask("GET", "/keys", token=made["secret"]).status_code == 200


def test_the_one_time_token_is_good_for_one_of_many_at_once(tmp_path: Path) -> None:
    with admin_app(tmp_path, once=True) as admin:
        statuses: list[int] = []
        callers = [
            threading.Thread(
                target=lambda: statuses.append(admin.ask("POST", "/admin-keys", {"name": "me"}).status_code)
            )
            for _ in range(10)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert sorted(statuses) == [201] + [401] * 9


def test_a_tenant_is_written_whole_and_changed_in_part(admin: Admin) -> None:
    whole = admin.said("PUT", "/tenants/acme", {"limit": {"rpm": 5, "tpm": 6}, "labels": {"a": "b"}})
    assert (whole["limit"], whole["version"], whole["keys"]) == ({"rpm": 5, "tpm": 6}, 1, 0)
    part = admin.said("PATCH", "/tenants/acme", {"limit": {"rpm": None, "otpm": 7}})
    assert (part["limit"], part["labels"]) == ({"tpm": 6, "otpm": 7}, {"a": "b"})
    again = admin.said("PUT", "/tenants/acme", {"limit": {"rpm": 1}})
    assert (again["limit"], again["labels"]) == ({"rpm": 1}, {})
    shown = admin.said("GET", "/tenants/acme")
    assert {name: shown[name] for name in again} == again


def test_a_tenants_version_is_compared(admin: Admin) -> None:
    assert admin.said("PUT", "/tenants/t", {"version": 0})["version"] == 1
    for method in ("PUT", "PATCH"):
        admin.wrong(method, "/tenants/t", {"limit": {"rpm": 1}, "version": 0}, status=409)
        admin.wrong(method, "/tenants/t", {"limit": {"rpm": 1}, "version": 2}, status=409)
    assert admin.said("PATCH", "/tenants/t", {"limit": {"rpm": 1}, "version": 1})["version"] == 2


def test_tenants_that_only_keys_name_are_listed(admin: Admin) -> None:
    key = admin.said("POST", "/keys", {"name": "k", "tenant": "b"})
    admin.said("PUT", "/tenants/a", {})
    shown = [(each["id"], each["version"], each["keys"]) for each in admin.said("GET", "/tenants")["data"]]
    assert shown == [("a", 1, 0), ("b", 0, 1)]
    assert admin.said("GET", "/tenants/b")["limit"] == {}
    admin.said("DELETE", f"/keys/{key['id']}")
    assert admin.said("GET", "/tenants/b")["keys"] == 0


def test_tenants_that_cannot_be(admin: Admin) -> None:
    assert "'a b'" in admin.wrong("PUT", "/tenants/a%20b", {})[0]
    assert "'a b'" in admin.wrong("PATCH", "/tenants/a%20b", {})[0]
    assert admin.wrong("PUT", "/tenants/a", {"limits": {}})[1] == "limits"
    admin.wrong("GET", "/tenants/nobody", status=404)


def test_the_audit_log_says_who(admin: Admin) -> None:
    key = admin.said("POST", "/keys", {"name": "k"})
    admin.said("PATCH", f"/keys/{key['id']}", {"limit": {"rpm": 3}})
    newest, older = admin.said("GET", "/audit?count=2")["data"]
    assert (newest["action"], older["action"]) == ("key.update", "key.create")
    assert newest["actor"] == f"admin:{admin.token.split('_')[1]}"
    assert (newest["before"]["limit"], newest["after"]["limit"]) == ({}, {"rpm": 3})
    for count in ("0", "1001", "x"):
        assert admin.wrong("GET", f"/audit?count={count}")[1] == "count"


def test_usage_is_summed_as_asked(admin: Admin) -> None:
    at = admin.clock.now()
    entries = [
        Entry(call_id=str(index), time=at, key_id=key, tenant="t", route=route, input=10, output=index, cost_micros=7)
        for index, (key, route) in enumerate([("a", "big"), ("a", "small"), ("b", "big")])
    ]
    asyncio.run(admin.store.ledger.append("batch", entries))
    usage = admin.said("GET", "/usage")
    assert (usage["from"], usage["to"], usage["by"]) == ("2027-01-01", "2027-01-15", ["key"])
    assert {(row["key"], row["calls"], row["input"], row["cost_micros"]) for row in usage["data"]} == {
        ("a", 2, 20, 14),
        ("b", 1, 10, 7),
    }
    both = admin.said("GET", "/usage?by=model,%20day&from=2027-01-15&to=2027-01-15")
    assert {(row["model"], row["day"], row["calls"]) for row in both["data"]} == {
        ("big", "2027-01-15", 2),
        ("small", "2027-01-15", 1),
    }
    assert admin.said("GET", "/usage?to=2027-01-14")["data"] == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("by=colour", "'colour'"),
        ("from=2027-1-1", "from: expected a day such as"),
        ("to=2027-02-30", "to: expected a day such as"),
        ("from=20270101", "from: expected"),
        ("from=2027-01-16", "comes after"),
    ],
)
def test_usage_that_cannot_be_told(asked: Admin, query: str, said: str) -> None:
    assert said in asked.wrong("GET", f"/usage?{query}")[0]


def test_while_the_store_is_down_it_says_so(admin: Admin) -> None:
    admin.records.down = True
    answer = admin.ask("GET", "/keys")
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert admin.client.get("/health").status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/admin/v1", "/admin/v1/nothing", "/x"])
def test_there_is_nothing_else(asked: Admin, path: str) -> None:
    answer = asked.client.post(path, json={}, headers={"authorization": f"Bearer {asked.token}"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "path_not_found"


def test_other_methods_are_refused_in_our_words(asked: Admin) -> None:
    assert asked.ask("DELETE", "/keys").json()["error"]["code"] == "method_not_allowed"


def test_a_body_beyond_all_reason(asked: Admin) -> None:
    assert asked.ask("POST", "/keys", {"name": "x" * 2_000_000}).status_code == 400


def test_the_description_is_whole_and_offline(admin: Admin) -> None:
    page = admin.client.get("/docs")
    assert page.status_code == 200
    assert "//" not in page.text.replace("http://www.w3.org", "").split("SwaggerUIBundle")[0]
    schema = admin.client.get("/docs/openapi.json").json()
    assert list(schema["components"]["securitySchemes"]) == ["admin key"]
    for path, item in schema["paths"].items():
        for operation in item.values():
            assert operation["summary"]
            if path.startswith("/admin/"):
                assert operation["security"] == [{"admin key": []}]
                assert {"400", "401", "404", "409", "429", "503"} <= set(operation["responses"])
    body = schema["paths"]["/admin/v1/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].endswith("NewKey")


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LocalStore, Records, Registrar]:
    """A store without admin keys, and who makes the first."""
    monkeypatch.setattr("gateway.admin.http.credentials.RETRY_SECONDS", 0.01)
    store = LocalStore(tmp_path / "keys.json")
    store.records = records = Records(store.records)  # type: ignore[assignment]
    return store, records, Registrar(store.records, {0: b""}, FixedClock(), "bootstrap")


async def test_the_token_is_offered_as_soon_as_the_store_answers(first: tuple[LocalStore, Records, Registrar]) -> None:
    store, records, registrar = first
    said: list[str] = []
    records.down = True
    offer = asyncio.create_task(offer_token(registrar, store, "http://here:1", said.append))
    await asyncio.sleep(0.05)
    assert said == [] and not offer.done()
    records.down = False
    await asyncio.wait_for(offer, 40)
    assert "curl http://here:1/admin/v1/admin-keys" in said[0] and "Bearer tladm_" in said[0]


async def test_the_token_is_shown_at_one_start_only(first: tuple[LocalStore, Records, Registrar]) -> None:
    store, _, registrar = first
    said: list[str] = []
    for _ in range(3):
        await offer_token(registrar, store, "http://here:1", said.append)
    assert said[1:] == [REMINDER, REMINDER] and "Bearer" not in REMINDER


async def test_no_token_is_offered_where_there_is_an_admin_key(first: tuple[LocalStore, Records, Registrar]) -> None:
    store, _, registrar = first
    await registrar.create_admin("me")
    said: list[str] = []
    await offer_token(registrar, store, "http://here:1", said.append)
    assert said == []

"""`keys show` and `tenants show`: the limits that hold, and what is left; and names that the table does not have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from harness.redis_server import RedisServer

from gateway.core.types import Ask, KeyRecord, Plan
from gateway.limits.plan import Rules, of_key
from gateway.store.redis.store import RedisStore

TABLE = """\
routes:
  big: {targets: [{name: a, backend: vllm, url: 'http://a'}], key_limits: {concurrency: 3}, aliases: [gpt-4o]}
limits: {default: {tpm: 5k}, tenant: {rpm: 100}}
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "routing.yaml"
    file.write_text(TABLE)
    return file


def limits(told: dict[str, Any]) -> dict[tuple[str, str, str], tuple[int, int | None, int | None]]:
    return {
        (each["scope"], each["route"], each["name"]): (each["limit"], each["used"], each["left"])
        for each in told["standing"]
    }


def test_the_table_s_limits_hold_too(said: Callable[..., Any], run: Callable[..., Result], table: Path) -> None:
    key = said("keys", "create", "--name", "k", "--rpm", "10", "--budget", "month:tokens=5k")
    told = said("keys", "show", key["id"])
    assert limits(told) == {
        ("key", "", "rpm"): (10, None, None),
        ("key", "", "tpm"): (5000, None, None),
        ("key", "", "budget"): (5000, 0, 5000),
        ("tenant", "", "rpm"): (100, None, None),
        ("key_model", "big", "concurrency"): (3, None, None),
    }
    assert limits(said("tenants", "show", "default")) == {("tenant", "", "rpm"): (100, None, None)}
    shown = run("keys", "show", key["id"])
    assert "key on big" in shown.stdout and "tokens a month" in shown.stdout
    assert "known to the gateway alone" in shown.stderr


async def _use(url: str, key: KeyRecord) -> None:
    store = RedisStore(url, timeout=5)
    await store.open()
    try:
        (rpm,) = [each for _, each in of_key(Rules(), key, None) if each.name == "rpm"]
        plan = Plan(((f"key:{key.id}", key.version),), (rpm,))
        for number in range(4):
            assert (await store.limits.admit(Ask(f"call-{number}", plan, [1]))).denied is None
    finally:
        await store.close()


def test_with_redis_all_that_is_left_is_told(
    said: Callable[..., Any], redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_REDIS_URL", redis.url)
    made = said("keys", "create", "--name", "k", "--rpm", "2", "--concurrency", "7")
    said("keys", "update", made["id"], "--rpm", "1000")
    told = said("keys", "show", made["id"])
    record = KeyRecord(
        id=made["id"], name="k", secrets=(), created=0, version=told["version"], limit=_rpm(told["limit"]["rpm"])
    )
    asyncio.run(_use(redis.url, record))
    found = limits(said("keys", "show", made["id"]))
    limit, used, left = found["key", "", "rpm"]
    assert limit == 1000 and used is not None and 0 < used <= 4 and left == limit - used
    assert found["key", "", "concurrency"] == (7, 0, 7)


def _rpm(number: int) -> Any:
    from gateway.core.types import Limit

    return Limit(rpm=number)


def test_without_a_table_it_is_told_that_its_limits_are_missing(
    said: Callable[..., Any], run: Callable[..., Result], refused: Callable[..., str]
) -> None:
    key = said("keys", "create", "--name", "k")
    assert "there is no" in run("keys", "show", key["id"]).stderr
    assert "cannot be read" in refused("keys", "show", key["id"], "--routing", "nowhere.yaml")


def test_limits_on_a_route_that_is_not_there_are_refused(
    said: Callable[..., Any], refused: Callable[..., str], table: Path
) -> None:
    told = refused("keys", "create", "--name", "k", "--model-limit", "bgi:rpm=1")
    assert "no route 'bgi'; routes: big (did you mean 'big'?)" in told
    key = said("keys", "create", "--name", "k", "--model-limit", "big:rpm=1")
    assert "no route 'x'" in refused("keys", "update", key["id"], "--model-limit", "x:rpm=1")
    assert said("keys", "update", key["id"], "--clear", "model-limit:big")["model_limits"] == {}


@pytest.mark.parametrize(("model", "warned"), [("gtp-4o", True), ("gpt-4o", False), ("b*", False), ("*", False)])
def test_a_model_that_is_not_there_is_warned_of(
    run: Callable[..., Result], table: Path, model: str, warned: bool
) -> None:
    result = run("keys", "create", "--name", "k", "--model", model)
    assert result.exit_code == 0
    assert ("did you mean 'gpt-4o'?" in result.stderr) == warned

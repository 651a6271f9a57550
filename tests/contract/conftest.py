"""The stores under test, and how hard hypothesis tries here."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from contract.subject import Subject, in_memory, in_redis
from contract.written import Places
from harness.redis_server import RedisServer, redis_server
from harness.redis_users import make_user, refused
from hypothesis import settings

from gateway.store.local import LocalStore
from gateway.store.redis.store import RedisStore

settings.register_profile("contract", max_examples=25, deadline=None)
settings.load_profile("contract")


@pytest.fixture(scope="session")
def ruled(redis: RedisServer) -> Iterator[str]:
    """The URL of Redis for a user with what docs/security.md says that a gateway and an operator need, and no more."""
    yield make_user(redis, "gateway", "admin")
    assert refused(redis) == [], "what the store asks for is in no rule of docs/security.md"


@pytest.fixture(params=["memory", "redis"])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """Each store as it is used: the one in memory on the test's clock, Redis in real time."""
    if request.param == "memory":
        async with in_memory(tmp_path) as made:
            yield made
        return
    made = Subject(RedisStore(request.getfixturevalue("ruled"), timeout=30.0), None)
    await made.store.open()
    yield made
    await made.store.close()


@pytest.fixture(params=["memory", "redis"])
async def clocked(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """Each store on the test's clock."""
    where = in_memory(tmp_path) if request.param == "memory" else in_redis(request.getfixturevalue("redis"))
    async with where as made:
        yield made


@pytest.fixture
async def lost(redis: RedisServer) -> AsyncIterator[Subject]:
    """Redis on the test's clock, with a worker that never renews: what one process counts dies with it."""
    async with in_redis(redis, expires=True) as made:
        yield made


@pytest.fixture(params=["memory", "redis"])
async def places(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Places]:
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield Places(lambda: LocalStore(tmp_path / "keys.json"), stack)
        else:
            url = request.getfixturevalue("ruled")
            yield Places(lambda: RedisStore(url, timeout=30.0), stack)


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server to do harm to."""
    with redis_server() as server:
        yield server
        server.process.send_signal(signal.SIGCONT)

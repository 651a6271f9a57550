"""Finds the TGI under test: the one at `TGI_URL`, else a stand-in of our own over the embedded model."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from standin.embedded import embedded_model
from standin.tgi import start_standin

real_url = os.environ.get("TGI_URL")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Faults and special settings can only be asked of the stand-in."""
    if real_url:
        for item in items:
            if "standin_only" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs the stand-in, not a real TGI"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "standin_only: cannot be asked of a real TGI")


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    """One embedded model, shared by every stand-in of the session."""
    with embedded_model() as url:
        yield url


@pytest.fixture(scope="session")
def tgi_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if real_url:
        yield real_url.rstrip("/")
        return
    with start_standin(model_url=request.getfixturevalue("model_url"), keepalive=0.3) as url:
        yield url


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    text: str
    events: list[Any] = field(default_factory=list)

    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def media(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]


def parse(text: str) -> list[Any]:
    """The events of a whole SSE body: JSON decoded, `[DONE]` as it is."""
    lines = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url

    async def get(self, path: str, **headers: str) -> Reply:
        async with self.session.get(self.url + path, headers=headers) as response:
            return await self._reply(response)

    async def post(self, path: str, body: Any, fault: str = "", **headers: str) -> Reply:
        """Post a body as JSON; text and bytes go out as they are."""
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        sent = {"content-type": "application/json", **({"x-fault": fault} if fault else {}), **headers}
        async with self.session.post(self.url + path, data=content, headers=sent) as response:
            return await self._reply(response)

    async def _reply(self, response: aiohttp.ClientResponse) -> Reply:
        text = await response.text()
        headers = {name.lower(): value for name, value in response.headers.items()}
        events = parse(text) if headers.get("content-type", "").startswith("text/event-stream") else []
        return Reply(response.status, headers, text, events)


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=50)) as session:
        yield session


@pytest_asyncio.fixture
async def tgi(session: aiohttp.ClientSession, tgi_url: str) -> Client:
    return Client(session, tgi_url)


@pytest.fixture
def client_of(session: aiohttp.ClientSession) -> Any:
    """Makes clients of other servers than the one under test."""
    return lambda url: Client(session, url)

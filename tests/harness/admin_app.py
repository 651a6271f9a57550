"""The admin interface's app on a state file, with a key for it; no process, no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from harness.around import Around
from harness.clock import FixedClock
from litestar import Litestar
from litestar.testing import TestClient

from gateway.admin import Registrar
from gateway.admin.http.app import build_app
from gateway.admin.http.guards import AdminContext
from gateway.admin.targets import Listed
from gateway.auth import AdminKeys
from gateway.store import StoreDown
from gateway.store.local import LocalStore

PEPPERS = {0: b""}
ROUTES = ("big", "small")
TARGETS = {
    "a": Listed("a", "big", 0, "vllm", "http://a:8000", 1.0),
    "b/2": Listed("b/2", "big", 0, "vllm", "http://b:8000", 2.0),
    "spare": Listed("spare", "big", 1, "tgi", "http://spare:80", 1.0),
}


class Records(Around):
    """Records that can be taken away."""

    down = False

    async def get(self, kind: type[Any], id: str) -> Any:
        if self.down:
            raise StoreDown("down")
        return await self.inner.get(kind, id)

    async def all(self, kind: type[Any]) -> list[Any]:
        if self.down:
            raise StoreDown("down")
        return await self.inner.all(kind)


class Admin(NamedTuple):
    """The interface, and what is behind it."""

    client: TestClient[Litestar]
    clock: FixedClock
    store: LocalStore
    records: Records
    token: str
    context: AdminContext
    state: Path

    def ask(self, method: str, path: str, json: Any = None, *, token: str | None = None) -> httpx.Response:
        """One call, with the admin key unless another token is given."""
        headers = {"authorization": f"Bearer {self.token if token is None else token}"}
        return self.client.request(method, f"/admin/v1{path}", json=json, headers=headers)

    def said(self, method: str, path: str, json: Any = None) -> Any:
        """What a call says that works."""
        answer = self.ask(method, path, json)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def wrong(self, method: str, path: str, json: Any = None, *, status: int = 400) -> tuple[str, str | None]:
        """The message and the field of a call that does not."""
        answer = self.ask(method, path, json)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"]
        return error["message"], error["param"]


@contextmanager
def admin_app(folder: Path, *, once: bool = False) -> Iterator[Admin]:
    """The interface for as long as the block lasts; with `once` its token is the one-time token."""
    clock, store = FixedClock(), LocalStore(folder / "keys.json")
    store.records = records = Records(store.records)  # type: ignore[assignment]
    token = asyncio.run(_token(Registrar(store.records, PEPPERS, clock, "test"), once))

    context = AdminContext(store, PEPPERS, clock, ROUTES, (), TARGETS)
    app = build_app(context, AdminKeys(store.records, PEPPERS, clock))
    app.on_startup.append(store.open)
    app.on_shutdown.append(store.close)
    with TestClient(app) as client:
        yield Admin(client, clock, store, records, token, context, folder / "keys.json")


async def _token(registrar: Registrar, once: bool) -> str:
    made = await registrar.first_admin() if once else await registrar.create_admin("root")
    assert made is not None
    return made[1]

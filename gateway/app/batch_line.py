"""One line of a batch as a call: its client, and the key that it is made with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from msgspec import structs

from backends.api import Call, Endpoint
from backends.large import is_large
from gateway.auth import Keyring
from gateway.config.table import Bodies
from gateway.core.batches import Batch
from gateway.core.errors import too_many_prompts
from gateway.core.types import Caller, KeyRecord
from gateway.http.client import in_windows, read
from gateway.http.request import new_id

KEY_ID: Final = b"x-trunkline-batch-key"
"""Tells `LineKeys` whose line it is: these headers are ours, no client's come here."""


class LineClient:
    """The client of a call that nobody waits for; its answer is kept, whole."""

    gone_at: float | None = None
    explains = False

    def __init__(self, batch: Batch, number: int, raw: bytes, endpoint: Endpoint, bodies: Bodies) -> None:
        """`raw` is the body of the line with this number, the first of which is 0."""
        self.endpoint, self._raw, self.bodies = endpoint, raw, bodies
        self.call_id, self.source = new_id(), batch.source
        self.own_id = f"{batch.id}:{number + 1}"
        self.headers: dict[bytes, bytes] = {KEY_ID: batch.key_id.encode()}
        self.trace = {"x-request-id": self.call_id}
        self.body = bytearray()

    @property
    def started(self) -> bool:
        """Nobody has seen anything of the answer: all of it can be asked for again."""
        return False

    def check(self) -> None:
        """The head is ours."""

    async def call(self, key: KeyRecord, default: str = "") -> Call:
        """The body. Raises `BadRequest`."""
        bodies, endpoint, raw = self.bodies, self.endpoint, self._raw
        large = await in_windows(endpoint, raw, bodies.elements) if is_large(raw, bodies.elements) else None
        call = read(self.call_id, endpoint, raw, b"application/json", large, default)
        if call.asked.prompts > bodies.prompts:
            raise too_many_prompts(call, bodies.prompts)
        return call

    def trust_own_id(self) -> None:
        """Ours is as good."""

    def keep_alive(self, seconds: float, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Nobody waits to hear of it."""

    def prepare(self, headers: list[tuple[bytes, bytes]]) -> None:
        """An attempt begins to answer."""
        self.body.clear()

    async def send(self, data: bytes) -> None:
        """Keep a piece."""
        self.body += data

    async def finish(self, data: bytes, ending: Callable[[], Awaitable[None]]) -> None:
        """Keep the last piece."""
        self.body += data
        await ending()


class LineKeys:
    """As a keyring, for lines: they have no secret to show, only the id of the key that left the batch with us."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    async def authenticate(self, headers: Mapping[bytes, bytes], source: str | None, *, fresh: bool = False) -> Caller:
        """The key as it stands now, with the lowest priority of all; raises as the keyring."""
        caller = await self._keyring.find(headers[KEY_ID].decode(), source, fresh=fresh)
        return Caller(structs.replace(caller.key, priority="batch"), caller.tenant)

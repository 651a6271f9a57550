"""An answer on its way to the client, that somebody else looks at, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from backends.api import Chunk
from gateway.routing.repair import Whole
from gateway.upstream import Exchange


class Watched:
    """An exchange whose pieces are shown to `look`; `whole` is waited for before the client has all of it."""

    def __init__(
        self,
        exchange: Exchange | Whole,
        look: Callable[[bytes], None],
        whole: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._exchange, self._look, self._whole = exchange, look, whole
        self.content_type = exchange.content_type

    async def next(self) -> Chunk:
        """As the exchange's."""
        chunk = await self._exchange.next()
        self._look(chunk.data)
        if chunk.done and self._whole is not None:
            await self._whole()
        return chunk

    @property
    def kept(self) -> int:
        """As the exchange's."""
        return self._exchange.kept

    def keep(self, size: int) -> None:
        """As the exchange's."""
        self._exchange.keep(size)

    def close(self) -> None:
        """As the exchange's."""
        self._exchange.close()


AnyExchange: TypeAlias = Exchange | Whole | Watched
"""An answer as the page passes it on."""

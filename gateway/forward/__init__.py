"""The only caller of HTTP: one attempt at one target, its answer as chunks, its failures in our words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from backends.api import AnyAdapter, Call, Counted, Probed, RequestRefused
from backends.api import Target as Address
from gateway.config import Timeouts
from gateway.core.errors import Unsupported, UpstreamTimeout
from gateway.forward.deadline import Deadline
from gateway.forward.failures import FAILURES, failure, retry_after, status_refusal, worded_refusal
from gateway.forward.transport import Post, Transport
from gateway.forward.upstream import ERROR_BODY_LIMIT, Upstream, merged

__all__ = ["FAILURES", "Deadline", "Forwarder", "Upstream", "failure", "merged", "retry_after"]

PROBE_SECONDS = 3.0
SCRAPE_LIMIT = 4 * 1024**2
"""Bytes of a target's counters; an engine's are some hundred thousand."""


class Forwarder:
    """Sends calls to targets over pooled connections."""

    def __init__(self, answer_limit: int, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._answer_limit = answer_limit
        self._transport = transport or Transport()

    async def close(self) -> None:
        await self._transport.aclose()

    @asynccontextmanager
    async def forward(
        self, call: Call, address: Address, adapter: AnyAdapter, timeouts: Timeouts, trace: Mapping[str, str]
    ) -> AsyncIterator[Upstream]:
        """One attempt. Entering it gives a good answer to read, leaving it ends the exchange whatever is left of it.

        Raises `Unsupported` and `Rejected` (the caller's fault), `UpstreamError` (the target's).
        """
        try:
            asked = adapter.request(call, address)
        except RequestRefused as refused:
            raise Unsupported(refused.message, param=refused.param) from refused
        headers = {**asked.headers, **trace, "accept-encoding": "identity"}
        request = Post(address.url + asked.path, headers, asked.body, timeouts.connect)
        response: httpx.Response | None = None
        try:
            with Deadline(timeouts.first_byte, timeouts.idle) as deadline:
                try:
                    response = await self._transport.handle_async_request(request)
                except httpx.TransportError as error:
                    raise failure(error) from error
                upstream = Upstream(call, adapter, response, deadline, self._answer_limit)
                if (status := response.status_code) != 200:
                    refused_by_status = status_refusal(status, response.headers.get("retry-after"))
                    raise refused_by_status or worded_refusal(
                        call, adapter, status, await upstream.read(ERROR_BODY_LIMIT)
                    )
                yield upstream
        except TimeoutError as error:
            raise UpstreamTimeout("no answer, or no next piece of it, in time") from error
        finally:
            if response is not None:
                await response.stream.aclose()  # type: ignore[union-attr] # it is an AsyncByteStream

    async def probe(self, address: Address, adapter: AnyAdapter, timeouts: Timeouts) -> bool:
        """Whether the target's health route answers 200; True for a kind of server that has none."""
        if not isinstance(adapter, Probed):
            return True
        try:
            async with self._get(address, adapter.probe_path, timeouts) as response:
                return response.status_code == 200
        except (httpx.TransportError, httpx.InvalidURL, TimeoutError):
            return False

    async def scrape(self, address: Address, adapter: AnyAdapter, timeouts: Timeouts) -> str | None:
        """The text in which the target tells its counters; None if it has none, or does not tell them now."""
        if not isinstance(adapter, Counted):
            return None
        text = bytearray()
        try:
            async with self._get(address, adapter.counters_path, timeouts) as response:
                if response.status_code != 200:
                    return None
                async for block in response.stream:  # type: ignore[union-attr] # it is an AsyncByteStream
                    text += block
                    if len(text) > SCRAPE_LIMIT:
                        return None
        except (httpx.TransportError, httpx.InvalidURL, TimeoutError):
            return None
        return text.decode(errors="replace")

    @asynccontextmanager
    async def _get(self, address: Address, path: str, timeouts: Timeouts) -> AsyncIterator[httpx.Response]:
        """A short question beside the calls, and its answer for a few seconds."""
        headers = {"accept-encoding": "identity"}
        if address.api_key is not None:
            headers["authorization"] = f"Bearer {address.api_key}"
        request = httpx.Request("GET", address.url + path, headers=headers)
        request.extensions = {"timeout": {"connect": timeouts.connect}}
        async with asyncio.timeout(timeouts.connect + PROBE_SECONDS):
            response = await self._transport.handle_async_request(request)
            try:
                yield response
            finally:
                await response.stream.aclose()  # type: ignore[union-attr] # it is an AsyncByteStream

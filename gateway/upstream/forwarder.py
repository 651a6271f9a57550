"""The only caller of HTTP: one attempt at one target, its answer as chunks, its failures in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from msgspec import structs

from backends.api import Call, Facts, Gauges, RequestRefused
from backends.api import Target as Address
from backends.capabilities import Capabilities
from gateway.config import Timeouts
from gateway.core.errors import (
    BadReply,
    Disconnected,
    EngineHung,
    GatewayError,
    Rejected,
    Unsupported,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.upstream.connection import Response
from gateway.upstream.exchange import LATE, Exchange, late
from gateway.upstream.failures import conceal, status_refusal, worded_refusal
from gateway.upstream.http1 import Headers
from gateway.upstream.origins import Origins
from gateway.upstream.pool import Pool
from gateway.upstream.public_model import RenamedExchange
from gateway.upstream.reading import ERROR_BODY_LIMIT, AnswerLimits, AnswerMemory, reader_for

IDENTITY: Final = b"accept-encoding", b"identity"
PROBE_SECONDS = 3.0
WAKE_SECONDS = 120.0
"""How long a server may take to fetch its model."""
SCRAPE_LIMIT = 4 * 1024**2
"""Bytes of an answer to one of our own questions; an engine's metrics are some hundred thousand."""
ALWAYS_FORWARDED: Final = frozenset(
    {
        b"anthropic-beta",
        b"anthropic-version",
        b"session-id",
        b"thread-id",
        b"x-claude-code-session-id",
        b"x-session-affinity",
        b"x-session-id",
    }
)
"""What names a conversation, or the version of a dialect: engines may go by it."""
NONE: Final[Mapping[bytes, bytes]] = {}
REFUSED = "credential refused"
PLAIN: Final = (b"identity", b"")
"""Content codings of an answer that is passed on; others would have to be unpacked to be looked at."""
_REFUSALS = (401, 403)
_NO_SUCH_ROUTE = (404, 405, 501)
_TAKEN = (400, 413, 415, 422)
"""How servers answer a body that is no call, once they have let it in."""
_NOT_NOW = (429, 502, 503, 504)
_NO_ANSWER = (UpstreamError, TimeoutError)


class Forwarder:
    """Sends calls to targets over pooled connections."""

    def __init__(self, limits: AnswerLimits, pool: Pool | None = None) -> None:
        self.memory = AnswerMemory(limits.answers)
        self.bound(limits)
        self._pool = pool or Pool()
        self.origins = Origins()

    def bound(self, limits: AnswerLimits) -> None:
        """Take so much of answers into memory, from the next answer on."""
        self.limits, self.memory.bound = limits, limits.answers

    async def close(self) -> None:
        await self._pool.close()

    async def send(
        self,
        call: Call,
        address: Address,
        capabilities: Capabilities,
        timeouts: Timeouts,
        trace: Mapping[str, str],
        callers: Mapping[bytes, bytes] = NONE,
        renames: bool = False,
    ) -> Exchange:
        """One attempt: send the call, and wait for the head of a good answer. Every exchange must be closed.

        `callers` are the headers that the call came with, names in lower case; those that the table names go on.
        With `renames` the answer names the model as the call does.
        Raises `Unsupported` and `Rejected` (the caller's fault), `UpstreamError` (the target's), `AnswerTooLarge`.
        """
        try:
            asked = capabilities.adapter.request(call, address)
        except RequestRefused as refused:
            raise Unsupported(refused.message, param=refused.param) from refused
        headers = [(name.encode(), value.encode()) for name, value in {**asked.headers, **trace}.items()]
        headers.append(IDENTITY)
        origin = self.origins.found.get(address) or self.origins.of(address)
        if origin.forwarded or not ALWAYS_FORWARDED.isdisjoint(callers):
            headers += [(name, callers[name]) for name in {*origin.forwarded, *ALWAYS_FORWARDED} if name in callers]
        due = asyncio.get_running_loop().time() + (timeouts.first_output if call.stream else timeouts.whole)
        rest = call.body.rest
        try:
            if rest is not None:
                response = await self._pool.upload(origin, asked.path, headers, asked.body, rest, timeouts.connect, due)
            else:
                response = await self._pool.request(
                    origin, asked.method, asked.path, headers, asked.body, timeouts.connect, deadline=due
                )
        except TimeoutError:
            raise late(whole=not call.stream) from None
        try:
            if response.status != 200:
                raise await self._refusal(call, address, capabilities, response)
            content_type = fit(response.headers)
            if rest is not None and rest.streams:  # its form may have said so behind the recording
                call = structs.replace(call, stream=True)
            reader = reader_for(
                call,
                capabilities,
                content_type,
                self.limits,
                self.memory,
                lenient=address.lenient,
                continuous=address.continuous_usage,
            )
            parts = response, reader, content_type, due, timeouts.idle, address.api_key
            return RenamedExchange(*parts).rename(call.model) if renames else Exchange(*parts)
        except BaseException:
            response.release()
            raise

    async def _refusal(
        self, call: Call, address: Address, capabilities: Capabilities, response: Response
    ) -> GatewayError:
        """What an answer that is no 200 means, in the target's words where these are fit for the client.

        Raises `BadReply` for one whose words cannot be read.
        """
        refusal = status_refusal(response.status, response.headers.get(b"retry-after"), capabilities)
        if refusal is None:
            fit(response.headers)
            body = bytearray()
            try:
                while piece := await response.read():
                    body += piece
                    if len(body) > ERROR_BODY_LIMIT:
                        return BadReply(f"the answer is larger than {ERROR_BODY_LIMIT} bytes")
            except TimeoutError:
                return UpstreamTimeout(LATE)
            refusal = worded_refusal(call, address, capabilities, response.status, bytes(body))
            if isinstance(refusal, Rejected):
                conceal(refusal, address.api_key)
        return refusal

    def waited_for(self, address: Address) -> tuple[int, float]:
        """How many calls wait for the target's next words, and when words of any came last, in the loop's time."""
        return self._pool.waited_for(self.origins.of(address))

    def give_up(self, address: Address) -> int:
        """Its engine hangs: fail the calls that are there, with `EngineHung`; how many they were."""
        return self._pool.give_up(self.origins.of(address), lambda: EngineHung("its engine makes no progress"))

    async def probe(self, address: Address, capabilities: Capabilities, timeouts: Timeouts) -> str:
        """Why the target cannot serve, by its health route: "unreachable", "timeout", "status 503", "credential
        refused". Empty when it can, and for a kind of server that has no such route."""
        if capabilities.probed is None:
            return ""
        status = await self._status(address, capabilities.probed.probe_path, timeouts)
        if isinstance(status, str):
            return status
        if status == 200:
            return ""
        return REFUSED if status in _REFUSALS else f"status {status}"

    async def credential(self, address: Address, capabilities: Capabilities, timeouts: Timeouts) -> str:
        """ "credential refused" when it is; empty when it is not, or when the target does not tell now."""
        if (guarded := capabilities.guarded) is None:
            return ""
        return REFUSED if await self._status(address, guarded.credential_path, timeouts) in _REFUSALS else ""

    async def open_paths(self, address: Address, capabilities: Capabilities, timeouts: Timeouts) -> list[str] | None:
        """Those of the target's paths for inference that take calls without the credential; None: it does not tell now.

        What is sent there is no call: a server that looks at it at all refuses it.
        """
        if capabilities.exposed is None:
            return []
        anybody, found, sure = structs.replace(address, api_key=None), list[str](), True
        for path in capabilities.exposed.inference_paths:
            status = await self._status(anybody, path, timeouts, "POST", content=b"{}")
            if isinstance(status, str):
                return None
            if status < 300 or status in _TAKEN:
                found.append(path)
            sure &= status not in _NOT_NOW
        return found if found or sure else None

    async def reach(self, address: Address, timeouts: Timeouts) -> str:
        """ "unreachable" or "timeout" for a target that answers nothing at all; empty when it does, whatever it is."""
        status = await self._status(address, "/", timeouts)
        return status if isinstance(status, str) else ""

    async def wake(self, address: Address, capabilities: Capabilities, timeouts: Timeouts) -> str:
        """Tell a server that sleeps to fetch its model, and wait until it has, for two minutes at most; why it has
        not: "unreachable", "timeout", "status 404". Empty when it has."""
        if (wakeable := capabilities.wakeable) is None:
            return "cannot be woken"
        status = await self._status(address, wakeable.wake_path, timeouts, "POST", WAKE_SECONDS)
        if isinstance(status, str):
            return status
        return "" if status == 200 else f"status {status}"

    async def gauges(self, address: Address, capabilities: Capabilities, timeouts: Timeouts) -> Gauges | None:
        """The target's load as it tells it; None if it does not tell it, or not now."""
        if (gauged := capabilities.gauged) is None:
            return None
        text = await self._text(address, gauged.gauges_path, timeouts)
        return None if text is None else gauged.gauges(text)

    async def describe(self, address: Address, capabilities: Capabilities, timeouts: Timeouts) -> Facts | None:
        """What the target says that it is; None if it says nothing, or cannot be asked about all of it now."""
        if (described := capabilities.described) is None:
            return None
        answers = {}
        for path in described.fact_paths:
            try:
                status, body = await self._answer(address, path, timeouts)
            except _NO_ANSWER:
                return None
            if status == 200:
                answers[path] = body
            elif status not in _NO_SUCH_ROUTE:
                return None  # half of the facts would look as if the others had changed
        return described.facts(answers, address.model) if answers else None

    async def scrape(self, address: Address, capabilities: Capabilities, timeouts: Timeouts) -> str | None:
        """The text in which the target tells its counters; None if it has none, or does not tell them now."""
        counted = capabilities.counted
        return None if counted is None else await self._text(address, counted.counters_path, timeouts)

    async def _status(
        self,
        address: Address,
        path: str,
        timeouts: Timeouts,
        method: str = "GET",
        seconds: float = PROBE_SECONDS,
        content: bytes = b"",
    ) -> int | str:
        """The status with which the target answers, or why there is none."""
        try:
            response = await self._ask(address, path, timeouts, method, seconds, content)
        except TimeoutError:
            return "timeout"
        except UpstreamError:
            return "unreachable"
        response.release()
        return response.status

    async def _text(self, address: Address, path: str, timeouts: Timeouts) -> str | None:
        try:
            status, body = await self._answer(address, path, timeouts)
        except _NO_ANSWER:
            return None
        return body.decode(errors="replace") if status == 200 else None

    async def _answer(self, address: Address, path: str, timeouts: Timeouts) -> tuple[int, bytes]:
        """Status and body. Raises one of `_NO_ANSWER` when there is no whole answer of a sane size in time."""
        response = await self._ask(address, path, timeouts)
        body = bytearray()
        try:
            while piece := await response.read():
                body += piece
                if len(body) > SCRAPE_LIMIT:
                    raise BadReply(f"the answer is larger than {SCRAPE_LIMIT} bytes")
        finally:
            response.release()
        return response.status, bytes(body)

    async def _ask(
        self,
        address: Address,
        path: str,
        timeouts: Timeouts,
        method: str = "GET",
        seconds: float = PROBE_SECONDS,
        content: bytes = b"",
    ) -> Response:
        """A short question beside the calls, on their connections: the head of its answer, all of which must have come
        within so many seconds. Raises one of `_NO_ANSWER`."""
        headers = [IDENTITY]
        if address.api_key is not None:
            headers.append((b"authorization", f"Bearer {address.api_key}".encode()))
        if content:
            headers.append((b"content-type", b"application/json"))
        deadline = asyncio.get_running_loop().time() + timeouts.connect + seconds
        asked = self.origins.of(address), method, path, headers, None if method == "GET" else content, timeouts.connect
        try:
            return await self._pool.request(*asked, deadline=deadline)
        except Disconnected:
            if method != "GET":
                raise
            # It changes nothing, and may have crossed the end of an idle connection.
            return await self._pool.request(*asked, deadline=deadline, reuse=False)


def fit(headers: Headers) -> str:
    """The content type of an answer, which can be passed on; raises `BadReply` for one that cannot, by its head."""
    if headers.first.get(b"content-encoding", b"").lower() not in PLAIN:
        raise BadReply("the answer is compressed, which was not asked for")
    content_type = headers.first.get(b"content-type", b"application/json")
    if not content_type.isascii():
        raise BadReply("the answer's content type is not ASCII")
    return content_type.decode()

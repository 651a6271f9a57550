"""One call at one target: what was sent before a break comes first, time-outs count the target's time alone, and a
connection whose answer has ended serves again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from harness.peer import Listener, Peer
from harness.upstream import chunk, event, head

from backends.api import DONE, Call, Chunk, Target
from backends.body import Body
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from gateway.config import Timeouts
from gateway.core.errors import (
    AnswerMemoryFull,
    BadReply,
    Disconnected,
    EngineHung,
    Rejected,
    TookTooLong,
    UpstreamBusy,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.upstream import AnswerLimits, Exchange, Forwarder

STREAM = head(content_type="text/event-stream", transfer_encoding="chunked")
FEW = [event(f"word {n}") for n in range(40)]
END = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
LAST_CHUNK = b"0\r\n\r\n"
WHOLE = b'{"choices":[]}'
IDLE = 0.2
FIRST = 4 * IDLE
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'


@pytest.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(AnswerLimits(64 * 1024, 64 * 1024))
    yield forwarder
    await forwarder.close()


class Asking:
    """A call that a peer has got."""

    def __init__(
        self, forwarder: Forwarder, listener: Listener, *, stream: bool = True, key: str | None = None
    ) -> None:
        call = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'), stream=stream)
        self.target = target = Target("t", f"http://127.0.0.1:{listener.port}", api_key=key)
        timeouts = Timeouts(first_output=FIRST, whole=FIRST, idle=IDLE)
        self.sending = asyncio.ensure_future(
            forwarder.send(call, target, Capabilities.of(OpenAI()), timeouts, {"x-request-id": "c"})
        )

    async def answered(self, peer: Peer, answer: bytes) -> Exchange:
        await peer.request()
        peer.send(answer)
        return await self.sending


async def rest(exchange: Exchange) -> tuple[list[Chunk], UpstreamError | None]:
    """All that comes, and why nothing more does."""
    chunks: list[Chunk] = []
    try:
        while not chunks or not chunks[-1].done:
            chunks.append(await exchange.next())
    except UpstreamError as error:
        return chunks, error
    finally:
        exchange.close()
    return chunks, None


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_each_event_of_a_broken_stream_comes_before_the_break(
    forwarder: Forwarder, listener: Listener, reset: bool
) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    exchange = await asking.answered(peer, STREAM + chunk(FEW[0]))
    first = await exchange.next()
    peer.send(b"".join(chunk(event) for event in FEW[1:]))
    await peer.arrived()
    if reset:
        peer.reset()
    else:
        peer.close()
    await peer.ended.wait()
    chunks, error = await rest(exchange)
    assert first.data + b"".join(chunk.data for chunk in chunks) == b"".join(FEW)
    assert isinstance(error, Disconnected)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_last_piece_may_be_read_for_longer_than_the_target_may_be_silent(
    forwarder: Forwarder, listener: Listener, stream: bool
) -> None:
    asking = Asking(forwarder, listener, stream=stream)
    peer = await listener.peer()
    answer = STREAM + chunk(FEW[0]) if stream else head(content_length=len(WHOLE)) + WHOLE
    exchange = await asking.answered(peer, answer)
    piece = await exchange.next()
    await asyncio.sleep(2 * IDLE)
    if stream:
        peer.send(chunk(END + DONE) + LAST_CHUNK)
        piece = await exchange.next()
    assert piece.done
    exchange.close()


async def test_comments_are_no_progress(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    exchange = await asking.answered(peer, STREAM + chunk(FEW[0]))
    assert (await exchange.next()).tokens == 1

    async def comment() -> None:
        while True:
            peer.send(chunk(b": still here\n\n"))
            await asyncio.sleep(IDLE / 10)

    commenting = asyncio.create_task(comment())
    chunks, error = await rest(exchange)
    commenting.cancel()
    assert all(chunk.comment for chunk in chunks) and isinstance(error, UpstreamTimeout)


async def test_the_first_output_is_due_whatever_comes_before(forwarder: Forwarder, listener: Listener) -> None:
    """Comments and roles, with and without pauses, do not move the moment."""
    for before in (b": still here\n\n", ROLE):
        asking = Asking(forwarder, listener)
        peer = await listener.peer()
        exchange = await asking.answered(peer, STREAM)

        async def keep_alive(peer: Peer = peer, data: bytes = chunk(before)) -> None:
            while True:
                peer.send(data)
                await asyncio.sleep(IDLE / 10)

        loop, alive = asyncio.get_running_loop(), asyncio.create_task(keep_alive())
        began = loop.time()
        chunks, error = await rest(exchange)
        alive.cancel()
        assert chunks and all(chunk.comment or chunk.opening for chunk in chunks), before
        assert isinstance(error, UpstreamTimeout)
        assert loop.time() - began >= FIRST / 2, "it is not `idle` that ends it"


async def test_a_role_is_no_sign_of_life_after_the_first_output(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    exchange = await asking.answered(peer, STREAM + chunk(FEW[0]))
    assert (await exchange.next()).tokens == 1

    async def name_roles() -> None:
        while True:
            peer.send(chunk(ROLE))
            await asyncio.sleep(IDLE / 10)

    naming = asyncio.create_task(name_roles())
    chunks, error = await rest(exchange)
    naming.cancel()
    assert all(chunk.opening for chunk in chunks) and isinstance(error, UpstreamTimeout)


async def test_a_whole_answer_has_a_total(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener, stream=False)
    peer = await listener.peer()
    exchange = await asking.answered(peer, head(content_length=10**6))

    async def drip() -> None:
        while True:
            peer.send(b" ")
            await asyncio.sleep(IDLE / 10)

    dripping = asyncio.create_task(drip())
    chunks, error = await rest(exchange)
    dripping.cancel()
    assert not chunks and isinstance(error, TookTooLong)


async def test_a_whole_answer_that_stops_in_its_middle_is_no_long_one(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener, stream=False)
    peer = await listener.peer()
    chunks, error = await rest(await asking.answered(peer, head(content_length=10) + b"{"))
    assert not chunks and type(error) is UpstreamTimeout and error.retryable


async def test_a_target_that_says_nothing_is_late(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    with pytest.raises(UpstreamTimeout):
        await asking.sending
    await peer.ended.wait()


@pytest.mark.parametrize("late", [False, True], ids=["with the terminator", "after it"])
async def test_a_connection_serves_again_when_the_message_has_ended(
    forwarder: Forwarder, listener: Listener, late: bool
) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    exchange = await asking.answered(peer, STREAM + chunk(END + DONE) + (b"" if late else LAST_CHUNK))
    assert (await rest(exchange))[1] is None
    if late:
        peer.send(LAST_CHUNK)
        await peer.arrived()
        await asyncio.sleep(0.01)
    again = Asking(forwarder, listener, stream=False)
    answered = await again.answered(peer, head(content_length=len(WHOLE)) + WHOLE)
    assert (await answered.next()).data == WHOLE
    answered.close()


async def test_a_message_that_never_ends_costs_its_connection(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    exchange = await asking.answered(peer, STREAM + chunk(END + DONE))
    assert (await rest(exchange))[1] is None
    await asyncio.wait_for(peer.ended.wait(), 30)


async def test_who_leaves_early_closes_the_connection(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    exchange = await asking.answered(peer, STREAM + chunk(FEW[0]))
    waiting = asyncio.ensure_future(rest(exchange))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await peer.ended.wait()


async def test_a_cancelled_call_closes_the_connection_before_the_head(forwarder: Forwarder, listener: Listener) -> None:
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    await peer.request()
    asking.sending.cancel()
    await peer.ended.wait()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (head(503, content_length=0), UpstreamBusy),
        (head(content_type="text/event-stream", content_encoding="gzip", content_length=0), BadReply),
        (head(content_type="text/\N{LATIN SMALL LETTER E WITH ACUTE}", content_length=0), BadReply),
    ],
    ids=["busy", "compressed", "a type that is not ASCII"],
)
async def test_heads_that_are_no_good_answer(
    forwarder: Forwarder, listener: Listener, answer: bytes, kind: type[UpstreamError]
) -> None:
    asking = Asking(forwarder, listener)
    with pytest.raises(kind):
        await asking.answered(await listener.peer(), answer)


@pytest.mark.parametrize("status", [400, 200])
async def test_no_refusal_quotes_our_credential(forwarder: Forwarder, listener: Listener, status: int) -> None:
    said = b'{"error":{"message":"bad key very-secret-key","code":400}}'
    asking = Asking(forwarder, listener, stream=False, key="very-secret-key")
    with pytest.raises(Rejected) as raised:
        exchange = await asking.answered(await listener.peer(), head(status, content_length=len(said)) + said)
        await rest(exchange)
    assert "very-secret" not in raised.value.message + (raised.value.body or b"").decode()


async def test_what_was_counted_is_free_when_the_exchange_ends(forwarder: Forwarder, listener: Listener) -> None:
    forwarder.bound(AnswerLimits(10**6, 10**6, 10**6))
    asking = Asking(forwarder, listener)
    peer = await listener.peer()
    exchange = await asking.answered(peer, STREAM + chunk(FEW[0]) + chunk(b"data: " + b"x" * 200_000))
    assert (await exchange.next()).data == FEW[0]
    waiting = asyncio.ensure_future(exchange.next())
    while forwarder.memory.held < 200_000:
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    exchange.close()
    assert forwarder.memory.held == 0


async def test_what_waits_for_the_first_output_counts_as_memory(forwarder: Forwarder, listener: Listener) -> None:
    forwarder.bound(AnswerLimits(10**6, 10**6, 600_000))
    exchanges = [await Asking(forwarder, listener).answered(await listener.peer(), STREAM) for _ in range(2)]
    exchanges[0].keep(400_000)
    exchanges[0].keep(500_000)
    assert forwarder.memory.held == 500_000
    with pytest.raises(AnswerMemoryFull):
        exchanges[1].keep(200_000)
    exchanges[1].close()
    assert forwarder.memory.held == 500_000
    exchanges[0].keep(0)  # its output begins
    exchanges[0].keep(100_000)
    with pytest.raises(BadReply):
        exchanges[0].keep(2**20 + 1)
    exchanges[0].close()
    assert forwarder.memory.held == 0


async def test_calls_that_wait_for_a_target_are_known_and_can_be_given_up(
    forwarder: Forwarder, listener: Listener
) -> None:
    streaming, waiting = Asking(forwarder, listener), Asking(forwarder, listener, stream=False)
    first, second = await listener.peer(), await listener.peer()
    exchange = await streaming.answered(first, STREAM + chunk(FEW[0]))
    await second.request()
    now = asyncio.get_running_loop().time()
    assert forwarder.waited_for(streaming.target) == (1, float("-inf")), "the stream's client is not waiting yet"
    assert (await exchange.next()).tokens == 1
    reading = asyncio.ensure_future(exchange.next())
    await asyncio.sleep(0)
    calls, heard_at = forwarder.waited_for(streaming.target)
    assert calls == 2 and heard_at >= now
    assert forwarder.give_up(streaming.target) == 2
    for asked in (reading, waiting.sending):
        with pytest.raises(EngineHung):
            await asked
    exchange.close()
    assert forwarder.waited_for(streaming.target) == (0, heard_at)
    await asyncio.gather(first.ended.wait(), second.ended.wait())

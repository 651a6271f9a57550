"""What the gateway asks servers beside the calls, asked of a TGI (or its stand-in) and of the real llama.cpp."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from standin.embedded import SLOT_TOKENS, SLOTS
from standin.tgi import start_standin

from backends.api import Target
from backends.capabilities import Capabilities
from backends.llamacpp import LlamaCpp
from backends.tgi import TGI
from gateway.config import Timeouts
from gateway.upstream import AnswerLimits, Forwarder


@pytest_asyncio.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(AnswerLimits(1000, 1000))
    yield forwarder
    await forwarder.close()


async def test_tgi_tells_its_load_and_what_it_is(forwarder: Forwarder, tgi_url: str) -> None:
    address = Target("t", tgi_url)
    gauges = await forwarder.gauges(address, Capabilities.of(TGI()), Timeouts())
    assert gauges is not None and (gauges.running, gauges.waiting) == (0, 0)
    facts = await forwarder.describe(address, Capabilities.of(TGI()), Timeouts())
    assert facts is not None and facts.context and facts.prompt and facts.version and facts.models
    assert facts.prompt < facts.context
    assert await forwarder.probe(address, Capabilities.of(TGI()), Timeouts()) == ""
    assert await forwarder.credential(address, Capabilities.of(TGI()), Timeouts()) == ""


@pytest.mark.standin_only
async def test_tgi_tells_whether_the_credential_is_good(forwarder: Forwarder, model_url: str) -> None:
    with start_standin(model_url=model_url, api_key="good") as url:
        for key, why in (("good", ""), ("bad", "credential refused"), (None, "credential refused")):
            address = Target("t", url, None, key)
            assert await forwarder.probe(address, Capabilities.of(TGI()), Timeouts()) == ""
            assert await forwarder.credential(address, Capabilities.of(TGI()), Timeouts()) == why


async def test_llamacpp_tells_its_load_and_what_it_is(forwarder: Forwarder, model_url: str) -> None:
    address = Target("t", model_url)
    gauges = await forwarder.gauges(address, Capabilities.of(LlamaCpp()), Timeouts())
    assert gauges is None or (gauges.running, gauges.waiting) == (0, 0), "its metrics may be off"
    facts = await forwarder.describe(address, Capabilities.of(LlamaCpp()), Timeouts())
    assert facts is not None and facts.models and facts.version
    assert facts.prompt == SLOT_TOKENS and facts.kv_tokens == SLOT_TOKENS * SLOTS

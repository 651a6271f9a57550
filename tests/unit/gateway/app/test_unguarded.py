"""Which targets are asked without their credential, when, and what is made of what they say."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from backends import registry
from backends.api import Target as Address
from gateway.app.unguarded import AT_ONCE, Unguarded
from gateway.config import TargetSpec, Timeouts, TLSSpec
from gateway.targets import Target
from gateway.targets.health import Breaker

SECRET = "a-long-and-secret-word"


def target(name: str, **fields: Any) -> Target:
    spec = TargetSpec(name=name, backend="openai", url="http://127.0.0.1:1", **fields)
    capabilities = registry.capabilities("openai")
    return Target(spec, "http://127.0.0.1:1", capabilities, Timeouts(), Breaker(name, time.monotonic), time.monotonic)


class Asked:
    """The forwarder, as far as it asks; each target says what `says` holds, an exception is raised."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.says: Any = []
        self.running = self.most = 0

    async def open_paths(self, address: Address, *_: object) -> list[str] | None:
        self.names.append(address.name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            if isinstance(self.says, Exception):
                raise self.says
            return self.says  # type: ignore[no-any-return]
        finally:
            self.running -= 1


class Bench:
    def __init__(self, *names: str, asks: bool = True, **fields: Any) -> None:
        self.of, self.asked = {name: target(name, **{"api_key": SECRET, **fields}) for name in names}, Asked()
        self.unguarded = Unguarded(self.asked, asks=asks)  # type: ignore[arg-type]

    async def look(self, name: str = "a", *, back: bool = False) -> Target:
        """A probe of it was well; all that follows is over."""
        self.unguarded.look(self.of[name], back=back)
        await self.rest()
        return self.of[name]

    async def rest(self) -> None:
        while self.unguarded._tasks:
            await asyncio.sleep(0)


async def test_one_is_asked_once_until_it_comes_back() -> None:
    of = Bench("a")
    for back in (True, False, False):
        await of.look(back=back)
    assert of.asked.names == ["a"]
    await of.look(back=True)
    assert of.asked.names == ["a", "a"]


async def test_what_it_says_is_a_warning_until_it_says_otherwise() -> None:
    of = Bench("a")
    of.asked.says = ["/invocations"]
    assert (await of.look()).warnings["unguarded"] == "it answers /invocations to anybody, without its credential"
    of.asked.says = None  # it does not tell now
    assert "unguarded" in (await of.look(back=True)).warnings
    of.asked.says = []
    assert "unguarded" not in (await of.look(back=True)).warnings


async def test_one_that_does_not_tell_is_asked_again() -> None:
    of = Bench("a")
    of.asked.says = None
    await of.look()
    await of.look()
    of.asked.says = []
    await of.look()
    await of.look()
    assert of.asked.names == ["a"] * 3


async def test_an_odd_target_is_asked_once_and_serves(caplog: pytest.LogCaptureFixture) -> None:
    of = Bench("a")
    of.asked.says = ValueError("odd")
    assert not (await of.look()).warnings
    await of.look()
    assert of.asked.names == ["a"] and "could not be asked" in caplog.text


@pytest.mark.parametrize("asks", [True, False])
async def test_one_without_a_credential_or_with_a_certificate_is_not_asked(asks: bool) -> None:
    of = Bench("a", asks=asks)
    for fields in ({"api_key": None}, {"tls": TLSSpec(cert="/none.pem")}, {"tls": TLSSpec(ca="/none.pem")}):
        of.of["a"] = target("a", **{"api_key": SECRET, **fields})
        await of.look()
    assert of.asked.names == ["a"] * asks


async def test_many_are_asked_few_at_a_time_and_the_end_waits_for_none() -> None:
    of = Bench(*(f"t{number}" for number in range(50)))
    for number in range(50):
        of.unguarded.look(of.of[f"t{number}"], back=True)
    await of.rest()
    assert len(of.asked.names) == 50 and of.asked.most == AT_ONCE
    for number in range(50):
        of.unguarded.look(of.of[f"t{number}"], back=True)
    await of.unguarded.close()
    assert not of.unguarded._tasks and not of.asked.running

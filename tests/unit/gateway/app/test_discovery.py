"""Names are looked up again and again: what changes is told, what fails changes nothing."""

from __future__ import annotations

import asyncio
import socket

import pytest
from harness.virtual_time import settle
from unit.gateway.routing.building import virtual

from gateway.app.discovery import LEARN_SECONDS, MOST_ADDRESSES, PAUSE_SECONDS, Discovery, addresses
from gateway.config import Table, parse_table
from gateway.upstream.dial import Address, look_up

NONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
LATER = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def table(*names: str) -> Table:
    listed = ", ".join(f"{{name: t{n}, backend: vllm, discover: {{dns: '{each}:80'}}}}" for n, each in enumerate(names))
    return parse_table(f"routes: {{m: {{targets: [{listed}]}}}}", "t.yaml", {})[0]


class Names:
    """Answers as it is told to, and counts what changes."""

    def __init__(self, *watched: str) -> None:
        self.hosts: dict[str, list[str] | Exception | None] = {}
        self.asked: list[str] = []
        self.changes = 0
        self.broken = False
        self.discovery = Discovery(self._changed, self._resolve)
        if watched:
            self.discovery.watch(table(*watched))

    async def _resolve(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        found = self.hosts.get(host, NONE)
        if found is None:
            await asyncio.Event().wait()
        if isinstance(found, Exception):
            raise found
        return [(socket.AF_INET6 if ":" in at else socket.AF_INET, (at, port)) for at in found or ()]

    async def _changed(self) -> None:
        self.changes += 1
        if self.broken:
            raise RuntimeError("a bug")

    async def turn(self) -> None:
        await asyncio.sleep(PAUSE_SECONDS)
        await settle()


def test_an_address_counts_once_and_their_order_stays() -> None:
    four = [(socket.AF_INET, (f"10.0.0.{n}", 80)) for n in (3, 1, 3, 2)]
    assert addresses(four) == ("10.0.0.1", "10.0.0.2", "10.0.0.3")
    six = [(socket.AF_INET6, (f"fd00::{n}", 80, 0, 0)) for n in range(3)]
    assert addresses([*six, *four]) == ("10.0.0.1", "10.0.0.2", "10.0.0.3"), "servers with an address of each family"
    assert addresses([*six, *four[:2]]) == ("fd00::0", "fd00::1", "fd00::2")
    assert addresses([]) == ()
    many = [(socket.AF_INET, (f"10.0.{n // 256}.{n % 256}", 80)) for n in range(MOST_ADDRESSES + 50)]
    assert len(addresses(many)) == MOST_ADDRESSES


async def test_the_systems_resolver_is_asked() -> None:
    discovery = Discovery(lambda: asyncio.sleep(0), look_up)
    await discovery.learn(table("localhost"))
    ((name, found),) = discovery.known.items()
    assert name == "localhost:80"
    assert len(found) == 1 and found[0] in ("127.0.0.1", "::1")


@virtual
async def test_what_comes_and_goes_is_told_once() -> None:
    names = Names("a", "b")
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.1.1"]}
    names.discovery.open()
    await names.turn()
    assert names.changes == 1
    assert names.discovery.known == {"a:80": ("10.0.0.1",), "b:80": ("10.0.1.1",)}
    await names.turn()
    assert names.changes == 1, "nothing has changed"
    names.hosts["a"] = ["10.0.0.2", "10.0.0.1"]
    await names.turn()
    assert (names.changes, names.discovery.known["a:80"]) == (2, ("10.0.0.1", "10.0.0.2"))
    names.hosts["b"] = NONE
    await names.turn()
    assert (names.changes, names.discovery.known["b:80"]) == (3, ())
    await names.discovery.close()


@virtual
@pytest.mark.parametrize("failure", [LATER, OSError("no network"), UnicodeError("label too long")], ids=repr)
async def test_a_look_up_that_fails_changes_nothing_and_is_told_once(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names("a")
    names.hosts = {"a": ["10.0.0.1"]}
    names.discovery.open()
    await names.turn()
    names.hosts["a"] = failure
    await names.turn()
    await names.turn()
    assert (names.changes, names.discovery.known) == (1, {"a:80": ("10.0.0.1",)})
    assert [record.message for record in caplog.records].count(f"a:80 cannot be looked up: {failure}") == 1
    await names.discovery.close()


@virtual
async def test_a_change_that_could_not_be_applied_is_applied_later() -> None:
    names = Names("a")
    names.hosts, names.broken = {"a": ["10.0.0.1"]}, True
    names.discovery.open()
    await names.turn()
    assert names.changes == 1
    names.broken = False
    await names.turn()
    await names.turn()
    assert names.changes == 2
    await names.discovery.close()


@virtual
async def test_a_table_waits_for_what_is_new_to_it_and_not_for_long() -> None:
    names = Names()
    names.hosts = {"a": ["10.0.0.1"], "b": None, "c": ["10.0.2.1"]}
    await names.discovery.learn(table("a"))
    await names.discovery.learn(table("a"))
    assert names.asked == ["a"]
    began = asyncio.get_running_loop().time()
    await names.discovery.learn(table("a", "b", "c"))
    assert asyncio.get_running_loop().time() - began <= LEARN_SECONDS
    assert names.discovery.known == {"a:80": ("10.0.0.1",)}


@virtual
async def test_names_that_have_left_the_table_are_forgotten() -> None:
    names = Names("a", "b")
    names.hosts = {"a": ["10.0.0.1"], "b": ["10.0.1.1"]}
    await names.discovery.learn(table("a", "b"))
    names.discovery.watch(table("b"))
    assert names.discovery.known == {"b:80": ("10.0.1.1",)}
    names.discovery.open()
    names.asked.clear()
    await names.turn()
    assert names.asked == ["b"]
    await names.discovery.close()

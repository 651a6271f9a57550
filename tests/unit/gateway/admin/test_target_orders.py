"""Orders about targets: what is written, what is not, and what the audit log keeps."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from harness.around import Around
from harness.keyrings import Parts

from gateway.admin import Registrar
from gateway.core.clock import SystemClock
from gateway.core.types import TargetOrder
from gateway.store.local import LocalStore


async def test_an_order_is_written_with_who_and_what(parts: Parts) -> None:
    now = parts.clock.now()
    drained = await parts.registrar.order("a", "drained", reason="disk — full")
    assert drained == TargetOrder(id="a", created=now, version=1, state="drained", reason="disk — full")
    parts.clock.advance(5)
    ejected = await parts.registrar.order("a", "ejected", until=now + 65)
    assert ejected == TargetOrder(id="a", created=now, version=2, state="ejected", until=now + 65)
    opened = await parts.registrar.order("a", "open")
    assert opened == TargetOrder(id="a", created=now, version=3)
    assert await parts.elsewhere.records.get(TargetOrder, "a") == opened
    log = [(entry.action, entry.subject) for entry in await parts.store.records.audit()]
    assert log == [("target.undrain", "target:a"), ("target.eject", "target:a"), ("target.drain", "target:a")]
    newest, _, oldest = await parts.store.records.audit()
    assert oldest.before is None and oldest.after is not None and oldest.after["reason"] == "disk — full"
    assert newest.before is not None and (newest.before["state"], newest.before["until"]) == ("ejected", now + 65)


async def test_what_is_so_already_is_not_written_again(parts: Parts) -> None:
    first = await parts.registrar.order("a", "drained", reason="r")
    assert await parts.registrar.order("a", "drained", reason="r") == first
    assert (await parts.registrar.order("b", "open")).version == 0
    assert await parts.store.records.get(TargetOrder, "b") is None
    assert len(await parts.store.records.audit()) == 1
    assert (await parts.registrar.order("a", "drained", reason="other")).version == 2


async def test_an_ejection_can_be_made_longer_and_ends_by_itself(parts: Parts) -> None:
    now = parts.clock.now()
    await parts.registrar.order("a", "ejected", until=now + 10)
    order = await parts.registrar.order("a", "ejected", until=now + 20)
    assert [order.at(now + seconds) for seconds in (0, 19.9, 20)] == ["ejected", "ejected", "open"]
    drained = await parts.registrar.order("a", "drained")
    assert drained.at(now + 1e9) == "drained"


class Slow(Around):
    """Somebody else has time to be faster."""

    async def get(self, kind: Any, id: str) -> Any:
        found = await self.inner.get(kind, id)
        await asyncio.sleep(0)
        return found


async def test_of_many_orders_at_once_each_has_its_version(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "keys.json")
    registrar = Registrar(Slow(store.records), {0: b""}, SystemClock(), "cli:test")
    orders = await asyncio.gather(*(registrar.order("a", "drained", reason=f"{n}") for n in range(8)))
    assert sorted(order.version for order in orders) == list(range(1, 9))
    assert len(await store.records.audit()) == 8


@pytest.mark.parametrize(
    ("name", "state", "until", "reason", "said"),
    [
        ("a", "closed", None, "", "expected one of drained, open, ejected"),
        ("a", "ejected", None, "", "needs a time"),
        ("a", "drained", 10.0, "", "nothing else has one"),
        ("a", "open", 10.0, "", "nothing else has one"),
        ("a", "ejected", 0.0, "", "has passed"),
        ("a", "ejected", float("inf"), "", "has passed"),
        ("a", "ejected", float("nan"), "", "has passed"),
        ("a", "drained", None, "x" * 201, "1 to 200 printable"),
        ("a", "drained", None, "a\nb", "1 to 200 printable"),
        ("", "drained", None, "", "target ''"),
    ],
)
async def test_an_order_that_cannot_be(
    parts: Parts, name: str, state: str, until: float | None, reason: str, said: str
) -> None:
    when = None if until is None else parts.clock.now() + until
    with pytest.raises(ValueError, match=said):
        await parts.registrar.order(name, state, until=when, reason=reason)  # type: ignore[arg-type]
    assert await parts.store.records.audit() == []


async def test_an_order_about_a_target_forgets_no_key(parts: Parts) -> None:
    """Keys, tenants and orders are told of on one channel."""
    record, token = await parts.registrar.create("n")
    headers = {b"authorization": b"Bearer " + token.encode()}
    await parts.keyring.authenticate(headers, None)
    asked = list(parts.records.asked)
    parts.records.tell(f"target:{record.id}")
    await parts.keyring.authenticate(headers, None)
    assert parts.records.asked == asked
    parts.records.tell(f"key:{record.id}")
    await parts.keyring.authenticate(headers, None)
    assert len(parts.records.asked) > len(asked)

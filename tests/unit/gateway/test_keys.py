"""Virtual keys: their form, how they are stored, who comes in, and what an outage changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from harness.clock import FixedClock
from msgspec import structs

from gateway import keys
from gateway.core.errors import Forbidden, StoreUnavailable, Unauthenticated
from gateway.core.types import KeyRecord, Limit, Secret
from gateway.keys import (
    FRESH_SECONDS,
    STALE_SECONDS,
    Keyring,
    Registrar,
    authorize,
    digest,
    may_use,
    mint,
    parse,
)
from gateway.store import StoreDown
from gateway.store.memory import MemoryStore

PEPPERS = {0: b"", 1: b"first", 2: b"second"}


class Flaky(MemoryStore):
    """A store that can be taken down, and that counts look-ups."""

    down = False
    asked = 0

    async def key(self, key_id: str) -> KeyRecord | None:
        self.asked += 1
        if self.down:
            raise StoreDown("down")
        return await super().key(key_id)


class Parts:
    def __init__(self, folder: Path, peppers: Mapping[int, bytes] = PEPPERS) -> None:
        self.clock, self.store = FixedClock(), Flaky(folder / "keys.json")
        self.keyring = Keyring(self.store, peppers, self.clock)
        self.registrar = Registrar(self.store, peppers, self.clock)

    async def enters(self, token: str) -> bool:
        try:
            await self.keyring.authenticate({b"authorization": b"Bearer " + token.encode()})
        except Unauthenticated:
            return False
        return True


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


async def test_a_secret_is_stored_as_its_hash_under_the_newest_pepper(parts: Parts) -> None:
    record, token = await parts.registrar.create("n")
    (stored,) = record.secrets
    assert stored == Secret(digest=digest(parse(token)[1], b"second"), pepper=2)
    assert len(stored.digest) == 64
    assert parse(token)[1] not in (parts.store._path).read_text()


async def test_keys_hashed_with_older_peppers_stay_valid(tmp_path: Path) -> None:
    old, new = Parts(tmp_path, {0: b""}), Parts(tmp_path, {0: b"", 3: b"new"})
    (record, token), (other, newer) = await old.registrar.create("n"), await new.registrar.create("m")
    assert (record.secrets[0].pepper, other.secrets[0].pepper) == (0, 3)
    assert await new.enters(token) and await new.enters(newer)
    assert not await old.enters(newer), "without the pepper the hash cannot be compared"


async def test_a_pepper_that_changed_its_secret_opens_nothing(tmp_path: Path) -> None:
    _, token = await Parts(tmp_path, {0: b"", 1: b"a"}).registrar.create("n")
    assert not await Parts(tmp_path, {0: b"", 1: b"b"}).enters(token)
    assert not await Parts(tmp_path, {0: b""}).enters(token)


async def test_every_way_of_sending_a_key(parts: Parts) -> None:
    record, token = await parts.registrar.create("n")
    raw = token.encode()
    for headers in (
        {b"authorization": b"Bearer " + raw},
        {b"authorization": b"bearer  " + raw + b" "},
        {b"x-api-key": raw},
        {b"authorization": b"Basic abc", b"x-api-key": raw},
    ):
        assert (await parts.keyring.authenticate(headers)).id == record.id


async def test_all_that_is_wrong_with_a_key_looks_the_same(parts: Parts) -> None:
    _, good = await parts.registrar.create("n")
    revoked, revoked_token = await parts.registrar.create("n")
    await parts.registrar.revoke(revoked.id)
    _, expired = await parts.registrar.create("n", lifetime=10)
    rotated, old = await parts.registrar.create("n")
    await parts.registrar.rotate(rotated.id, 5)
    parts.clock.advance(11)
    key_id = parse(good)[0]
    presented = [
        {b"authorization": b"Bearer " + token.encode()}
        for token in (revoked_token, expired, old, mint()[1], keys.token(key_id, "w" * 43), good[:-1] + "!", "", "sk-x")
    ]
    presented += [{}, {b"authorization": b"Basic abc"}, {b"x-api-key": b"\xff\xfe"}, {b"authorization": good.encode()}]
    answers = set()
    for headers in presented:
        with pytest.raises(Unauthenticated) as caught:
            await parts.keyring.authenticate(headers)
        error = caught.value
        answers.add((type(error), str(error), error.status, error.code, error.param, error.retry_after))
    assert len(answers) == 1


async def test_a_malformed_key_costs_no_look_up(parts: Parts) -> None:
    assert not await parts.enters("tl_0123456789AB_" + "x" * 49)
    assert parts.store.asked == 0


async def test_a_key_is_valid_until_it_expires(parts: Parts) -> None:
    _, token = await parts.registrar.create("n", lifetime=10)
    parts.clock.advance(9.9)
    assert await parts.enters(token)
    parts.clock.advance(0.2)
    assert not await parts.enters(token)


async def test_rotation_lets_the_old_secret_live_for_the_overlap(parts: Parts) -> None:
    record, old = await parts.registrar.create("n")
    changed, new = await parts.registrar.rotate(record.id, 100)
    assert changed.version == record.version + 1
    assert parse(new)[0] == record.id and new != old
    assert await parts.enters(old) and await parts.enters(new)
    parts.clock.advance(101)
    assert not await parts.enters(old) and await parts.enters(new)


async def test_rotating_again_does_not_lengthen_a_life(parts: Parts) -> None:
    record, first = await parts.registrar.create("n")
    _, second = await parts.registrar.rotate(record.id, 50)
    _, third = await parts.registrar.rotate(record.id, 1000)
    assert await parts.enters(second) and await parts.enters(third)
    parts.clock.advance(51)
    assert not await parts.enters(first)
    assert await parts.enters(second) and await parts.enters(third)


async def test_a_rotation_without_overlap_ends_the_old_secret_for_the_next_call(parts: Parts) -> None:
    """As with a revocation, a gateway that has the old record in memory must not let the old secret in once more."""
    record, old = await parts.registrar.create("n")
    cached = await parts.keyring.authenticate({b"x-api-key": old.encode()})
    await parts.registrar.rotate(record.id, 0)
    entered = await parts.keyring.authenticate({b"x-api-key": old.encode()})
    assert entered.version == cached.version, "it is in memory: only the admission notices the change"
    with pytest.raises(Unauthenticated):  # what is asked then
        await parts.keyring.authenticate({b"x-api-key": old.encode()}, fresh=True)
    assert not await parts.enters(old)


async def test_a_new_secret_is_known_at_once_where_the_old_one_is_in_memory(parts: Parts) -> None:
    record, old = await parts.registrar.create("n")
    assert await parts.enters(old)
    _, new = await parts.registrar.rotate(record.id, 60)
    assert await parts.enters(new) and await parts.enters(old)


async def test_a_record_is_used_for_a_while_without_asking(parts: Parts) -> None:
    _, token = await parts.registrar.create("n")
    for _ in range(5):
        assert await parts.enters(token)
    asked = parts.store.asked
    assert asked == 1
    parts.clock.advance(FRESH_SECONDS + 1)
    assert await parts.enters(token)
    assert parts.store.asked == 2


async def test_an_unknown_key_is_asked_for_every_time(parts: Parts) -> None:
    token = mint()[1]
    assert not await parts.enters(token)
    await parts.store.put_key(
        KeyRecord(id=parse(token)[0], name="n", created=1, secrets=(Secret(digest=digest(parse(token)[1], b"")),))
    )
    assert await parts.enters(token)


async def test_known_keys_go_on_while_the_store_is_down_and_unknown_ones_get_503(parts: Parts) -> None:
    _, token = await parts.registrar.create("n")
    _, other = await parts.registrar.create("m")
    assert await parts.enters(token)
    parts.store.down = True
    parts.clock.advance(FRESH_SECONDS + 1)
    assert await parts.enters(token)
    assert not await parts.enters(keys.token(parse(token)[0], "w" * 43))
    for unknown in (other, mint()[1]):
        with pytest.raises(StoreUnavailable) as caught:
            await parts.keyring.authenticate({b"x-api-key": unknown.encode()})
        assert caught.value.status == 503 and caught.value.retry_after
    with pytest.raises(Unauthenticated):
        await parts.keyring.authenticate({b"x-api-key": b"tl_no-key-at-all"})
    parts.clock.advance(STALE_SECONDS)
    with pytest.raises(StoreUnavailable):
        await parts.keyring.authenticate({b"x-api-key": token.encode()})
    parts.store.down = False
    assert await parts.enters(token)


async def test_a_fresh_look_sees_a_revocation(parts: Parts) -> None:
    record, token = await parts.registrar.create("n")
    headers = {b"x-api-key": token.encode()}
    await parts.keyring.authenticate(headers)
    await parts.registrar.revoke(record.id)
    with pytest.raises(Unauthenticated):
        await parts.keyring.authenticate(headers, fresh=True)
    assert not await parts.enters(token)


async def test_memory_is_bounded(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_CACHED", 5)
    for _ in range(12):
        _, token = await parts.registrar.create("n")
        assert await parts.enters(token)
    assert len(parts.keyring._cache) <= 5


@pytest.mark.parametrize(
    ("models", "names", "allowed"),
    [
        (("*",), ("m", "route"), True),
        (("gpt-*",), ("gpt-4", "qwen"), True),
        (("qwen",), ("gpt-4", "qwen"), True),
        (("gpt-4",), ("gpt-4o", "qwen"), False),
        (("llama-*", "q*n"), ("x", "qwen"), True),
        ((), ("x", "y"), False),
        (("",), ("x", "y"), False),
    ],
)
def test_models_a_key_may_use(models: tuple[str, ...], names: tuple[str, str], allowed: bool) -> None:
    record = KeyRecord(id="k", name="n", created=1, secrets=(), models=models)
    assert may_use(record, *names) is allowed
    if allowed:
        authorize(record, *names)
    else:
        with pytest.raises(Forbidden) as caught:
            authorize(record, *names)
        assert caught.value.param == "model"


async def test_what_a_key_is_created_with(parts: Parts) -> None:
    limit = Limit(rpm=5)
    record, _ = await parts.registrar.create("n", tenant="t", models=["a", "b*"], limit=limit, lifetime=60)
    assert (record.tenant, record.models, record.limit, record.version) == ("t", ("a", "b*"), limit, 1)
    assert record.expires == parts.clock.now() + 60
    assert await parts.store.key(record.id) == record


class Contested(MemoryStore):
    """Somebody else changes the key between our reading and our writing, a few times."""

    rivals = 3

    async def put_key(self, record: KeyRecord) -> None:
        stored = await self.key(record.id)
        if stored is not None and self.rivals:
            self.rivals -= 1
            await super().put_key(structs.replace(stored, version=stored.version + 1, tenant=f"t{self.rivals}"))
        await super().put_key(record)


@pytest.mark.parametrize("change", ["rotate", "revoke"])
async def test_changes_are_decided_anew_on_what_others_wrote(tmp_path: Path, change: str) -> None:
    clock, store = FixedClock(), Contested(tmp_path / "keys.json")
    registrar = Registrar(store, PEPPERS, clock)
    record, old = await registrar.create("n")
    if change == "rotate":
        changed, token = await registrar.rotate(record.id, 60)
        assert len(changed.secrets) == 2 and token != old
    else:
        changed = await registrar.revoke(record.id)
        assert changed.revoked == clock.now()
    assert changed.version == 1 + 3 + 1 and changed.tenant == "t0"
    assert await store.key(record.id) == changed


async def test_many_rotations_at_once_all_count(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n")
    await asyncio.gather(*(parts.registrar.rotate(record.id, 60) for _ in range(5)))
    stored = await parts.store.key(record.id)
    assert stored is not None and stored.version == 6


async def test_revoking_twice_changes_nothing(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n")
    first = await parts.registrar.revoke(record.id)
    parts.clock.advance(100)
    assert await parts.registrar.revoke(record.id) == first


async def test_a_revoked_key_is_not_rotated(parts: Parts) -> None:
    record, _ = await parts.registrar.create("n")
    await parts.registrar.revoke(record.id)
    with pytest.raises(ValueError, match=record.id):
        await parts.registrar.rotate(record.id, 60)


async def test_a_key_that_is_not_there_is_a_key_error(parts: Parts) -> None:
    for attempt in (parts.registrar.revoke("nobody"), parts.registrar.rotate("nobody", 1)):
        with pytest.raises(KeyError):
            await attempt

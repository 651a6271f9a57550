"""Who comes in, who does not and what they are told, and what an outage changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from harness.keyrings import PEPPERS, Parts

from gateway.auth import mint, parse, pepper, token
from gateway.auth.cache import FRESH_SECONDS, STALE_SECONDS
from gateway.auth.token import ADMIN, digest
from gateway.core.errors import SourceNotAllowed, StoreUnavailable, Unauthenticated
from gateway.core.types import KeyRecord, Limit, Secret


async def test_keys_hashed_with_older_peppers_stay_valid(gateway: Callable[[Mapping[int, bytes]], Parts]) -> None:
    old, new = gateway({0: b""}), gateway({0: b"", 3: b"new"})
    (record, held), (other, newer) = await old.registrar.create("n"), await new.registrar.create("m")
    assert (record.secrets[0].pepper, other.secrets[0].pepper) == (0, 3)
    assert await new.enters(held) and await new.enters(newer)
    assert not await old.enters(newer), "without the pepper the hash cannot be compared"


async def test_a_pepper_that_changed_its_secret_opens_nothing(gateway: Callable[[Mapping[int, bytes]], Parts]) -> None:
    _, held = await gateway({0: b"", 1: b"a"}).registrar.create("n")
    assert not await gateway({0: b"", 1: b"b"}).enters(held)
    assert not await gateway({0: b""}).enters(held)


async def test_a_pepper_nobody_has_is_not_an_empty_one(parts: Parts) -> None:
    """Whoever can write to the store could make keys otherwise."""
    held = mint()[1]
    key_id, secret = parse(held)
    forged = Secret(digest=digest(secret, b""), pepper=9)
    await parts.elsewhere.records.put(KeyRecord(id=key_id, name="n", created=1, secrets=(forged,)))
    assert not await parts.enters(held)


async def test_every_way_of_sending_a_key(parts: Parts) -> None:
    record, held = await parts.registrar.create("n")
    raw = held.encode()
    for headers in (
        {b"authorization": b"Bearer " + raw},
        {b"authorization": b"bearer  " + raw + b" "},
        {b"x-api-key": raw},
        {b"authorization": b"Basic abc", b"x-api-key": raw},
        {b"api-key": raw},
        {b"authorization": b"Bearer none", b"x-api-key": raw},
        {b"authorization": b"Bearer sk-dummy", b"x-api-key": b"also-none", b"api-key": raw},
        {b"authorization": b"Bearer " + raw, b"x-api-key": b"sk-other"},
    ):
        assert (await parts.keyring.authenticate(headers, None)).key.id == record.id


async def test_all_that_is_wrong_with_a_key_looks_the_same(parts: Parts) -> None:
    _, good = await parts.registrar.create("n")
    revoked, revoked_token = await parts.registrar.create("n")
    await parts.registrar.revoke(revoked.id)
    _, expired = await parts.registrar.create("n", lifetime=10)
    rotated, old = await parts.registrar.create("n")
    await parts.registrar.rotate(rotated.id, 5)
    parts.clock.advance(11)
    key_id = parse(good)[0]
    wrong = [revoked_token, expired, old, mint()[1], token(key_id, "w" * 43), good[:-1] + "!", "", "sk-x"]
    wrong.append((await parts.registrar.create_admin("a"))[1])
    presented = [{b"authorization": b"Bearer " + sent.encode()} for sent in wrong]
    presented += [{}, {b"authorization": b"Basic abc"}, {b"x-api-key": b"\xff\xfe"}, {b"authorization": good.encode()}]
    answers = set()
    for headers in presented:
        with pytest.raises(Unauthenticated) as caught:
            await parts.keyring.authenticate(headers, None)
        error = caught.value
        answers.add((type(error), str(error), error.status, error.code, error.param, error.retry_after))
    assert len(answers) == 1


async def test_an_unknown_key_takes_the_same_work_as_a_wrong_secret(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counted(secret: str, key: bytes) -> str:
        hashed.append(secret)
        return digest(secret, key)

    one, rotated = (await parts.registrar.create("n"))[0], (await parts.registrar.create("n"))[0]
    await parts.registrar.rotate(rotated.id, 60)
    monkeypatch.setattr(pepper, "digest", counted)
    work = set()
    for key_id in (one.id, one.id, rotated.id, rotated.id, mint()[0]):  # from the store, and from memory
        hashed.clear()
        parts.records.asked.clear()
        assert not await parts.enters(token(key_id, "w" * 43))
        work.add((len(hashed), len(parts.records.asked)))
    assert len(work) == 1


async def test_a_malformed_key_costs_no_look_up(parts: Parts) -> None:
    for sent in ("tl_0123456789AB_" + "x" * 49, "sk-x", mint(ADMIN)[1]):
        assert not await parts.enters(sent)
    assert not parts.records.asked


async def test_a_key_is_valid_until_it_expires(parts: Parts) -> None:
    _, held = await parts.registrar.create("n", lifetime=10)
    parts.clock.advance(9.9)
    assert await parts.enters(held)
    parts.clock.advance(0.2)
    assert not await parts.enters(held)
    assert len(parts.records.asked) == 2, "it was in memory: this is looked at on every call"


async def test_a_rotated_secret_in_memory_ends_on_time(parts: Parts) -> None:
    record, old = await parts.registrar.create("n")
    _, new = await parts.registrar.rotate(record.id, 30)
    assert await parts.enters(old) and await parts.enters(new)
    parts.clock.advance(31)
    assert not await parts.enters(old) and await parts.enters(new)
    assert parts.records.asked.count(f"key:{record.id}") == 1


async def test_a_rotation_without_overlap_ends_the_old_secret_for_the_next_call(parts: Parts) -> None:
    """As with a revocation, a gateway that has the old record in memory must not let the old secret in once more."""
    record, old = await parts.registrar.create("n")
    cached = (await parts.authenticate(old)).key
    await parts.registrar.rotate(record.id, 0)
    entered = (await parts.authenticate(old)).key
    assert entered.version == cached.version, "it is in memory: only the admission notices the change"
    assert not await parts.enters(old, fresh=True), "what is asked then"
    assert not await parts.enters(old)


async def test_a_new_secret_is_known_at_once_where_the_old_one_is_in_memory(parts: Parts) -> None:
    record, old = await parts.registrar.create("n")
    assert await parts.enters(old)
    _, new = await parts.registrar.rotate(record.id, 60)
    assert await parts.enters(new) and await parts.enters(old)


async def test_an_unknown_key_is_asked_for_every_time(parts: Parts) -> None:
    held = mint()[1]
    key_id, secret = parse(held)
    assert not await parts.enters(held)
    await parts.elsewhere.records.put(
        KeyRecord(id=key_id, name="n", created=1, secrets=(Secret(digest=digest(secret, PEPPERS[0])),))
    )
    assert await parts.enters(held)


async def test_known_keys_go_on_while_the_store_is_down_and_unknown_ones_get_503(parts: Parts) -> None:
    _, held = await parts.registrar.create("n")
    _, other = await parts.registrar.create("m")
    assert await parts.enters(held)
    parts.records.down = True
    parts.clock.advance(FRESH_SECONDS + 1)
    assert await parts.enters(held)
    assert await parts.enters(held, fresh=True)
    assert not await parts.enters(token(parse(held)[0], "w" * 43))
    for unknown in (other, mint()[1]):
        with pytest.raises(StoreUnavailable) as caught:
            await parts.authenticate(unknown)
        assert caught.value.status == 503 and caught.value.retry_after
    assert not await parts.enters("tl_no-key-at-all")
    parts.clock.advance(STALE_SECONDS)
    with pytest.raises(StoreUnavailable):
        await parts.authenticate(held)
    parts.records.down = False
    assert await parts.enters(held)


async def test_after_a_flush_known_keys_still_go_on_while_the_store_is_down(parts: Parts) -> None:
    record, held = await parts.registrar.create("n", tenant="t")
    await parts.registrar.set_tenant("t", limit=Limit(rpm=5))
    before = await parts.authenticate(held)
    parts.records.tell(None)
    parts.records.down = True
    assert await parts.authenticate(held) == before
    parts.records.tell(f"key:{record.id}")
    with pytest.raises(StoreUnavailable):  # it may have been revoked
        await parts.authenticate(held)


async def test_a_revocation_that_was_heard_of_holds_for_the_next_call(parts: Parts) -> None:
    (record, held), (_, other) = await parts.registrar.create("n"), await parts.registrar.create("m")
    assert await parts.enters(held) and await parts.enters(other)
    await parts.registrar.revoke(record.id)
    parts.records.asked.clear()
    parts.records.tell(f"key:{record.id}")
    assert not await parts.enters(held) and await parts.enters(other)
    assert parts.records.asked == [f"key:{record.id}"], "the other one was not dropped with it"


async def test_a_fresh_look_sees_a_revocation(parts: Parts) -> None:
    record, held = await parts.registrar.create("n")
    await parts.authenticate(held)
    await parts.registrar.revoke(record.id)
    assert not await parts.enters(held, fresh=True)
    assert not await parts.enters(held)


async def test_a_caller_has_a_tenant_if_there_is_a_record_of_it(parts: Parts) -> None:
    _, held = await parts.registrar.create("n", tenant="t")
    for _ in range(3):
        assert (await parts.authenticate(held)).tenant is None
    assert parts.records.asked.count("tenant:t") == 1, "that there is none is remembered"
    tenant = await parts.registrar.set_tenant("t", limit=Limit(rpm=7))
    assert (await parts.authenticate(held)).tenant is None
    assert (await parts.authenticate(held, fresh=True)).tenant == tenant
    changed = await parts.registrar.set_tenant("t", limit=Limit(rpm=8))
    parts.records.tell("tenant:t")
    assert (await parts.authenticate(held)).tenant == changed
    asked = len(parts.records.asked)
    assert (await parts.authenticate(held)).tenant == changed
    assert len(parts.records.asked) == asked


async def test_a_tenant_not_in_memory_is_a_503_while_the_store_is_down(parts: Parts) -> None:
    _, held = await parts.registrar.create("n", tenant="t")
    assert await parts.enters(held)
    parts.records.tell("tenant:t")
    parts.records.down = True
    with pytest.raises(StoreUnavailable):
        await parts.authenticate(held)


@pytest.mark.parametrize(
    ("sources", "source", "allowed"),
    [
        ((), None, True),
        ((), "203.0.113.9", True),
        (("10.0.0.0/8",), "10.9.8.7", True),
        (("10.0.0.0/8",), "::ffff:10.9.8.7", True),
        (("10.0.0.0/8",), "11.9.8.7", False),
        (("10.0.0.0/8",), "2001:db8::1", False),
        (("10.0.0.0/8",), None, False),
        (("10.0.0.0/8",), "a socket", False),
        (("10.0.0.0/8", "2001:db8::/32"), "2001:db8::1", True),
        (("192.0.2.4",), "192.0.2.4", True),
        (("192.0.2.4",), "192.0.2.5", False),
    ],
)
async def test_a_key_may_be_tied_to_networks(
    parts: Parts, sources: tuple[str, ...], source: str | None, allowed: bool
) -> None:
    _, held = await parts.registrar.create("n", sources=sources)
    for _ in range(2):  # from the store, and from memory
        if allowed:
            assert await parts.enters(held, source)
        else:
            with pytest.raises(SourceNotAllowed) as caught:
                await parts.authenticate(held, source)
            assert caught.value.status == 403
    if not allowed:
        assert not await parts.enters(token(parse(held)[0], "w" * 43), source), "a wrong secret is told nothing"


async def test_a_token_that_was_found_good_vouches_for_no_other(parts: Parts) -> None:
    """Verdicts are remembered by all that may hold a token, not by the header that comes first."""
    _, held = await parts.registrar.create("n")
    beside = {b"authorization": b"Basic abc"}
    for _ in range(2):
        await parts.keyring.authenticate({**beside, b"x-api-key": held.encode()}, None)
    for other in (b"", mint()[1].encode(), held.encode()[:-1] + b"0"):
        with pytest.raises(Unauthenticated):
            await parts.keyring.authenticate({**beside, b"x-api-key": other}, None)
        with pytest.raises(Unauthenticated):
            await parts.keyring.authenticate({**beside, b"api-key": other}, None)
    with pytest.raises(Unauthenticated):
        await parts.keyring.authenticate(beside, None)


async def test_a_remembered_token_is_looked_up_no_more_until_memory_is_old(parts: Parts) -> None:
    _, held = await parts.registrar.create("n")
    for _ in range(3):
        await parts.authenticate(held)
    asked = len(parts.records.asked)
    assert (await parts.authenticate(held)) is (await parts.authenticate(held))
    assert len(parts.records.asked) == asked
    parts.clock.advance(FRESH_SECONDS)
    await parts.authenticate(held)
    assert len(parts.records.asked) > asked


async def test_a_remembered_token_ends_with_its_key(parts: Parts) -> None:
    record, held = await parts.registrar.create("n", lifetime=10)
    other, rotated = await parts.registrar.create("m")
    assert await parts.enters(held) and await parts.enters(rotated)
    await parts.registrar.rotate(other.id, 5)
    parts.records.tell(f"key:{other.id}")
    assert await parts.enters(rotated), "for five seconds more"
    parts.clock.advance(6)
    assert await parts.enters(held) and not await parts.enters(rotated)
    parts.clock.advance(5)
    assert not await parts.enters(held), "it has expired"
    assert record.expires is not None


async def test_a_key_is_found_for_what_its_client_has_left(parts: Parts) -> None:
    """As it stands now: no token is there to be looked at."""
    record, _ = await parts.registrar.create("n", sources=["10.0.0.0/8"])
    expiring, _ = await parts.registrar.create("n", lifetime=10)
    assert (await parts.keyring.find(record.id, "10.1.2.3")).key == record
    with pytest.raises(SourceNotAllowed):
        await parts.keyring.find(record.id, "192.0.2.1")
    assert (await parts.keyring.find(expiring.id, None)).key == expiring
    parts.clock.advance(11)
    await parts.registrar.revoke(record.id)
    for id in (record.id, expiring.id, "none"):
        with pytest.raises(Unauthenticated):
            await parts.keyring.find(id, "10.1.2.3", fresh=True)

"""Virtual keys: who is let in, who is not, and how soon a change of a key holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import Act, Target, event, stream
from integration.client import Wire, ask, chat, elsewhere, eventually, get, request, wire

from gateway.auth import token
from gateway.core.types import Limit

NOBODY = token("A" * 12, "b" * 43)


def bad_keys(good: str) -> dict[str, str | None]:
    mistyped = good[:30] + ("x" if good[30] != "x" else "y") + good[31:]
    return {
        "missing": None,
        "empty": "",
        "word": "hello",
        "of OpenAI": "sk-proj-abc",
        "mistyped": mistyped,
        "cut": good[:-1],
        "longer": good + "a",
        "unknown": NOBODY,
        "wrong secret": token(good[3:15], "c" * 43),
        "admin": "tladm_" + good[3:],
        "huge": "tl_" + "a" * 5000,
        "not ASCII": "tl_\xe9\xff",
        "spaces": "   ",
        "two": f"{good} {good}",
    }


@pytest.fixture
def every_worker(fleet: list[GatewayProcess]) -> Iterator[list[Wire]]:
    """So many connections to each gateway that every worker has some."""
    with ExitStack() as stack:
        yield [stack.enter_context(wire(gateway)) for gateway in fleet for _ in range(8)]


def test_every_bad_key_gets_the_same_answer(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue()
    expired = gateway.issue(lifetime=1.0)
    revoked = gateway.issue()
    gateway.keys("revoke", revoked.record.id)
    keys = {**bad_keys(issued.secret), "expired": expired.secret, "revoked": revoked.secret}

    time.sleep(1.1)
    answers = {name: ask(gateway, chat("solo"), presented, headers=elsewhere()) for name, presented in keys.items()}

    assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(keys, 401)
    assert len({answer.body for answer in answers.values()}) == 1
    # The server adds "connection: close" when the body has not come yet, whichever the key.
    headers = {name: {each for each, _ in answer.headers} - {"connection"} for name, answer in answers.items()}
    assert headers == dict.fromkeys(keys, headers["unknown"])
    error = answers["unknown"].error
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert solo.calls == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/solo"])
def test_the_models_say_the_same_to_bad_keys(gateway: GatewayProcess, path: str) -> None:
    revoked = gateway.issue()
    assert get(gateway, path, revoked.secret).status == 200
    gateway.keys("revoke", revoked.record.id)
    answers = [
        ask(gateway, None, key, path, method="GET", headers=elsewhere()) for key in (None, NOBODY, revoked.secret)
    ]
    assert [answer.status for answer in answers] == [401] * 3
    assert len({answer.body for answer in answers}) == 1


@pytest.mark.parametrize("scheme", ["Basic", "Token", "Bearerx", "tl_"])
def test_other_schemes_are_no_key(gateway: GatewayProcess, key: str, scheme: str) -> None:
    assert ask(gateway, chat("solo"), headers={"authorization": f"{scheme} {key}", **elsewhere()}).status == 401


def test_an_unknown_key_is_told_as_fast_as_a_wrong_one(fleet: list[GatewayProcess]) -> None:
    """Time must not tell which key ids exist: what would tell it does so every time, a busy machine does not.

    Medians of interleaved calls.
    """
    issued = fleet[0].issue()
    keys = {"unknown": NOBODY, "wrong": token(issued.record.id, "c" * 43)}

    def medians() -> list[float]:
        times: dict[str, list[float]] = {name: [] for name in keys}
        with wire(fleet[0]) as connection:
            for _ in range(60):
                for name, presented in keys.items():
                    started = time.perf_counter()
                    (address,) = elsewhere().items()
                    connection.send(request(chat("fleet"), presented, more=f"{': '.join(address)}\r\n".encode()))
                    assert connection.answer().status == 401
                    times[name].append(time.perf_counter() - started)
        return [statistics.median(taken) for taken in times.values()]

    seen = []
    for _ in range(6):
        unknown, wrong = medians()
        if abs(unknown - wrong) < max(0.3 * max(unknown, wrong), 0.0005):
            return
        seen.append(f"{unknown * 1e3:.2f} and {wrong * 1e3:.2f} ms")
    pytest.fail("; ".join(seen))


def test_a_bad_key_is_refused_before_the_body_is_read(gateway: GatewayProcess) -> None:
    with wire(gateway, request(b"{", NOBODY, length=10_000_000)) as connection:
        assert connection.answer().status == 401


def test_revoking_a_key_without_limits_is_heard_of_everywhere(
    fleet: list[GatewayProcess], shared_target: Target, every_worker: list[Wire]
) -> None:
    """Its calls ask Redis nothing, so they only know what they are told."""
    issued = fleet[0].issue()
    for connection in every_worker:
        connection.send(request(chat("fleet"), issued.secret))
        assert connection.answer().status == 200

    fleet[0].keys("revoke", issued.record.id)

    def refused() -> bool | None:
        for connection in every_worker:
            connection.send(request(chat("fleet"), issued.secret))
        return {connection.answer().status for connection in every_worker} == {401} or None

    eventually(refused, "the revocation everywhere")


def test_revoking_holds_for_the_very_next_call_everywhere(
    fleet: list[GatewayProcess], shared_target: Target, every_worker: list[Wire]
) -> None:
    issued = fleet[0].issue(limit=Limit(rpm=100_000))
    for connection in every_worker:
        connection.send(request(chat("fleet"), issued.secret))
        assert connection.answer().status == 200

    fleet[0].keys("revoke", issued.record.id)

    for connection in every_worker:
        connection.send(request(chat("fleet"), issued.secret))
        assert connection.answer().status == 401
    assert [get(gateway, "/v1/models", issued.secret).status for gateway in fleet] == [401, 401]


def test_a_new_key_is_known_at_once_everywhere(fleet: list[GatewayProcess], shared_target: Target) -> None:
    for _ in range(3):
        secret = fleet[0].issue().secret
        assert [ask(gateway, chat("fleet"), secret).status for gateway in fleet] == [200, 200]


def test_revoking_does_not_end_calls_that_are_under_way(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(limit=Limit(rpm=1000))
    solo.script = stream(event("Hi"), Act.STALL)
    with wire(gateway, request(chat("solo", stream=True), issued.secret)) as connection:
        connection.read_until(event("Hi"))
        gateway.keys("revoke", issued.record.id)
        assert ask(gateway, chat("solo"), issued.secret).status == 401
        assert not solo.calls[0].closed.is_set()


def test_after_a_rotation_both_secrets_hold_for_the_overlap(
    fleet: list[GatewayProcess], shared_target: Target, every_worker: list[Wire]
) -> None:
    issued = fleet[0].issue(limit=Limit(rpm=100_000))
    for connection in every_worker:
        connection.send(request(chat("fleet"), issued.secret))
        assert connection.answer().status == 200

    renewed = fleet[0].keys("rotate", issued.record.id, "--overlap", "2s")

    assert renewed["id"] == issued.record.id
    assert renewed["secret"] != issued.secret
    for connection in every_worker:
        connection.send(request(chat("fleet"), renewed["secret"]))
        assert connection.answer().status == 200

    def old_ended() -> bool | None:
        return all(ask(gateway, chat("fleet"), issued.secret).status == 401 for gateway in fleet) or None

    eventually(old_ended, "the old secret's end")
    for gateway in fleet:
        assert ask(gateway, chat("fleet"), renewed["secret"]).status == 200


def test_after_a_long_overlap_began_the_old_secret_still_holds(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(limit=Limit(rpm=1000))
    assert ask(gateway, chat("solo"), issued.secret).status == 200
    renewed = gateway.keys("rotate", issued.record.id, "--overlap", "1h")
    assert ask(gateway, chat("solo"), renewed["secret"]).status == 200
    assert ask(gateway, chat("solo"), issued.secret).status == 200


def test_a_key_expires_while_it_is_used(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(lifetime=1.0)
    assert ask(gateway, chat("solo"), issued.secret).status == 200
    eventually(lambda: ask(gateway, chat("solo"), issued.secret).status == 401 or None, "the key's end")


def test_the_command_line_changes_a_running_gateway(gateway: GatewayProcess, solo: Target) -> None:
    """Without Redis: the state file is the only way from one process to the other."""
    created = gateway.key("--model", "solo", "--rpm", "100", "--concurrency", "5")
    answer = ask(gateway, chat("solo"), created["secret"])
    assert answer.status == 200
    assert answer.header("x-ratelimit-limit-requests") == "100"
    assert ask(gateway, chat("good"), created["secret"]).status == 403

    shown = gateway.keys("show", created["id"])
    assert created["secret"] not in repr(shown)
    assert created["id"] in [item["id"] for item in gateway.keys("list")]

    assert gateway.keys("revoke", created["id"])["status"] == "revoked"
    assert ask(gateway, chat("solo"), created["secret"]).status == 401

    deleted = gateway.key("--rpm", "100")
    assert ask(gateway, chat("solo"), deleted["secret"]).status == 200
    gateway.keys("delete", deleted["id"])
    assert ask(gateway, chat("solo"), deleted["secret"]).status == 401
    assert deleted["id"] not in [item["id"] for item in gateway.keys("list")]


def test_the_secret_is_stored_nowhere(gateway: GatewayProcess) -> None:
    created = gateway.key()
    secret = created["secret"].split("_")[2]
    stored = "".join(file.read_text("latin-1") for file in gateway.routing.parent.glob("keys.*"))
    assert created["id"] in stored
    assert secret not in stored
    assert secret[:43] not in stored

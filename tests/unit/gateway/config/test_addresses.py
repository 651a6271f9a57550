"""Names with several addresses: who is warned of, and that no resolver can keep a check waiting."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from gateway.config import Mistake, parse_table
from gateway.config.addresses import AT_ONCE, look_up

HOSTS = {
    "many": ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"],
    "two": ["10.1.0.1", "10.1.0.2"],
    "one": ["10.2.0.1"],
    "dual": ["10.3.0.1", "fd00::1"],
    "six": ["fd00::1", "fd00::2", "10.4.0.1"],
}


def answers(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
    if host not in HOSTS:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in HOSTS[host]]
    return [(family, 1, 6, "", (at, 0)) for family, at in zip(families, HOSTS[host], strict=True)]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], None]:
    return lambda answer: monkeypatch.setattr(socket, "getaddrinfo", answer)


def warned(text: str) -> list[Mistake]:
    return parse_table(text, "t.yaml", {}, look_up=True)[1]


def table(url: str, more: str = "") -> str:
    return f"routes:\n  m:\n    targets:\n      - name: t\n        backend: vllm\n        url: {url}\n{more}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://two:8000", "'two' has 2 addresses (10.1.0.1, 10.1.0.2),"),
        ("https://many/p", "'many' has 5 addresses (10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, ...),"),
        ("http://six", "'six' has 2 addresses (fd00::1, fd00::2),"),
    ],
)
def test_a_name_of_several_servers(resolver: Callable[..., None], url: str, shown: str) -> None:
    resolver(answers)
    (warning,) = warned(table(url))
    assert warning.warning and not warning.needed and (warning.line, warning.column) == (6, 9)
    assert warning.message.startswith("route 'm', target 't': the host ") and shown in warning.message
    assert "'discover'" in warning.message


@pytest.mark.parametrize("url", ["http://one", "http://dual", "http://unknown", f"http://{'a' * 70}", "unix:///s"])
def test_names_of_one_server_and_of_none(resolver: Callable[..., None], url: str) -> None:
    resolver(answers)
    assert not warned(table(url))


@pytest.mark.parametrize("more", ["        proxy: http://p:1\n", "    proxy: http://p:1\n", "        proxy: env\n"])
def test_a_proxy_looks_names_up_itself(resolver: Callable[..., None], more: str) -> None:
    resolver(answers)
    assert not warned(table("http://two", more))


@pytest.mark.parametrize("url", ["http://10.0.0.1:8000", "http://[fd00::1]"])
def test_addresses_are_not_looked_up(resolver: Callable[..., None], url: str) -> None:
    asked: list[object] = []
    resolver(lambda *given, **_: asked.append(given))
    assert not warned(table(url)) and not asked


def test_every_target_of_a_name_is_told_and_the_name_is_asked_for_once(resolver: Callable[..., None]) -> None:
    asked: list[str] = []

    def count(host: str, *given: object, **named: object) -> object:
        asked.append(host)
        return answers(host)

    resolver(count)
    more = "      - {name: u, backend: vllm, url: 'http://two:1'}\n    fallback:\n"
    more += "      - {name: v, backend: vllm, url: 'http://two:2'}\n"
    assert [found.line for found in warned(table("http://two", more))] == [6, 7, 9] and asked == ["two"]


def test_only_a_check_asks(resolver: Callable[..., None]) -> None:
    asked: list[object] = []
    resolver(lambda *given, **_: asked.append(given))
    assert not parse_table(table("http://two"), "t.yaml", {})[1] and not asked


@pytest.fixture
def never() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "look-up":
            thread.join()


def test_a_resolver_that_does_not_answer_keeps_nobody_waiting(
    resolver: Callable[..., None], never: threading.Event
) -> None:
    def silent(*_: object, **__: object) -> list[object]:
        never.wait()
        return []

    resolver(silent)
    assert not look_up([f"slow{number}" for number in range(200)], seconds=0.0)


def test_more_names_than_are_looked_up_at_once(resolver: Callable[..., None]) -> None:
    resolver(lambda host, *_, **__: answers("two") if host.endswith("7") else answers("one"))
    found = look_up([f"host{number}" for number in range(3 * AT_ONCE)], seconds=60.0)
    assert len(found) == 3 * AT_ONCE and found["host7"] == ("10.1.0.1", "10.1.0.2")

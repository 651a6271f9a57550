"""Where Redis is, as operators write it: servers, sentinels, clusters, with logins that are never shown."""

from __future__ import annotations

import pytest

from gateway.store import shown
from gateway.store.redis.connect import Connector

SECRET = "canary-7f3a"


def login(url: str) -> tuple[str | None, str | None]:
    found = Connector(url, 1.0)._login
    return found["username"], found["password"]


def seeds(url: str) -> list[tuple[str, int]]:
    return Connector(url, 1.0)._seeds


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost:6379/0",
        "redis://localhost",
        "rediss://user:password@localhost:6380/3",
        "unix:///run/redis.sock",
        "redis://[::1]:6379/0",
        "redis://h:6379/0?protocol=2",
        "redis+sentinel://h/master",
        "redis+cluster://h",
    ],
)
def test_what_can_be_served(url: str) -> None:
    Connector(url, 1.0)


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        ("a:1,b:2,c:3", [("a", 1), ("b", 2), ("c", 3)]),
        ("a", [("a", None)]),
        ("a,b:7,c", [("a", None), ("b", 7), ("c", None)]),
        ("[::1]:7000,[fd00::2]", [("::1", 7000), ("fd00::2", None)]),
        ("10.0.0.1:7000,", [("10.0.0.1", 7000)]),
    ],
)
def test_several_hosts_each_with_its_port(scheme: str, hosts: str, found: list[tuple[str, int | None]]) -> None:
    default = 26379 if scheme == "redis+sentinel" else 6379
    assert seeds(f"{scheme}://{hosts}/master") == [(host, port or default) for host, port in found]


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", (None, None)),
        ("user:password@", ("user", "password")),
        (":password@", (None, "password")),
        ("user@", ("user", None)),
        ("us%40er:p%3Aa%2Fs%40s@", ("us@er", "p:a/s@s")),
        ("user:p@ss@", ("user", "p@ss")),
        (":p/a,s:s@", (None, "p/a,s:s")),
    ],
)
def test_logins(scheme: str, text: str, found: tuple[str | None, str | None]) -> None:
    url = f"{scheme}://{text}a:1,b:2/master"
    assert login(url) == found
    assert seeds(url) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(("path", "database"), [("master", 0), ("master/", 0), ("master/3", 3)])
def test_the_master_and_its_database(path: str, database: int) -> None:
    connector = Connector(f"redis+sentinel://h/{path}", 1.0)
    assert (connector._service, connector._database) == ("master", database)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost:6379",
        f"memcached://:{SECRET}@localhost",
        f"redis+sentinel://:{SECRET}@h1,h2",
        f"redis+sentinel://:{SECRET}@h1,h2/",
        f"redis+sentinel://:{SECRET}@/master",
        f"redis+sentinel://:{SECRET}@h:no/master",
        f"redis+sentinel://:{SECRET}@h:99999/master",
        f"redis+sentinel://:{SECRET}@h/master/no",
        f"redis+sentinel://h/master/0?password={SECRET}",
        f"redis+sentinel://:{SECRET}/master",
        f"redis+cluster://:{SECRET}@",
        f"redis+cluster://:{SECRET}@h:no",
        f"redis+cluster://:{SECRET}",
        f"redis://:{SECRET}@h:no/0",
        f"redis://:{SECRET}@h:99999/0",
        f"redis://:{SECRET}/with-a-slash@h:6379/0",
        f"redis://:{SECRET}@h:6379/0?socket_timeout=no",
    ],
)
def test_what_cannot_be_served_is_refused_at_once_and_without_its_login(url: str) -> None:
    """At the start, not in a log line a second for ever; and what is said may end in a log."""
    with pytest.raises(ValueError) as caught:
        Connector(url, 1.0)
    assert str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@h:6379/0",
        f"redis+sentinel://:{SECRET}@h,i/master",
        f"redis+cluster://user:{SECRET}@h",
        f"redis://:p@{SECRET}@h:6379/0",
        f"redis://h:6379/0?password={SECRET}",
    ],
)
def test_what_is_shown_of_an_address_is_no_secret(url: str) -> None:
    assert SECRET not in shown(url)
    assert shown(url).startswith(url.partition("://")[0] + "://")
    assert "h" in shown(url).partition("://")[2]


@pytest.mark.parametrize(
    ("message", "target"),
    [
        ("10.0.0.7:7001", ("10.0.0.7", 7001)),
        ("3999 10.0.0.7:7001", ("10.0.0.7", 7001)),
        ("3999 fd00::2:7001", ("fd00::2", 7001)),
        ("3999 :7001", ("seed", 7001)),
        ("3999 10.0.0.7:", None),
        ("3999 nonsense", None),
    ],
)
def test_a_cluster_sends_us_on(message: str, target: tuple[str, int] | None) -> None:
    connector = Connector("redis+cluster://seed:7000", 1.0)
    connector.moved(message)
    assert connector._moved == target

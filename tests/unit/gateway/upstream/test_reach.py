"""TLS, mutual TLS and proxies, over real sockets and with real certificates."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.certificates import Certificates, certificates
from harness.forward_proxy import ForwardProxy, forward_proxy
from harness.peer import Listener, Peer, listening
from harness.upstream import chunk, head

from backends.api import Target as Address
from gateway.config import Table, TLSSpec, parse_table
from gateway.core.errors import Disconnected, Unreachable
from gateway.upstream.connection import HELD_BYTES
from gateway.upstream.dial import Address as Where
from gateway.upstream.origin import Origin
from gateway.upstream.origins import Origins
from gateway.upstream.pool import Pool

OK = head(content_length=2) + b"ok"
STREAM = head(content_type="text/event-stream", transfer_encoding="chunked")


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def secure(certified: Certificates) -> AsyncIterator[Listener]:
    async with listening(tls=certified.server) as listener:
        yield listener


def table(url: str, route: dict[str, Any] | None = None, **more: Any) -> Table:
    target = {"name": "t", "backend": "openai", "url": url, **more}
    return parse_table(yaml.safe_dump({"routes": {"m": {"targets": [target], **(route or {})}}}))[0]


def origin_of(url: str, route: dict[str, Any] | None = None, **more: Any) -> Origin:
    origins = Origins()
    origins.bind(table(url, route, **more))
    return origins.of(Address("t", url))


async def asked(pool: Pool, origin: Origin, listener: Listener, answer: bytes = OK) -> tuple[Peer, list[str]]:
    """Ask once; the far end, and the lines of the request's head."""
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0))
    getting = asyncio.create_task(listener.accepted.get())
    await asyncio.wait([asking, getting], return_when=asyncio.FIRST_COMPLETED)
    if asking.done():
        getting.cancel()
        await asking
    peer = await getting
    lines, _ = await peer.request()
    peer.send(answer)
    response = await asking
    assert await response.read() == b"ok"
    response.release()
    return peer, lines


async def test_tls_with_an_authority_of_ones_own(pool: Pool, secure: Listener, certified: Certificates) -> None:
    origin = origin_of(f"https://localhost:{secure.port}/prefix", tls={"ca": certified.ca})
    peer, lines = await asked(pool, origin, secure)
    assert lines[:2] == ["POST /prefix/v1/x HTTP/1.1", f"host: localhost:{secure.port}"]
    assert peer.transport.get_extra_info("cipher")
    opened = next(iter(pool._connections)).socket
    assert opened is not None and opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0))
    await peer.request()
    peer.send(OK)
    (await asking).release()
    assert origin.reused == 1, "what a TLS connection has in hand is no stray byte"


async def test_the_environments_authorities(
    pool: Pool, secure: Listener, certified: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certified.ca)
    await asked(pool, origin_of(f"https://127.0.0.1:{secure.port}"), secure)


@pytest.mark.parametrize(
    ("host", "tls", "why"),
    [
        ("localhost", {}, "certificate verify failed"),
        ("localhost", {"ca": True, "server_name": "other.test"}, "certificate is not valid for 'other.test'"),
        ("[::1]", {"ca": True}, None),
    ],
)
async def test_a_certificate_that_is_not_good(
    pool: Pool, certified: Certificates, host: str, tls: dict[str, Any], why: str | None
) -> None:
    async with listening("::1" if host == "[::1]" else "127.0.0.1", tls=certified.server) as listener:
        if tls.get("ca"):
            tls = {**tls, "ca": certified.ca}
        with pytest.raises(Unreachable, match=why or "certificate"):
            await asked(pool, origin_of(f"https://{host}:{listener.port}", tls=tls), listener)
        assert (pool._connections, pool._resting) == (set(), set())


@pytest.mark.parametrize("tls", [{"ca": True, "server_name": "engine.test"}, {"verify": False}])
async def test_a_server_under_another_name(
    pool: Pool, secure: Listener, certified: Certificates, tls: dict[str, Any]
) -> None:
    async def resolve(host: str, port: int) -> list[Where]:
        return [(socket.AF_INET, ("127.0.0.1", port))]

    pool._dialer._resolve = resolve
    tls = {**tls, "ca": certified.ca} if tls.get("ca") else tls
    await asked(pool, origin_of(f"https://elsewhere.test:{secure.port}", tls=tls), secure)


@pytest.mark.parametrize("one_file", [True, False])
async def test_mutual_tls(pool: Pool, certified: Certificates, one_file: bool) -> None:
    own = {"cert": certified.client} if one_file else {"cert": certified.client_cert, "key": certified.client_key}
    async with listening(tls=certified.strict) as listener:
        url = f"https://localhost:{listener.port}"
        peer, _ = await asked(pool, origin_of(url, tls={"ca": certified.ca, **own}), listener)
        assert ("DNS", "gateway.test") in peer.transport.get_extra_info("peercert")["subjectAltName"]
        with pytest.raises((Unreachable, Disconnected)):
            await pool.request(origin_of(url, tls={"ca": certified.ca}), "GET", "/", [], None, 5.0)


async def test_a_server_that_speaks_no_tls(pool: Pool, listener: Listener) -> None:
    asking = asyncio.create_task(
        pool.request(origin_of(f"https://localhost:{listener.port}", tls={"verify": False}), "GET", "/", [], None, 5.0)
    )
    peer = await listener.peer()
    await peer.until(b"\x01")
    peer.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(Unreachable, match=r"SSLError|ConnectionAbortedError|ConnectionResetError"):
        await asking


async def test_a_handshake_that_does_not_end_is_given_up(pool: Pool, listener: Listener) -> None:
    origin = origin_of(f"https://localhost:{listener.port}", tls={"verify": False})
    asking = asyncio.create_task(pool.request(origin, "GET", "/", [], None, 0.5))
    peer = await listener.peer()
    with pytest.raises(Unreachable, match="no connection within"):
        await asking
    await peer.ended.wait()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_what_came_over_tls_before_a_break_is_handed_on(
    pool: Pool, secure: Listener, certified: Certificates, reset: bool
) -> None:
    origin = origin_of(f"https://localhost:{secure.port}", tls={"ca": certified.ca})
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0))
    peer = await secure.peer()
    await peer.request()
    peer.send(STREAM + chunk(b"x" * 5000))
    response = await asking
    await peer.arrived()
    peer.reset() if reset else peer.close()
    got = b""
    with pytest.raises(Disconnected):
        while piece := await response.read():
            got += piece
    assert got == b"x" * 5000
    response.release()
    assert not origin.idle


async def test_a_slow_reader_stops_a_target_over_tls(pool: Pool, secure: Listener, certified: Certificates) -> None:
    origin = origin_of(f"https://localhost:{secure.port}", tls={"ca": certified.ca})
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0))
    peer = await secure.peer()
    await peer.request()
    size = 16 * 1024 * 1024
    peer.send(STREAM + chunk(b"x" * size) + b"0\r\n\r\n")
    response = await asking
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert HELD_BYTES <= response.held < 2 * 1024 * 1024
    got = 0
    while piece := await response.read():
        got += len(piece)
    assert got == size
    response.release()


async def test_a_renewed_certificate_is_used(pool: Pool, certified: Certificates, tmp_path: Path) -> None:
    """Certificates are renewed every few weeks, and nobody starts a gateway anew for that."""
    own, url = tmp_path / "own.pem", "https://localhost:1"
    own.write_bytes(Path(certified.client).read_bytes())
    origin = origin_of(url, tls={"ca": certified.ca, "cert": str(own)})
    assert origin.tls is not None
    first = origin.tls.context()
    assert origin.tls.context() is first
    os.utime(own, (1, 1))
    assert origin.tls.context() is not first
    own.unlink()
    with pytest.raises(Unreachable, match="FileNotFoundError"):
        await pool.request(origin, "GET", "/", [], None, 1.0)


@pytest.fixture
async def proxy() -> AsyncIterator[ForwardProxy]:
    async with forward_proxy() as proxy:
        proxy.names["engine.test"] = proxy.names["engine.test:80"] = 0
        yield proxy


@pytest.mark.parametrize("of_route", [False, True], ids=["the target's", "the route's"])
async def test_plain_http_through_a_proxy(pool: Pool, listener: Listener, proxy: ForwardProxy, of_route: bool) -> None:
    proxy.names["engine.test"] = listener.port
    place, named = f"http://user:p%40ss@127.0.0.1:{proxy.port}", {"proxy": "${PROXY}"}
    url = "http://engine.test/prefix"
    origins = Origins()
    target: dict[str, Any] = {"name": "t", "backend": "openai", "url": url}
    route = {"targets": [target], **named} if of_route else {"targets": [target | named]}
    origins.bind(parse_table(yaml.safe_dump({"routes": {"m": route}}), environment={"PROXY": place})[0])
    origin = origins.of(Address("t", url))
    _, lines = await asked(pool, origin, listener)
    assert lines[:2] == ["POST /prefix/v1/x HTTP/1.1", "host: engine.test"]
    assert proxy.heads[0][0] == "POST http://engine.test/prefix/v1/x HTTP/1.1"
    assert "proxy-authorization: Basic dXNlcjpwQHNz" in proxy.heads[0]


async def test_https_through_a_proxy(
    pool: Pool, secure: Listener, certified: Certificates, proxy: ForwardProxy
) -> None:
    proxy.names["engine.test:443"] = secure.port
    place = f"http://127.0.0.1:{proxy.port}"
    origin = origin_of("https://engine.test/prefix", tls={"ca": certified.ca}, proxy=place)
    peer, lines = await asked(pool, origin, secure)
    assert lines[:2] == ["POST /prefix/v1/x HTTP/1.1", "host: engine.test"]
    assert proxy.heads == [["CONNECT engine.test:443 HTTP/1.1", "host: engine.test:443"]]
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], b"{}", 5.0))
    await peer.request()
    peer.send(OK)
    (await asking).release()
    assert len(proxy.heads) == 1 and origin.reused == 1


@pytest.mark.parametrize("refusal", [b"407 Proxy Authentication Required", b"502 Bad Gateway", b"nonsense"])
async def test_a_proxy_that_refuses(pool: Pool, proxy: ForwardProxy, refusal: bytes) -> None:
    proxy.refusal = refusal
    origin = origin_of("https://engine.test", proxy=f"http://127.0.0.1:{proxy.port}")
    why = "the proxy: " if refusal == b"nonsense" else f"the proxy refuses to connect: status {refusal[:3].decode()}"
    with pytest.raises(Unreachable, match=why):
        await pool.request(origin, "GET", "/", [], None, 5.0)


@pytest.mark.parametrize(
    ("url", "environment", "through"),
    [
        ("http://engine.test", {"HTTP_PROXY": "http://one:3128"}, "one:3128"),
        ("http://engine.test", {"http_proxy": "http://one"}, "one:80"),
        ("http://engine.test", {"HTTP_PROXY": "one:3128"}, "one:3128"),
        ("http://engine.test", {"HTTPS_PROXY": "http://one:3128"}, None),
        ("https://engine.test", {"HTTPS_PROXY": "http://one:3128"}, "one:3128"),
        ("https://engine.test", {"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "other,.test"}, None),
        ("https://engine.test", {"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "other"}, "one:3128"),
        ("https://engine.test:8443", {"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "engine.test:8443"}, None),
        ("https://engine.test", {"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "*"}, None),
        ("unix:///run/x.sock", {"HTTP_PROXY": "http://one:3128", "HTTPS_PROXY": "http://one:3128"}, None),
        ("http://engine.test", {}, None),
    ],
)
def test_the_environments_proxy(
    url: str, environment: dict[str, str], through: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    origin = origin_of(url, proxy="env")
    assert (origin.proxy.place.authority if origin.proxy else None) == through
    assert origin_of(url).proxy is None, "never unasked"


def test_a_proxy_of_the_environment_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://one:1080")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ValueError, match="HTTPS_PROXY"):
        origin_of("https://engine.test", proxy="env")


def test_headers_go_with_every_request_and_names_are_bound() -> None:
    origin = origin_of(
        "http://a",
        {"forward_headers": ["X-Data-Parallel-Rank"]},
        headers={"Authorization": "Basic x", "X-Team": "search"},
    )
    assert origin.start("GET", "/x") == b"GET /x HTTP/1.1\r\nhost: a\r\nauthorization: Basic x\r\nx-team: search\r\n"
    assert origin.forwarded == (b"x-data-parallel-rank",)


def test_a_target_that_is_reached_as_before_keeps_its_origin_over_a_reload() -> None:
    origins, address = Origins(), Address("t", "http://a")
    origins.bind(table("http://a", headers={"x-a": "1"}))
    before = origins.of(address)
    origins.bind(table("http://a", {"policy": "round-robin"}, headers={"x-a": "1"}))
    assert origins.of(address) is before and list(origins) == [before]
    before.open = 1
    origins.bind(table("http://a", headers={"x-a": "2"}))
    after = origins.of(address)
    assert after is not before and set(origins) == {before, after}
    before.open = 0
    assert set(origins) == {before, after}, "what is counted of it is asked for once more"
    assert list(origins) == [after]
    origins.bind(table("http://b", headers={"x-a": "2"}))
    assert origins.of(Address("t", "http://b")) is not after and after not in tuple(origins)[:1]


def test_contexts_ask_nobody_for_a_password(certified: Certificates, tmp_path: Path) -> None:
    what = "ENCRYPTED PRIVATE KEY"
    (tmp_path / "key.pem").write_text(f"-----BEGIN {what}-----\nAAAA\n-----END {what}-----\n")
    with pytest.raises(ssl.SSLError):
        TLSSpec(cert=certified.client_cert, key=str(tmp_path / "key.pem")).context()

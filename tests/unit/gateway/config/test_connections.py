"""What may be said of how targets are reached, and where each mistake in it is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.certificates import Certificates, certificates

from gateway.config import Mistake, Mistakes, TLSSpec, parse_table

TABLE = """\
routes:
  m:
    targets:
      - name: t
        backend: openai
        url: https://engine:8443/prefix
        {more}
    {route}
"""


def read(more: str = "", route: str = "", url: str = "", **environment: str) -> tuple[object, list[Mistake]]:
    text = TABLE.replace("{more}", more).replace("{route}", route)
    if url:
        text = text.replace("https://engine:8443/prefix", url)
    table, warnings = parse_table(text, "t.yaml", environment)
    return table.routes["m"], warnings


def mistake(more: str = "", route: str = "", url: str = "", **environment: str) -> Mistake:
    with pytest.raises(Mistakes) as caught:
        read(more, route, url, **environment)
    (found,) = caught.value.found
    return found


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("url", ["unix:///run/vllm.sock", "http://[fd00::1]:8000/prefix", "https://engine"])
def test_urls(url: str) -> None:
    assert not read(url=url)[1]


@pytest.mark.parametrize("url", ["unix://run/vllm.sock", "unix:///", "unix:run", "ftp://engine", "unix:///a?b"])
def test_urls_that_lead_nowhere(url: str) -> None:
    found = mistake(url=url)
    assert "is not a base URL" in found.message and found.line == 6


def test_everything_that_may_be_said(certified: Certificates) -> None:
    more = f"tls: {{ca: {certified.ca}, cert: {certified.client}, server_name: x}}\n        proxy: env\n"
    more += "        headers: {x-team: search, x-secret: '${S}', host: inside}"
    route, warnings = read(more, "proxy: http://proxy:3128\n    forward_headers: [x-data-parallel-rank]", S="hush")
    (target,) = route.targets  # type: ignore[attr-defined]
    assert not warnings
    assert target.tls == TLSSpec(ca=certified.ca, cert=certified.client, server_name="x")
    assert (target.proxy, target.headers["x-secret"]) == ("env", "hush")


@pytest.mark.parametrize(
    ("more", "route", "line", "said"),
    [
        ("proxy: socks5://p:1", "", 7, "'socks5://p:1' is no proxy; write a URL such as 'http://proxy:3128', or 'env'"),
        ("proxy: https://p:1", "", 7, "is no proxy"),
        ("proxy: http://p:1/path", "", 7, "is no proxy"),
        ("", "proxy: p", 8, "'p' is no proxy"),
        ("proxy: http://u:secret@p:1", "", 7, "a secret must not stand in the table"),
        ("proxy: ftp://u:secret@p:1", "", 7, "'p:1' is no proxy"),
        ("tls: {key: k.pem}", "", 7, "'key' needs 'cert'"),
        ("tls: {cipher: x}", "", 7, "unknown key 'cipher'"),
        ("headers: {'a b': c}", "", 7, "'a b' is no name of a header"),
        ("headers: {Content-Length: '7'}", "", 7, "'Content-Length' is not for the table to set"),
        ("headers: {x-a: b, X-A: c}", "", 7, "'X-A' is given twice"),
        ('headers: {x-a: "b\\r\\nx-b: c"}', "", 7, "the value of header 'x-a' must be printable ASCII"),
        ("headers: {x-a: ä}", "", 7, "must be printable ASCII"),
        ("headers: {Authorization: x}\n        api_key: ${K}", "", 7, "'api_key' already sets 'authorization'"),
        ("", "forward_headers: [x-a, Authorization]", 8, "'Authorization' is not for the table to set"),
        ("", "forward_headers: [x-a, x-api-key]", 8, "'x-api-key' is not for the table to set"),
        ("", "forward_headers: ['x:a']", 8, "'x:a' is no name of a header"),
        ("", "session_headers: [x-a, Cookie]", 8, "'Cookie' is not for the table to set"),
        ("headers: {X-A: b}", "session_headers: [x-a]", 7, "'x-a' is among the route's 'session_headers', too"),
        ("headers: {X-A: b}", "forward_headers: [x-a]", 7, "'x-a' is among the route's 'forward_headers', too"),
    ],
)
def test_mistakes_are_told_where_they_stand(more: str, route: str, line: int, said: str) -> None:
    found = mistake(more, route, K="key")
    assert said in found.message and found.line == line
    assert "secret" not in found.message.replace("a secret must", "")


def test_tls_without_https_is_a_mistake() -> None:
    assert "does not begin with 'https://'" in mistake("tls: {verify: false}", url="http://engine").message


def test_a_launched_target_is_reached_without_tls() -> None:
    text = TABLE.replace("url: https://engine:8443/prefix", "launch: {argv: [x, '{port}']}").replace("{route}", "")
    with pytest.raises(Mistakes, match="is launched, and reached without TLS"):
        parse_table(text.replace("{more}", "tls: {}"))


def test_files_that_cannot_be_used_are_needed_to_serve(certified: Certificates, tmp_path: Path) -> None:
    (tmp_path / "nonsense.pem").write_text("nonsense")
    for tls in (
        f"{{ca: {tmp_path}/absent.pem}}",
        f"{{ca: {tmp_path}/nonsense.pem}}",
        f"{{cert: {certified.client_cert}}}",
        f"{{cert: {certified.client_cert}, key: {certified.ca}}}",
    ):
        _, (warning,) = read(f"tls: {tls}")
        assert warning.needed and warning.line == 7 and "cannot be used" in warning.message, warning


def test_a_certificate_that_is_not_checked_is_warned_of() -> None:
    _, (warning,) = read("tls: {verify: false}")
    assert warning.warning and not warning.needed and "anybody between" in warning.message


def test_a_proxys_password_may_be_a_reference() -> None:
    assert not read("proxy: 'http://u:${PW}@p:1'", PW="hush")[1]

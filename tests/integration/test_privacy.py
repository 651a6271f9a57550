"""No key, no credential and no prompt appears in a log, a metric or an error, whatever goes wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.redis_server import free_port
from harness.upstream import DONE, Act, Script, Target, Upstream, answer, event, head, stream, whole
from integration.cases import FAILURES
from integration.client import CHAT, Reply, ask, get, request, wire

from gateway.core.types import Limit

PROMPT = "canary-prompt-4711"
CREDENTIAL = "canary-credential-0815"
ECHO = f"Incorrect API key provided: {CREDENTIAL}; prompt was {PROMPT}"
SCRIPTS: dict[str, Script] = {
    **{f"failure {name}": script for name, (script, _, _) in FAILURES.items()},
    "answer": whole(answer(PROMPT)),
    "stream": stream(event(PROMPT), event(finish="stop"), DONE),
    "401": whole({"error": {"message": ECHO}}, 401),
    "500": whole({"error": {"message": ECHO}}, 500),
    "503": whole(ECHO.encode(), 503, "text/html"),
    "404 in HTML": whole(ECHO.encode(), 404, "text/html"),
    "302": whole(ECHO.encode(), 302, location=f"http://{PROMPT}/{CREDENTIAL}"),
    "odd headers": whole(b"{", 200, x_echo=ECHO),
    "error in 200": whole({"error": {"message": ECHO, "code": 500}}),
    "malformed": whole(ECHO.encode()),
    "malformed JSON": whole(json.dumps([ECHO]).encode()),
    "error event": stream(b"data: " + json.dumps({"error": {"message": ECHO}}).encode() + b"\n\n"),
    "error event later": stream(event("a"), b"data: " + json.dumps({"error": ECHO}).encode() + b"\n\n", DONE),
    "malformed event": stream(event("a"), b"data: " + ECHO.encode() + b"\n\n"),
    "malformed first event": stream(b'data: {"choices": "' + ECHO.encode() + b'"}\n\n'),
    "cut later": stream(event(PROMPT), Act.CUT),
    "nonsense": [ECHO.encode() + b"\r\n\r\n", Act.CUT],
    "bad head": [head(200)[:-2] + ECHO.encode() + b"\r\n\r\n", Act.CUT],
}
BAD_BODIES = [
    PROMPT.encode(),
    b'{"model":"m","messages":[{"role":"user","content":"' + PROMPT.encode() + b'\xff"}]}',
    b'{"model":"m","messages":"' + PROMPT.encode() + b'"}',
    b'{"model":"m","stream":"' + PROMPT.encode() + b'","messages":[]}',
    b'{"model":"m","stream":true,"stream_options":"' + PROMPT.encode() + b'","messages":[]}',
    b'{"model":["' + PROMPT.encode() + b'"],"messages":[]}',
    b'{"model":"m","' + PROMPT.encode() + b'":1,"' + PROMPT.encode() + b'":2,"messages":[]}',
    b'{"model":"m","messages":[{"content":"' + PROMPT.encode() + b'"}]',
]


@pytest.fixture(scope="module")
def talkative(upstream: Upstream) -> Iterator[GatewayProcess]:
    """A gateway that logs all it can."""
    targets = [
        {"name": "privacy", "backend": "vllm", "url": upstream.target("privacy").url, "api_key": "${CANARY}"},
    ]
    dead = [
        {"name": "privacy-dead", "backend": "vllm", "url": f"http://127.0.0.1:{free_port()}", "api_key": "${CANARY}"}
    ]
    timeouts = {"first_output": "500ms", "whole": "500ms"}
    hasty = [{**targets[0], "name": "privacy-hasty"}]
    routes = {"m": {"targets": targets}, "hasty": {"targets": hasty, "timeouts": timeouts}, "dead": {"targets": dead}}
    env = {"CANARY": CREDENTIAL, "TRUNKLINE_LOG_LEVEL": "debug"}
    with gateway_process(json.dumps({"routes": routes}), env=env) as started:
        yield started


@pytest.fixture(scope="module")
def issued(talkative: GatewayProcess) -> Issued:
    return talkative.issue()


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("privacy")
    found.restore()
    return found


def prompt(model: str = "m", **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT, **fields}


def secrets_of(issued: Issued) -> list[str]:
    secret = issued.secret.split("_")[2]
    return [CREDENTIAL, secret[:43], secret[8:40], base64.b64encode(CREDENTIAL.encode()).decode()]


def check_error(reply: Reply, issued: Issued) -> None:
    """What the client is told holds no credential of ours; errors do not hold the prompt either."""
    told = repr(reply.headers) + reply.body.decode("utf-8", "replace")
    assert [canary for canary in secrets_of(issued) if canary in told] == []
    if reply.status != 200:
        assert PROMPT not in told


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_what_clients_are_told(
    talkative: GatewayProcess, issued: Issued, target: Target, name: str, fields: dict[str, bool]
) -> None:
    target.script = SCRIPTS[name]
    reply = ask(talkative, prompt("hasty" if Act.STALL in target.script else "m", **fields), issued.secret)
    check_error(reply, issued)
    if reply.status == 200 and reply.data and b'"error"' in reply.data[-1]:
        assert PROMPT.encode() not in reply.data[-1]


@pytest.mark.parametrize("body", BAD_BODIES)
def test_what_clients_are_told_of_bad_bodies(
    talkative: GatewayProcess, issued: Issued, target: Target, body: bytes
) -> None:
    for path in (CHAT, "/v1/completions", "/v1/embeddings"):
        check_error(ask(talkative, body, issued.secret, path), issued)


def test_what_else_can_go_wrong(talkative: GatewayProcess, issued: Issued, target: Target) -> None:
    """Every call here carries the canaries; the next tests look where they went."""
    key = issued.secret
    check_error(ask(talkative, prompt("dead"), key), issued)
    check_error(ask(talkative, prompt(), key[:-1]), issued)
    check_error(ask(talkative, prompt(), headers={"authorization": f"Basic {key}"}), issued)
    check_error(ask(talkative, prompt("no-such"), key, f"{CHAT}?api_key={key}&q={PROMPT}"), issued)
    check_error(get(talkative, f"/v1/models?api_key={key}&q={PROMPT}"), issued)
    check_error(ask(talkative, prompt(), key, "/v1/nothing", headers={"x-prompt": PROMPT}), issued)
    limited = talkative.issue(limit=Limit(rpm=1))
    for _ in range(2):
        check_error(ask(talkative, prompt(), limited.secret), limited)
    narrow = talkative.issue(models=("dead",))
    assert ask(talkative, prompt(), narrow.secret).status == 403
    revoked = talkative.issue(limit=Limit(rpm=1000))
    talkative.keys("revoke", revoked.record.id)
    assert ask(talkative, prompt(), revoked.secret).status == 401
    target.script = stream(event(PROMPT), Act.STALL)
    with wire(talkative, request(prompt(stream=True), key)) as connection:
        connection.read_until(PROMPT.encode())
    with wire(talkative, request(prompt(), key)[:-20]) as connection:
        connection.leave()
    with wire(talkative) as connection:
        connection.send(f"POST /{PROMPT} HTTP/9.9\r\nauthorization: {key}\r\n\r\n".encode())
        connection.all_that_comes()


def test_what_the_logs_and_metrics_hold(talkative: GatewayProcess, issued: Issued) -> None:
    """Runs after all the calls above."""
    places = {
        "stdout": talkative.stdout(),
        "stderr": talkative.stderr(),
        "metrics": talkative.metrics(),
        "ready": get(talkative, "/ready").body.decode(),
        "docs": get(talkative, "/docs/openapi.json").body.decode(),
    }
    assert len(talkative.records()) > 50
    for place, text in places.items():
        canaries = (PROMPT, *secrets_of(issued))
        assert [line for line in text.splitlines() if any(canary in line for canary in canaries)] == [], place
        assert "Traceback" not in text, place
    for line in talkative.records():
        assert line["error_type"] != "gateway_other"

"""What our own descriptions promise, asked of a real gateway: by good calls, by bad ones, by other methods."""

from __future__ import annotations

import http.client
import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.lazily import Lazily
from harness.upstream import Upstream, scripted_upstream
from hypothesis import given, settings
from hypothesis import strategies as st
from integration.client import elsewhere

schemathesis: Any = Lazily("schemathesis")
openapi: Any = Lazily("schemathesis.specs.openapi.checks")

TRIES = int(os.environ.get("FUZZ_CALLS", "6"))
"""Calls to each operation of each kind."""
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")


def checks(strict: bool) -> list[Any]:
    """`strict` where nobody behind us has a say in what is wrong."""
    found = [
        schemathesis.checks.not_a_server_error,
        openapi.status_code_conformance,
        openapi.content_type_conformance,
        openapi.response_headers_conformance,
        openapi.response_schema_conformance,
    ]
    return [*found, openapi.negative_data_rejection] if strict else found


class Api:
    """One listener: where it is, what it says of itself, a key for it, and names that exist behind its paths."""

    def __init__(self, port: int, secret: str, names: dict[str, str]) -> None:
        self.port, self.names = port, names
        self.url = f"http://127.0.0.1:{port}"
        self.headers = {"authorization": f"Bearer {secret}"}
        with urllib.request.urlopen(self.url + "/docs/openapi.json", timeout=40) as answer:
            self.description: dict[str, Any] = json.load(answer)
        self._schema = schemathesis.openapi.from_dict(_open(self.description))

    def operations(self) -> list[Any]:
        return [result.ok() for result in self._schema.get_all_operations()]


def _open(part: Any) -> Any:
    """The description without its demand for a key, as we always send one, and without the schema of whole streams,
    which schemathesis takes for that of each event."""
    if isinstance(part, dict):
        kept = {name: value for name, value in part.items() if name not in ("security", "securitySchemes")}
        return {name: {} if name == "text/event-stream" else _open(value) for name, value in kept.items()}
    return [_open(each) for each in part] if isinstance(part, list) else part


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with scripted_upstream() as upstream:
        table = {"routes": {"m": {"aliases": ["team/*"], "targets": [_target(upstream)]}}, "bodies": {"timeout": "3s"}}
        env = {
            "TRUNKLINE_TRUSTED_PROXIES": "127.0.0.1/32",  # each call from another address: wrong keys are counted
            "TRUNKLINE_FILES": str(tmp_path_factory.mktemp("files")),
        }
        with gateway_process(json.dumps(table), admin=True, env=env) as started:
            yield started
            assert started.process.poll() is None
            assert "a bug of ours" not in started.stderr() and "Traceback" not in started.stderr()


def _target(upstream: Upstream) -> dict[str, str]:
    return {"name": "t", "backend": "openai", "url": upstream.target("openapi").url}


@pytest.fixture(scope="module")
def plane(gateway: GatewayProcess) -> Api:
    return Api(gateway.port, gateway.issue().secret, {"model_id": "team/x:1", "response_id": "resp_1"})


@pytest.fixture(scope="module")
def admin(gateway: GatewayProcess) -> Api:
    secret = gateway.said("admin", "create", "--name", "fuzz")["secret"]
    spare = gateway.said("admin", "create", "--name", "spare")["id"]
    names = {"key_id": gateway.issue().record.id, "tenant_id": "default", "admin_id": spare, "name": "t"}
    return Api(gateway.admin_port, secret, names)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["positive", "negative"])
@pytest.mark.parametrize("which", ["plane", "admin"])
def test_the_answers_are_as_described(request: pytest.FixtureRequest, which: str, kind: str) -> None:
    api: Api = request.getfixturevalue(which)
    mode, failures = schemathesis.GenerationMode(kind), []
    for operation in api.operations():
        if kind == "negative" and not len(operation.body) and not len(operation.query):
            continue  # there is nothing to be wrong about
        try:
            _ask(api, operation.as_strategy(generation_mode=mode), checks(which == "admin"))
        except Exception as error:
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(api.operations())} operations", failures)


def _ask(api: Api, cases: Any, checks: list[Any]) -> None:
    @settings(max_examples=TRIES)
    @given(cases, st.booleans())
    def answered(case: Any, real: bool) -> None:
        if real:
            _make_real(api, case)
        case.call_and_validate(api.url, headers={**api.headers, **elsewhere()}, checks=checks, timeout=40)

    answered()


def _make_real(api: Api, case: Any) -> None:
    """Put names that exist where the description can only say that it is a text."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = api.names.get(name, case.path_parameters[name])
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "m"


@pytest.mark.parametrize("which", ["plane", "admin"])
def test_methods_that_are_not_described_are_refused(request: pytest.FixtureRequest, which: str) -> None:
    api: Api = request.getfixturevalue(which)
    for path, item in api.description["paths"].items():
        for method in METHODS:
            if method.lower() not in item:
                status, error = _refusal(api, method, path)
                assert (status, error) == (405, "method_not_allowed"), (method, path)


CODES = {"invalid_request_error": "method_not_allowed"}
"""Anthropic's errors have a type only, which is that of all mistakes."""


def _refusal(api: Api, method: str, path: str) -> tuple[int, str]:
    """The status, and the error's code in the words of the path's dialect."""
    for name, value in api.names.items():
        path = path.replace("{" + name + "}", value)
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=40)
    try:
        connection.request(method, path, headers={**api.headers, **elsewhere()})
        response = connection.getresponse()
        said = json.loads(response.read())
        error = {"code": said["error_type"]} if isinstance(said["error"], str) else said["error"]
        return response.status, error["code"] if "code" in error else CODES[error["type"]]
    finally:
        connection.close()

"""What a real llama.cpp does not speak as its clients want it: the form of completions, responses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from harness.gateway_process import GatewayProcess
from harness.lazily import Lazily
from integration.client import ask

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")

MODEL = "smollm2-135m"
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def token(embedded: GatewayProcess) -> str:
    return embedded.issue(default_route=MODEL).secret


def test_a_grammar_of_tgis_clients_binds(embedded: GatewayProcess, token: str) -> None:
    parameters = {"grammar": {"type": "json", "value": CITY}, "max_new_tokens": 60}
    reply = ask(embedded, {"inputs": "A city as JSON:", "parameters": parameters}, token, "/generate")
    assert json.loads(reply.json()["generated_text"])["city"] in ("Paris", "Rome")


@pytest.mark.parametrize(
    ("form", "is_json"),
    [
        ({"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}, True),
        ({"type": "json_object"}, True),
        ({"type": "text"}, False),
        ({"type": "json_schema"}, True),
        (None, False),
        ({"type": 3}, False),
    ],
)
def test_so_does_the_form_of_a_completion(embedded: GatewayProcess, token: str, form: Any, is_json: bool) -> None:
    asked = {"model": MODEL, "prompt": "A city as JSON:", "max_tokens": 8, "temperature": 0, "response_format": form}
    reply = ask(embedded, asked, token, "/v1/completions")
    assert reply.json()["choices"][0]["text"].lstrip().startswith("{") == is_json, reply


def test_a_response_is_read_by_openais_client(embedded: GatewayProcess, token: str) -> None:
    form = {"format": {"type": "json_schema", "name": "city", "schema": CITY}}
    with (
        openai.OpenAI(base_url=embedded.url + "/v1", api_key=token, max_retries=0, timeout=40) as client,
        client.responses.stream(model=MODEL, input="A city.", max_output_tokens=60, text=form) as stream,  # type: ignore[call-overload]
    ):
        final = stream.get_final_response()
    assert json.loads(final.output_text)["city"] in ("Paris", "Rome")
    assert final.usage.output_tokens > 0

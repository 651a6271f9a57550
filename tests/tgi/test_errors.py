"""Checks refusals and failures: which status, which body, and that streams say 200 first whatever happens."""

import asyncio
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from standin.tgi import start_standin

prompt = "The capital of France is"
message = {"role": "user", "content": "Say hi."}
faults = [
    ("overload", 429, "overloaded", "Model is overloaded"),
    ("generation-error-mid-stream", 424, "generation", "Request failed during generation: "),
]


def call(**parameters: Any) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": 4, **parameters}}


invalid = [
    ({"temperature": 0}, "`temperature` must be strictly positive"),
    ({"repetition_penalty": 0}, "`repetition_penalty` must be strictly positive"),
    ({"frequency_penalty": 3}, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"top_p": 0}, "`top_p` must be > 0.0 and < 1.0"),
    ({"typical_p": 1}, "`typical_p` must be > 0.0 and < 1.0"),
    ({"top_k": 0}, "`top_k` must be strictly positive"),
    ({"max_new_tokens": 0}, "`max_new_tokens` must be strictly positive"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "`stop` supports up to 4 stop sequences. Given: 5"),
    ({"best_of": 2}, "you must use sampling when `best_of` is > 1"),
    ({"best_of": 99, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 99"),
    ({"top_n_tokens": 6}, "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    ({"truncate": 0}, "`truncate` must be strictly positive and less than "),
    ({"grammar": {"type": "json", "value": {}}}, "grammar is not valid: "),
]


@pytest.mark.parametrize(("parameters", "text"), invalid)
async def test_validation_names_the_rule(tgi, parameters, text):
    reply = await tgi.post("/generate", call(**parameters))
    assert reply.status == 422
    assert reply.media == "application/json"
    assert reply.json()["error_type"] == "validation"
    assert reply.json()["error"].startswith("Input validation error: " + text)


async def test_empty_inputs_are_invalid(tgi):
    reply = await tgi.post("/generate", {"inputs": ""})
    assert reply.json() == {"error": "Input validation error: `inputs` cannot be empty", "error_type": "validation"}


async def test_too_many_tokens_tell_the_counts(tgi):
    most = (await tgi.get("/info")).json()["max_total_tokens"]
    reply = await tgi.post("/generate", call(max_new_tokens=most))
    given = len((await tgi.post("/tokenize", call())).json())
    assert reply.status == 422
    assert reply.json()["error"] == (
        f"Input validation error: `inputs` tokens + `max_new_tokens` must be <= {most}. "
        f"Given: {given} `inputs` tokens and {most} `max_new_tokens`"
    )


@pytest.mark.parametrize(
    ("body", "status", "start"),
    [
        ('{"inputs": ', 400, "Failed to parse the request body as JSON: "),
        ({"inputs": 5}, 422, "Failed to deserialize the JSON body into the target type: inputs: invalid type"),
        ({}, 422, "Failed to deserialize the JSON body into the target type: missing field `inputs`"),
        (call(stop="x"), 422, "Failed to deserialize the JSON body into the target type: parameters.stop"),
        (call(max_new_tokens=-1), 422, "Failed to deserialize the JSON body into the target type: parameters"),
        (call(do_sample=None), 422, "Failed to deserialize the JSON body into the target type: parameters"),
        ({"inputs": "x", "parameters": None}, 422, "Failed to deserialize the JSON body into the target type: "),
        (call(grammar={"type": "text"}), 422, "Failed to deserialize the JSON body into the target type: "),
    ],
)
async def test_bodies_of_the_wrong_shape_are_refused_in_plain_text(tgi, body, status, start):
    reply = await tgi.post("/generate", body)
    assert (reply.status, reply.media) == (status, "text/plain")
    assert reply.text.startswith(start)


async def test_wrong_shape_is_refused_before_a_stream_begins(tgi):
    assert (await tgi.post("/generate_stream", {"inputs": 5})).status == 422


async def test_body_without_json_content_type_is_refused(tgi):
    reply = await tgi.post("/generate", call(), **{"content-type": "text/plain"})
    assert (reply.status, reply.media) == (415, "text/plain")
    assert reply.text.startswith("Expected request with")


async def test_body_beyond_the_payload_limit_is_refused(tgi):
    body = BytesIO(b'{"inputs": "' + b"x" * 2_000_000 + b'"}')
    headers = {"content-type": "application/json"}
    async with tgi.session.post(tgi.url + "/generate", data=body, headers=headers) as response:
        assert response.status == 413


@pytest.mark.standin_only
async def test_chunked_body_beyond_the_payload_limit_is_refused(tgi):
    async def parts() -> Any:
        for _ in range(21):
            yield b"x" * 100_000

    headers = {"content-type": "application/json"}
    async with tgi.session.post(tgi.url + "/generate", data=parts(), headers=headers) as response:
        assert response.status == 413


async def test_unknown_route_and_method_have_empty_bodies(tgi):
    missing, wrong = await tgi.get("/nothing"), await tgi.get("/generate")
    assert (missing.status, missing.text) == (404, "")
    assert (wrong.status, wrong.text) == (405, "")


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"top_p": 1.0}, "`top_p` must be > 0.0 and < 1.0"),
        ({"best_of": 2, "do_sample": True}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"decoder_input_details": True}, "`decoder_input_details` == true is not supported when streaming tokens"),
    ],
)
async def test_stream_says_invalid_in_its_only_event(tgi, parameters, text):
    reply = await tgi.post("/generate_stream", call(**parameters))
    assert reply.status == 200
    assert reply.events == [{"error": f"Input validation error: {text}", "error_type": "validation"}]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_openai_stream_says_422_then_done(tgi, path):
    body = {"messages": [message], "prompt": prompt, "max_tokens": 4, "top_p": 1, "stream": True}
    reply = await tgi.post(path, body)
    assert reply.status == 200
    text = "Input validation error: `top_p` must be > 0.0 and < 1.0"
    assert reply.events == [{"error": {"message": text, "http_status_code": 422}}, "[DONE]"]


@pytest.mark.standin_only
@pytest.mark.parametrize(("fault", "status", "kind", "text"), faults)
async def test_fault_is_an_error_body_or_event(tgi, fault, status, kind, text):
    whole = await tgi.post("/generate", call(), fault)
    assert whole.status == status
    assert whole.json()["error_type"] == kind
    assert whole.json()["error"].startswith(text)
    assert "retry-after" not in whole.headers
    streamed = await tgi.post("/generate_stream", call(), fault)
    assert streamed.status == 200
    assert streamed.events[-1] == whole.json()
    assert len(streamed.events) == (1 if fault == "overload" else 3)
    assert not any(event.get("generated_text") for event in streamed.events)


@pytest.mark.standin_only
@pytest.mark.parametrize(("fault", "status", "kind", "text"), faults)
async def test_fault_in_an_openai_stream_claims_422_whatever_it_is(tgi, fault, status, kind, text):
    body = {"messages": [message], "max_tokens": 4, "stream": True}
    reply = await tgi.post("/v1/chat/completions", body, fault)
    error = reply.events[-2]["error"]
    assert (reply.status, error["http_status_code"], reply.events[-1]) == (200, 422, "[DONE]")
    assert error["message"].startswith(text)
    assert (await tgi.post("/v1/chat/completions", {**body, "stream": False}, fault)).status == status


@pytest.mark.standin_only
async def test_generation_without_an_end_is_incomplete(tgi):
    whole, streamed = [await tgi.post(path, call(), "incomplete") for path in ("/generate", "/generate_stream")]
    assert (whole.status, whole.json()["error_type"]) == (500, "incomplete_generation")
    assert streamed.events[-1]["error_type"] == "incomplete_generation_stream"


@pytest.mark.standin_only
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/chat/completions"])
async def test_cut_breaks_the_connection(tgi, path):
    body = {**call(), "messages": [message], "max_tokens": 4, "stream": True}
    with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionResetError)):
        await tgi.post(path, body, "cut")


@pytest.mark.standin_only
async def test_stall_keeps_alive_with_comments_and_frees_its_place_when_the_client_leaves(tgi):
    headers = {"content-type": "application/json", "x-fault": "stall"}
    async with tgi.session.post(tgi.url + "/generate_stream", json=call(), headers=headers) as response:
        comments = 0
        async with asyncio.timeout(20):
            async for line in response.content:
                comments += line == b":\n"
                if comments == 2:
                    break
        assert "tgi_batch_current_size 1" in (await tgi.get("/metrics")).text
        response.close()
    async with asyncio.timeout(20):
        while "tgi_batch_current_size 0" not in (await tgi.get("/metrics")).text:
            await asyncio.sleep(0.05)
    assert 'tgi_request_failure{err="dropped"}' in (await tgi.get("/metrics")).text


@pytest.mark.standin_only
async def test_full_house_refuses_at_once(model_url, client_of):
    with start_standin(model_url=model_url, max_concurrent_requests=1) as url:
        tgi = client_of(url)
        headers = {"content-type": "application/json", "x-fault": "stall"}
        async with tgi.session.post(url + "/generate_stream", json=call(), headers=headers) as held:
            await held.content.readline()
            whole = await tgi.post("/generate", call())
            streamed = await tgi.post("/v1/chat/completions", {"messages": [message], "stream": True})
            held.close()
        assert (whole.status, whole.json()) == (429, {"error": "Model is overloaded", "error_type": "overloaded"})
        assert streamed.events[0] == {"error": {"message": "Model is overloaded", "http_status_code": 422}}
        assert (await tgi.get("/info")).json()["max_concurrent_requests"] == 1


@pytest.mark.standin_only
async def test_prompt_longer_than_the_input_limit_is_refused(model_url, client_of):
    with start_standin(model_url=model_url, more=("--max-input-tokens", "3", "--max-total-tokens", "50")) as url:
        reply = await client_of(url).post("/generate", call())
    assert reply.json()["error"] == "Input validation error: `inputs` must have less than 3 tokens. Given: 5"

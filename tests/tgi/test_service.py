"""Checks the routes around generation: health, limits, metrics, models, and what the key guards."""

import pytest
from standin.tgi import start_standin

guarded = ["/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/vertex", "/invocations"]
call = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 2}}


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
async def test_health_is_an_empty_200(tgi, path):
    reply = await tgi.get(path)
    assert (reply.status, reply.text) == (200, "")


@pytest.mark.standin_only
async def test_ill_health_is_a_503(tgi):
    reply = await tgi.get("/health", **{"x-fault": "unhealthy"})
    assert (reply.status, reply.json()) == (503, {"error": "unhealthy", "error_type": "healthcheck"})


async def test_info_tells_the_server_and_its_limits(tgi):
    info = (await tgi.get("/info")).json()
    assert set(info) == {
        "model_id",
        "model_sha",
        "model_pipeline_tag",
        "max_concurrent_requests",
        "max_best_of",
        "max_stop_sequences",
        "max_input_tokens",
        "max_total_tokens",
        "validation_workers",
        "max_client_batch_size",
        "router",
        "version",
        "sha",
        "docker_label",
    }
    assert info["max_input_tokens"] < info["max_total_tokens"]


async def test_models_lists_one_without_a_date(tgi):
    info, models = (await tgi.get("/info")).json(), (await tgi.get("/v1/models")).json()
    entry = {"id": info["model_id"], "object": "model", "created": 0, "owned_by": info["model_id"]}
    assert models == {"object": "list", "data": [entry]}


async def test_metrics_count_under_tgi_names(tgi):
    await tgi.post("/generate", call)
    reply = await tgi.get("/metrics")
    assert reply.media == "text/plain"
    names = {line.split()[2] for line in reply.text.splitlines() if line.startswith("# TYPE")}
    assert {"tgi_request_count", "tgi_request_success", "tgi_queue_size", "tgi_batch_current_size"} <= names
    assert {"tgi_request_duration", "tgi_request_generated_tokens", "tgi_request_input_length"} <= names
    assert 'tgi_request_duration_bucket{le="+Inf"}' in reply.text


async def test_failures_are_counted_by_kind(tgi):
    await tgi.post("/generate", {"inputs": ""})
    assert 'tgi_request_failure{err="validation"}' in (await tgi.get("/metrics")).text


async def test_openapi_lists_the_routes(tgi):
    paths = (await tgi.get("/api-doc/openapi.json")).json()["paths"]
    wanted = {"/", "/chat_tokenize", "/generate", "/generate_stream", "/health", "/info", "/invocations", "/metrics"}
    assert wanted | {"/tokenize", "/v1/chat/completions", "/v1/completions", "/v1/models"} <= set(paths)


async def test_any_origin_may_ask(tgi):
    assert (await tgi.get("/info")).headers["access-control-allow-origin"] == "*"


@pytest.mark.standin_only
async def test_key_guards_generation_and_leaves_the_rest_open(model_url, client_of):
    with start_standin(model_url=model_url, api_key="Sesame") as url:
        tgi = client_of(url)
        for path in [*guarded, "/tokenize"]:
            reply = await tgi.post(path, call)
            assert (path, reply.status, reply.text) == (path, 401, "")
        assert (await tgi.post("/generate", "not even JSON")).status == 401
        assert (await tgi.post("/generate", call, authorization="Bearer other")).status == 401
        for path in ("/", "/health", "/ping", "/info", "/metrics", "/v1/models"):
            assert (path, (await tgi.get(path)).status) == (path, 200)
        chat = {"messages": [{"role": "user", "content": "hi"}]}
        assert (await tgi.post("/chat_tokenize", chat)).status == 200
        assert (await tgi.post("/generate", call, authorization="bearer sESAME")).status == 200

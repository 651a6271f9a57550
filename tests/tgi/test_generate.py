"""Checks the native routes: bodies, defaults, headers and framing of `/generate`, `/generate_stream` and `/`."""

from typing import Any

import pytest
from standin.tgi import start_standin

prompt = "The capital of France is"
numbers = [
    "x-compute-characters",
    "x-total-time",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
]


def call(**parameters: Any) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": 4, **parameters}}


async def test_generate_answers_an_object_and_root_a_list(tgi):
    native = await tgi.post("/generate", call(return_full_text=False))
    root = await tgi.post("/", call(return_full_text=False))
    assert native.status == root.status == 200
    assert list(native.json()) == ["generated_text"]
    assert root.json() == [native.json()]


async def test_headers_count_tokens_and_time_without_details(tgi):
    reply = await tgi.post("/generate", call())
    assert all(int(reply.headers[name]) >= 0 for name in numbers)
    assert float(reply.headers["x-compute-time"]) > 0
    assert reply.headers["x-generated-tokens"] == "4"
    assert int(reply.headers["x-prompt-tokens"]) == len((await tgi.post("/tokenize", call())).json())
    assert reply.headers["x-compute-characters"] == str(len(prompt))
    assert "x-compute-type" in reply.headers


async def test_full_text_is_the_default_of_root_only(tgi):
    assert not (await tgi.post("/generate", call())).json()["generated_text"].startswith(prompt)
    assert (await tgi.post("/", call())).json()[0]["generated_text"].startswith(prompt)


async def test_details_tell_tokens_and_prefill(tgi):
    details = (await tgi.post("/generate", call(details=True, decoder_input_details=True))).json()["details"]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == len(details["tokens"]) == 4
    assert details["seed"] is None
    assert set(details["tokens"][0]) == {"id", "text", "logprob", "special"}
    assert details["tokens"][0]["logprob"] <= 0
    assert "".join(token["text"] for token in details["prefill"]) == prompt
    assert "top_tokens" not in details


async def test_top_tokens_when_asked(tgi):
    details = (await tgi.post("/generate", call(details=True, top_n_tokens=2))).json()["details"]
    assert [len(top) for top in details["top_tokens"]] == [2, 2, 2, 2]
    assert details["top_tokens"][0][0]["id"] == details["tokens"][0]["id"]


async def test_sampling_tells_its_seed_and_greedy_has_none(tgi):
    sampled, greedy = [await tgi.post("/generate", call(do_sample=s, details=True)) for s in (True, False)]
    assert isinstance(sampled.json()["details"]["seed"], int)
    assert greedy.json()["details"]["seed"] is None
    first, second = [await tgi.post("/generate", call()) for _ in range(2)]
    assert first.json() == second.json()


@pytest.mark.standin_only
async def test_no_parameters_sample_and_fill_the_context_where_empty_ones_are_greedy(model_url, client_of):
    with start_standin(model_url=model_url, more=("--max-input-tokens", "20", "--max-total-tokens", "30")) as url:
        bodies = [{"inputs": prompt}, {"inputs": prompt, "parameters": {}}]
        sampled, greedy = [[await client_of(url).post("/generate", body) for _ in range(4)] for body in bodies]
    assert len({reply.text for reply in sampled}) > 1
    assert len({reply.text for reply in greedy}) == 1
    assert int(greedy[0].headers["x-generated-tokens"]) == 30 - int(greedy[0].headers["x-prompt-tokens"])


async def test_a_seed_repeats_a_sample(tgi):
    texts = [(await tgi.post("/generate", call(do_sample=True, seed=7))).json()["generated_text"] for _ in range(2)]
    assert texts[0] == texts[1]


async def test_best_of_gives_the_other_sequences(tgi):
    details = (await tgi.post("/generate", call(best_of=2, do_sample=True, details=True))).json()["details"]
    assert len(details["best_of_sequences"]) == 1
    assert {"generated_text", "finish_reason", "generated_tokens", "tokens"} <= set(details["best_of_sequences"][0])


async def test_stop_sequence_ends_and_stays_in_the_text(tgi):
    first = (await tgi.post("/generate", call(details=True))).json()["details"]["tokens"]
    stop = first[1]["text"]
    reply = (await tgi.post("/generate", call(stop=[stop], details=True))).json()
    assert reply["details"]["finish_reason"] == "stop_sequence"
    assert reply["generated_text"].endswith(stop)


async def test_end_of_text_is_a_special_token_outside_the_text(tgi):
    grammar = {"type": "regex", "value": "yes|no"}
    reply = (await tgi.post("/generate", call(grammar=grammar, details=True, max_new_tokens=20))).json()
    assert reply["generated_text"] in ("yes", "no")
    assert reply["details"]["finish_reason"] == "eos_token"
    last = reply["details"]["tokens"][-1]
    assert last["special"] is True
    assert last["text"]


@pytest.mark.parametrize("kind", ["json", "json_object"])
async def test_json_grammar_binds_the_answer(tgi, kind):
    schema = {"properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    body = call(grammar={"type": kind, "value": schema}, max_new_tokens=60)
    assert '"ok"' in (await tgi.post("/generate", body)).json()["generated_text"]


async def test_stream_sends_a_token_an_event_and_no_done(tgi):
    whole = (await tgi.post("/generate", call())).json()["generated_text"]
    reply = await tgi.post("/generate_stream", call(details=True))
    assert reply.media == "text/event-stream"
    assert reply.headers["x-accel-buffering"] == "no"
    assert "x-compute-characters" in reply.headers
    assert "x-prompt-tokens" not in reply.headers
    assert "[DONE]" not in reply.events
    assert [event["index"] for event in reply.events] == [1, 2, 3, 4]
    assert [event["generated_text"] for event in reply.events] == [None, None, None, whole]
    assert [event["details"] for event in reply.events[:-1]] == [None] * 3
    assert set(reply.events[-1]["details"]) == {"finish_reason", "generated_tokens", "seed", "input_length"}
    assert "top_tokens" not in reply.events[0]


async def test_stream_tells_no_details_unasked(tgi):
    assert (await tgi.post("/generate_stream", call())).events[-1]["details"] is None


async def test_root_streams_when_the_body_says_so(tgi):
    reply = await tgi.post("/", {**call(), "stream": True})
    assert reply.media == "text/event-stream"
    assert reply.events[-1]["generated_text"].startswith(prompt)


async def test_events_are_separated_by_an_empty_line(tgi):
    body = (await tgi.post("/generate_stream", call())).text
    events = body.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith(("data: {", "data:{", ":")) for event in events)


async def test_parts_of_a_character_come_as_empty_texts(tgi):
    grammar = {"type": "regex", "value": "a🦄b"}
    reply = (await tgi.post("/generate", call(grammar=grammar, details=True, max_new_tokens=20))).json()
    assert reply["generated_text"] == "a🦄b"
    texts = [token["text"] for token in reply["details"]["tokens"] if not token["special"]]
    assert "".join(texts) == "a🦄b"
    assert reply["details"]["generated_tokens"] == len(reply["details"]["tokens"])


async def test_truncate_keeps_the_end_of_the_prompt(tgi):
    reply = await tgi.post("/generate", call(truncate=2, decoder_input_details=True))
    assert reply.headers["x-prompt-tokens"] == "2"
    assert [token["text"] for token in reply.json()["details"]["prefill"]] == [" France", " is"]


async def test_tokenize_gives_spans_in_characters(tgi):
    text = "Hé 🦄 x"
    tokens = (await tgi.post("/tokenize", {"inputs": text})).json()
    assert all(set(token) == {"id", "text", "start", "stop"} for token in tokens)
    assert all(text[token["start"] : token["stop"]] == token["text"] for token in tokens)
    assert tokens[-1]["stop"] == len(text)


async def test_vertex_predicts_each_instance(tgi):
    body = {"instances": [call(), call()]}
    predictions = (await tgi.post("/vertex", body)).json()["predictions"]
    assert len(predictions) == 2
    assert all(isinstance(text, str) for text in predictions)

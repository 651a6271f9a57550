"""Answers each of a TGI router's routes: decodes the body, runs the generations, frames the answer."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

from aiohttp import web
from standin import tgi_bodies, tgi_chat
from standin.tgi_answers import (
    Answer,
    Events,
    completion_choice,
    compute_type,
    data,
    details,
    end_of,
    json_answer,
    openai_error,
    send,
    stream_details,
)
from standin.tgi_bodies import Chat, Completion, Generate, Parameters
from standin.tgi_errors import Incomplete, IncompleteStream, Invalid, TgiError
from standin.tgi_generation import Infer, Limits, Step, greedy_at_zero
from standin.tgi_json import Check, Rejected, decode
from standin.tgi_metrics import Metrics
from standin.tgi_model import offsets

version = "3.3.6-dev0"
fingerprint = f"{version}-native"
faults = ("", "overload", "generation-error-mid-stream", "incomplete", "cut", "stall", "unhealthy")


def fault_of(request: web.Request) -> str:
    fault = request.headers.get("x-fault", "")
    if fault not in faults:
        raise Rejected(400, f"the stand-in has no fault {fault}")
    return fault


async def read(request: web.Request, check: Check) -> Any:
    return decode(check, request.headers.get("content-type", ""), await request.read())


class Routes:
    def __init__(self, infer: Infer, metrics: Metrics, limits: Limits, model_id: str, keepalive: float) -> None:
        self._infer = infer
        self._metrics = metrics
        self._limits = limits
        self._model_id = model_id
        self._keepalive = keepalive

    def guarded(self) -> list[web.RouteDef]:
        """The routes that want the key, when there is one."""
        return [
            web.post("/", self.compat_generate),
            web.post("/generate", self.generate),
            web.post("/generate_stream", self.generate_stream),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
            web.post("/vertex", self.vertex),
            web.post("/invocations", self.invocations),
            web.post("/tokenize", self.tokenize),
        ]

    def open(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.health),
            web.get("/health", self.health),
            web.get("/ping", self.health),
            web.get("/info", self.info),
            web.get("/metrics", self.metrics),
            web.get("/v1/models", self.models),
            web.get("/api-doc/openapi.json", self.openapi),
            web.post("/chat_tokenize", self.chat_tokenize),
        ]

    async def health(self, request: web.Request) -> web.Response:
        if fault_of(request) != "unhealthy" and await self._infer.model.is_healthy():
            return web.Response()
        return json_answer({"error": "unhealthy", "error_type": "healthcheck"}, status=503)

    async def info(self, request: web.Request) -> web.Response:
        limits = asdict(self._limits)
        del limits["max_top_n_tokens"]
        about = {"model_id": self._model_id, "model_sha": None, "model_pipeline_tag": "text-generation"}
        router = {"router": "text-generation-router", "version": version, "sha": None, "docker_label": None}
        return json_answer({**about, **limits, "validation_workers": 2, **router})

    async def models(self, request: web.Request) -> web.Response:
        entry = {"id": self._model_id, "object": "model", "created": 0, "owned_by": self._model_id}
        return json_answer({"object": "list", "data": [entry]})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self._metrics.render())

    async def openapi(self, request: web.Request) -> web.Response:
        paths: dict[str, dict[str, Any]] = {}
        for route in (*self.guarded(), *self.open()):
            paths.setdefault(route.path, {})[route.method.lower()] = {}
        about = {"title": "Text Generation Inference", "version": version}
        return json_answer({"openapi": "3.0.3", "info": about, "paths": paths})

    async def tokenize(self, request: web.Request) -> web.Response:
        call: Generate = await read(request, tgi_bodies.generate)
        return json_answer(offsets(await self._infer.model.pieces(call.inputs), call.inputs))

    async def chat_tokenize(self, request: web.Request) -> web.Response:
        call: Chat = await read(request, tgi_bodies.chat)
        self._metrics.count("tgi_request_count")
        inputs, _, _ = await tgi_chat.prepare(call, self._infer)
        spans = offsets(await self._infer.model.pieces(inputs), inputs)
        return json_answer({"tokenize_response": spans, "templated_text": inputs})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        return await self._generate_whole(await read(request, tgi_bodies.generate), request)

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._generate_streamed(await read(request, tgi_bodies.generate), request)

    async def compat_generate(self, request: web.Request) -> web.StreamResponse:
        return await self._compat(await read(request, tgi_bodies.compat_generate), request)

    async def invocations(self, request: web.Request) -> web.StreamResponse:
        call = await read(request, tgi_bodies.invocation)
        if isinstance(call, Generate):
            return await self._compat(call, request)
        return await (self._chat(call, request) if isinstance(call, Chat) else self._completions(call, request))

    async def vertex(self, request: web.Request) -> web.Response:
        calls: list[Generate | Chat] = (await read(request, tgi_bodies.vertex))["instances"]
        self._metrics.count("tgi_request_count")
        predictions = []
        for call in calls:
            if isinstance(call, Chat):
                inputs, parameters, _ = await tgi_chat.prepare(call, self._infer)
            else:
                inputs, parameters = call.inputs, call.parameters
            answer = await self._run(inputs, parameters, fault_of(request))
            predictions.append(end_of(answer.steps).text)
        return json_answer({"predictions": predictions})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._chat(await read(request, tgi_bodies.chat), request)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._completions(await read(request, tgi_bodies.completion), request)

    async def _compat(self, call: Generate, request: web.Request) -> web.StreamResponse:
        if call.parameters.return_full_text is None:
            call = replace(call, parameters=replace(call.parameters, return_full_text=True))
        if call.stream:
            return await self._generate_streamed(call, request)
        return await self._generate_whole(call, request, listed=True)

    async def _generate_whole(self, call: Generate, request: web.Request, listed: bool = False) -> web.Response:
        answer = await self._run(call.inputs, call.parameters, fault_of(request))
        parameters = call.parameters
        before = call.inputs if parameters.return_full_text else ""
        body: dict[str, Any] = {"generated_text": before + end_of(answer.steps).text}
        if parameters.details or parameters.decoder_input_details:
            body["details"] = details(answer.steps, parameters)
            if len(answer.runs) > 1:
                body["details"]["best_of_sequences"] = [
                    {"generated_text": before + end_of(run).text, **details(run, parameters)} for run in answer.runs[1:]
                ]
        return json_answer([body] if listed else body, headers=answer.headers())

    async def _run(self, inputs: str, parameters: Parameters, fault: str) -> Answer:
        """Generate to the end, measuring what TGI tells in headers and metrics."""
        began = time.monotonic()
        self._metrics.count("tgi_request_count")
        runs = await self._infer.best_of(inputs, parameters, fault)
        now, end = time.monotonic(), end_of(runs[0])
        answer = Answer(
            runs=runs,
            characters=len(inputs),
            total=now - began,
            validation=end.queued - began,
            queue=0.0,
            inference=now - end.queued,
        )
        self._succeeded(answer.total, answer.validation, answer.inference, answer.generated)
        return answer

    def _succeeded(self, total: float, validation: float, inference: float, generated: int) -> None:
        self._metrics.count("tgi_request_success")
        self._metrics.observe("tgi_request_duration", total)
        self._metrics.observe("tgi_request_validation_duration", validation)
        self._metrics.observe("tgi_request_queue_duration", 0.0)
        self._metrics.observe("tgi_request_inference_duration", inference)
        self._metrics.observe("tgi_request_mean_time_per_token_duration", inference / generated)
        self._metrics.observe("tgi_request_generated_tokens", generated)

    async def _generate_streamed(self, call: Generate, request: web.Request) -> web.StreamResponse:
        headers = {"x-compute-characters": str(len(call.inputs))}
        return await self._send(request, self._generate_events(call, fault_of(request)), headers)

    async def _generate_events(self, call: Generate, fault: str) -> Events:
        parameters, index = call.parameters, 0
        before = call.inputs if parameters.return_full_text else ""
        try:
            async with aclosing(self._steps(call.inputs, parameters, fault)) as steps:
                async for step in steps:
                    index += 1
                    body: dict[str, Any] = {"index": index, "token": step.token.body()}
                    if step.top:
                        body["top_tokens"] = [top.body() for top in step.top]
                    end = step.end
                    body["generated_text"] = before + end.text if end else None
                    body["details"] = stream_details(end) if end and parameters.details else None
                    yield data(body)
        except TgiError as error:
            yield data(error.body())

    async def _steps(self, inputs: str, parameters: Parameters, fault: str) -> AsyncGenerator[Step, None]:
        """The steps of a streamed generation: some wishes cannot be streamed, and an early end has its own name."""
        began = time.monotonic()
        self._metrics.count("tgi_request_count")
        try:
            if (parameters.best_of or 1) != 1:
                raise Invalid("`best_of` != 1 is not supported when streaming tokens")
            if parameters.decoder_input_details:
                raise Invalid("`decoder_input_details` == true is not supported when streaming tokens")
        except Invalid:
            self._metrics.count("tgi_request_failure", '{err="validation"}')
            raise
        try:
            async with aclosing(self._infer.steps(inputs, parameters, fault)) as steps:
                async for step in steps:
                    if step.end:
                        now, queued = time.monotonic(), step.end.queued
                        self._succeeded(now - began, queued - began, now - queued, step.end.generated_tokens)
                    yield step
        except Incomplete:
            raise IncompleteStream from None

    async def _chat(self, call: Chat, request: web.Request) -> web.StreamResponse:
        self._metrics.count("tgi_request_count")
        inputs, parameters, forced = await tgi_chat.prepare(call, self._infer)
        model = self._model_id if call.model in (None, "tgi") else str(call.model)
        if call.stream:
            headers = {"x-compute-characters": str(len(inputs))}
            return await self._send(request, self._chat_events(call, model, fault_of(request)), headers)
        answer = await self._run(inputs, parameters, fault_of(request))
        if forced and (tgi_chat.called(end_of(answer.steps).text) or ("",))[0] == "no_tool":
            inputs, parameters, forced = await tgi_chat.prepare(tgi_chat.without_tools(call), self._infer)
            answer = await self._run(inputs, parameters, fault_of(request))
        body = tgi_chat.answer(call, model, fingerprint, answer.steps, forced)
        return json_answer(body, headers=answer.headers())

    async def _chat_events(self, call: Chat, model: str, fault: str) -> Events:
        try:
            for attempt in (call, tgi_chat.without_tools(call)):
                inputs, parameters, forced = await tgi_chat.prepare(attempt, self._infer)
                chunks = tgi_chat.Chunks(call, model, fingerprint, forced)
                async with aclosing(self._steps(inputs, parameters, fault)) as steps:
                    async for step in steps:
                        made = chunks.push(step)
                        if made is None:
                            break
                        for chunk in made:
                            yield data(chunk)
                    else:
                        break
        except TgiError as error:
            yield openai_error(error)
        yield "[DONE]"

    async def _completions(self, call: Completion, request: web.Request) -> web.StreamResponse:
        self._metrics.count("tgi_request_count")
        self._refuse_unsupported(call)
        parameters = greedy_at_zero(
            call.temperature,
            Parameters(
                repetition_penalty=call.repetition_penalty,
                frequency_penalty=call.frequency_penalty,
                top_p=call.top_p,
                max_new_tokens=call.max_tokens,
                stop=call.stop or [],
                details=True,
                decoder_input_details=not call.stream,
                seed=call.seed,
            ),
        )
        if call.stream:
            headers = {"x-compute-characters": str(sum(map(len, call.prompt)))}
            return await self._send(request, self._completion_events(call, parameters, fault_of(request)), headers)
        return await self._completions_whole(call, parameters, fault_of(request))

    def _refuse_unsupported(self, call: Completion) -> None:
        most = self._limits.max_client_batch_size
        if call.suffix is not None:
            error = Unsupported("Suffix is not supported and can be achieved by preprocessing the prompt.")
            error.error_type = "suffix not supported"
        elif len(call.prompt) > most:
            error = Unsupported(f"Number of prompts exceeds the maximum allowed batch size of {most}")
            error.error_type = "batch size exceeded"
        else:
            return
        self._metrics.count("tgi_request_failure", '{err="validation"}')
        raise error

    async def _completions_whole(self, call: Completion, parameters: Parameters, fault: str) -> web.Response:
        async def run(index: int, prompt: str) -> tuple[int, Answer]:
            return index, await self._run(prompt, parameters, fault)

        tasks = [asyncio.create_task(run(index, prompt)) for index, prompt in enumerate(call.prompt)]
        try:
            # Whichever prompt is done first comes first, not the first prompt.
            answers = [await done for done in asyncio.as_completed(tasks)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        totals: dict[str, int] = {}
        for _, answer in answers:
            for name, value in answer.numbers().items():
                totals[name] = totals.get(name, 0) + value
        choices = [
            completion_choice(index, end_of(answer.steps).text, tgi_chat.openai_reason(end_of(answer.steps)))
            for index, answer in answers
        ]
        used = tgi_chat.usage(totals.get("x-prompt-tokens", 0), totals.get("x-generated-tokens", 0))
        headers = compute_type | {name: str(value) for name, value in totals.items()}
        return json_answer({**self._completion(choices), "usage": used}, headers=headers)

    async def _completion_events(self, call: Completion, parameters: Parameters, fault: str) -> Events:
        running = [self._one_completion(index, text, parameters, fault) for index, text in enumerate(call.prompt)]
        try:
            while running:
                for events in list(running):
                    event = await anext(events, None)
                    if event is None:
                        running.remove(events)
                    else:
                        yield event
        finally:
            for events in running:
                await events.aclose()
        yield "[DONE]"

    async def _one_completion(self, index: int, prompt: str, parameters: Parameters, fault: str) -> Events:
        try:
            async with aclosing(self._steps(prompt, parameters, fault)) as steps:
                async for step in steps:
                    end = step.end
                    choice = completion_choice(index, step.token.text, end.finish_reason if end else "")
                    body = self._completion([choice])
                    if end:
                        body["usage"] = tgi_chat.usage(end.input_length, end.generated_tokens)
                    yield data(body)
        except TgiError as error:
            yield openai_error(error)

    def _completion(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "object": "text_completion",
            "id": "",
            "created": int(time.time()),
            "model": self._model_id,
            "system_fingerprint": fingerprint,
            "choices": choices,
        }

    async def _send(self, request: web.Request, events: Events, headers: dict[str, str]) -> web.StreamResponse:
        return await send(request, events, headers, self._keepalive)


class Unsupported(TgiError):
    status = 422

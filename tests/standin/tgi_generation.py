"""Validates and runs one generation the way a TGI router does."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
from standin.tgi_bodies import Parameters
from standin.tgi_errors import Cut, GenerationFailed, Incomplete, Invalid, Overloaded, TgiError
from standin.tgi_metrics import Metrics
from standin.tgi_model import Model, Token, constraint


@dataclass(frozen=True, slots=True)
class Limits:
    max_concurrent_requests: int = 128
    max_input_tokens: int = 2047
    max_total_tokens: int = 2048
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4


@dataclass(frozen=True, slots=True)
class End:
    """What is known once the last token is."""

    text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    input_length: int
    prefill: list[Token]
    queued: float
    started: float


@dataclass(frozen=True, slots=True)
class Step:
    token: Token
    top: list[Token] = field(default_factory=list)
    end: End | None = None


@dataclass(frozen=True, slots=True)
class Valid:
    """A call that passed validation, with everything defaulted."""

    ids: list[int]
    pieces: list[bytes]
    max_new_tokens: int
    seed: int
    sampling: bool
    constraint: dict[str, Any]

    def prefill(self) -> list[Token]:
        """The prompt's tokens; their probabilities, which llama.cpp does not tell, stay null."""
        return [
            Token(id_, piece.decode(errors="replace"), None) for id_, piece in zip(self.ids, self.pieces, strict=True)
        ]


class Infer:
    """Admits calls up to a limit, without a queue of its own, and generates."""

    def __init__(self, model: Model, limits: Limits, metrics: Metrics) -> None:
        self.model = model
        self.limits = limits
        self.metrics = metrics
        self._running = 0

    @asynccontextmanager
    async def _permit(self, fault: str) -> AsyncIterator[None]:
        if fault == "overload" or self._running >= self.limits.max_concurrent_requests:
            raise Overloaded
        self._running += 1
        self._measure_load()
        try:
            yield
        finally:
            self._running -= 1
            self._measure_load()

    def _measure_load(self) -> None:
        self.metrics.gauges["tgi_batch_current_size"] = min(self._running, self.model.slots)
        self.metrics.gauges["tgi_queue_size"] = max(0, self._running - self.model.slots)

    async def steps(self, inputs: str, parameters: Parameters, fault: str = "") -> AsyncGenerator[Step, None]:
        """Yield each token; the last step carries the end. Every failure is a `TgiError`."""
        try:
            async with self._permit(fault):
                valid = await self._validate(inputs, parameters)
                count, ended = 0, False
                async with aclosing(self._generate(valid, parameters)) as steps:
                    async for step in steps:
                        count, ended = count + 1, step.end is not None
                        if fault and (count > 2 or ended):
                            await misbehave(fault)
                        yield step
                if not ended:
                    raise Incomplete
        except aiohttp.ClientError as error:
            self.metrics.count("tgi_request_failure", '{err="generation"}')
            raise GenerationFailed(str(error)) from None
        except TgiError as error:
            if error.counted_as:
                self.metrics.count("tgi_request_failure", f'{{err="{error.counted_as}"}}')
            raise
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.count("tgi_request_failure", '{err="dropped"}')
            raise

    async def _validate(self, inputs: str, p: Parameters) -> Valid:
        self._check(inputs, p)
        tokens = await self.model.pieces(inputs)
        if p.truncate is not None:
            tokens = tokens[-p.truncate :]
        length, limits = len(tokens), self.limits
        asked = p.max_new_tokens if p.max_new_tokens is not None else max(0, limits.max_total_tokens - length)
        # Left open, the length is asked for in slices, so that the total is checked with a slice only.
        slice_ = asked if p.max_new_tokens is not None else min(asked, 1024)
        if length + slice_ > limits.max_total_tokens:
            raise Invalid(
                f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
                f"Given: {length} `inputs` tokens and {slice_} `max_new_tokens`"
            )
        if length > limits.max_input_tokens:
            raise Invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {length}")
        self.metrics.observe("tgi_request_input_length", length)
        self.metrics.observe("tgi_request_max_new_tokens", slice_)
        warped = any(value is not None for value in (p.top_k, p.top_p, p.typical_p)) or (p.temperature or 1.0) != 1.0
        return Valid(
            ids=[token for token, _ in tokens],
            pieces=[piece for _, piece in tokens],
            max_new_tokens=asked,
            seed=p.seed if p.seed is not None else random.getrandbits(64),
            sampling=p.do_sample or warped,
            constraint=constraint(p.grammar) if p.grammar else {},
        )

    def _check(self, inputs: str, p: Parameters) -> None:
        limits = self.limits
        best_of = 1 if p.best_of is None else p.best_of
        sampling = p.do_sample or any(v is not None for v in (p.temperature, p.top_k, p.top_p, p.typical_p))
        rules = [
            (best_of > 1 and not sampling, "you must use sampling when `best_of` is > 1"),
            (p.temperature is not None and p.temperature <= 0, "`temperature` must be strictly positive"),
            (
                p.repetition_penalty is not None and p.repetition_penalty <= 0,
                "`repetition_penalty` must be strictly positive",
            ),
            (not -2 <= (p.frequency_penalty or 0) <= 2, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            (p.top_p is not None and not 0 < p.top_p < 1, "`top_p` must be > 0.0 and < 1.0"),
            (p.typical_p is not None and not 0 < p.typical_p < 1, "`typical_p` must be > 0.0 and < 1.0"),
            (p.top_k is not None and p.top_k <= 0, "`top_k` must be strictly positive"),
            (p.max_new_tokens == 0, "`max_new_tokens` must be strictly positive"),
            (
                len(p.stop) > limits.max_stop_sequences,
                f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(p.stop)}",
            ),
            (best_of > 1 and p.seed is not None, "`seed` must not be set when `best_of` > 1"),
            (
                (p.top_n_tokens or 0) > limits.max_top_n_tokens,
                f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {p.top_n_tokens}",
            ),
            (not inputs, "`inputs` cannot be empty"),
            (
                p.truncate is not None and not 0 < p.truncate <= limits.max_input_tokens,
                f"`truncate` must be strictly positive and less than {limits.max_input_tokens}. Given: {p.truncate}",
            ),
        ]
        for broken, text in rules:
            if broken:
                raise Invalid(text)

    async def _generate(self, valid: Valid, p: Parameters) -> AsyncGenerator[Step, None]:
        queued = started = time.monotonic()
        text, count = "", 0
        body = {
            "prompt": valid.ids,
            "stream": True,
            "return_tokens": True,
            # llama.cpp would answer the same prompt differently from a warm cache; equal calls should agree.
            "cache_prompt": False,
            "n_predict": valid.max_new_tokens,
            "n_probs": max(1, p.top_n_tokens or 0),
            "temperature": (p.temperature or 1.0) if valid.sampling else 0,
            "seed": valid.seed % 2**32,
            "top_k": p.top_k or 0,
            "top_p": p.top_p or 1.0,
            "typical_p": p.typical_p or 1.0,
            "min_p": 0.0,
            "repeat_penalty": p.repetition_penalty or 1.0,
            "repeat_last_n": self.limits.max_total_tokens,
            "frequency_penalty": p.frequency_penalty or 0.0,
            **valid.constraint,
        }
        async with aclosing(self._tokens(body, p.top_n_tokens or 0)) as tokens:
            async for token, top in tokens:
                if count == 0:
                    started = time.monotonic()
                count += 1
                text += "" if token.special else token.text
                reason = self._finish(valid, p, token, text, count)
                if reason is None:
                    yield Step(token, top)
                    continue
                end = End(
                    text=text,
                    finish_reason=reason,
                    generated_tokens=count,
                    seed=valid.seed if valid.sampling else None,
                    input_length=len(valid.ids),
                    prefill=valid.prefill() if p.decoder_input_details else [],
                    queued=queued,
                    started=started,
                )
                yield Step(token, top, end)
                return

    def _finish(self, valid: Valid, p: Parameters, token: Token, text: str, count: int) -> str | None:
        if count >= valid.max_new_tokens:
            return "length"
        if token.special and token.text in self.model.stop_texts:
            return "eos_token"
        # As in TGI the stop sequence stays in the text, and only counts where a token ends with it.
        return "stop_sequence" if any(text.endswith(stop) for stop in p.stop) else None

    async def _tokens(self, body: dict[str, Any], top_n: int) -> AsyncGenerator[tuple[Token, list[Token]], None]:
        count = 0
        async with aclosing(self.model.events(body)) as events:
            async for event in events:
                found = event.get("completion_probabilities") or [{"logprob": 0.0, "top_logprobs": []}]
                id_ = event["tokens"][-1] if event["tokens"] else 0
                # Tokens that are only part of a character come with the one that completes it; TGI sends each,
                # without text.
                hidden = event["tokens_predicted"] - count - (0 if event["stop"] else 1)
                for _ in range(hidden):
                    yield Token(id_, "", found[0]["logprob"]), []
                count = event["tokens_predicted"]
                if event["stop"]:
                    return
                special = event["content"] == "" and bool(await self.model.text_of(id_))
                text = await self.model.text_of(id_) if special else event["content"]
                top = [Token(t["id"], t["token"], t["logprob"]) for t in found[0]["top_logprobs"][:top_n]]
                yield Token(id_, text, found[0]["logprob"], special), top

    async def best_of(self, inputs: str, parameters: Parameters, fault: str) -> list[list[Step]]:
        """Generate as often as `best_of` says, the likeliest sequence first."""
        wanted, most = parameters.best_of or 1, self.limits.max_best_of
        if wanted > most:
            error = Invalid(f"`best_of` must be > 0 and <= {most}. Given: {wanted}")
            self.metrics.count("tgi_request_failure", '{err="validation"}')
            raise error
        runs = [[step async for step in self.steps(inputs, parameters, fault)] for _ in range(wanted)]
        return sorted(runs, key=lambda run: -sum(step.token.logprob or 0 for step in run) / len(run))


async def misbehave(fault: str) -> None:
    if fault == "generation-error-mid-stream":
        raise GenerationFailed("the stand-in was asked to fail")
    if fault == "incomplete":
        raise Incomplete
    if fault == "cut":
        raise Cut
    if fault == "stall":
        await asyncio.get_running_loop().create_future()  # until the client leaves


def greedy_at_zero(temperature: float | None, parameters: Parameters) -> Parameters:
    """The OpenAI routes sample unless the temperature is 0, which the native route would refuse."""
    return replace(parameters, do_sample=temperature != 0, temperature=temperature or None)

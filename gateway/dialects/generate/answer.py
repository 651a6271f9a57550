"""A completion's whole answer in TGI's own language."""

from __future__ import annotations

from typing import Any

from backends.api import Call, UpstreamFault
from gateway.dialects import chat
from gateway.dialects.generate.request import Parameters, parameters
from gateway.dialects.generate.tokens import UNKNOWN, finish_reason, tokens


def generated(call: Call, body: bytes, *, full_text: bool) -> dict[str, Any]:
    """The answer; `full_text`: behind the prompt, where the call does not say. Raises as `Dialect.answer`."""
    answer, asked = chat.read(body), parameters(call)
    if not answer.choices:
        raise ValueError("an answer without a choice")
    full = full_text if asked.return_full_text is None else asked.return_full_text
    prompt = chat.inside(call.body.fields["inputs"]) if full else b""
    sequences = sorted(answer.choices, key=_likelihood, reverse=True) if len(answer.choices) > 1 else answer.choices
    counted = chat.counts(answer.usage)
    made = None if counted is None or len(sequences) > 1 else counted.completion
    best = _sequence(sequences[0], prompt, asked, made)
    if not asked.details:
        return {"generated_text": best["generated_text"]}
    details = {name: value for name, value in best.items() if name != "generated_text"}
    if len(sequences) > 1:
        details["best_of_sequences"] = [_sequence(each, prompt, asked, None) for each in sequences[1:]]
    return {"generated_text": best["generated_text"], "details": details}


def _sequence(choice: chat.Choice, prompt: bytes, asked: Parameters, made: int | None) -> dict[str, Any]:
    text = chat.string(prompt + chat.inside(choice.text))
    reason = finish_reason(choice)
    told = tokens(choice) if asked.details else []
    if asked.details and (any(each["id"] == UNKNOWN for each in told) or (not told and made)):
        raise UpstreamFault(400, "'parameters.details': this model's server does not tell its tokens' ids")
    return {
        "generated_text": text,
        "finish_reason": reason,
        "generated_tokens": len(told) if made is None else made,
        "seed": asked.seed,
        "prefill": [],
        "tokens": told,
    }


def _likelihood(choice: chat.Choice) -> float:
    """The mean log probability of its tokens, by which TGI knows the best."""
    told = [each["logprob"] for each in tokens(choice) if each["logprob"] is not None]
    return sum(told) / len(told) if told else float("-inf")

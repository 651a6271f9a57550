"""A call in TGI's own language, as a completion of its prompt.

What TGI does when a parameter is missing is asked for by name: it takes the likeliest token, as long as nothing is said
of sampling, and goes on to the end of the context.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw, Struct

from backends.api import Call, RequestRefused
from gateway.dialects.asking import Asking, given, required, rest

READ: Final = ("inputs", "parameters", "stream", "stream_options")


class _Grammar(Struct):
    type: str
    value: Raw


class Parameters(Struct):
    """TGI's parameters."""

    adapter_id: str | None = None
    best_of: int | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: Raw = Raw()
    grammar: _Grammar | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_n_tokens: int | None = None
    top_p: float | None = None
    truncate: int | None = None
    typical_p: float | None = None
    watermark: bool | None = None

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn, not the likeliest taken."""
        drawn = (self.temperature if self.temperature != 1 else None, self.top_k, self.top_p, self.typical_p)
        return bool(self.do_sample) or any(value is not None for value in drawn)


def parameters(call: Call) -> Parameters:
    """Raises `RequestRefused` for one of another type."""
    return given(call, "parameters", Parameters) or Parameters(do_sample=True)


def completion_of(call: Call) -> Asking:
    """The completion that asks the same; raises `RequestRefused`."""
    required(call, ("inputs",))
    inputs = call.body.fields["inputs"]
    if bytes(memoryview(inputs)[:1]) != b'"':
        raise RequestRefused("'inputs' must be a text", param="inputs")
    asked = parameters(call)
    _refuse(call, asked)
    fields: dict[str, Any] = {**rest(call, READ), "prompt": inputs, "max_tokens": asked.max_new_tokens}
    fields.setdefault("model", call.model)
    fields |= _sampling(asked)
    if asked.truncate is not None:
        fields["truncate_prompt_tokens"] = asked.truncate
    if asked.stop:
        fields |= {"stop": asked.stop, "include_stop_str_in_output": True}  # as TGI's answers do
    if asked.details:
        fields |= {"logprobs": 1, "return_token_ids": True}
    if (asked.best_of or 1) > 1:
        fields |= {"n": asked.best_of, "logprobs": 1}
    if asked.grammar is not None:
        fields |= _form(asked.grammar)
    if call.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return Asking(fields)


def _sampling(asked: Parameters) -> dict[str, Any]:
    fields: dict[str, Any] = {"temperature": (asked.temperature or 1.0) if asked.samples else 0.0}
    for name in ("top_k", "top_p", "seed"):
        if (value := getattr(asked, name)) is not None:
            fields[name] = value
    if bytes(asked.frequency_penalty) not in (b"", b"null"):
        fields["frequency_penalty"] = asked.frequency_penalty
    if asked.repetition_penalty not in (None, 1):
        fields |= dict.fromkeys(("repetition_penalty", "repeat_penalty"), asked.repetition_penalty)
    return fields


def _refuse(call: Call, asked: Parameters) -> None:
    for name, harmless in _CANNOT.items():
        if getattr(asked, name) not in harmless:
            raise RequestRefused(f"'parameters.{name}' cannot be carried to this model's server", param="parameters")
    if (asked.best_of or 1) > 1 and (call.stream or not asked.samples):
        raise RequestRefused("'parameters.best_of' needs sampling, and cannot be streamed", param="parameters")


_CANNOT: Final[dict[str, tuple[Any, ...]]] = {
    "adapter_id": (None,),
    "decoder_input_details": (None, False),
    "top_n_tokens": (None, 0),
    "typical_p": (None, 1),
    "watermark": (None, False),
}
"""Parameters with the values that ask for nothing."""


def _form(grammar: _Grammar) -> dict[str, Any]:
    """The form of the answer."""
    if grammar.type == "regex":
        return {"structured_outputs": {"regex": grammar.value}}
    if grammar.type in ("json", "json_object"):
        schema: Any = {"name": "answer", "schema": grammar.value}
    elif grammar.type == "json_schema":
        schema = grammar.value
    else:
        raise RequestRefused(f"'parameters.grammar' has no type {grammar.type!r}", param="parameters")
    return {"response_format": {"type": "json_schema", "json_schema": schema}}

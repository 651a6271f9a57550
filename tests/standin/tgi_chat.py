"""Turns chat calls into generations and generations into chat answers, where TGI differs from OpenAI."""

import json
import time
from dataclasses import replace
from typing import Any

from standin.tgi_bodies import Chat, Grammar, Message, Parameters
from standin.tgi_errors import ToolFailed
from standin.tgi_generation import End, Infer, Step, greedy_at_zero

default_tool_prompt = "\nGiven the functions available, answer with the JSON of one call and its arguments.\n"


async def prepare(call: Chat, infer: Infer) -> tuple[str, Parameters, bool]:
    """Give the prompt, the parameters, and whether a tool call is forced on the answer."""
    if call.response_format and call.tools is not None:
        raise ToolFailed("Grammar and tools are mutually exclusive")
    tools = offered(call)
    messages = [{"role": message.role, "content": flat(message)} for message in call.messages]
    if tools and messages:
        shown = json.dumps([tool["function"] for tool in tools])
        messages[-1]["content"] += f"\n---\n{call.tool_prompt or default_tool_prompt}\n{shown}"
    parameters = Parameters(
        repetition_penalty=None if call.presence_penalty is None else call.presence_penalty + 2,
        frequency_penalty=call.frequency_penalty,
        top_p=call.top_p,
        max_new_tokens=call.max_tokens,
        stop=call.stop or [],
        details=True,
        seed=call.seed,
        top_n_tokens=call.top_logprobs,
        grammar=Grammar("json", tool_schema(tools)) if tools else call.response_format,
        adapter_id=call.model if call.model != "tgi" else None,
    )
    return await infer.model.template(messages), greedy_at_zero(call.temperature, parameters), bool(tools)


def flat(message: Message) -> str:
    if message.content is not None:
        return message.content
    return "".join(json.dumps({**call, "function": written(call["function"])}) for call in message.tool_calls)


def written(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function["arguments"]
    return {**function, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}


def offered(call: Chat) -> list[dict[str, Any]]:
    tools, choice = call.tools or [], call.tool_choice
    if choice == "none" or not tools:
        return []
    if choice in (None, "auto"):
        nothing = {"name": "no_tool", "description": "Answer without a tool", "arguments": {"type": "object"}}
        return [*tools, {"type": "function", "function": nothing}]
    if choice == "required":
        return tools
    name = choice if isinstance(choice, str) else choice["function"]["name"]
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise ToolFailed(f"Tool with name {name} not found")
    return named[:1]


def tool_schema(tools: list[dict[str, Any]]) -> dict[str, Any]:
    functions = {}
    for tool in tools:
        name, wanted = tool["function"]["name"], tool["function"]["arguments"]
        wanted = wanted if isinstance(wanted, dict) else {}
        functions[name] = {
            "type": "object",
            "properties": {"_name": {"type": "string", "const": name}, **wanted.get("properties", {})},
            "required": ["_name", *wanted.get("required", [])],
            "additionalProperties": False,
        }
    return {
        "$functions": functions,
        "properties": {"function": {"anyOf": [{"$ref": f"#/$functions/{name}"} for name in functions]}},
        "required": ["function"],
        "additionalProperties": False,
    }


def called(text: str) -> tuple[str, dict[str, Any]] | None:
    """The function a whole grammar-bound answer calls, with its arguments."""
    try:
        function = json.loads(text)["function"]
        return function.pop("_name"), function
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None


def without_tools(call: Chat) -> Chat:
    return replace(call, tools=None, response_format=None)


def next_call_id(call: Chat) -> str:
    """Tool call ids count on from the numeric ones of the conversation."""
    used = [int(old["id"]) for message in call.messages for old in message.tool_calls if old["id"].isdigit()]
    return str(max(used, default=-1) + 1)


def logprobs(steps: list[Step]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": step.token.text,
                "logprob": step.token.logprob,
                "top_logprobs": [{"token": top.text, "logprob": top.logprob} for top in step.top],
            }
            for step in steps
        ]
    }


def usage(input_length: int, generated: int) -> dict[str, int]:
    return {
        "prompt_tokens": input_length,
        "completion_tokens": generated,
        "total_tokens": input_length + generated,
    }


def openai_reason(end: End) -> str:
    return "stop" if end.finish_reason == "eos_token" else end.finish_reason


def answer(call: Chat, model: str, fingerprint: str, steps: list[Step], forced: bool) -> dict[str, Any]:
    end = steps[-1].end
    assert end is not None
    message: dict[str, Any] = {"role": "assistant", "content": end.text}
    if forced:
        function = called(end.text)
        if function is None:
            raise ToolFailed(f"Failed to parse generated text: not a call {json.dumps(end.text)}")
        # The id is always "0" here, though streams count on from the conversation.
        body = {"description": None, "name": function[0], "arguments": json.dumps(function[1], separators=(",", ":"))}
        message = {"role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": body}]}
    return {
        "object": "chat.completion",
        "id": "",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": logprobs(steps) if call.logprobs else None,
                "finish_reason": openai_reason(end),
            }
        ],
        "usage": usage(end.input_length, end.generated_tokens),
    }


class Chunks:
    """Makes the chunks of one chat stream; a forced tool call is held back until its name is known."""

    def __init__(self, call: Chat, model: str, fingerprint: str, forced: bool) -> None:
        self._call = call
        self._head = {"object": "chat.completion.chunk", "id": "", "created": int(time.time()), "model": model}
        self._fingerprint = fingerprint
        self._id = next_call_id(call)
        self._waiting = forced
        self._calling = self._called = False
        self._text = ""

    def push(self, step: Step) -> list[dict[str, Any]] | None:
        """Give the chunks this token makes, or None when the model chose to answer without a tool."""
        chunks = []
        self._text += "" if step.token.special else step.token.text
        if self._calling:
            chunks.append(self._argument(step))
        elif self._called:
            pass  # nothing follows a whole call: as in TGI its stream has no finish reason
        elif self._waiting:
            # Closing what is open so far shows the name as soon as it is whole.
            function = called(self._text.rstrip(" \t\n,}") + "}}")
            if function and function[0] == "no_tool":
                return None
            if function:
                self._waiting, self._calling = False, True
                chunks.append(self._chunk(step, self._tool_delta("{", function[0])))
        else:
            text = "" if step.token.special else step.token.text
            chunks.append(self._chunk(step, {"role": "assistant", "content": text}))
        if step.end and self._call.stream_options["include_usage"]:
            chunks.append({**self._whole([]), "usage": usage(step.end.input_length, step.end.generated_tokens)})
        return chunks

    def _argument(self, step: Step) -> dict[str, Any]:
        if step.token.special:
            return self._chunk(step, {"role": "assistant", "content": ""})
        text = step.token.text
        if called(self._text):  # this brace closes the wrapper, not the arguments
            self._calling, self._called = False, True
            text = text.rstrip().removesuffix("}")
        return self._chunk(step, self._tool_delta(text, None))

    def _tool_delta(self, arguments: str, name: str | None) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": self._id, "type": "function", "function": function}],
        }

    def _chunk(self, step: Step, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": logprobs([step]) if self._call.logprobs else None,
            "finish_reason": openai_reason(step.end) if step.end else None,
        }
        return {**self._whole([choice]), "usage": None}

    def _whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "system_fingerprint": self._fingerprint, "choices": choices}

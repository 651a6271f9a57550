"""Speaks to the llama.cpp server that does the thinking: tokens, templates, grammars, generation."""

import json
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import aiohttp
from standin.tgi_bodies import Grammar
from standin.tgi_errors import GenerationFailed, Invalid, TemplateFailed, TgiError


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    text: str
    logprob: float | None
    special: bool = False

    def body(self) -> dict[str, Any]:
        return {"id": self.id, "text": self.text, "logprob": self.logprob, "special": self.special}


class Model:
    """The llama.cpp server that does the thinking."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._texts: dict[int, str] = {}
        self.slots = 1
        self.stop_texts = {"<|endoftext|>"}

    async def learn(self) -> None:
        async with self._session.get(f"{self._url}/props") as response:
            props = await response.json()
        self.slots = props["total_slots"]
        self.stop_texts.add(props["eos_token"])

    async def is_healthy(self) -> bool:
        try:
            async with self._session.get(f"{self._url}/health") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def _post(self, path: str, body: dict[str, Any], failure: type[TgiError] = GenerationFailed) -> Any:
        try:
            async with self._session.post(f"{self._url}{path}", json=body) as response:
                answer = await response.json()
        except aiohttp.ClientError as error:
            raise failure(str(error)) from None
        if response.status != 200:
            raise failure(answer["error"]["message"])
        return answer

    async def pieces(self, text: str) -> list[tuple[int, bytes]]:
        answer = await self._post("/tokenize", {"content": text, "with_pieces": True, "add_special": True})
        return [
            (t["id"], t["piece"].encode() if isinstance(t["piece"], str) else bytes(t["piece"]))
            for t in answer["tokens"]
        ]

    async def text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = (await self._post("/detokenize", {"tokens": [token]}))["content"]
        return self._texts[token]

    async def template(self, messages: list[dict[str, str]]) -> str:
        answer = await self._post("/apply-template", {"messages": messages}, TemplateFailed)
        return str(answer["prompt"])

    async def events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        async with self._session.post(f"{self._url}/completion", json=body) as response:
            if response.status != 200:
                raise GenerationFailed((await response.json())["error"]["message"])
            async for line in response.content:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


def constraint(grammar: Grammar) -> dict[str, Any]:
    """What llama.cpp is told so that the answer matches the grammar."""
    if grammar.kind == "regex":
        return {"grammar": f"root ::= {gbnf(grammar.value)}"}
    schema = grammar.value
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise Invalid(f"grammar is not valid: {error}") from None
    if not isinstance(schema, dict):
        raise Invalid("grammar is not supported")
    if "properties" not in schema:
        raise Invalid("grammar is not valid: Grammar must have a 'properties' field")
    return {"json_schema": closed({"type": "object", **schema})}


def closed(schema: Any) -> Any:
    """TGI's grammar has no place for properties the schema does not name, unless it says otherwise."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **inner} if isinstance(schema.get("properties"), dict) else inner


classes = {"d": "[0-9]", "w": "[a-zA-Z0-9_]", "s": "[ \\t\\n]", "D": "[^0-9]", "W": "[^a-zA-Z0-9_]", "S": "[^ \\t\\n]"}
piece = re.compile(r"\\(.)|(\[(?:\\.|[^\]\\])+\])|(\(\?:)|([()|*+?]|\{\d*,?\d*\})|([\^$])|(\.)|(.)", re.DOTALL)


def gbnf(regex: str) -> str:
    """Rewrite the usual part of regular expressions as a llama.cpp grammar expression."""
    parts = []
    for escaped, group, opened, operator, anchor, dot, literal in piece.findall(regex):
        if escaped in classes:
            parts.append(classes[escaped])
        elif group:
            parts.append(group.replace("\\d", "0-9").replace("\\w", "a-zA-Z0-9_").replace("\\s", " \\t\\n"))
        elif opened or operator:
            parts.append("(" if opened else operator)
        elif dot:
            parts.append("[^\\n]")
        elif not anchor:
            parts.append(json.dumps(escaped or literal, ensure_ascii=False))
    return " ".join(parts).replace(" *", "*").replace(" +", "+").replace(" ?", "?").replace(" {", "{")


def offsets(tokens: list[tuple[int, bytes]], text: str) -> list[dict[str, Any]]:
    """Say which characters of the text each token covers, in characters and not in bytes."""
    at = [index for index, character in enumerate(text) for _ in character.encode()]
    spans, byte = [], 0
    for id_, covered in tokens:
        start, stop = (at[byte], at[byte + len(covered) - 1] + 1) if covered else (len(text), len(text))
        spans.append({"id": id_, "text": text[start:stop], "start": start, "stop": stop})
        byte += len(covered)
    return spans

"""The JSON Schema that editors get: whole, described, and of one mind with the decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gateway.config import Mistakes, parse_table, table_schema
from gateway.config.table import parts

ROOT = Path(__file__).parents[4]
SCHEMA = json.loads(json.dumps(table_schema()))
FIELDS = [(part, field) for part in parts() for field in msgspec.structs.fields(part)]
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
    "null": type(None),
    "boolean": bool,
}


def shown(part: type[msgspec.Struct], name: str) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA["$defs"][part.__name__]["properties"][name]
    return found


def broken(schema: dict[str, Any], value: Any, at: str = "") -> Iterator[str]:
    """Where `value` breaks `schema`; knows as much of JSON Schema as the table's uses."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema and all(list(broken(option, value)) for option in schema["anyOf"]):
        yield f"{at}: none of the options"
    if "type" in schema:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(isinstance(value, TYPES[name]) and not (name != "boolean" and value is True) for name in types):
            yield f"{at}: {value!r} is no {types}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{at}: {value!r} does not match {schema['pattern']}"
    if isinstance(value, int | float):
        if value > schema.get("maximum", value) or value < schema.get("minimum", value):
            yield f"{at}: {value!r} out of range"
        if value <= schema.get("exclusiveMinimum", value - 1):
            yield f"{at}: {value!r} out of range"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from broken(schema.get("items", {}), item, f"{at}[{index}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        for name, item in value.items():
            other = schema.get("additionalProperties", {})
            if name not in known and other is False:
                yield f"{at}: unknown key {name!r}"
            else:
                yield from broken(known.get(name) or other or {}, item, f"{at}.{name}")
        for name in schema.get("required", []):
            if name not in value:
                yield f"{at}: {name!r} is missing"


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name == "$ref":
                yield value
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def test_the_schema_has_a_dialect_and_a_title() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"]


def test_every_reference_leads_somewhere() -> None:
    for reference in references(SCHEMA):
        assert reference.removeprefix("#/$defs/") in SCHEMA["$defs"]


def test_every_part_of_the_table_is_in_it() -> None:
    assert {part.__name__ for part in parts()} <= SCHEMA["$defs"].keys()
    reached = {reference.removeprefix("#/$defs/") for reference in references(SCHEMA)}
    assert reached == SCHEMA["$defs"].keys()
    for name in SCHEMA["$defs"]:
        assert SCHEMA["$defs"][name]["additionalProperties"] is False


@pytest.mark.parametrize(("part", "field"), FIELDS, ids=[f"{part.__name__}.{field.name}" for part, field in FIELDS])
def test_every_field_is_described_and_shows_its_default(part: type[msgspec.Struct], field: Any) -> None:
    schema = shown(part, field.encode_name)
    assert len(schema["description"]) > 5
    assert not schema["description"].startswith(" ") and "\n" not in schema["description"]
    required = field.encode_name in SCHEMA["$defs"][part.__name__].get("required", [])
    assert required == field.required
    if not field.required:
        assert "default" in schema
        assert not list(broken(schema, schema["default"])), "the default is allowed"


def test_the_backends_are_offered_to_editors() -> None:
    offered = SCHEMA["$defs"]["TargetSpec"]["properties"]["backend"]["examples"]
    assert {"openai", "vllm", "tgi", "llamacpp"} <= set(offered)


def test_the_table_of_this_repository_fits() -> None:
    assert not list(broken(SCHEMA, yaml.safe_load((ROOT / "routing.yaml").read_text())))


TARGET = {"name": "a", "backend": "vllm", "url": "http://a"}
VARIANTS: list[tuple[str, Any]] = [
    ("good", {}),
    ("unknown key", {"alias": ["x"]}),
    ("policy", {"policy": "session"}),
    ("policy", {"policy": 3}),
    ("queue", {"queue": {"calls": 0, "size": "1MiB", "wait": "5s"}}),
    ("queue", {"queue": {"calls": -1}}),
    ("queue", {"queue": {"wait": 5}}),
    ("canary", {"targets": [TARGET, {**TARGET, "name": "b", "url": "http://b", "canary": 0.05}]}),
    ("canary", {"targets": [TARGET, {**TARGET, "name": "b", "url": "http://b", "canary": 0.6}]}),
    ("capacity", {"targets": [{**TARGET, "max_inflight": 64, "context": "32k", "kv_tokens": 500_000}]}),
    ("capacity", {"targets": [{**TARGET, "max_inflight": 0}]}),
    ("capacity", {"targets": [{**TARGET, "context": "32K"}]}),
    ("tier", {"fallback": [{**TARGET, "name": "b", "url": "http://b", "tier": 2}]}),
    ("tier", {"targets": [{**TARGET, "tier": 2}]}),
    ("shadow", {"shadow": {"target": {**TARGET, "name": "b", "url": "http://b"}, "share": 0.1}}),
    ("shadow", {"shadow": {"target": {**TARGET, "name": "b", "url": "http://b"}}}),
    ("attempts", {"retry": {"attempts": 4}}),
    ("attempts", {"retry": {"attempts": 3}}),
    ("duration", {"timeouts": {"connect": "2 s"}}),
    ("duration", {"timeouts": {"connect": 2}}),
    ("duration", {"timeouts": {"connect": "2"}}),
    ("weight", {"targets": [{**TARGET, "weight": 0}]}),
    ("weight", {"targets": [{**TARGET, "weight": 0.5}]}),
    ("secret", {"targets": [{**TARGET, "api_key": "sk-1"}]}),
    ("secret", {"targets": [{**TARGET, "api_key": "${KEY}"}]}),
    ("missing", {"targets": [{"name": "a", "url": "http://a"}]}),
    ("null", {"targets": [{**TARGET, "model": None}]}),
    ("aliases", {"aliases": "x"}),
    ("limits", {"limits": {"tpm": "200k", "concurrency": 3}, "key_limits": {"rpm": 1}}),
    ("limits", {"limits": {"rps": 3}}),
    ("outage", {"limits": {"outage": {"tpm": "open", "budget": "share"}}}),
    ("outage", {"limits": {"outage": {"tpm": "opened"}}}),
    ("outage", {"limits": {"outage": {"tmp": "open"}}}),
    ("budget", {"limits": {"budget": {"week": {"tokens": "2M"}}}}),
    ("budget", {"limits": {"budget": {"year": {"tokens": "2M"}}}}),
    ("money", {"price": {"input": 0.1, "output": 1}, "limits": {"budget": {"day": {"money": 12.5}}}}),
    ("money", {"price": {"input": "0.1", "output": "1"}, "limits": {"budget": {"day": {"money": "12.50"}}}}),
    ("money", {"price": {"input": 0.1, "output": 1}, "limits": {"budget": {"day": {"money": [12.5]}}}}),
    ("price", {"price": {"input": 0, "output": 0, "cached": None}}),
    ("price", {"price": {"input": 1}}),
    ("price", {"price": {"input": "1 EUR", "output": 1}}),
]


@pytest.mark.parametrize(("case", "route"), VARIANTS, ids=[case for case, _ in VARIANTS])
def test_schema_and_decoder_are_of_one_mind(case: str, route: dict[str, Any]) -> None:
    document = {"routes": {"one": {"targets": [TARGET], **route}}}
    try:
        parse_table(json.dumps(document), "t", {"KEY": "k"})
        good = True
    except Mistakes:
        good = False
    assert (not list(broken(SCHEMA, document))) == good

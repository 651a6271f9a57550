"""What the table says to clients: a default, paths that are passed on, signs of life, pages in browsers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config import Mistakes, parse_table


def text(**fields: Any) -> str:
    """A table of one route, with these fields of the route, or of the table if they are its own."""
    table = {name: fields.pop(name) for name in ("default_route", "cors") if name in fields}
    route = {"aliases": ["usual"], "targets": [{"name": "a", "backend": "vllm", "url": "http://a"}], **fields}
    return json.dumps({"routes": {"main": route}, **table})


@pytest.mark.parametrize("name", ["main", "usual"])
def test_a_default_is_a_route_or_an_alias(name: str) -> None:
    assert parse_table(text(default_route=name))[0].default_route == name


def test_signs_of_life_and_origins_are_off_unless_said() -> None:
    table = parse_table(text())[0]
    assert (table.cors, table.routes["main"].keepalive, table.routes["main"].passes) == (None, None, ())
    table = parse_table(text(keepalive="15s", cors={"origins": ["https://a"]}))[0]
    assert (table.routes["main"].keepalive, table.cors and table.cors.origins) == (15.0, ("https://a",))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"default_route": "none"}, "no route or alias 'none'; routes: main"),
        ({"passes": ["/metrics"]}, "'/metrics' cannot be passed on"),
        ({"passes": ["/v1/chat/completions"]}, "cannot be passed on"),
        ({"passes": ["/v1/models/x"]}, "cannot be passed on"),
        ({"passes": ["pooling"]}, "cannot be passed on"),
        ({"passes": ["/a/../b"]}, "cannot be passed on"),
        ({"passes": ["/a?b"]}, "cannot be passed on"),
        ({"passes": ["/a/"]}, "cannot be passed on"),
    ],
)
def test_what_cannot_be_meant_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(Mistakes) as mistakes:
        parse_table(text(**fields))
    assert told in str(mistakes.value.found)

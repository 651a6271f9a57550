"""Requests for a response that a server keeps: `/v1/responses/ID`, and what is below it."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from backends.endpoints import STORED, Endpoint
from gateway.core.errors import BadRequest, MethodNotAllowed
from gateway.http.request import Request

BEFORE: Final = "/v1/responses/"
_ITEM: Final = re.compile(r"(?!(?:compact|input_tokens)$)([A-Za-z0-9_-]{1,200})(/cancel|/input_items)?")
"""Two names are paths of OpenAI's, of which there are none here."""
_QUERY: Final = re.compile(rb"[A-Za-z0-9._~%=&+,\[\]-]{0,1024}")
_METHODS: Final = {None: ("GET", "DELETE"), "/cancel": ("POST",), "/input_items": ("GET",)}
"""What can be done with a response, and with what is below it."""


def of_stored(request: Request) -> Endpoint | None:
    """The endpoint of a request that is one of these; None: it is another."""
    path = request.path
    if not path.startswith(BEFORE):
        return None
    return STORED if _ITEM.fullmatch(path, len(BEFORE)) else None


def item_of(request: Request) -> str:
    """What such a request asks for, by the response's id, with its query. Raises `BadRequest`, `MethodNotAllowed`."""
    found = _ITEM.fullmatch(request.path, len(BEFORE))
    allowed = _METHODS[found[2] if found is not None else None]
    if request.method not in allowed:
        raise MethodNotAllowed(f"{request.method} is not possible here; use {' or '.join(allowed)}.")
    query = request.query
    if not _QUERY.fullmatch(query):
        raise BadRequest("The query holds characters that do not belong there.")
    item = request.path[len(BEFORE) :]
    if not query:
        return item
    text = query.decode()
    if any(name == "stream" and value.lower() not in ("false", "0", "") for name, value in parse_qsl(text)):
        raise BadRequest("A response that is kept cannot be streamed: it is whole.", param="stream")
    return f"{item}?{text}"

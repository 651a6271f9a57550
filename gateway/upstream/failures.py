"""What can go wrong with a target, in our words: statuses, errors inside answers."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Final

import msgspec
from msgspec import Struct

from backends import answers
from backends.api import Call, UpstreamFault
from backends.api import Target as Address
from backends.capabilities import Capabilities
from gateway.core.errors import (
    CredentialRefused,
    GatewayError,
    ModelUnknown,
    Rejected,
    UpstreamBusy,
    UpstreamFailed,
)

MAX_RETRY_AFTER = 120.0
_REFUSED: Final = "The model server refused the call with status {status}."
SHORTEST_SECRET: Final = 8
"""Shorter ones are words such as "none", for servers that want any; they are found in every other text."""


def status_refusal(status: int, retry_header: bytes | None, capabilities: Capabilities) -> GatewayError | None:
    """What an answer that is no 200 means; None: the call is at fault, or may be, and the body tells why."""
    if status in (500, 501) and capabilities.mistaken is not None:
        return None
    if status in (401, 403):
        return CredentialRefused(f"status {status}")
    if status in (429, 503):
        busy = UpstreamBusy(f"status {status}", retry_after=retry_after(retry_header))
        busy.broken = status == 503 and busy.retry_after is None
        return busy
    if status == 408 or not 400 <= status < 500:
        return UpstreamFailed(f"status {status}")
    return None


def worded_refusal(call: Call, address: Address, capabilities: Capabilities, status: int, body: bytes) -> GatewayError:
    """The target's refusal of the call, in its own words where its adapter finds them fit for the client.

    That it does not know a model which the table has written is its own fault: the caller did not choose the name.
    """
    if status == 500:
        said = None if capabilities.mistaken is None else capabilities.mistaken.mistake(call, body)
        return UpstreamFailed(f"status {status}") if said is None else Rejected(400, said)
    try:
        own = None if capabilities.refusing is None else capabilities.refusing.refusal(call, status, body)
    except UpstreamFault as fault:
        return blame(fault)
    if own is None:
        return Rejected(status if status != 404 else 400, _REFUSED.format(status=status))
    status, body = own
    refusal = _read(body)
    if refusal.error is None:
        words = refusal.message or refusal.detail
        return Rejected(status, words if isinstance(words, str) and words else _REFUSED.format(status=status))
    if status == 404 and address.model is not None and _names(refusal.error, address.model):
        return ModelUnknown(f"it does not know the model {address.model!r}")
    return Rejected(status, "", body=body)


class _Error(Struct):
    message: str
    code: str | int | None = None


class _Refusal(Struct):
    """A refusal in the envelope that clients know, or in that of a framework, whose words are put into ours."""

    error: _Error | None = None
    message: Any = None
    detail: Any = None


def _read(body: bytes) -> _Refusal:
    """Empty where nothing is said in a form that clients know."""
    try:
        found: _Refusal = answers.decoded(_refusals, body)
    except (ValueError, RecursionError):
        return _Refusal()
    return found


def _names(error: _Error, model: str) -> bool:
    """Whether the error is about the model, not about a path or something else that is not there."""
    return error.code == "model_not_found" or model in error.message


def conceal(refusal: Rejected, secret: str | None) -> None:
    """Take away the target's own words where they hold our credential for it."""
    if secret is None or len(secret) < SHORTEST_SECRET:
        return
    spellings = {secret, json.dumps(secret)[1:-1], json.dumps(secret)[1:-1].replace("/", "\\/")}
    said = (refusal.body or b"").decode("utf-8", "replace") + refusal.message
    if any(spelling in said for spelling in spellings):
        refusal.message = f"The model server refused the call with status {refusal.status}."
        refusal.body = None


def blame(fault: UpstreamFault) -> GatewayError:
    """An error that came inside an answer or stream of status 200."""
    if fault.status in (429, 503):
        return UpstreamBusy(f"it said so in an answer of status 200 ({fault.status})")
    if 400 <= fault.status < 500 and fault.status not in (401, 403, 408):
        return Rejected(fault.status, fault.message, param=fault.param)
    return UpstreamFailed(f"an error in an answer of status 200 ({fault.status})")  # its text may hold the prompt


_refusals = msgspec.json.Decoder(_Refusal)


def retry_after(header: bytes | None) -> float | None:
    """Seconds from a `Retry-After` header in either form, at most 120; None if there is none that can be read."""
    if not header:
        return None
    text = header.decode("latin-1")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time()
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER) if seconds == seconds else None

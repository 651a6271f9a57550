"""The cases of one client: each is tried, and what became of it printed as a line of JSON."""

import json
import os
import sys
import traceback
import uuid
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

URL, KEY = os.environ["GATEWAY_URL"], os.environ["GATEWAY_KEY"]
LIMITED_KEY = os.environ["GATEWAY_LIMITED_KEY"]
"""One request a minute."""
BAD_KEY = KEY[:-1] + ("x" if KEY[-1] != "x" else "y")
TOO_LONG = "word " * 20_000
TOOL = "PLEASE USE A TOOL and tell me about the weather in Paris."

_cases: list[tuple[str, str, Callable[..., None]]] = []


def case(name: str, *variants: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a case, tried once for each variant, which it gets as its argument."""

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        _cases.extend((name, variant, function) for variant in variants or ("",))
        return function

    return registered


def failing(status: int) -> str:
    """A prompt that the engine answers with this status, the first time."""
    return f"FAIL ONCE WITH {status}: {uuid.uuid4()}"


def expect(kind: type[BaseException], call: Callable[[], Any], **attributes: Any) -> Any:
    """The error of this kind that the call raises, which has these attributes."""
    try:
        got = call()
    except kind as error:
        for name, value in attributes.items():
            assert getattr(error, name) == value, f"{name} is {getattr(error, name)!r}, not {value!r}"
        return error
    except Exception as error:
        raise AssertionError(f"{type(error).__name__} instead of {kind.__name__}: {error}") from error
    raise AssertionError(f"no {kind.__name__}, but {str(got)[:200]}")


def run(*packages: str, **versions: str) -> None:
    """Try all cases, in order; the versions of the packages are told first."""
    known = {name: version(name) for name in packages} | versions
    print(json.dumps({"version": ", ".join(f"{name} {number}" for name, number in known.items())}), flush=True)
    only = sys.argv[1:]
    for name, variant, function in _cases:
        if only and name not in only:
            continue
        outcome = {"case": name, "variant": variant, "ok": True, "note": ""}
        try:
            function(*([variant] if variant else []))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[1:]
            line = next((frame.lineno for frame in where if frame.filename == sys.argv[0]), 0)
            outcome |= {"ok": False, "note": f"line {line}: {type(error).__name__}: {str(error)[:1500]}"}
        print(json.dumps(outcome), flush=True)

"""The gateway's own messages as lines of JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from gateway.process.log import JsonFormatter, set_up


def made(level: int, message: str, *of: object, error: BaseException | None = None) -> dict[str, object]:
    trace = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("trunkline.test", level, "file", 1, message, of, trace)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found: dict[str, object] = json.loads(line)
    return found


def test_a_message_is_one_line_with_all_that_is_known() -> None:
    line = made(logging.WARNING, "target %s is down:\n%s", "a", 'status "503" ü')
    assert line.pop("time").endswith("+00:00")  # type: ignore[attr-defined]
    assert line == {
        "level": "warning",
        "pid": os.getpid(),
        "logger": "trunkline.test",
        "message": 'target a is down:\nstatus "503" ü',
    }


def test_a_traceback_stands_in_the_same_line() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        line = made(logging.ERROR, "it broke", error=error)
    assert "KeyError: 'x'" in str(line["traceback"])


@pytest.mark.parametrize(
    ("level", "format", "told"),
    [("loud", "text", "TRUNKLINE_LOG_LEVEL='loud': expected one of debug, info"), ("info", "xml", "one of text, json")],
)
def test_what_is_no_level_or_form_is_told_by_name(level: str, format: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        set_up(level, format)


def test_all_messages_of_a_process_have_the_form() -> None:
    script = "from gateway.process.log import set_up; import logging; set_up('Info', 'json')\n"
    script += "logging.getLogger('trunkline.x').info('one'); logging.getLogger('other').warning('two')\n"
    script += "logging.getLogger('trunkline.x').debug('three')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["one", "two"]

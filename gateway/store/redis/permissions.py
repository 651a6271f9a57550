"""What a Redis that does not let its user do what was asked is told of, in words an operator can act on."""

from __future__ import annotations

import re
from typing import Final

import hiredis

_DENIALS: Final = ("NOPERM", "ACL failure in script", "user executing the script can't")
"""How Redis, 6.2 or later, says that an ACL rule is missing; the last two come out of scripts."""
_LINE: Final = re.compile(r"@user_script: ?(\d+)")
_CALL: Final = re.compile(r"(?:call|ask)\('(\w+)'")
_TAG: Final = "{tl}:"


def is_denied(said: str) -> bool:
    """Redis has refused for want of a permission."""
    return any(denial in said for denial in _DENIALS)


def denial(said: str, command: bytes, script: str = "", text: bytes = b"") -> str:
    """What was refused, in a sentence: `command` as it was sent, the name and the text of the script that it calls."""
    reader = hiredis.Reader()
    reader.feed(command)
    parts: list[bytes] = reader.gets()
    if script:
        what, keys = f"the script {script}{_within(said, text)}", parts[3 : 3 + int(parts[2])]
    else:
        what, keys = parts[0].decode(), [part for part in parts[1:] if part.startswith(_TAG.encode())]
    on = ", ".join(dict.fromkeys(pattern(key.decode(errors="replace")) for key in keys))
    return f"Redis does not allow its user {what}{' on ' if on else ''}{on} ({said.strip().rstrip('.')})"


def pattern(key: str) -> str:
    """The pattern of the keys that this one is of, as rules name them: `{tl}:rate:*`."""
    kind, more, _ = key.removeprefix(_TAG).partition(":")
    return f"{_TAG}{kind}:*" if more else key


def _within(said: str, text: bytes) -> str:
    """The command inside the script, where Redis tells the line."""
    found = _LINE.search(said)
    lines = text.decode().splitlines()
    if found is None or not 0 < int(found[1]) <= len(lines):
        return ""
    called = _CALL.search(lines[int(found[1]) - 1])
    return f", which calls {called[1]}," if called else ""

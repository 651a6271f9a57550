"""Ways in which a target fails before its first byte, such that another target may do better."""

from __future__ import annotations

from typing import Final

from harness.upstream import Act, Script, head, stream, whole

SECRET: Final = 'sk-canary/with"odd\\signs'
"""A credential for a target, with signs that JSON escapes."""

FAILURES: Final[dict[str, tuple[Script, int, str]]] = {
    "500": (whole({"error": {"message": "secret-of-upstream"}}, 500), 502, "upstream_failed"),
    "502": (whole(b"<html>secret-of-upstream</html>", 502, "text/html"), 502, "upstream_failed"),
    "503": (whole({"error": "secret-of-upstream"}, 503), 503, "upstream_busy"),
    "504": (whole(b"secret-of-upstream", 504), 502, "upstream_failed"),
    "429": (whole({"error": "secret-of-upstream"}, 429, retry_after=7), 503, "upstream_busy"),
    "stream-hang": ([Act.STALL], 504, "upstream_timeout"),
    "eof": ([Act.CUT], 502, "upstream_disconnected"),
    "reset": ([Act.RESET], 502, "upstream_disconnected"),
    "eof-in-head": ([b"HTTP/1.1 200 OK\r\ncontent-le", Act.CUT], 502, "upstream_"),
    "nonsense": ([b"220 secret-of-upstream ESMTP ready\r\n\r\n", Act.CUT], 502, "upstream_"),
    "html-200": (whole(b"<html>secret-of-upstream</html>", 200, "text/html"), 502, "upstream_bad_reply"),
    "redirect": (whole(b"secret-of-upstream", 307, location="http://127.0.0.1:1/secret-of-upstream"), 502, "upstream_"),
    "stream-500": (stream(b'data: {"error": {"message": "secret-of-upstream", "code": 500}}\n\n'), 502, "upstream_"),
    "silent-stream": (stream(), 502, "upstream_disconnected"),
    "comment-then-hang": (stream(b": secret-of-upstream\n\n", Act.STALL), 504, "upstream_timeout"),
    "cut-whole": ([head(content_type="application/json", content_length=500) + b"{", Act.CUT], 502, "upstream_disc"),
}
"""By name: what the target does, and the status and start of the error type that come of it when nobody else can help.

The names that hold "stream" or "comment" are for streamed calls.
"""

SENT_TWICE: Final = frozenset({"eof", "reset", "eof-in-head"})
"""Nobody can tell these from a pooled connection that the target had closed while it was idle.

So where the connection had served a call before, the same target gets the call once more, on a new one.
"""


def most_calls(case: str) -> tuple[int, ...]:
    """How often a target that fails so may have seen one call."""
    return (1, 2) if case in SENT_TWICE else (1,)

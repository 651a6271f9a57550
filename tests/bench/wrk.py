"""Load without a pause: wrk calls as fast as answers come, and a window of its run is measured."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from calls import Call
from debian import Tools

WARM_SECONDS = 0.5
SPARE_SECONDS = 20
SCRIPT = """\
wrk.method = "POST"
local file = io.open({body}, "rb")
wrk.body = file:read("*a")
file:close()
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {secret}"
function done(summary, latency, requests)
    local errors = summary.errors
    io.stderr:write(string.format('{{"requests":%d,"status":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d}}',
        summary.requests, errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
"""
Sample = TypeVar("Sample")


class LoadFailed(Exception):
    """wrk did not run, or calls failed; the message says how."""


class Wrk:
    """Runs wrk, pinned as this process is."""

    def __init__(self, tools: Tools, folder: Path) -> None:
        self._tools, self._folder = tools, folder

    def measure(
        self, port: int, secret: str, call: Call, clients: int, seconds: float, sample: Callable[[], Sample]
    ) -> tuple[Sample, Sample]:
        """Samples at the beginning and at the end of so many seconds of load.

        Raises `LoadFailed` if a call of the run was not answered with 200.
        """
        with self._running(port, secret, call, clients, WARM_SECONDS + seconds):
            time.sleep(WARM_SECONDS)
            first = sample()
            time.sleep(seconds)
            return first, sample()

    @contextmanager
    def _running(self, port: int, secret: str, call: Call, clients: int, seconds: float) -> Iterator[None]:
        body, script = self._folder / "body", self._folder / "load.lua"
        body.write_bytes(call.body)
        script.write_text(SCRIPT.format(body=json.dumps(str(body)), secret=secret))
        url, limit = f"http://127.0.0.1:{port}/v1/chat/completions", f"{int(seconds) + SPARE_SECONDS}s"
        command = [
            str(self._tools.wrk),
            "-t1",
            f"-c{clients}",
            f"-d{limit}",
            "--timeout",
            "30s",
            "-s",
            str(script),
            url,
        ]
        process = subprocess.Popen(
            command, env=self._tools.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            yield
            process.send_signal(signal.SIGINT)  # it prints what became of the calls
            _, words = process.communicate(timeout=SPARE_SECONDS)
        finally:
            process.kill()
            process.wait()
        _judge(words)


def _judge(words: str) -> None:
    try:
        outcome = json.loads(words[words.index("{") :])
    except ValueError:
        raise LoadFailed(f"wrk: {words.strip()[-500:]}") from None
    calls = outcome.pop("requests")
    if not calls or any(outcome.values()):
        failed = ", ".join(f"{number} {name}" for name, number in outcome.items() if number)
        raise LoadFailed(f"of {calls} calls failed: {failed or 'all'}")

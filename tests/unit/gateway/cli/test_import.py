"""`trunkline import litellm`: what a table can say of such a file, and what is told of the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from gateway.config import Table, load_table

CONFIG = """\
model_list:
  - model_name: qwen
    litellm_params:
      {model: hosted_vllm/Qwen/Qwen2.5-7B, api_base: "http://vllm-a:8000/v1", api_key: os.environ/VLLM_KEY,
       rpm: 6, weight: 2}
    model_info: {input_cost_per_token: 0.0000005, output_cost_per_token: 0.000002, mode: chat}
  - model_name: qwen
    litellm_params:
      {model: openai/qwen, api_base: "http://other:1/", api_key: sk-a-real-secret-2837, max_parallel_requests: 8}
  - {model_name: small, litellm_params: {model: huggingface/meta/llama, api_base: "http://tgi:80", timeout: 1.5}}
  - {model_name: azure-gpt, litellm_params: {model: azure/gpt-4o, api_base: "https://x.openai.azure.com"}}
  - {model_name: "openai/*", litellm_params: {model: "openai/*"}}
  - {model_name: gpt-4o, litellm_params: {model: gpt-4o, api_key: none}}
router_settings:
  routing_strategy: least-busy
  num_retries: 5
  model_group_alias: {gpt-4: qwen, other: nothing}
  fallbacks: [{qwen: [small, gpt-4o]}, {small: [qwen]}]
  redis_host: localhost
litellm_settings: {request_timeout: 60, drop_params: true}
general_settings: {master_key: sk-1234, database_url: "postgresql://x"}
environment_variables: {A: b}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_KEY", "a-key-of-an-engine")
    monkeypatch.setenv("QWEN_2_KEY", "another-key-of-one")
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return file


def imported(run: Callable[..., Result], file: Path) -> tuple[Table, str]:
    result = run("import", "litellm", str(file))
    assert result.exit_code == 0, result.output
    assert run("check", "routing.yaml").exit_code == 0
    return load_table(Path("routing.yaml"))[0], result.stderr


def test_models_settings_and_fallbacks(run: Callable[..., Result], config: Path) -> None:
    table, _ = imported(run, config)
    assert list(table.routes) == ["qwen", "small", "gpt-4o"]
    qwen = table.routes["qwen"]
    first, second = qwen.targets
    assert (first.backend, first.url, first.model, first.weight) == ("vllm", "http://vllm-a:8000", "Qwen/Qwen2.5-7B", 2)
    assert first.api_key == "a-key-of-an-engine"
    assert (second.backend, second.model, second.max_inflight) == ("openai", None, 8)
    assert qwen.aliases == ("gpt-4",) and qwen.policy == "least-tokens" and qwen.retry.attempts == 3
    assert qwen.price is not None and (qwen.price.input, qwen.price.output) == (500_000, 2_000_000)
    assert qwen.fallback_route == "small" and table.routes["small"].fallback_route is None
    assert table.routes["small"].targets[0].backend == "tgi"
    assert table.routes["small"].timeouts.whole == 1.5 and qwen.timeouts.whole == 60
    assert table.routes["gpt-4o"].targets[0].url == "https://api.openai.com"


def test_what_is_not_carried_is_listed(run: Callable[..., Result], config: Path) -> None:
    _, told = imported(run, config)
    assert "sk-a-real" not in told + Path("routing.yaml").read_text()
    for part in (
        "azure-gpt): servers of 'azure' are not spoken to",
        "(openai/*): its name has a *",
        "litellm_params.rpm",
        "environment variable QWEN_2_KEY",
        "model_info.mode",
        "num_retries 5",
        "'nothing' is no route",
        "fallbacks of 'qwen': 'gpt-4o'",
        "fallbacks of 'small'",
        "router_settings.redis_host",
        "litellm_settings.drop_params",
        "general_settings.master_key",
        "general_settings.database_url",
        "environment_variables",
    ):
        assert len([line for line in told.splitlines() if part in line and line.startswith("Not carried: ")]) == 1, part


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "not valid YAML"),
        ("[]", "expected a LiteLLM config"),
        ("routes: {}", "expected a LiteLLM config"),
        ("model_list: [{model_name: x}, 5]", "no model of 'model_list' can be carried"),
        ("model_list: [{model_name: x, litellm_params: {model: bedrock/y}}]", "servers of 'bedrock'"),
        (
            "model_list: [{model_name: x, litellm_params: {model: hosted_vllm/y, api_base: 'nonsense'}}]",
            "makes no table",
        ),
    ],
)
def test_what_is_no_such_file(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    assert told in refused("import", "litellm", "config.yaml")
    assert not Path("routing.yaml").exists()


def test_nothing_is_written_over(run: Callable[..., Result], refused: Callable[..., str], config: Path) -> None:
    imported(run, config)
    assert "--force writes over it" in refused("import", "litellm", str(config))
    assert "cannot be read: No such file" in refused("import", "litellm", "nowhere.yaml", "--force")
    assert run("import", "litellm", str(config), "--output", "-").stdout == Path("routing.yaml").read_text()
    assert run("import", "litellm", str(config), "--force").exit_code == 0

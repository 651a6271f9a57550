"""Each alert fires when it should, and else keeps quiet, as Prometheus' own promtool finds: `make test-ops`."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from ops.prometheus import programs

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = [r for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for r in group["rules"]]
ALERTS = [rule["alert"] for rule in RULES if "alert" in rule]
HOURS = 480
"""Of samples a minute: more than the longest window."""


class Case(NamedTuple):
    """Series that set it off, and such that do not; `values` as promtool writes them, a sample each minute."""

    fires: dict[str, str]
    quiet: dict[str, str]
    at: str = "30m"


def still(value: float, samples: int = HOURS) -> str:
    return f"{value}x{samples}"


def growing(step: float, samples: int = HOURS) -> str:
    return f"0+{step}x{samples}"


def calls(bad: float, good: float, why: str = 'outcome="failed",error_type="upstream_error"') -> dict[str, str]:
    of = 'trunkline_requests_total{instance="a",route="m",endpoint="chat/completions",'
    return {
        of + why + "}": growing(bad),
        of + 'outcome="answered",error_type=""}': growing(good),
    }


def shed(bad: float, good: float) -> dict[str, str]:
    return calls(bad, good, 'outcome="shed",error_type="queue_timeout"')


def in_time(metric: str, bound: str, percent: float) -> dict[str, str]:
    """So many percent of what was observed was not above the bound."""
    name, labels = f"trunkline_{metric}", 'instance="a",route="m"'
    return {
        f'{name}_bucket{{{labels},le="{bound}"}}': growing(percent),
        f'{name}_bucket{{{labels},le="+Inf"}}': growing(100),
        f"{name}_count{{{labels}}}": growing(100),
    }


def slow(metric: str, low: str, high: str, labels: str = 'instance="a",route="m"') -> tuple[dict[str, str], ...]:
    """Observations above and below a bucket's bound, for quantiles."""
    name = f"trunkline_{metric}_bucket"

    def seen(below: float) -> dict[str, str]:
        return {
            f'{name}{{{labels},le="{low}"}}': growing(below),
            f'{name}{{{labels},le="{high}"}}': growing(100),
            f'{name}{{{labels},le="+Inf"}}': growing(100),
        }

    return seen(0), seen(100)


def gauge(name: str, bad: float, good: float, labels: str = 'instance="a"') -> tuple[dict[str, str], ...]:
    return {f"trunkline_{name}{{{labels}}}": still(bad)}, {f"trunkline_{name}{{{labels}}}": still(good)}


def counter(name: str) -> tuple[dict[str, str], ...]:
    return {f'trunkline_{name}{{instance="a"}}': growing(1)}, {f'trunkline_{name}{{instance="a"}}': still(5)}


FIRST_TOKENS = partial(in_time, "time_to_first_token_seconds", "3.0")
TOKENS = partial(in_time, "inter_token_latency_seconds", "0.1")


def tables(one: int, other: int) -> dict[str, str]:
    hashes = {"a": one, "b": other}
    return {f'trunkline_config_info{{instance="{at}",hash="{hash}"}}': still(1) for at, hash in hashes.items()}


UP = 'up{job="trunkline",instance="a"}'
TARGET = 'instance="a",target="t"'
BUG = 'trunkline_requests_total{instance="a",route="m",endpoint="chat/completions",outcome="failed",error_type="%s"}'
CASES = {
    "TrunklineDown": Case(
        {'up{job="trunkline",instance="a"}': still(0)}, {'up{job="trunkline",instance="a"}': still(1)}
    ),
    "TrunklineErrorShare": Case(calls(10, 90), calls(1, 99)),
    "TrunklineBug": Case({BUG % "gateway_other": growing(1)}, {BUG % "upstream_error": growing(1)}),
    "TrunklineOverhead": Case(*slow("overhead_seconds", "0.032", "0.256")),
    "TrunklineLoopLag": Case(*slow("loop_lag_seconds", "0.064", "0.256", 'instance="a"')),
    "TrunklineTargetFailing": Case(
        {
            'trunkline_upstream_attempts_total{route="m",target="t",outcome="upstream_timeout"}': growing(9),
            'trunkline_upstream_attempts_total{route="m",target="t",outcome="ok"}': growing(1),
        },
        {
            'trunkline_upstream_attempts_total{route="m",target="t",outcome="upstream_timeout"}': growing(1),
            'trunkline_upstream_attempts_total{route="m",target="t",outcome="ok"}': growing(9),
        },
    ),
    "TrunklineTargetHung": Case(*gauge("target_hung", 1, 0, TARGET)),
    "TrunklineStoreSlow": Case(*slow("redis_seconds", "0.064", "0.256", 'instance="a"')),
    "TrunklineTableRefused": Case(*gauge("config_refused", 1, 0)),
    "TrunklineTablesDiffer": Case(tables(1, 2), tables(1, 1)),
    "TrunklineTargetDown": Case(
        *gauge("target_up", 0, 1, TARGET),
    ),
    "TrunklineQueueing": Case(*slow("queue_wait_seconds", "3.0", "12.0")),
    "TrunklineTargetWarning": Case(*gauge("target_warning", 1, 0, TARGET + ',about="model"')),
    "TrunklineReplicasDiffer": Case(*gauge("route_drift", 1, 0, 'instance="a",route="m",field="version"'), "1h"),
    "TrunklineLimitsDegraded": Case(*gauge("limits_degraded", 1, 0)),
    "TrunklineSettleBacklog": Case(*gauge("settle_pending", 3, 0)),
    "TrunklineLedgerLoss": Case(*counter("ledger_entries_dropped_total")),
    "TrunklineLogLoss": Case(*counter("log_lines_dropped_total")),
    "TrunklineUsageDrift": Case(*gauge("reconcile_drift_ratio", -0.2, 0.01, TARGET + ',direction="in"'), "2h"),
    "TrunklineTargetEjected": Case(*gauge("target_out", 1, 0, TARGET + ',reason="ejected"')),
    "TrunklineTargetDrained": Case(*gauge("target_out", 1, 0, TARGET + ',reason="drained"'), "5h"),
    "TrunklineWorkerRestarts": Case(
        {'trunkline_worker_restarts{instance="a"}': "0x20 1x60"}, {'trunkline_worker_restarts{instance="a"}': still(3)}
    ),
    "TrunklineShedding": Case(shed(10, 90), shed(1, 99)),
    "TrunklineWeakSecret": Case(*gauge("weak_secrets", 1, 0)),
    "TrunklineUnknownSetting": Case(*gauge("unknown_settings", 2, 0)),
    "TrunklineSeriesGrowth": Case(
        {'scrape_samples_scraped{job="trunkline",instance="a"}': still(60_000)},
        {'scrape_samples_scraped{job="trunkline",instance="a"}': still(9_000)},
        "1h",
    ),
    "TrunklineErrorBudgetFast": Case(calls(2, 98), calls(1, 99), "2h"),
    "TrunklineErrorBudgetSlow": Case(calls(0.7, 99.3), calls(0.5, 99.5), "7h"),
    "TrunklineFirstTokenLate": Case(*(FIRST_TOKENS(each) for each in (80, 90)), "2h"),
    "TrunklineFirstTokenLateForHours": Case(*(FIRST_TOKENS(each) for each in (94, 96)), "7h"),
    "TrunklineTokensLate": Case(*(TOKENS(each) for each in (80, 90)), "2h"),
}


def as_promtool_reads(alert: str, case: Case) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{alert} {word}",
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in of.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                    "eval_time": case.at,
                    "exp_samples": [{"labels": "{}", "value": 1}] if word == "fires" else [],
                }
            ],
        }
        for word, of in (("fires", case.fires), ("keeps quiet", case.quiet))
    ]


def test_every_alert_has_its_cases() -> None:
    assert list(CASES) == ALERTS


@pytest.mark.parametrize("alert", CASES)
def test_alerts_fire_when_they_should_and_else_keep_quiet(alert: str, tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    file = tmp_path / "tests.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": ["alerts.yml"],
                "evaluation_interval": "1m",
                "tests": as_promtool_reads(alert, CASES[alert]),
            },
            width=10_000,
        )
    )
    done = subprocess.run([programs()[1], "test", "rules", file], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration() -> None:
    done = subprocess.run(
        [programs()[1], "check", "config", DEPLOY / "prometheus.yml"], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr

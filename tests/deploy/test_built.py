"""What kubectl and Helm make of deploy/ is what Kubernetes takes, and both make the same: `make test-deploy`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES, CHART = ROOT / "deploy/kubernetes", ROOT / "deploy/helm/trunkline"
TOOLS = ROOT / ".venv-deploy/bin"
OLDEST, NEWEST = "1.25.0", "1.37.0"
"""Of Kubernetes: the chart's `kubeVersion`, and the newest whose schemas are at hand."""
OF_OPERATORS = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kubernetes has no schema for these."""
TABLE = (KUBERNETES / "base/routing.yaml").read_text()
ALL_ON = {
    "autoscaling": {"inFlight": 400},
    "ingress": {"enabled": True, "className": "nginx", "host": "llm.example.com", "tlsSecret": "llm-tls"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "alerts": {"enabled": True},
    "dashboards": {"enabled": True},
    "image": {"repository": "registry.example.com/trunkline", "digest": "sha256:" + "a" * 64, "pullPolicy": "Always"},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "search"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}],
    },
    "admin": {"clients": [{"podSelector": {"matchLabels": {"app": "proxy"}}}]},
    "env": [{"name": "TRUNKLINE_LOG_LEVEL", "value": "debug"}],
    "volumes": [{"name": "credentials", "secret": {"secretName": "targets"}}],
    "volumeMounts": [{"name": "credentials", "mountPath": "/run/targets", "readOnly": True}],
    "workers": 2,
    "nodeSelector": {"pool": "cpu"},
    "tolerations": [{"key": "pool", "operator": "Exists"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "platform"},
    "priorityClassName": "high",
}


def kustomized(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run([TOOLS / "kubectl", "kustomize", folder], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def helm(values: dict[str, Any], name: str = "trunkline", **more: Any) -> dict[str, Any]:
    asked = {"folder": str(CHART), "name": name, "values": {"routing": TABLE, **values}, **more}
    command = [TOOLS / "python", Path(__file__).with_name("chart.py")]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def rendered(values: dict[str, Any], name: str = "trunkline") -> list[dict[str, Any]]:
    said = helm(values, name)
    assert "error" not in said, said
    texts = [text for path, text in sorted(said["rendered"].items()) if path.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def assert_valid(objects: list[dict[str, Any]], folder: Path) -> None:
    known = [each for each in objects if each["kind"] not in OF_OPERATORS]
    assert known
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all(known))
    for version in (OLDEST, NEWEST):
        command = [TOOLS / "kubernetes-validate", "--strict", "-k", version, file]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, f"{version}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def kinds(objects: list[dict[str, Any]]) -> set[str]:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)
    return {kind for kind, _ in names}


@pytest.mark.parametrize("name", ["base", "try"])
def test_kubernetes_takes_what_kustomize_makes(name: str, tmp_path: Path) -> None:
    assert_valid(kustomized(KUBERNETES / name), tmp_path)


def overlay(tmp_path: Path, *components: str) -> list[dict[str, Any]]:
    """The base with these components."""
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes/ours"
    folder.mkdir()
    wanted = {"resources": ["../base"], "components": [f"../{each}" for each in components]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    return kustomized(folder)


def test_pods_are_scaled_by_calls_in_flight_too(tmp_path: Path) -> None:
    objects = overlay(tmp_path, "custom-metrics", "prometheus-operator")
    assert_valid(objects, tmp_path)
    (scaler,) = [each for each in objects if each["kind"] == "HorizontalPodAutoscaler"]
    assert [metric["type"] for metric in scaler["spec"]["metrics"]] == ["Resource", "Pods"]
    assert "ServiceMonitor" in kinds(objects)


def test_keda_takes_the_place_of_the_autoscaler(tmp_path: Path) -> None:
    found = kinds(overlay(tmp_path, "keda"))
    assert "ScaledObject" in found
    assert "HorizontalPodAutoscaler" not in found


def test_the_table_can_be_tried_without_a_model() -> None:
    objects = kustomized(KUBERNETES / "try")
    assert {each["metadata"].get("namespace", "trunkline") for each in objects} == {"trunkline"}
    (table,) = [each for each in objects if each["kind"] == "ConfigMap"]
    assert table["metadata"]["name"] == "trunkline-routing"
    assert table["data"]["routing.yaml"] == (KUBERNETES / "try/routing.yaml").read_text()
    services = {each["metadata"]["name"] for each in objects if each["kind"] == "Service"}
    assert {"stand-in", "redis", "trunkline"} <= services


@pytest.mark.parametrize(
    "values",
    [{}, ALL_ON, {"autoscaling": {"keda": {"enabled": True}}}, {"autoscaling": {"enabled": False}, "replicas": 3}],
    ids=["defaults", "all on", "keda", "fixed"],
)
def test_kubernetes_takes_what_helm_makes(values: dict[str, Any], tmp_path: Path) -> None:
    assert_valid(rendered(values), tmp_path)
    assert_valid(rendered(values, "prod"), tmp_path)
    said = helm(values, lint=True)
    assert said["errors"] == []
    assert [each for each in said["messages"] if each["severity"] >= 2] == []


def plain(thing: Any) -> Any:
    """An object without what Helm adds to labels, and lists of names in one order."""
    if isinstance(thing, dict):
        ours = (
            "app.kubernetes.io/instance",
            "app.kubernetes.io/version",
            "app.kubernetes.io/managed-by",
            "helm.sh/chart",
        )
        return {key: plain(value) for key, value in thing.items() if key not in ours}
    if isinstance(thing, list):
        return sorted((plain(each) for each in thing), key=lambda each: json.dumps(each, sort_keys=True))
    return thing


def test_the_chart_and_kustomize_make_the_same() -> None:
    def by_name(objects: list[dict[str, Any]]) -> dict[str, Any]:
        found = {f"{each['kind']} {each['metadata']['name']}": plain(each) for each in objects}
        for name in ("ServiceAccount trunkline", "ConfigMap trunkline-routing"):
            found[name]["metadata"].pop("labels", None)
        return found

    chart, base = by_name(rendered({})), by_name(kustomized(KUBERNETES / "base"))
    assert set(chart) == set(base)
    for name, wanted in base.items():
        assert chart[name] == wanted, name


def test_alerts_and_dashboards_of_the_chart_are_those_of_deploy() -> None:
    objects = rendered({"alerts": {"enabled": True}, "dashboards": {"enabled": True}})
    rules = [each["spec"] for each in objects if each["kind"] == "PrometheusRule"]
    files = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["rule_files"]
    assert sorted(rules, key=str) == sorted(
        (yaml.safe_load((ROOT / "deploy" / file).read_text()) for file in files), key=str
    )
    shown = {k: v for each in objects if each["kind"] == "ConfigMap" for k, v in each["data"].items() if "json" in k}
    assert shown == {file.name: file.read_text() for file in (ROOT / "deploy/grafana/dashboards").iterdir()}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"grcae": 3}, "'grcae' not allowed"),
        ({"autoscaling": {"cpu": "70"}}, "want integer"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"redis": {"url": "http://redis"}}, "/redis/url"),
        ({"routing": ""}, "--set-file routing=routing.yaml"),
    ],
)
def test_wrong_values_are_told(values: dict[str, Any], said: str) -> None:
    assert said in helm(values)["error"]


@pytest.mark.parametrize(
    "url", ["rediss://r:6380/0", "redis+sentinel://a:26379,b:26379/main", "redis+cluster://a:6379,b:6379"]
)
def test_redis_may_be_of_any_kind(url: str) -> None:
    objects = rendered({"redis": {"url": url}})
    (gateway,) = [each for each in objects if each["metadata"]["name"] == "trunkline" and each["kind"] == "Deployment"]
    (container,) = gateway["spec"]["template"]["spec"]["containers"]
    assert {"name": "TRUNKLINE_REDIS_URL", "value": url} in container["env"]

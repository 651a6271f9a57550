"""deploy/kubernetes and deploy/helm against the code, as they lie there; `make test-deploy` builds them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus_client import Counter, Gauge, Histogram

from gateway import __version__
from gateway.admin.http import reports
from gateway.cli import cli
from gateway.config import Settings, load_table
from gateway.config.discovery import first_url
from gateway.http import operations
from gateway.metering import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES, CHART = DEPLOY / "kubernetes", DEPLOY / "helm/trunkline"
MANIFESTS = sorted(KUBERNETES.rglob("*.yaml"))
TABLES = [file for file in MANIFESTS if file.name == "routing.yaml"]
APART = {KUBERNETES / "keda/engines.yaml"}
"""An example that no kustomization has."""
LAST = 8
"""Seconds that a worker has for what is left after its grace."""


def objects(*folders: str) -> list[dict[str, Any]]:
    files = [f for folder in folders for f in sorted((KUBERNETES / folder).glob("*.yaml")) if f not in TABLES]
    found = [each for file in files for each in yaml.safe_load_all(file.read_text())]
    return [each for each in found if each["kind"] not in ("Kustomization", "Component")]


def only(kind: str, name: str, folder: str = "base") -> dict[str, Any]:
    (found,) = [each for each in objects(folder) if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod(name: str, folder: str = "base") -> tuple[dict[str, Any], dict[str, Any]]:
    """The spec of a Deployment's pods, and its one container."""
    spec = only("Deployment", name, folder)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def given(container: dict[str, Any], secrets: dict[str, str]) -> dict[str, str]:
    """The variables of a container, those of Secrets by their key."""
    return {
        each["name"]: each.get("value") or secrets[each["valueFrom"]["secretKeyRef"]["key"]]
        for each in container["env"]
    }


SECRETS = {"redis-url": "redis://gateway:p@redis:6379/0", "peppers": f"1:{'a' * 64}", "admin-hash": "0" * 64}
GATEWAY, ADMIN = pod("trunkline"), pod("trunkline-admin")
IMAGE_ENV = dict(
    word.split("=", 1)
    for line in re.findall(r"^ENV ((?:.*\\\n)*.*)", (DEPLOY / "Dockerfile").read_text(), re.M)
    for word in shlex.split(line.replace("\\\n", " "))
)
PATHS = {route.path for route in operations.router(None, None).routes}  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", [file.parent for file in MANIFESTS if file.name == "kustomization.yaml"], ids=str)
def test_a_kustomization_has_every_file_beside_it_and_no_other(folder: Path) -> None:
    said = yaml.safe_load((folder / "kustomization.yaml").read_text())
    named = {folder / each for each in said.get("resources", ())}
    named |= {folder / file for made in said.get("configMapGenerator", ()) for file in made["files"]}
    assert all(file.exists() for file in named)
    beside = {file for file in folder.glob("*.yaml") if file.name != "kustomization.yaml"} - APART
    assert beside == {file for file in named if file.is_file()}
    for image in said.get("images", ()):
        assert image["newTag"] == __version__
    if "configMapGenerator" in said:  # under a name with a hash a new table would replace all pods
        assert said["generatorOptions"] == {"disableNameSuffixHash": True}


def test_the_settings_of_both_can_be_used() -> None:
    gateway = Settings.read({**IMAGE_ENV, **given(GATEWAY[1], SECRETS)})
    admin = Settings.read({**IMAGE_ENV, **given(ADMIN[1], SECRETS)})
    for settings in (gateway, admin):
        assert settings.redis_url == SECRETS["redis-url"]
        assert settings.pepper_versions()[1]
    assert admin.admin_digest() == SECRETS["admin-hash"]
    assert GATEWAY[1]["ports"] == [{"name": "http", "containerPort": gateway.port}]
    assert (ADMIN[1]["ports"], admin.admin_host) == ([{"name": "http", "containerPort": admin.admin_port}], "0.0.0.0")
    assert ADMIN[1]["args"] == ["admin", "serve"]


def test_the_gateway_has_the_time_that_its_drain_takes() -> None:
    settings = Settings.read(given(GATEWAY[1], SECRETS))
    assert GATEWAY[0]["terminationGracePeriodSeconds"] > settings.drain_accept + settings.grace + LAST
    ready = GATEWAY[1]["readinessProbe"]
    assert ready["periodSeconds"] * ready["failureThreshold"] < settings.drain_accept, "traffic would come for too long"
    assert "preStop" not in GATEWAY[1].get("lifecycle", {})
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert (values["drainAccept"], values["grace"]) == (settings.drain_accept, settings.grace)


def test_probes_ask_what_there_is() -> None:
    asked = {name: GATEWAY[1][name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {each["path"] for each in asked.values()} <= PATHS
    assert asked["readinessProbe"]["path"] == "/ready"
    assert asked["livenessProbe"]["path"] == asked["startupProbe"]["path"] == "/health", "an outage of Redis kills none"
    assert "/health" in reports.health.paths
    assert {ADMIN[1][name]["httpGet"]["path"] for name in ("readinessProbe", "livenessProbe")} == {"/health"}
    assert "/metrics" in PATHS
    (endpoint,) = objects("prometheus-operator")[0]["spec"]["endpoints"]
    assert (endpoint["path"], endpoint["port"]) == ("/metrics", "http")


@pytest.mark.parametrize(("name", "folder"), [("trunkline", "base"), ("trunkline-admin", "base"), ("stand-in", "try")])
def test_pods_may_do_what_they_need_and_no_more(name: str, folder: str) -> None:
    spec, container = pod(name, folder)
    user = re.findall(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    assert user == [(str(spec["securityContext"]["runAsUser"]), str(spec["securityContext"]["runAsGroup"]))]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}


@pytest.mark.parametrize("part", [GATEWAY, ADMIN], ids=["gateway", "admin"])
def test_the_table_is_mounted_so_that_changes_arrive_and_the_rest_can_be_written(part: Any) -> None:
    spec, container = part
    settings = Settings.read(IMAGE_ENV)
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in spec["volumes"]}
    table = mounts[str(Path(settings.routing).parent)]
    assert "subPath" not in table
    assert volumes[table["name"]]["configMap"] == {"name": "trunkline-routing"}
    for folder in (str(settings.state_path.parent), "/tmp"):
        assert "emptyDir" in volumes[mounts[folder]["name"]]


def test_everything_that_selects_finds_its_pods() -> None:
    found = objects("base", "try", "prometheus-operator")
    owners = [each for each in found if each["kind"] in ("Deployment", "StatefulSet")]
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in owners]
    for each in found:
        spec = each.get("spec", {})
        if each["kind"] == "ServiceMonitor":
            services = [other["metadata"]["labels"] for other in found if other["kind"] == "Service"]
            assert sum(spec["selector"]["matchLabels"].items() <= its.items() for its in services) == 1
            assert spec["jobLabel"] == "app.kubernetes.io/name", "alerts ask for job=trunkline"
            continue
        chosen = spec.get("podSelector") or spec.get("selector") or {}
        wanted = chosen.get("matchLabels", chosen)
        if wanted:
            assert sum(wanted.items() <= its.items() for its in labels) == 1, each["metadata"]["name"]
        target = spec.get("scaleTargetRef")
        assert target is None or target["name"] in {other["metadata"]["name"] for other in owners}


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.parent.name)
def test_pods_can_reach_what_the_table_names(file: Path) -> None:
    table, warnings = load_table(file, {})
    assert not warnings
    policy = only("NetworkPolicy", "trunkline")["spec"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"] if port["protocol"] == "TCP"}
    for _, _, target in table.targets():
        assert (urlsplit(first_url(target) or "").port or 80) in ports, target.name
    assert {53, urlsplit(SECRETS["redis-url"]).port} <= ports
    assert policy["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]


def test_metrics_that_scale_exist() -> None:
    names: set[str] = set()
    for metric in vars(Metrics()).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            ends = {Counter: ["_total"], Gauge: [""], Histogram: ["_bucket", "_sum", "_count"]}[type(metric)]
            names |= {metric._name + end for end in ends}
    texts = [*MANIFESTS, *CHART.rglob("*.yaml"), *CHART.rglob("*.tpl")]
    asked = {name for file in texts for name in re.findall(r"\btrunkline_[a-z_]+", file.read_text())}
    assert len(asked) > 4
    assert asked <= names


def test_the_stand_in_understands_its_options() -> None:
    command, *options = pod("stand-in", "try")[1]["args"]
    found = cli.commands[command] if command in cli.commands else cli.get_command(None, command)  # type: ignore[arg-type]
    assert found is not None
    found.make_context(command, list(options)).close()


# The chart


def leaves(values: dict[str, Any], above: str = "") -> set[str]:
    """The paths of all values; objects that are free to hold anything count as one."""
    found = set()
    for name, value in values.items():
        path = f"{above}.{name}".lstrip(".")
        found |= leaves(value, path) if value and isinstance(value, dict) and path not in FREE else {path}
    return found


FREE = {"resources", "admin.resources", "dashboards.labels"}
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def test_every_value_is_used_and_every_used_one_exists() -> None:
    texts = "\n".join(file.read_text() for file in sorted((CHART / "templates").iterdir()))
    used = set(re.findall(r"\.Values\.([\w.]+)", texts))
    known = leaves(VALUES)
    assert known <= used
    assert {path for path in used if not any(k == path or k.startswith(f"{path}.") for k in known)} == set()


def test_the_schema_knows_the_values_that_there_are() -> None:
    def agree(schema: dict[str, Any], values: dict[str, Any], where: str = "") -> None:
        assert schema["additionalProperties"] is False, where
        assert set(schema["properties"]) - {"global"} == set(values), where
        for name, value in values.items():
            if schema["properties"][name].get("properties"):
                agree(schema["properties"][name], value, f"{where}.{name}")

    agree(json.loads((CHART / "values.schema.json").read_text()), VALUES)


def test_the_chart_is_of_this_version_and_brings_the_alerts_and_dashboards() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    rules = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["rule_files"]
    for file in rules:
        assert (CHART / "files" / file).resolve() == DEPLOY / file
    assert {file.name for file in (CHART / "files").glob("*.yml")} == set(rules)
    assert (CHART / "files/dashboards").resolve() == DEPLOY / "grafana/dashboards"


def test_the_command_for_alerts_makes_a_rule_of_them() -> None:
    page = (DEPLOY.parent / "docs/install.md").read_text()
    (command,) = re.findall(r"^(\(printf .*PrometheusRule.*\)) \|", page, re.M)
    done = subprocess.run(["sh", "-c", command], cwd=DEPLOY, capture_output=True, text=True, timeout=90)
    made = yaml.safe_load(done.stdout)
    assert (made["kind"], made["metadata"]) == ("PrometheusRule", {"name": "trunkline"})
    assert made["spec"] == yaml.safe_load((DEPLOY / "alerts.yml").read_text())

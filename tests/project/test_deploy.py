"""deploy/: all that it names exists, in the code, in the repository and within itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import click
import pytest
import yaml
from harness.redis_server import free_port
from harness.redis_users import documented
from prometheus_client import Counter, Gauge, Histogram

from gateway.cli import COMMANDS, cli
from gateway.config import Settings
from gateway.core.errors import GatewayError
from gateway.http import operations
from gateway.metering import Metrics
from gateway.routing.policies.api import Reason
from gateway.targets.engines import FIELDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
RULES = [r for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for r in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/trunkline.json").read_text())
ROWS: list[dict[str, Any]] = [each for each in DASHBOARD["panels"] if each["type"] == "row"]
PANELS: list[dict[str, Any]] = [each for each in DASHBOARD["panels"] if each["type"] != "row"]
FILES = sorted(file for file in DEPLOY.rglob("*") if file.is_file() and file.name != ".env")
TEXTS = {file: file.read_text() for file in FILES}
INSTALL = "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "docs/install.md").read_text(), re.S))

VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?:(:[-?])([^}]*))?\}")
PINNED = re.compile(r"[\w./-]+:v?\d+\.[\w.-]+")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M))
    return [(line.split()[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


DOCKERFILE = instructions()
FINAL = DOCKERFILE[max(i for i, (name, _) in enumerate(DOCKERFILE) if name == "FROM") :]
IMAGE_ENV = dict(word.split("=", 1) for name, rest in FINAL if name == "ENV" for word in shlex.split(rest))


def only(name: str, of: list[tuple[str, str]] = FINAL) -> str:
    (found,) = [rest for instruction, rest in of if instruction == name]
    return found


def substituted(value: Any, environment: dict[str, str]) -> str:
    """A value of compose.yaml as Compose would fill it in."""

    def fill(match: re.Match[str]) -> str:
        if found := environment.get(match[1]):
            return found
        assert match[2] != ":?", f"{match[1]} must be set"
        return match[3] or ""

    return VARIABLE.sub(fill, str(value))


def mounts(service: str) -> dict[str, str]:
    """By path in the container: the named volume or the file on the host."""
    return {path: source for source, path, *_ in (text.split(":") for text in SERVICES[service].get("volumes", ()))}


def option(service: str, name: str) -> str | None:
    """An option's value in a service's command or script, given as `--name value` or `--name=value`."""
    words = [word for text in SERVICES[service]["command"] for word in re.split(r"[=\s]+", text)]
    return words[words.index(name) + 1] if name in words else None


# The image


@pytest.mark.parametrize(
    "image",
    [rest.split()[0] for name, rest in DOCKERFILE if name == "FROM"]
    + [service["image"] for service in SERVICES.values() if "build" not in service],
)
def test_images_are_pinned_to_a_version(image: str) -> None:
    assert PINNED.fullmatch(image), image


def test_what_the_image_copies_exists_and_is_let_into_the_build_context() -> None:
    rules = [line for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n") if line and line[0] != "#"]
    copied = [rest.split()[:-1] for name, rest in DOCKERFILE if name == "COPY" and not rest.startswith("--from")]
    for source in (ROOT / name for names in copied for name in names):
        assert source.exists(), source
        for file in [source] if source.is_file() else source.rglob("*.py"):
            assert is_sent(file.relative_to(ROOT), rules), file
    assert not is_sent(Path("deploy/.env"), rules)
    assert not is_sent(Path("gateway/__pycache__/app.cpython-311.pyc"), rules)


def is_sent(file: Path, rules: list[str]) -> bool:
    """Whether .dockerignore lets a file through: the last rule for it or for a folder it is in decides."""
    sent = True
    for rule in rules:
        pattern = re.escape(rule.removeprefix("!")).replace(r"\[", "[").replace(r"\]", "]")
        pattern = pattern.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, str(place)) for place in (file, *file.parents)):
            sent = rule.startswith("!")
    return sent


def test_only_locked_packages_get_into_the_image() -> None:
    steps = [step for name, rest in DOCKERFILE if name == "RUN" for step in rest.split("&&")]
    steps = [step for step in steps if re.match(r"\s*pip ", step)]
    assert steps
    for step in steps:
        assert {"--require-hashes", "--no-index", "check"} & set(step.split()), step
    for file in re.findall(r"-r (\S+)", " ".join(steps)):
        for requirement in re.sub(r" *\\\n *", " ", (ROOT / file).read_text()).splitlines():
            assert requirement.startswith("#") or re.match(r"[\w.-]+==\S+ .*--hash=sha256:", requirement), requirement


def test_the_wheel_is_built_by_what_the_project_names_in_the_versions_of_the_developers() -> None:
    pins = re.compile(r"^([\w.-]+==\S+)", re.M)
    build = set(pins.findall((DEPLOY / "build-requirements.txt").read_text()))
    assert set(PYPROJECT["build-system"]["requires"]) <= build
    assert build <= set(pins.findall((ROOT / "requirements/dev.txt").read_text()))


def test_the_image_runs_the_console_script_itself_and_not_as_root() -> None:
    (script,) = json.loads(only("ENTRYPOINT"))  # not JSON: a shell would be process 1 and keep SIGTERM to itself
    assert script in PYPROJECT["project"]["scripts"]
    (command,) = json.loads(only("CMD"))
    assert command in COMMANDS
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", only("USER"))
    assert only("STOPSIGNAL") == "SIGTERM"


def test_the_image_listens_on_the_default_port_and_writes_into_its_volume() -> None:
    assert int(only("EXPOSE")) == Settings().port
    settings = Settings.read(IMAGE_ENV)
    assert settings.host == "0.0.0.0"
    assert str(settings.state_path.parent) == only("VOLUME") == only("WORKDIR") == mount_of_state()
    assert settings.routing in mounts("gateway")


def mount_of_state() -> str:
    (path,) = [path for path, source in mounts("gateway").items() if source in COMPOSE["volumes"]]
    return path


class Health(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("status", "good"), [(200, True), (503, False), (None, False)])
def test_the_health_check_says_whether_the_gateway_answers(status: int | None, good: bool) -> None:
    assert "/health" in {route.path for route in operations.router(None, None).routes}  # type: ignore[arg-type]
    python, *arguments = json.loads(only("HEALTHCHECK").partition(" CMD ")[2])
    assert python == "python"
    with ThreadingHTTPServer(("127.0.0.1", 0), Health) as server:
        port = free_port() if status is None else server.server_port
        server.RequestHandlerClass = type("Answer", (Health,), {"status": status})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        environment = {**os.environ, "TRUNKLINE_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, timeout=90)
        server.shutdown()
        thread.join()
    assert (done.returncode == 0) is good


# Settings and commands


def test_every_setting_exists() -> None:
    known = {f"TRUNKLINE_{field.upper()}" for field in Settings.__struct_fields__} - {"TRUNKLINE_LAUNCHED"}
    named = {name for text in (*TEXTS.values(), INSTALL) for name in re.findall(r"TRUNKLINE_[A-Z_]*[A-Z]", text)}
    assert named
    assert named <= known


def command_lines() -> Iterator[list[str]]:
    for text in (*TEXTS.values(), INSTALL):
        for line in re.findall(rf"\btrunkline ((?:{'|'.join(COMMANDS)})\b[^\n`]*)", text):
            yield [word for word in shlex.split(line, comments=True) if word != "..."]


@pytest.mark.parametrize("words", list(command_lines()), ids=" ".join)
def test_every_command_line_is_one_that_the_command_understands(words: list[str]) -> None:
    command: click.Command = cli
    parent = None
    while isinstance(command, click.Group) and words:
        parent = click.Context(command, parent, info_name=command.name)
        found = command.get_command(parent, words[0])
        assert found is not None, words
        command, words = found, words[1:]
    if words or not isinstance(command, click.Group):
        command.make_context(command.name, list(words), parent).close()


def test_the_services_environment_makes_settings_that_can_be_used() -> None:
    settings, admin = settings_of("gateway"), settings_of("admin")
    assert settings.pepper_versions()[1] == admin.pepper_versions()[1] == b"a"
    assert settings.workers == Settings().workers
    assert settings.redis_url == "redis://gateway:one@redis:6379/0"
    assert admin.redis_url == "redis://admin:two@redis:6379/0"
    assert admin.port == admin.admin_port, "the image's health check asks there"
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > settings.drain_accept + settings.grace + 8


MADE = {"TRUNKLINE_PEPPERS": "1:a", "REDIS_GATEWAY_PASSWORD": "one", "REDIS_ADMIN_PASSWORD": "two"}
"""What has no default."""


def settings_of(service: str) -> Settings:
    return Settings.read({**IMAGE_ENV, **{k: substituted(v, MADE) for k, v in environment(service).items()}})


def environment(service: str) -> dict[str, str]:
    found: dict[str, str] = SERVICES[service].get("environment", {})
    return found


def test_the_example_of_env_holds_every_variable_and_no_other() -> None:
    example = (DEPLOY / ".env.example").read_text()
    used = {match[1]: match[3] or "" for match in VARIABLE.finditer((DEPLOY / "compose.yaml").read_text())}
    offered = dict(re.findall(r"^#?(\w+)=(.*)$", example, re.M))
    assert set(offered) == set(used)
    for name, default in offered.items():
        assert name in MADE or default == used[name], name
    ignored = (DEPLOY / ".gitignore").read_text().split()
    assert ".env" in ignored


# compose.yaml


KNOWN_KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "init", "logging",
    "networks", "ports", "profiles", "read_only", "restart", "security_opt", "shm_size", "stop_grace_period", "tmpfs",
    "ulimits", "user", "volumes",
}  # fmt: skip


def test_compose_uses_keys_of_the_specification() -> None:
    assert {key for key in COMPOSE if not key.startswith("x-")} <= {"name", "services", "networks", "volumes"}
    for name, service in SERVICES.items():
        assert set(service) <= KNOWN_KEYS, name
        assert "image" in service, name
        assert service["restart"] == "unless-stopped", name
        if "healthcheck" in service:
            assert set(service["healthcheck"]) <= {"test", "interval", "timeout", "retries", "start_period"}, name
            assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL"), name


def test_dependencies_are_services_that_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in SERVICES, name
            assert "profiles" not in SERVICES[other], f"{name} could not start without the profile"
            assert wanted == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other] or "build" in SERVICES[other], other


def test_everything_mounted_exists() -> None:
    named = set()
    for name in SERVICES:
        for source in mounts(name).values():
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                named.add(source)
    assert named == set(COMPOSE["volumes"])


def test_redis_keeps_the_keys() -> None:
    assert option("redis", "--appendonly") == "yes"
    assert option("redis", "--maxmemory-policy") == "noeviction"
    assert "/data" in mounts("redis")


def test_redis_has_the_users_of_the_security_page_and_a_network_of_its_own() -> None:
    first, *users = (DEPLOY / "redis-users.acl").read_text().splitlines()
    assert first == "user default reset resetchannels on nopass +ping", "health checks have no password"
    begin = "user {0} reset resetchannels on >{1}_PASSWORD "
    roles = documented()
    assert users == [begin.format(role, role.upper()) + " ".join(roles[role]) for role in ("gateway", "admin")]
    script = SERVICES["redis"]["command"][-1]
    for name in environment("redis"):
        assert f"s/>{name}/>$${name}/" in script
        assert environment("redis")[name] == f"${{REDIS_{name}:?set it in .env, see .env.example}}"
    assert option("redis", "--aclfile") in script
    assert COMPOSE["networks"]["redis"] == {"internal": True}
    there = {name for name, service in SERVICES.items() if "redis" in service.get("networks", ())}
    assert there == {"redis", "gateway", "admin"}
    assert "ports" not in SERVICES["redis"]


def test_gateways_are_many_behind_one_address() -> None:
    assert SERVICES["gateway"]["deploy"]["replicas"] == 2
    assert "ports" not in SERVICES["gateway"], "two could not have the same one"
    balancer = (DEPLOY / mounts("balancer")["/etc/caddy/Caddyfile"]).read_text()
    assert re.findall(r"dynamic a (\S+) (\d+)", balancer) == [("gateway", str(Settings().port))]
    assert re.findall(r"^:(\d+) \{", balancer, re.M) == [str(listens()["balancer"])]
    assert set(re.findall(r"respond (\S+) 404", balancer)) == {"/metrics", "/ready"}
    assert settings_of("gateway").trusted_proxies
    job = next(job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "trunkline")
    assert [(found["names"], found["port"]) for found in job["dns_sd_configs"]] == [(["gateway"], Settings().port)]


def test_caddy_accepts_the_file() -> None:
    if shutil.which("caddy") is None:
        pytest.skip("no caddy on the PATH")
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", DEPLOY / "Caddyfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr


def listens() -> dict[str, int]:
    """On which port each service answers, inside."""
    fixed = {"redis": 6379, "prometheus": 9090, "grafana": 3000, "vllm": 8000}  # their own defaults
    fixed |= {"balancer": 8080, "open-webui": 8080}
    ours = {"gateway": Settings().port, "admin": settings_of("admin").admin_port}
    return {**fixed, **ours, "tgi": int(option("tgi", "--port") or 0)}


def test_every_address_is_a_service_and_its_port() -> None:
    table = yaml.safe_load((DEPLOY / "routing.yaml").read_text())
    urls = [t["url"] for r in table["routes"].values() for tier in ("targets", "fallback") for t in r[tier]]
    urls += [str(settings_of(name).redis_url) for name in ("gateway", "admin")]
    urls += [datasource()["url"], environment("open-webui")["OPENAI_API_BASE_URL"]]
    scraped = [
        target for job in PROMETHEUS["scrape_configs"] for c in job.get("static_configs", ()) for target in c["targets"]
    ]
    urls += [f"http://{target}" for target in scraped if not target.startswith("localhost:")]
    for url in urls:
        parts = urlsplit(url)
        assert parts.hostname in SERVICES, url
        assert parts.port == listens()[parts.hostname], url
    for name, service in SERVICES.items():
        for published in service.get("ports", ()):
            address, _, port = substituted(published, {}).rsplit(":", 2)
            assert address == "127.0.0.1", f"{name} is open to the network"
            assert int(port) == listens()[name], published
        for port in re.findall(r"http://127\.0\.0\.1:(\d+)", " ".join(service.get("healthcheck", {}).get("test", ()))):
            assert int(port) == listens()[name]


# routing.yaml


TABLES = [file for file in FILES if file.name == "routing.yaml" and "templates" not in file.parts]


@pytest.mark.parametrize("table", TABLES, ids=lambda file: file.parent.name)
def test_the_routing_table_passes_the_check(table: Path) -> None:
    command = [sys.executable, "-P", "-m", "gateway", "check", str(table), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=90)
    said = json.loads(done.stdout)
    assert said["ok"], done.stderr
    assert said["mistakes"] == []


def test_the_model_servers_of_the_table_are_those_of_compose() -> None:
    text = (DEPLOY / "routing.yaml").read_text()
    (route,) = yaml.safe_load(text)["routes"].values()
    (vllm,), (tgi,) = route["targets"], route["fallback"]
    assert (vllm["backend"], tgi["backend"]) == ("vllm", "tgi")
    assert vllm["model"] == SERVICES["vllm"]["command"][0]
    assert tgi["model"] == option("tgi", "--model-id")
    for target, server, name in ((vllm, "vllm", "VLLM_API_KEY"), (tgi, "tgi", "API_KEY")):
        key = VARIABLE.fullmatch(target["api_key"])
        assert key is not None
        assert environment("gateway")[key[1]] == environment(server)[name], "both ends must have the same key"
    assert substituted(environment("tgi")["API_KEY"], {}), "TGI takes an empty key for a key"
    for server in ("vllm", "tgi"):
        assert SERVICES[server]["profiles"] == [server]
        (device,) = SERVICES[server]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


# Prometheus and Grafana


def test_prometheus_and_grafana_find_their_files() -> None:
    inside = {path: DEPLOY / source for path, source in mounts("prometheus").items() if source.startswith(".")}
    config = option("prometheus", "--config.file") or ""
    assert inside[config] == DEPLOY / "prometheus.yml"
    for rules in PROMETHEUS["rule_files"]:
        assert inside[str(Path(config).parent / rules)].is_file()
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/trunkline.yaml").read_text())["providers"]
    folder = DEPLOY / mounts("grafana")[provider["options"]["path"]]
    home = Path(environment("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (str(home.parent), [home.name]) == (provider["options"]["path"], [file.name for file in folder.iterdir()])
    assert (DEPLOY / mounts("grafana")["/etc/grafana/provisioning"] / "datasources/prometheus.yaml").is_file()


def test_the_gateway_is_scraped_every_five_seconds() -> None:
    (job,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "trunkline"]
    assert job["scrape_interval"] == "5s" == datasource()["jsonData"]["timeInterval"]
    assert job.get("metrics_path", "/metrics") in {route.path for route in operations.router(None, None).routes}  # type: ignore[arg-type]


def datasource() -> dict[str, Any]:
    (found,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    return dict(found)


BUILT_IN_PANELS = {"stat", "timeseries"}


def test_panels_are_complete() -> None:
    seen: set[tuple[int, int]] = set()
    for row in ROWS:
        assert not row["collapsed"], f"{row['title']}: the panels that follow would not be in it"
        assert (row["gridPos"]["x"], row["gridPos"]["w"], row["gridPos"]["h"]) == (0, 24, 1), row["title"]
        seen |= {(x, row["gridPos"]["y"]) for x in range(24)}
    for panel in PANELS:
        title = panel["title"]
        assert panel["type"] in BUILT_IN_PANELS, title
        assert len(panel["description"]) > 40, f"{title}: say what a bad value means"
        assert panel["fieldConfig"]["defaults"]["unit"], title
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24, title
        assert not cells & seen, f"{title} lies over another panel"
        seen |= cells
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": datasource()["uid"]}, title
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


class Selector(NamedTuple):
    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    function: str


class Query(NamedTuple):
    selectors: list[Selector]
    labels: set[str]
    """By which the result is grouped."""


TOKEN = re.compile(
    r"""\s*(?:(?P<string>"[^"]*")|(?P<range>\[(?:\d+[smhd]|\$__rate_interval)\])|(?P<number>\d+[smhd]|[\d.]+)"""
    r"""|(?P<name>[A-Za-z_:][\w:]*)|(?P<symbol>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){},]))"""
)
AGGREGATIONS = {"sum", "count", "max", "min", "avg"}
FUNCTIONS = {"rate", "increase", "histogram_quantile", "vector", "abs"}
GROUPINGS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "offset", "bool"}
PAIRS = {")": "(", "}": "{"}


def parse(text: str) -> Query:
    """Roughly PromQL: every token known, parentheses balanced, every function known, every selector found."""
    tokens, end = [], 0
    while text[end:].strip():
        match = TOKEN.match(text, end)
        assert match, f"not PromQL from here: {text[end:]!r}"
        tokens.append((match.lastgroup, match[match.lastgroup or 0]))
        end = match.end()
    query, opened, i = Query([], set()), [], 0
    tokens.append((None, ""))
    while tokens[i][0] is not None:
        kind, word = tokens[i]
        after = tokens[i + 1][1]
        if word in ("(", "{"):
            opened.append((word, tokens[i - 1][1] if i and tokens[i - 1][0] == "name" else ""))
        elif word in PAIRS:
            assert opened and opened.pop()[0] == PAIRS[word], f"unbalanced {word!r} in {text!r}"
        elif kind == "name" and word in GROUPINGS:
            assert after == "(", text
            stop = next(j for j in range(i, len(tokens)) if tokens[j][1] == ")")
            query.labels.update(name for kind, name in tokens[i + 2 : stop] if kind == "name")
            i = stop
        elif kind == "name" and (after == "(" or (word in AGGREGATIONS and after in GROUPINGS)):
            assert word in AGGREGATIONS | FUNCTIONS | OPERATORS, f"unknown function {word!r}"
        elif kind == "name" and word not in OPERATORS:
            matchers = ()
            if after == "{":
                stop = next(j for j in range(i, len(tokens)) if tokens[j][1] == "}")
                inner = [word for _, word in tokens[i + 2 : stop] if word != ","]
                assert len(inner) % 3 == 0, text
                matchers = tuple((a, b, c.strip('"')) for a, b, c in zip(*[iter(inner)] * 3, strict=True))
                i = stop
            function = next((name for _, name in reversed(opened) if name in FUNCTIONS), "")
            query.selectors.append(Selector(word, matchers, function))
        i += 1
    assert not opened, f"unbalanced {opened[-1][0]!r} in {text!r}"
    return query


def exported() -> dict[str, set[str]]:
    """Every series name of the gateway with its labels."""
    series: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            name, labels = metric._name, set(metric._labelnames)
            if isinstance(metric, Histogram):
                series |= {f"{name}_bucket": {*labels, "le"}, f"{name}_sum": labels, f"{name}_count": labels}
            else:
                series[name + "_total" * isinstance(metric, Counter)] = labels
    return series


EXPORTED = exported()
GAUGES = {metric._name for metric in vars(Metrics()).values() if isinstance(metric, Gauge)}
SCRAPED = {"job", "instance"}
OF_PROMETHEUS = {"up", "scrape_samples_scraped"}
"""What Prometheus itself says of each scrape."""


def labels_of(metric: str) -> set[str]:
    """Those of a series of the gateway's, of Prometheus', or of a rule that is recorded."""
    if metric in RECORDED:
        return parse(RECORDED[metric]).labels
    return SCRAPED | (set() if metric in OF_PROMETHEUS else EXPORTED[metric])


def error_types(kind: type[GatewayError] = GatewayError) -> set[str]:
    return {kind.error_type}.union(*(error_types(below) for below in kind.__subclasses__()))


def label_values(metric: str, label: str) -> set[str] | None:
    """The values that a label of a metric can have, where the code says so."""
    listed = re.search(r"outcome \(([\w, ]+)\)", Metrics().requests._documentation)
    assert listed
    outcomes = {
        "trunkline_upstream_attempts_total": {"ok", *error_types()},
        "trunkline_config_reloads_total": {"applied", "refused"},
        "trunkline_shadow_calls_total": {"same", "other", "dropped"},
        "trunkline_requests_total": set(listed[1].split(", ")),
    }
    return {
        "error_type": {"", *error_types()},
        "outcome": outcomes.get(metric),
        "reason": set(get_args(Reason)) if metric == "trunkline_route_decisions_total" else None,
        "field": set(FIELDS),
        "direction": {"in", "out"},
        "job": {job["job_name"] for job in PROMETHEUS["scrape_configs"]},
    }.get(label)


def expressions() -> list[Any]:
    panels = [
        pytest.param(target["expr"], id=f"panel {panel['title']} {target['legendFormat']}".strip())
        for panel in PANELS
        for target in panel["targets"]
    ]
    alerts = [pytest.param(rule["expr"], id=f"alert {rule['alert']}") for rule in ALERTS]
    return [*panels, *alerts, *(pytest.param(expr, id=f"rule {name}") for name, expr in RECORDED.items())]


@pytest.mark.parametrize("expr", expressions())
def test_expressions_ask_for_metrics_and_labels_that_the_gateway_has(expr: str) -> None:
    query = parse(expr)
    assert query.selectors
    for metric, matchers, function in query.selectors:
        labels = labels_of(metric)
        assert query.labels <= labels, f"{metric} is grouped by what it has not"
        assert not (function in ("rate", "increase") and metric in GAUGES), f"{metric} is a gauge"
        one_bucket = any(label == "le" for label, *_ in matchers)
        assert ("histogram_quantile" in expr or one_bucket) == metric.endswith("_bucket"), metric
        for label, operator, value in matchers:
            assert label in labels, f"{metric} has no label {label!r}"
            if (values := label_values(metric, label)) is not None:
                good = any(re.fullmatch(value, known) for known in values) if "~" in operator else value in values
                assert good, f"{label}{operator}{value!r} never holds"
    assert "histogram_quantile" not in expr or "le" in query.labels


def test_the_dashboard_can_be_narrowed_to_routes() -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert variable["name"] == "route"
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
    assert asked and asked[2] in EXPORTED[asked[1]]
    for panel in PANELS:
        for target in panel["targets"]:
            for metric, matchers, _ in parse(target["expr"]).selectors:
                narrowed = ("route", "=~", "$route") in matchers
                assert narrowed == ("route" in EXPORTED[metric]), f"{panel['title']}: {metric}"


NOT_SHOWN = {
    "trunkline_cost_micros_total": "a matter of accounting: `trunkline usage`",
    "trunkline_target_out": "alerts tell of it, and `trunkline targets list` since when",
    "trunkline_target_warning": "an alert tells of it, and `trunkline targets list` what it is",
    "trunkline_config_loaded_timestamp_seconds": "'Gateways by routing table' shows changes",
}


def test_every_metric_of_routing_is_shown() -> None:
    shown = {each.metric for panel in PANELS for target in panel["targets"] for each in parse(target["expr"]).selectors}
    of_routing = re.compile(
        "trunkline_(route_|fallbacks|queue_|prompt_|cached_|target_|load_|engine_|shadow_|config_|cost_)"
    )
    for name in EXPORTED:
        kind = re.sub("_(bucket|sum|count)$", "", name)
        if of_routing.match(name) and name not in NOT_SHOWN:
            assert shown & {kind, f"{kind}_bucket"}, f"{name}: no panel"


def test_legends_and_colours_name_what_the_expressions_return() -> None:
    for panel in PANELS:
        returned: set[str] = set()
        for target in panel["targets"]:
            query = parse(target["expr"])
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown == query.labels - {"le"}, panel["title"]
            for label in shown:
                returned |= label_values(query.selectors[0].metric, label) or set()
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["options"] in returned, panel["title"]


def test_alerts_say_how_bad_they_are_in_labels_they_have() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        query = parse(rule["expr"])
        recorded = [labels_of(each.metric) for each in query.selectors if each.metric in RECORDED]
        labels = query.labels.union(*recorded) | (SCRAPED if rule["expr"].startswith("up") else set())
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels, rule["alert"]
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)


def test_every_alert_has_its_runbook() -> None:
    """Under its own name, with what it means, how to look, and what to do."""
    text = (ROOT / "docs/runbooks.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert list(sections) == [rule["alert"] for rule in ALERTS]
    for rule in ALERTS:
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"
        assert len(sections[rule["alert"]].split()) > 25, rule["alert"]


# All of it


def test_the_readme_names_every_file() -> None:
    text = (DEPLOY / "README.md").read_text()
    for file in FILES:
        name = str(file.relative_to(DEPLOY))
        known = name in ("README.md", ".gitignore") or any(f"`{part}" in text for part in (name, *folders(name)))
        assert known, name


def folders(name: str) -> list[str]:
    return [f"{folder}/" for folder in Path(name).parents if str(folder) != "."]


def test_promtool_accepts_configuration_and_alerts() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on the PATH")
    done = subprocess.run(["promtool", "check", "config", DEPLOY / "prometheus.yml"], capture_output=True, timeout=90)
    assert done.returncode == 0, done.stdout


def test_promtool_accepts_what_panels_ask(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on the PATH")
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    rules = [{"record": f"panel:{i}", "expr": expr.replace("$__rate_interval", "1m")} for i, expr in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr + done.stdout


def test_docker_compose_accepts_the_file() -> None:
    compose = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*compose, "version"], capture_output=True, timeout=90).returncode:
        pytest.skip("no docker compose here")
    command = [*compose, "-f", str(DEPLOY / "compose.yaml"), "--profile", "*", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "TRUNKLINE_PEPPERS": "1:a"}, timeout=90)
    assert done.returncode == 0, done.stderr

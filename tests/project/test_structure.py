"""The shape of the code: floors, names, docstrings, public surface, one version, nothing done at import."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from harness.for_each import for_each

import gateway

ROOT = Path(__file__).parents[2]
MODULES = sorted(file for package in ("gateway", "backends") for file in (ROOT / package).rglob("*.py"))
PUBLIC = {
    "gateway.admin": ["Registrar", "public"],
    "gateway.answers": ["AnswerEvents", "Answers", "Cached", "Terms"],
    "gateway.app": ["Gateway", "from_environment"],
    "gateway.auth": [
        "AdminKeys",
        "Caller",
        "Keyring",
        "Network",
        "Throttle",
        "authorize",
        "may_use",
        "mint",
        "networks",
        "parse",
        "token",
    ],
    "gateway.cli": ["COMMANDS", "cli"],
    "gateway.config": [
        "FallbackSpec",
        "Launch",
        "Mistake",
        "Mistakes",
        "Retry",
        "RouteSpec",
        "Settings",
        "TLSSpec",
        "Table",
        "TargetSpec",
        "Timeouts",
        "load_table",
        "parse_table",
        "table_schema",
    ],
    "gateway.dialects": ["Dialect", "FORMATS", "Parsing", "Translating", "Writer", "translated"],
    "gateway.limits": ["Admission", "AdmissionEvents", "Estimator", "Lease", "Rules"],
    "gateway.metering": ["CallRecord", "Lines", "Meter", "Metrics", "exposition"],
    "gateway.routing": ["Attempt", "Attempts", "Builder", "Gossip", "Route", "Routes", "TargetSlots"],
    "gateway.routing.policies": [
        "Candidate",
        "Gossips",
        "Inherits",
        "Learns",
        "Note",
        "Picker",
        "Policy",
        "Prompt",
        "Reason",
        "Remembers",
        "Score",
        "Scorer",
        "cheapest",
        "ripe",
    ],
    "gateway.store": [
        "AnyRecord",
        "Batches",
        "Board",
        "Conflict",
        "DEAD_SECONDS",
        "FRESH_SECONDS",
        "Homes",
        "KINDS",
        "KeptValues",
        "LEASE_SECONDS",
        "Ledger",
        "Limits",
        "NotAllowed",
        "PLURALS",
        "QuotaReached",
        "R",
        "RENEW_SECONDS",
        "Records",
        "RedisSeen",
        "Store",
        "StoreDown",
        "Taken",
        "examine",
        "examine_cache",
        "examine_redis",
        "open_answers",
        "open_store",
        "prepare_state",
        "shown",
    ],
    "gateway.store.local": ["LocalStore", "database_of", "prepare"],
    "gateway.targets": ["Target"],
    "gateway.upstream": ["AnswerLimits", "Exchange", "Forwarder", "Origin", "Pool", "reader_for", "retry_after"],
}
"""What packages export. Those that are not here export nothing: their modules are imported one by one."""
PACKAGES = sorted(
    ".".join(file.parent.relative_to(ROOT).parts)
    for file in MODULES
    if file.name == "__init__.py" and file.parts[-2] != "gateway"
)
NO_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc", "service", "base"}


by_module = for_each("file", MODULES)


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_a_module_imports_lower_floors_only() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_the_public_names_of_packages_are_pinned(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(getattr(module, "__all__", [])) == PUBLIC.get(name, [])
    assert all(hasattr(module, exported) for exported in PUBLIC.get(name, []))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_does_nothing_but_export(name: str) -> None:
    """Code that stands in `__init__` has no name of its own to be found by."""
    tree = ast.parse((ROOT / name.replace(".", "/") / "__init__.py").read_text())
    text, *statements = tree.body
    assert isinstance(text, ast.Expr)
    for statement in statements:
        exports = isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__"
        assert exports or isinstance(statement, ast.ImportFrom), ast.unparse(statement)


@by_module
def test_modules_are_named_after_what_they_are(file: Path) -> None:
    assert not NO_NAMES & set(file.relative_to(ROOT).with_suffix("").parts)


@by_module
def test_every_module_says_what_it_is_for(file: Path) -> None:
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert text and text.splitlines()[0].endswith((".", ":")), "a module begins with a sentence about its purpose"


@by_module
def test_packages_are_typed(file: Path) -> None:
    assert (ROOT / file.relative_to(ROOT).parts[0] / "py.typed").exists()


WATCH = """
import importlib, sys
WORK = ("socket.", "subprocess.", "os.system", "os.fork", "os.putenv", "os.mkdir", "_thread.start_new_thread")
seen = []
def watch(event, arguments):
    if event == "open":
        path = str(arguments[0])
        if not path.startswith({inside!r}) and not path.endswith((".py", ".pyc", ".so")):
            seen.append(path)
    elif event.startswith(WORK):
        seen.append(event)
for name in {others!r}:
    importlib.import_module(name)
sys.addaudithook(watch)
for name in {modules!r}:
    importlib.import_module(name)
print(seen)
"""


def foreign() -> list[str]:
    """What our modules import of other packages: how those behave at import is not ours."""
    found: set[str] = set()
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            found |= {name for name in names if name.partition(".")[0] not in ("gateway", "backends", "xllamacpp")}
    return sorted(found)


def test_importing_does_no_work() -> None:
    """No file, socket, thread or process; a script that lies beside its module is part of the code."""
    modules = [dotted(file) for file in MODULES if file.name != "__main__.py"]
    program = WATCH.format(inside=str(ROOT / "gateway"), others=foreign(), modules=modules)
    done = subprocess.run(
        [sys.executable, "-B", "-c", program], capture_output=True, text=True, cwd=ROOT
    )  # -B: no bytecode either
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_version_stands_in_one_place() -> None:
    assert version("trunkline") == gateway.__version__
    holders = [
        file
        for file in [*MODULES, ROOT / "pyproject.toml"]
        if f'"{gateway.__version__}"' in file.read_text() and "version" in file.read_text()
    ]
    assert [str(file.relative_to(ROOT)) for file in holders] == ["gateway/__init__.py"]


def test_our_adapters_are_declared_as_any_other() -> None:
    ours = {point.name: point.value for point in entry_points(group="trunkline.backends") if point.dist is not None}
    assert {"openai", "vllm", "tgi", "llamacpp"} <= ours.keys()
    for value in ours.values():
        module, _, name = value.partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert any(isinstance(node, ast.ClassDef) and node.name == name for node in tree.body)


def test_messages_are_told_under_the_name_of_their_package() -> None:
    """As docs/reference.md lists them."""
    found = {file: re.findall(r"getLogger\((.*)\)", file.read_text()) for file in MODULES}
    told = [(file.relative_to(ROOT).parts[1], name) for file, names in found.items() for name in names]
    assert len(told) > 20 and [(package, name) for package, name in told if name != f'"trunkline.{package}"'] == []


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


MOST_LINES, MOST_PARAMETERS = 60, 8


def functions(file: Path) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    tree = ast.parse(file.read_text())
    of = {child: node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(".".join(filter(None, (dotted(file), of.get(node), node.name))), node) for node in found]


def test_functions_can_be_seen_at_once() -> None:
    every = [each for file in MODULES for each in functions(file)]
    assert not [name for name, node in every if (node.end_lineno or 0) - node.lineno >= MOST_LINES]


def test_what_makes_an_object_can_be_remembered() -> None:
    every = [each for file in MODULES for each in functions(file) if each[1].name == "__init__"]
    sizes = {name: len(node.args.args) - 1 + len(node.args.kwonlyargs) for name, node in every}
    assert not [name for name, size in sizes.items() if size > MOST_PARAMETERS]

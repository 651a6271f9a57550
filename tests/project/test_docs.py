"""The documentation against the code: nothing undocumented, no command or link that does not work."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from backends import registry
from gateway.cli import COMMANDS
from gateway.config import Settings, load_table, parse_table, table_schema
from gateway.config.table import field_texts, parts

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "deploy").glob("*.md"),
    ROOT / ".github/CONTRIBUTING.md",
]


def test_the_reference_is_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "docs/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_reference_is_in_words() -> None:
    assert not re.search(r"typing\.|\btuple\[|\bdict\[|<class", REFERENCE)


@pytest.mark.parametrize("kind", [*parts(), Settings])
def test_every_key_and_setting_has_a_meaning(kind: type[msgspec.Struct]) -> None:
    texts = field_texts(kind)
    assert [field for field in kind.__struct_fields__ if not texts.get(field)] == []


def test_every_row_of_the_reference_says_something() -> None:
    rows = [line for line in REFERENCE.splitlines() if line.startswith("|")]
    assert rows
    assert [row for row in rows if re.search(r"\|\s*\|$", row)] == []


def test_the_schema_describes_every_key_and_states_its_default() -> None:
    for name, part in table_schema()["$defs"].items():
        for key, shown in part["properties"].items():
            assert shown["description"], f"{name}.{key}"
            assert key in part.get("required", ()) or "default" in shown, f"{name}.{key}"


def test_the_readme_names_every_command_backend_and_make_target_it_should() -> None:
    for command in ("demo", "serve", "check", "keys create"):
        assert f"trunkline {command}" in README or f"make {command}" in README
    for backend in registry.installed():
        assert f"`{backend}`" in README
    for command in COMMANDS:
        assert f"`trunkline {command}" in REFERENCE


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert target in targets, f"{page.name}: make {target}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_anchors_into_the_reference_exist() -> None:
    heads = {
        re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)", REFERENCE, re.M)
    }
    for anchor in re.findall(r"reference\.md#([a-z-]+)", README) + re.findall(r"\]\(#([a-z]+)\)", REFERENCE):
        assert anchor in heads


def test_the_routing_table_of_the_repository_is_right_also_when_its_examples_are_uncommented() -> None:
    text = (ROOT / "routing.yaml").read_text()
    load_table(ROOT / "routing.yaml")
    uncommented = re.sub(r"^  # ( *)(?=[a-z-])(?!Your )", r"  \1", text, flags=re.MULTILINE).replace("\n  #\n", "\n")
    from gateway.config import parse_table

    table, _ = parse_table(uncommented, environment={"VLLM_API_KEY": "x"})
    assert [target.backend for _, _, target in table.targets()] == ["llamacpp", "vllm", "vllm", "tgi"]


def test_every_dependency_is_argued() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["demo"]]
    wanted += [item for group in groups.values() for item in group if isinstance(item, str)]
    for requirement in wanted:
        name = re.match(r"[a-z0-9-]+", requirement)
        assert name is not None
        assert re.search(rf"\b{name[0]}\b", page), name[0]


def test_lock_files_hold_names_versions_and_hashes_only() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        for line in lock.read_text().splitlines():
            assert re.fullmatch(r"([a-z0-9.\[\],_-]+==\S+( ; .+)?|    --hash=sha256:[0-9a-f]{64})( \\)?|#.*|", line), (
                f"{lock.name}: {line}"
            )
            assert "://" not in line


def _tables() -> list[tuple[str, str]]:
    """The routing tables in the pages; `[...]` stands for what a page leaves out."""
    blocks = [
        (page.name, block) for page in PAGES for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)
    ]
    return [(name, block) for name, block in blocks if "routes:" in block and "[...]" not in block]


@pytest.mark.parametrize(("page", "block"), _tables())
def test_routing_tables_in_the_docs_are_good(page: str, block: str) -> None:
    table, found = parse_table(block, page, {"CLOUD_KEY": "secret"})
    assert table.routes and not found


def test_there_are_tables_in_the_docs() -> None:
    assert {page for page, _ in _tables()} >= {"routing.md"}

"""What a table means: references, aliases, places, tests, defaults."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gateway.config import Mistake, Mistakes, Table, load_table, parse_table

ROOT = Path(__file__).parents[4]


def table(text: str, environment: dict[str, str] | None = None) -> Table:
    parsed, warnings = parse_table(text, "t", environment or {})
    assert not warnings
    return parsed


def mistakes(text: str, environment: dict[str, str] | None = None) -> list[Mistake]:
    with pytest.raises(Mistakes) as caught:
        parse_table(text, "t", environment or {})
    return caught.value.found


def route(name: str, *aliases: str, url: str | None = None) -> str:
    listed = ", ".join(f'"{alias}"' for alias in aliases)
    target = f'{{name: t-{name}, backend: vllm, url: "{url or "http://" + name}"}}'
    return f"  {name}: {{aliases: [{listed}], targets: [{target}]}}\n"


def one(extra: str = "", *, url: str = "http://a", key: str = "") -> str:
    api_key = f", api_key: '{key}'" if key else ""
    return f"routes: {{one: {{targets: [{{name: a, backend: vllm, url: '{url}'{api_key}}}]{extra}}}}}\n"


def test_defaults_are_those_of_the_design() -> None:
    read = table(one())
    spec = read.routes["one"]
    assert msgspec.structs.astuple(spec.timeouts) == (2, 300, 120, 600)
    assert spec.retry.attempts == 2
    assert spec.targets[0].weight == 1.0 and spec.targets[0].model is None
    assert read.limits.default.rpm is None and read.limits.default.concurrency is None


def test_quantities_are_read() -> None:
    text = one(", timeouts: {connect: 250ms, idle: 2m}") + "limits: {default: {rpm: 2k, concurrency: 3}}\n"
    read = table(text + "bodies: {request: 1MiB, answer: 2048, event: 3MiB}")
    assert read.routes["one"].timeouts.connect == 0.25 and read.routes["one"].timeouts.idle == 120
    assert read.limits.default.rpm == 2000 and read.limits.default.concurrency == 3
    assert (read.bodies.request, read.bodies.answer, read.bodies.event) == (2**20, 2048, 3 * 2**20)


def test_servers_have_their_ways() -> None:
    assert [(each.finish, each.usage_event) for each in table(one()).routes["one"].targets] == [("strict", True)]
    text = one().replace("backend: vllm", "backend: vllm, finish: lenient, usage_event: false")
    assert [(each.finish, each.usage_event) for each in table(text).routes["one"].targets] == [("lenient", False)]
    for wrong in ("finish: lax", "finish: true", "usage_event: 1", "usage_event: never"):
        (mistake,) = mistakes(one().replace("backend: vllm", f"backend: vllm, {wrong}"))
        assert wrong.partition(":")[0] in str(mistake)


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    for reference, secret in (
        ("${KEY}", "from-environment"),
        ("${ABSENT:-}", None),
        ("${KEY:-}", "from-environment"),
        (f"${{file:{tmp_path}/key}}", "from-file"),
        (f"${{file:{tmp_path}/absent:-}}", None),
    ):
        read = table(one(key=reference), {"KEY": "from-environment"})
        assert read.routes["one"].targets[0].api_key == secret


def test_a_default_would_be_a_secret_in_clear() -> None:
    (mistake,) = mistakes(one(key="${ABSENT:-sk-123}"))
    assert "secret" in mistake.message and "sk-123" not in mistake.message


def test_references_may_be_part_of_other_texts() -> None:
    read = table(one(url="http://${HOST}:${PORT:-8000}"), {"HOST": "vllm-a"})
    assert read.routes["one"].targets[0].url == "http://vllm-a:8000"


@pytest.mark.parametrize("reference", ["${KEY}", "${file:/no/such/file}"])
def test_what_a_reference_needs_may_be_absent_while_checking(reference: str) -> None:
    """A table is checked in places that have no secrets; serving it then is another matter."""
    text = one(key=reference)
    parsed, (warning,) = parse_table(text, "t", {})
    assert warning.warning and "warning: " in str(warning)
    assert reference[2:-1].removeprefix("file:") in warning.message
    assert (warning.line, warning.column) == (1, text.index("'$") + 1)
    assert parsed.routes


@pytest.mark.parametrize("key", ["sk-123", "$KEY", "${}", "x${KEY}", "${KEY}x", "{KEY}"])
def test_a_secret_in_clear_is_refused(key: str) -> None:
    (mistake,) = mistakes(one(key=key), {"KEY": "k"})
    assert "${" in mistake.message and not mistake.warning


def test_aliases_lead_to_their_route_the_most_specific_first() -> None:
    index = table("routes:\n" + route("big", "gpt-4*", "gpt-4o-large") + route("small", "gpt-4o-*", "*")).names()
    for name, found in {
        "big": "big",
        "gpt-4": "big",
        "gpt-4o-large": "big",
        "gpt-4o-mini": "small",
        "anything": "small",
        "small": "small",
    }.items():
        assert index.find(name) == found


@pytest.mark.parametrize(
    ("first", "second"),
    [("gpt-*", "*mini"), ("a*", "*a"), ("a*b", "ab*"), ("*", "**")],
)
def test_globs_that_say_as_much_and_meet_are_ambiguous(first: str, second: str) -> None:
    text = "routes:\n" + route("one", first) + route("two", second)
    (mistake,) = mistakes(text)
    assert mistake.line == 3
    assert mistake.column == text.splitlines()[2].index(f'"{second}"') + 1
    assert repr(second) in mistake.message and "'one'" in mistake.message


@pytest.mark.parametrize(("first", "second"), [("a*", "b*"), ("gpt-*", "*"), ("a*c", "a*b"), ("aa*", "*b")])
def test_globs_that_differ_are_not(first: str, second: str) -> None:
    assert table("routes:\n" + route("one", first) + route("two", second))


def test_one_glob_cannot_mean_two_routes() -> None:
    assert mistakes("routes:\n" + route("one", "x*") + route("two", "x*"))[0].line == 3


def test_globs_of_one_route_may_meet() -> None:
    assert table("routes:\n" + route("one", "a*", "*a"))


@pytest.mark.parametrize("alias", ["two", "one", "both"])
def test_a_name_means_one_thing(alias: str) -> None:
    text = "routes:\n" + route("one", "both") + route("two", alias if alias != "two" else "one")
    (mistake,) = mistakes(text)
    assert "already" in mistake.message and mistake.line == 3


@pytest.mark.parametrize("second", ["http://a:8000", "http://a:8000/"])
def test_a_target_that_no_call_can_reach_is_a_mistake(second: str) -> None:
    text = f"""\
routes:
  one:
    targets:
      - {{name: a, backend: vllm, url: "http://a:8000", model: m}}
      - {{name: b, backend: vllm, url: "{second}", model: m}}
"""
    (mistake,) = mistakes(text)
    assert "'b'" in mistake.message and "'a'" in mistake.message and mistake.line == 5


def test_one_server_may_serve_other_models_and_routes() -> None:
    def target(name: str, model: str) -> str:
        return f"{{name: {name}, backend: vllm, url: 'http://a', model: {model}}}"

    one, two = f"{target('a', 'm')}, {target('b', 'n')}", target("c", "m")
    assert table(f"routes:\n  one: {{targets: [{one}]}}\n  two: {{targets: [{two}]}}\n")


def test_a_fallback_that_repeats_a_target_is_a_mistake() -> None:
    text = one(", fallback: [{name: b, backend: vllm, url: 'http://a'}]")
    (mistake,) = mistakes(text)
    assert "'b'" in mistake.message


def test_a_route_needs_targets() -> None:
    (mistake,) = mistakes("routes:\n  one: {targets: []}")
    assert "'one'" in mistake.message and mistake.line == 2


TESTS = one(", aliases: ['gpt-*']") + "tests:\n"


def test_tests_of_the_table_hold() -> None:
    good = "  - {ask: {model: gpt-4}, expect: {route: one}}\n  - {ask: {model: other}, expect: {}}\n"
    assert len(table(TESTS + good).tests) == 2


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("{ask: {model: other}, expect: {route: one}}", ["'other'", "no route", "'one'"]),
        ("{ask: {model: gpt-4}, expect: {}}", ["'gpt-4'", "route 'one'", "no route"]),
        ("{ask: {model: gpt-4}, expect: {route: two}}", ["'two'", "one"]),
        ("{ask: {}, expect: {}}", ["model"]),
        ("{ask: {model: x}}", ["expect"]),
    ],
)
def test_a_test_that_fails_is_a_mistake(test: str, said: list[str]) -> None:
    (mistake,) = mistakes(f"{TESTS}  - {{ask: {{model: gpt-4}}, expect: {{route: one}}}}\n  - {test}\n")
    assert mistake.line == 4
    for words in said:
        assert words in mistake.message


def test_the_table_of_this_repository_is_good() -> None:
    read, warnings = load_table(ROOT / "routing.yaml", {})
    assert read.tests and not warnings


def test_a_body_may_have_as_many_elements_as_a_long_conversation() -> None:
    table = "routes: {m: {targets: [{name: a, backend: openai, url: 'http://a'}]}}\nbodies: {elements: %s}\n"
    assert parse_table(table % "50k")[0].bodies.elements == 50_000
    with pytest.raises(Mistakes, match="expected at least 1000"):
        parse_table(table % "999")


def test_large_answers_together_may_hold_eight_of_the_largest_or_what_the_table_says() -> None:
    table = "routes: {m: {targets: [{name: a, backend: openai, url: 'http://a'}]}}\nbodies: %s\n"
    assert parse_table(table % "{}")[0].bodies.together == 8 * 64 * 1024**2
    assert parse_table(table % "{answer: 1MiB, event: 2MiB}")[0].bodies.together == 16 * 1024**2
    assert parse_table(table % "{answer: 1MiB, event: 1MiB, answers: 1MiB}")[0].bodies.together == 1024**2
    with pytest.raises(Mistakes, match="less than one may: 'event', 67108864"):
        parse_table(table % "{answer: 1MiB, answers: 2MiB}")

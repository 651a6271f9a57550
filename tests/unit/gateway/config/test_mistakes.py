"""Every mistake is reported at its place, with the value and what is allowed; all of them at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Mistake, Mistakes, load_table, located, parse_table

GOOD = """\
routes:
  one:
    aliases: [uno, "u*"]
    targets:
      - {name: a, backend: vllm, url: "http://a:8000"}
      - name: b
        backend: tgi
        url: http://b:80
        weight: 2
    timeouts: {connect: 1s}
limits:
  default: {rpm: 10}
"""


def mistakes(text: str, environment: dict[str, str] | None = None) -> list[Mistake]:
    with pytest.raises(Mistakes) as caught:
        parse_table(text, "table.yaml", environment or {})
    assert str(caught.value).splitlines() == [str(mistake) for mistake in caught.value.found]
    return caught.value.found


def only(text: str) -> Mistake:
    found = mistakes(text)
    assert len(found) == 1, found
    return found[0]


def place(text: str, what: str) -> tuple[int, int]:
    """The line and column, counted from one, of the last occurrence."""
    before = text[: text.rindex(what)]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def test_the_good_table_is_good() -> None:
    table, warnings = parse_table(GOOD, "table.yaml", {})
    assert list(table.routes) == ["one"] and not warnings


def test_a_former_name_works_and_is_warned_of() -> None:
    text = changed("{connect: 1s}", "{connect: 1s, first_byte: 7s}")
    table, (warning,) = parse_table(text, "table.yaml", {})
    assert table.routes["one"].timeouts.first_output == 7.0
    assert warning.warning and not warning.needed and (warning.line, warning.column) == place(text, "first_byte")
    assert "'first_byte'" in warning.message and "'first_output'" in warning.message


def test_both_names_of_a_key_are_one_too_many() -> None:
    for names in (("first_byte", "first_output"), ("first_output", "first_byte")):
        text = changed("{connect: 1s}", "{" + ", ".join(f"{name}: 7s" for name in names) + "}")
        found = [mistake for mistake in mistakes(text) if not mistake.warning]
        assert len(found) == 1 and place(text, names[1]) == (found[0].line, found[0].column), names
        assert "'first_output'" in found[0].message


CASES = [
    # what is changed, into what, where the report points, what it says
    ("backend: tgi", "backend: tgii", "backend: tgii", ["'tgii'", "vllm", "tgi", "openai", "llamacpp"]),
    ("aliases:", "alias:", "alias:", ["'alias'", "aliases", "targets", "fallback", "policy"]),
    ("limits:", "limit:", "limit:", ["'limit'", "limits", "routes"]),
    ("weight: 2", "weight: heavy", "heavy", ["'heavy'", "number"]),
    ("weight: 2", "weight: 0", "0", ["'0'", "above 0"]),
    ("weight: 2", "weight: 1001", "1001", ["'1001'", "1000"]),
    ("weight: 2", "weight: [2]", "[2]", ["list", "number"]),
    ("weight: 2", "weight: {a: 2}", "{a: 2}", ["mapping", "number"]),
    ("weight: 2", "weight: .nan", ".nan", ["'.nan'"]),
    ("connect: 1s", "connect: 1", "1}", ["'1'", "duration", "2s"]),
    ("connect: 1s", "connect: fast", "fast", ["'fast'", "duration"]),
    ("{connect: 1s}", "{idle: -1s}", "-1s", ["'-1s'", "duration"]),
    ("{connect: 1s}", "30s", "30s", ["mapping", "'30s'"]),
    ("rpm: 10", "rpm: 1.5", "1.5", ["'1.5'", "whole number"]),
    ("rpm: 10", "rpm: many", "many", ["'many'", "200k"]),
    ("rpm: 10", "rpm: -3", "-3", ["'-3'"]),
    ("rpm: 10", "rpm: 0", "0}", ["'0'", "above 0"]),
    ("rpm: 10", "concurrency: 0", "0}", ["'0'", "above 0"]),
    ("url: http://b:80", "url: b:80", "url: b:80", ["'b:80'", "http://"]),
    ("url: http://b:80", "url: http://b:80/v1", "url: http://b:80/v1", ["/v1"]),
    ("url: http://b:80", "url: http://b:80/v1/", "url: http://b:80/v1/", ["/v1"]),
    ("url: http://b:80", "url: http://u:p@b:80", "url: http://u", ["base URL"]),
    ("url: http://b:80", "url: http://b:99999", "url: http://b", ["99999"]),
    ("url: http://b:80", "url: 'http://b:80?x=1'", "url: 'http", ["base URL"]),
    ("url: http://b:80", "url: ftp://b", "url: ftp", ["ftp://b"]),
    ("url: http://b:80", "url: 'http://[::1'", "url: 'http", ["::1"]),
    ("name: b", "name: a", "name: a", ["'a'", "twice"]),
    ("name: b", "name: 7", "7", ["'7'", "text"]),
    ("name: b", "name: yes", "yes", ["'yes'", "text"]),
    ('"u*"]', '"u*", uno]', "uno]", ["'uno'", "'one'"]),
    ('"u*"]', "'']", "''", ["empty"]),
    ('aliases: [uno, "u*"]', "aliases: uno", "uno", ["list", "'uno'"]),
    ("timeouts: {connect: 1s}", "policy: random", "policy: random", ["'random'", "home-cost", "round-robin"]),
    ("timeouts: {connect: 1s}", "retry: {attempts: 4}", "4}", ["'4'", "3"]),
    ("timeouts: {connect: 1s}", "retry: {attempts: 0}", "0}", ["'0'", "1"]),
    ("timeouts: {connect: 1s}", "retry: {attempts: 1.5}", "1.5}", ["'1.5'", "whole number"]),
    ("        url: http://b:80\n", "", "name: b", ["'b'", "url", "launch"]),
    ("url: http://b:80", "url: http://b:80\n        launch: {argv: ['{port}']}", "name: b", ["url", "launch"]),
    ("url: http://b:80", "launch: {model: embedded}", "model: embedded", ["'embedded'", "tgi", "argv"]),
    ("url: http://b:80", "launch: {argv: [serve]}", "argv:", ["{port}"]),
    ("url: http://b:80", "launch: {}", "launch:", ["model", "argv"]),
    ("        backend: tgi\n", "", "name: b", ["'backend'", "missing"]),
    ("weight: 2", "api_key: sk-secret", "sk-secret", ["${"]),
    ("routes:\n  one:", "routes:\n  '':", "'':", ["empty"]),
    ("routes:\n  one:", "routes:\n  'o*':", "'o*':", ["'o*'", "alias"]),
]


@pytest.mark.parametrize(
    ("old", "new", "where", "said"), CASES, ids=[case[1].strip()[:40] or case[0] for case in CASES]
)
def test_a_mistake_is_reported_where_it_stands(old: str, new: str, where: str, said: list[str]) -> None:
    text = changed(old, new)
    found = only(text)
    assert found.file == "table.yaml"
    read = text[: text.rindex(new) + len(new)] if where in new else text
    assert (found.line, found.column) == place(read, where), found
    for words in said:
        assert words in found.message
    assert str(found).startswith(f"table.yaml:{found.line}:{found.column}: ")


def test_a_secret_in_clear_is_refused_and_not_repeated() -> None:
    for secret in ("sk-very-secret", "'12345'", "[sk-very-secret]", "{a: sk-very-secret}", "sk-very-secret-${A}"):
        text = changed("weight: 2", f"api_key: {secret}")
        for found in mistakes(text, {"A": "a"}):
            assert "secret-" not in found.message and "sk-" not in found.message and "12345" not in found.message


@pytest.mark.parametrize("secret", ["hunter2", "two\nlines of it", "back\\slash'quote"])
@pytest.mark.parametrize(
    "line",
    [
        'policy: "${WORD}"',
        'aliases: ["${WORD}", "${WORD}"]',
        'timeouts: {first_output: "${WORD}"}',
        'targets: [{name: a, backend: "${WORD}", url: "http://x:1"}]',
        'targets: [{name: a, backend: openai, url: "http://${WORD}:99999"}]',
        'targets: [{name: a, backend: openai, url: "${WORD}", weight: "${WORD}"}]',
        'fallback_route: "${WORD}"',
    ],
)
def test_what_a_reference_stands_for_is_not_shown(line: str, secret: str) -> None:
    text = "routes:\n  m:\n    " + line + "\n"
    if "targets" not in line:
        text += "    targets: [{name: a, backend: openai, url: 'http://x:1'}]\n"
    with pytest.raises(Mistakes) as caught:
        parse_table(text, "t", {"WORD": secret})
    assert "${WORD}" in str(caught.value)
    assert secret not in str(caught.value) and repr(secret)[1:-1] not in str(caught.value)


def test_a_typing_error_is_answered_with_the_right_word() -> None:
    assert "'aliases'" in only(changed("aliases:", "aliasse:")).message
    assert "'url'" in mistakes(changed("url: http://b:80", "ur: http://b:80"))[0].message


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = GOOD.replace("aliases:", "alias:").replace("backend: tgi", "backend: x").replace("weight: 2", "weight: w")
    text = text.replace("rpm: 10", "rpm: many").replace("name: b", "name: [b]")
    found = mistakes(text)
    said = " ".join(mistake.message for mistake in found)
    for word in ("'alias'", "'w'", "'many'", "name"):
        assert word in said
    assert [(m.line, m.column) for m in found] == sorted((m.line, m.column) for m in found)
    assert len({str(m) for m in found}) == len(found)


def test_a_broken_target_does_not_hide_mistakes_in_others() -> None:
    text = GOOD.replace("name: b", "nam: b").replace("backend: vllm", "backend: x")
    said = " ".join(mistake.message for mistake in mistakes(text))
    assert "'nam'" in said and "'x'" in said


def test_a_repeated_key_is_a_mistake() -> None:
    text = GOOD + "limits: {}\n"
    found = only(text)
    assert (found.line, found.column) == place(text, "limits: {}")
    assert "'limits'" in found.message and "line 11" in found.message
    assert "'name'" in only(changed("name: b", "name: b\n        name: c")).message


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("routes:\n  one: [", 2, None),
        ("routes:\n\tone: 1", 2, 1),
        ("routes: {a: 1\nb: 2", 2, None),
        ('routes: "unclosed', 1, None),
        ("a: b: c", 1, 5),
        ("routes: *nobody", 1, 9),
        ("a: 1\n---\nb: 2", 2, None),
        ("routes: @x", 1, 9),
        ("a: \x01", None, None),
    ],
)
def test_what_is_no_yaml_is_one_mistake_with_its_place(text: str, line: int | None, column: int | None) -> None:
    found = only(text)
    assert "YAML" in found.message
    assert line is None or found.line == line
    assert column is None or found.column == column


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("routes: {r: {targets: [{name: a, backend: vllm, urll: 'http://a'}]}}", "'urll'"),
        ("routes: {r: {targets: [{name: a, backend: vllm, url: 3}]}}", "'3'"),
        ("routes: {r: {targets: [{namee: a, backend: vllm, url: 'http://a'}]}}", "'namee'"),
        ("routes: {r: {targets: 3}}\nlimits: {default: {budget: {day: {money: 3}}}}", "'3'"),
        ("routes: {r: {targets: [{name: a, backend: llamacpp, launch: {modell: embedded}}]}}", "'modell'"),
        ("routes: {r: {targets: [{name: a, backend: vllm, launch: {argv: [x, [y]]}}]}}", "got a list"),
        (
            GOOD.replace("timeouts:", "fallback_route: two\n    timeouts:").replace(
                "limits:", "  two: {a: b}\nlimits:"
            ),
            "'a'",
        ),
        (GOOD.replace("timeouts:", "price: {input: x}\n    limits: {budget: {day: {money: 3}}}\n    timeouts:"), "'x'"),
    ],
)
def test_what_a_mistake_makes_seem_missing_is_no_other_mistake(text: str, what: str) -> None:
    assert what in only(text).message


def test_mistakes_behind_one_in_a_list_are_where_they_are() -> None:
    first, _, third = found = mistakes(
        "routes:\n  r:\n    targets:\n"
        "      - {namee: a, backend: vllm, url: 'http://a'}\n"
        "      - {name: b, backend: vllm, urll: 'http://a'}\n"
        "      - {name: c, backend: nope, url: 'http://c'}\n"
    )
    assert [each.line for each in found] == [4, 5, 6]
    assert "'namee'" in first.message and "'nope'" in third.message


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ("rpm: 10", "rpm: [10]", "expected a number such as 200k, got a list"),
        ("connect: 1s", "connect: {a: b}", "expected a duration such as 2s, got a mapping"),
        ("weight: 2", "model: ''", "expected a text that is not empty"),
    ],
)
def test_what_is_expected_is_said_in_the_words_of_its_kind(old: str, new: str, allowed: str) -> None:
    assert allowed in only(changed(old, new)).message


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n"])
def test_an_empty_file_says_so(text: str) -> None:
    assert "empty" in only(text).message


@pytest.mark.parametrize("text", ["[]", "routes", "3", "null", "routes: []", "routes: 3", "routes:", "routes: {a: }"])
def test_a_table_of_another_shape_is_a_mistake(text: str) -> None:
    for found in mistakes(text):
        assert found.line == 1


TAGGED = ["!foo x", "!!python/name:os.system", "!!int x", "!!bool x", "!!timestamp x", "!!binary x", "!!float x"]


@pytest.mark.parametrize("value", [*TAGGED, "2024-13-45", "2024-01-01", "!!set {a}", "0b", "0x", "1:99", "~"])
def test_odd_values_are_mistakes_not_crashes(value: str) -> None:
    for text in (changed("weight: 2", f"weight: {value}"), changed("backend: tgi", f"backend: {value}")):
        assert mistakes(text)


@pytest.mark.parametrize("key", ["? [a, b]\n:", "3:", "~:", "!foo x:", "<<:", "? {a: b}\n:"])
def test_odd_keys_are_mistakes_not_crashes(key: str) -> None:
    assert mistakes(f"{key} 1\n" + GOOD)


@pytest.mark.parametrize("text", ["[" * 5_000, "a: " + "{a: " * 5_000, "- " * 5_000])
def test_deep_nesting_is_a_mistake_not_a_crash(text: str) -> None:
    assert mistakes(text)


@given(st.text(max_size=40))
def test_any_text_is_a_table_or_mistakes(text: str) -> None:
    try:
        parse_table(text, "t", {})
    except Mistakes as found:
        assert all(mistake.line >= 1 and mistake.column >= 1 for mistake in found.found)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(list("{}[]:,-#&*!|>'\"%@` \n\t0a")))
def test_a_damaged_table_is_a_table_or_mistakes(at: int, damage: str) -> None:
    try:
        parse_table(GOOD[:at] + damage + GOOD[at + 1 :], "t", {})
    except Mistakes as found:
        assert found.found


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


CUBE = "\n".join(
    [
        "routes:",
        "  r: &r",
        "    targets:",
        f"      - &t {{name: a, backend: vllm, launch: {{argv: [{', '.join('w' * 100)}]}}}}",
        *["      - *t"] * 100,
        *[f"  r{n}: *r" for n in range(100)],
    ]
)


@pytest.mark.parametrize(
    "text",
    [
        bomb(30, 10),
        bomb(30, 10) + "\nroutes: *a29",
        bomb(30, 10) + "\nroutes: {one: {targets: *a29}}",
        bomb(30, 10) + "\nroutes: {one: {aliases: *a29, targets: []}}",
        "a: &a {b: *a}",
        "routes: &a {one: *a}",
        "routes: {one: {targets: &t [*t, *t]}}",
        CUBE,
    ],
    ids=["unused", "routes", "targets", "aliases", "recursive", "recursive-routes", "recursive-targets", "cubic"],
)
def test_anchors_cannot_blow_up(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(located, "MAX_VALUES", located.MAX_VALUES // 10)
    assert len(text) < 10_000
    assert mistakes(text)


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "absent.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(Mistakes, match=re.escape(f"{path}:1:1: cannot be read: {why}") + "$"):
            load_table(path)
    (tmp_path / "latin.yaml").write_bytes("routes: é".encode("latin-1"))
    with pytest.raises(Mistakes, match="cannot be read"):
        load_table(tmp_path / "latin.yaml")

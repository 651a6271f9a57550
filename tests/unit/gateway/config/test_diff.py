"""What another table would change: every field of it, in the words of the table, and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Mistakes
from gateway.config.diff import Change, Difference, Meaning, difference, read

OLD = """\
routes:
  qwen2.5:
    aliases: [mini, "gpt-4*"]
    targets:
      - {name: a, backend: vllm, url: "http://a", api_key: "${KEY}"}
      - {name: b, backend: vllm, url: "http://b"}
  other:
    targets: [{name: c, backend: tgi, url: "http://c", launch: }]
limits: {default: {rpm: 600}}
"""
ENVIRONMENT = {"KEY": "hush-1", "OTHER": "hush-2", "HOST": "hush-3"}


def against(new: str, old: str = OLD) -> Difference:
    assert new != old
    return difference(read(old, "old", ENVIRONMENT), read(new, "new", ENVIRONMENT))


def changed(old: str, new: str) -> list[Change]:
    assert OLD.count(old) == 1
    return against(OLD.replace(old, new)).changes


def one(old: str, new: str) -> Change:
    (change,) = changed(old, new)
    return change


def test_nothing_changes() -> None:
    found = against(OLD + "# a comment\n")
    assert found == Difference([], [], [], [], [])


def test_the_order_of_routes_and_targets_is_no_change() -> None:
    lines = OLD.splitlines(keepends=True)
    swapped = [*lines[:4], lines[5], lines[4], *lines[6:]]
    assert against("".join(swapped)).changes == []


@pytest.mark.parametrize(
    ("old", "new", "path", "before", "after"),
    [
        ('"http://b"', '"http://b", weight: 2', "routes qwen2.5 targets b weight", "1", "2"),
        ('"http://b"', '"http://b", weight: 0.25', "routes qwen2.5 targets b weight", "1", "0.25"),
        ('"http://b"', '"http://bb"', "routes qwen2.5 targets b url", "http://b", "http://bb"),
        ("rpm: 600", "rpm: 2000", "limits default rpm", "600", "2k"),
        ("rpm: 600", "rpm: 600, outage: {tpm: open}", "limits default outage tpm", "-", "open"),
        ("mini, ", "", "routes qwen2.5 aliases", "mini gpt-4*", "gpt-4*"),
        ("  other:\n", "  other:\n    timeouts: {idle: 250ms}\n", "routes other timeouts idle", "2m", "250ms"),
        ("  other:\n", "  other:\n    policy: session\n", "routes other policy", "home-cost", "session"),
        ("limits:", "bodies: {request: 1MiB}\nlimits:", "bodies request", "20MiB", "1MiB"),
        ("{default", "{ietf_headers: true, default", "limits ietf_headers", "false", "true"),
    ],
)
def test_a_field_in_the_words_of_the_table(old: str, new: str, path: str, before: str, after: str) -> None:
    assert one(old, new) == Change("changed", tuple(path.split()), before, after)


def test_a_default_that_is_written_down_is_no_change() -> None:
    assert changed('"http://b"', '"http://b", weight: 1') == []


def test_routes_targets_and_parts_that_come_and_go() -> None:
    price = one("  other:\n", "  other:\n    price: {input: 0.15, output: 1}\n")
    assert price == Change("added", ("routes", "other", "price"), "-", "input 0.15, output 1")
    target = one("\n  other:", '\n      - {name: d, backend: tgi, url: "http://d", weight: 3}\n  other:')
    assert target == Change(
        "added", ("routes", "qwen2.5", "targets", "d"), None, "name d, backend tgi, url http://d, weight 3"
    )
    new = OLD.replace("  other:", "  third:").replace("limits:", "tests: [{ask: {model: x}, expect: {}}]\nlimits:")
    assert against(new).changes == [
        Change("removed", ("routes", "other"), "targets c"),
        Change("added", ("routes", "third"), None, "targets c"),
        Change("added", ("tests", "1"), None, "ask.model x"),
    ]
    back = difference(read(new, "new", {}), read(OLD, "old", {}))
    assert back.changes[0] == Change("removed", ("routes", "third"), "targets c")


def test_what_refers_to_a_variable_or_a_file_is_shown_as_the_reference(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush-4")
    launch = f"launch: {{argv: [x, '{{port}}', '--key=${{OTHER}}'], environment: {{TOKEN: '${{file:{secret}}}'}}}}"
    new = OLD.replace('url: "http://c", launch: ', launch).replace("${KEY}", "${OTHER}").replace("//b", "//${HOST}")
    new = new.replace(
        "limits:", "  fresh: {targets: [{name: d, backend: vllm, url: 'http://${HOST}', api_key: '${OTHER}'}]}\nlimits:"
    )
    found = against(new)
    assert "hush" not in repr(found)
    assert Change("changed", ("routes", "qwen2.5", "targets", "a", "api_key"), "${KEY}", "${OTHER}") in found.changes
    assert (
        Change("changed", ("routes", "qwen2.5", "targets", "b", "url"), "http://b", "http://${HOST}") in found.changes
    )
    (told,) = (change.after for change in found.changes if change.path[-1] == "launch")
    assert told == f"argv x {{port}} --key=${{OTHER}}, environment.TOKEN ${{file:{secret}}}"


def test_names_that_lead_elsewhere() -> None:
    new = OLD.replace("mini, ", "").replace("  other:\n", "  other:\n    aliases: [mini, 'gpt-4o*', 'gpt-*']\n")
    assert against(new).names == [
        Meaning("mini", "qwen2.5", "other"),
        Meaning("gpt-4o*", "qwen2.5", "other"),
        Meaning("gpt-*", None, "other"),
    ]
    gone = OLD.replace("mini, ", "")
    assert against(gone).names == [Meaning("mini", "qwen2.5", None)]
    renamed = OLD.replace("qwen2.5:", "qwen3:")
    assert Meaning("qwen2.5", "qwen2.5", None) in against(renamed).names
    assert Meaning("mini", "qwen2.5", "qwen3") in against(renamed).names


def test_targets_that_end_and_those_that_are_others_now() -> None:
    found = against(OLD.replace("name: b", "name: bb").replace("http://c", "http://cc").replace("${KEY}", "${OTHER}"))
    assert (found.drained, found.replaced) == (["b"], ["a", "c"])
    moved = OLD.replace('name: c, backend: tgi, url: "http://c"', 'name: b, backend: vllm, url: "http://b"')
    moved = moved.replace('\n      - {name: b, backend: vllm, url: "http://b"}', "")
    found = against(moved)
    assert (found.drained, found.replaced) == (["c"], []), "it is on another route, and has calls still"


def test_what_a_running_gateway_would_refuse() -> None:
    new = OLD.replace('url: "http://c", launch: ', "launch: {argv: ['{port}']}")
    (sentence,) = against(new).restart
    assert "'c'" in sentence
    assert against(new + "bodies: {request: 1MiB}\n", new).restart == []
    assert difference(read(new, "new", {}), read(OLD, "old", {})).restart == []


def test_a_table_with_mistakes_is_not_compared() -> None:
    with pytest.raises(Mistakes):
        read("routes: {one: {targets: []}}", "t")
    with pytest.raises(Mistakes):
        read("routes: [", "t")


FIELDS = ["weight: 2", "weight: 3", "model: x", "max_inflight: 4", "context: 32k", "kv_tokens: 1M", "canary: 0.1"]


@given(st.lists(st.sampled_from(FIELDS), unique_by=lambda field: field.split(":")[0]))
def test_there_and_back_again(fields: list[str]) -> None:
    """What changes one way changes the other way round; whatever a table says, it is compared with itself as equal."""
    new = OLD.replace('url: "http://b"', ", ".join(['url: "http://b"', *fields]))
    one, other = read(OLD, "t", {}), read(new, "t", {})
    there, back = difference(one, other).changes, difference(other, one).changes
    assert len(there) == len(fields)
    assert [(change.path, change.before, change.after) for change in there] == [
        (change.path, change.after, change.before) for change in back
    ]
    assert difference(other, other).changes == []

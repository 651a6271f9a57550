"""Which call gets which fault, and what is said of orders that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.faults.orders import BadOrder, Entry, Orders, parse, read_script
from gateway.faults.vocabulary import FAULTS
from gateway.faults.wire import HttpRequest


def call(body: Any = None, path: str = "/v1/chat/completions", **headers: str) -> HttpRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpRequest("POST", path, named, json.dumps(body or {}).encode())


def ordered(orders: Orders, request: HttpRequest, *, is_call: bool = True) -> str:
    return ",".join(map(str, orders.of(request, is_call=is_call)))


def test_an_order_names_faults_and_their_values() -> None:
    assert [str(each) for each in parse("slow=0.1,stall=3")] == ["slow=0.1", "stall=3"]
    assert str(*parse("stall")) == "stall=3"  # the default
    assert str(*parse("huge_line=1MiB")) == "huge_line=1048576"
    assert parse("") == ()
    (date,) = parse("retry_after=Wed, 21 Oct 2015 07:28:00 GMT")
    assert date.value == "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_says_what_it_does_and_has_a_good_default(name: str) -> None:
    fault = FAULTS[name]
    assert fault.about.endswith(".") and fault.usage.startswith(name)
    (one,) = parse(name)
    assert one.value == fault.default
    if fault.value is not None:
        assert parse(str(one)) == (one,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nosuch", "expected one of none, refuse, hang"),
        ("stall=x", "a number of events"),
        ("stall=-1", "a number of events"),
        ("hang=3", "takes no value"),
        ("status=99", "a status from 300 to 599"),
        ("flap=2", "a probability"),
        ("slow=nan", "seconds"),
        ("slow=inf", "seconds"),
        ("lie=much", "one of negative, huge"),
        ("huge_line=1TiB", "bytes such as"),
    ],
)
def test_a_wrong_order_is_told_what_would_be_right(text: str, says: str) -> None:
    with pytest.raises(BadOrder, match=says):
        parse(text)


def test_the_call_goes_before_the_script_and_the_script_before_the_default() -> None:
    orders = Orders("stall", [Entry("hang", calls=1)])
    assert ordered(orders, call()) == "hang"
    assert ordered(orders, call()) == "stall=3"
    assert ordered(orders, call({"x_fault": "cut=1"})) == "cut=1"
    assert ordered(orders, call({"x_fault": "cut=1"}, x_fault="none")) == "none"
    assert ordered(orders, call(path="/health"), is_call=False) == ""


def test_a_body_may_mean_one_backend_only() -> None:
    orders = Orders(name="a")
    assert ordered(orders, call({"x_fault": {"a": "hang", "b": "cut"}})) == "hang"
    assert ordered(orders, call({"x_fault": {"b": "cut"}})) == ""
    with pytest.raises(BadOrder, match="expected a text"):
        orders.of(call({"x_fault": 7}), is_call=True)


@pytest.mark.parametrize(
    ("entry", "hit"),
    [
        (Entry("hang", calls=2), [2]),
        (Entry("hang", calls="2-3"), [2, 3]),
        (Entry("hang", calls="4-"), [4, 5, 6]),
        (Entry("hang", calls=[1, 5]), [1, 5]),
        (Entry("hang", every=3), [3, 6]),
        (Entry("hang", every=2, calls="3-"), [4, 6]),
        (Entry("hang", probability=0.0), []),
    ],
)
def test_a_script_counts_calls(entry: Entry, hit: list[int]) -> None:
    orders = Orders(script=[entry])
    assert [number for number in range(1, 7) if ordered(orders, call())] == hit


def test_each_entry_counts_all_that_it_fits() -> None:
    orders = Orders(script=[Entry("hang", calls=2), Entry("cut", calls="2-3")])
    assert [ordered(orders, call()) for _ in range(4)] == ["", "hang", "cut=3", ""]


def test_a_script_looks_at_what_a_call_is() -> None:
    continued = {"continue_final_message": True}
    orders = Orders(script=[Entry("cut", stream=True, resumed=False), Entry("hang", resumed=True)])
    assert ordered(orders, call({"stream": True})) == "cut=3"
    assert ordered(orders, call({"stream": False})) == ""
    assert ordered(orders, call({"stream": True, **continued})) == "hang"
    assert ordered(orders, call({"prompt": "Say: w1 w2"})) == "hang"
    assert ordered(orders, call({"prompt": "Say: w1 w2!"})) == ""


def test_a_script_with_a_path_counts_probes_too() -> None:
    orders = Orders(script=[Entry("status=503", path="/hea*", calls="2-")])
    assert [ordered(orders, call(path="/health"), is_call=False) for _ in range(2)] == ["", "status=503"]
    assert ordered(orders, call()) == ""


def test_the_same_seed_has_the_same_chances() -> None:
    def seen(seed: int) -> list[str]:
        orders = Orders(script=[Entry("hang", probability=0.5)], seed=seed)
        return [ordered(orders, call()) for _ in range(64)]

    assert seen(1) == seen(1) != seen(2)
    assert 16 < seen(1).count("hang") < 48


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fault: hang", "expected a list"),
        ("- {fault: nosuch}", "entry 1: 'nosuch' is no fault"),
        ("- {fault: hang}\n- {fault: hang, call: 1}", "entry 2: .*fields: fault, calls, every"),
        ("- {fault: hang, calls: few}", "expected a number, a range"),
        ("- {", "script.yaml"),
    ],
)
def test_a_wrong_script_is_told_where_and_what(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "script.yaml"
    file.write_text(text)
    with pytest.raises(BadOrder, match=says):
        read_script(file)


def test_a_script_may_be_json(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    file.write_text('[{"fault": "cut=2", "calls": "1-3", "stream": true}]')
    assert read_script(file) == [Entry("cut=2", calls="1-3", stream=True)]

"""`/v1/batches` by OpenAI's own client: what becomes of each line, and of lines that cannot be asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.lazily import Lazily
from harness.upstream import Gate, Target, Upstream, answer, whole
from integration.batching import at_end, client, leave, line, results
from integration.client import ask, chat, eventually, samples, total

from gateway.core.types import Limit

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")


@pytest.fixture(scope="module")
def batching(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with batches; its route `narrow` has one place."""
    m, narrow = ({"name": name, "backend": "openai", "url": upstream.target(name).url} for name in ("m", "narrow"))
    routes = {"m": {"targets": [m], "retry": {"attempts": 1}}, "narrow": {"targets": [{**narrow, "max_inflight": 1}]}}
    table = json.dumps({"routes": routes, "limits": {"storage": {"batches": 2, "lines": 200}}})
    folder = tmp_path_factory.mktemp("files")
    with gateway_process(table, env={"TRUNKLINE_FILES": str(folder)}) as started:
        yield started


@pytest.fixture
def m(upstream: Upstream) -> Target:
    target = upstream.target("m")
    target.restore()
    return target


def test_every_line_is_asked_once_and_answered_once(batching: GatewayProcess, m: Target) -> None:
    with client(batching, tenant="once") as ours:
        batch = at_end(ours, leave(ours, [line(number) for number in range(100)]))
        assert (batch.status, batch.errors, batch.error_file_id) == ("completed", None, None)
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 100, "completed": 100, "failed": 0}
        for at in (batch.in_progress_at, batch.finalizing_at, batch.completed_at, batch.expires_at):
            assert at is not None and at >= batch.created_at
        found = results(ours, batch.output_file_id)
        assert found.keys() == {f"line-{number}" for number in range(100)}
        one = found["line-7"]
        assert one["response"]["status_code"] == 200 and one["error"] is None
        assert one["response"]["body"] == answer()
        assert sorted(call.json()["messages"][0]["content"] for call in m.calls) == sorted(
            f"Line {number}" for number in range(100)
        )
        output = ours.files.retrieve(batch.output_file_id or "")
        assert output.purpose == "batch_output" and output.bytes == len(ours.files.content(output.id).read())


def test_what_is_wrong_with_lines_is_told_before_any_is_asked(batching: GatewayProcess, m: Target) -> None:
    wrong = [
        line(1),
        b"{nonsense",
        line(1),
        line(2, url="/v1/embeddings"),
        line(3, method="GET"),
        line(4, body={"model": "m", "messages": [], "stream": True}),
        line(5, body={"messages": []}),
        line(6, custom_id=""),
        line(7, body=[]),
    ]
    with client(batching, tenant="wrong") as ours:
        batch = at_end(ours, leave(ours, wrong))
        assert batch.status == "failed" and batch.failed_at is not None and batch.errors is not None
        assert [(error.line, error.code) for error in batch.errors.data or []] == [
            (2, "invalid_json_line"),
            (3, "duplicate_custom_id"),
            (4, "invalid_url"),
            (5, "invalid_method"),
            (6, "invalid_request"),
            (7, "missing_required_parameter"),
            (8, "missing_required_parameter"),
            (9, "invalid_request"),
        ]
        many = at_end(ours, leave(ours, [line(number) for number in range(201)]))
        assert many.errors is not None and many.errors.data is not None
        assert many.errors.data[0].code == "too_many_requests"
        nothing = at_end(ours, leave(ours, [b""]))
        assert nothing.errors is not None and nothing.errors.data is not None
        assert nothing.errors.data[0].code == "empty_file"
    assert m.calls == []


def test_a_line_that_fails_is_an_error_of_its_own(batching: GatewayProcess, m: Target) -> None:
    lines = [line(0), line(1, model="nobody"), line(2, body={"model": "m", "messages": [], "n": "x"})]
    m.script = None
    with client(batching, tenant="failing") as ours:
        refused = {"error": {"message": "n must be a number", "type": "invalid_request_error"}}
        m.scripts = [whole(answer())]
        batch = at_end(ours, leave(ours, lines[:2]))
        assert batch.status == "completed"
        assert results(ours, batch.output_file_id).keys() == {"line-0"}
        (failed,) = results(ours, batch.error_file_id).values()
        assert failed["custom_id"] == "line-1" and failed["response"]["status_code"] == 404
        assert failed["response"]["body"]["error"]["code"] == "model_not_found"
        m.scripts = [whole(refused, 400)]
        batch = at_end(ours, leave(ours, lines[2:]))
        assert batch.request_counts is not None and batch.request_counts.failed == 1 and not batch.output_file_id
        (failed,) = results(ours, batch.error_file_id).values()
        assert failed["response"]["status_code"] == 400


def test_lines_of_a_key_that_was_revoked_are_refused(batching: GatewayProcess, m: Target) -> None:
    gate, issued = Gate(), batching.issue(tenant="revoked")
    m.script = [gate, *whole(answer())]
    ours = openai.OpenAI(api_key=issued.secret, base_url=f"{batching.url}/v1")
    with ours, client(batching, tenant="revoked") as other:
        batch = leave(ours, [line(number) for number in range(50)])
        m.wait_for_calls(1)
        batching.keys("revoke", issued.record.id)
        gate.open()
        batch = at_end(other, batch)
        failed = results(other, batch.error_file_id)
        assert failed and {each["response"]["status_code"] for each in failed.values()} == {401}
        assert len(failed) + len(results(other, batch.output_file_id)) == 50


def test_metrics_tell_of_batches(batching: GatewayProcess, m: Target) -> None:
    def seen(name: str, **labels: str) -> float:
        found = samples(batching)
        assert (f"trunkline_{name}", frozenset(labels.items())) in found, "series are there from the beginning"
        return total(found, name, **labels)

    names = ("completed", "failed", "expired", "cancelled")
    before = {name: seen("batches_ended_total", status=name) for name in names}
    lines = {name: seen("batch_lines_total", outcome=name) for name in ("completed", "failed")}
    gate = Gate()
    m.scripts = [whole({"error": {"message": "no"}}, 400)]
    m.script = [gate, *whole(answer())]
    with client(batching, tenant="counted") as ours:
        batch = leave(ours, [line(number) for number in range(10)])
        eventually(lambda: seen("batch_lines_in_flight") > 0, "lines are under way")
        eventually(lambda: seen("batches", status="in_progress") == 1, "a batch is under way")
        gate.open()
        at_end(ours, batch)
    eventually(lambda: seen("batches", status="in_progress") == 0, "none is any more")
    eventually(lambda: seen("batches_ended_total", status="completed") == before["completed"] + 1, "it is completed")
    assert all(seen("batches_ended_total", status=name) == before[name] for name in names[1:])
    assert seen("batch_lines_total", outcome="completed") == lines["completed"] + 9
    assert (seen("batch_lines_total", outcome="failed"), seen("batch_lines_in_flight")) == (lines["failed"] + 1, 0)


def test_a_rate_is_waited_out(batching: GatewayProcess, m: Target) -> None:
    with client(batching, tenant="slow", limit=Limit(rpm=120)) as ours:
        batch = at_end(ours, leave(ours, [line(number) for number in range(123)]))
        assert batch.request_counts is not None and batch.request_counts.completed == 123
    assert len(m.calls) == 123


def test_a_cancelled_batch_tells_what_was_not_asked(batching: GatewayProcess, m: Target) -> None:
    gate = Gate()
    m.scripts = [whole(answer())] * 2
    m.script = [gate, *whole(answer())]
    with client(batching, tenant="cancelled") as ours:
        batch = leave(ours, [line(number) for number in range(30)])

        def two() -> bool:
            counts = ours.batches.retrieve(batch.id).request_counts
            return counts is not None and counts.completed == 2

        eventually(two, "two lines have their answers")
        with pytest.raises(openai.ConflictError, match="reads this file"):
            ours.files.delete(batch.input_file_id)
        assert ours.batches.cancel(batch.id).status == "cancelling"
        batch = at_end(ours, batch)
        assert batch.status == "cancelled" and batch.cancelled_at is not None
        done, rest = results(ours, batch.output_file_id), results(ours, batch.error_file_id)
        assert (len(done), len(rest)) == (2, 28)
        assert {each["error"]["code"] for each in rest.values()} == {"batch_cancelled"}
        with pytest.raises(openai.ConflictError):
            ours.batches.cancel(batch.id)
        eventually(lambda: all(call.closed.is_set() for call in m.calls[2:]), "the model server stops")
        ours.files.delete(batch.input_file_id)
    gate.open()


def test_batches_are_their_tenants(batching: GatewayProcess, m: Target) -> None:
    with client(batching, tenant="mine") as ours, client(batching, tenant="yours") as theirs:
        batch = at_end(ours, leave(ours, [line(0)]))
        for wrong in (theirs.batches.retrieve, theirs.batches.cancel, theirs.files.content):
            with pytest.raises(openai.NotFoundError):
                wrong(batch.output_file_id if wrong == theirs.files.content else batch.id)  # type: ignore[operator,arg-type]
        with pytest.raises(openai.NotFoundError):
            theirs.batches.create(
                input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert list(theirs.batches.list()) == []
        others = [at_end(ours, leave(ours, [line(0)])) for _ in range(2)]
        assert [each.id for each in ours.batches.list(limit=1)] == [others[1].id, others[0].id, batch.id]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"x" * 65: "y"}}, "metadata"),
    ],
)
def test_what_cannot_be_a_batch_is_refused_by_name(
    batching: GatewayProcess, fields: dict[str, object], param: str
) -> None:
    issued = batching.issue(tenant="odd")
    with openai.OpenAI(api_key=issued.secret, base_url=f"{batching.url}/v1") as ours:
        file = ours.files.create(file=("a", b"{}"), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/embeddings", "completion_window": "24h", **fields}
    reply = ask(batching, body, issued.secret, "/v1/batches")
    assert (reply.status, reply.error["param"]) == (400, param)


def test_operators_see_and_cancel_them(batching: GatewayProcess, m: Target) -> None:
    gate = Gate()
    m.script = [gate, *whole(answer())]
    with client(batching, tenant="watched") as ours:
        batches = [leave(ours, [line(number) for number in range(3)]) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="2 batches"):
            leave(ours, [line(0)])
        m.wait_for_calls(1)
        listed = batching.said("batches", "list", "--tenant", "watched")
        assert [each["id"] for each in listed] == [batches[1].id, batches[0].id]
        assert batching.said("batches", "cancel", batches[0].id)["status"] == "cancelling"
        assert at_end(ours, batches[0]).status == "cancelled"
        gate.open()
        assert at_end(ours, batches[1]).status == "completed"
        shown = batching.said("batches", "show", batches[1].id)
        assert (shown["completed"], shown["total"], shown["tenant"]) == (3, 3, "watched")


def test_a_call_goes_before_lines(batching: GatewayProcess, upstream: Upstream) -> None:
    """With one place at the target, and many lines waiting for it, the next is the call's."""
    narrow = upstream.target("narrow")
    narrow.restore()
    first = Gate()
    narrow.scripts = [[first, *whole(answer())]]
    with client(batching, tenant="patient") as ours:
        batch = leave(ours, [line(number, model="narrow") for number in range(30)])
        narrow.wait_for_calls(1)
        key = batching.issue(tenant="urgent").secret
        replies = list[int]()
        caller = threading.Thread(target=lambda: replies.append(ask(batching, chat("narrow"), key).status))
        caller.start()
        eventually(lambda: total(samples(batching), "queue_calls", route="narrow") >= 4, "it waits, behind three lines")
        first.open()
        caller.join(30)
        assert replies == [200] and narrow.calls[1].json() == chat("narrow")
        assert at_end(ours, batch).status == "completed"

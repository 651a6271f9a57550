"""The error tree is whole: every class has its place, its words and its name in the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.core import errors
from gateway.core.errors import GatewayError, OutOfBudget, RateLimited, Rejected, Unauthenticated, UpstreamError

TYPES = {
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "invalid_request_error",
    "server_error",
}
OUTCOMES = {"refused", "shed", "failed", "gone"}
GROUPS = {"Refused", "LimitReached", "Unavailable", "UpstreamError"}
"""Never raised themselves."""


def tree(kind: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


EVERY = list(tree())
RAISED = [kind for kind in EVERY if kind is not GatewayError and kind.__name__ not in GROUPS]


def named(kinds: list[type[GatewayError]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.__name__)


def test_the_docstring_shows_the_tree() -> None:
    """Names, parents and, where it is told, the status of every class, in the order of the code."""
    shown, parents = [], {0: "GatewayError"}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"( +)([A-Z]\w+) +(?:(\d{3}) )?", line):
            depth = len(match[1]) // 2
            parents[depth] = match[2]
            shown.append((match[2], parents[depth - 1]))
            if match[3]:
                assert getattr(errors, match[2]).status == int(match[3]), match[2]
    assert shown == [(kind.__name__, kind.__mro__[1].__name__) for kind in EVERY[1:]]


@named(RAISED)
def test_every_error_says_how_it_looks(kind: type[GatewayError]) -> None:
    assert 400 <= kind.status <= 599
    assert kind.type in TYPES
    assert kind.outcome in OUTCOMES
    assert re.fullmatch(r"(caller|policy|upstream|gateway)_[a-z_]+", kind.error_type)
    assert kind.code is None or re.fullmatch(r"[a-z_]+", kind.code)


@named([kind for kind in RAISED if kind is not Rejected])
def test_every_error_has_a_code_of_its_own(kind: type[GatewayError]) -> None:
    """Rejected alone has none: it speaks with the upstream's words."""
    assert kind.code
    assert [other for other in RAISED if other.code == kind.code] == [kind]


@named(RAISED)
def test_every_error_has_an_error_type_of_its_own(kind: type[GatewayError]) -> None:
    assert [other for other in RAISED if other.error_type == kind.error_type] == [kind]


@named(RAISED)
def test_who_is_to_blame_agrees_with_the_class(kind: type[GatewayError]) -> None:
    blame = kind.error_type.partition("_")[0]
    if issubclass(kind, errors.Refused):
        assert (blame in ("caller", "policy") and 400 <= kind.status < 500) or kind is Rejected
    if issubclass(kind, UpstreamError):
        assert blame == "upstream" and kind.status >= 500 and kind.public
        assert kind.retryable is (kind is not errors.TookTooLong)
    if issubclass(kind, errors.Unavailable):
        assert blame == "gateway" and kind.status == 503
    if kind is not Rejected:  # its status is the upstream's
        assert (kind.type == "server_error") == (kind.status >= 500 or kind is errors.ClientGone)


def test_gateway_other_is_for_bugs_only() -> None:
    assert [kind for kind in RAISED if kind.error_type == "gateway_other"] == [errors.Internal]


def test_upstream_texts_for_clients_are_sentences_of_their_own() -> None:
    texts = [kind.public for kind in RAISED if issubclass(kind, UpstreamError)]
    assert len(set(texts)) == len(texts)
    assert all(text.startswith(("The model server", "The gateway")) and text.endswith(".") for text in texts)


@named(RAISED)
def test_every_class_has_a_use(kind: type[GatewayError]) -> None:
    """A class nobody raises is a promise nobody keeps."""
    root = Path(errors.__file__).parents[1]
    sources = [
        file.read_text() for file in root.rglob("*.py") if file.name != "errors.py" or file.parent.name == "edge"
    ]
    assert any(re.search(rf"\b{kind.__name__}\b", source) for source in sources)


def test_what_particular_errors_carry() -> None:
    limited = RateLimited("slow", retry_after=2.5)
    assert (limited.retry_after, limited.status, limited.should_retry) == (2.5, 429, True)
    assert (limited.scope, limited.dimension) == ("key", "")
    rejected = Rejected(422, "no", body=b"{}")
    assert (rejected.status, rejected.body, rejected.retryable) == (422, b"{}", False)
    assert str(Unauthenticated()) == str(Unauthenticated())
    assert GatewayError("m", param="p").headers == {}


@pytest.mark.parametrize("reserved", [True, False])
def test_a_budget_is_worth_another_try_only_while_others_have_reserved_it(reserved: bool) -> None:
    spent = OutOfBudget("spent", retry_after=9.0, reserved=reserved)
    assert (spent.status, spent.code, spent.retry_after) == (429, "insufficient_quota", 9.0)
    assert spent.should_retry is reserved


def test_only_what_time_heals_is_to_be_tried_again() -> None:
    """What clients are told to try again must be a matter of time."""
    for kind in RAISED:
        if kind.should_retry:
            assert kind.status == 429 or kind in (
                errors.ShuttingDown,
                errors.AnswerMemoryFull,
                errors.BodyMemoryFull,
                errors.FilesUnavailable,
            )
    assert errors.NeverFits.should_retry is False and errors.NeverFits.status == 400

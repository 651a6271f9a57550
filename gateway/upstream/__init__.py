"""The only caller of HTTP: one attempt at one target, its answer as chunks, its failures in our words."""

from gateway.upstream.deadline import Deadline
from gateway.upstream.failures import FAILURES, failure, retry_after
from gateway.upstream.forwarder import Forwarder
from gateway.upstream.reading import AnswerLimits, AnswerReader, Upstream, reader_for

__all__ = [
    "FAILURES",
    "AnswerLimits",
    "AnswerReader",
    "Deadline",
    "Forwarder",
    "Upstream",
    "failure",
    "reader_for",
    "retry_after",
]

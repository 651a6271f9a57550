"""The only caller of HTTP: one attempt at one target, its answer as chunks, its failures in our words."""

from gateway.upstream.connection import Response
from gateway.upstream.deadline import Deadline
from gateway.upstream.failures import retry_after
from gateway.upstream.forwarder import Forwarder
from gateway.upstream.origin import Origin
from gateway.upstream.pool import Pool
from gateway.upstream.reading import AnswerLimits, AnswerReader, Upstream, reader_for

__all__ = [
    "AnswerLimits",
    "AnswerReader",
    "Deadline",
    "Forwarder",
    "Origin",
    "Pool",
    "Response",
    "Upstream",
    "reader_for",
    "retry_after",
]

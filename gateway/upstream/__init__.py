"""The only caller of targets: one attempt at one of them, its answer as chunks, its failures in our words."""

from gateway.upstream.exchange import Exchange
from gateway.upstream.failures import retry_after
from gateway.upstream.forwarder import Forwarder
from gateway.upstream.origin import Origin
from gateway.upstream.pool import Pool
from gateway.upstream.reading import AnswerLimits, reader_for

__all__ = ["AnswerLimits", "Exchange", "Forwarder", "Origin", "Pool", "reader_for", "retry_after"]

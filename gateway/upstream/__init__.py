"""The only caller of targets: one attempt at one of them, its answer as chunks, its failures in our words."""

from gateway.upstream.exchange import Exchange
from gateway.upstream.failures import FAILURES, failure, retry_after
from gateway.upstream.forwarder import Forwarder
from gateway.upstream.reading import AnswerLimits

__all__ = ["FAILURES", "AnswerLimits", "Exchange", "Forwarder", "failure", "retry_after"]

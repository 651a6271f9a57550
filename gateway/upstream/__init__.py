"""The only caller of HTTP: one attempt at one target, its answer as chunks, its failures in our words."""

from gateway.upstream.deadline import Deadline
from gateway.upstream.failures import FAILURES, failure, retry_after
from gateway.upstream.forwarder import Forwarder
from gateway.upstream.reading import Reading, Upstream

__all__ = ["FAILURES", "Deadline", "Forwarder", "Reading", "Upstream", "failure", "retry_after"]

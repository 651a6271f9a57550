"""Metering: every call ends in one record, which becomes metrics and a log line."""

from gateway.metering.lines import Lines
from gateway.metering.metrics import Metrics, exposition
from gateway.metering.record import Meter, Record

__all__ = ["Lines", "Meter", "Metrics", "Record", "exposition"]

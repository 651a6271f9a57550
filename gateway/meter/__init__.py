"""Metering: every call ends in one record, which becomes metrics and a log line."""

from gateway.meter.lines import Lines
from gateway.meter.metrics import Metrics, exposition
from gateway.meter.record import Meter, Record

__all__ = ["Lines", "Meter", "Metrics", "Record", "exposition"]

"""Metering: every call ends in one record, which becomes metrics and a log line."""

from gateway.meter.lines import Lines
from gateway.meter.meter import Meter
from gateway.meter.metrics import Metrics, exposition
from gateway.meter.record import CallRecord

__all__ = ["CallRecord", "Lines", "Meter", "Metrics", "exposition"]

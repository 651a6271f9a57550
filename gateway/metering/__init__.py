"""Metering: every call ends in one record, which becomes metrics and a log line."""

from gateway.metering.lines import Lines
from gateway.metering.meter import Meter
from gateway.metering.metrics import Metrics, exposition
from gateway.metering.record import CallRecord

__all__ = ["CallRecord", "Lines", "Meter", "Metrics", "exposition"]

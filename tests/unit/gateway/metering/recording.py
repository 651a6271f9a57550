"""A record that is closed as the page closes it, with whatever ended its call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.metering import CallRecord, Meter
from gateway.metering.aborts import Client


@contextmanager
def recorded(meter: Meter, endpoint: str = "chat/completions", client: Client | None = None) -> Iterator[CallRecord]:
    record, ended = meter.open("tl-1", endpoint, client), None
    try:
        yield record
    except BaseException as error:
        ended = error
        raise
    finally:
        record.close(ended)

"""All functions that are fuzzed."""

from __future__ import annotations

from fuzz.checks import adapters, answers, body, config, heads, redis, resume, sse, told
from fuzz.feeding import Harness

HARNESSES: tuple[Harness, ...] = (
    sse.HARNESS,
    body.HARNESS,
    adapters.REQUEST,
    adapters.REPLY,
    adapters.STREAM,
    told.METRICS,
    told.FACTS,
    heads.VIRTUAL_KEY,
    heads.RETRY_AFTER,
    heads.SOURCE,
    config.QUANTITIES,
    config.TABLE,
    redis.HARNESS,
    resume.HARNESS,
    answers.KEPT,
    answers.CALL,
)

"""Waits between requests, and how many are under way."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from distill_lab.generation.engines._http_retry import MAX_WAIT_S, AdaptiveLimiter, backoff_s, retry_after_s


def test_waits_grow_with_jitter_up_to_a_bound() -> None:
    random.seed(0)
    for attempt, bound in ((1, 1), (2, 2), (5, 16), (6, MAX_WAIT_S), (10_000, MAX_WAIT_S)):
        waits = [backoff_s(attempt) for _ in range(500)]
        assert 0.97 * bound < max(waits) <= bound
        assert 0 <= min(waits) < 0.03 * bound


def test_retry_after_is_read_in_both_forms() -> None:
    assert retry_after_s("7") == 7
    assert retry_after_s(" 0.25 ") == 0.25
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    soon = retry_after_s(format_datetime(datetime.now(timezone.utc) + timedelta(seconds=90), usegmt=True))
    assert soon is not None
    assert 85 < soon <= 90
    for text in (None, "", "soon", "-5", "nan", "1e400", "inf", "٣"):
        assert retry_after_s(text) is None
    for text in ("1000000000", "9999999999", "9" * 400, "9" * 400 + ".5"):
        assert retry_after_s(text) == 1e9


def test_the_pace_halves_once_per_refusal_and_recovers() -> None:
    async def drive() -> None:
        limiter = AdaptiveLimiter(64)
        sent_at = time.monotonic()
        for _ in range(64):  # all sent at the same time: one reason to slow down, not 64
            assert limiter.slow_down(sent_at)
        assert limiter.limit == 32
        slower = []
        for _ in range(7):
            await asyncio.sleep(0.001)
            slower.append(limiter.slow_down(time.monotonic()))
        assert limiter.limit == 1
        assert slower == [True] * 5 + [False] * 2
        for _ in range(5000):
            limiter.speed_up()
        assert limiter.limit == 64

    asyncio.run(drive())

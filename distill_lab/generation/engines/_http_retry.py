"""Retry timing for servers: backoff with jitter, Retry-After, and an adaptive limit on concurrent requests.

limiter = AdaptiveLimiter(64)
async with limiter: ...            # one request; waits its turn
limiter.slow_down(sent_at); limiter.pause(retry_after_s(response.headers.get("retry-after")))
await asyncio.sleep(backoff_s(attempt))
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

FIRST_WAIT_S, MAX_WAIT_S = 1.0, 30.0
"""Maximum wait before the first retry and before late retries."""
MAX_ASKED_S = 1e9
"""Longest wait that is read from a header: a server that asks for more (31 years) asks for this."""
SPREAD = 0.1
"""Requests that wait for the same moment start spread over this fraction of the wait, not all at once."""


def backoff_s(attempt: int, *, first_s: float = FIRST_WAIT_S) -> float:
    """Seconds to wait after failure number `attempt` (from 1): random, up to a bound that doubles each time.

    "Full jitter" from Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return random.uniform(0, min(MAX_WAIT_S, first_s * 2.0 ** min(attempt - 1, 30)))


def retry_after_s(header: str | None) -> float | None:
    """Delay in seconds from a Retry-After header; 0 if the date has passed, None if missing or unreadable.

    Accepts both forms of RFC 9110, section 10.2.3: a number of seconds (fractions allowed) and a date.
    """
    text = (header or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
        return min(float(text), MAX_ASKED_S)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


class AdaptiveLimiter:
    """Lets at most `limit` requests run at once; use one context per request.

    The limit halves when the server reports too many requests, and rises by one for each `limit` answers, up to `maximum`
    (additive increase, multiplicative decrease; Chiu & Jain 1989).
    """

    def __init__(self, maximum: int) -> None:
        self.maximum, self.limit = maximum, float(maximum)
        self._running, self._cut_at, self._paused_until = 0, 0.0, 0.0
        self._changed = asyncio.Condition()

    def slow_down(self, sent_at: float) -> bool:
        """Lower the limit after the server rejected a request sent at `time.monotonic()` time `sent_at`.

        Requests sent together count once. Returns whether fewer run now than when it was sent; False if the limit was 1.
        """
        slower = sent_at < self._cut_at or int(self.limit) > 1
        if sent_at >= self._cut_at:
            self.limit, self._cut_at = max(1.0, self.limit / 2), time.monotonic()
        return slower

    def speed_up(self) -> None:
        """Raise the limit after the server answered a request."""
        self.limit = min(float(self.maximum), self.limit + 1 / self.limit)

    def pause(self, seconds: float) -> None:
        """Start no requests for this time; running ones continue."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    async def __aenter__(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < int(self.limit))
            self._running += 1
        try:
            while (wait := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(wait * random.uniform(1, 1 + SPREAD))
        except asyncio.CancelledError:
            self._running -= 1
            raise

    async def __aexit__(self, *exc: object) -> None:
        self._running -= 1
        async with self._changed:
            self._changed.notify(2)  # one for the freed slot, one in case the limit has risen

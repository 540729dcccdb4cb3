"""When to ask a server again: waits with jitter, Retry-After, and a pace that all requests to one server share.

pace = Pace(64)
async with pace: ...            # one request; waits its turn
pace.slow_down(sent_at); pace.pause(retry_after_s(response.headers.get("retry-after")))
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
"""Bounds of the wait before the first and before late repetitions."""
SPREAD = 0.1
"""Requests that waited for the same moment start over this share of the wait, not all at once."""


def backoff_s(attempt: int, *, first_s: float = FIRST_WAIT_S) -> float:
    """Seconds to wait after failure number `attempt` (from 1): anything up to a bound that doubles each time.

    "Full jitter" of Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return random.uniform(0, min(MAX_WAIT_S, first_s * 2.0 ** min(attempt - 1, 30)))


def retry_after_s(header: str | None) -> float | None:
    """Seconds from now that a Retry-After header asks for, 0 for a time gone by; None without one that can be read.

    Both forms of RFC 9110, section 10.2.3: a number of seconds (fractions are taken, too), and a date.
    """
    text = (header or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=timezone.utc)
    return max(0.0, (date - datetime.now(timezone.utc)).total_seconds())


class Pace:
    """Lets at most `limit` requests run at once; one context per request.

    The limit halves where the server says that there are too many, and rises by one for each `limit` answers, up to
    `most` (additive increase, multiplicative decrease; Chiu & Jain 1989).
    """

    def __init__(self, most: int) -> None:
        self.most, self.limit = most, float(most)
        self._running, self._cut_at, self._paused_until = 0, 0.0, 0.0
        self._changed = asyncio.Condition()

    def slow_down(self, sent_at: float) -> bool:
        """The server refused a request sent at `time.monotonic()` time `sent_at`. Those sent together count once.

        Whether fewer run now than when it was sent; not where it was one at a time already.
        """
        slower = sent_at < self._cut_at or int(self.limit) > 1
        if sent_at >= self._cut_at:
            self.limit, self._cut_at = max(1.0, self.limit / 2), time.monotonic()
        return slower

    def speed_up(self) -> None:
        """The server answered one."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def pause(self, seconds: float) -> None:
        """Let no request start within this time; those under way go on."""
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
            self._changed.notify(2)  # one for the place left, one for a limit that has risen

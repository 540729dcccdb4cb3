"""What an HTTP response means: status, headers and body -> its JSON object, or the error that tells what to do.

    data = json_object(status, headers, body, url=url, redact=redactor, remedy=remedy)

RetryableError: send it again. RequestRejected: this request fails, others may not. UserError: all requests would fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distill_lab.errors import UserError
from distill_lab.generation.engines._chat_completions import RequestRejected, error_message, one_line
from distill_lab.generation.engines._chat_response import read_json
from distill_lab.generation.engines._http_retry import retry_after_s
from distill_lab.types import JsonObject

MAX_PAUSE_S = 600.0
"""If a server asks for a longer wait (a daily quota), the run stops instead."""


class RetryableError(Exception):
    """A retryable failure. rate_limited: the server returned 429. slowed: the limit was lowered since it was sent."""

    def __init__(
        self,
        reason: str,
        *,
        wait_s: float | None = None,
        rate_limited: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.wait_s, self.rate_limited, self.unreachable = wait_s, rate_limited, unreachable
        self.slowed = False


def json_object(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    url: str,
    redact: Callable[[str], str],
    remedy: Callable[[int], str],
) -> JsonObject:
    """The JSON object of a successful response. remedy: status -> what the user can do about it.

    Raises RetryableError, RequestRejected and UserError; their messages contain no key.
    """
    try:
        data = read_json(body)
    except ValueError:
        data = None
    error = data.get("error") if isinstance(data, dict) else None
    if status < 300 and isinstance(data, dict) and not error:
        return data
    if status < 300 and not isinstance(data, dict):
        raise RetryableError("the answer is not a JSON object")
    if status < 300:  # routers report upstream failures like this
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
    # Remove the key before shortening the text; otherwise half of it could remain at the end.
    words = one_line(redact(error_message(data) or body.decode(errors="replace"))) or "no reason given"
    reason = f"HTTP {status}: {words}"
    if status < 400:
        target = one_line(redact(headers.get("location", "nowhere")))
        raise UserError(f"{url} redirects to {target}; set base_url to the final address")
    if status in (401, 402, 403, 404) or (isinstance(error, dict) and error.get("code") == "insufficient_quota"):
        raise UserError(f"{url}: {reason}\n{remedy(status)}; then run the same command again to resume")
    if status not in (408, 409, 425, 429) and status < 500:
        raise RequestRejected(reason)
    wait_s = retry_after_s(headers.get("retry-after"))
    if wait_s is not None and wait_s > MAX_PAUSE_S:
        raise UserError(
            f"{url}: {reason}\nthe server asks to wait {wait_s / 60:,.0f} minutes; run the same command again then to resume"
        )
    raise RetryableError(reason, wait_s=wait_s, rate_limited=status == 429)

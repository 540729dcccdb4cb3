"""The address of a server's API: http://host:8000/v1, without a key in it."""

from __future__ import annotations

from urllib.parse import urlsplit

from distill_lab.errors import UserError


def check_base_url(url: str) -> str:
    """A server's API address without trailing slashes. Raises UserError if `url` is malformed or contains a key."""
    remedy = "give it as http://host:8000/v1"
    if not url.strip().isprintable() or " " in url.strip():
        raise UserError(f"the server's address contains characters that no address has; {remedy}")
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UserError(f"the server's address is malformed; {remedy}") from None
    if parts.username or parts.password or parts.query or parts.fragment or "@" in parts.netloc:
        raise UserError(
            f"the server's address contains more than host and path; {remedy}, and put a key in OPENAI_API_KEY"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"the server's address does not start with http://host or https://host; {remedy}")
    return url.strip().rstrip("/").removesuffix("/chat/completions")

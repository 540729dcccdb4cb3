"""Find the model that an OpenAI-compatible server serves, for configs that do not name one.

first_model("http://host:8000/v1") -> "Qwen/Qwen2.5-7B-Instruct"
"""

from __future__ import annotations

import os

from distill_lab.errors import UserError
from distill_lab.files.redact import Redactor

TIMEOUT_S = 10.0
REMEDY = "check inference.base_url and api_key, or name the model in models.teacher"


def first_model(base_url: str) -> str:
    """The first model that GET /models lists; the key is OPENAI_API_KEY. Raises UserError if there is no answer."""
    import httpx2

    key = os.environ.get("OPENAI_API_KEY", "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx2.get(f"{base_url}/models", headers=headers, timeout=TIMEOUT_S)
        answer.raise_for_status()
        name = str(answer.json()["data"][0]["id"])
        if Redactor(key)(name) != name:
            raise ValueError("the name contains the key")
    except httpx2.HTTPStatusError as error:
        reason = f"returned HTTP {error.response.status_code} for the list of its models"
    except httpx2.HTTPError as error:
        reason = f"does not answer ({type(error).__name__})"
    except (ValueError, LookupError, TypeError):
        reason = "lists no model"
    else:
        return name
    raise UserError(f"{base_url} {reason}; {REMEDY}")

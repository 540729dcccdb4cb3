"""What one server takes of a request, learned from its refusals: Dialect() -> after(refusal) -> the next form to try.

    memory = remembered(base_url, model)              for all requests to this model in this process
    body = request_body(model, prompt, sampling, sample=0, extra={}, dialect=memory.dialect)
    other = memory.dialect.after("HTTP 400: Unsupported parameter: 'max_tokens' ...", sampling)      None: nothing to change

OpenAI's reasoning models want `max_completion_tokens` and their own temperature; hosted servers refuse fields outside
OpenAI's protocol; others, such as Ollama, ignore them in silence. What is left to the server is known (`left_to_server`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache

from distill_lab.config import SamplingConfig

FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The sampling settings that a server may have defaults for."""
EXTENSIONS = ("top_k", "min_p", "repetition_penalty")
"""Those that are not part of OpenAI's protocol."""
NO_EXTENSIONS = {"api.openai.com"}
"""Servers known to refuse fields outside OpenAI's protocol."""
IGNORED = {"fp_ollama": EXTENSIONS}
"""By `system_fingerprint` in the responses: fields that such a server takes without a word and does not use."""
REFUSAL = re.compile(
    r"HTTP 4(?:00|22): .*(?:unrecogni[sz]ed|unknown|unsupported|not supported|not support|unexpected|extra|additional"
    r"|not permitted|not allowed|only the default|deprecated|instead)",
    re.IGNORECASE,
)
"""Matches errors that may be about a field: the request is sent once more in another form."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of requests that a server takes."""

    tokens_field: str = "max_tokens"
    """The field for the maximum of tokens."""
    extensions: bool = True
    """Whether to send EXTENSIONS with values that have no effect, so that the server's own values are not used."""
    dropped: frozenset[str] = frozenset()
    """Fields that it refuses and that requests therefore lack."""

    def after(self, refusal: str, sampling: SamplingConfig) -> Dialect | None:
        """The form to try after an error; None if the error is not about a field that may be left out.

        A field with a value that the user chose is only left out if it is the temperature or the seed.
        """
        named = {name for name in (*FIELDS, "seed", "max_tokens") if re.search(rf"\b{name}\b", refusal)}
        refused = REFUSAL.search(refusal) is not None
        if (
            refused
            and self.tokens_field == "max_tokens"
            and ("max_tokens" in named or "max_completion_tokens" in refusal)
        ):
            return replace(self, tokens_field="max_completion_tokens")
        for name in ("temperature", "top_p", "seed"):
            may = name != "top_p" or sampling.top_p == SamplingConfig.model_fields["top_p"].default
            if refused and may and name in named and name not in self.dropped:
                return replace(self, dropped=self.dropped | {name})
        if self.extensions and (refused or (named.intersection(EXTENSIONS) and refusal.startswith("HTTP 4"))):
            # The server does not know these fields, or not these values.
            return replace(self, extensions=False)
        return None

    def sends(self, name: str, sampling: SamplingConfig) -> bool:
        """Whether a request has this field of FIELDS."""
        if name in self.dropped:
            return False
        if getattr(sampling, name) != SamplingConfig.model_fields[name].default:
            return True
        return not sampling.from_model and (self.extensions or name not in EXTENSIONS)


@dataclass
class Memory:
    """What this process knows of a model on a server."""

    dialect: Dialect = field(default_factory=Dialect)
    ignored: tuple[str, ...] = ()
    """Fields of FIELDS that the server does not use though it takes them."""
    said: set[str] = field(default_factory=set)
    """Notes that the user has had."""

    def left_to_server(self, sampling: SamplingConfig) -> tuple[str, ...]:
        """The settings of FIELDS for which the server's own values apply."""
        return tuple(name for name in FIELDS if name in self.ignored or not self.dialect.sends(name, sampling))


@lru_cache(maxsize=256)
def remembered(base_url: str, model: str) -> Memory:
    """The memory of one model on one server, the same for all engines of this process."""
    return Memory()

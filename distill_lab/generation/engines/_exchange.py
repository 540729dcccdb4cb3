"""Requests to one model on a server and what comes back: prompt -> JSON body; response -> Completion; notes and record.

    exchange = Exchange(model, base_url, sampling, extra={}, on_note=print)
    dialect, body = exchange.dialect, exchange.body(prompt, 0)
    completion = exchange.completion(response, prompt.id, 0, dialect)
    other = exchange.other_form(rejection, dialect)           another form to try after a refusal, or None

It learns what the server takes (`_dialect`) and says each thing that the user should know once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import urlsplit

from distill_lab.config import SamplingConfig
from distill_lab.errors import UserError
from distill_lab.generation.engines._chat_completions import RequestRejected, request_body
from distill_lab.generation.engines._chat_response import to_completion
from distill_lab.generation.engines._dialect import FIELDS, IGNORED, NO_EXTENSIONS, Dialect, remembered
from distill_lab.types import Completion, Fields, JsonObject, Prompt


class Exchange:
    """The requests of one `generate` call. extra: fields of `engine.extra_body`."""

    def __init__(
        self,
        model: str,
        base_url: str,
        sampling: SamplingConfig,
        *,
        extra: Fields,
        on_note: Callable[[str], None],
    ) -> None:
        self.model, self.sampling, self.extra = model, sampling, extra
        self._on_note, self._memory = on_note, remembered(base_url, model)
        if urlsplit(base_url).hostname in NO_EXTENSIONS:
            self._memory.dialect = replace(self.dialect, extensions=False)

    @property
    def dialect(self) -> Dialect:
        """The form of requests that the server takes, as far as it is known."""
        return self._memory.dialect

    def body(self, prompt: Prompt, sample: int, dialect: Dialect | None = None) -> JsonObject:
        """The JSON body of a request."""
        dialect = dialect or self.dialect
        return request_body(self.model, prompt, self.sampling, sample=sample, extra=self.extra, dialect=dialect)

    def other_form(self, rejection: RequestRejected, dialect: Dialect) -> Dialect | None:
        """The form to try after a request of the form `dialect` was rejected."""
        return dialect.after(str(rejection), self.sampling)

    def completion(self, data: Fields, prompt_id: str, sample: int, dialect: Dialect) -> Completion:
        """The completion in the response to a request of the form `dialect`, which the server therefore takes.

        Raises RequestRejected if there is no answer in it, UserError if the server ignores a setting that the user chose.
        """
        self._memory.dialect = dialect
        fingerprint = data.get("system_fingerprint")
        self._memory.ignored = IGNORED.get(fingerprint, ()) if isinstance(fingerprint, str) else ()
        self._check_ignored()
        self._say_form(dialect)
        return to_completion(data, prompt_id, sample, max_tokens=self.sampling.max_new_tokens, on_note=self._say)

    def left_to_server(self) -> list[str]:
        """The sampling settings for which the server's own values apply."""
        return [name for name in self._memory.left_to_server(self.sampling) if self.extra.get(name) is None]

    def record(self) -> JsonObject:
        """What requests contain and what they leave to the server, for run.json."""
        body = self.body(Prompt("", []), 0)
        sent = {name: body[name] for name in (*FIELDS, self.dialect.tokens_field, "seed") if name in body}
        return {"sent": sent, "left_to_server": self.left_to_server(), "not_taken": sorted(self.dialect.dropped)}

    def _check_ignored(self) -> None:
        defaults = SamplingConfig.model_fields
        chosen = [name for name in self._memory.ignored if getattr(self.sampling, name) != defaults[name].default]
        if chosen:
            flags = ", ".join(f"sampling.{name.replace('_', '-')}" for name in chosen)
            raise UserError(
                f"{self.model}: Ollama ignores {flags} in requests; set it in the model's Modelfile (PARAMETER), and "
                "remove it here"
            )

    def _say_form(self, dialect: Dialect) -> None:
        if dialect.tokens_field != "max_tokens":
            self._say(f"its server takes {dialect.tokens_field} instead of max_tokens")
        for name in sorted(dialect.dropped):
            given = "a seed" if name == "seed" else f"{name} {getattr(self.sampling, name):g}"
            self._say(f"its server does not take {given}, and uses its own {name}")
        left = [name for name in self.left_to_server() if name not in dialect.dropped]
        if left and not self.sampling.from_model:
            why = "Ollama ignores them in requests" if self._memory.ignored else "its server does not take them"
            penalty = (
                "; Ollama's own repetition penalty is 1.1, PARAMETER repeat_penalty 1.0 in a Modelfile turns it off"
            )
            self._say(
                f"{', '.join(left)} are left to the server, whose own values apply ({why}"
                f"{penalty if self._memory.ignored else ''})"
            )

    def _say(self, text: str) -> None:
        if text not in self._memory.said:
            self._memory.said.add(text)
            self._on_note(f"{self.model}: {text}")

"""How a grader asks a model: loaded on first use, every reply kept in a file, and costs counted like a teacher's.

    model = OnDemand(ModelConfig(model="openai:m"), EngineConfig())
    with Replies(Path("graded.judge.jsonl"), model.identity()) as replies:
        replies.find(text, sampling)                   the reply that an earlier execution got, or None
        replies.keep(text, sampling, completion)

The file has one completion per reply; its id is a digest of the model, the sampling and the text. Replies that are in it are
never paid for twice, whether an execution was interrupted, stopped at `engine.price.max_cost`, or finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from distill_lab.config import EngineConfig, ModelConfig, SamplingConfig
from distill_lab.files.fingerprints import fingerprint
from distill_lab.files.id_index import IdIndex
from distill_lab.files.outputs import writing
from distill_lab.generation.completions import read_completions
from distill_lab.generation.engines import Engine, load_engine
from distill_lab.generation.generate import CompletionWriter, remove_torn_line
from distill_lab.generation.model_identity import requested_model_inputs
from distill_lab.generation.prices import announcement, spending
from distill_lab.models.names import api_engine
from distill_lab.types import Completion, Prompt

OnNote = Callable[[str], None]


@runtime_checkable
class PaidEngine(Protocol):
    """An engine whose requests cost money."""

    def count_costs(self, spent: float, *, announce: bool) -> None:
        """From now on stop before requests exceed the maximum cost; `spent`: what was paid before."""
        ...


class OnDemand:
    """An engine that is loaded on first use and can be freed."""

    def __init__(self, model: ModelConfig, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.on_note: OnNote = lambda note: None
        """Receives what a user should know about how the model is run."""
        self._engine: Engine | None = None
        self._spent: float | None = None

    @property
    def on_server(self) -> bool:
        """Whether the model is a server's."""
        return bool(api_engine(self.model.model))

    def identity(self) -> str:
        """A digest of everything that replies depend on besides text and sampling."""
        return fingerprint(requested_model_inputs(self.model, self.config))

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> Iterator[Completion]:
        """See `Engine`. Raises the errors of `load_engine`."""
        if self._engine is None:
            self._engine = load_engine(self.model, self.config, on_note=self.on_note)
        if self._spent is not None and isinstance(self._engine, PaidEngine):
            self._engine.count_costs(self._spent, announce=False)
            self._spent = None
        return self._engine.generate(prompts, sampling)

    def count_costs(self, outputs: Sequence[Path]) -> None:
        """Count requests from now on, together with those of these completions files, toward engine.price.max_cost."""
        if self.on_server:
            self._spent = spending(set(outputs), self.config.price).cost or 0.0

    def announcement(self, texts: Iterator[str], sampling: SamplingConfig) -> str:
        """What asking this much will cost; empty without prices."""
        if not (self.on_server and self.config.price.known):
            return ""
        asked = (Prompt("", [{"role": "user", "content": text}]) for text in texts)
        return announcement(asked, sampling, self.config.price, batch=False)

    def release(self) -> None:
        """Free the model; the next use loads it again."""
        self._engine = None


class Replies:
    """The replies in a file, by request. Memory holds an offset for each, not the texts."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self._identity = path, identity
        with writing(path):
            remove_torn_line(path)
            self._offsets = IdIndex()
            for completion, _, offset in read_completions(path):
                self._offsets.put(completion.id, offset)
            self._file = path.open("rb")
        self._writer: CompletionWriter | None = None

    def find(self, text: str, sampling: SamplingConfig) -> Completion | None:
        """The reply that the file had when it was opened."""
        offset = self._offsets.get(self._key(text, sampling))
        if offset is None:
            return None
        self._file.seek(offset)
        return Completion.from_json(json.loads(self._file.readline()))

    def keep(self, text: str, sampling: SamplingConfig, reply: Completion) -> None:
        """Write a reply; a failure is not one. Raises UserError if the file cannot be written."""
        if reply.finish_reason == "error":
            return
        if self._writer is None:
            self._writer = CompletionWriter(self.path, None)
            self._writer.__enter__()
        self._writer.write(replace(reply, id=self._key(text, sampling), sample=0))

    def _key(self, text: str, sampling: SamplingConfig) -> str:
        return fingerprint([self._identity, sampling.model_dump(mode="json"), text])

    def __enter__(self) -> Replies:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)
